use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

/// The keys of a configuration that a file does not explain: those that it does not name, or names without a comment in the line above.
///
/// A key without a value has no form in TOML, so it may stand in the file as a comment, `# key = value`. The keys of an inline table are
/// explained with it, and so are those of a section whose header has a comment and that names none of them. For tests of the files that a
/// program ships.
///
/// ```
/// use ruminate_run::config::unexplained_keys;
///
/// #[derive(serde::Serialize)]
/// struct Config {
///     seed: u64,
///     steps: u64,
/// }
/// let file = "# Seed of every random choice.\nseed = 1\nsteps = 2\n";
/// assert_eq!(unexplained_keys(file, &Config { seed: 1, steps: 2 }), ["steps"]);
/// ```
///
/// # Panics
/// When `defaults` cannot be written as JSON.
#[must_use]
pub fn unexplained_keys<T: Serialize>(text: &str, defaults: &T) -> Vec<String> {
    let mut section = String::new();
    let (mut explained, mut bare) = (BTreeSet::new(), BTreeSet::new());
    // Sections and inline tables whose comment stands for all their keys.
    let mut whole = vec![];
    let mut has_comment = false;
    for line in text.lines() {
        let mut is_key = false;
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            // An element of an array of tables.
            let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
            section = format!("{name}.");
            whole.extend(has_comment.then(|| section.clone()));
            explained.extend(has_comment.then(|| name.to_owned()));
        } else if let Some((key, value)) = line.trim_start_matches("# ").split_once(" = ")
            && !key.contains(' ')
        {
            is_key = true;
            let key = format!("{section}{key}");
            whole.extend((has_comment && value.starts_with('{')).then(|| format!("{key}.")));
            if has_comment {
                explained.insert(key)
            } else {
                bare.insert(key)
            };
        }
        // A key without a value explains nothing.
        has_comment = line.starts_with("# ") && !is_key;
    }
    // A section that names some of its keys has to name all of them.
    let named = |section: &str| explained.iter().any(|key| key.starts_with(section));
    whole.retain(|section| !named(section));
    let mut keys = vec![];
    leaves(&serde_json::to_value(defaults).expect("a configuration"), String::new(), &mut keys);
    let is_explained = |key: &String| {
        explained.contains(key) || !bare.contains(key) && whole.iter().any(|of| key.starts_with(of))
    };
    keys.retain(|key| !is_explained(key));
    keys.extend(bare);
    keys.sort();
    keys.dedup();
    keys
}

fn leaves(value: &Value, path: String, keys: &mut Vec<String>) {
    match value.as_object() {
        Some(table) if !table.is_empty() => {
            for (key, value) in table {
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(value, below, keys);
            }
        }
        _ => keys.push(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_explained_where_they_stand() {
        let defaults = serde_json::json!({
            "seed": 1, "model": { "folder": null, "dropout": 0.1 }, "teacher": { "key": { "env": "K" }, "model": "m" },
            "prices": { "prompt": 1.0 },
        });
        let text = "# The seed.\nseed = 1\n\n[model]\n# A folder.\n# folder = \"x\"\ndropout = 0.1\n\n[teacher]\n# The key.\n\
                    key = { env = \"K\" }\n# Its model.\nmodel = \"m\"\n\n# Prices, of a million tokens.\n[prices]\n";
        assert_eq!(unexplained_keys(text, &defaults), ["model.dropout"]);
        assert_eq!(unexplained_keys("", &defaults).len(), 6);
        let rewards = serde_json::json!({ "rewards": [{ "name": "diversity" }, { "name": "accuracy" }] });
        let text_of = |comment: &str| {
            format!(
                "# What counts.\n[[rewards]]\n{comment}name = \"diversity\"\n[[rewards]]\n# Its name.\nname = \"accuracy\"\n"
            )
        };
        assert_eq!(unexplained_keys(&text_of("# Its name.\n"), &rewards), [""; 0]);
        assert_eq!(unexplained_keys(&text_of(""), &rewards), ["rewards.name"]);
        let named = text.replace("[prices]\n", "[prices]\n# Of a prompt.\nprompt = 1.0\n");
        assert_eq!(unexplained_keys(&named, &defaults), ["model.dropout"]);
    }
}
