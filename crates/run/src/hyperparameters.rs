//! The settings of a run as trackers show them: dotted names and single values.

use std::path::Path;

use toml::Value;

use crate::rundir::RunDir;

/// All settings of the run in a folder by dotted names; none where its configuration cannot be read. Lists of tables are numbered from 0; other lists
/// stay as they are.
pub(crate) fn of_run(folder: &Path) -> Vec<(String, Value)> {
    let text = RunDir::stored_config(folder).and_then(|path| std::fs::read_to_string(path).ok());
    let table: Option<toml::Table> = text.and_then(|text| text.parse().ok());
    let mut all = vec![];
    flatten(Value::Table(table.unwrap_or_default()), String::new(), &mut all);
    all
}

fn flatten(value: Value, path: String, all: &mut Vec<(String, Value)>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Table(table) => table.into_iter().for_each(|(key, value)| flatten(value, below(&key), all)),
        Value::Array(list) if list.iter().any(Value::is_table) => {
            list.into_iter().enumerate().for_each(|(i, value)| flatten(value, below(&i.to_string()), all));
        }
        value => all.push((path, value)),
    }
}

/// A value as text, strings without quotes.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}
