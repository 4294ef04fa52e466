//! Settings of the teacher.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use ureq::http::{HeaderName, HeaderValue, Uri};

use super::{Result, TeacherError};

/// Where the key comes from. The key itself is never part of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeySource {
    /// The environment variable of this name.
    Env(String),
    /// The only line of a file.
    File(PathBuf),
    /// No key is sent.
    None,
}

impl KeySource {
    pub(super) fn remedy(&self) -> String {
        match self {
            Self::Env(name) => format!("set the environment variable {name} to a valid key"),
            Self::File(path) => format!("put a valid key into {}", path.display()),
            Self::None => {
                "this server needs one; name its environment variable, teacher.key = { env = \"NAME\" }"
                    .into()
            }
        }
    }
}

/// How a server is told how long an answer may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenLimit {
    /// Sends the limit as `max_tokens`.
    #[default]
    MaxTokens,
    /// Sends the limit as `max_completion_tokens`, which OpenAI's reasoning models want.
    MaxCompletionTokens,
    /// Not at all: the server's own limit holds.
    None,
}

impl TokenLimit {
    pub(super) const COMPLETION: &str = "max_completion_tokens";
}

/// The interface of a server that is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// Chat completions: `/chat/completions`.
    #[default]
    Chat,
    /// Completions of a plain text, for models that were not trained on dialogues: `/completions`. The text is that of the messages, one
    /// after the other, without their roles.
    Completions,
}

/// Which model is asked, and how hard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherConfig {
    /// Address up to and without `/chat/completions` or `/completions`. `https` needs the cargo feature of that name, which is on by default.
    pub base_url: String,
    /// The model. Default: TinyThinker's teacher.
    pub model: String,
    /// Which of the server's interfaces is asked.
    pub endpoint: Endpoint,
    /// Where the key comes from. Default: the environment variable `OPENAI_API_KEY`.
    pub key: KeySource,
    /// The header of the key; `authorization` sends `Bearer KEY`, any other name the key alone.
    pub key_header: String,
    /// Further headers. They are no place for secrets: a configuration is written to run folders.
    pub headers: BTreeMap<String, String>,
    /// Requests under way at a time.
    pub concurrency: usize,
    /// Requests sent in a minute, 0 without limit. Default: TinyThinker's published code.
    pub requests_per_minute: f64,
    /// Tokens asked for in a minute, 0 without limit; those of prompts are estimated. Default: TinyThinker's published code.
    pub tokens_per_minute: f64,
    /// Seconds until a reply must be complete.
    pub timeout_secs: f64,
    /// Times that a request is sent before it counts as failed, when the server is busy, broken or silent.
    pub attempts: u32,
    /// Seconds before the second attempt, doubled before each further one. Half of the wait is random.
    pub backoff_secs: f64,
    /// Longest wait between attempts in seconds, unless the server asks for more.
    pub longest_backoff_secs: f64,
    /// Times that a request is answered invalidly, or without content, before it counts as failed.
    pub answers: u32,
    /// Completions asked for at once, 0 without limit; 1 for servers that refuse more.
    pub most_choices: u32,
    /// The name under which the limit of an answer's tokens is sent. Default: `max_tokens`.
    pub token_limit: TokenLimit,
    /// Failed requests in a row after which no more are sent, 0 for never.
    pub give_up_after: usize,
}

impl Default for TeacherConfig {
    fn default() -> Self {
        Self {
            base_url: "https://api.openai.com/v1".into(),
            model: "gpt-4o-2024-05-13".into(),
            endpoint: Endpoint::Chat,
            key: KeySource::Env("OPENAI_API_KEY".into()),
            key_header: "authorization".into(),
            headers: BTreeMap::new(),
            concurrency: 16,
            requests_per_minute: 4500.0,
            tokens_per_minute: 550_000.0,
            timeout_secs: 120.0,
            attempts: 6,
            backoff_secs: 1.0,
            longest_backoff_secs: 60.0,
            answers: 3,
            most_choices: 0,
            token_limit: TokenLimit::MaxTokens,
            give_up_after: 20,
        }
    }
}

