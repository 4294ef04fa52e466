//! Settings of PPO.

use ruminate_datasets::Compat;
use ruminate_models::{GenerationConfig, Sampling, Strategy, TokenId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Estimation, KlPenalty};
use crate::{Error, Result};

/// How responses are drawn in training. By default, from the unmodified distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// Temperature, top-k and top-p. Losses, penalties and ratios are those of the unmodified distribution all the same.
    pub sampling: Sampling,
    /// Tokens after which a response ends at the latest. Default: 53, as in TRL.
    pub max_new_tokens: usize,
    /// Tokens before which a response may not end.
    pub min_new_tokens: usize,
    /// Never draw the padding token.
    pub forbid_pad: bool,
    /// Show responses, to text rewards too, without the blanks before punctuation and contractions, as Crystal's code decodes.
    /// Training sees token ids either way.
    pub clean_up: bool,
    /// Prompts that are written on at the same time, and rows that are scored at the same time.
    pub batch_size: usize,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            sampling: Sampling::default(),
            max_new_tokens: 53,
            min_new_tokens: 0,
            forbid_pad: true,
            clean_up: false,
            batch_size: 64,
        }
    }
}

impl RolloutConfig {
    pub(super) fn generation(&self, pad: Option<TokenId>, greedy: bool) -> GenerationConfig {
        GenerationConfig {
            strategy: if greedy { Strategy::Greedy } else { Strategy::Sample(self.sampling) },
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
            forbidden_ids: pad.filter(|_| self.forbid_pad).into_iter().collect(),
            ..GenerationConfig::default()
        }
    }
}

/// Settings of [`Ppo`](super::Ppo). Where TRL's `PPOConfig` has the setting, the default is its. Those of Crystal are in
/// [`ReinforcementConfig`](crate::crystal::ReinforcementConfig).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PpoConfig {
    /// How responses are drawn.
    pub rollout: RolloutConfig,
    /// Prompts per step, one response each.
    pub batch_size: usize,
    /// Steps at the beginning of each cycle that are reinforced; the others train on supervised objectives.
    pub rl_steps: u64,
    /// Length of a cycle in steps; equal to `rl_steps`, every step is reinforced.
    pub cycle_steps: u64,
    /// Penalty for leaving the reference policy.
    pub kl: KlPenalty,
    /// Scale token rewards to unit spread.
    pub whiten_rewards: bool,
    /// Discount of later rewards.
    pub gamma: f64,
    /// Trade-off of the advantage estimate between bias (0) and variance (1).
    pub lambda: f64,
    /// The ratio of new and old probabilities counts within 1 plus or minus this.
    pub clip_range: f64,
    /// Values count within this distance from the old ones.
    pub value_clip_range: f64,
    /// Weight of the policy loss.
    pub policy_coef: f64,
    /// Weight of the value loss.
    pub value_coef: f64,
    /// Coefficient of the entropy bonus.
    pub entropy_coef: f64,
    /// Passes over each rollout.
    pub epochs: usize,
    /// Responses per update; 0 takes the whole rollout, larger rollouts are reshuffled in every pass.
    pub mini_batch_size: usize,
    /// End the passes over a rollout early when the policy has moved further than this, in nats per token; 0 never
    /// does.
    pub target_kl: f64,
    /// Steps at the beginning of the run that train the value only.
    pub value_warmup_steps: u64,
    /// Judge the responses of supervised steps too, for the records. Costs their forward passes.
    pub judge_supervised: bool,
    /// The part of the reward by which the best checkpoint is chosen; empty takes the reward itself.
    pub best_by: String,
    /// Seed of the order of the prompts, of the responses and of the value head.
    pub seed: u64,
}

impl Default for PpoConfig {
    fn default() -> Self {
        Self {
            rollout: RolloutConfig::default(),
            batch_size: 64,
            rl_steps: 1000,
            cycle_steps: 1000,
            kl: KlPenalty::default(),
            whiten_rewards: false,
            gamma: 1.0,
            lambda: 0.95,
            clip_range: 0.2,
            value_clip_range: 0.2,
            policy_coef: 1.0,
            value_coef: 0.1,
            entropy_coef: 0.0,
            epochs: 4,
            mini_batch_size: 0,
            target_kl: 0.0,
            value_warmup_steps: 0,
            judge_supervised: true,
            best_by: String::new(),
            seed: 1,
        }
    }
}

