//! Preference pairs: a prompt, a text that is to be preferred, and one that is not.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::rows::{Columns, PreferenceFile, PreferenceRows, read_preferences};
use crate::teacher::Message;
use crate::{Error, Result};

/// A preference. In files, further fields are not looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object with prompt, chosen and rejected")]
pub struct PreferenceExample {
    /// What is given.
    pub prompt: String,
    /// The better completion.
    pub chosen: String,
    /// The worse one.
    pub rejected: String,
    /// Factor on the pair's loss.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: f32,
    /// Where the pair comes from; metrics are also told by source.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
}

fn one() -> f32 {
    1.0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(weight: &f32) -> bool {
    *weight == 1.0
}

/// A preference between two ways in which a dialogue goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DialoguePreference {
    /// The dialogue so far, which ends before an answer.
    pub prompt: Vec<Message>,
    /// How it should go on.
    pub chosen: Vec<Message>,
    /// How it should not.
    pub rejected: Vec<Message>,
    /// Factor on the pair's loss.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: f32,
    /// Where the pair comes from; metrics are also told by source.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
}

impl DialoguePreference {
    /// A pair of weight 1 from nowhere in particular.
    #[must_use]
    pub fn new(prompt: Vec<Message>, chosen: Vec<Message>, rejected: Vec<Message>) -> Self {
        Self { prompt, chosen, rejected, weight: 1.0, source: String::new() }
    }

    /// The problem of the pair, if it has one.
    #[must_use]
    pub fn problem(&self) -> Option<PairProblem> {
        let blank = |messages: &[Message]| messages.iter().all(|message| message.content.trim().is_empty());
        problem(
            blank(&self.prompt),
            blank(&self.chosen) || blank(&self.rejected),
            self.chosen == self.rejected,
            self.weight,
        )
    }
}

/// What is wrong with a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PairProblem {
    /// The prompt is empty.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A completion is empty.
    #[error("a completion is empty")]
    EmptyCompletion,
    /// Both completions are the same.
    #[error("both completions are the same")]
    EqualCompletions,
    /// The weight is negative or no number.
    #[error("the weight is negative or no number")]
    BadWeight,
}

impl PreferenceExample {
    /// A pair of weight 1 from nowhere in particular.
    #[must_use]
    pub fn new(prompt: impl Into<String>, chosen: impl Into<String>, rejected: impl Into<String>) -> Self {
        let (prompt, chosen, rejected) = (prompt.into(), chosen.into(), rejected.into());
        Self { prompt, chosen, rejected, weight: 1.0, source: String::new() }
    }

    /// What is wrong with the pair, if anything is.
    #[must_use]
    pub fn problem(&self) -> Option<PairProblem> {
        let blank = |text: &str| text.trim().is_empty();
        let completion = blank(&self.chosen) || blank(&self.rejected);
        problem(blank(&self.prompt), completion, self.chosen == self.rejected, self.weight)
    }
}

fn problem(prompt: bool, completion: bool, equal: bool, weight: f32) -> Option<PairProblem> {
    if prompt {
        Some(PairProblem::EmptyPrompt)
    } else if completion {
        Some(PairProblem::EmptyCompletion)
    } else if equal {
        Some(PairProblem::EqualCompletions)
    } else if !(weight >= 0.0 && weight.is_finite()) {
        Some(PairProblem::BadWeight)
    } else {
        None
    }
}

/// Pairs of a file that can be trained on, and how many cannot, by reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Preferences<T = PreferenceExample> {
    /// The pairs.
    pub examples: Vec<T>,
    /// How many pairs were left out, and why.
    pub left_out: BTreeMap<PairProblem, usize>,
}

impl<T> Default for Preferences<T> {
    fn default() -> Self {
        Self { examples: vec![], left_out: BTreeMap::new() }
    }
}

/// Reads a JSON array of `{"prompt", "chosen", "rejected"}`, or a file of such lines. Pairs that cannot be trained on are left out and
/// counted. [`rows`](crate::rows) reads fields of other names, several files, and holds rows out.
///
/// # Errors
/// As [`read_preferences`], and when the file has pairs of dialogues.
pub fn read(path: &Path) -> Result<Preferences> {
    let PreferenceFile { pairs, left_out } = read_preferences(path, &Columns::default())?;
    match pairs {
        PreferenceRows::Texts(examples) => Ok(Preferences { examples, left_out }),
        PreferenceRows::Dialogues(_) => Err(other_kind(path, "messages", "texts")),
    }
}

/// Reads pairs of dialogues: each of the three is a list of messages `{"role", "content"}`. Without a prompt, it is what both
/// completions begin with.
///
/// # Errors
/// As [`read_preferences`], and when the file has pairs of texts.
pub fn read_dialogues(path: &Path) -> Result<Preferences<DialoguePreference>> {
    let PreferenceFile { pairs, left_out } = read_preferences(path, &Columns::default())?;
    match pairs {
        PreferenceRows::Dialogues(examples) => Ok(Preferences { examples, left_out }),
        // All pairs were left out, so that nothing says what they were.
        PreferenceRows::Texts(examples) if examples.is_empty() => {
            Ok(Preferences { examples: vec![], left_out })
        }
        PreferenceRows::Texts(_) => Err(other_kind(path, "texts", "messages")),
    }
}

fn other_kind(path: &Path, found: &str, expected: &str) -> Error {
    Error::Rows {
        path: path.into(),
        reason: format!("has pairs of {found}, where pairs of {expected} are read"),
    }
}

/// The common beginning of two dialogues, and how each goes on.
pub(crate) fn common_prompt(
    mut chosen: Vec<Message>,
    mut rejected: Vec<Message>,
) -> (Vec<Message>, Vec<Message>, Vec<Message>) {
    let common = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    rejected.drain(..common);
    (chosen.drain(..common).collect(), chosen, rejected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_bad_pairs_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs");
        let rows = [
            r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#,
            r#"{"prompt": "p", "chosen": "a", "rejected": "a"}"#,
            r#"{"prompt": " ", "chosen": "a", "rejected": "b"}"#,
            r#"{"prompt": "p", "chosen": "a", "rejected": "", "weight": 0.5}"#,
            r#"{"prompt": "p", "chosen": "a", "rejected": "c", "weight": -1, "source": "s"}"#,
        ];
        std::fs::write(&path, rows.join("\n")).unwrap();
        let lines = read(&path).unwrap();
        assert_eq!(lines.examples, [PreferenceExample::new("p", "a", "b")]);
        assert_eq!(
            serde_json::from_str::<PreferenceExample>(
                r#"{"prompt": "p", "chosen": "a", "rejected": "b", "score": [1]}"#
            )
            .unwrap(),
            lines.examples[0]
        );
        assert_eq!(lines.left_out.values().sum::<usize>(), 4);
        std::fs::write(&path, format!(" [{}]", rows.join(","))).unwrap();
        assert_eq!(read(&path).unwrap(), lines);
        for (text, place) in
            [("{\"prompt\": 1}", "line 1"), ("[{\"prompt\": \"p\"}]", "item 0"), ("[", "pairs")]
        {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(place), "{error}");
        }
    }
}
