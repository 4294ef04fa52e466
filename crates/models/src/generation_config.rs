//! The defaults of generation that come with a model folder.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::files::{GENERATION_CONFIG, read_json};
use crate::network::NetworkConfig;
use crate::{
    Beam, EarlyStopping, Error, GenerationConfig, Result, Sampling, SequenceBias, Strategy, TokenId,
};

/// New tokens where the folder sets no limit, as in transformers.
const NEW_TOKENS: usize = 20;

/// The `top_k` of transformers where the folder names none.
const TOP_K: usize = 50;

/// A key that is not implemented here, and which of its values change nothing.
type Unimplemented<'a> = (&'static str, &'a dyn Fn(&Value) -> bool);

/// A token id, or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a token id or a list of them")]
enum Ids {
    One(TokenId),
    Several(Vec<TokenId>),
}

/// A text, or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a string or a list of them")]
enum Texts {
    One(String),
    Several(Vec<String>),
}

impl GenerationConfig {
    /// Reads the defaults of a model folder: what transformers 5 does when `generate` is called without settings.
    ///
    /// They stand in `generation_config.json`, or, where there is no such file, under the same keys in `config.json`. A key that is missing
    /// or `null` has the default of transformers, which sometimes differs from that of this type: 20 new tokens, and a
    /// `top_k` of 50 where tokens are drawn. `max_new_tokens` goes before `max_length`. End tokens are the model's
    /// ([`NetworkConfig::eos_token_ids`]), so `stop_ids` stays empty.
    ///
    /// A key that transformers reads and that is not implemented here is refused, unless its value changes nothing in what is written.
    /// Keys that transformers does not read are ignored, and so are those that only make it faster or that name its outputs.
    ///
    /// # Errors
    /// When the file cannot be read, a value is of the wrong type or out of its range, or asks for something that is not implemented;
    /// the error names file and key.
    ///
    /// # Example
    /// ```
    /// use ruminate_models::{GenerationConfig, LlamaConfig, Sampling, Strategy};
    /// # let folder = tempfile::tempdir()?;
    /// let text = r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "max_length": 4096}"#;
    /// std::fs::write(folder.path().join("generation_config.json"), text)?;
    /// let llama = LlamaConfig::published("llama-3.1-8b").ok_or("unknown")?;
    /// let config = GenerationConfig::open(folder.path(), &llama)?;
    /// let sampling = Sampling { temperature: 0.6, top_k: Some(50), top_p: Some(0.9), ..Sampling::default() };
    /// assert_eq!(config.strategy, Strategy::Sample(sampling));
    /// assert_eq!(config.max_length, Some(4096));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(folder: &Path, model: &impl NetworkConfig) -> Result<Self> {
        let file = folder.join(GENERATION_CONFIG);
        let path = if file.exists() { file } else { folder.join("config.json") };
        let mut settings = Settings { json: read_json(&path)?, path, vocab_size: model.vocab_size() };
        let strategy = settings.strategy()?;
        settings.refuse_unimplemented(strategy, model)?;
        let (max_new_tokens, max_length) = settings.most_tokens(model.has_encoder())?;
        let config = Self {
            strategy,
            max_new_tokens,
            max_length,
            min_new_tokens: settings.least_tokens(model.has_encoder())?,
            repetition_penalty: settings.take("repetition_penalty")?.unwrap_or(1.0),
            no_repeat_ngram_size: settings.take("no_repeat_ngram_size")?.unwrap_or(0),
            stop_strings: match settings.take("stop_strings")? {
                Some(Texts::One(text)) => vec![text],
                Some(Texts::Several(texts)) => texts,
                None => vec![],
            },
            forbidden_ids: settings.suppressed()?,
            sequence_bias: settings.biases(model.eos_token_ids())?,
            forced_eos_token_id: settings.forced_end()?,
            samples_per_prompt: settings.sequences(strategy)?,
            ..Self::default()
        };
        config.validate(model.vocab_size()).map_err(|error| match error {
            Error::Invalid { reason, .. } => Error::GenerationConfig { path: settings.path, reason },
            other => other,
        })?;
        Ok(config)
    }
}

/// The keys of a file that have not been read yet.
struct Settings {
    json: Map<String, Value>,
    path: PathBuf,
    vocab_size: i64,
}

