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
    /// MATH: `problem`, `solution` with its answer in a box, and, where the file has them, `level`, and `type` or `subject`.
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

    /// Reads JSON lines. Empty lines are no rows, and fields that are not used may have any form. Bad rows, among them those that
    /// [`Environment::check`] refuses in the mode `compat`, are refused, or left out and returned beside the problems; problems keep
    /// the numbers that they have in the file.
    ///
    /// # Errors
    /// [`Error::Read`], and [`Error::BadField`] with line, field and reason.
    pub fn read(self, path: &Path, bad: BadRows, compat: Compat) -> Result<Loaded> {
        let bytes = crate::text::read(path)?;
        let mut loaded = Loaded { problems: vec![], skipped: vec![] };
        let lines = bytes.split(|&byte| byte == b'\n').enumerate();
        for (row, (i, line)) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()).enumerate() {
            match self.parse(row, line, compat) {
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
    fn parse(
        self,
        row: usize,
        line: &[u8],
        compat: Compat,
    ) -> std::result::Result<Problem, (&'static str, String)> {
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
        // Files have `Level 5` or 5; these fields are for reports only.
        let told = |field: &str| match value.get(field)? {
            Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let (question, solution) = match self {
            Self::Gsm8k => ("question", "answer"),
            Self::Math => ("problem", "solution"),
        };
        let problem = Problem {
            row,
            question: text(question)?,
            solution: text(solution)?,
            level: told("level"),
            subject: told("type").or_else(|| told("subject")),
        };
        self.environment(compat).check(&problem).map_err(|reason| (solution, reason))?;
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
            let error = Benchmark::Gsm8k.read(&path, BadRows::Refuse, Compat::Fixed).unwrap_err().to_string();
            assert!(error.contains("train.jsonl: line 3, ") && error.contains(says), "{error}");
            let loaded = Benchmark::Gsm8k.read(&path, BadRows::Skip, Compat::Fixed).unwrap();
            let rows: Vec<usize> = loaded.problems.iter().map(|problem| problem.row).collect();
            assert_eq!((rows, loaded.skipped.len()), (vec![0, 2], 1));
        }
        std::fs::write(&path, b"\xff\n").unwrap();
        assert!(Benchmark::Math.read(&path, BadRows::Refuse, Compat::Fixed).is_err());
    }

    #[test]
    fn fields_that_are_not_used_have_any_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.jsonl");
        for (level, read) in [
            ("1", Some("1")),
            ("null", None),
            ("\"Level 5\"", Some("Level 5")),
            ("[2]", None),
            ("{\"a\": 1}", None),
            ("\"\"", None),
            ("true", None),
        ] {
            let row = format!(
                r#"{{"problem": "p", "solution": "\\boxed{{1}}", "level": {level}, "type": {level}, "answer": {level}, "id": {level}}}"#
            );
            std::fs::write(&path, row).unwrap();
            let problems = Benchmark::Math.read(&path, BadRows::Refuse, Compat::Fixed).unwrap().problems;
            assert_eq!(problems[0].level.as_deref(), read, "{level}");
            assert_eq!(problems[0].subject.as_deref(), read, "{level}");
        }
    }

    #[test]
    fn the_mode_decides_which_rows_can_be_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.jsonl");
        std::fs::write(&path, r#"{"problem": "p", "solution": "no box"}"#).unwrap();
        assert!(Benchmark::Math.read(&path, BadRows::Refuse, Compat::Fixed).is_err());
        assert!(Benchmark::Math.read(&path, BadRows::Refuse, Compat::Reference).is_ok());
    }

    #[test]
    fn names_may_be_written_in_capitals() {
        assert_eq!("MATH".parse(), Ok(Benchmark::Math));
        assert_eq!(Benchmark::Gsm8k.to_string().parse(), Ok(Benchmark::Gsm8k));
        assert!("aqua".parse::<Benchmark>().is_err());
    }
}
