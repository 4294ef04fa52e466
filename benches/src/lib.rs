//! The workloads that are timed: what one repeat does, on models with random weights.
//!
//! A new workload is a function `fn<M: Model>(&Setting) -> Result<Workload>` and its line in [`WORKLOADS`]. To time it beside
//! the Python stack, `python/workload.py` gets a function of the same name.

mod dpo;
mod generation;
pub mod host;
mod mario;
mod models;
mod ppo;
mod ranks;
mod scoring;
mod training;
mod work;

use std::cell::Cell;
use std::rc::Rc;

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ruminate_algorithms::Phases;
use ruminate_models::{Example, Llama, T5, TokenId};
use tch::{Device, Kind};

use models::Model;
pub use models::{MODELS, Shape, shape};
pub use work::Work;

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
    pub model: Shape,
    /// The precision.
    pub precision: Precision,
    /// Where the model lies.
    pub device: Device,
    /// Tokens of each prompt.
    pub source: usize,
    /// Tokens of each target.
    pub target: usize,
    /// Tokens that generation writes.
    pub new: usize,
    /// Tokens of each response that is drawn for reinforcement.
    pub response: usize,
    /// Rows instead of the workload's own number.
    pub batch: Option<usize>,
}

impl Setting {
    /// The shapes of the definitions: prompts of 128 tokens, targets of 64 for a T5 and 128 for a Llama, responses of 32.
    #[must_use]
    pub fn new(model: Shape, precision: Precision, device: Device) -> Self {
        let target = if matches!(model, Shape::T5(_)) { 64 } else { 128 };
        Self { model, precision, device, source: 128, target, new: 64, response: 32, batch: None }
    }

    fn rows(&self, default: usize) -> usize {
        self.batch.unwrap_or(default)
    }

    fn build<M: Model>(&self) -> Result<M> {
        M::build(&self.model, self.precision.kind(), self.device)
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
        let vocab = self.model.vocab_size();
        (0..rows).map(|_| (0..tokens).map(|_| rng.random_range(3..vocab)).collect()).collect()
    }

    fn examples(&self, rows: usize) -> Vec<Example> {
        let prompts = self.ids(rows, self.source, 1);
        let targets = self.ids(rows, self.target, 2);
        prompts.into_iter().zip(targets).map(|(prompt, target)| Example { prompt, target }).collect()
    }

    /// Rows to be learnt: of a T5 the targets, of a Llama everything behind the first token.
    fn lessons(&self, rows: usize) -> Vec<Example> {
        self.learnt(self.examples(rows))
    }

    /// The same with all lengths, from an eighth to the whole of eight rows; long prompts have short and long targets.
    fn mixed_lessons(&self, rows: usize) -> Vec<Example> {
        let mut examples = self.examples(rows);
        for (i, example) in examples.iter_mut().enumerate() {
            example.prompt.truncate((self.source * (i % 8 + 1) / 8).max(1));
            example.target.truncate((self.target * (i * 5 % 8 + 1) / 8).max(1));
        }
        self.learnt(examples)
    }

    fn learnt(&self, mut examples: Vec<Example>) -> Vec<Example> {
        if matches!(self.model, Shape::Llama(_)) {
            for Example { prompt, target } in &mut examples {
                target.splice(..0, prompt.drain(1..));
            }
        }
        examples
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
    /// The least that a repeat has to do, one after the other; empty for workloads of which nobody has reckoned it.
    pub least: Vec<Work>,
    /// Where the time went, for workloads that tell.
    pub phases: Phases,
    /// Bytes given to collective operations so far, for workloads of several processes.
    pub sent: Rc<Cell<u64>>,
    run: Run,
}

/// Asked before each repeat whether there is one, with the time by phase up to here. A repeat lasts until it is asked again.
pub type Turns<'a> = dyn FnMut(&mut Phases) -> Result<bool> + 'a;

type Run = Box<dyn FnMut(&mut Phases, &mut Turns<'_>) -> Result<()>>;

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
        sizes: (usize, usize, u64),
        mut repeat: impl FnMut(&mut Phases) -> Result<()> + 'static,
    ) -> Self {
        let device = setting.device;
        Self::in_turns(sizes, move |phases, turns| {
            while turns(phases)? {
                repeat(phases)?;
                synchronise(device);
            }
            Ok(())
        })
    }

