use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::rundir::RunDirError;

/// A file of JSON lines that only grows. Each line reaches the operating system at once, so that a killed process
/// loses at most the line that it was writing; a line for which the disk has no room is taken back.
#[derive(Debug)]
pub(crate) struct JsonLines {
    path: PathBuf,
    file: File,
    /// The length of the file: that of all its whole lines.
    bytes: u64,
}

/// What every line carries; samples have no kind.
#[derive(Deserialize)]
pub(crate) struct Stamp {
    #[serde(default)]
    pub(crate) kind: String,
    pub(crate) step: u64,
    #[serde(default)]
    pub(crate) time: f64,
}

impl JsonLines {
    /// Opens the file for appending, creating it where it is missing.
    pub(crate) fn open(path: PathBuf) -> Result<Self, RunDirError> {
        let (file, bytes) = append(&path)?;
        Ok(Self { path, file, bytes })
    }

    pub(crate) fn write(&mut self, line: &impl Serialize) -> Result<(), RunDirError> {
        let mut text = serde_json::to_vec(line)
            .map_err(std::io::Error::from)
            .map_err(RunDirError::io("write to", &self.path))?;
        text.push(b'\n');
        if let Err(error) = self.file.write_all(&text) {
            // The error of the disk is what matters, whether or not half a line can be taken back.
            let _ = self.file.set_len(self.bytes);
            return Err(RunDirError::io("write to", &self.path)(error));
        }
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Removes the lines that `keep` refuses, and a last line that a killed process left unfinished. Returns the `time`
    /// of the last line that stays.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Stamp) -> bool) -> Result<f64, RunDirError> {
        let temporary = self.path.with_extension("jsonl.tmp");
        let last_time = self.retain_into(&temporary, keep);
        if last_time.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        (self.file, self.bytes) = append(&self.path)?;
        last_time
    }

    fn retain_into(&self, temporary: &Path, keep: impl Fn(&Stamp) -> bool) -> Result<f64, RunDirError> {
        let read_error = || RunDirError::io("read", &self.path);
        let write_error = || RunDirError::io("write", temporary);

        let mut reader = BufReader::new(File::open(&self.path).map_err(read_error())?);
        let mut kept = BufWriter::new(File::create(temporary).map_err(write_error())?);
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
                .map_err(|source| RunDirError::Line { path: self.path.clone(), line: number, source })?;
            if keep(&stamp) {
                last_time = stamp.time;
                kept.write_all(&line).map_err(write_error())?;
            }
        }
        kept.into_inner()
            .map_err(|error| error.into_error())
            .and_then(|f| f.sync_all())
            .map_err(write_error())?;
        fs::rename(temporary, &self.path).map_err(write_error())?;
        Ok(last_time)
    }
}

/// The file, opened for appending, and its length.
fn append(path: &Path) -> Result<(File, u64), RunDirError> {
    let open = || {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok((file, bytes))
    };
    open().map_err(RunDirError::io("open", path))
}

#[cfg(test)]
mod tests {
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
        let mut lines = JsonLines::open(path.clone()).unwrap();
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
            JsonLines::open(path.clone()).unwrap().retain(|_| true).unwrap();
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
            let error = JsonLines::open(path.clone()).unwrap().retain(|_| false).unwrap_err();
            assert!(error.to_string().contains("metrics.jsonl:2: "), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something half is left");
        }
    }
}
