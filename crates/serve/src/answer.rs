//! Answers in the JSON of OpenAI.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::engine::{FinishReason, Written};
use crate::request::{Form, Task, usage};
use crate::rows::Token;

/// Log-probabilities are at least this, because JSON has no infinity.
const LEAST: f32 = -9999.0;

/// The common part of the answers to a request.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    form: Form,
    id: String,
    created: u64,
    model: Arc<str>,
    logprobs: bool,
}

/// A piece of one answer, in the form of the request.
#[derive(Debug)]
pub(crate) struct Delta {
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) finish: Option<FinishReason>,
    /// True for the first of its answer.
    pub(crate) first: bool,
}

/// Gathers what is told of a request's answers.
#[derive(Debug)]
pub(crate) struct Progress {
    samples: usize,
    echo: bool,
    /// Text of each prompt, and its tokens where they have log-probabilities.
    prompts: Vec<(String, Vec<Token>)>,
    begun: Vec<bool>,
    /// Answers that have not ended.
    pub(crate) left: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
}

impl Progress {
    pub(crate) fn new(task: &Task) -> Self {
        Self {
            samples: task.settings.samples,
            echo: task.echo,
            prompts: task.prompts.iter().map(|prompt| (prompt.text.clone(), vec![])).collect(),
            begun: vec![false; task.rows()],
            left: task.rows(),
            prompt_tokens: task.prompt_tokens(),
            completion_tokens: 0,
        }
    }

    pub(crate) fn set_prompt_tokens(&mut self, prompt: usize, tokens: Vec<Token>) {
        self.prompts[prompt].1 = tokens;
    }

    /// The next piece of an answer, behind its prompt where that is to be repeated.
    pub(crate) fn take(&mut self, written: Written) -> Delta {
        let Written { prompt, sample, mut text, mut tokens, count, finish } = written;
        let index = prompt * self.samples + sample;
        let first = !std::mem::replace(&mut self.begun[index], true);
        if self.echo {
            let (prompt_text, prompt_tokens) = &self.prompts[prompt];
            let before = prompt_text.chars().count();
            tokens.iter_mut().for_each(|token| token.offset += before);
            if first {
                text.insert_str(0, prompt_text);
                tokens.splice(0..0, prompt_tokens.iter().cloned());
            }
        }
        self.completion_tokens += count;
        self.left -= usize::from(finish.is_some());
        Delta { index, text, tokens, finish, first }
    }

    pub(crate) fn usage(&self) -> Value {
        usage(self.prompt_tokens, self.completion_tokens)
    }
}

impl Frame {
    pub(crate) fn new(task: &Task, model: &Arc<str>, number: u64) -> Self {
        let prefix = match task.form {
            Form::Completion => "cmpl",
            Form::Chat => "chatcmpl",
        };
        Self {
            form: task.form,
            id: format!("{prefix}-{number:016x}"),
            created: unix_time(),
            model: Arc::clone(model),
            logprobs: task.settings.logprobs.is_some(),
        }
    }

    /// The whole answer.
    pub(crate) fn response(&self, answers: Vec<Delta>, usage: Value) -> Value {
        let choice = |answer: Delta| {
            let logprobs = self.logprobs(&answer.tokens);
            let finish = answer.finish.map(FinishReason::name);
            match self.form {
                Form::Completion => json!({
                    "index": answer.index, "text": answer.text, "logprobs": logprobs, "finish_reason": finish,
                }),
                Form::Chat => json!({
                    "index": answer.index,
                    "message": {"role": "assistant", "content": answer.text, "refusal": null},
                    "logprobs": logprobs, "finish_reason": finish,
                }),
            }
        };
        let object = match self.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion",
        };
        let mut response = self.head(object, answers.into_iter().map(choice).collect());
        response.insert("usage".into(), usage);
        response.into()
    }

    /// A piece of a stream.
    pub(crate) fn chunk(&self, delta: Delta) -> Value {
        let logprobs = if delta.tokens.is_empty() { Value::Null } else { self.logprobs(&delta.tokens) };
        let finish = delta.finish.map(FinishReason::name);
        let choice = match self.form {
            Form::Completion => json!({
                "index": delta.index, "text": delta.text, "logprobs": logprobs, "finish_reason": finish,
            }),
            Form::Chat => {
                let mut message = json!({"content": delta.text});
                if delta.first {
                    message["role"] = "assistant".into();
                }
                json!({
                    "index": delta.index, "delta": message, "logprobs": logprobs, "finish_reason": finish,
                })
            }
        };
        self.head(self.chunk_object(), vec![choice]).into()
    }

    /// The piece of a stream that tells the number of tokens.
    pub(crate) fn usage_chunk(&self, usage: Value) -> Value {
        let mut chunk = self.head(self.chunk_object(), vec![]);
        chunk.insert("usage".into(), usage);
        chunk.into()
    }

    fn chunk_object(&self) -> &'static str {
        match self.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion.chunk",
        }
    }

    fn head(&self, object: &str, choices: Vec<Value>) -> Map<String, Value> {
        let fields: [(&str, Value); 5] = [
            ("id", self.id.as_str().into()),
            ("object", object.into()),
            ("created", self.created.into()),
            ("model", (*self.model).into()),
            ("choices", choices.into()),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn logprobs(&self, tokens: &[Token]) -> Value {
        match self.form {
            _ if !self.logprobs => Value::Null,
            Form::Completion => completion_logprobs(tokens),
            Form::Chat => {
                json!({"content": tokens.iter().map(chat_logprobs).collect::<Vec<_>>(), "refusal": null})
            }
        }
    }
}

fn completion_logprobs(tokens: &[Token]) -> Value {
    let column = |of: &dyn Fn(&Token) -> Value| tokens.iter().map(of).collect::<Vec<_>>();
    json!({
        "tokens": column(&|token| token.text.as_str().into()),
        "token_logprobs": column(&|token| token.log_prob.map(finite).into()),
        "top_logprobs": column(&top_logprobs),
        "text_offset": column(&|token| token.offset.into()),
    })
}

/// The alternatives to a token, and itself. Of several tokens with the same text the most probable counts.
fn top_logprobs(token: &Token) -> Value {
    let Some(log_prob) = token.log_prob else { return Value::Null };
    let mut top: BTreeMap<&str, f32> = BTreeMap::new();
    let own = [(token.text.as_str(), log_prob)];
    for (text, log_prob) in token.top.iter().map(|(text, log_prob)| (text.as_str(), *log_prob)).chain(own) {
        let known = top.entry(text).or_insert(log_prob);
        *known = known.max(log_prob);
    }
    json!(top.into_iter().map(|(text, log_prob)| (text, finite(log_prob))).collect::<BTreeMap<_, _>>())
}

fn chat_logprobs(token: &Token) -> Value {
    let of = |text: &str, log_prob: f32| {
        // Half a character has no bytes that could be told from its text.
        let bytes = (!text.contains('\u{fffd}')).then(|| text.as_bytes().to_vec());
        json!({"token": text, "logprob": finite(log_prob), "bytes": bytes})
    };
    let mut entry = of(&token.text, token.log_prob.unwrap_or(LEAST));
    entry["top_logprobs"] = token.top.iter().map(|(text, log_prob)| of(text, *log_prob)).collect();
    entry
}

fn finite(log_prob: f32) -> f32 {
    log_prob.max(LEAST)
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
