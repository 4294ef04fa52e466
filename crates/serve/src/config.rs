//! Settings of a server.

use std::net::{SocketAddr, ToSocketAddrs};

use ruminate_datasets::chat::{ChatTemplate, NamedTemplate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Settings of [`serve`](crate::serve).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServeConfig {
    /// The address to listen at. Any other than a loopback address needs `api_key_env`. Default: 127.0.0.1.
    pub host: String,
    /// The port; 0 takes any that is free. Default: 8000.
    pub port: u16,
    /// The environment variable that holds the key that clients must send. Default: none, and no key is asked for.
    pub api_key_env: Option<String>,
    /// The name of the template of dialogues, such as `llama-3`. Default: that of the model's folder.
    pub chat_template: Option<String>,
    /// Tokens of a prompt and its answer at most. Default: the model's context length, or 4096 where it has none.
    pub context_length: Option<usize>,
    /// Tokens of a chat answer at most where the request sets no limit. Default: 512.
    pub default_max_tokens: usize,
    /// Bytes of a request at most. Default: 4 MiB.
    pub max_request_bytes: usize,
    /// Answers that are written or waited for at the same time, over all requests; beyond, requests get status 429. Default: 256.
    pub max_rows: usize,
    /// Answers to one prompt at most (`n`). Default: 16.
    pub max_n: usize,
    /// Seconds after which a request ends with an error. Default: 600.
    pub request_secs: u64,
    /// Milliseconds that a batch waits for more requests before it begins. Default: 5.
    pub gather_ms: u64,
    /// Seconds that answers under way have when the server is stopped. Default: 10.
    pub grace_secs: u64,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8000,
            api_key_env: None,
            chat_template: None,
            context_length: None,
            default_max_tokens: 512,
            max_request_bytes: 4 << 20,
            max_rows: 256,
            max_n: 16,
            request_secs: 600,
            gather_ms: 5,
            grace_secs: 10,
        }
    }
}

impl ServeConfig {
    /// Checks the values that need neither model nor network.
    ///
    /// # Errors
    /// [`Error::Config`] names the first setting that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let positive: [(&'static str, usize); 5] = [
            ("default_max_tokens", self.default_max_tokens),
            ("max_request_bytes", self.max_request_bytes),
            ("max_rows", self.max_rows),
            ("max_n", self.max_n),
            ("context_length", self.context_length.unwrap_or(1)),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(Error::config(key, "is 0, but must be at least 1"));
            }
        }
        // A day of gathering, or a year of work, is a slip of units.
        let limits: [(&'static str, u64, u64); 3] = [
            ("request_secs", self.request_secs, 365 * 86_400),
            ("gather_ms", self.gather_ms, 60_000),
            ("grace_secs", self.grace_secs, 86_400),
        ];
        for (key, value, most) in limits {
            if value > most {
                return Err(Error::config(key, format!("is {value}, but must be at most {most}")));
            }
        }
        if self.request_secs == 0 {
            return Err(Error::config("request_secs", "is 0, but must be at least 1"));
        }
        self.named_template().map(drop)
    }

    /// The template that is named, where one is.
    pub(crate) fn named_template(&self) -> Result<Option<ChatTemplate>> {
        let Some(name) = &self.chat_template else { return Ok(None) };
        let template: NamedTemplate = name.parse().map_err(|source| Error::ChatTemplate { source })?;
        Ok(Some(template.into()))
    }

    /// The addresses that the host stands for.
    pub(crate) fn addresses(&self) -> Result<Vec<SocketAddr>> {
        let bind = |source| Error::Bind { host: self.host.clone(), port: self.port, source };
        Ok((self.host.as_str(), self.port).to_socket_addrs().map_err(bind)?.collect())
    }

    /// The key that clients must send, where one is asked for.
    pub(crate) fn key(&self, addresses: &[SocketAddr]) -> Result<Option<String>> {
        match &self.api_key_env {
            Some(variable) => match std::env::var(variable) {
                Ok(key) if !key.trim().is_empty() => Ok(Some(key.trim().to_owned())),
                _ => Err(Error::NoKey { variable: variable.clone() }),
            },
            None if addresses.iter().all(|address| address.ip().is_loopback()) => Ok(None),
            None => Err(Error::KeyNeeded { host: self.host.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(host: &str, api_key_env: Option<&str>) -> ServeConfig {
        ServeConfig { host: host.into(), api_key_env: api_key_env.map(Into::into), ..ServeConfig::default() }
    }

    fn key(config: &ServeConfig) -> Result<Option<String>> {
        config.key(&config.addresses()?)
    }

    #[test]
    fn other_machines_need_a_key() {
        assert_eq!(key(&config("127.0.0.1", None)).unwrap(), None);
        assert_eq!(key(&config("::1", None)).unwrap(), None);
        for host in ["0.0.0.0", "::", "192.168.0.1"] {
            let error = key(&config(host, None)).unwrap_err();
            assert!(matches!(error, Error::KeyNeeded { .. }) && error.to_string().contains("api_key_env"));
            // Cargo sets this variable for tests.
            assert_eq!(key(&config(host, Some("CARGO_PKG_NAME"))).unwrap().unwrap(), "ruminate-serve");
        }
        let error = key(&config("127.0.0.1", Some("RUMINATE_NO_SUCH_VARIABLE"))).unwrap_err();
        assert!(error.to_string().contains("RUMINATE_NO_SUCH_VARIABLE"), "{error}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        ServeConfig::default().validate().unwrap();
        let wrong = |change: &dyn Fn(&mut ServeConfig)| {
            let mut config = ServeConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(wrong(&|config| config.max_rows = 0).contains("max_rows"));
        assert!(wrong(&|config| config.request_secs = 0).contains("request_secs"));
        assert!(wrong(&|config| config.grace_secs = u64::MAX).contains("grace_secs"));
        let template = ServeConfig { chat_template: Some("klingon".into()), ..ServeConfig::default() };
        let error = template.validate().unwrap_err();
        assert!(error.to_string().contains("chat_template"), "{error}");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("klingon"), "{cause}");
        let unknown = serde_json::from_str::<ServeConfig>(r#"{"prot": 1}"#).unwrap_err().to_string();
        assert!(unknown.contains("prot"), "{unknown}");
    }
}
