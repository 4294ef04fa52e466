//! What a run will need, before anything is loaded.

use ruminate_models::{BatchShape, T5Config};
use serde::Serialize;

use crate::{Precision, TrainerConfig};

/// One kind of micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pass {
    /// Share of the steps that have it.
    pub share: f64,
    /// Rows of a micro-batch.
    pub rows: usize,
    /// Tokens of a source: on average, and of the longest one.
    pub source: [f64; 2],
    /// Tokens of a target: on average, and of the longest one.
    pub target: [f64; 2],
}

/// Bytes on the device. The largest moment of a step has them all at once.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct MemoryPlan {
    /// Parameters in float32.
    pub weights: u64,
    /// Their gradients.
    pub gradients: u64,
    /// Adam's two moments.
    pub optimizer: u64,
    /// Copies of the weights in bfloat16, which autocast keeps during a step.
    pub bf16_weights: u64,
    /// Frozen models beside the one that is trained, such as a reference policy.
    pub reference: u64,
    /// What the backward pass needs of the largest micro-batch, padded to its longest row; see
    /// [`T5Config::activation_bytes`].
    pub activations: u64,
}

impl MemoryPlan {
    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.bf16_weights + self.reference + self.activations
    }
}

/// What training takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Scalar parameters of the model.
    pub parameters: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Rows of an optimizer step, on average.
    pub rows_per_step: f64,
    /// Tokens of an optimizer step without padding, sources and targets together, on average.
    pub tokens_per_step: f64,
    /// Floating-point operations of an optimizer step: three times those of the forward pass.
    pub flops_per_step: f64,
    /// Precision of the matrix products.
    pub precision: Precision,
    /// Bytes on the device.
    pub memory: MemoryPlan,
    /// Bytes of one checkpoint: weights and the optimizer's moments.
    pub checkpoint_bytes: u64,
    /// Checkpoints on disk at the same time: the last one, the best one, and the one that is being written.
    pub checkpoints_kept: u64,
}

impl Plan {
    /// The plan of a T5 under a trainer, whose micro-batches are `passes`. `frozen` counts the parameters of other models
    /// on the device.
    #[must_use]
    pub fn new(config: &TrainerConfig, model: &T5Config, passes: &[Pass], frozen: u64) -> Self {
        const F32: u64 = 4;
        const CHECKPOINTS: u64 = 3;
        let parameters = model.parameter_count();
        let bf16 = config.precision == Precision::Bf16;
        let weights = F32 * parameters;
        let accumulate = config.accumulate as f64;
        let mean = |value: &dyn Fn(&Pass) -> f64| passes.iter().map(|p| p.share * value(p)).sum::<f64>();
        let longest = |p: &Pass| BatchShape { rows: p.rows as f64, source: p.source[1], target: p.target[1] };
        let usual = |p: &Pass| BatchShape { rows: p.rows as f64, source: p.source[0], target: p.target[0] };
        let activations = passes.iter().map(|p| model.activation_bytes(longest(p), bf16)).fold(0.0, f64::max);
        Self {
            parameters,
            steps: config.steps,
            rows_per_step: accumulate * mean(&|p| p.rows as f64),
            tokens_per_step: accumulate * mean(&|p| p.rows as f64 * (p.source[0] + p.target[0])),
            flops_per_step: 3.0 * accumulate * mean(&|p| model.forward_flops(usual(p))),
            precision: config.precision,
            memory: MemoryPlan {
                weights,
                gradients: weights,
                optimizer: 2 * weights,
                bf16_weights: if bf16 { weights / 2 } else { 0 },
                reference: F32 * frozen,
                activations: activations as u64,
            },
            checkpoint_bytes: 3 * weights,
            checkpoints_kept: CHECKPOINTS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_adds_up() {
        let large = T5Config::published("t5-large").unwrap_or_else(|| unreachable!());
        let config = TrainerConfig { steps: 10, accumulate: 2, ..TrainerConfig::default() };
        let passes = [
            Pass { share: 0.75, rows: 8, source: [100.0, 256.0], target: [20.0, 32.0] },
            Pass { share: 0.25, rows: 8, source: [120.0, 288.0], target: [2.0, 2.0] },
        ];
        let plan = Plan::new(&config, &large, &passes, large.parameter_count());
        assert_eq!(plan.rows_per_step, 16.0);
        assert_eq!(plan.tokens_per_step, 16.0 * (0.75 * 120.0 + 0.25 * 122.0));
        // The published estimate: 16 bytes for each parameter, and 4 for the reference.
        assert_eq!(plan.memory.total() - plan.memory.activations, 20 * plan.parameters);
        let bf16 = Plan::new(&TrainerConfig { precision: Precision::Bf16, ..config }, &large, &passes, 0);
        assert_eq!(bf16.memory.bf16_weights, 2 * plan.parameters);
        assert!(bf16.memory.activations < plan.memory.activations);
        assert!((plan.flops_per_step / (6.0 * 16.0 * 35e9) - 1.0).abs() < 1.0, "{}", plan.flops_per_step);
    }
}
