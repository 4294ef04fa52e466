//! `metrics.jsonl` and `samples.jsonl`: lines with a step, of which a resumed run drops those that it repeats.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use ruminate_files::{JsonLines, write_atomically};
use serde::{Deserialize, Serialize};

use crate::rundir::RunDirError;

/// A file of JSON lines with steps.
#[derive(Debug)]
pub(crate) struct StepLines {
    path: PathBuf,
    lines: JsonLines,
}

/// Fields of every line; samples have no kind, and only distributions a name.
#[derive(Deserialize)]
pub(crate) struct Stamp {
    #[serde(default)]
    pub(crate) kind: String,
    pub(crate) step: u64,
    #[serde(default)]
    pub(crate) time: f64,
    #[serde(default)]
    pub(crate) name: String,
}

impl StepLines {
    /// Opens the file for appending, creating it where it is missing.
    pub(crate) fn open(path: PathBuf) -> Result<Self, RunDirError> {
        let lines = open(&path)?;
        Ok(Self { path, lines })
    }

    pub(crate) fn write(&mut self, line: &impl Serialize) -> Result<(), RunDirError> {
        self.lines.append(line).map_err(RunDirError::io("write to", &self.path))
    }

    /// Removes the lines that `keep` refuses, and a last line that a killed process left unfinished. Returns the `time`
    /// of the last line that stays.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Stamp) -> bool) -> Result<f64, RunDirError> {
        let mut last_time = 0.0;
        let mut failed = None;
        let written = write_atomically(&self.path, |kept| {
            retained(&self.path, kept, &keep).map(|time| last_time = time).map_err(|error| {
                failed = Some(error);
                io::Error::other("a line cannot be kept")
            })
        });
        if let Err(error) = written {
            return Err(failed.unwrap_or_else(|| RunDirError::io("write", &self.path)(error)));
        }
        self.lines = open(&self.path)?;
        Ok(last_time)
    }
}

fn open(path: &Path) -> Result<JsonLines, RunDirError> {
    JsonLines::open(path).map_err(RunDirError::io("open", path))
}

fn retained(path: &Path, kept: &mut dyn Write, keep: &impl Fn(&Stamp) -> bool) -> Result<f64, RunDirError> {
    let read_error = || RunDirError::io("read", path);
    let mut reader = BufReader::new(File::open(path).map_err(read_error())?);
    let mut last_time = 0.0;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(read_error())?;
        if line.last() != Some(&b'\n') {
            break; // The end, or a torn line.
        }
        // All of the line is read, not only the stamp: what stays must be of use to every reader.
        let stamp = serde_json::from_slice::<serde_json::Value>(&line)
            .and_then(Stamp::deserialize)
            .map_err(|source| RunDirError::Line { path: path.to_owned(), line: number, source })?;
        if keep(&stamp) {
            last_time = stamp.time;
            kept.write_all(&line).map_err(RunDirError::io("write", path))?;
        }
    }
    Ok(last_time)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn refused_lines_and_a_torn_line_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(
            &path,
            "{\"step\":0,\"time\":1.5}\n{\"step\":1,\"time\":2.5}\n{\"step\":2,\"time\":3.5}\n{\"step\":3,\"ti",
        )
        .unwrap();
        let mut lines = StepLines::open(path.clone()).unwrap();
        assert_eq!(lines.retain(|line| line.step < 2).unwrap(), 2.5);
        lines.write(&json!({"step": 2})).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"step\":0,\"time\":1.5}\n{\"step\":1,\"time\":2.5}\n{\"step\":2}\n");

        assert_eq!(lines.retain(|_| false).unwrap(), 0.0);
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn a_file_may_end_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let text = "{\"step\":0,\"time\":1.5}\n{\"step\":1,\"time\":2.5}\n";
        for end in 0..=text.len() {
            fs::write(&path, &text[..end]).unwrap();
            StepLines::open(path.clone()).unwrap().retain(|_| true).unwrap();
            let whole_lines = text[..end].rfind('\n').map_or(0, |at| at + 1);
            assert_eq!(fs::read_to_string(&path).unwrap(), text[..whole_lines]);
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_an_error_that_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        for damage in ["{\"st", "{\"step\":0,\"loss\":1e999}", ""] {
            let text = format!("{{\"step\":0}}\n{damage}\n{{\"step\":1}}\n");
            fs::write(&path, &text).unwrap();
            let error = StepLines::open(path.clone()).unwrap().retain(|_| false).unwrap_err();
            assert!(error.to_string().contains("metrics.jsonl:2: "), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something half is left");
        }
    }
}