impl Settings {
    /// The value of a key; `null` stands for none, as in transformers.
    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>> {
        match self.json.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match T::deserialize(&value) {
                Ok(parsed) => Ok(Some(parsed)),
                Err(error) => Err(self.refuse(key, format!("is {value}: {error}"))),
            },
        }
    }

    fn refuse(&self, key: &str, reason: String) -> Error {
        Error::GenerationConfig { path: self.path.clone(), reason: format!("`{key}` {reason}") }
    }

    fn strategy(&mut self) -> Result<Strategy> {
        let num_beams = self.take("num_beams")?.unwrap_or(1);
        let beam = Beam {
            num_beams,
            length_penalty: self.take("length_penalty")?.unwrap_or(1.0),
            early_stopping: match self.take::<Value>("early_stopping")? {
                None | Some(Value::Bool(false)) => EarlyStopping::No,
                Some(Value::Bool(true)) => EarlyStopping::Yes,
                Some(Value::String(text)) if text == "never" => EarlyStopping::Never,
                Some(other) => {
                    let reason = format!("is {other}, but must be true, false or \"never\"");
                    return Err(self.refuse("early_stopping", reason));
                }
            },
        };
        let sampling = Sampling {
            temperature: self.take("temperature")?.unwrap_or(1.0),
            top_k: Some(self.take("top_k")?.unwrap_or(TOP_K)),
            // 1 and more keep all.
            top_p: self.take("top_p")?.filter(|&p: &f64| p < 1.0),
            min_p: self.take("min_p")?,
            typical_p: self.take("typical_p")?.filter(|&p: &f64| p < 1.0),
        };
        match (self.take("do_sample")?.unwrap_or(false), num_beams) {
            (_, 0) => Err(self.refuse("num_beams", "is 0, but must be at least 1".into())),
            (true, 1) => Ok(Strategy::Sample(sampling)),
            (false, 1) => Ok(Strategy::Greedy),
            (false, _) => Ok(Strategy::Beam(beam)),
            (true, _) => {
                let reason = format!("is {num_beams} beside `do_sample`; drawn beams are not implemented");
                Err(self.refuse("num_beams", reason))
            }
        }
    }

    /// Refuses keys that are not implemented, unless their values change nothing.
    fn refuse_unimplemented(&mut self, strategy: Strategy, model: &impl NetworkConfig) -> Result<()> {
        let (draws, searches) =
            (matches!(strategy, Strategy::Sample(_)), matches!(strategy, Strategy::Beam(_)));
        let is = |value: &Value, number: f64| value.as_f64() == Some(number);
        let is_false = |value: &Value| *value == false;
        let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        let is_no_share = |value: &Value| value.as_f64().is_some_and(|x| !(x > 0.0 && x < 1.0));
        let start = model.to_json().get("decoder_start_token_id").cloned();
        let keys: [Unimplemented<'_>; 20] = [
            ("guidance_scale", &|value| is(value, 1.0)),
            ("encoder_repetition_penalty", &|value| is(value, 1.0)),
            ("encoder_no_repeat_ngram_size", &|value| is(value, 0.0)),
            ("forced_bos_token_id", &|_| false),
            ("remove_invalid_values", &is_false),
            ("exponential_decay_length_penalty", &|_| false),
            ("begin_suppress_tokens", &is_empty),
            ("watermarking_config", &|_| false),
            ("token_healing", &is_false),
            ("max_time", &|_| false),
            ("constraints", &|_| false),
            ("force_words_ids", &|_| false),
            ("dola_layers", &|_| false),
            ("num_beam_groups", &|value| is(value, 0.0) || is(value, 1.0)),
            // Other caches hold the same numbers.
            ("cache_implementation", &|value| value != "quantized"),
            ("penalty_alpha", &|value| draws || searches || value.as_f64().is_some_and(|x| x <= 0.0)),
            ("renormalize_logits", &|value| !searches || is_false(value)),
            ("top_h", &|_| !draws),
            ("epsilon_cutoff", &|value| !draws || is_no_share(value)),
            ("eta_cutoff", &|value| !draws || is_no_share(value)),
        ];
        for (key, neutral) in keys {
            if let Some(value) = self.take::<Value>(key)?.filter(|value| !neutral(value)) {
                let reason = format!(
                    "is {value}, which changes what is written and is not implemented; remove the key to write without it"
                );
                return Err(self.refuse(key, reason));
            }
        }
        let other = self
            .take::<Value>("decoder_start_token_id")?
            .filter(|id| start.is_some_and(|start| *id != start));
        match other {
            Some(id) => {
                Err(self.refuse("decoder_start_token_id", format!("is {id}, which differs from config.json")))
            }
            None => Ok(()),
        }
    }

    /// `max_new_tokens` and `max_length`. Where an encoder reads the prompt, the length is that of the start token and what follows.
    fn most_tokens(&mut self, has_encoder: bool) -> Result<(usize, Option<usize>)> {
        let (new, length) = (self.take("max_new_tokens")?, self.take("max_length")?);
        match (new, length) {
            (Some(0), _) => Err(self.refuse("max_new_tokens", "is 0, but must be at least 1".into())),
            (Some(new), _) => Ok((new, None)),
            (None, None) => Ok((NEW_TOKENS, None)),
            (None, Some(length @ (0 | 1))) => {
                Err(self.refuse("max_length", format!("is {length}, which leaves no room for a new token")))
            }
            (None, Some(length)) if has_encoder => Ok((length - 1, None)),
            (None, Some(length)) => Ok((length, Some(length))),
        }
    }

    /// `min_new_tokens`, or what `min_length` leaves of it.
    fn least_tokens(&mut self, has_encoder: bool) -> Result<usize> {
        let (new, length) = (self.take("min_new_tokens")?, self.take("min_length")?.unwrap_or(0usize));
        match new {
            Some(new) => Ok(new),
            None if has_encoder || length == 0 => Ok(length.saturating_sub(1)),
            None => {
                let reason = format!(
                    "is {length} and counts the prompt, too, which is not implemented; write min_new_tokens instead"
                );
                Err(self.refuse("min_length", reason))
            }
        }
    }

    /// `sequence_bias`, and `bad_words_ids` as biases that forbid. An end token alone is no bad word.
    fn biases(&mut self, ends: &[TokenId]) -> Result<Vec<SequenceBias>> {
        let (biases, words) = ("sequence_bias", "bad_words_ids");
        let mut all: Vec<SequenceBias> = vec![];
        for (ids, bias) in self.take::<Vec<(Vec<TokenId>, f64)>>(biases)?.unwrap_or_default() {
            self.check_sequence(biases, &ids)?;
            all.push(SequenceBias { ids, bias });
        }
        for ids in self.take::<Vec<Vec<TokenId>>>(words)?.unwrap_or_default() {
            self.check_sequence(words, &ids)?;
            if !matches!(ids[..], [id] if ends.contains(&id)) {
                all.push(SequenceBias { ids, bias: f64::NEG_INFINITY });
            }
        }
        Ok(all)
    }

    fn check_sequence(&self, key: &str, ids: &[TokenId]) -> Result<()> {
        match ids.iter().find(|id| !(0..self.vocab_size).contains(*id)) {
            _ if ids.is_empty() => Err(self.refuse(key, "holds an empty sequence".into())),
            Some(id) => {
                let reason = format!("holds token {id}, outside the vocabulary of {}", self.vocab_size);
                Err(self.refuse(key, reason))
            }
            None => Ok(()),
        }
    }

    /// The ids of `suppress_tokens`. Those outside the vocabulary change nothing.
    fn suppressed(&mut self) -> Result<Vec<TokenId>> {
        let mut ids: Vec<TokenId> = self.take("suppress_tokens")?.unwrap_or_default();
        ids.retain(|id| (0..self.vocab_size).contains(id));
        Ok(ids)
    }

    fn forced_end(&mut self) -> Result<Option<TokenId>> {
        let key = "forced_eos_token_id";
        let ids = match self.take(key)? {
            None => return Ok(None),
            Some(Ids::One(id)) => vec![id],
            Some(Ids::Several(ids)) => ids,
        };
        self.check_sequence(key, &ids)?;
        match ids[..] {
            [id] => Ok(Some(id)),
            _ => Err(self.refuse(key, format!("is {ids:?}; only one id is implemented"))),
        }
    }

    fn sequences(&mut self, strategy: Strategy) -> Result<usize> {
        let key = "num_return_sequences";
        let count = self.take(key)?.unwrap_or(1);
        match strategy {
            _ if count == 0 => Err(self.refuse(key, "is 0, but must be at least 1".into())),
            Strategy::Greedy if count > 1 => {
                let reason =
                    format!("is {count}, but without `do_sample` and beams there is only one sequence");
                Err(self.refuse(key, reason))
            }
            Strategy::Beam(Beam { num_beams, .. }) if count > num_beams => {
                Err(self.refuse(key, format!("is {count}, more than the {num_beams} of num_beams")))
            }
            _ => Ok(count),
        }
    }
}
