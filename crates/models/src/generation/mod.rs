//! Generation: settings, results, and the seeds that make samples reproducible.

mod beam;
mod decode;
mod decoder;
mod interrupt;
mod listener;
mod portions;
mod processor;
mod replay;
mod rules;
mod stop_strings;
mod stream;
mod text_stream;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, TokenId};

pub(crate) use decode::generate;
pub(crate) use decoder::{Decoder, Prefill, Started, Steps};
pub use interrupt::Interrupt;
pub use listener::{Alternative, Listener, SequenceId, WrittenToken};
pub use processor::{History, Processor, filter_logits, forbid};
pub use text_stream::TextStream;

/// The smallest temperature with which logits stay finite.
const MIN_TEMPERATURE: f64 = 1e-6;

/// The most new tokens of one prompt, over all its rows. Memory ends before, but a count beyond has no size at all.
const MAX_TOKENS: usize = i32::MAX as usize;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Strategy {
    /// The most probable token.
    #[default]
    Greedy,
    /// A draw from the filtered distribution.
    Sample(Sampling),
    /// The most probable of several sequences that are extended side by side.
    Beam(Beam),
}

/// Settings of beam search; the rules are those of transformers 5.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Beam {
    /// Sequences that are extended side by side; the best `samples_per_prompt` of them are returned, best first.
    pub num_beams: usize,
    /// A finished sequence scores its sum of log-probabilities divided by its length to this power.
    pub length_penalty: f64,
    /// When a prompt's search ends.
    pub early_stopping: EarlyStopping,
}

impl Default for Beam {
    fn default() -> Self {
        Self { num_beams: 4, length_penalty: 1.0, early_stopping: EarlyStopping::No }
    }
}

/// When a beam search that has found `num_beams` finished sequences ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EarlyStopping {
    /// When the best running sequence, at its present length, scores no better than the worst finished one.
    #[default]
    No,
    /// At once.
    Yes,
    /// When the best running sequence could not score better at the largest length either.
    Never,
}

/// Settings of a draw. Filters apply in this order: temperature, top-k, top-p, min-p, typical-p.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by this, at least 1e-6; 1 leaves them as they are.
    pub temperature: f64,
    /// Keep the `k` largest logits, and all that are tied with the k-th; 0 keeps all, as leaving it out does.
    pub top_k: Option<usize>,
    /// Keep the most probable tokens until their probabilities pass `p`; the one that crosses is kept.
    pub top_p: Option<f64>,
    /// Keep tokens with at least this share of the largest probability.
    pub min_p: Option<f64>,
    /// Keep the tokens whose information is nearest to the entropy, until their probabilities pass this mass (arXiv 2202.00666).
    pub typical_p: Option<f64>,
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the first setting that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let Self { temperature, top_p, min_p, typical_p, .. } = *self;
        let refuse = |reason: String| Err(Error::invalid("generation", reason));
        // Below the limit, divided logits overflow float32.
        if !(temperature >= MIN_TEMPERATURE && temperature.is_finite()) {
            return refuse(format!(
                "temperature is {temperature}, but must be at least {MIN_TEMPERATURE}; for no noise ask for greedy"
            ));
        }
        for (name, p) in [("top_p", top_p), ("typical_p", typical_p)] {
            if p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
                return refuse(format!("{name} is {p:?}, but must be in (0, 1]"));
            }
        }
        if min_p.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return refuse(format!("min_p is {min_p:?}, but must be in [0, 1]"));
        }
        Ok(())
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None, min_p: None, typical_p: None }
    }
}

/// A bias on the logit of a token behind certain others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SequenceBias {
    /// The sequence; its last token gets the bias where the others were just written.
    pub ids: Vec<TokenId>,
    /// Added to the logit; `-inf` forbids the token.
    pub bias: f64,
}

