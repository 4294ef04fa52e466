//! What a run will need, before anything is loaded.

use ruminate_models::{BatchShape, ModelConfig, ModelShape};
use ruminate_torch::dist::{Bucket, Sharding, owners};
use serde::Serialize;
use tch::Kind;

use crate::{Precision, TrainerConfig};

/// What is done with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Forwards and backwards.
    Training,
    /// Forwards only: texts are scored, or written with a cache, which takes the same operations.
    Forward,
}

/// One kind of batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pass {
    /// What is done with it.
    pub work: Work,
    /// How often it comes in a step, on average.
    pub times: f64,
    /// Networks that it goes through.
    pub networks: usize,
    /// Rows that are in memory at the same time.
    pub rows: usize,
    /// Tokens of a source: on average, and of the longest one.
    pub source: [f64; 2],
    /// Tokens of a target: on average, and of the longest one.
    pub target: [f64; 2],
}

/// Networks on the device. Those that are trained have one shape.
#[derive(Debug, Clone, Copy)]
pub struct Networks<'a> {
    /// Their shape: a [`ModelConfig`], or that of one family.
    pub shape: &'a dyn ModelShape,
    /// How many are trained.
    pub trained: usize,
    /// Whether a value head is trained too.
    pub value_head: bool,
    /// How many of this shape are frozen, such as a reference policy.
    pub frozen: usize,
    /// Frozen networks of shapes of their own, such as those behind rewards.
    pub others: &'a [ModelConfig],
}

impl<'a> Networks<'a> {
    /// One network that is trained.
    #[must_use]
    pub fn single(shape: &'a dyn ModelShape) -> Self {
        Self { shape, trained: 1, value_head: false, frozen: 0, others: &[] }
    }

    /// Shapes of all trained parameters.
    fn trained_shapes(&self) -> Vec<Vec<i64>> {
        let mut shapes = vec![self.shape.parameter_shapes(); self.trained].concat();
        if self.value_head {
            shapes.extend([vec![1, self.shape.width()], vec![1]]);
        }
        shapes
    }

    /// Scalar parameters that are not trained.
    fn frozen_parameters(&self) -> u64 {
        let others: u64 = self.others.iter().map(ModelConfig::parameter_count).sum();
        self.frozen as u64 * self.shape.parameter_count() + others
    }
}

/// Bytes on the device of each process, of the one that needs most. The largest moment of a step has them all at once.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct MemoryPlan {
    /// Parameters in float32.
    pub weights: u64,
    /// Their gradients; with [`Sharding`], those that a process keeps.
    pub gradients: u64,
    /// The optimizer's state: two moments of every parameter for Adam, next to nothing for Adafactor. With [`Sharding`], that of the
    /// parameters that a process owns.
    pub optimizer: u64,
    /// Buckets in which gradients and parameters travel between processes.
    pub buckets: u64,
    /// Copies of the weights in bfloat16, which autocast keeps during a step.
    pub bf16_weights: u64,
    /// Frozen models beside the one that is trained, such as a reference policy and those behind rewards.
    pub reference: u64,
    /// What the backward pass needs of the largest micro-batch, padded to its longest row; see
    /// [`ModelShape::activation_bytes`] and, with activation checkpointing, [`ModelShape::checkpointed_activation_bytes`].
    pub activations: u64,
}

impl MemoryPlan {
    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights
            + self.gradients
            + self.optimizer
            + self.buckets
            + self.bf16_weights
            + self.reference
            + self.activations
    }
}

/// Memory and operations of a model that generates and is not trained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WritingPlan {
    /// Who it is.
    pub name: String,
    /// Scalar parameters.
    pub parameters: u64,
    /// Bytes of its weights.
    pub weights: u64,
    /// Answers that it writes at most.
    pub answers: u64,
    /// New tokens of all of them, if each is as long as it may be.
    pub tokens: u64,
    /// Answers that are asked for at a time.
    pub rows: usize,
    /// Those among them that are written at the same time, because memory holds no more.
    pub rows_in_flight: usize,
    /// Bytes of keys, values and logits of these.
    pub decoding: u64,
    /// Floating-point operations of all answers, if each is as long as it may be.
    pub flops: f64,
}

