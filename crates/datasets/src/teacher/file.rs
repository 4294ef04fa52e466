//! Files of answers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::request::Body;
use super::{Answer, Message, Request, Result, Sampling, TeacherError};
use crate::append::AppendFile;
use crate::{Error, Place};

/// A request with what came of it, as files have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// The id of the request; lines of `[request, response]` have none.
    pub id: Option<String>,
    /// Who was asked, where this is known.
    pub model: Option<String>,
    /// What was asked.
    pub messages: Vec<Message>,
    /// How it was drawn; nothing in lines of `[request, response]`.
    pub sampling: Option<Sampling>,
    /// The answer, or why there is none.
    pub outcome: std::result::Result<Answer, String>,
}

/// A line as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    id: String,
    request: Body,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    response: Option<Answer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    elapsed_ms: u64,
}

/// The request of a line that others wrote.
#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    model: Option<String>,
    messages: Vec<Message>,
}

impl Exchange {
    fn parse(line: &[u8]) -> serde_json::Result<Self> {
        if line.trim_ascii_start().starts_with(b"[") {
            let (request, response): (Asked, Value) = serde_json::from_slice(line)?;
            let outcome = match response {
                Value::Array(errors) => Err(Value::Array(errors).to_string()),
                response => Ok(serde_json::from_value(response)?),
            };
            let Asked { model, messages } = request;
            return Ok(Self { id: None, model, messages, sampling: None, outcome });
        }
        let Record { id, request, response, error, .. } = serde_json::from_slice(line)?;
        let outcome = match (response, error) {
            (Some(answer), None) => Ok(answer),
            (None, Some(error)) => Err(error),
            _ => return Err(serde_json::Error::custom("expected either `response` or `error`")),
        };
        let Body { model, messages, sampling } = request;
        Ok(Self { id: Some(id), model: Some(model), messages, sampling: Some(sampling), outcome })
    }
}

/// Reads a file of answers: lines that [`Teacher::ask`](super::Teacher::ask) wrote, or `[request, response]` in OpenAI's form, with a
/// list of errors for the response of a request that failed. A last line that was cut off is left out.
///
/// # Errors
/// [`Error::Read`], and [`Error::Json`] with the line.
pub fn read_answers(path: &Path) -> Result<Vec<Exchange>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let (lines, _) = parse(path, &bytes)?;
    Ok(lines.into_iter().map(|(_, exchange)| exchange).collect())
}

/// The exchanges with their lines, and the length of what is whole.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<(usize, Exchange)>, usize)> {
    let mut exchanges = vec![];
    let mut whole = 0;
    for (i, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        let ended = line.ends_with(b"\n");
        if !line.trim_ascii().is_empty() {
            match Exchange::parse(line) {
                Ok(exchange) => exchanges.push((i + 1, exchange)),
                // Only what was being written when the program ended has no end of line.
                Err(_) if !ended && serde_json::from_slice::<Value>(line).is_err() => break,
                Err(source) => {
                    let place = Some(Place::Line(i + 1));
                    return Err(Error::Json { path: path.into(), place, field: String::new(), source }.into());
                }
            }
        }
        whole += line.len();
    }
    Ok((exchanges, whole))
}

/// The answers to the requests, in their order: by id, or by messages where a line has no id. Several lines with the same messages
/// go to requests with these messages in their order.
///
/// # Errors
/// [`TeacherError::DuplicateId`]. [`TeacherError::SecondAnswer`] and [`TeacherError::RequestChanged`] name `path` and an
/// exchange, counted from 1; models and sampling may differ.
pub fn match_answers(
    path: &Path,
    exchanges: Vec<Exchange>,
    requests: &[Request],
) -> Result<Vec<Option<Answer>>> {
    let numbered = exchanges.into_iter().enumerate().map(|(i, exchange)| (i + 1, exchange));
    assign(path, numbered, requests, None)
}

