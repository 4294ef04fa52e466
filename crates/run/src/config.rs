//! Configuration: defaults, then a TOML file, then `--set` overrides, each checked key by key.

mod error;
mod explained;
mod overrides;
mod template;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::map::Entry;
use toml::{Table, Value};

pub use error::ConfigError;
pub use explained::unexplained_keys;
use overrides::Override;
pub use template::{schema, template};
use value::Node;

/// Reads a configuration: the values of `file`, then each of `sets` (`path.to.key=value`, later ones win), then
/// the defaults of `T` for all that is left.
///
/// A value of `sets` is read as TOML and, where it is not TOML, as a bare string, so that
/// `--set model=t5-large` needs no quotes. `T` should carry `#[serde(default, deny_unknown_fields)]` on every level. The keys
/// that a section leaves out are those of `T`'s defaults, not of the section's type; enums with settings should be
/// externally tagged (serde's default), so that another variant than the default one is recognised.
///
/// # Errors
/// An unknown key, a value of the wrong type or a file that cannot be read or parsed; the message says where.
pub fn load<T: Serialize + DeserializeOwned>(file: Option<&Path>, sets: &[String]) -> Result<T, ConfigError> {
    resolve_file(file.map(ConfigFile::read).transpose()?, sets)
}

/// As [`load`], from a text that the program carries; `name` stands for the file in messages.
///
/// # Errors
/// As [`load`].
pub fn load_text<T: Serialize + DeserializeOwned>(
    name: &str,
    text: &str,
    sets: &[String],
) -> Result<T, ConfigError> {
    resolve_file(Some(ConfigFile { path: name.into(), text: text.into() }), sets)
}

fn resolve_file<T: Serialize + DeserializeOwned>(
    file: Option<ConfigFile>,
    sets: &[String],
) -> Result<T, ConfigError> {
    let overrides = sets.iter().map(|set| Override::parse(set)).collect::<Result<Vec<_>, _>>()?;

    let mut table = file.as_ref().map(ConfigFile::table).transpose()?.unwrap_or_default();
    for one in &overrides {
        one.apply(&mut table)?;
    }
    if let Some(defaults) = defaults::<T>() {
        fill(&mut table, defaults);
    }
    serde_path_to_error::deserialize(Node(Value::Table(table))).map_err(|error| {
        let path = segments(error.path());
        let origin = origin(&path, file.as_ref(), &overrides);
        error::explain(error.into_inner(), &path, origin, &known_keys::<T>())
    })
}

/// The resolved configuration as TOML text, every default written out.
///
/// # Errors
/// `config` holds something that TOML cannot express, such as an integer above `i64::MAX`.
pub fn to_toml<T: Serialize>(config: &T) -> Result<String, ConfigError> {
    resolve(config).map(|(text, _)| text)
}

/// `config` as text and as what [`load`] would read from that text. Not from `config` directly: an `f32` gets other
/// digits on that way, and an integer that can be written but not read would be noticed only when the run is resumed.
pub(crate) fn resolve<T: Serialize>(config: &T) -> Result<(String, Table), ConfigError> {
    let text = toml::to_string(config).map_err(ConfigError::Serialize)?;
    let file = ConfigFile { path: "resolved configuration".into(), text };
    let table = file.table()?;
    Ok((file.text, table))
}

/// Every leaf of a table under its dotted path; arrays count as leaves.
pub(crate) fn flatten(table: &Table) -> BTreeMap<String, Value> {
    fn visit(prefix: &str, table: &Table, leaves: &mut BTreeMap<String, Value>) {
        for (key, value) in table {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(inner) if !inner.is_empty() => visit(&path, inner, leaves),
                _ => {
                    leaves.insert(path, value.clone());
                }
            }
        }
    }
    let mut leaves = BTreeMap::new();
    visit("", table, &mut leaves);
    leaves
}

/// A file kept as text, because an error message needs its line numbers.
struct ConfigFile {
    path: PathBuf,
    text: String,
}

impl ConfigFile {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        // Some editors write a byte order mark.
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        Ok(Self { path: path.to_owned(), text })
    }

    fn table(&self) -> Result<Table, ConfigError> {
        self.text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: self.path.clone(),
            line: self.line(error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })
    }

    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
    }

    /// `FILE:LINE` of the deepest part of `path` that the file has.
    fn locate(&self, path: &[String]) -> String {
        let mut offset = None;
        if let Ok(root) = DeTable::parse(&self.text) {
            let root = DeValue::Table(root.into_inner());
            let mut value = &root;
            for segment in path {
                let (start, next) = match value {
                    DeValue::Table(table) => match table.iter().find(|(key, _)| key.as_ref() == segment) {
                        Some((key, next)) => (key.span().start, next),
                        None => break,
                    },
                    DeValue::Array(array) => match segment.parse().ok().and_then(|i: usize| array.get(i)) {
                        Some(next) => (next.span().start, next),
                        None => break,
                    },
                    _ => break,
                };
                offset = Some(start);
                value = next.as_ref();
            }
        }
        match offset {
            Some(offset) => format!("{}:{}", self.path.display(), self.line(offset)),
            None => self.path.display().to_string(),
        }
    }
}

/// Who set the value at `path`: an override wins over the file, and a later override over an earlier one.
fn origin(path: &[String], file: Option<&ConfigFile>, overrides: &[Override]) -> Option<String> {
    // The second look-up is for types whose error is reported at a parent of the faulty key (tagged enums).
    let by_override = overrides
        .iter()
        .rfind(|one| path.starts_with(&one.path))
        .or_else(|| overrides.iter().rfind(|one| one.path.starts_with(path)));
    match by_override {
        Some(one) => Some(one.to_string()),
        None => file.map(|file| file.locate(path)),
    }
}

fn segments(path: &serde_path_to_error::Path) -> Vec<String> {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Enum { variant } => Some(variant.clone()),
            Segment::Unknown => None,
        })
        .collect()
}

/// The defaults; `None` where `T` has none for some key.
fn defaults<T: Serialize + DeserializeOwned>() -> Option<Table> {
    Table::try_from(T::deserialize(Value::Table(Table::new())).ok()?).ok()
}

/// Adds the defaults of all keys that are not there. Left to serde, a section of which one key is given would get the
/// others from its own type, where the configuration around it has other defaults.
fn fill(table: &mut Table, defaults: Table) {
    // Another variant of an enum has nothing in common with the default one.
    if table.len() == 1 && defaults.len() == 1 && table.keys().ne(defaults.keys()) {
        return;
    }
    for (key, default) in defaults {
        match (table.entry(key), default) {
            (Entry::Vacant(entry), default) => {
                entry.insert(default);
            }
            (Entry::Occupied(mut entry), Value::Table(default)) => {
                if let Value::Table(inner) = entry.get_mut() {
                    fill(inner, default);
                }
            }
            _ => {}
        }
    }
}

/// The dotted paths of all keys, for suggestions; empty where `T` has no default for some key.
fn known_keys<T: Serialize + DeserializeOwned>() -> Vec<String> {
    defaults::<T>().map(|table| flatten(&table).into_keys().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
