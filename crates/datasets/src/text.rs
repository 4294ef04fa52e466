//! How files of text are read: all of them here, so that all forgive the same things.

use std::collections::BTreeSet;
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