/// Settings of one call of [`Generate::generate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationConfig {
    /// How the next token is chosen.
    pub strategy: Strategy,
    /// Tokens after which a row stops at the latest.
    pub max_new_tokens: usize,
    /// Tokens of a row at most, those before the first new one included: the prompt (where an encoder reads it, the start token instead)
    /// and `prefix`. The lower of this and `max_new_tokens` ends a row; a prompt that leaves no room is an error. Each row has its own
    /// limit, where transformers counts the padding of its batch, too.
    pub max_length: Option<usize>,
    /// Tokens before which no stop token may come.
    pub min_new_tokens: usize,
    /// Tokens that every sequence begins with, behind the start token or the prompt. They do not count as new.
    pub prefix: Vec<TokenId>,
    /// Logits of tokens that have occurred are divided (if positive) or multiplied by this; 1 changes nothing.
    pub repetition_penalty: f64,
    /// No sequence of this many tokens occurs twice; 0 allows all.
    pub no_repeat_ngram_size: usize,
    /// Tokens that end a row; empty stands for all end tokens of the model.
    pub stop_ids: Vec<TokenId>,
    /// Strings that end a row once its text, without special tokens, holds one; the model needs its tokenizer for them
    /// ([`LanguageModel::set_tokenizer`](crate::LanguageModel::set_tokenizer)). The row's last id is the token that completed the
    /// string, whose text may go on behind it. One that is complete before `min_new_tokens` does not count. Not with beam search.
    pub stop_strings: Vec<String>,
    /// Tokens that are never chosen, e.g. the padding token.
    pub forbidden_ids: Vec<TokenId>,
    /// Biases on the last token of sequences whose other tokens were just written.
    pub sequence_bias: Vec<SequenceBias>,
    /// The token that is written at the limit of `max_new_tokens` or `max_length`, usually an end token.
    pub forced_eos_token_id: Option<TokenId>,
    /// Sequences per prompt. The prompt is read once for all of them.
    pub samples_per_prompt: usize,
    /// Most bytes of keys, values and logits at a time; prompts, or samples of one, that do not fit wait for others to end. `None` takes a
    /// quarter of the machine's memory, or 8 GiB on a GPU.
    pub max_memory: Option<u64>,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            strategy: Strategy::Greedy,
            max_new_tokens: 32,
            max_length: None,
            min_new_tokens: 0,
            prefix: vec![],
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            stop_ids: vec![],
            stop_strings: vec![],
            forbidden_ids: vec![],
            sequence_bias: vec![],
            forced_eos_token_id: None,
            samples_per_prompt: 1,
            max_memory: None,
        }
    }
}

impl GenerationConfig {
    /// Checks the settings against a vocabulary.
    ///
    /// # Errors
    /// When a value is out of its range; the error names it.
    pub fn validate(&self, vocab_size: i64) -> Result<()> {
        let refuse = |reason: String| Err(Error::invalid("generation", reason));
        if let Strategy::Sample(sampling) = self.strategy {
            sampling.validate()?;
        }
        if let Strategy::Beam(Beam { num_beams, length_penalty, .. }) = self.strategy {
            if num_beams < self.samples_per_prompt.max(1) {
                let wanted = self.samples_per_prompt;
                return refuse(format!("{num_beams} beams cannot return {wanted} sequences per prompt"));
            }
            if !length_penalty.is_finite() {
                return refuse(format!("length_penalty is {length_penalty}, but must be a number"));
            }
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return refuse(format!("repetition_penalty is {}, but must be above 0", self.repetition_penalty));
        }
        if self.max_new_tokens == 0 || self.samples_per_prompt == 0 {
            return refuse("max_new_tokens and samples_per_prompt must be at least 1".into());
        }
        let beams = match self.strategy {
            Strategy::Beam(Beam { num_beams, .. }) => num_beams,
            _ => 1,
        };
        let rows = self.samples_per_prompt.max(beams);
        if self.max_new_tokens.checked_mul(rows).is_none_or(|tokens| tokens > MAX_TOKENS) {
            return refuse(format!(
                "{rows} rows per prompt (samples_per_prompt, num_beams) of max_new_tokens {} are more than the \
                 {MAX_TOKENS} tokens that can be counted",
                self.max_new_tokens
            ));
        }
        if self.stop_strings.iter().any(String::is_empty) {
            return refuse("a stop string is empty, which every text holds".into());
        }
        if !self.stop_strings.is_empty() && matches!(self.strategy, Strategy::Beam(_)) {
            return refuse("stop_strings do not go with beam search; use stop_ids".into());
        }
        if self.sequence_bias.iter().any(|sequence| sequence.bias.is_nan() || sequence.bias == f64::INFINITY)
        {
            return refuse(
                "a bias of sequence_bias is NaN or infinite; -inf forbids, any finite number is a bias"
                    .into(),
            );
        }
        if let Some(id) = self.forced_eos_token_id.filter(|id| self.forbidden_ids.contains(id)) {
            return refuse(format!("forced_eos_token_id {id} is one of forbidden_ids"));
        }
        let ids = self.stop_ids.iter().chain(&self.forbidden_ids).chain(&self.prefix);
        let ids = ids.chain(&self.forced_eos_token_id).chain(self.sequence_bias.iter().flat_map(|s| &s.ids));
        if let Some(id) = ids.copied().find(|&id| id < 0 || id >= vocab_size) {
            return refuse(format!("token {id} is outside the vocabulary of {vocab_size}"));
        }
        Ok(())
    }
}