impl TeacherConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`TeacherError::Config`] with the setting and what would be right.
    pub fn validate(&self) -> Result<()> {
        let bad = |field, reason: &str| Err(TeacherError::Config { field, reason: reason.into() });
        let uri = self.base_url.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
        match uri.as_ref().and_then(Uri::scheme_str) {
            // The address is not repeated: it may hold a password.
            _ if self.base_url.contains(['@', '?', '#']) => {
                return bad("base_url", "must hold no user, password or query; keys belong into teacher.key");
            }
            Some("http") => {}
            Some("https") if cfg!(feature = "https") => {}
            Some("https") => {
                return bad(
                    "base_url",
                    "https needs a build with the feature `https` of ruminate-datasets, which is on by default",
                );
            }
            _ => return bad("base_url", "is no address such as http://localhost:8000/v1"),
        }
        if self.model.is_empty() {
            return bad("model", "is empty");
        }
        if let KeySource::Env(name) = &self.key
            && (name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        {
            // Nor is this: it may be a key.
            return bad("key", "env must be the name of an environment variable, such as OPENAI_API_KEY");
        }
        if HeaderName::from_bytes(self.key_header.as_bytes()).is_err() {
            return bad("key_header", "is no name of a header");
        }
        for (name, value) in &self.headers {
            if HeaderName::from_bytes(name.as_bytes()).is_err() || HeaderValue::from_str(value).is_err() {
                return bad("headers", "a name or value has characters that no header may have");
            }
            let name = name.to_ascii_lowercase();
            if name == self.key_header.to_ascii_lowercase()
                || ["authorization", "proxy-authorization", "cookie", "api-key", "x-api-key"]
                    .contains(&&*name)
            {
                return bad("headers", "must hold no key; use teacher.key and teacher.key_header");
            }
        }
        if !(1..=1024).contains(&self.concurrency) {
            return bad("concurrency", "must be from 1 to 1024");
        }
        for (field, value, least) in [
            ("requests_per_minute", self.requests_per_minute, 0.0),
            ("tokens_per_minute", self.tokens_per_minute, 0.0),
            ("timeout_secs", self.timeout_secs, 1e-3),
            ("backoff_secs", self.backoff_secs, 0.0),
            ("longest_backoff_secs", self.longest_backoff_secs, self.backoff_secs),
        ] {
            if !(least..=1e9).contains(&value) {
                return bad(field, &format!("must be from {least} to 1e9"));
            }
        }
        for (field, value) in [("attempts", self.attempts), ("answers", self.answers)] {
            if value == 0 {
                return bad(field, "must be at least 1");
            }
        }
        Ok(())
    }

    pub(super) fn url(&self) -> String {
        let path = match self.endpoint {
            Endpoint::Chat => "chat/completions",
            Endpoint::Completions => "completions",
        };
        format!("{}/{path}", self.base_url.trim_end_matches('/'))
    }

    /// The wait before attempt `attempt + 1`, with `random` from 0 to 1.
    pub(super) fn backoff(&self, attempt: u32, random: f64) -> Duration {
        let doubled = self.backoff_secs * 2f64.powi(attempt.saturating_sub(1).min(60) as i32);
        Duration::from_secs_f64(doubled.min(self.longest_backoff_secs) * (0.5 + 0.5 * random))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_used_are_named_and_not_repeated() {
        let good = TeacherConfig { base_url: "http://localhost:8000/v1/".into(), ..TeacherConfig::default() };
        good.validate().unwrap();
        assert_eq!(good.url(), "http://localhost:8000/v1/chat/completions");
        let headers = |name: &str| BTreeMap::from([(name.to_string(), "v-secret".to_string())]);
        for (field, bad) in [
            (
                "base_url",
                TeacherConfig { base_url: "http://me:v-secret@localhost/v1".into(), ..good.clone() },
            ),
            (
                "base_url",
                TeacherConfig { base_url: "http://localhost/v1?key=v-secret".into(), ..good.clone() },
            ),
            ("base_url", TeacherConfig { base_url: "ftp://localhost".into(), ..good.clone() }),
            ("base_url", TeacherConfig { base_url: "localhost".into(), ..good.clone() }),
            ("model", TeacherConfig { model: String::new(), ..good.clone() }),
            ("key", TeacherConfig { key: KeySource::Env("v-secret".into()), ..good.clone() }),
            ("key_header", TeacherConfig { key_header: "a b".into(), ..good.clone() }),
            ("headers", TeacherConfig { headers: headers("Authorization"), ..good.clone() }),
            ("headers", TeacherConfig { headers: headers("a b"), ..good.clone() }),
            ("concurrency", TeacherConfig { concurrency: 0, ..good.clone() }),
            ("tokens_per_minute", TeacherConfig { tokens_per_minute: f64::NAN, ..good.clone() }),
            ("timeout_secs", TeacherConfig { timeout_secs: 0.0, ..good.clone() }),
            ("longest_backoff_secs", TeacherConfig { longest_backoff_secs: 0.5, ..good.clone() }),
            ("attempts", TeacherConfig { attempts: 0, ..good.clone() }),
            ("answers", TeacherConfig { answers: 0, ..good.clone() }),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(matches!(error, TeacherError::Config { field: f, .. } if f == field), "{field}: {error}");
            assert!(!format!("{error} {error:?}").contains("v-secret"), "{error:?}");
        }
        assert_eq!(TeacherConfig::default().validate().is_ok(), cfg!(feature = "https"));
    }

    #[test]
    fn waits_double_up_to_the_longest_and_half_of_them_is_random() {
        let config = TeacherConfig::default();
        let secs = |attempt, random| config.backoff(attempt, random).as_secs_f64();
        assert_eq!([secs(1, 1.0), secs(2, 1.0), secs(3, 1.0), secs(3, 0.0)], [1.0, 2.0, 4.0, 2.0]);
        assert_eq!([secs(7, 1.0), secs(u32::MAX, 1.0)], [60.0, 60.0]);
    }

    #[test]
    fn settings_read_back_from_toml() {
        let config: TeacherConfig = toml::from_str("key = { env = \"MY_KEY\" }\nmodel = \"m\"").unwrap();
        assert_eq!((&config.key, &*config.model), (&KeySource::Env("MY_KEY".into()), "m"));
        assert_eq!(toml::from_str::<TeacherConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        assert_eq!(toml::from_str::<TeacherConfig>("key = \"none\"").unwrap().key, KeySource::None);
        assert!(toml::from_str::<TeacherConfig>("api_key = \"x\"").is_err());
    }
}
