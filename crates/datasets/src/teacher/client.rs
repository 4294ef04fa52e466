//! One attempt at one request.

use std::io::Read;
use std::time::{Duration, SystemTime};

use super::connection::{Connection, ConnectionSettings, HttpReply, LONGEST_REPLY};
use super::request::{Body, Reply, as_chat};
use super::{Endpoint, KeySource, Result, TeacherConfig, TeacherError, TokenLimit};
use crate::text::without_mark;
use jiff::civil;
use jiff::tz::Offset;

/// A server that asks for more patience than this is asked again after it.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
const LONGEST_MESSAGE: usize = 300;

/// Why an attempt gave no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may succeed later.
    Transient { reason: String, wait: Option<Duration> },
    /// This request will not succeed.
    Rejected(String),
    /// No request will.
    Fatal(TeacherError),
}

#[derive(Debug)]
pub(super) struct Client {
    connection: Connection,
    source: KeySource,
    token_limit: TokenLimit,
    endpoint: Endpoint,
}

impl Client {
    pub(super) fn new(config: &TeacherConfig) -> Result<Self> {
        config.validate()?;
        let connection = Connection::open(&ConnectionSettings {
            url: config.url(),
            key: &config.key,
            key_header: &config.key_header,
            headers: &config.headers,
            timeout: Duration::from_secs_f64(config.timeout_secs),
            idle: config.concurrency,
        })?;
        Ok(Self {
            connection,
            source: config.key.clone(),
            token_limit: config.token_limit,
            endpoint: config.endpoint,
        })
    }

    pub(super) fn send(&self, body: &Body) -> std::result::Result<Reply, Failure> {
        let transient = |reason: String| Failure::Transient { reason: self.shorten(&reason), wait: None };
        let text = serde_json::to_vec(&body.wire(self.token_limit, self.endpoint))
            .map_err(|error| Failure::Rejected(error.to_string()))?;
        let HttpReply { status, retry_after: wait, body: reply } =
            self.connection.post(&text).map_err(transient)?;
        let wait = wait.and_then(|value| retry_after(&value, SystemTime::now()));
        if (200..300).contains(&status) {
            let reply = reply.map_err(|error| transient(format!("the reply broke off: {error}")))?;
            let reply = unpacked(reply).map_err(transient)?;
            let parsed = match self.endpoint {
                Endpoint::Chat => serde_json::from_slice(without_mark(&reply)),
                Endpoint::Completions => serde_json::from_slice(without_mark(&reply))
                    .and_then(|reply| serde_json::from_value(as_chat(reply))),
            };
            let mut answer: Reply = parsed.map_err(|error| {
                transient(format!("the reply is no chat completion ({error}): {}", said(&reply)))
            })?;
            self.connection.key().hide_in(&mut answer.choices);
            answer.missing = answer.missing.map(|reason| self.shorten(&reason));
            return Ok(answer);
        }
        let reply = unpacked(reply.unwrap_or_default()).unwrap_or_default();
        let mut message = self.shorten(&said(&reply));
        if self.token_limit == TokenLimit::MaxTokens && message.contains(TokenLimit::COMPLETION) {
            message.push_str("; set teacher.token_limit = \"max_completion_tokens\"");
        }
        Err(match status {
            401 | 403 => {
                Failure::Fatal(TeacherError::Unauthorized { status, key: self.source.clone(), message })
            }
            // Money that is used up does not come back by waiting.
            429 if code(&reply).as_deref() == Some("insufficient_quota") => self.refused(status, message),
            408 | 409 | 425 | 429 | 500.. => {
                Failure::Transient { reason: format!("status {status}: {message}"), wait }
            }
            402 | 404 | 405 => self.refused(status, message),
            status if status < 400 => self.refused(status, message),
            _ => Failure::Rejected(format!("status {status}: {message}")),
        })
    }

    fn refused(&self, status: u16, message: String) -> Failure {
        Failure::Fatal(TeacherError::Refused { status, url: self.connection.url().into(), message })
    }