impl WritingPlan {
    /// Bytes on the device.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.weights + self.decoding
    }
}

/// What training takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Scalar parameters that are trained.
    pub parameters: u64,
    /// Steps.
    pub steps: u64,
    /// Times that the optimizer moves the parameters in a step, on average.
    pub updates_per_step: f64,
    /// Rows that a step trains on in all its updates together, on average.
    pub rows_per_step: f64,
    /// Tokens that a step trains on in all its updates together, without padding, sources and targets, on average.
    pub tokens_per_step: f64,
    /// Floating-point operations of a step. Training takes three times those of the forward pass, or four times where
    /// activations are made again.
    pub flops_per_step: f64,
    /// Those among them that write and score texts and train nothing.
    pub forward_flops_per_step: f64,
    /// Precision of the matrix products.
    pub precision: Precision,
    /// Bytes on the device.
    pub memory: MemoryPlan,
    /// Bytes of one checkpoint: weights and the optimizer's state.
    pub checkpoint_bytes: u64,
    /// Checkpoints on disk at the same time: the newest ones, the best one, and the one that is being written.
    pub checkpoints_kept: u64,
    /// Processes that share the work, each of which does what this plan says.
    pub processes: usize,
    #[serde(skip)]
    trainer: TrainerConfig,
    /// Of all trained parameters.
    #[serde(skip)]
    shapes: Vec<Vec<i64>>,
}

impl Plan {
    /// The plan of networks under a trainer, whose steps consist of `passes`.
    #[must_use]
    pub fn new(
        config: &TrainerConfig,
        networks: Networks<'_>,
        passes: &[Pass],
        updates_per_step: f64,
    ) -> Self {
        const F32: u64 = 4;
        const BEST_AND_NEXT: u64 = 2;
        let shapes = networks.trained_shapes();
        let parameters = shapes.iter().map(|shape| shape.iter().product::<i64>().unsigned_abs()).sum();
        let bf16 = config.precision == Precision::Bf16;
        let weights = F32 * parameters;
        let optimizer = config.optimizer().state_bytes(&shapes);
        let batch = |p: &Pass, which: usize| BatchShape {
            rows: p.rows as f64,
            source: p.source[which],
            target: p.target[which],
        };
        let sum = |work: Work, value: &dyn Fn(&Pass) -> f64| -> f64 {
            // From 0: the sum of nothing is -0, and is printed so.
            passes
                .iter()
                .filter(|p| p.work == work)
                .map(|p| p.times * value(p))
                .fold(0.0, |all, one| all + one)
        };
        let forward = |p: &Pass| p.networks as f64 * networks.shape.forward_flops(batch(p, 0));
        let training = if config.gradient_checkpointing { 4.0 } else { 3.0 };
        let forward_flops_per_step = sum(Work::Forward, &forward);
        let kept = |p: &Pass| match config.gradient_checkpointing {
            true => networks.shape.checkpointed_activation_bytes(batch(p, 1), bf16),
            false => networks.shape.activation_bytes(batch(p, 1), bf16),
        };
        let activations = passes
            .iter()
            .filter(|p| p.work == Work::Training)
            .map(|p| p.networks as f64 * kept(p))
            .fold(0.0, f64::max);
        Self {
            parameters,
            steps: config.steps,
            updates_per_step,
            rows_per_step: sum(Work::Training, &|p| p.rows as f64),
            tokens_per_step: sum(Work::Training, &|p| p.rows as f64 * (p.source[0] + p.target[0])),
            flops_per_step: training * sum(Work::Training, &forward) + forward_flops_per_step,
            forward_flops_per_step,
            precision: config.precision,
            memory: MemoryPlan {
                weights,
                gradients: weights,
                optimizer,
                buckets: 0,
                bf16_weights: if bf16 { weights / 2 } else { 0 },
                reference: F32 * networks.frozen_parameters(),
                activations: activations as u64,
            },
            checkpoint_bytes: weights + optimizer,
            checkpoints_kept: config.keep as u64 + BEST_AND_NEXT,
            processes: 1,
            trainer: config.clone(),
            shapes,
        }
    }