fn assign(
    path: &Path,
    exchanges: impl Iterator<Item = (usize, Exchange)>,
    requests: &[Request],
    model: Option<&str>,
) -> Result<Vec<Option<Answer>>> {
    let by_id = ids(requests)?;
    let mut by_messages: HashMap<&[Message], VecDeque<usize>> = HashMap::new();
    for (index, request) in requests.iter().enumerate() {
        by_messages.entry(&request.messages).or_default().push_back(index);
    }
    let mut answers: Vec<Option<Answer>> = vec![None; requests.len()];
    let mut unnamed = vec![];
    for (line, exchange) in exchanges {
        let Ok(answer) = exchange.outcome else { continue };
        let Some(id) = exchange.id else {
            unnamed.push((exchange.messages, answer));
            continue;
        };
        let Some(&index) = by_id.get(id.as_str()) else { continue };
        let request = &requests[index];
        let changed = if model.is_some() && exchange.model.as_deref() != model {
            Some("model")
        } else if exchange.messages != request.messages {
            Some("messages")
        } else if model.is_some() && exchange.sampling.as_ref() != Some(&request.sampling) {
            Some("sampling")
        } else {
            None
        };
        if let Some(field) = changed {
            return Err(TeacherError::RequestChanged { path: path.into(), line, id, field });
        }
        if answers[index].is_some() {
            return Err(TeacherError::SecondAnswer { path: path.into(), line, id });
        }
        answers[index] = Some(answer);
    }
    for (messages, answer) in unnamed {
        let Some(waiting) = by_messages.get_mut(messages.as_slice()) else { continue };
        while let Some(index) = waiting.pop_front() {
            if answers[index].is_none() {
                answers[index] = Some(answer);
                break;
            }
        }
    }
    Ok(answers)
}

/// Requests by id.
fn ids(requests: &[Request]) -> Result<BTreeMap<&str, usize>> {
    let mut by_id = BTreeMap::new();
    for (index, request) in requests.iter().enumerate() {
        if by_id.insert(request.id.as_str(), index).is_some() {
            return Err(TeacherError::DuplicateId(request.id.clone()));
        }
    }
    Ok(by_id)
}

/// The answers that a file has; none if there is no file. Nothing is changed.
pub(super) fn stored(path: &Path, model: &str, requests: &[Request]) -> Result<Vec<Option<Answer>>> {
    match std::fs::read(path) {
        Ok(bytes) => assign(path, parse(path, &bytes)?.0.into_iter(), requests, Some(model)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => assign(path, [].into_iter(), requests, None),
        Err(source) => Err(Error::Read { path: path.into(), source }.into()),
    }
}

/// A file of answers that is being written, by this process only.
#[derive(Debug)]
pub(super) struct AnswerFile(AppendFile);

impl AnswerFile {
    /// Opens or makes a file, and returns the answers that it has. A last line that was cut off is removed.
    pub(super) fn open(
        path: &Path,
        model: &str,
        requests: &[Request],
    ) -> Result<(Self, Vec<Option<Answer>>)> {
        ids(requests)?;
        let read = |bytes: &[u8]| -> Result<_> {
            let (lines, whole) = parse(path, bytes)?;
            Ok((assign(path, lines.into_iter(), requests, Some(model))?, whole))
        };
        let (file, answers) = AppendFile::open(path, read)?;
        Ok((Self(file), answers))
    }

    /// Appends a line. Where that fails, what stood there before stays.
    pub(super) fn write(
        &mut self,
        id: &str,
        request: &Body,
        outcome: std::result::Result<&Answer, &str>,
        elapsed_ms: u64,
    ) -> Result<()> {
        Ok(self.0.write(&Record {
            id: id.into(),
            request: request.clone(),
            response: outcome.ok().cloned(),
            error: outcome.err().map(String::from),
            elapsed_ms,
        })?)
    }

    /// Waits until the system has everything on its disk.
    pub(super) fn sync(&self) -> Result<()> {
        Ok(self.0.sync()?)
    }
}
