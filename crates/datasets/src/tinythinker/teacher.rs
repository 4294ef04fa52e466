//! What the teacher is asked.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::question::Question;
use super::sources::Source;
use crate::teacher::{Message, Request, Sampling};
use crate::{Error, Place, Result};

/// A worked example for the teacher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object with Q, Options, Key Information and Explanations")]
pub struct FewShot {
    /// The question.
    #[serde(rename = "Q")]
    pub question: String,
    /// Its options, `A. …, B. …`.
    #[serde(rename = "Options")]
    pub options: String,
    /// What it turns on.
    #[serde(rename = "Key Information")]
    pub key_information: String,
    /// One line per option.
    #[serde(rename = "Explanations")]
    pub explanations: Vec<String>,
    /// Where the example comes from, in any form; not used.
    #[serde(rename = "Reference", default)]
    pub reference: Value,
}

/// A request, in the form and field order of the published files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object with model, messages, max_tokens, n and temperature")]
pub struct TeacherRequest {
    /// The teacher.
    pub model: String,
    /// System and user message.
    pub messages: Vec<Message>,
    /// Largest length of each candidate.
    pub max_tokens: u32,
    /// How many candidates.
    pub n: usize,
    /// Temperature of the draw.
    pub temperature: f64,
}

impl TeacherRequest {
    /// The first request about a question, with the paper's settings.
    #[must_use]
    pub fn new(source: Source, system: &str, question: &Question) -> Self {
        Self {
            model: "gpt-4o-2024-05-13".into(),
            messages: vec![Message::new("system", system), Message::new("user", user_message(question))],
            max_tokens: 256,
            n: source.candidates(),
            temperature: 0.8,
        }
    }

    /// The request in the form that a [`Teacher`](crate::teacher::Teacher) takes; the model is the teacher's own.
    #[must_use]
    pub fn named(self, id: impl Into<String>) -> Request {
        let sampling = Sampling {
            max_tokens: Some(self.max_tokens),
            n: Some(u32::try_from(self.n).unwrap_or(u32::MAX)),
            temperature: Some(self.temperature),
            ..Sampling::default()
        };
        Request { id: id.into(), messages: self.messages, sampling }
    }
}

/// Reads the instruction, field `Key` of a JSON object.
///
/// # Errors
/// [`Error::Read`], [`Error::Json`], and [`Error::BadField`] where there is no such field.
pub fn read_instruction(path: &Path) -> Result<String> {
    let fields: BTreeMap<String, Value> = crate::json::read(path)?;
    let bad = |reason: &str| {
        let reason = format!("{reason}; it holds the instruction");
        Error::BadField { path: path.into(), place: Place::Item(0), field: "Key", reason }
    };
    let key = fields.get("Key").ok_or_else(|| bad("is missing"))?;
    key.as_str().map(str::to_owned).ok_or_else(|| bad("is no text"))
}

/// The system message: the instruction and the examples in the given order.
#[must_use]
pub fn system_message<'a>(instruction: &str, examples: impl IntoIterator<Item = &'a FewShot>) -> String {
    let mut text = instruction.to_string();
    for example in examples {
        let FewShot { question, options, key_information, explanations, .. } = example;
        let explanations = explanations.join("\n");
        text.push_str(&format!(
            "\n###\n{question}\nOptions: {options}\nKey Information: {key_information}\nExplanations: {explanations}\n###\n"
        ));
    }
    text.trim().into()
}

/// The user message. It names the right option first, so the teacher sees the answer.
#[must_use]
pub fn user_message(question: &Question) -> String {
    let verdict = |label: char, verdict: &str| format!("{label} is {verdict}. Because");
    let others = question.labels().into_iter().filter(|&label| label != question.gold);
    let lines: Vec<String> = std::iter::once(verdict(question.gold, "correct"))
        .chain(others.map(|label| verdict(label, "incorrect")))
        .collect();
    let text = format!(
        "{}\nOptions: {}\nKey Information:\nExplanations: {}",
        question.stem,
        question.option_line(),
        lines.join("\n")
    );
    text.trim().into()
}
