//! What is asked, and what is answered.

use std::ops::AddAssign;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{Endpoint, TokenLimit};

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(expecting = "an object with role and content")]
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

    /// The body as a server wants it: the limit of tokens under the name that it knows, and for plain completions the messages' texts as the
    /// prompt.
    pub(super) fn wire(&self, limit: TokenLimit, endpoint: Endpoint) -> WireBody<'_> {
        let mut sampling = self.sampling.clone();
        if limit != TokenLimit::MaxTokens
            && let Some(tokens) = sampling.max_tokens.take()
            && limit == TokenLimit::MaxCompletionTokens
        {
            sampling.other.entry(TokenLimit::COMPLETION).or_insert(tokens.into());
        }
        let (messages, prompt) = match endpoint {
            Endpoint::Chat => (Some(self.messages.as_slice()), None),
            Endpoint::Completions => {
                let texts = self.messages.iter().map(|message| message.content.as_str());
                (None, Some(texts.collect::<Vec<_>>().concat()))
            }
        };
        WireBody { model: &self.model, messages, prompt, sampling }
    }
}

/// See [`Body::wire`].
#[derive(Debug, Serialize)]
pub(super) struct WireBody<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<&'a [Message]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    #[serde(flatten)]
    sampling: Sampling,
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

impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let choice = |(index, choice): (usize, &Completion)| {
            serde_json::json!({
                "index": index,
                "message": {"role": "assistant", "content": choice.content},
                "finish_reason": choice.finish_reason,
            })
        };
        let choices: Vec<Value> = self.choices.iter().enumerate().map(choice).collect();
        serde_json::json!({"choices": choices, "usage": self.usage}).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Reply { choices, missing, usage } = Reply::deserialize(deserializer)?;
        match missing {
            Some(reason) if choices.is_empty() => Err(D::Error::custom(reason)),
            _ => Ok(Self { choices, usage }),
        }
    }
}

/// A server's reply. Nothing is taken from it but texts, why they ended, and counts of tokens; whatever else is in it, or is not in the
/// form that one expects, throws no text away.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// The completions that have content, in the order of their `index`.
    pub(super) choices: Vec<Completion>,
    /// Why some have none.
    pub(super) missing: Option<String>,
    pub(super) usage: Usage,
}

impl<'de> Deserialize<'de> for Reply {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(expecting = "an object with choices")]
        struct Wire {
            choices: Vec<WireChoice>,
            #[serde(default)]
            usage: Value,
        }
        #[derive(Deserialize)]
        #[serde(expecting = "an object with message")]
        struct WireChoice {
            #[serde(default)]
            index: Value,
            message: Map<String, Value>,
            #[serde(default)]
            finish_reason: Value,
        }
        let Wire { choices, usage } = Wire::deserialize(deserializer)?;
        if choices.is_empty() {
            return Err(D::Error::custom("`choices` is empty"));
        }
        let count = |name: &str| usage.get(name).and_then(Value::as_f64).unwrap_or_default() as u64;
        let usage =
            Usage { prompt_tokens: count("prompt_tokens"), completion_tokens: count("completion_tokens") };
        let mut reply = Self { usage, ..Self::default() };
        let mut found = vec![];
        for (place, choice) in choices.into_iter().enumerate() {
            let finish_reason = choice.finish_reason.as_str().unwrap_or_default().to_owned();
            match content(&choice.message, &finish_reason) {
                Ok(content) => {
                    let index = choice.index.as_f64().unwrap_or(place as f64);
                    found.push((index, Completion { content, finish_reason }));
                }
                Err(reason) => reply.missing = Some(reason),
            }
        }
        found.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        reply.choices = found.into_iter().map(|(_, completion)| completion).collect();
        Ok(reply)
    }
}

/// A reply of plain completions in the form of chat completions: the text of each choice as its message.
pub(super) fn as_chat(mut reply: Value) -> Value {
    for choice in reply.get_mut("choices").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(fields) = choice.as_object_mut()
            && let Some(text) = fields.remove("text")
        {
            fields.entry("message").or_insert_with(|| serde_json::json!({ "content": text }));
        }
    }
    reply
}

