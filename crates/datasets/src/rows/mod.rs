//! Rows of one's own files: prompts with completions, answers, or pairs, in the forms of TRL and of the OpenAI interface.
//!
//! [`DataFiles`] is a section of a configuration: which files, how they are mixed, and what is held out. A single file is read by
//! [`read_supervised`], [`read_preferences`], [`read_prompts`] or [`read_weighted`]: JSON lines or a JSON array, also compressed by gzip, or
//! Parquet with the feature `parquet`. JSON is told by what the file holds, Parquet also by the name's end `.parquet`.

mod columns;
mod fields;
mod files;
mod forms;
mod mix;
#[cfg(feature = "parquet")]
mod parquet;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use columns::Columns;
pub use files::{DataFiles, FileCount, FileEntry, RowCounts, Rows};
pub use forms::{read_preferences, read_prompts, read_supervised, read_weighted};

use crate::preference::PairProblem;
use crate::teacher::Message;
use crate::{DialoguePreference, PreferenceExample, SupervisedExample};
use forms::Pair;

/// A text, or the messages of a dialogue: TRL's standard and conversational form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a text, or a list of messages with role and content")]
pub enum TextOrMessages {
    /// A text.
    Text(String),
    /// Messages.
    Messages(Vec<Message>),
}

impl TextOrMessages {
    /// The text, or the last message: what a person would read first.
    #[must_use]
    pub fn last_text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Messages(messages) => messages.last().map_or("", |message| &message.content),
        }
    }
}

/// A prompt, and what is known about its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptRow {
    /// The prompt.
    pub prompt: TextOrMessages,
    /// The right answer, where the file has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The row's other fields, for rewards that read them.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// An example with what its completion is worth.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedRow {
    /// The example.
    pub example: SupervisedExample,
    /// Its reward; finite.
    pub reward: f64,
}

/// Preferences between texts, or between dialogues.
#[derive(Debug, Clone, PartialEq)]
pub enum PreferenceRows {
    /// Texts.
    Texts(Vec<PreferenceExample>),
    /// Dialogues.
    Dialogues(Vec<DialoguePreference>),
}

impl PreferenceRows {
    /// Pairs of the kind that the first one has; none are texts.
    fn of_one_kind(pairs: Vec<Pair>) -> Self {
        Self::of_kind(matches!(pairs.first(), Some(Pair::Dialogue(_))), pairs)
    }

    fn of_kind(dialogues: bool, pairs: Vec<Pair>) -> Self {
        let text = |pair| match pair {
            Pair::Text(pair) => Some(pair),
            Pair::Dialogue(_) => None,
        };
        let dialogue = |pair| match pair {
            Pair::Text(_) => None,
            Pair::Dialogue(pair) => Some(pair),
        };
        if dialogues {
            Self::Dialogues(pairs.into_iter().filter_map(dialogue).collect())
        } else {
            Self::Texts(pairs.into_iter().filter_map(text).collect())
        }
    }
}

/// The preferences of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct PreferenceFile {
    /// The pairs that can be trained on.
    pub pairs: PreferenceRows,
    /// How many pairs were left out, and why.
    pub left_out: BTreeMap<PairProblem, usize>,
}
