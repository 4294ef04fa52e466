//! The kinds of rewards, as a configuration names them.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, MapDeserializer};
use serde::de::{IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::compare::{Contains, ExactMatch, Gsm8k, Math, Number, Pattern};
use super::form::{Format, Length};
use super::models::{Plausible, SelfFeedbackReward};
use super::{CommandReward, HttpReward, Judge};

/// The kind of a reward. One that needs no settings is a word, `kind = "number"`; others are tables, `kind.number = { tolerance =
/// 0.01 }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RewardKind {
    /// 1 where the response is the answer.
    ExactMatch(ExactMatch),
    /// 1 where the last number of the response is that of the answer.
    Number(Number),
    /// 1 where a regular expression finds the answer, or finds anything.
    Regex(Pattern),
    /// 1 where the last `\boxed{...}` holds the answer, by the rules of the MATH data set, numbers by their values.
    Math(Empty),
    /// 1 where the number after `####`, or in the last `\boxed{...}`, is that of the answer, by the rules of GSM8K.
    Gsm8k(Empty),
    /// 1 where a text is in the response.
    Contains(Contains),
    /// 1 where the response has a form: parts in their order, or a pattern for all of it.
    Format(Format),
    /// How well the response keeps to a length, from 0 to 1.
    Length(Length),
    /// For how true a model takes the response, from 0 to 1.
    Plausibility(Plausible),
    /// How much the response helps the policy itself to answer. Needs [`WeightedRewards::with_tokenizer`](super::WeightedRewards::with_tokenizer).
    SelfFeedback(SelfFeedbackReward),
    /// The number that a program writes.
    Command(CommandReward),
    /// The number that a server sends, in the form of OpenRLHF's remote reward models.
    Http(HttpReward),
}

/// No settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

impl RewardKind {
    /// Checks the settings, and prepares the reward.
    pub(super) fn judge(&self) -> Result<Box<dyn Judge>, String> {
        Ok(match self {
            Self::ExactMatch(kind) => Box::new(kind.clone()),
            Self::Number(kind) => Box::new(kind.checked()?),
            Self::Regex(kind) => Box::new(kind.compiled()?),
            Self::Math(_) => Box::new(Math),
            Self::Gsm8k(_) => Box::new(Gsm8k),
            Self::Contains(kind) => Box::new(kind.checked()?),
            Self::Format(kind) => Box::new(kind.checked()?),
            Self::Length(kind) => Box::new(kind.checked()?),
            Self::Plausibility(kind) => Box::new(kind.prepared()?),
            Self::SelfFeedback(kind) => Box::new(kind.checked()?),
            Self::Command(kind) => Box::new(kind.prepared()?),
            Self::Http(kind) => Box::new(kind.prepared()?),
        })
    }
}

/// The kinds that need no settings, so that a word is enough.
const WORDS: [&str; 6] = ["exact_match", "number", "math", "gsm8k", "contains", "self_feedback"];

/// The schema of a kind that is a word or a table.
pub(super) fn schema(generator: &mut SchemaGenerator) -> Schema {
    let table = generator.subschema_for::<RewardKind>();
    let description = "The kind, with its settings.";
    json_schema!({ "description": description, "anyOf": [{ "type": "string", "enum": WORDS }, table] })
}

/// Reads a kind that is a word or a table.
pub(super) fn by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RewardKind, D::Error> {
    struct Kind;
    impl<'de> Visitor<'de> for Kind {
        type Value = RewardKind;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the name of a kind, or a table such as { length = { max = 50 } }")
        }

        fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<RewardKind, E> {
            // A table without settings.
            let empty = std::collections::BTreeMap::<String, String>::new();
            let entry = std::iter::once((name, empty.into_deserializer()));
            RewardKind::deserialize(MapAccessDeserializer::new(MapDeserializer::<_, E>::new(entry)))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RewardKind, A::Error> {
            RewardKind::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_any(Kind)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The schema tells editors which kinds need no settings.
    #[test]
    fn a_word_is_enough_for_kinds_without_settings() {
        let table = schemars::schema_for!(RewardKind);
        let variants = table.get("oneOf").and_then(Value::as_array).unwrap();
        let names: Vec<&str> = variants.iter().filter_map(|of| of["required"][0].as_str()).collect();
        assert_eq!(names.len(), variants.len());
        let is_enough = |name: &&str| by_name(json!(name)).is_ok_and(|kind| kind.judge().is_ok());
        assert_eq!(names.into_iter().filter(is_enough).collect::<Vec<_>>(), WORDS);
    }
}
