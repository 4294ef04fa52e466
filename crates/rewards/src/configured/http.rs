//! Rewards of a server, in the form of OpenRLHF's remote reward models.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ruminate_datasets::rows::TextOrMessages;
use ruminate_datasets::teacher::{Connection, ConnectionSettings, HttpReply, KeySource, TeacherError};
use ruminate_models::Interrupt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::command::is_reward;
use super::{Answered, Judge, Judged, PolicyModel, Unjudged};
use crate::RewardError;

/// Settings of `http`: a server that judges. It gets `{"query": [...], "prompts": [...], "labels": [...]}` and answers with `{"rewards":
/// [...]}`, one number for each sample. A query is a prompt with its response behind it, and a label the row's answer, or empty. The
/// messages of a dialogue stand in a prompt as `ROLE: TEXT`, one after another, each with the end of a line. Other fields of the reply,
/// such as `scores` and `extra_logs`, are not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpReward {
    /// The address, such as `http://localhost:5000/get_reward`.
    pub url: String,
    /// Samples of a request at most.
    pub batch: usize,
    /// Seconds that a request may take.
    pub timeout_s: u64,
    /// Times that a request is sent again where no connection is made, it takes too long, or the server is busy (status 429) or in trouble
    /// (5xx).
    pub retries: u32,
    /// Where a key comes from, `{ env = "NAME" }` or `{ file = "PATH" }`; it is sent as `authorization: Bearer KEY`.
    pub key: KeySource,
    /// Further headers. They are no place for secrets: a configuration is written to run folders.
    pub headers: BTreeMap<String, String>,
}

impl Default for HttpReward {
    fn default() -> Self {
        Self {
            url: String::new(),
            batch: 64,
            timeout_s: 60,
            retries: 3,
            key: KeySource::None,
            headers: BTreeMap::new(),
        }
    }
}

/// Headers that hold secrets.
const SECRET: [&str; 5] = ["authorization", "proxy-authorization", "cookie", "api-key", "x-api-key"];
/// Longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl HttpReward {
    pub(super) fn prepared(&self) -> Result<HttpJudge, String> {
        let host = self.url.split_once("://").map_or("", |(_, rest)| rest);
        if host.split(['/', '?', '#']).next().is_some_and(|host| host.contains('@')) {
            // The address is not repeated: it may hold a password.
            return Err("url must hold no user and no password; keys belong into kind.http.key".into());
        }
        if self.batch == 0 || self.timeout_s == 0 {
            return Err("batch and timeout_s must be at least 1".into());
        }
        if self.headers.keys().any(|name| SECRET.contains(&name.to_ascii_lowercase().as_str())) {
            return Err("headers must hold no key; use kind.http.key".into());
        }
        let connection = Connection::open(&ConnectionSettings {
            url: self.url.clone(),
            key: &self.key,
            key_header: "authorization",
            headers: &self.headers,
            timeout: Duration::from_secs(self.timeout_s),
            idle: 1,
        });
        let connection = connection.map_err(|error| match error {
            TeacherError::Config { field: "url", reason } => format!("url is {:?}: {reason}", self.url),
            TeacherError::Config { field, reason } => format!("{field}: {reason}"),
            TeacherError::MissingKey(KeySource::Env(name)) => {
                format!("key: the environment variable {name} is not set")
            }
            TeacherError::MissingKey(KeySource::File(path)) => format!("key: {} is empty", path.display()),
            error => format!("key: {error}"),
        })?;
        Ok(HttpJudge { settings: self.clone(), connection: Arc::new(connection) })
    }
}

/// A server that judges.
#[derive(Debug)]
pub(super) struct HttpJudge {
    settings: HttpReward,
    connection: Arc<Connection>,
}

