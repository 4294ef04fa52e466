//! Files of answers.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::client::shown;
use super::request::{Body, Reply, as_chat};
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
    /// The messages that were sent; none in lines of a batch's output.
    pub messages: Vec<Message>,
    /// How it was drawn; nothing in lines of others.
    pub sampling: Option<Sampling>,
    /// The answer, or why there is none.
    pub outcome: std::result::Result<Answer, String>,
}

/// A line as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "an object with id, request and response or error")]
struct Record {
    id: String,
    request: Body,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    response: Option<Stored>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    elapsed_ms: u64,
}

/// A response in a file. One without any content is no answer; files have it where others wrote them.
enum Stored {
    Answer(Answer),
    Empty(String),
}

impl Serialize for Stored {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Answer(answer) => answer.serialize(serializer),
            Self::Empty(reason) => reason.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Stored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let Reply { choices, missing, usage } = Reply::deserialize(deserializer)?;
        Ok(match missing {
            Some(reason) if choices.is_empty() => Self::Empty(reason),
            _ => Self::Answer(Answer { choices, usage }),
        })
    }
}

impl Stored {
    fn outcome(self) -> std::result::Result<Answer, String> {
        match self {
            Self::Answer(answer) => Ok(answer),
            Self::Empty(reason) => Err(reason),
        }
    }
}

/// The request of a line that others wrote.
#[derive(Deserialize)]
#[serde(expecting = "an object with messages")]
struct Asked {
    #[serde(default)]
    model: Option<String>,
    messages: Vec<Message>,
}

/// A line of the output of OpenAI's batch interface.
#[derive(Deserialize)]
struct BatchResult {
    custom_id: String,
    #[serde(default)]
    response: Value,
    #[serde(default)]
    error: Value,
}

#[derive(Deserialize)]
struct BatchResponse {
    status_code: u16,
    #[serde(default)]
    body: Value,
}

impl BatchResult {
    fn exchange(self) -> serde_json::Result<Exchange> {
        let Self { custom_id: id, response, error } = self;
        let bad = |what: &str| serde_json::Error::custom(format!("`{id}`: {what}"));
        // What servers and interfaces say stands in `message`, of an object or of the one in its `error`.
        let said = |from: &Value| {
            let message = from.pointer("/error/message").or_else(|| from.get("message"));
            shown(&message.and_then(Value::as_str).map_or_else(|| from.to_string(), str::to_owned))
        };
        let outcome = match (response, error) {
            (Value::Null, Value::Null) => return Err(bad("expected either `response` or `error`")),
            (Value::Null, error) => Err(said(&error)),
            (response, _) => {
                let BatchResponse { status_code, body } =
                    serde_json::from_value(response).map_err(|error| bad(&format!("response: {error}")))?;
                if (200..300).contains(&status_code) {
                    let stored = serde_json::from_value::<Stored>(as_chat(body));
                    stored.map_err(|error| bad(&format!("response.body: {error}")))?.outcome()
                } else {
                    Err(format!("status {status_code}: {}", said(&body)))
                }
            }
        };
        Ok(Exchange { id: Some(id), model: None, messages: vec![], sampling: None, outcome })
    }
}

/// True for a line of a batch's output.
fn is_batch(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "custom_id")]
        _custom_id: String,
    }
    const KEY: &[u8] = b"\"custom_id\"";
    line.windows(KEY.len()).any(|window| window == KEY) && serde_json::from_slice::<Named>(line).is_ok()
}

impl Exchange {
    fn parse(line: &[u8]) -> serde_json::Result<Self> {
        if line.trim_ascii_start().starts_with(b"[") {
            let (request, response): (Asked, Value) = serde_json::from_slice(line)?;
            let outcome = match response {
                Value::Array(errors) => Err(Value::Array(errors).to_string()),
                response => serde_json::from_value::<Stored>(response)?.outcome(),
            };
            let Asked { model, messages } = request;
            return Ok(Self { id: None, model, messages, sampling: None, outcome });
        }
        if is_batch(line) {
            return serde_json::from_slice::<BatchResult>(line)?.exchange();
        }
        let record: Record = serde_json::from_slice(line)?;
        record.exchange().ok_or_else(|| serde_json::Error::custom("expected either `response` or `error`"))
    }
}

impl Record {
    /// None where there is not either an answer or an error.
    fn exchange(self) -> Option<Exchange> {
        let outcome = match (self.response, self.error) {
            (Some(stored), None) => stored.outcome(),
            (None, Some(error)) => Err(error),
            _ => return None,
        };
        let Body { model, messages, sampling } = self.request;
        Some(Exchange { id: Some(self.id), model: Some(model), messages, sampling: Some(sampling), outcome })
    }
}

/// Reads a file of answers: lines that [`Teacher::ask`](super::Teacher::ask) wrote, lines of the output of OpenAI's batch interface, or
/// `[request, response]` in OpenAI's form, with a list of errors for the response of a request that failed. A response without content is
/// none. A last line that was cut off is left out.
///
/// # Errors
/// [`Error::Read`], and [`Error::Json`] with the line.
pub fn read_answers(path: &Path) -> Result<Vec<Exchange>> {
    let bytes = crate::text::read(path)?;
    let (lines, _) = parse(path, &bytes)?;
    Ok(lines.into_iter().map(|(_, exchange)| exchange).collect())
}

