//! Settings of Quark.

use ruminate_models::{GenerationConfig, Sampling, Strategy, TokenId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ControlConfig;
use crate::ppo::KlPenalty;
use crate::{Error, Result};

/// Lengths of what a model writes, counted over everything that the decoder holds: the start token and the control
/// tokens are included, so that more of them leave less room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lengths {
    /// Positions after which writing ends at the latest.
    pub max_length: usize,
    /// Positions before which the end token may not come.
    pub min_length: usize,
}

/// Room for 20 tokens behind the start token and one control token.
impl Default for Lengths {
    fn default() -> Self {
        Self { max_length: 22, min_length: 0 }
    }
}

/// How many tokens a model may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewTokens {
    /// At most.
    pub max: usize,
    /// At least.
    pub min: usize,
}

impl Lengths {
    /// How many new tokens follow a code of `code` control tokens.
    ///
    /// # Errors
    /// When the code leaves no room.
    pub fn new_tokens(self, code: usize) -> Result<NewTokens> {
        let given = 1 + code;
        if self.max_length <= given {
            let reason = format!("is {}, which {given} given tokens fill; it must be more", self.max_length);
            return Err(Error::config("sampling.lengths.max_length", reason));
        }
        Ok(NewTokens { max: self.max_length - given, min: self.min_length.saturating_sub(given) })
    }
}

/// How the data pool is fed with responses. By default, one from the unmodified distribution for each prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Temperature, top-k and top-p.
    pub sampling: Sampling,
    /// How long responses are.
    pub lengths: Lengths,
    /// Responses to each prompt in a round, each in a pass of its own over the shuffled prompts.
    pub passes: u64,
    /// Prompts that are written on at the same time.
    pub batch_size: usize,
    /// Leave out the last prompts of a pass where they do not fill a batch. With fewer prompts than a batch this would
    /// leave out all, which is an error.
    pub drop_last: bool,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            sampling: Sampling::default(),
            lengths: Lengths::default(),
            passes: 1,
            batch_size: 64,
            drop_last: false,
        }
    }
}

/// How responses from elsewhere come into the data pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExpertConfig {
    /// Rows that come in with each round, until there are no more; `None` takes all that are left.
    pub per_round: Option<usize>,
    /// All rows come in with the first round.
    pub all_at_first: bool,
    /// Take several rows with the same prompt; otherwise the first of each counts.
    pub repeats: bool,
}

impl Default for ExpertConfig {
    fn default() -> Self {
        Self { per_round: None, all_at_first: true, repeats: true }
    }
}

/// Settings of [`Quark`](super::Quark); only `control` must be given. Batch, interval, penalty and lengths are by default those of Quark's
/// published code (arXiv 2205.13636), everything else is off. Those of MaRio are in [`published_quark`](crate::mario::published_quark).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuarkConfig {
    /// Rewards and their control tokens.
    pub control: ControlConfig,
    /// Samples of the pool per update and process. Default: 128.
    pub batch_size: usize,
    /// Steps between two rounds of new samples. Default: 500.
    pub sample_interval: u64,
    /// How new samples are written.
    pub sampling: SamplingConfig,
    /// How expert data comes in.
    pub expert: ExpertConfig,
    /// The step before which nothing is sampled; expert data comes in all the same.
    pub start_sampling_at: u64,
    /// Whether step 0 samples, from the reference without control tokens.
    pub sample_at_start: bool,
    /// Only right answers come into the pool.
    pub only_correct: bool,
    /// Weight of the divergence from the reference. Default: 0.05. Its target is in nats per response.
    pub kl: KlPenalty,
    /// Weight of the entropy, which is a bonus: an adaptive one falls where there is more than its target, in nats of
    /// likelihood per response.
    pub entropy: KlPenalty,
    /// Entries of the vocabulary that the divergence is over; `None` takes all before the first control token. MaRio
    /// takes 32000, which leaves out T5's sentinels.
    pub kl_vocab: Option<usize>,
    /// Train on what the tokenizer makes of a response's text, as MaRio does, and not on the tokens that were drawn.
    pub retokenize: bool,
    /// Remove the blanks before punctuation and contractions from the text of responses. MaRio's code does not: `word 'x'` stays.
    pub clean_up: bool,
    /// Dropout in training. The models of MaRio are trained without.
    pub dropout: bool,
    /// How long validation's responses are.
    pub eval_lengths: Lengths,
    /// Prompts that validation writes on at the same time.
    pub eval_batch_size: usize,
    /// The reward whose mean chooses the best checkpoint; empty takes the mean over the rewards' means.
    pub best_by: String,
    /// Seed of all orders and samples.
    pub seed: u64,
}

