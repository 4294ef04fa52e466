//! Reader of UnifiedQA's tab-separated files: one question a line.

use crate::knowledge::SilverItem;
use crate::question::{Origin, ParsedLine, Question, SkipReason, Split, parse_line};
use crate::{Error, Place, Result};
use std::fmt;
use std::path::Path;

/// What to do with a row that is not a question.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BadRows {
    /// The first one is an error that names file, row and reason.
    #[default]
    Refuse,
    /// Leave it out and say so in [`Loaded::skipped`], as the published Crystal code does.
    Skip,
}

/// Which half of the rows of a training file to read (Crystal's `half_half`). Other splits are never cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Part {
    /// All rows.
    #[default]
    All,
    /// The first `n / 2` rows, good or bad: imitation and answer training.
    FirstHalf,
    /// The remaining rows: reinforcement.
    SecondHalf,
}

/// How to read a data file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// What to do with a row that is not a question.
    pub bad_rows: BadRows,
    /// Which part of the rows to read.
    pub part: Part,
}

/// What a file yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    /// The good rows, in the order of the file; never empty.
    pub items: Vec<T>,
    /// The rows that were left out.
    pub skipped: Vec<Skipped>,
}

/// A row that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The row.
    pub place: Place,
    /// Why.
    pub reason: SkipReason,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {}", self.place, self.reason.field(), self.reason)
    }
}

/// Reads the questions of one TSV file. Lines end at LF, CR LF or CR.
///
/// # Errors
/// [`Error::Read`], [`Error::NotUtf8`], [`Error::BadRow`] (unless bad rows are skipped), and [`Error::EmptySplit`]
/// when no line is a question.
pub fn read(path: &Path, origin: &Origin, options: ReadOptions) -> Result<Loaded<Question>> {
    let bytes = crate::text::read(path)?;
    let lines = split_lines(&bytes);
    let part = options.part.of(origin.split, lines.len());
    let rows = part.clone().zip(&lines[part]).map(|(n, line)| {
        let text = std::str::from_utf8(line).map_err(|source| Error::NotUtf8 {
            path: path.into(),
            line: n + 1,
            source,
        })?;
        Ok((Place::Line(n + 1), parse_line(text)))
    });
    collect(path, options.bad_rows, rows, |_, parsed| Question::new(origin, parsed))
}

/// Reads the columns of one TSV file, for a teacher who is to write statements about its questions: each row that is a question, as a
/// [`SilverItem`] without statements.
///
/// # Errors
/// Those of [`read`].
pub fn read_columns(path: &Path, options: ReadOptions) -> Result<Loaded<SilverItem>> {
    let bytes = crate::text::read(path)?;
    let lines = split_lines(&bytes);
    let mut columns = vec![];
    for (n, line) in lines.iter().enumerate() {
        let not_utf8 = |source| Error::NotUtf8 { path: path.into(), line: n + 1, source };
        columns.push(std::str::from_utf8(line).map_err(not_utf8)?);
    }
    let rows = columns.iter().enumerate().map(|(n, line)| Ok((Place::Line(n + 1), parse_line(line))));
    collect(path, options.bad_rows, rows, |_, parsed| {
        let answer = parsed.choice_texts[parsed.answer_ix].clone();
        SilverItem { query: parsed.question, answer, knowledges: vec![] }
    })
}

impl Part {
    /// The rows of `n` that this part covers.
    pub(crate) fn of(self, split: Split, n: usize) -> std::ops::Range<usize> {
        match (self, split) {
            (Part::FirstHalf, Split::Train) => 0..n / 2,
            (Part::SecondHalf, Split::Train) => n / 2..n,
            _ => 0..n,
        }
    }
}

/// Sorts parsed rows into good and bad ones; `build` gets the index of the row among all rows given. A file without any label is
/// empty rather than bad.
pub(crate) fn collect<T>(
    path: &Path,
    bad_rows: BadRows,
    rows: impl Iterator<Item = Result<(Place, std::result::Result<ParsedLine, SkipReason>)>>,
    mut build: impl FnMut(usize, ParsedLine) -> T,
) -> Result<Loaded<T>> {
    let mut loaded = Loaded { items: Vec::new(), skipped: Vec::new() };
    let refuse = |Skipped { place, reason }| Error::BadRow { path: path.into(), place, reason };
    for (ix, row) in rows.enumerate() {
        match row? {
            (_, Ok(parsed)) => loaded.items.push(build(ix, parsed)),
            (place, Err(reason)) => {
                let row = Skipped { place, reason };
                if bad_rows == BadRows::Refuse && !matches!(row.reason, SkipReason::NoLabel { .. }) {
                    return Err(refuse(row));
                }
                loaded.skipped.push(row);
            }
        }
    }
    if bad_rows == BadRows::Refuse && !loaded.items.is_empty() && !loaded.skipped.is_empty() {
        // Other rows have labels.
        return Err(refuse(loaded.skipped.swap_remove(0)));
    }
    if loaded.items.is_empty() {
        let rows = loaded.skipped.len();
        return Err(Error::EmptySplit { path: path.into(), rows, first: loaded.skipped.into_iter().next() });
    }
    Ok(loaded)
}