    /// The plan of each of several processes, where this is that of one: the same work, and the memory of the process that needs
    /// most.
    #[must_use]
    pub fn across(mut self, processes: usize) -> Self {
        if processes > 1 {
            self.processes = processes;
            self.divide();
        }
        self
    }

    fn divide(&mut self) {
        const F32: u64 = 4;
        let Self { trainer, shapes, processes, memory, .. } = self;
        let numbers: Vec<u64> = shapes.iter().map(|s| s.iter().product::<i64>().unsigned_abs()).collect();
        let parameters: Vec<_> = numbers.iter().map(|&n| Some((Kind::Float, n))).collect();
        let buckets: Vec<u64> =
            Bucket::fill(&parameters, trainer.sharding, *processes).iter().map(|b| b.bytes).collect();
        if trainer.sharding == Sharding::None {
            // A bucket becomes the gradients that it was made of; only for a moment are both there.
            memory.buckets = buckets.into_iter().max().unwrap_or(0);
            return;
        }
        let travelling = buckets.windows(Bucket::IN_FLIGHT.min(buckets.len()).max(1)).map(|w| w.iter().sum());
        memory.buckets = travelling.max().unwrap_or(0);
        let owners = owners(&numbers, *processes);
        let own =
            |rank: usize| owners.iter().enumerate().filter(move |(_, owner)| **owner == rank).map(|(i, _)| i);
        let largest = |bytes: &dyn Fn(usize) -> u64| (0..*processes).map(bytes).max().unwrap_or(0);
        memory.optimizer = largest(&|rank| trainer.optimizer().state_bytes(own(rank).map(|i| &shapes[i])));
        // Whoever accumulates keeps them all until they travel, unless each micro-batch's do.
        if trainer.sharding == Sharding::Gradients || trainer.accumulate == 1 {
            memory.gradients = largest(&|rank| F32 * own(rank).map(|i| numbers[i]).sum::<u64>());
        }
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;
    use ruminate_models::LlamaConfig;
    use ruminate_torch::optim::AdafactorConfig;

    use super::*;
    use crate::OptimizerChoice;

    /// The table of docs/guide/distributed.md: gigabytes of each process, activations aside.
    #[test]
    fn the_guide_has_these_numbers() {
        let guide = include_str!("../../../docs/guide/distributed.md");
        let llama = |name: &str| LlamaConfig::published(name).unwrap_or_else(|| unreachable!());
        let [large, xl, xxl] = ["t5-large", "t5-3b", "t5-11b"].map(published);
        let [seven, eight] = ["llama-2-7b", "llama-3.1-8b"].map(llama);
        let models: [(&str, &dyn ModelShape); 5] = [
            ("T5-large", &large),
            ("T5-3B", &xl),
            ("T5-11B", &xxl),
            ("Llama-2-7B", &seven),
            ("Llama-3.1-8B", &eight),
        ];
        let mut missing = vec![];
        for (name, shape) in models {
            for precision in [Precision::F32, Precision::Bf16] {
                let total = |sharding, processes| {
                    let config =
                        TrainerConfig { sharding, precision, accumulate: 2, ..TrainerConfig::default() };
                    let plan = Plan::new(&config, Networks::single(shape), &[], 1.0).across(processes);
                    format!("{:.0}", plan.memory.total() as f64 / 1e9)
                };
                let cells = [total(Sharding::None, 1), total(Sharding::None, 8)]
                    .into_iter()
                    .chain([2, 4, 8].map(|n| total(Sharding::Optimizer, n)))
                    .chain([2, 4, 8].map(|n| total(Sharding::Gradients, n)));
                let kind = if precision == Precision::F32 { "f32" } else { "bf16" };
                let row = format!("| {name} | {kind} | {} |", cells.collect::<Vec<_>>().join(" | "));
                missing.extend((!guide.contains(&row)).then_some(row));
            }
        }
        assert!(missing.is_empty(), "the guide should have\n{}", missing.join("\n"));
    }

    #[test]
    fn processes_divide_what_they_are_told_to() {
        let large = published("t5-large");
        let plan = |sharding, accumulate, processes| {
            let config = TrainerConfig { sharding, accumulate, ..TrainerConfig::default() };
            Plan::new(&config, Networks::single(&large), &[], 1.0).across(processes)
        };
        let alone = plan(Sharding::None, 1, 1);
        assert_eq!(alone, plan(Sharding::None, 1, 1).across(1));
        let [all, states, whole, both] = [
            (Sharding::None, 1),
            (Sharding::Optimizer, 1),
            (Sharding::Optimizer, 2),
            (Sharding::Gradients, 2),
        ]
        .map(|(sharding, accumulate)| plan(sharding, accumulate, 4).memory);
        let MemoryPlan { gradients, optimizer, .. } = alone.memory;
        // The largest bucket has the embedding, and what came before it.
        let embedding = 4 * 32128 * 1024;
        assert!((embedding..embedding + Bucket::BYTES).contains(&all.buckets));
        assert_eq!((all.gradients, all.optimizer), (gradients, optimizer));
        let close = |part: u64, whole: u64| (part as f64 / whole as f64 * 4.0 - 1.0).abs() < 0.01;
        assert!(close(states.optimizer, optimizer) && close(states.gradients, gradients));
        assert_eq!((whole.optimizer, whole.gradients), (states.optimizer, gradients));
        assert_eq!(both, states);
        assert!((embedding..embedding + 4 * (Bucket::BYTES + (16 << 20))).contains(&both.buckets));
    }

    fn published(name: &str) -> ModelConfig {
        ModelConfig::published(name).unwrap_or_else(|| unreachable!())
    }

    #[test]
    fn a_plan_adds_up() {
        let large = published("t5-large");
        let config = TrainerConfig { steps: 10, keep: 3, ..TrainerConfig::default() };
        let pass = Pass {
            work: Work::Training,
            times: 1.5,
            networks: 1,
            rows: 8,
            source: [100.0, 256.0],
            target: [20.0, 32.0],
        };
        let answers = Pass { times: 0.5, source: [120.0, 288.0], target: [2.0, 2.0], ..pass };
        let scoring = Pass { work: Work::Forward, networks: 2, ..pass };
        let networks = Networks::single(&large);
        let plan = Plan::new(&config, networks, &[pass, answers], 1.0);
        assert_eq!(plan.rows_per_step, 16.0);
        assert_eq!(plan.tokens_per_step, 16.0 * (0.75 * 120.0 + 0.25 * 122.0));
        assert!(plan.forward_flops_per_step.is_sign_positive(), "it writes nothing, which is no -0");
        assert_eq!(plan.checkpoints_kept, 5);
        assert_abs_diff_eq!(plan.flops_per_step / (6.0 * 16.0 * 35e9), 1.0, epsilon = 1.0);
        let scored = Plan::new(&config, networks, &[pass, answers, scoring], 1.0);
        assert_eq!(scored.forward_flops_per_step, scored.flops_per_step - plan.flops_per_step);
        assert_eq!((scored.rows_per_step, &scored.memory), (16.0, &plan.memory));
        // Two networks instead of one, forwards only instead of three times that.
        let alone = Plan::new(&config, networks, &[pass], 1.0).flops_per_step;
        assert_abs_diff_eq!(scored.forward_flops_per_step / alone, 2.0 / 3.0, epsilon = 1e-12);

        let bf16 = TrainerConfig { precision: Precision::Bf16, ..config.clone() };
        let bf16 = Plan::new(&bf16, networks, &[pass, answers], 1.0);
        assert_eq!(bf16.memory.bf16_weights, 2 * plan.parameters);
        assert!(bf16.memory.activations < plan.memory.activations);
        let again = TrainerConfig { gradient_checkpointing: true, ..config };
        let again = Plan::new(&again, networks, &[pass, answers], 1.0);
        assert_abs_diff_eq!(again.flops_per_step / plan.flops_per_step, 4.0 / 3.0, epsilon = 1e-12);
        assert!(again.memory.activations < plan.memory.activations / 5);
    }

    /// A rank alone: 16 bytes for each parameter and 2 for its bfloat16 copy. Of 2048 tokens, 32 blocks keep 4096 floats each, and one
    /// block all that is in it.
    #[test]
    fn llama_2_needs_what_was_reckoned_by_hand() {
        let shape = LlamaConfig::published("llama-2-7b").unwrap_or_else(|| unreachable!());
        let config = TrainerConfig {
            precision: Precision::Bf16,
            gradient_checkpointing: true,
            ..TrainerConfig::default()
        };
        let (source, target) = ([1024.0; 2], [1024.0; 2]);
        let pass = Pass { work: Work::Training, times: 64.0, networks: 1, rows: 1, source, target };
        let plan = Plan::new(&config, Networks::single(&shape), &[pass], 1.0);
        assert_eq!(plan.parameters, 6_738_415_616);
        assert_eq!((plan.memory.total() - plan.memory.activations) / plan.parameters, 18);
        let whole = shape.activation_bytes(BatchShape { rows: 1.0, source: 1024.0, target: 1024.0 }, true);
        let inputs = 4 * 4096 * 2048 * 32;
        assert_eq!(plan.memory.activations, inputs + (whole / 32.0) as u64);
    }

    /// 16 bytes for each parameter in float32 with Adam, and 4 for the reference (large 15 GB, 3b 57 GB, 11b 226 GB).
    #[test]
    fn published_models_need_what_was_reckoned_by_hand() {
        let config = TrainerConfig::default();
        let gigabytes = |bytes: u64| (bytes as f64 / 1e9).round();
        for (name, parameters, together) in [
            ("t5-large", 737_668_096, 15.0),
            ("t5-3b", 2_851_598_336, 57.0),
            ("t5-11b", 11_307_321_344, 226.0),
        ] {
            let shape = published(name);
            let networks = Networks { trained: 1, value_head: true, frozen: 1, ..Networks::single(&shape) };
            let plan = Plan::new(&config, networks, &[], 1.0);
            // The value head has 1024 weights and a bias. Adam counts the steps of each tensor in 4 bytes: 24 encoder
            // blocks of 8 tensors, 24 decoder blocks of 13, 2 more for each stack, the embedding and the head's 2.
            assert_eq!(plan.parameters, parameters + 1025);
            let tensors = 24 * 8 + 24 * 13 + 2 * 2 + 1 + 2;
            assert_eq!(plan.memory.total(), 20 * parameters + 16 * 1025 + 4 * tensors, "{name}");
            assert_eq!(gigabytes(plan.memory.total()), together, "{name}");
            assert_eq!(plan.checkpoint_bytes, 12 * plan.parameters + 4 * tensors);

            // A second network is trained, too, and needs no second reference.
            let separate = Plan::new(&config, Networks { trained: 2, ..networks }, &[], 1.0);
            assert_eq!(separate.memory.total() - plan.memory.total(), 16 * parameters + 4 * (tensors - 2));

            // Models behind rewards have shapes of their own.
            let others = [published("t5-small"), published("t5-base")];
            let rewarded = Plan::new(&config, Networks { others: &others, ..networks }, &[], 1.0);
            let added = 4 * (60_506_624 + 222_903_552);
            assert_eq!(rewarded.memory.reference, plan.memory.reference + added);
            assert_eq!(rewarded.memory.total(), plan.memory.total() + added);
            assert_eq!(
                (rewarded.parameters, rewarded.checkpoint_bytes),
                (plan.parameters, plan.checkpoint_bytes)
            );

            // Rows and columns of each matrix instead of its moments.
            let adafactor = OptimizerChoice::Adafactor(AdafactorConfig::default());
            let small = TrainerConfig { optimizer: adafactor, ..config.clone() };
            let small = Plan::new(&small, networks, &[], 1.0).memory;
            assert!(small.optimizer < plan.memory.optimizer / 500, "{name}: {}", small.optimizer);
            assert_eq!(small.total() - small.optimizer, plan.memory.total() - plan.memory.optimizer);
        }
    }
}
