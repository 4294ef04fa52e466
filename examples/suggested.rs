//! Settings that the pages about a program suggest, for its tests: what is written there must work.

use ruminate::run::{ConfigError, config};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Loads each line's settings, such as `reinforcement.gain=0` in a table, and Adafactor for every optimizer, and checks them. Returns how
/// many lines there are.
pub(crate) fn all_are_taken<T>(pages: &[&str], validate: impl Fn(&T) -> Result<(), ConfigError>) -> usize
where
    T: Serialize + DeserializeOwned + Default,
{
    let mut keys = vec![];
    leaves(&serde_json::to_value(T::default()).unwrap(), String::new(), &mut keys);
    let known = |key: &str| keys.iter().any(|known| known == key || known.starts_with(&format!("{key}.")));
    // What stands between backquotes, line by line; code of several lines has none within.
    let of_line = |line: &str| -> Vec<String> {
        let spans = line.split('`').skip(1).step_by(2);
        let setting = |span: &str| {
            let (key, value) = span.split_once('=')?;
            known(key.trim()).then(|| format!("{}={}", key.trim(), value.trim()))
        };
        spans.filter_map(setting).collect()
    };
    let mut suggested: Vec<Vec<String>> =
        pages.iter().flat_map(|page| page.lines()).map(of_line).filter(|sets| !sets.is_empty()).collect();
    let lines = suggested.len();
    let optimizers = keys.iter().filter(|key| key.ends_with(".optimizer"));
    suggested.extend(optimizers.map(|key| vec![format!("{key}={{adafactor={{}}}}")]));
    for sets in suggested {
        let loaded = config::load_text::<T>("defaults", "", &sets).and_then(|config| validate(&config));
        loaded.unwrap_or_else(|error| panic!("{sets:?}: {error}: {:?}", std::error::Error::source(&error)));
    }
    lines
}

/// Dotted paths of all values.
fn leaves(value: &serde_json::Value, path: String, keys: &mut Vec<String>) {
    match value.as_object() {
        Some(table) if !table.is_empty() => {
            let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            table.iter().for_each(|(key, value)| leaves(value, below(key), keys));
        }
        _ => keys.push(path),
    }
}
