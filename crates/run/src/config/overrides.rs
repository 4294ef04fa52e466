use std::fmt;

use toml::map::Entry;
use toml::{Table, Value};

use super::ConfigError;

/// One `--set path.to.key=value`.
pub(super) struct Override {
    pub(super) path: Vec<String>,
    value: Value,
    /// As it was given, for messages.
    text: String,
}

impl Override {
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong = |reason: &str| ConfigError::Set { set: text.to_owned(), reason: reason.to_owned() };
        let (key, value) =
            text.split_once('=').ok_or_else(|| wrong("expected KEY=VALUE, for example trainer.lr=1e-5"))?;
        let path: Vec<String> = key.split('.').map(|segment| segment.trim().to_owned()).collect();
        if path.iter().any(String::is_empty) {
            return Err(wrong("the key has an empty part; expected PATH.TO.KEY=VALUE"));
        }
        let value = value.trim();
        let value = value.parse().unwrap_or_else(|_| Value::String(value.to_owned()));
        Ok(Self { path, value, text: text.to_owned() })
    }

    /// Writes the value into `table`, creating the tables on the way to it.
    pub(super) fn apply(&self, table: &mut Table) -> Result<(), ConfigError> {
        let mut table = table;
        // `parse` leaves no path empty.
        let (last, parents) = self.path.split_last().expect("a path has at least one segment");
        for (depth, segment) in parents.iter().enumerate() {
            let next = match table.entry(segment.as_str()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(Value::Table(Table::new())),
            };
            let kind = next.type_str();
            table = match next {
                Value::Table(inner) => inner,
                _ => {
                    let parent = dotted(self.path[..=depth].iter().map(String::as_str));
                    let reason =
                        format!("`{parent}` is of type {kind}, not a table, so nothing can be set below it");
                    return Err(ConfigError::Set { set: self.text.clone(), reason });
                }
            };
        }
        table.insert(last.clone(), self.value.clone());
        Ok(())
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--set {}", self.text)
    }
}

pub(super) fn dotted<'a>(segments: impl IntoIterator<Item = &'a str>) -> String {
    segments.into_iter().collect::<Vec<_>>().join(".")
}
