//! How files of text are read: all of them here, so that all forgive the same things.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// Drops the byte order mark that some editors and spreadsheets write at the head of UTF-8.
///
/// # Example
/// ```
/// assert_eq!(ruminate_datasets::text::without_mark("\u{feff}[]".as_bytes()), b"[]");
/// ```
#[must_use]
pub fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

static FILES_READ: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The files that this process has read through this crate, by the paths that it used: what its results depend on.
///
/// # Example
/// ```
/// let path = std::env::temp_dir().join("ruminate-read.txt");
/// std::fs::write(&path, "text")?;
/// ruminate_datasets::text::read(&path)?;
/// assert!(ruminate_datasets::text::files_read().contains(&path));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn files_read() -> Vec<PathBuf> {
    FILES_READ.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// Adds a file to those that this process has [read](files_read).
pub(crate) fn remember(path: &Path) {
    FILES_READ.lock().unwrap_or_else(PoisonError::into_inner).insert(path.into());
}

/// Reads a file's bytes, without a byte order mark.
///
/// # Errors
/// [`Error::Read`], and [`Error::NotUtf8`] for UTF-16, which begins with a mark of its own.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    remember(path);
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        utf8(path, &bytes)?;
    }
    let mark = bytes.len() - without_mark(&bytes).len();
    bytes.drain(..mark);
    Ok(bytes)
}