/// Why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It produced a stop token, which is its last id.
    Stop,
    /// Its last id completed a stop string.
    StopString,
    /// It reached `max_new_tokens` or `max_length`.
    Length,
    /// A [`Listener`] ended it.
    Cancelled,
}

/// One generated sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// New token ids, with the stop token or the token that completed a stop string; no prompt, no padding.
    pub ids: Vec<TokenId>,
    /// Log-probability of each id under the raw model: full softmax, temperature 1.
    pub log_probs: Vec<f32>,
    /// Log-probability of each id under the distribution that it was drawn from, after all filters. Where
    /// nothing is drawn, it equals `log_probs`.
    pub sampling_log_probs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
    /// The score by which beam search ranked it.
    pub score: Option<f64>,
}

/// A model that writes.
pub trait Generate {
    /// Continues every prompt. The result has one list per prompt with `samples_per_prompt` sequences.
    ///
    /// `seeds` holds one seed per prompt when sampling (see [`derive_seed`]) and is ignored otherwise. A prompt with
    /// the same seed gives the same sequences, whatever else is in the batch. Dropout is off, in training mode too.
    ///
    /// However many prompts and samples there are, no more rows are written at a time than fit into
    /// [`max_memory`](GenerationConfig::max_memory).
    ///
    /// # Errors
    /// When settings or seeds do not fit, forbidden tokens leave no other, a prompt is empty or leaves no room within
    /// [`max_length`](GenerationConfig::max_length), or an [`Interrupt`] is raised.
    fn generate(
        &self,
        prompts: &[Vec<TokenId>],
        config: &GenerationConfig,
        seeds: &[u64],
    ) -> Result<Vec<Vec<Generated>>>;
}

/// A seed for one thing among many: mixes a run's seed with, say, the step and the index of a question.
///
/// ```
/// use ruminate_models::derive_seed;
/// assert_ne!(derive_seed(1, &[0, 1]), derive_seed(1, &[1, 0]));
/// ```
#[must_use]
pub fn derive_seed(seed: u64, parts: &[u64]) -> u64 {
    // SplitMix64's finalizer after each part: every input bit reaches every output bit.
    parts.iter().fold(mix(seed), |state, &part| mix(state ^ part.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_the_same_in_every_version() {
        // The first output of SplitMix64 from 0; runs are reproduced from their seeds.
        assert_eq!(derive_seed(0, &[]), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn seeds_of_different_things_differ() {
        let mut seeds = vec![derive_seed(0, &[]), derive_seed(0, &[0, 0]), derive_seed(0, &[0, 0, 0])];
        for run in 0..8 {
            for step in 0..32 {
                seeds.extend((0..32).map(|question| derive_seed(run, &[step, question, 7])));
            }
        }
        let count = seeds.len();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), count);
    }
}