/// The answer of a server. Some send a number alone for a request of one sample.
#[derive(Deserialize)]
struct Reply {
    rewards: OneOrMore,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`rewards` is no list of numbers")]
enum OneOrMore {
    One(f64),
    More(Vec<f64>),
}

/// A request that failed.
struct Failed {
    reason: String,
    /// Some where the same request may have more luck, with the time that the server asks to wait.
    again: Option<Option<Duration>>,
}

impl Judge for HttpJudge {
    fn judge(&self, samples: &[Answered<'_>], _: Option<PolicyModel<'_>>) -> Judged {
        let mut rewards = vec![];
        for batch in samples.chunks(self.settings.batch) {
            let first = rewards.len();
            let reply = self.ask(batch)?.map_err(|reason| (0, reason));
            let numbers = reply.and_then(|reply| self.numbers(&reply, batch.len()));
            rewards.extend(numbers.map_err(|(sample, reason)| {
                let reason = format!("{}: {}", self.connection.url(), self.connection.hide(&reason));
                Unjudged::External { sample: first + sample, reason }
            })?);
        }
        Ok(rewards)
    }
}

/// A prompt as the server gets it.
fn prompt(sample: &Answered<'_>) -> String {
    match &sample.row.prompt {
        TextOrMessages::Text(text) => text.clone(),
        TextOrMessages::Messages(messages) => {
            messages.iter().map(|message| format!("{}: {}\n", message.role, message.content)).collect()
        }
    }
}

impl HttpJudge {
    /// The server's reply, or why there is none.
    fn ask(&self, samples: &[Answered<'_>]) -> Result<Result<Vec<u8>, String>, RewardError> {
        let prompts: Vec<String> = samples.iter().map(prompt).collect();
        let query = samples.iter().zip(&prompts).map(|(of, prompt)| format!("{prompt}{}", of.text));
        let query: Vec<String> = query.collect();
        let labels: Vec<&str> = samples.iter().map(|of| of.row.answer.as_deref().unwrap_or("")).collect();
        let body: Arc<[u8]> =
            json!({ "query": query, "prompts": prompts, "labels": labels }).to_string().into_bytes().into();
        let mut tries = 0;
        loop {
            let (reason, wait) = match self.send(&body)? {
                Ok(reply) => return Ok(Ok(reply)),
                Err(Failed { reason, again: None }) => return Ok(Err(reason)),
                Err(Failed { reason, again: Some(wait) }) => (reason, wait),
            };
            if tries == self.settings.retries {
                return Ok(Err(if tries == 0 {
                    reason
                } else {
                    format!("{reason} (tried {} times)", tries + 1)
                }));
            }
            tries += 1;
            log::warn!(
                "reward server {}: {}; trying again",
                self.connection.url(),
                self.connection.hide(&reason)
            );
            let begin = Instant::now();
            let wait = wait.unwrap_or(Duration::from_millis(250 << tries.min(5))).min(LONGEST_WAIT);
            while begin.elapsed() < wait {
                Interrupt::check()?;
                std::thread::sleep(Duration::from_millis(20).min(wait));
            }
        }
    }

    /// Sends a request once. It waits in a thread of its own, so that a request to stop is heard here.
    fn send(&self, body: &Arc<[u8]>) -> Result<Result<Vec<u8>, Failed>, RewardError> {
        let (sender, receiver) = channel();
        let (connection, body) = (Arc::clone(&self.connection), Arc::clone(body));
        std::thread::spawn(move || sender.send(connection.post(&body)));
        let reply = loop {
            Interrupt::check()?;
            match receiver.recv_timeout(Duration::from_millis(50)) {
                Ok(reply) => break reply,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break Err("the request broke off".into()),
            }
        };
        let again = |reason| Failed { reason, again: Some(None) };
        let HttpReply { status, retry_after, body } = match reply {
            Ok(reply) => reply,
            Err(reason) => return Ok(Err(again(reason))),
        };
        if (200..300).contains(&status) {
            return Ok(body.map_err(|reason| again(format!("the reply broke off: {reason}"))));
        }
        let busy = status == 429 || status >= 500;
        let wait = retry_after.and_then(|secs| secs.trim().parse().ok()).map(Duration::from_secs);
        let said = String::from_utf8_lossy(&body.unwrap_or_default()).trim().to_owned();
        Ok(Err(Failed { reason: format!("status {status}: {said}"), again: busy.then_some(wait) }))
    }

    /// The numbers of a reply.
    fn numbers(&self, reply: &[u8], count: usize) -> Result<Vec<f64>, (usize, String)> {
        let rewards = match serde_json::from_slice(reply) {
            Ok(Reply { rewards: OneOrMore::One(reward) }) => vec![reward],
            Ok(Reply { rewards: OneOrMore::More(rewards) }) => rewards,
            Err(error) => {
                let shown = super::beginning(&String::from_utf8_lossy(reply));
                return Err((0, format!("the reply is not {{\"rewards\": [...]}}, but {shown} ({error})")));
            }
        };
        if rewards.len() != count {
            let reason = format!("the reply has {} rewards for {count} samples", rewards.len());
            return Err((rewards.len().min(count - 1), reason));
        }
        match rewards.iter().position(|&reward| !is_reward(reward)) {
            Some(sample) => Err((sample, format!("the reply has {}, which is no reward", rewards[sample]))),
            None => Ok(rewards),
        }
    }
}
