//! What is asked, and what is answered.

use std::ops::AddAssign;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message of the given role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// How completions are drawn; what is `None` is left to the server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Largest length of each completion in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// How many completions; none is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u32>,
    /// Temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// The smallest set of tokens with this probability is drawn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// A completion ends before any of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Seed, where the server knows of one. When a request is asked again, 1 is added each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Anything else, as the server names it.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Sampling {
    /// Completions that make an answer.
    #[must_use]
    pub fn choices(&self) -> u32 {
        self.n.unwrap_or(1).max(1)
    }
}

/// A request to the teacher.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Its name, by which the answer is found again. Ids that tell all that matters (data set, question, round) keep files apart.
    pub id: String,
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// How completions are drawn.
    pub sampling: Sampling,
}

impl Request {
    /// A request with the server's own sampling.
    pub fn new(id: impl Into<String>, messages: Vec<Message>) -> Self {
        Self { id: id.into(), messages, sampling: Sampling::default() }
    }

    /// About as many tokens as the prompt has: a quarter of its bytes, and what each message costs.
    #[must_use]
    pub fn prompt_tokens(&self) -> u64 {
        2 + self.messages.iter().map(|m| 3 + m.content.len().div_ceil(4) as u64).sum::<u64>()
    }

    /// The most tokens that all completions can have, as far as the request says.
    #[must_use]
    pub fn completion_tokens(&self) -> u64 {
        u64::from(self.sampling.choices()) * u64::from(self.sampling.max_tokens.unwrap_or(0))
    }
}

/// The request as servers and files have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Body {
    #[serde(default)]
    pub(super) model: String,
    pub(super) messages: Vec<Message>,
    #[serde(flatten)]
    pub(super) sampling: Sampling,
}

impl Body {
    pub(super) fn new(model: &str, request: &Request) -> Self {
        Self { model: model.into(), messages: request.messages.clone(), sampling: request.sampling.clone() }
    }
}

/// A completion of the teacher.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Completion {
    /// The text.
    pub content: String,
    /// Why it ended: `stop`, `length` and what else the server may say.
    pub finish_reason: String,
}

/// Tokens that were read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Read.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Written.
    #[serde(default)]
    pub completion_tokens: u64,
}

impl Usage {
    /// What the tokens cost, in the currency of the prices.
    #[must_use]
    pub fn cost(&self, prices: Prices) -> f64 {
        (self.prompt_tokens as f64 * prices.prompt + self.completion_tokens as f64 * prices.completion) / 1e6
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(other.prompt_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(other.completion_tokens);
    }
}

/// Prices of a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Of prompts.
    pub prompt: f64,
    /// Of completions.
    pub completion: f64,
}

/// An answer: as many completions as were asked for. In files it has the form of the server's response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The completions.
    pub choices: Vec<Completion>,
    /// Tokens that it took, those of answers that were not valid included.
    pub usage: Usage,
}

impl Answer {
    /// The text of the first completion.
    #[must_use]
    pub fn text(&self) -> &str {
        self.choices.first().map_or("", |choice| &choice.content)
    }
}

#[derive(Serialize, Deserialize)]
struct WireMessage {
    #[serde(default)]
    role: Option<String>,
    content: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct WireChoice {
    #[serde(default)]
    index: usize,
    message: WireMessage,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    choices: Vec<WireChoice>,
    #[serde(default)]
    usage: Option<Usage>,
}

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let choice = |(index, choice): (usize, &Completion)| WireChoice {
            index,
            message: WireMessage { role: Some("assistant".into()), content: Some(choice.content.clone()) },
            finish_reason: Some(choice.finish_reason.clone()),
        };
        let choices = self.choices.iter().enumerate().map(choice).collect();
        Wire { choices, usage: Some(self.usage) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        if wire.choices.is_empty() {
            return Err(serde::de::Error::custom("`choices` is empty"));
        }
        let choices = wire.choices.into_iter().map(|choice| Completion {
            content: choice.message.content.unwrap_or_default(),
            finish_reason: choice.finish_reason.unwrap_or_default(),
        });
        Ok(Self { choices: choices.collect(), usage: wire.usage.unwrap_or_default() })
    }
}