    /// One that has a loop of its own, as a trainer has, which asks for its turns.
    fn in_turns(
        (batch, tokens, parameters): (usize, usize, u64),
        run: impl FnMut(&mut Phases, &mut Turns<'_>) -> Result<()> + 'static,
    ) -> Self {
        Self {
            batch,
            tokens,
            parameters,
            least: vec![],
            phases: Phases::default(),
            sent: Rc::default(),
            run: Box::new(run),
        }
    }

    /// With the operations of its products, where they may happen in any order.
    fn of_products(mut self, flop: f64) -> Self {
        self.least = vec![Work::products(flop)];
        self
    }

    /// Repeats as long as there are turns, and waits for the device after each repeat.
    ///
    /// # Errors
    /// When `turns` fails, or libtorch refuses, e.g. for want of memory.
    pub fn run(&mut self, turns: &mut Turns<'_>) -> Result<()> {
        (self.run)(&mut self.phases, turns)
    }

    /// Does it once.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn repeat(&mut self) -> Result<()> {
        let mut more = true;
        self.run(&mut |_| Ok(std::mem::take(&mut more)))
    }
}

fn synchronise(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload").field("batch", &self.batch).field("tokens", &self.tokens).finish()
    }
}

/// Builds a workload.
type Prepare = fn(&Setting) -> Result<Workload>;

/// A workload's name, and what builds it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The name.
    pub name: &'static str,
    t5: Prepare,
    llama: Option<Prepare>,
}

impl Entry {
    fn prepare(&self, model: &Shape) -> Option<Prepare> {
        match model {
            Shape::T5(_) => Some(self.t5),
            Shape::Llama(_) => self.llama,
        }
    }

    /// Whether such a model can do it.
    #[must_use]
    pub fn fits(&self, model: &Shape) -> bool {
        self.prepare(model).is_some()
    }
}

/// A workload of any model.
macro_rules! any {
    ($name:literal, $module:ident :: $function:ident $(, $size:literal)?) => {
        Entry {
            name: $name,
            t5: |setting| $module::$function::<T5>(setting $(, $size)?),
            llama: Some(|setting| $module::$function::<Llama>(setting $(, $size)?)),
        }
    };
}

/// A workload of T5.
const fn t5(name: &'static str, t5: Prepare) -> Entry {
    Entry { name, t5, llama: None }
}

/// Every workload.
pub const WORKLOADS: &[Entry] = &[
    any!("sft", training::sft),
    t5("sft_no_dropout", training::sft_no_dropout),
    any!("sft_mixed", training::sft_mixed),
    any!("sft_ranks", ranks::plain),
    any!("sft_ranks_optimizer", ranks::optimizer),
    any!("sft_full_logits", training::sft_full_logits),
    any!("adam", training::adam),
    any!("loss", training::loss),
    any!("loss_full_logits", training::loss_full_logits),
    any!("prefill", generation::prefill),
    any!("decode_1", generation::decode, 1),
    any!("decode_8", generation::decode, 8),
    any!("decode_32", generation::decode, 32),
    any!("gen_greedy_8", generation::greedy, 8),
    any!("gen_greedy_32", generation::greedy, 32),
    any!("gen_top_p_8", generation::top_p, 8),
    any!("gen_top_p_32", generation::top_p, 32),
    any!("rollout_8", generation::rollout, 8),
    any!("rollout_32", generation::rollout, 32),
    any!("samples", generation::samples),
    any!("samples_repeated", generation::samples_repeated),
    any!("ppo", ppo::update),
    any!("ppo_step", ppo::step),
    t5("quark", mario::quark),
    t5("reward_consistency", mario::consistency),
    t5("reward_plausibility", mario::plausibility),
    t5("reward_diversity", mario::diversity),
    any!("score", scoring::score),
    any!("score_pairs", dpo::score),
    any!("dpo", dpo::step),
    any!("dpo_trainer", dpo::trainer),
    any!("dpo_trainer_logits", dpo::trainer_logits),
    any!("choices_2", scoring::choices, 2),
    any!("choices_16", scoring::choices, 16),
];

/// Builds the workload of that name.
///
/// # Errors
/// When there is none of that name, or none for such a model, or memory is short.
pub fn prepare(name: &str, setting: &Setting) -> Result<Workload> {
    let names = |of: &dyn Fn(&Entry) -> bool| {
        let names: Vec<_> = WORKLOADS.iter().filter(|entry| of(entry)).map(|entry| entry.name).collect();
        names.join(", ")
    };
    let found = WORKLOADS.iter().find(|entry| entry.name == name);
    let entry = found.with_context(|| format!("no workload '{name}'; there are {}", names(&|_| true)))?;
    let prepare = entry.prepare(&setting.model).with_context(|| {
        let family = setting.model.family();
        format!(
            "'{name}' is no workload of a {family}; those are {}",
            names(&|entry| entry.fits(&setting.model))
        )
    })?;
    prepare(setting)
}
