//! The files of GSM8K and MATH.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Compat, Environment, Gsm8k, Math, Problem};
use crate::{BadRows, Error, Place, Result};

/// The data sets of RISE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Benchmark {
    /// GSM8K: `question`, and `answer` with `#### N` in its last line.
    #[serde(alias = "GSM8K", alias = "Gsm8k")]
    Gsm8k,
    /// MATH: `problem`, `solution` with its answer in a box, `level`, `type`.
    #[serde(alias = "MATH", alias = "Math")]
    Math,
}

/// Problems of a file.
#[derive(Debug)]
pub struct Loaded {
    /// Those that can be asked, in the order of the file.
    pub problems: Vec<Problem>,
    /// What is wrong with the rows that were left out.
    pub skipped: Vec<Error>,
}

impl Benchmark {
    /// How its answers are judged.
    #[must_use]
    pub fn environment(self, compat: Compat) -> Box<dyn Environment> {
        match self {
            Self::Gsm8k => Box::new(Gsm8k { compat }),
            Self::Math => Box::new(Math { compat }),
        }
    }

    /// Reads JSON lines. Empty lines are no rows. Bad rows, among them those without a gold answer, are refused, or left out and
    /// returned beside the problems; problems keep the numbers that they have in the file.
    ///
    /// # Errors
    /// [`Error::Read`], and [`Error::BadField`] with line, field and reason.
    pub fn read(self, path: &Path, bad: BadRows) -> Result<Loaded> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
        let mut loaded = Loaded { problems: vec![], skipped: vec![] };
        let lines = bytes.split(|&byte| byte == b'\n').enumerate();
        for (row, (i, line)) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()).enumerate() {
            match self.parse(row, line) {
                Ok(problem) => loaded.problems.push(problem),
                Err((field, reason)) => {
                    let error =
                        Error::BadField { path: path.into(), place: Place::Line(i + 1), field, reason };
                    match bad {
                        BadRows::Skip => loaded.skipped.push(error),
                        _ => return Err(error),
                    }
                }
            }
        }
        Ok(loaded)
    }

    /// A line of the file; otherwise the field and what is wrong with it.
    fn parse(self, row: usize, line: &[u8]) -> std::result::Result<Problem, (&'static str, String)> {
        let value: Value = serde_json::from_slice(line).map_err(|error| ("row", error.to_string()))?;
        if !value.is_object() {
            return Err(("row", "is no JSON object".into()));
        }
        let text = |field: &'static str| match value.get(field) {
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
            Some(Value::String(_)) => Err((field, "is empty".into())),
            Some(_) => Err((field, "is no text".into())),
            None => Err((field, "is missing".into())),
        };
        let optional = |field| if value.get(field).is_some() { text(field).map(Some) } else { Ok(None) };
        let (question, solution) = match self {
            Self::Gsm8k => ("question", "answer"),
            Self::Math => ("problem", "solution"),
        };
        let problem = Problem {
            row,
            question: text(question)?,
            solution: text(solution)?,
            level: optional("level")?,
            subject: optional("type")?,
        };
        self.environment(Compat::Fixed).check(&problem).map_err(|reason| (solution, reason))?;
        Ok(problem)
    }
}

impl fmt::Display for Benchmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gsm8k => "gsm8k",
            Self::Math => "math",
        })
    }
}

impl FromStr for Benchmark {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name.to_ascii_lowercase().as_str() {
            "gsm8k" => Ok(Self::Gsm8k),
            "math" => Ok(Self::Math),
            _ => Err(format!("unknown benchmark `{name}`; there are gsm8k and math")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_rows_are_named_or_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.jsonl");
        let good = r#"{"question": "q?", "answer": "so #### 3"}"#;
        for (bad, says) in [
            (r#"{"question": "q?"}"#, "field answer: is missing"),
            (r#"{"question": 3, "answer": "x"}"#, "field question: is no text"),
            (r#"{"question": " ", "answer": "so #### 3"}"#, "field question: is empty"),
            (r#"{"question": "q?", "answer": "3"}"#, "field answer: has no gold number"),
            ("[]", "field row: is no JSON object"),
            ("{", "field row: EOF"),
            ("\"\u{fffd}", "field row: control"),
        ] {
            std::fs::write(&path, format!("\n{good}\n{bad}\r\n\n{good}")).unwrap();
            let error = Benchmark::Gsm8k.read(&path, BadRows::Refuse).unwrap_err().to_string();
            assert!(error.contains("train.jsonl: line 3, ") && error.contains(says), "{error}");
            let loaded = Benchmark::Gsm8k.read(&path, BadRows::Skip).unwrap();
            let rows: Vec<usize> = loaded.problems.iter().map(|problem| problem.row).collect();
            assert_eq!((rows, loaded.skipped.len()), (vec![0, 2], 1));
        }
        std::fs::write(&path, b"\xff\n").unwrap();
        assert!(Benchmark::Math.read(&path, BadRows::Refuse).is_err());
        std::fs::write(&path, r#"{"problem": "p", "solution": "\\boxed{1}", "level": 3}"#).unwrap();
        let error = Benchmark::Math.read(&path, BadRows::Refuse).unwrap_err().to_string();
        assert!(error.contains("field level: is no text"), "{error}");
    }

    #[test]
    fn names_may_be_written_in_capitals() {
        assert_eq!("MATH".parse(), Ok(Benchmark::Math));
        assert_eq!(Benchmark::Gsm8k.to_string().parse(), Ok(Benchmark::Gsm8k));
        assert!("aqua".parse::<Benchmark>().is_err());
    }
}
