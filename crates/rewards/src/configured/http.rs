//! Rewards of a server, in the form of OpenRLHF's remote reward models.

use std::time::Duration;

use ruminate_datasets::rows::TextOrMessages;
use serde::{Deserialize, Serialize};
use serde_json::json;
use ureq::Agent;

use super::{Answered, Judge, Unjudged};

/// What a server says. It gets `{"query": [...], "prompts": [...], "labels": [...]}`, where a query is a prompt with its response, and answers
/// with `{"rewards": [...]}`, one number for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpReward {
    /// The address, such as `http://localhost:5000/get_reward`.
    pub url: String,
    /// Samples of a request at most.
    pub batch: usize,
    /// Seconds that a request may take.
    pub timeout_s: u64,
    /// Times that a request is sent again where no connection is made, or the server is busy (status 429) or in trouble (5xx).
    pub retries: u32,
}

impl Default for HttpReward {
    fn default() -> Self {
        Self { url: String::new(), batch: 64, timeout_s: 60, retries: 3 }
    }
}

impl HttpReward {
    pub(super) fn prepared(&self) -> Result<HttpJudge, String> {
        if !(self.url.starts_with("http://") || self.url.starts_with("https://")) {
            return Err(format!("url is {:?}, but must begin with http:// or https://", self.url));
        }
        if self.batch == 0 || self.timeout_s == 0 {
            return Err("batch and timeout_s must be at least 1".into());
        }
        let timeout = Some(Duration::from_secs(self.timeout_s));
        let agent = Agent::config_builder().timeout_global(timeout).http_status_as_error(false).build();
        Ok(HttpJudge { settings: self.clone(), agent: agent.into() })
    }
}

/// A server that judges.
#[derive(Debug)]
pub(super) struct HttpJudge {
    settings: HttpReward,
    agent: Agent,
}

/// What a server answers. Some send a number alone for a request of one sample.
#[derive(Deserialize)]
struct Reply {
    #[serde(alias = "reward", alias = "scores")]
    rewards: OneOrMore,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(f64),
    More(Vec<f64>),
}

/// A request that failed.
struct Failed {
    reason: String,
    /// Whether the same request may have more luck.
    again: bool,
}

impl Judge for HttpJudge {
    fn judge(&self, samples: &[Answered<'_>]) -> Result<Vec<f64>, Unjudged> {
        let mut rewards = vec![];
        for batch in samples.chunks(self.settings.batch) {
            let first = rewards.len();
            let failed = |(sample, reason)| Unjudged { sample: first + sample, reason, external: true };
            rewards.extend(self.ask(batch).map_err(failed)?);
        }
        Ok(rewards)
    }
}

impl HttpJudge {
    fn ask(&self, samples: &[Answered<'_>]) -> Result<Vec<f64>, (usize, String)> {
        let prompt = |of: &Answered<'_>| match &of.row.prompt {
            TextOrMessages::Text(text) => text.clone(),
            TextOrMessages::Messages(messages) => {
                messages.iter().map(|message| format!("{}: {}\n", message.role, message.content)).collect()
            }
        };
        let prompts: Vec<String> = samples.iter().map(prompt).collect();
        let query: Vec<String> =
            samples.iter().zip(&prompts).map(|(of, prompt)| format!("{prompt}{}", of.text)).collect();
        let labels: Vec<&str> = samples.iter().map(|of| of.row.answer.as_deref().unwrap_or("")).collect();
        let body = json!({ "query": query, "prompts": prompts, "labels": labels }).to_string();
        let url = &self.settings.url;
        let mut tries = 0;
        let reply = loop {
            match self.send(&body) {
                Ok(reply) => break reply,
                Err(Failed { again: true, .. }) if tries < self.settings.retries => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(250 << tries.min(5)));
                }
                Err(Failed { reason, .. }) => return Err((0, format!("{url}: {reason}"))),
            }
        };
        let rewards = match serde_json::from_str::<Reply>(&reply) {
            Ok(Reply { rewards: OneOrMore::One(reward) }) => vec![reward],
            Ok(Reply { rewards: OneOrMore::More(rewards) }) => rewards,
            Err(error) => {
                let shown: String = reply.chars().take(200).collect();
                return Err((
                    0,
                    format!("{url} has answered {shown:?}, not {{\"rewards\": [...]}}: {error}"),
                ));
            }
        };
        if rewards.len() != samples.len() {
            let reason = format!("{url} has sent {} rewards for {} samples", rewards.len(), samples.len());
            return Err((rewards.len().min(samples.len() - 1), reason));
        }
        match rewards.iter().position(|&reward| !(reward as f32).is_finite()) {
            Some(sample) => Err((sample, format!("{url} has sent {}, which is no reward", rewards[sample]))),
            None => Ok(rewards),
        }
    }

    fn send(&self, body: &str) -> Result<String, Failed> {
        let request = self.agent.post(&self.settings.url).content_type("application/json");
        let mut response =
            request.send(body).map_err(|error| Failed { reason: error.to_string(), again: true })?;
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string();
        if (200..300).contains(&status) {
            return text.map_err(|error| Failed { reason: error.to_string(), again: true });
        }
        let said: String = text.unwrap_or_default().chars().take(200).collect();
        let again = status == 429 || status >= 500;
        Err(Failed { reason: format!("status {status}: {said}"), again })
    }
}
