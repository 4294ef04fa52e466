//! Preference pairs: a prompt, a text that is to be preferred, and one that is not.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;

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
        if blank(&self.prompt) {
            Some(PairProblem::EmptyPrompt)
        } else if blank(&self.chosen) || blank(&self.rejected) {
            Some(PairProblem::EmptyCompletion)
        } else if self.chosen == self.rejected {
            Some(PairProblem::EqualCompletions)
        } else if !(self.weight >= 0.0 && self.weight.is_finite()) {
            Some(PairProblem::BadWeight)
        } else {
            None
        }
    }
}

/// Pairs of a file that can be trained on, and how many cannot, by reason.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preferences {
    /// The pairs.
    pub examples: Vec<PreferenceExample>,
    /// How many pairs were left out, and why.
    pub left_out: BTreeMap<PairProblem, usize>,
}

/// Reads a JSON array of `{"prompt", "chosen", "rejected"}`, or a file of such lines. Pairs that cannot be trained on are left out and
/// counted.
///
/// # Errors
/// As [`json::read_rows`](crate::json::read_rows).
pub fn read(path: &Path) -> Result<Preferences> {
    let mut read = Preferences::default();
    for (_, row) in crate::json::read_rows::<PreferenceExample>(path)? {
        match row.problem() {
            Some(problem) => *read.left_out.entry(problem).or_default() += 1,
            None => read.examples.push(row),
        }
    }
    Ok(read)
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
