//! Examples of supervised fine-tuning: a prompt with its completion, or a dialogue.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::rows::{Columns, read_supervised};
use crate::teacher::Message;

/// An example of what a model should write. Further fields of a file's row are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "an object with prompt and completion, or with messages")]
pub enum SupervisedExample {
    /// A text and how it goes on.
    Completion {
        /// The text that is given.
        prompt: String,
        /// The text that should follow.
        completion: String,
    },
    /// A dialogue, of which the assistant's messages are to be written.
    Dialogue {
        /// The messages, each with `role` and `content`.
        messages: Vec<Message>,
    },
    /// A dialogue so far, and the messages with which it is to go on.
    Answer {
        /// The dialogue so far.
        prompt: Vec<Message>,
        /// The messages that follow.
        completion: Vec<Message>,
    },
}

/// Reads a JSON array or a file of JSON lines, in the forms that TRL has: `{"prompt": "...", "completion": "..."}`, `{"messages": [{"role",
/// "content"}]}`, or `prompt` and `completion` as lists of messages. Forms may be mixed. [`rows`](crate::rows) reads fields of other names,
/// several files, and holds rows out.
///
/// # Errors
/// As [`read_supervised`].
///
/// # Example
/// ```
/// use ruminate_datasets::supervised;
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("train.jsonl");
/// std::fs::write(&path, r#"{"prompt": "What do bees make? ", "completion": "honey"}"#)?;
/// assert_eq!(supervised::read(&path)?.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read(path: &Path) -> Result<Vec<SupervisedExample>> {
    read_supervised(path, &Columns::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let rows = [
            r#"{"prompt": "p", "completion": "c", "id": 7}"#,
            r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}"#,
            r#"{"prompt": [{"role": "user", "content": "u"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
        ];
        std::fs::write(&path, rows.join("\n")).unwrap();
        let read_rows = read(&path).unwrap();
        assert_eq!(
            read_rows[0],
            SupervisedExample::Completion { prompt: "p".into(), completion: "c".into() }
        );
        let (user, assistant) = (Message::new("user", "u"), Message::new("assistant", "a"));
        assert_eq!(
            read_rows[1],
            SupervisedExample::Dialogue { messages: vec![user.clone(), assistant.clone()] }
        );
        assert_eq!(
            read_rows[2],
            SupervisedExample::Answer { prompt: vec![user], completion: vec![assistant] }
        );
        std::fs::write(&path, format!("{}\n{{\"prompt\": \"p\"}}", rows[0])).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2: no field `completion`"), "{error}");
    }
}
