//! Rows of one's own files: prompts with completions, answers, or pairs, in the forms of TRL and of the OpenAI interface.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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