/// The exchanges of a file with their lines, counted from 1.
pub(super) fn numbered(path: &Path) -> Result<Vec<(usize, Exchange)>> {
    Ok(parse(path, &crate::text::read(path)?)?.0)
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
    let numbered: Vec<_> = exchanges.into_iter().enumerate().map(|(i, exchange)| (i + 1, exchange)).collect();
    assign(path, &numbered, requests, None)
}

fn assign<'a>(
    path: &Path,
    exchanges: impl IntoIterator<Item = &'a (usize, Exchange)>,
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
        let (line, id) = (*line, &exchange.id);
        let Ok(answer) = &exchange.outcome else { continue };
        let Some(id) = id else {
            unnamed.push((&exchange.messages, answer));
            continue;
        };
        let Some(&index) = by_id.get(id.as_str()) else { continue };
        let request = &requests[index];
        let changed = if model.is_some() && exchange.model.as_deref() != model {
            Some("model")
        } else if !exchange.messages.is_empty() && exchange.messages != request.messages {
            Some("messages")
        } else if model.is_some() && exchange.sampling.as_ref() != Some(&request.sampling) {
            Some("sampling")
        } else {
            None
        };
        if let Some(field) = changed {
            return Err(TeacherError::RequestChanged { path: path.into(), line, id: id.clone(), field });
        }
        if answers[index].is_some() {
            return Err(TeacherError::SecondAnswer { path: path.into(), line, id: id.clone() });
        }
        answers[index] = Some(answer.clone());
    }
    for (messages, answer) in unnamed {
        let Some(waiting) = by_messages.get_mut(messages.as_slice()) else { continue };
        while let Some(index) = waiting.pop_front() {
            if answers[index].is_none() {
                answers[index] = Some(answer.clone());
                break;
            }
        }
    }
    Ok(answers)
}

/// Requests by id.
pub(super) fn ids(requests: &[Request]) -> Result<BTreeMap<&str, usize>> {
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
    match crate::text::read(path) {
        Ok(bytes) => assign(path, &parse(path, &bytes)?.0, requests, Some(model)),
        Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            assign(path, [], requests, None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A file of answers that is open: read once, and until it is dropped written to by nobody else.
#[derive(Debug)]
pub struct AnswerFile {
    path: PathBuf,
    file: AppendFile,
    /// With their lines: those with an answer.
    exchanges: Vec<(usize, Exchange)>,
    /// Where the exchanges of an id are.
    by_id: HashMap<String, Vec<usize>>,
    /// Where those without an id are.
    unnamed: Vec<usize>,
    /// Ids of requests that failed; some may have been answered since.
    failed: HashSet<String>,
    lines: usize,
}

impl AnswerFile {
    /// Opens or makes a file, and reads it. A last line that was cut off is removed.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Write`], [`Error::Json`] with the line, and [`Error::Locked`].
    pub fn open(path: &Path) -> Result<Self> {
        let read = |bytes: &[u8]| -> Result<_> {
            let (exchanges, whole) = parse(path, bytes)?;
            Ok(((exchanges, bytes[..whole].split_inclusive(|&b| b == b'\n').count()), whole))
        };
        let (file, (exchanges, lines)) = AppendFile::open(path, read)?;
        let (by_id, unnamed, failed) = Default::default();
        let mut this = Self { path: path.into(), file, exchanges: vec![], by_id, unnamed, failed, lines };
        exchanges.into_iter().for_each(|(line, exchange)| this.keep(line, exchange));
        Ok(this)
    }

    fn keep(&mut self, line: usize, exchange: Exchange) {
        if exchange.outcome.is_err() {
            self.failed.extend(exchange.id);
            return;
        }
        let index = self.exchanges.len();
        match &exchange.id {
            Some(id) => self.by_id.entry(id.clone()).or_default().push(index),
            None => self.unnamed.push(index),
        }
        self.exchanges.push((line, exchange));
    }

    /// True if the file tells that a request failed.
    pub(super) fn has_failed(&self, id: &str) -> bool {
        self.failed.contains(id)
    }

    /// The answers that it has to requests to a model, in their order.
    ///
    /// # Errors
    /// [`TeacherError::DuplicateId`], [`TeacherError::SecondAnswer`] and [`TeacherError::RequestChanged`].
    pub fn answers(&self, model: &str, requests: &[Request]) -> Result<Vec<Option<Answer>>> {
        let named = ids(requests)?.into_keys().filter_map(|id| self.by_id.get(id)).flatten();
        let mut found: Vec<usize> = named.chain(&self.unnamed).copied().collect();
        found.sort_unstable();
        assign(&self.path, found.into_iter().map(|index| &self.exchanges[index]), requests, Some(model))
    }

    /// Appends a line. Where that fails, what stood there before stays.
    pub(super) fn write(
        &mut self,
        id: &str,
        request: Body,
        outcome: std::result::Result<&Answer, &str>,
        elapsed_ms: u64,
    ) -> Result<()> {
        let record = Record {
            id: id.into(),
            request,
            response: outcome.ok().cloned().map(Stored::Answer),
            error: outcome.err().map(String::from),
            elapsed_ms,
        };
        self.file.write(&record)?;
        self.lines += 1;
        if let Some(exchange) = record.exchange() {
            self.keep(self.lines, exchange);
        }
        Ok(())
    }

    /// Waits until the system has everything on its disk.
    pub(super) fn sync(&self) -> Result<()> {
        Ok(self.file.sync()?)
    }
}
