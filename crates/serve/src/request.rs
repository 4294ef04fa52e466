//! What clients ask for, checked and in token ids.

use ruminate_datasets::chat::{ChatTemplate, Message};
use ruminate_models::{GenerationConfig, Sampling, Strategy, TokenId, Tokenizer, derive_seed};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::ServeConfig;
use crate::error::ApiError;
use crate::fields::Fields;

/// Tokens of a completion whose request sets no limit, as OpenAI has it.
const COMPLETION_TOKENS: usize = 16;
/// The most alternatives to each token.
const MAX_LOGPROBS: usize = 20;
/// The most stop strings of a request.
const MAX_STOPS: usize = 16;

/// The two forms of requests and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Completion,
    Chat,
}

/// How a request's answers are written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) strategy: Strategy,
    /// Answers to each prompt.
    pub(crate) samples: usize,
    /// Tokens of each answer at most; 0 writes none.
    pub(crate) max_tokens: usize,
    pub(crate) stops: Vec<String>,
    /// How many alternatives each token comes with; `None` gives no log-probabilities.
    pub(crate) logprobs: Option<usize>,
    /// Give the prompts log-probabilities, too.
    pub(crate) score_prompts: bool,
    /// Give the token that ends an answer one. Evaluation harnesses take it for granted that one token was written.
    pub(crate) score_end: bool,
    /// Send text as it is written.
    pub(crate) stream: bool,
}

/// A prompt as text and in token ids.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    pub(crate) text: String,
    pub(crate) ids: Vec<TokenId>,
}

/// A request that can be carried out.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) form: Form,
    pub(crate) prompts: Vec<Prompt>,
    /// One for each prompt.
    pub(crate) seeds: Vec<u64>,
    pub(crate) settings: Settings,
    /// Repeat the text of the prompts before their answers.
    pub(crate) echo: bool,
    /// End a stream with the number of tokens.
    pub(crate) include_usage: bool,
}

