//! The choice of an optimizer in the settings.

use ruminate_torch::optim::{AdafactorConfig, AdamConfig, Decay, DecayOn, OptimizerConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TrainerConfig;
use crate::{Error, Result, Schedule};

/// Which optimizer a [`Trainer`](super::Trainer) uses.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerChoice {
    /// Adam, with `betas`, `eps` and `weight_decay` of the [`TrainerConfig`].
    #[default]
    Adam,
    /// Adafactor, with settings of its own, weight decay included; Adam's `betas` and `eps` mean nothing to it. With
    /// `relative_step` it has its own rate, and `lr` counts for nothing.
    Adafactor(AdafactorConfig),
}

impl TrainerConfig {
    /// The optimizer with its settings.
    #[must_use]
    pub fn optimizer(&self) -> OptimizerConfig {
        match self.optimizer {
            OptimizerChoice::Adam => OptimizerConfig::Adam(AdamConfig {
                beta1: self.betas[0],
                beta2: self.betas[1],
                eps: self.eps,
                weight_decay: self.weight_decay,
                decay: Decay::Decoupled,
                decay_on: DecayOn::All,
            }),
            OptimizerChoice::Adafactor(config) => OptimizerConfig::Adafactor(config),
        }
    }

    pub(super) fn validate_adafactor(&self, config: &AdafactorConfig) -> Result<()> {
        let refuse = |key: &str, reason: &str| Err(Error::config(key, reason));
        // `betas` and `eps` have values of Adam in every configuration, and mean nothing here. A weight decay is asked for.
        if self.weight_decay != 0.0 {
            return refuse(
                "weight_decay",
                "is Adam's; set that of Adafactor, optimizer.adafactor.weight_decay, and this one to 0",
            );
        }
        let AdafactorConfig { eps, clip_threshold, decay_rate, beta1, weight_decay, .. } = *config;
        if !eps.iter().all(|e| *e >= 0.0 && e.is_finite()) {
            return refuse("optimizer.adafactor.eps", "must not be negative");
        }
        if !(clip_threshold > 0.0 && clip_threshold.is_finite()) {
            return refuse("optimizer.adafactor.clip_threshold", "must be above 0");
        }
        if !(decay_rate <= 0.0 && decay_rate.is_finite()) {
            return refuse("optimizer.adafactor.decay_rate", "must not be above 0; -0.8 is usual");
        }
        if beta1.is_some_and(|b| !(0.0..1.0).contains(&b)) {
            return refuse("optimizer.adafactor.beta1", "must be in [0, 1)");
        }
        if !(weight_decay >= 0.0 && weight_decay.is_finite()) {
            return refuse("optimizer.adafactor.weight_decay", "must not be negative");
        }
        if config.warmup_init && !config.relative_step {
            return refuse("optimizer.adafactor.warmup_init", "needs relative_step");
        }
        if config.relative_step && (self.schedule != Schedule::Constant || self.warmup_steps > 0) {
            let reason = "has a schedule of its own; set schedule to \"constant\" and warmup_steps to 0";
            return refuse("optimizer.adafactor.relative_step", reason);
        }
        Ok(())
    }
}