/// Cuts at LF, CR LF and CR. No line follows a terminator at the very end.
fn split_lines(bytes: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(rest.len());
        lines.push(&rest[..end]);
        let terminator = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = rest.get(end + terminator..).unwrap_or_default();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const SKIP: ReadOptions = ReadOptions { bad_rows: BadRows::Skip, part: Part::All };

    fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.tsv");
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    fn origin(split: Split) -> Origin {
        Origin::new("made_up", 0, split)
    }

    #[test]
    fn reads_every_line_ending() {
        let (_dir, path) = file(
            b"Q1 \\n (A) x (B) y\tx\nQ2 \\n (A) x (B) y\ty\r\nQ3 \\n (A) x (B) y\tx\rQ4 \\n (A) x (B) y\ty",
        );
        let loaded = read(&path, &origin(Split::Train), ReadOptions::default()).unwrap();
        let gold: Vec<usize> = loaded.items.iter().map(|q| q.answer_ix).collect();
        assert_eq!(gold, [0, 1, 0, 1]);
        assert!(loaded.items[3].question.starts_with("Q4"));
    }

    #[test]
    fn refuses_or_counts_bad_rows() {
        let (_dir, path) = file(b"Q1 \\n (A) x (B) y\tx\nQ2 \\n (A) x (B) y\n\nQ4 \\n (A) x (B) y\tz\n");
        let error = read(&path, &origin(Split::Train), ReadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("train.tsv: line 2, columns: expected 2 tab-separated columns"), "{error}");
        assert!(error.contains("found 1") && error.contains("--skip-bad-rows"), "{error}");

        let loaded = read(&path, &origin(Split::Train), SKIP).unwrap();
        assert_eq!(loaded.items.len(), 1);
        let places: Vec<String> = loaded.skipped.iter().map(|s| s.place.to_string()).collect();
        assert_eq!(places, ["line 2", "line 3", "line 4"]);
    }

    #[test]
    fn a_file_without_labels_is_empty_and_one_with_some_is_bad() {
        let refuse = ReadOptions::default();
        let (_dir, path) = file(b"Q1 \\n (A) x (B) y\t-\nQ2 \\n (A) x (B) y\t\n");
        let error = read(&path, &origin(Split::Test), refuse).unwrap_err();
        assert!(matches!(error, Error::EmptySplit { rows: 2, .. }), "{error}");
        assert!(error.to_string().contains("the first: line 1, answer: there is no label"), "{error}");

        for text in [
            &b"Q1 \\n (A) x (B) y\tx\nQ2 \\n (A) x (B) y\t-\n"[..],
            b"Q1 \\n (A) x (B) y\t-\nQ2 \\n (A) x (B) y\tz\n",
        ] {
            let (_dir, path) = file(text);
            let error = read(&path, &origin(Split::Test), refuse).unwrap_err();
            assert!(matches!(error, Error::BadRow { place: Place::Line(2), .. }), "{error}");
        }
    }

    #[test]
    fn an_empty_split_is_an_error() {
        let (_dir, path) = file(b"Q \\n (A) x (B) y\t-\n");
        let error = read(&path, &origin(Split::Test), SKIP).unwrap_err().to_string();
        assert!(error.contains("none of its 1 rows is usable; the first: line 1, answer"), "{error}");
        let (_dir, path) = file(b"");
        assert!(matches!(
            read(&path, &origin(Split::Test), SKIP),
            Err(Error::EmptySplit { rows: 0, first: None, .. })
        ));
    }

    #[test]
    fn bytes_that_are_no_text_are_located() {
        let (_dir, path) = file(b"Q1 \\n (A) x (B) y\tx\nQ2 \xff \\n (A) x (B) y\tx\n");
        let error = read(&path, &origin(Split::Train), SKIP).unwrap_err();
        assert!(matches!(error, Error::NotUtf8 { line: 2, .. }), "{error}");
        assert!(matches!(read(Path::new("absent"), &origin(Split::Dev), SKIP), Err(Error::Read { .. })));
    }

    #[test]
    fn halves_are_cut_on_lines_of_the_training_split_only() {
        let (_dir, path) = file(b"Q1 \\n (A) x\tx\nbad\nQ3 \\n (A) x\tx\nQ4 \\n (A) x\tx\nQ5 \\n (A) x\tx\n");
        let questions = |part, split| -> Vec<String> {
            let options = ReadOptions { part, ..SKIP };
            let loaded = read(&path, &origin(split), options).unwrap();
            loaded.items.into_iter().map(|q| q.question[..2].to_owned()).collect()
        };
        assert_eq!(questions(Part::FirstHalf, Split::Train), ["Q1"]);
        assert_eq!(questions(Part::SecondHalf, Split::Train), ["Q3", "Q4", "Q5"]);
        assert_eq!(questions(Part::FirstHalf, Split::Dev), ["Q1", "Q3", "Q4", "Q5"]);
        let bad = read(&path, &origin(Split::Train), ReadOptions { part: Part::FirstHalf, ..SKIP }).unwrap();
        assert_eq!(bad.skipped[0].place, Place::Line(2));
    }
}