/// The limits and names that requests are checked against.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    /// The defaults of the model's folder.
    pub(crate) defaults: GenerationConfig,
    pub(crate) vocab_size: i64,
    pub(crate) has_encoder: bool,
    pub(crate) context_length: usize,
    pub(crate) config: ServeConfig,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PromptField {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<TokenId>),
    IdLists(Vec<Vec<TokenId>>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum StopField {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    Text { text: String },
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct StreamOptions {
    include_usage: bool,
    /// Pads pieces against eavesdropping on their lengths; nothing is padded here.
    include_obfuscation: bool,
}

impl Task {
    /// Reads a request for completions. `seed` is drawn for requests that name none.
    pub(crate) fn completion(served: &Served, body: &[u8], seed: u64) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        served.check_model(&mut fields)?;
        let prompt = fields.take("prompt", "a string, token ids, or a list of either")?;
        let prompts = match prompt.ok_or_else(|| ApiError::field("prompt", "is missing"))? {
            PromptField::Text(text) => vec![served.encode(text)?],
            PromptField::Texts(texts) => {
                texts.into_iter().map(|text| served.encode(text)).collect::<Result<_, _>>()?
            }
            // An empty list fits every form.
            PromptField::Ids(ids) => vec![served.decode(ids)?],
            PromptField::IdLists(lists) => {
                lists.into_iter().map(|ids| served.decode(ids)).collect::<Result<_, _>>()?
            }
        };
        let expected = format!("an integer from 0 to {MAX_LOGPROBS}");
        let logprobs: Option<usize> = fields.take("logprobs", &expected)?;
        let echo = fields.take("echo", "true or false")?.unwrap_or(false);
        if echo && logprobs.is_some() && served.has_encoder {
            let reason = "goes with `logprobs` only where a model predicts its prompt; this one reads it in an encoder";
            return Err(ApiError::field("echo", reason));
        }
        let max_tokens = fields.take("max_tokens", "a whole number")?.unwrap_or(COMPLETION_TOKENS);
        served.check_length(&prompts, max_tokens, "max_tokens")?;
        let mut settings = served.settings(&mut fields, logprobs)?;
        settings.max_tokens = max_tokens;
        settings.score_prompts = echo && logprobs.is_some();
        settings.score_end = true;
        Self { form: Form::Completion, prompts, seeds: vec![], settings, echo, include_usage: false }
            .finish(served, fields, seed)
    }

    /// Reads a request for an answer in a dialogue.
    pub(crate) fn chat(served: &Served, body: &[u8], seed: u64) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        served.check_model(&mut fields)?;
        let messages: Vec<Map<String, Value>> = fields
            .take("messages", "a list of objects with `role` and `content`")?
            .ok_or_else(|| ApiError::field("messages", "is missing"))?;
        let messages = messages.into_iter().enumerate().map(message).collect::<Result<Vec<_>, _>>()?;
        let template = served.template.as_ref().ok_or_else(|| {
            let reason = "needs a chat template, and the model's folder has none; the server can be given one by name \
                          (chat_template), or ask for /v1/completions";
            ApiError::field("messages", reason)
        })?;
        if messages.is_empty() {
            return Err(ApiError::field("messages", "is empty"));
        }
        let text = template.prompt(&messages).map_err(|error| {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            ApiError::field("messages", format!("does not fit the chat template: {error}{cause}"))
        })?;
        let ids = match template {
            ChatTemplate::Jinja(_) => served.tokenizer.encode_plain(&text),
            ChatTemplate::Named(_) => served.tokenizer.encode_with_offsets(&text).map(|encoded| encoded.ids),
        };
        let ids = ids.map_err(|error| ApiError::internal(&error))?;
        let prompts = vec![Prompt { text, ids }];
        let room = served.context_length.saturating_sub(prompts[0].ids.len());
        let limits = ["max_completion_tokens", "max_tokens"];
        let [newer, older] = limits.map(|name| fields.take::<usize>(name, "a whole number"));
        let (newer, older) = (newer?, older?);
        if newer.is_some() && older.is_some() && newer != older {
            return Err(ApiError::field(limits[0], "contradicts `max_tokens`; leave out one of them"));
        }
        let name = if newer.is_some() { limits[0] } else { limits[1] };
        let max_tokens = newer.or(older).unwrap_or(served.config.default_max_tokens.min(room).max(1));
        if max_tokens == 0 {
            return Err(ApiError::field(name, "is 0, but must be at least 1"));
        }
        served.check_length(&prompts, max_tokens, name)?;
        let wanted = fields.take("logprobs", "true or false")?.unwrap_or(false);
        let top: Option<usize> = fields.take("top_logprobs", "a whole number")?;
        if top.is_some() && !wanted {
            return Err(ApiError::field("top_logprobs", "needs `logprobs` to be true"));
        }
        let mut settings = served.settings(&mut fields, wanted.then(|| top.unwrap_or(0)))?;
        settings.max_tokens = max_tokens;
        settings.stops.extend(template.stop_strings().iter().map(|stop| (*stop).to_owned()));
        Self { form: Form::Chat, prompts, seeds: vec![], settings, echo: false, include_usage: false }
            .finish(served, fields, seed)
    }

    /// Reads what both forms have, and refuses what is left.
    fn finish(self, served: &Served, mut fields: Fields, drawn: u64) -> Result<Self, ApiError> {
        let Self { prompts, mut settings, .. } = self;
        settings.stream = fields.take("stream", "true or false")?.unwrap_or(false);
        let expected = "an object with `include_usage`";
        let options: Option<StreamOptions> = fields.take("stream_options", expected)?;
        if options.is_some() && !settings.stream {
            return Err(ApiError::field("stream_options", "needs `stream` to be true"));
        }
        let seed = fields.take::<i64>("seed", "an integer")?.map_or(drawn, i64::cast_unsigned);
        fields.finish()?;
        let rows = prompts.len() * settings.samples;
        if rows > served.config.max_rows {
            let reason = format!(
                "asks for {rows} answers at once (prompts times `n`), but there may be {}",
                served.config.max_rows
            );
            return Err(ApiError::field("n", reason));
        }
        // Equal prompts of a request are to have different answers.
        let seed_of = |i| if i == 0 { seed } else { derive_seed(seed, &[i as u64]) };
        let seeds = (0..prompts.len()).map(seed_of).collect();
        let include_usage = options.is_some_and(|options| options.include_usage);
        Ok(Self { prompts, seeds, settings, include_usage, ..self })
    }

    /// Tokens of all prompts.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.ids.len()).sum()
    }

    /// Answers to all prompts.
    pub(crate) fn rows(&self) -> usize {
        self.prompts.len() * self.settings.samples
    }
}

/// Reads a message of a dialogue.
fn message((i, fields): (usize, Map<String, Value>)) -> Result<Message, ApiError> {
    let refuse = |reason: &str| ApiError::field("messages", format!("[{i}]: {reason}"));
    let mut fields = Fields::from(fields);
    let wrong = |_| refuse("`role` and `content` must be texts, or `content` a list of parts of type `text`");
    let role: Option<String> = fields.take("role", "").map_err(wrong)?;
    let content: Option<Content> = fields.take("content", "").map_err(wrong)?;
    let (Some(role), Some(content)) = (role, content) else {
        return Err(refuse("`role` or `content` is missing"));
    };
    // The name of one of several users, for which templates have no place, and what answers of OpenAI's have beside their text.
    for name in ["name", "refusal", "annotations"] {
        fields.ignore(name);
    }
    if let Some(name) = fields.unread() {
        return Err(refuse(&format!("`{name}` is not known to this server")));
    }
    let content = match content {
        Content::Text(text) => text,
        Content::Parts(parts) => parts.into_iter().map(|Part::Text { text }| text).collect(),
    };
    // The newer name of the system's role.
    let role = if role == "developer" { "system".to_owned() } else { role };
    Ok(Message { role, content })
}

