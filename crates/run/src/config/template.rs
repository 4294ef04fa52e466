//! A configuration file with every key at its default, explained by the documentation of the code.

use std::fmt::Write;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{ConfigError, to_toml};

/// Columns of a comment.
const WIDTH: usize = 110;

/// A blank at which lines are not broken.
const NO_BREAK: &str = "\u{a0}";

/// The JSON schema of a configuration. Editors check and complete a TOML file by it.
#[must_use]
pub fn schema<T: JsonSchema>() -> Schema {
    let mut schema = SchemaGenerator::default().into_root_schema_for::<T>();
    plain_descriptions(schema.ensure_object());
    schema
}

/// A TOML file with all keys of a configuration at their defaults, each explained in the line above by the documentation of its field. Keys
/// without a value stand there as comments.
///
/// ```
/// use ruminate_run::config::template;
///
/// #[derive(Default, serde::Serialize, schemars::JsonSchema)]
/// struct Config {
///     /// Seed of every random choice.
///     seed: u64,
///     /// A folder to start from.
///     folder: Option<String>,
/// }
/// assert_eq!(template(&Config::default())?, "\
/// ## Seed of every random choice.
/// seed = 0
/// ## A folder to start from.
/// ## folder = \"...\"
/// ");
/// # Ok::<(), ruminate_run::ConfigError>(())
/// ```
///
/// # Errors
/// The defaults cannot be written as TOML.
pub fn template<T: Serialize + JsonSchema>(defaults: &T) -> Result<String, ConfigError> {
    let schema = schema::<T>();
    let root = Node { root: schema.as_value(), at: schema.as_value() };
    let mut out = String::new();
    let text = to_toml(defaults)?;
    // The keys of each section: its own, and those of its subsections.
    let headers: Vec<&str> = text.lines().filter_map(header).collect();
    let keys = |section: &str| -> Vec<String> {
        let below = headers.iter().filter_map(|header| match section {
            "" => Some(*header),
            _ => header.strip_prefix(section)?.strip_prefix('.'),
        });
        below.filter_map(|header| header.split('.').next()).map(str::to_owned).collect()
    };
    let mut section = Section { node: Some(root), keys: keys("") };
    for line in text.lines() {
        if let Some(name) = header(line) {
            section.end(&mut out);
            let path: Vec<&str> = name.split('.').collect();
            let above = path[..path.len() - 1].iter().try_fold(root, |node, key| node.get(key));
            let own = above.and_then(|above| above.get(path[path.len() - 1]));
            let _ = writeln!(out);
            if let Some(own) = own {
                comment(&mut out, &own.explanation());
            }
            let _ = writeln!(out, "{line}");
            section = Section { node: own, keys: keys(name) };
        } else if let Some((key, _)) = line.split_once(" = ")
            && !line.starts_with([' ', ']'])
        {
            if let Some(own) = section.node.and_then(|node| node.get(key)) {
                // The default stands in the next line, and may be another than that of the type.
                let text = own.explanation();
                let without = |(text, rest): (&str, &str)| {
                    let choices = rest.find(" One of: ").map_or("", |at| &rest[at..]);
                    format!("{text}{choices}")
                };
                comment(&mut out, &text.split_once(" Default: ").map_or(text.clone(), without));
            }
            section.keys.push(key.to_owned());
            let _ = writeln!(out, "{line}");
        } else if !line.is_empty() {
            let _ = writeln!(out, "{line}");
        }
    }
    section.end(&mut out);
    Ok(out)
}

/// The name in the header of a section.
fn header(line: &str) -> Option<&str> {
    let name = line.strip_prefix('[')?.strip_suffix(']')?;
    Some(name.trim_matches(['[', ']']))
}

/// The section that is being written.
struct Section<'a> {
    node: Option<Node<'a>>,
    keys: Vec<String>,
}

impl Section<'_> {
    /// Adds the keys that have no value.
    fn end(&self, out: &mut String) {
        let Some(node) = self.node else { return };
        for (key, own) in node.properties() {
            let Some(example) = own.example().filter(|_| !self.keys.contains(key)) else { continue };
            comment(out, &own.explanation());
            let _ = writeln!(out, "# {key} = {example}");
        }
    }
}

/// A place in a schema.
#[derive(Clone, Copy)]
struct Node<'a> {
    root: &'a Value,
    at: &'a Value,
}

impl<'a> Node<'a> {
    fn to(self, at: &'a Value) -> Self {
        Self { at, ..self }
    }