/// What a step does with its responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// They are rewarded.
    Reinforced,
    /// They are the input of a supervised objective.
    Supervised,
}

impl PpoConfig {
    /// What step `step` does.
    #[must_use]
    pub fn phase(&self, step: u64) -> Phase {
        if step % self.cycle_steps.max(1) < self.rl_steps { Phase::Reinforced } else { Phase::Supervised }
    }

    /// Whether a phase begins with step `step`.
    #[must_use]
    pub fn phase_begins(&self, step: u64) -> bool {
        let within = step % self.cycle_steps.max(1);
        within == 0 || within == self.rl_steps
    }

    /// Steps after which `episodes` responses have been drawn, rounded up.
    #[must_use]
    pub fn steps_for(&self, episodes: u64) -> u64 {
        episodes.div_ceil(self.batch_size.max(1) as u64)
    }

    /// Whether a rollout of so many rows is scored in one piece, and updated on in one. Both then take the same pass, where there is no
    /// dropout.
    pub(crate) fn in_one_piece(&self, rows: usize, accumulate: usize) -> bool {
        let whole = |size: usize| size >= rows;
        let update = self.mini_batch_size == 0 || whole(self.mini_batch_size);
        rows > 0 && whole(self.rollout.batch_size) && update && accumulate <= 1
    }

    pub(super) fn estimation(&self, compat: Compat) -> Estimation {
        Estimation { compat, whiten_rewards: self.whiten_rewards, gamma: self.gamma, lambda: self.lambda }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, reason: String| Err(Error::config(key, reason));
        for (key, value) in [
            ("batch_size", self.batch_size),
            ("epochs", self.epochs),
            ("rollout.batch_size", self.rollout.batch_size),
            ("rollout.max_new_tokens", self.rollout.max_new_tokens),
            ("cycle_steps", usize::try_from(self.cycle_steps).unwrap_or(usize::MAX)),
        ] {
            if value == 0 {
                return refuse(key, "is 0, but must be at least 1".into());
            }
        }
        if self.rl_steps > self.cycle_steps {
            let reason = format!("is {}, more than cycle_steps ({})", self.rl_steps, self.cycle_steps);
            return refuse("rl_steps", reason);
        }
        for (key, value) in [("gamma", self.gamma), ("lambda", self.lambda)] {
            if !(0.0..=1.0).contains(&value) {
                return refuse(key, format!("is {value}, but must be in [0, 1]"));
            }
        }
        for (key, value) in [("clip_range", self.clip_range), ("value_clip_range", self.value_clip_range)] {
            if !(value > 0.0 && value.is_finite()) {
                return refuse(key, format!("is {value}, but must be above 0"));
            }
        }
        for (key, value) in [
            ("policy_coef", self.policy_coef),
            ("value_coef", self.value_coef),
            ("entropy_coef", self.entropy_coef),
            ("target_kl", self.target_kl),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return refuse(key, format!("is {value}, but must not be negative"));
            }
        }
        self.kl.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_alternate() {
        let config = PpoConfig { rl_steps: 3, cycle_steps: 5, ..PpoConfig::default() };
        let reinforced: Vec<u64> = (0..10).filter(|&s| config.phase(s) == Phase::Reinforced).collect();
        assert_eq!(reinforced, [0, 1, 2, 5, 6, 7]);
        let begins: Vec<u64> = (0..10).filter(|&s| config.phase_begins(s)).collect();
        assert_eq!(begins, [0, 3, 5, 8]);
    }

    #[test]
    fn only_reinforcement_has_no_other_phase() {
        let config = PpoConfig::default();
        assert!((0..5000).all(|step| config.phase(step) == Phase::Reinforced));
        let none = PpoConfig { rl_steps: 0, ..config };
        assert!((0..5000).all(|step| none.phase(step) == Phase::Supervised));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let good = PpoConfig::default;
        for (key, bad) in [
            ("batch_size", PpoConfig { batch_size: 0, ..good() }),
            ("rl_steps", PpoConfig { rl_steps: 2000, ..good() }),
            ("gamma", PpoConfig { gamma: 1.5, ..good() }),
            ("clip_range", PpoConfig { clip_range: 0.0, ..good() }),
            ("target_kl", PpoConfig { target_kl: f64::NAN, ..good() }),
            ("kl", PpoConfig { kl: KlPenalty::Fixed { coef: -0.1 }, ..good() }),
        ] {
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
        good().validate().unwrap();
    }
}