impl Served {
    fn check_model(&self, fields: &mut Fields) -> Result<(), ApiError> {
        match fields.take::<String>("model", "a string")? {
            Some(asked) if asked != self.name => Err(ApiError::unknown_model(&asked, &self.name)),
            _ => Ok(()),
        }
    }

    fn encode(&self, text: String) -> Result<Prompt, ApiError> {
        let ids = self.tokenizer.encode(&text).map_err(|error| ApiError::internal(&error))?;
        Ok(Prompt { text, ids })
    }

    fn decode(&self, ids: Vec<TokenId>) -> Result<Prompt, ApiError> {
        if let Some(id) = ids.iter().find(|id| !(0..self.vocab_size).contains(*id)) {
            let reason = format!("holds token {id}, outside the vocabulary of {}", self.vocab_size);
            return Err(ApiError::field("prompt", reason));
        }
        let text = self.tokenizer.decode(&ids, true).map_err(|error| ApiError::internal(&error))?;
        Ok(Prompt { text, ids })
    }

    fn check_length(&self, prompts: &[Prompt], max_tokens: usize, name: &str) -> Result<(), ApiError> {
        if prompts.is_empty() {
            return Err(ApiError::field("prompt", "is an empty list"));
        }
        for (i, prompt) in prompts.iter().enumerate() {
            let (tokens, most) = (prompt.ids.len(), self.context_length);
            if tokens == 0 {
                let reason = format!("has no token (prompt {i}); this model needs one to begin with");
                return Err(ApiError::field("prompt", reason));
            }
            if tokens.saturating_add(max_tokens) > most {
                let message = format!(
                    "this model's context length is {most} tokens, but prompt {i} has {tokens} and `{name}` asks for \
                     {max_tokens} more"
                );
                return Err(ApiError::too_long(name, message));
            }
        }
        Ok(())
    }

    /// Reads how answers are written. What a request leaves out is as the model's folder says.
    fn settings(&self, fields: &mut Fields, logprobs: Option<usize>) -> Result<Settings, ApiError> {
        if let Some(count) = logprobs.filter(|&count| count > MAX_LOGPROBS) {
            let reason = format!("asks for {count} alternatives, but there may be {MAX_LOGPROBS}");
            return Err(ApiError::field("logprobs", reason));
        }
        let samples = fields.take("n", "a whole number")?.unwrap_or(1);
        if samples == 0 || samples > self.config.max_n {
            let reason = format!("is {samples}, but must be from 1 to {}", self.config.max_n);
            return Err(ApiError::field("n", reason));
        }
        let stops = match fields.take("stop", "a string or a list of strings")? {
            None => vec![],
            Some(StopField::One(stop)) => vec![stop],
            Some(StopField::Several(stops)) => stops,
        };
        if stops.len() > MAX_STOPS || stops.iter().any(String::is_empty) {
            let reason = format!("must hold {MAX_STOPS} strings at most, and no empty one");
            return Err(ApiError::field("stop", reason));
        }
        let stops = stops.into_iter().chain(self.defaults.stop_strings.iter().cloned()).collect();
        let strategy = self.strategy(fields)?;
        Ok(Settings {
            strategy,
            samples,
            max_tokens: 0,
            stops,
            logprobs,
            score_prompts: false,
            score_end: false,
            stream: false,
        })
    }

    fn strategy(&self, fields: &mut Fields) -> Result<Strategy, ApiError> {
        let number = "a number";
        let temperature: Option<f64> = fields.take("temperature", number)?;
        let top_p: Option<f64> = fields.take("top_p", number)?;
        let min_p: Option<f64> = fields.take("min_p", number)?;
        let top_k: Option<i64> = fields.take("top_k", "an integer")?;
        if let Some(k) = top_k.filter(|&k| k < -1) {
            return Err(ApiError::field(
                "top_k",
                format!("is {k}, but must be at least 1, or 0 for all tokens"),
            ));
        }
        let draws = match self.defaults.strategy {
            Strategy::Sample(sampling) => Some(sampling),
            _ => None,
        };
        let asked = temperature.is_some() || top_p.is_some() || min_p.is_some() || top_k.is_some();
        if temperature == Some(0.0) || (draws.is_none() && !asked) {
            return Ok(Strategy::Greedy);
        }
        let base = draws.unwrap_or_default();
        let sampling = Sampling {
            temperature: temperature.unwrap_or(base.temperature),
            top_p: top_p.or(base.top_p),
            min_p: min_p.or(base.min_p),
            // -1 stands for all tokens in vLLM.
            top_k: top_k.map_or(base.top_k, |k| usize::try_from(k).ok().filter(|&k| k > 0)),
            ..base
        };
        sampling.validate().map_err(|error| {
            let name =
                ["temperature", "top_p", "min_p"].into_iter().find(|name| error.to_string().contains(name));
            ApiError::field(name.unwrap_or("temperature"), format!("is out of its range: {error}"))
        })?;
        Ok(Strategy::Sample(sampling))
    }
}

/// The value of a `usage` field.
pub(crate) fn usage(prompt: usize, completion: usize) -> Value {
    serde_json::json!({
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
    })
}
