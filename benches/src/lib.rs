//! The workloads that are timed: what one repeat does, on models with random weights.
//!
//! A new workload is a function `fn(&Setting) -> Result<Workload>` and its line in [`WORKLOADS`]. To time it beside the Python
//! stack, `python/workload.py` gets a function of the same name.

mod dpo;
mod generation;
pub mod host;
mod mario;
mod models;
mod ppo;
mod scoring;
mod training;

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ruminate_algorithms::Phases;
use ruminate_models::{Example, T5, T5Config, TokenId};
use tch::{Device, Kind};

pub use models::{MODELS, config};

/// In which precision a workload runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// Everything in float32.
    Fp32,
    /// Everything in bfloat16.
    Bf16,
    /// Weights and optimizer state in float32, matrix products in bfloat16.
    Amp,
}

impl Precision {
    /// The name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Amp => "amp",
        }
    }

    fn kind(self) -> Kind {
        if self == Self::Bf16 { Kind::BFloat16 } else { Kind::Float }
    }
}

/// What a workload runs on.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The architecture; weights are random.
    pub model: T5Config,
    /// The precision.
    pub precision: Precision,
    /// Where the model lies.
    pub device: Device,
    /// Tokens of each prompt.
    pub source: usize,
    /// Tokens of each target, and tokens that generation writes.
    pub target: usize,
    /// Tokens of each response that is drawn for reinforcement.
    pub response: usize,
    /// Rows instead of the workload's own number.
    pub batch: Option<usize>,
}

impl Setting {
    /// The shapes of the definitions: prompts of 128 tokens, targets of 64, responses of 32.
    #[must_use]
    pub fn new(model: T5Config, precision: Precision, device: Device) -> Self {
        Self { model, precision, device, source: 128, target: 64, response: 32, batch: None }
    }

    fn rows(&self, default: usize) -> usize {
        self.batch.unwrap_or(default)
    }

    fn build(&self) -> Result<T5> {
        Ok(T5::new(self.model.clone(), self.precision.kind(), self.device, 1)?)
    }

    /// Runs a forward pass in this precision.
    fn forward<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.precision {
            Precision::Amp => ruminate_torch::autocast(self.device, body)?,
            Precision::Fp32 | Precision::Bf16 => body(),
        }
    }

    /// Rows of random ids, none of them special.
    fn ids(&self, rows: usize, tokens: usize, seed: u64) -> Vec<Vec<TokenId>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let vocab = self.model.vocab_size;
        (0..rows).map(|_| (0..tokens).map(|_| rng.random_range(3..vocab)).collect()).collect()
    }

    fn examples(&self, rows: usize) -> Vec<Example> {
        let prompts = self.ids(rows, self.source, 1);
        let targets = self.ids(rows, self.target, 2);
        prompts.into_iter().zip(targets).map(|(prompt, target)| Example { prompt, target }).collect()
    }
}

/// Something to time.
pub struct Workload {
    /// Rows, in the unit of the definition.
    pub batch: usize,
    /// Tokens that one repeat counts.
    pub tokens: usize,
    /// Scalar parameters of the model.
    pub parameters: u64,
    /// Where the time went, for workloads that tell.
    pub phases: Phases,
    repeat: Repeat,
    device: Device,
}

type Repeat = Box<dyn FnMut(&mut Phases) -> Result<()>>;

impl Workload {
    fn new(
        setting: &Setting,
        sizes: (usize, usize, u64),
        mut repeat: impl FnMut() -> Result<()> + 'static,
    ) -> Self {
        Self::in_phases(setting, sizes, move |_| repeat())
    }

    fn in_phases(
        setting: &Setting,
        (batch, tokens, parameters): (usize, usize, u64),
        repeat: impl FnMut(&mut Phases) -> Result<()> + 'static,
    ) -> Self {
        let phases = Phases::default();
        Self { batch, tokens, parameters, phases, repeat: Box::new(repeat), device: setting.device }
    }

    /// Does it once, and waits for the device.
    ///
    /// # Errors
    /// When libtorch refuses, e.g. for want of memory.
    pub fn repeat(&mut self) -> Result<()> {
        (self.repeat)(&mut self.phases)?;
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload").field("batch", &self.batch).field("tokens", &self.tokens).finish()
    }
}

/// Builds a workload.
pub type Prepare = fn(&Setting) -> Result<Workload>;

/// Every workload by its name.
pub const WORKLOADS: &[(&str, Prepare)] = &[
    ("sft", training::sft),
    ("sft_no_dropout", training::sft_no_dropout),
    ("sft_full_logits", training::sft_full_logits),
    ("adam", training::adam),
    ("loss", training::loss),
    ("loss_full_logits", training::loss_full_logits),
    ("gen_greedy_8", |setting| generation::greedy(setting, 8)),
    ("gen_greedy_32", |setting| generation::greedy(setting, 32)),
    ("gen_top_p_8", |setting| generation::top_p(setting, 8)),
    ("gen_top_p_32", |setting| generation::top_p(setting, 32)),
    ("rollout_8", |setting| generation::rollout(setting, 8)),
    ("rollout_32", |setting| generation::rollout(setting, 32)),
    ("ppo", ppo::update),
    ("ppo_step", ppo::step),
    ("quark", mario::quark),
    ("reward_consistency", mario::consistency),
    ("reward_plausibility", mario::plausibility),
    ("reward_diversity", mario::diversity),
    ("score", scoring::score),
    ("score_pairs", dpo::score),
    ("dpo", dpo::step),
    ("choices_2", |setting| scoring::choices(setting, 2)),
    ("choices_16", |setting| scoring::choices(setting, 16)),
];

/// Builds the workload of that name.
///
/// # Errors
/// When there is none of that name, or memory is short.
pub fn prepare(name: &str, setting: &Setting) -> Result<Workload> {
    let names = || WORKLOADS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let found = WORKLOADS.iter().find(|(candidate, _)| *candidate == name);
    let (_, prepare) = found.with_context(|| format!("no workload '{name}'; there are {}", names()))?;
    prepare(setting)
}
