//! Settings of the trainer.

use ruminate_torch::dist::Sharding;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Checkpoints, OptimizerChoice, due};
use crate::{Error, Result, Schedule};

/// In which precision matrix products run during training. Weights, optimizer states and losses are always `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats throughout.
    #[default]
    F32,
    /// bfloat16 through autocast.
    Bf16,
}

/// Settings of the [`Trainer`](super::Trainer). Where transformers has the setting, the default is that of its `TrainingArguments`. The numbers of a paper are
/// those of its own configuration, e.g. [`ImitationConfig::trainer`](crate::crystal::ImitationConfig::trainer).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainerConfig {
    /// Optimizer steps. Default: 1000; transformers counts epochs.
    pub steps: u64,
    /// Base learning rate. Default: 5e-5.
    pub lr: f64,
    /// How the rate changes after the warm-up. Default: linearly to 0.
    pub schedule: Schedule,
    /// Steps in which the rate rises from 0.
    pub warmup_steps: u64,
    /// What moves the parameters.
    pub optimizer: OptimizerChoice,
    /// Decay rates of Adam's moments.
    pub betas: [f64; 2],
    /// Added to Adam's denominator.
    pub eps: f64,
    /// Adam's decoupled weight decay (AdamW), on every parameter.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 switches clipping off. Default: 1.
    pub max_grad_norm: f64,
    /// Micro-batches per optimizer step.
    pub accumulate: usize,
    /// Steps between two records of the training losses. Default: 10, as in TRL.
    pub log_every: u64,
    /// Steps between two validations, which also save; 0 validates where the algorithm begins a phase, and at the end. Default: 500.
    pub eval_every: u64,
    /// Validations in a row without a better score after which training ends; 0 never ends it. Validations that do not compete for the best
    /// checkpoint ([`Algorithm::competes_at`](super::Algorithm::competes_at)) do not count. Default: 0; `early_stopping_patience` of transformers' `EarlyStoppingCallback`.
    pub early_stopping: u64,
    /// Steps between two checkpoints; 0 saves with each validation and at the end.
    pub save_every: u64,
    /// How many of the newest checkpoints stay on disk, besides the best: with 2, there is one to go back to when the
    /// last one turns out to be damaged.
    pub keep: usize,
    /// Precision of the matrix products.
    pub precision: Precision,
    /// Make activations again in the backward pass instead of keeping them: less memory, and a second forward pass.
    pub gradient_checkpointing: bool,
    /// What several processes divide among them, for memory: nothing, the optimizer's states, or these and the gradients.
    pub sharding: Sharding,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            lr: 5e-5,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            optimizer: OptimizerChoice::Adam,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            accumulate: 1,
            log_every: 10,
            eval_every: 500,
            early_stopping: 0,
            save_every: 0,
            keep: Checkpoints::KEEP,
            precision: Precision::F32,
            gradient_checkpointing: false,
            sharding: Sharding::None,
        }
    }
}

impl TrainerConfig {
    /// Whether the policy is validated before step `step`.
    #[must_use]
    pub fn validates_at(&self, step: u64) -> bool {
        due(self.eval_every, step)
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the first setting that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, reason: String| Err(Error::config(key, reason));
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return refuse("lr", format!("is {}, but must be above 0", self.lr));
        }
        if self.betas.iter().any(|b| !(0.0..1.0).contains(b)) {
            return refuse("betas", format!("are {:?}, but must be in [0, 1)", self.betas));
        }
        for (key, value) in
            [("eps", self.eps), ("weight_decay", self.weight_decay), ("max_grad_norm", self.max_grad_norm)]
        {
            if !(value >= 0.0 && value.is_finite()) {
                return refuse(key, format!("is {value}, but must not be negative"));
            }
        }
        self.schedule.validate(self.lr).map_err(|reason| Error::config("schedule", reason))?;
        if let OptimizerChoice::Adafactor(adafactor) = &self.optimizer {
            self.validate_adafactor(adafactor)?;
        }
        for (key, value) in [
            ("steps", self.steps),
            ("accumulate", self.accumulate as u64),
            ("log_every", self.log_every),
            ("keep", self.keep as u64),
        ] {
            if value == 0 {
                return refuse(key, "is 0, but must be at least 1".into());
            }
        }
        Ok(())
    }
}
