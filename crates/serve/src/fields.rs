//! The fields of a request, taken one by one, so that none is overlooked.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Fields that change nothing in an answer: they name users, group requests, or choose how a service is paid.
const IGNORED: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    // Without tools there is nothing to be called.
    "parallel_tool_calls",
];

/// A field that is not implemented, and which of its values change nothing.
type Neutral = (&'static str, fn(&Value) -> bool);

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

const NEUTRAL: [Neutral; 13] = [
    ("frequency_penalty", is_zero),
    ("presence_penalty", is_zero),
    ("logit_bias", is_empty),
    ("suffix", is_empty),
    ("tools", is_empty),
    ("functions", is_empty),
    ("tool_choice", |value| matches!(value.as_str(), Some("none" | "auto"))),
    ("function_call", |value| matches!(value.as_str(), Some("none" | "auto"))),
    ("response_format", |value| value.get("type").and_then(Value::as_str) == Some("text")),
    ("modalities", |value| *value == serde_json::json!(["text"])),
    ("best_of", |value| value.as_u64() == Some(1)),
    ("verbosity", |value| value == "medium"),
    ("add_special_tokens", |value| *value == true),
];

/// The fields of a request that have not been read yet.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl From<Map<String, Value>> for Fields {
    fn from(fields: Map<String, Value>) -> Self {
        Self(fields)
    }
}

impl Fields {
    /// Reads a request's body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::invalid("the request must be a JSON object")),
            Err(error) => Err(ApiError::invalid(format!("the request is not JSON: {error}"))),
        }
    }

    /// The value of a field; `null` stands for none.
    pub(crate) fn take<T: DeserializeOwned>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match T::deserialize(&value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(ApiError::field(name, format!("is {}, but must be {expected}", shown(&value)))),
            },
        }
    }

    /// Skips a field.
    pub(crate) fn ignore(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// A field that holds something and was neither read nor ignored.
    pub(crate) fn unread(&self) -> Option<&str> {
        let unread = self.0.iter().find(|(_, value)| !value.is_null() && !is_empty(value));
        unread.map(|(name, _)| name.as_str())
    }

    /// Refuses what is left, unless it changes nothing.
    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        for name in IGNORED {
            self.ignore(name);
        }
        for (name, neutral) in NEUTRAL {
            if let Some(value) = self.0.remove(name)
                && !value.is_null()
                && !neutral(&value)
            {
                let reason = format!("is {}, which this server does not implement", shown(&value));
                return Err(ApiError::field(name, reason));
            }
        }
        self.unread().map_or(Ok(()), |name| Err(ApiError::field(name, "is not known to this server")))
    }
}

/// The beginning of a value, for messages.
fn shown(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
