//! What the readers of `config.json` share: keys are taken one by one, and what nobody took is named once.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::files::{GENERATION_CONFIG, WEIGHTS, once, read_json};
use crate::{Error, Result, TokenId};

/// A key that transformers reads for a model type and that is not implemented here, with the values that change nothing.
pub(crate) type Unimplemented = (&'static str, fn(&Value) -> bool);

/// The keys of this kind that transformers reads for every model type.
pub(crate) const UNIMPLEMENTED: [Unimplemented; 4] = [
    // Other settings for some layers.
    ("per_layer_config", |value| value.is_null() || value.as_object().is_some_and(Map::is_empty)),
    // Weights that are not plain numbers.
    ("quantization_config", Value::is_null),
    // Another name of the weights' file.
    ("transformers_weights", |value| value.is_null() || value == WEIGHTS),
    ("fusion_config", Value::is_null),
];

/// The keys of a `config.json` that have not been read yet.
///
/// A key matters only if transformers' implementation of the `model_type` reads it. `null` is a value: what it stands for, if
/// anything, is said where the key is read.
#[derive(Debug)]
pub(crate) struct Keys {
    json: Map<String, Value>,
    path: PathBuf,
    /// The key that holds these, where they are not those of the file itself.
    inside: Option<&'static str>,
}

impl Keys {
    pub(crate) fn new(json: Map<String, Value>, path: &Path) -> Self {
        Self { json, path: path.to_path_buf(), inside: None }
    }

    /// The keys inside of a key that has been taken.
    pub(crate) fn inside(&self, key: &'static str, value: Value) -> Result<Self> {
        match value {
            Value::Object(json) => Ok(Self { json, path: self.path.clone(), inside: Some(key) }),
            other => Err(refuse(key, format!("is {other}, not an object"))),
        }
    }

    /// The value of a key, `null` included.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.json.remove(key)
    }

    /// The value of a key that has no default.
    pub(crate) fn required<T: DeserializeOwned>(&mut self, key: &str) -> Result<T> {
        match self.take(key) {
            Some(value) if !value.is_null() => self.parse(key, value),
            _ => Err(self.refuse(key, format!("is missing or null in {}", self.path.display()))),
        }
    }

    /// The value of a key for which `null` means nothing, where the key is there.
    pub(crate) fn optional<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        match self.take(key) {
            Some(Value::Null) => {
                let reason = format!(
                    "is null in {}, for which transformers knows no meaning, either; leave it out to get the default",
                    self.path.display()
                );
                Err(self.refuse(key, reason))
            }
            Some(value) => self.parse(key, value).map(Some),
            None => Ok(None),
        }
    }

    /// Takes an [`optional`](Self::optional) key; `missing` is the value that a missing key stands for.
    pub(crate) fn or<T: DeserializeOwned>(&mut self, key: &str, missing: T) -> Result<T> {
        Ok(self.optional(key)?.unwrap_or(missing))
    }

    /// The value of a key for which `null` means none, which is not what a missing key means.
    pub(crate) fn nullable<T: DeserializeOwned>(
        &mut self,
        key: &str,
        missing: Option<T>,
    ) -> Result<Option<T>> {
        match self.take(key) {
            Some(Value::Null) => Ok(None),
            Some(value) => self.parse(key, value).map(Some),
            None => Ok(missing),
        }
    }

    /// The tokens that end a text: one, several, or with `null` none.
    pub(crate) fn end_tokens(&mut self, missing: &[TokenId]) -> Result<Vec<TokenId>> {
        match self.take("eos_token_id") {
            Some(value) => end_tokens(&value, &self.path),
            None => Ok(missing.to_vec()),
        }
    }

    /// Another name that transformers has for a key. Both may be there if they agree.
    pub(crate) fn alias(&mut self, alias: &str, key: &str) -> Result<()> {
        let Some(value) = self.take(alias) else { return Ok(()) };
        match self.json.get(key) {
            Some(other) if *other != value => {
                Err(self.refuse(alias, format!("is {value}, but {key}, which is the same, is {other}")))
            }
            _ => {
                self.json.insert(key.into(), value);
                Ok(())
            }
        }
    }

    /// Refuses keys that are not implemented, unless their values change nothing.
    pub(crate) fn unimplemented(&mut self, keys: &[Unimplemented]) -> Result<()> {
        keys.iter().try_for_each(|(key, neutral)| match self.take(key) {
            Some(value) if !neutral(&value) => {
                let reason = format!(
                    "{value} in {} changes what the model computes, and is not implemented",
                    self.path.display()
                );
                Err(self.refuse(key, reason))
            }
            _ => Ok(()),
        })
    }

    /// The name of a key that nobody took and that holds keys of its own.
    pub(crate) fn nested(&self) -> Option<String> {
        self.json.iter().find(|(_, value)| value.is_object()).map(|(key, _)| key.clone())
    }

    /// Names the keys that nobody took, once for each file.
    pub(crate) fn finish(self) {
        let names: Vec<&str> = self.json.keys().map(String::as_str).collect();
        if !names.is_empty() {
            let inside = self.inside.map(|key| format!(" of `{key}`")).unwrap_or_default();
            let message = format!(
                "{}: ignored keys{inside}, which change nothing in what the model computes: {}",
                self.path.display(),
                names.join(", ")
            );
            once(&message, || log::info!("{message}"));
        }
    }

    /// An error about a key; inside of another, that one is named.
    pub(crate) fn refuse(&self, key: &str, reason: String) -> Error {
        match self.inside {
            Some(outer) => refuse(outer, format!("`{key}` {reason}")),
            None => refuse(key, reason),
        }
    }

    fn parse<T: DeserializeOwned>(&self, key: &str, value: Value) -> Result<T> {
        T::deserialize(&value).map_err(|error| self.refuse(key, format!("is {value}: {error}")))
    }
}

/// The end tokens that `generation_config.json` beside a `config.json` names, where it has the key; they take the place of those in
/// `config.json`.
pub(crate) fn generation_end_tokens(folder: &Path) -> Result<Option<Vec<TokenId>>> {
    let path = folder.join(GENERATION_CONFIG);
    if !path.exists() {
        return Ok(None);
    }
    let json: Map<String, Value> = read_json(&path)?;
    json.get("eos_token_id").map(|value| end_tokens(value, &path)).transpose()
}

/// One id, several, or with `null` none.
fn end_tokens(value: &Value, path: &Path) -> Result<Vec<TokenId>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ids {
        One(TokenId),
        Many(Vec<TokenId>),
        None,
    }
    match Ids::deserialize(value) {
        Ok(Ids::One(id)) => Ok(vec![id]),
        Ok(Ids::Many(ids)) if !ids.is_empty() => Ok(ids),
        Ok(Ids::None) => Ok(vec![]),
        _ => {
            let reason =
                format!("is {value} in {}, but must be a token id, a list of some, or null", path.display());
            Err(refuse("eos_token_id", reason))
        }
    }
}

/// The spelling of end tokens in `config.json`.
pub(crate) fn end_tokens_json(ids: &[TokenId]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

pub(crate) fn refuse(key: &str, reason: String) -> Error {
    Error::Config { key: key.to_string(), reason }
}