    /// A message without the key, as it can be [shown].
    fn shorten(&self, text: &str) -> String {
        self.connection.hide(text)
    }
}

/// A text from elsewhere as a terminal and a log can show it: not without end, and with escapes for characters that would act on the
/// terminal instead of being seen.
pub(super) fn shown(text: &str) -> String {
    let mut short = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == LONGEST_MESSAGE {
            short.push('…');
            break;
        }
        // Controls, and the marks that turn the direction of writing or cannot be seen.
        let unseen = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if unseen {
            short.extend(c.escape_default());
        } else {
            short.push(c);
        }
    }
    short
}

/// A reply that a server has compressed, though nobody asked for it.
fn unpacked(reply: Vec<u8>) -> std::result::Result<Vec<u8>, String> {
    if !reply.starts_with(b"\x1f\x8b") {
        return Ok(reply);
    }
    let mut text = vec![];
    let read = flate2::read::MultiGzDecoder::new(&reply[..]).take(LONGEST_REPLY + 1).read_to_end(&mut text);
    match read {
        Err(error) => Err(format!("the reply is damaged gzip: {error}")),
        Ok(length) if length as u64 > LONGEST_REPLY => {
            Err(format!("the reply is gzip of more than {LONGEST_REPLY} bytes"))
        }
        Ok(_) => Ok(text),
    }
}

/// The error of a reply in OpenAI's form; otherwise the whole reply.
fn said(reply: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(without_mark(reply)).unwrap_or_default();
    let error = &value["error"];
    match error["message"].as_str().or(error.as_str()) {
        Some(message) => message.to_string(),
        None if reply.is_empty() => "(nothing)".into(),
        None => match std::str::from_utf8(reply) {
            Ok(text) => text.split_whitespace().collect::<Vec<_>>().join(" "),
            Err(_) => {
                let head = &reply[..reply.len().min(LONGEST_MESSAGE)];
                format!("({} bytes that are no text) {}", reply.len(), head.escape_ascii())
            }
        },
    }
}

fn code(reply: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(without_mark(reply)).ok()?;
    value["error"]["code"].as_str().map(String::from)
}

/// Seconds, or a date.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse::<f64>() {
        Ok(secs) if secs.is_finite() => {
            Duration::try_from_secs_f64(secs.min(LONGEST_WAIT.as_secs_f64())).ok()?
        }
        _ => http_date(value)?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(LONGEST_WAIT))
}

/// A date of HTTP: as it is written today, and in the two forms of old that are to be understood.
fn http_date(value: &str) -> Option<SystemTime> {
    let forms = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let date = forms.iter().find_map(|form| civil::DateTime::strptime(form, value).ok())?;
    Offset::UTC.to_timestamp(date).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_acts_on_no_terminal() {
        let text = shown("a\u{1b}[2J\r\n\u{7}é€\u{202e}\u{9b}31m");
        assert_eq!(text, r"a\u{1b}[2J\r\n\u{7}é€\u{202e}\u{9b}31m");
        assert_eq!(shown(&"ä".repeat(1000)).chars().count(), LONGEST_MESSAGE + 1);
        let binary = said(b"\x1f\x8b\x08\xff\x00");
        assert_eq!(binary, r"(5 bytes that are no text) \x1f\x8b\x08\xff\x00");
    }

    #[test]
    fn waits_are_seconds_or_dates() {
        let now = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, secs) in [
            ("3", Some(3.0)),
            (" 0.5 ", Some(0.5)),
            ("99999999999999999999999", Some(3600.0)),
            ("Sun, 06 Nov 1994 08:49:42 GMT", Some(5.0)),
            ("Sunday, 06-Nov-94 08:49:42 GMT", Some(5.0)),
            ("Sun Nov  6 08:49:42 1994", Some(5.0)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0.0)),
            ("-1", None),
            ("NaN", None),
            ("soon", None),
        ] {
            assert_eq!(retry_after(value, now).map(|wait| wait.as_secs_f64()), secs, "{value}");
        }
    }
}