/// The text of a message, or why it has none.
fn content(message: &Map<String, Value>, finish_reason: &str) -> Result<String, String> {
    let text = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        // Parts, of which some may be thoughts or calls of tools.
        Some(Value::Array(parts)) => {
            let text = |part: &'_ Value| match part {
                Value::String(text) => Some(text.clone()),
                _ => part.get("text").and_then(Value::as_str).map(str::to_owned),
            };
            parts.iter().filter_map(text).collect()
        }
        _ => String::new(),
    };
    if !text.trim().is_empty() {
        return Ok(text);
    }
    if let Some(refusal) = message.get("refusal").and_then(Value::as_str).filter(|text| !text.is_empty()) {
        return Err(format!("the model refuses to answer: {refusal}"));
    }
    Err(match finish_reason {
        "length" => {
            "an answer has no content: the model was cut off before it began (finish_reason `length`); \
                     allow it more tokens"
                .into()
        }
        "" => "an answer has no content".into(),
        reason => format!("an answer has no content (finish_reason `{reason}`)"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reply(value: Value) -> Reply {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn bookkeeping_throws_no_text_away() {
        let strange =
            [json!(null), json!(5.0), json!("many"), json!(-3), json!([1]), json!({"a": 1}), json!(true)];
        for odd in strange {
            let got = reply(json!({
                "id": odd, "created": odd, "object": odd, "system_fingerprint": odd,
                "choices": [{"index": odd, "finish_reason": odd, "logprobs": odd,
                             "message": {"role": odd, "content": "a", "refusal": odd, "tool_calls": odd}}],
                "usage": {"prompt_tokens": odd, "completion_tokens": odd, "details": odd},
            }));
            assert_eq!((got.choices[0].content.as_str(), got.missing), ("a", None), "{odd}");
            let got = reply(json!({"choices": [{"message": {"content": "a"}}], "usage": odd}));
            assert_eq!(got.choices.len(), 1, "{odd}");
        }
        let usage = json!({"prompt_tokens": 7.0, "completion_tokens": null});
        let got = reply(json!({"choices": [{"message": {"content": "a"}}], "usage": usage}));
        assert_eq!(got.usage, Usage { prompt_tokens: 7, completion_tokens: 0 });
    }

    #[test]
    fn choices_stand_in_the_order_of_their_index() {
        let choice = |index: Value, text: &str| json!({"index": index, "message": {"content": text}});
        let got = reply(
            json!({"choices": [choice(json!(2), "c"), choice(json!(0), "a"), choice(json!(1.0), "b")]}),
        );
        let texts: Vec<&str> = got.choices.iter().map(|choice| choice.content.as_str()).collect();
        assert_eq!(texts, ["a", "b", "c"]);
    }

    #[test]
    fn an_answer_without_content_is_none() {
        for (message, finish, reason) in [
            (json!({"content": null}), "length", "cut off before it began"),
            (json!({"content": ""}), "length", "allow it more tokens"),
            (json!({"content": " \n"}), "stop", "no content (finish_reason `stop`)"),
            (json!({}), "content_filter", "content_filter"),
            (json!({"content": null, "refusal": "I cannot."}), "stop", "refuses to answer: I cannot."),
            (json!({"content": [{"type": "thinking", "thinking": [1]}]}), "tool_calls", "tool_calls"),
        ] {
            let whole = json!({"choices": [{"message": message, "finish_reason": finish}]});
            let got = reply(whole.clone());
            assert!(got.choices.is_empty() && got.missing.unwrap().contains(reason), "{whole}");
            let error = serde_json::from_value::<Answer>(whole).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let parts = json!([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, "b"]);
        let some = json!({"choices": [{"message": {"content": null}}, {"message": {"content": parts}}]});
        let answer: Answer = serde_json::from_value(some).unwrap();
        assert_eq!((answer.text(), answer.choices.len()), ("ab", 1));
    }
}
