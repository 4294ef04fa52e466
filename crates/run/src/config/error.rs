use std::io;
use std::path::PathBuf;

use super::overrides::dotted;
use super::value::Complaint;

/// What is wrong with a configuration, where, and what to write instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration `{}`", path.display())]
    Read {
        /// The file that was asked for.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// One-based line.
        line: usize,
        /// What the parser expected.
        message: String,
    },
    /// An override cannot be applied.
    #[error("--set {set}: {reason}")]
    Set {
        /// The override as it was given.
        set: String,
        /// Why it cannot be applied.
        reason: String,
    },
    /// A key that no part of the configuration knows.
    #[error("{origin}: unknown key `{key}`; {}", suggestion(nearest.as_deref(), known))]
    UnknownKey {
        /// Dotted path of the key.
        key: String,
        /// `FILE:LINE` or the override.
        origin: String,
        /// Dotted path of the known key that is most like it.
        nearest: Option<String>,
        /// The keys that are known in its place.
        known: Vec<String>,
    },
    /// A value of the wrong type or out of range.
    #[error("{origin}: `{key}`: {message}")]
    Value {
        /// Dotted path of the key.
        key: String,
        /// `FILE:LINE` or the override.
        origin: String,
        /// What was expected instead.
        message: String,
    },
    /// A key without default that has no value.
    #[error("`{key}` has no value; give it one in the --config file or with --set {key}=VALUE")]
    Missing {
        /// Dotted path of the key.
        key: String,
    },
    /// A flag for a key that the configuration does not have.
    #[error("{flag} has no effect on this command; leave it out")]
    UselessFlag {
        /// The flag.
        flag: &'static str,
    },
    /// Each value has the right type, but they make no sense together; see [`ConfigError::invalid`].
    #[error("the configuration is not valid")]
    Invalid(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The configuration cannot be written as TOML.
    #[error("the configuration cannot be written as TOML")]
    Serialize(#[source] toml::ser::Error),
}

impl ConfigError {
    /// Wraps the error of a configuration's own `validate`, so that the binary exits with the code for wrong usage:
    /// `config.validate().map_err(ConfigError::invalid)?`.
    pub fn invalid(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Invalid(source.into())
    }
}

/// Says which keys and values exist, and where the wrong one stands.
pub(super) fn explain(
    complaint: Complaint,
    path: &[String],
    origin: Option<String>,
    known_keys: &[String],
) -> ConfigError {
    let origin = origin.unwrap_or_else(|| "the defaults".to_owned());
    let key = dotted(path.iter().map(String::as_str));
    let message = match &complaint {
        Complaint::UnknownField { field, known } => {
            // The path may or may not end with the unknown key itself, depending on how `T` is deserialized.
            let parent = match path.split_last() {
                Some((last, parent)) if last == field => parent,
                _ => path,
            };
            let below_parent = |key: &str| dotted(parent.iter().map(String::as_str).chain([key]));
            let nearest = nearest(field, known)
                .map(below_parent)
                .or_else(|| known_keys.iter().find(|key| key.rsplit('.').next() == Some(field)).cloned());
            let known = known.iter().map(|&key| below_parent(key)).collect();
            return ConfigError::UnknownKey { key: below_parent(field), origin, nearest, known };
        }
        Complaint::MissingField(field) => {
            return ConfigError::Missing { key: dotted(path.iter().map(String::as_str).chain([*field])) };
        }
        Complaint::UnknownVariant { variant, known } => match nearest(variant, known) {
            Some(nearest) => format!("{complaint}; did you mean `{nearest}`?"),
            None => complaint.to_string(),
        },
        Complaint::NotString(message) if origin.starts_with("--set") => {
            format!(
                "{message}; to pass a string that reads like another type, quote it: --set '{key}=\"...\"'"
            )
        }
        Complaint::NotString(_) | Complaint::Other(_) => complaint.to_string(),
    };
    ConfigError::Value { key, origin, message }
}

/// Below this similarity a suggestion would rather confuse.
const SIMILAR: f64 = 0.8;

fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|&candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn suggestion(nearest: Option<&str>, known: &[String]) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None if known.is_empty() => "no key is known there".to_owned(),
        None => format!("known keys: `{}`", known.join("`, `")),
    }
}