/// Reads a file as text, without a byte order mark.
///
/// # Errors
/// [`Error::Read`], and [`Error::NotUtf8`] with the line.
pub fn read_to_string(path: &Path) -> Result<String> {
    let bytes = read(path)?;
    utf8(path, &bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A text file that is read line by line, so that memory holds one line: UTF-8, with or without a byte order mark, also compressed by gzip.
///
/// # Example
/// ```
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("text");
/// std::fs::write(&path, "first\r\nsecond")?;
/// let mut lines = ruminate_datasets::text::Lines::open(&path)?;
/// assert_eq!(lines.next_line()?, Some((1, "first")));
/// assert_eq!(lines.next_line()?, Some((2, "second")));
/// assert_eq!(lines.next_line()?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Lines {
    path: PathBuf,
    input: Box<dyn BufRead>,
    line: Vec<u8>,
    /// Lines that are behind us.
    number: usize,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines")
            .field("path", &self.path)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Lines {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Read`], and [`Error::Utf16`] for the encoding that some Windows programs write.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Read { path: path.into(), source };
        let mut input: Box<dyn BufRead> =
            Box::new(BufReader::with_capacity(1 << 16, File::open(path).map_err(failed)?));
        let mut head = start(&mut input).map_err(failed)?;
        if head.starts_with(b"\x1f\x8b") {
            let packed = flate2::bufread::MultiGzDecoder::new(Cursor::new(head).chain(input));
            input = Box::new(BufReader::with_capacity(1 << 16, packed));
            head = start(&mut input).map_err(failed)?;
        }
        remember(path);
        // With a mark or without: one of the first two bytes of a text in UTF-16 that begins with ASCII is 0.
        if head.starts_with(b"\xff\xfe")
            || head.starts_with(b"\xfe\xff")
            || head.iter().take(2).any(|&b| b == 0)
        {
            return Err(Error::Utf16(path.into()));
        }
        let head = without_mark(&head).to_vec();
        Ok(Self {
            path: path.into(),
            input: Box::new(Cursor::new(head).chain(input)),
            line: vec![],
            number: 0,
        })
    }

    /// The next line with its number, counted from 1, without its end (`\n` or `\r\n`); none at the end of the file.
    ///
    /// # Errors
    /// [`Error::Read`], and [`Error::NotUtf8`] with the line.
    pub fn next_line(&mut self) -> Result<Option<(usize, &str)>> {
        self.line.clear();
        let failed = |source| Error::Read { path: self.path.clone(), source };
        if self.input.read_until(b'\n', &mut self.line).map_err(failed)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let line = std::str::from_utf8(&self.line).map_err(|source| Error::NotUtf8 {
            path: self.path.clone(),
            line: self.number,
            source,
        })?;
        let line = line.strip_suffix('\n').unwrap_or(line);
        Ok(Some((self.number, line.strip_suffix('\r').unwrap_or(line))))
    }

    /// How many lines are behind us.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Leaves out blanks and blank lines, and tells the byte that comes next.
    pub(crate) fn skip_blank(&mut self) -> Result<Option<u8>> {
        loop {
            let failed = |source| Error::Read { path: self.path.clone(), source };
            let ready = self.input.fill_buf().map_err(failed)?;
            let blank = ready.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            if ready.len() > blank || ready.is_empty() {
                let first = ready.get(blank).copied();
                self.number += newlines(&ready[..blank]);
                self.input.consume(blank);
                return Ok(first);
            }
            self.number += newlines(ready);
            self.input.consume(blank);
        }
    }

    /// Some of the bytes that come next; none at the end of the file.
    pub(crate) fn peek(&mut self) -> Result<&[u8]> {
        self.input.fill_buf().map_err(|source| Error::Read { path: self.path.clone(), source })
    }

    /// All bytes that are still to come.
    pub(crate) fn rest(self) -> Box<dyn BufRead> {
        self.input
    }
}

/// The first bytes of a file: as many as a mark or the signature of a format has.
fn start(input: &mut dyn BufRead) -> std::io::Result<Vec<u8>> {
    let mut head = vec![];
    input.take(4).read_to_end(&mut head)?;
    Ok(head)
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// The text that bytes of a file are.
pub(crate) fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|source| {
        let line = 1 + bytes[..source.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        Error::NotUtf8 { path: path.into(), line, source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ChatTemplate;
    use crate::environments::{Benchmark, Compat};
    use crate::mario::{MarioDataset, ResponseFormat};
    use crate::teacher::AnswerFile;
    use crate::tinythinker::Source;
    use crate::{BadRows, Origin, ReadOptions, Split};

    /// Every reader of this crate, with a file that begins with a byte order mark.
    #[test]
    fn no_reader_takes_the_byte_order_mark_for_text() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
            path
        };
        let origin = Origin::new("made_up", 0, Split::Train);
        let path = file("a.tsv", "Q? \\n (A) x (B) y\tx\n");
        let questions = crate::unifiedqa::read(&path, &origin, ReadOptions::default()).unwrap().items;
        assert!(questions[0].question.starts_with("Q?"), "{questions:?}");
        assert_eq!(crate::json::read::<Vec<u8>>(&file("a.json", "[1]")).unwrap(), [1]);
        for text in ["[1]", "1\n", "{\"0\": 1}"] {
            assert_eq!(crate::json::read_rows::<u8>(&file("rows", text)).unwrap()[0].1, 1, "{text}");
        }
        let pair = r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#;
        for text in [pair.to_owned(), format!("[{pair}]")] {
            assert_eq!(crate::preference::read(&file("pairs", &text)).unwrap().examples.len(), 1);
        }
        let path = file("gsm8k.jsonl", r#"{"question": "q", "answer": "x #### 1"}"#);
        assert_eq!(Benchmark::Gsm8k.read(&path, BadRows::Refuse, Compat::Fixed).unwrap().problems.len(), 1);
        let row = r#"{"id": "1", "answerKey": "A", "question": {"stem": "s?", "choices": [
            {"label": "A", "text": "a"}, {"label": "B", "text": "b"}]}}"#;
        let path = file("custom.jsonl", &row.replace('\n', " "));
        assert_eq!(Source::Custom.read(&path, BadRows::Refuse).unwrap().0.len(), 1);
        let path = file("strategyqa.json", r#"[{"question": "q?", "answer": true}]"#);
        assert_eq!(Source::StrategyQa.read(&path, BadRows::Refuse).unwrap().0.len(), 1);
        let rows =
            crate::mario::read_masked_tsv(&file("masked.tsv", "A dog has <mask> legs.\tfour\n")).unwrap();
        assert!(rows[0].question.starts_with("A dog"), "{rows:?}");
        let path = file("responses.csv", "question,model_response\nA dog has <mask> legs.,x\n");
        let gold = [crate::mario::MarioRow { question: "A dog has <mask> legs.".into(), ..rows[0].clone() }];
        let read = |format| crate::mario::read_responses(&path, format, MarioDataset::NumerSense, &gold);
        assert_eq!(read(ResponseFormat::Csv).unwrap().responses.len(), 1);
        let line = r#"{"id":"1","request":{"model":"m","messages":[]},"response":{"choices":[{"message":{"content":"a"}}]},"elapsed_ms":1}"#;
        let path = file("answers.jsonl", &format!("{line}\n"));
        assert_eq!(crate::teacher::read_answers(&path).unwrap().len(), 1);
        AnswerFile::open(&path).unwrap();
        assert_eq!(crate::teacher::read_answers(&path).unwrap().len(), 1);
        let empty = file("empty.jsonl", "");
        AnswerFile::open(&empty).unwrap();
        assert_eq!(std::fs::read(&empty).unwrap(), b"");
        file("chat_template.jinja", "{{ messages[0].content }}");
        file("tokenizer_config.json", "{}");
        let template = ChatTemplate::open(folder.path()).unwrap();
        assert_eq!(template.prompt(&[crate::chat::Message::new("user", "q")]).unwrap(), "q");
        assert_eq!(read_to_string(&file("text", "é")).unwrap(), "é");
    }

    #[test]
    fn other_encodings_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        std::fs::write(&path, b"\xff\xfe[\0]\0").unwrap();
        let error = crate::json::read::<Vec<u8>>(&path).unwrap_err().to_string();
        assert!(error.contains("line 1 is not UTF-8; convert the file"), "{error}");
        std::fs::write(&path, b"a\n\xe9").unwrap();
        assert!(read_to_string(&path).unwrap_err().to_string().contains("line 2 is not UTF-8"));
    }
}
