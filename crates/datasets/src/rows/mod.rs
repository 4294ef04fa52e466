//! Rows of one's own files: prompts with completions, answers, or pairs, in the forms of TRL and of the OpenAI interface.
//!
//! [`DataFiles`] is a section of a configuration: which files, how they are mixed, and what is held out. A single file is read by
//! [`read_supervised`], [`read_preferences`], [`read_prompts`] or [`read_weighted`].

mod files;
mod forms;
mod read;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use files::{DataFiles, FileCount, FileEntry, RowCounts, Rows};
pub use forms::{
    Columns, PreferenceRows, WeightedRow, read_preferences, read_prompts, read_supervised, read_weighted,
};

use crate::teacher::Message;

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
    /// What is given to the model.
    pub prompt: TextOrMessages,
    /// The right answer, where the file has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The row's other fields, for rewards that read them.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}