impl Default for QuarkConfig {
    fn default() -> Self {
        Self {
            control: ControlConfig::default(),
            batch_size: 128,
            sample_interval: 500,
            sampling: SamplingConfig::default(),
            expert: ExpertConfig::default(),
            start_sampling_at: 0,
            sample_at_start: true,
            only_correct: false,
            kl: KlPenalty::Fixed { coef: 0.05 },
            entropy: KlPenalty::Fixed { coef: 0.0 },
            kl_vocab: None,
            retokenize: false,
            clean_up: false,
            dropout: false,
            eval_lengths: Lengths::default(),
            eval_batch_size: 64,
            best_by: String::new(),
            seed: 1,
        }
    }
}

/// Who writes the samples of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The reference, without control tokens.
    Reference,
    /// The policy, asked for the best of every reward.
    Policy,
}

impl QuarkConfig {
    /// Whether a round comes before the update of step `step`.
    #[must_use]
    pub fn round_begins(&self, step: u64) -> bool {
        step.is_multiple_of(self.sample_interval.max(1))
    }

    /// Who writes the samples of the round before step `step`; `None` where nobody does.
    #[must_use]
    pub fn samples_from(&self, step: u64) -> Option<Source> {
        match step {
            _ if !self.round_begins(step) || step < self.start_sampling_at => None,
            0 => self.sample_at_start.then_some(Source::Reference),
            _ => Some(Source::Policy),
        }
    }

    /// How responses behind a code are drawn, or written greedily.
    pub(super) fn generation(
        &self,
        code: &[TokenId],
        forbidden: Vec<TokenId>,
        greedy: bool,
    ) -> Result<GenerationConfig> {
        let lengths = if greedy { self.eval_lengths } else { self.sampling.lengths };
        let new = lengths.new_tokens(code.len())?;
        Ok(GenerationConfig {
            strategy: if greedy { Strategy::Greedy } else { Strategy::Sample(self.sampling.sampling) },
            max_new_tokens: new.max,
            min_new_tokens: new.min,
            prefix: code.to_vec(),
            forbidden_ids: forbidden,
            ..GenerationConfig::default()
        })
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        self.control.validate()?;
        for (key, value) in [
            ("batch_size", self.batch_size as u64),
            ("sample_interval", self.sample_interval),
            ("sampling.batch_size", self.sampling.batch_size as u64),
            ("sampling.passes", self.sampling.passes),
            ("eval_batch_size", self.eval_batch_size as u64),
        ] {
            if value == 0 {
                return Err(Error::config(key, "is 0, but must be at least 1"));
            }
        }
        if self.kl_vocab == Some(0) {
            return Err(Error::config(
                "kl_vocab",
                "is 0; leave it out for all tokens, or set the kl coefficient to 0",
            ));
        }
        let code = self.control.code_len();
        self.sampling.lengths.new_tokens(code)?;
        self.eval_lengths.new_tokens(code)?;
        self.sampling.sampling.validate()?;
        let named = |name: &String| self.control.rewards.iter().any(|reward| reward.name == *name);
        if !self.best_by.is_empty() && !named(&self.best_by) {
            return Err(Error::config("best_by", format!("is `{}`, which is no reward", self.best_by)));
        }
        self.kl.validate()?;
        self.entropy.validate().map_err(|error| match error {
            Error::Config { reason, .. } => Error::config("entropy", reason),
            other => other,
        })
    }
}