    /// The node that a reference names, with what stands beside it left out; one of a value that may be missing.
    fn resolved(self) -> Self {
        let reference = self.at["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"));
        if let Some(name) = reference {
            return self.to(&self.root["$defs"][name]).resolved();
        }
        let some = self.alternatives().filter(|of| of.at["type"] != "null").collect::<Vec<_>>();
        match some.as_slice() {
            [one] => one.resolved(),
            _ => self,
        }
    }

    fn alternatives(self) -> impl Iterator<Item = Self> {
        ["anyOf", "oneOf", "allOf"]
            .into_iter()
            .filter_map(move |key| self.at[key].as_array())
            .flatten()
            .map(move |at| self.to(at))
    }

    fn properties(self) -> impl Iterator<Item = (&'a String, Self)> {
        let node = self.resolved();
        node.at["properties"].as_object().into_iter().flatten().map(move |(key, at)| (key, node.to(at)))
    }

    /// The value of a key, of an element's where there are several; in an enum, that of the variant.
    fn get(self, key: &str) -> Option<Self> {
        let node = self.resolved();
        let own = |of: Self| of.at["properties"].get(key).map(|at| of.to(at));
        own(node)
            .or_else(|| node.alternatives().find_map(|of| own(of.resolved())))
            .or_else(|| node.at.get("items").and_then(|items| node.to(items).get(key)))
    }

    /// Its documentation, and the values that a key may have.
    fn explanation(self) -> String {
        let node = self.resolved();
        let text = [self, node].iter().find_map(|of| of.at["description"].as_str()).unwrap_or_default();
        let choices = node.choices();
        match choices.is_empty() {
            true => text.to_owned(),
            false => format!("{text} One of: {}.", choices.join(", ")),
        }
    }

    /// The words among which a key chooses, and the tables.
    fn choices(self) -> Vec<String> {
        let words = |of: Self| -> Vec<String> {
            let of = of.resolved();
            let list = of.at["enum"].as_array().map_or(&[][..], Vec::as_slice);
            let words = list.iter().chain(of.at.get("const")).filter_map(Value::as_str);
            let tables = of.at["properties"].as_object().into_iter().flat_map(Map::keys);
            // Not to be broken between two lines.
            let table = |key: &String| format!("{{ {key} = ... }}").replace(' ', NO_BREAK);
            words.map(|word| format!("\"{word}\"")).chain(tables.map(table)).collect()
        };
        let own = match self.at["enum"].is_array() {
            true => words(self),
            false => vec![],
        };
        let several: Vec<Vec<String>> = self.alternatives().map(words).collect();
        // Alternatives that are no choice of names, such as a number or a list, say nothing here.
        match several.iter().all(|words| !words.is_empty()) {
            true => own.into_iter().chain(several.into_iter().flatten()).collect(),
            false => own,
        }
    }

    /// An example of a value; none where it is a section of its own that is there by default.
    fn example(self) -> Option<String> {
        let kind = |of: Self| match &of.at["type"] {
            Value::String(name) => Some(name.clone()),
            Value::Array(names) => {
                names.iter().filter_map(Value::as_str).find(|name| *name != "null").map(str::to_owned)
            }
            _ => None,
        };
        let node = self.resolved();
        if let Some(first) = node.choices().into_iter().next() {
            return Some(first.replace(NO_BREAK, " "));
        }
        Some(match kind(node)?.as_str() {
            "string" => "\"...\"".into(),
            "integer" => "1".into(),
            "number" => "1.0".into(),
            "boolean" => "true".into(),
            "array" => "[...]".into(),
            "object" => "{ ... }".into(),
            _ => return None,
        })
    }
}

/// Writes a text as a comment, in lines of some width.
fn comment(out: &mut String, text: &str) {
    let mut line = String::new();
    for word in text.split([' ', '\n']).filter(|word| !word.is_empty()) {
        let word = &word.replace(NO_BREAK, " ");
        if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "# {line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        let _ = writeln!(out, "# {line}");
    }
}

/// Leaves the text of links between items of the code, and drops their targets.
fn plain_descriptions(fields: &mut Map<String, Value>) {
    for (key, value) in fields {
        match value {
            Value::String(text) if key == "description" => *text = without_links(text),
            Value::Object(fields) => plain_descriptions(fields),
            Value::Array(values) => {
                values.iter_mut().filter_map(Value::as_object_mut).for_each(plain_descriptions)
            }
            _ => {}
        }
    }
}

fn without_links(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("[`") {
        let Some((name, behind)) = after.split_once("`]") else { break };
        out.push_str(before);
        out.push_str(&format!("`{name}`"));
        rest = match behind.strip_prefix('(').and_then(|target| target.split_once(')')) {
            Some((_, behind)) => behind,
            None => behind,
        };
    }
    out + rest
}
