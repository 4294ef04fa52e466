//! Preference optimisation: scoring of pairs, and whole steps.

use std::path::Path;

use anyhow::{Context, Result};
use ruminate_algorithms::dpo::{Dpo, DpoConfig, Pair, Reference, ShuffledPairs, precompute};
use ruminate_algorithms::{
    Algorithm, Observer, ObserverError, Phases, Precision as TrainerPrecision, Schedule, StepReport, Trainer,
    TrainerConfig,
};
use ruminate_models::Tokenizer;
use ruminate_torch::optim::{Adam, Optimizer, clip_grad_norm};
use tch::Device;

use crate::models::Model;
use crate::training::{ADAM, LR};
use crate::{Precision, Setting, Turns, Workload, synchronise};

/// Batches that a trainer goes through before it shuffles them anew.
const BATCHES: usize = 64;

/// Pairs with the same seeds are the same.
fn pairs(setting: &Setting, count: usize) -> Vec<Pair> {
    let prompts = setting.ids(count, setting.source, 1);
    let (chosen, rejected) = (setting.ids(count, setting.target, 2), setting.ids(count, setting.target, 3));
    let completions = chosen.into_iter().zip(rejected);
    prompts
        .into_iter()
        .zip(completions)
        .map(|(p, (chosen, rejected))| Pair::new(p, chosen, rejected))
        .collect()
}

/// Tokens of both completions, each with the prompt.
fn tokens(setting: &Setting, pairs: usize) -> usize {
    2 * pairs * (setting.source + setting.target)
}

/// Log-probabilities of both completions under the reference, as they are precomputed.
pub(crate) fn score<M: Model>(setting: &Setting) -> Result<Workload> {
    let model: M = setting.build()?;
    let mut pairs = pairs(setting, setting.rows(16));
    let sizes = (pairs.len(), tokens(setting, pairs.len()), model.parameters().count());
    let (forward, flop) = (setting.clone(), setting.shared_pass(pairs.len(), 2, setting.target));
    let workload = Workload::new(setting, sizes, move || {
        let batch = pairs.len();
        forward.forward(|| Ok(precompute(&model, &mut pairs, 1.0, batch)?))
    });
    Ok(workload.of_products(flop))
}

/// The operations of a step: the reference's pass, and three for a pass with its gradient.
fn step_flop(setting: &Setting, pairs: usize) -> f64 {
    4.0 * setting.shared_pass(pairs, 2, setting.target)
}

/// A policy, held at a frozen copy of itself.
fn learner<M: Model>(
    setting: &Setting,
    config: DpoConfig,
    pairs: Vec<Pair>,
    rows: usize,
) -> Result<Dpo<M, ShuffledPairs>> {
    // It goes into checkpoints only, which nobody writes here.
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/world/t5");
    Ok(Dpo::new(
        config,
        setting.build()?,
        Reference::Model(setting.build()?),
        ShuffledPairs::new(pairs.clone(), rows, 1)?,
        pairs,
        Tokenizer::open(&tokenizer)?,
    )?)
}

/// A step of DPO with a frozen copy of the policy as its reference: forward of both, backward, clipping, AdamW.
pub(crate) fn step<M: Model>(setting: &Setting) -> Result<Workload> {
    let rows = setting.rows(4);
    let mut dpo = learner::<M>(setting, DpoConfig::default(), pairs(setting, rows), rows)?;
    let sizes = (rows, tokens(setting, rows), Dpo::policy(&dpo).parameters().count());
    let mut adam = Adam::new(Dpo::policy(&dpo).parameters().named(), ADAM)?;
    let forward = setting.clone();
    let workload = Workload::in_phases(setting, sizes, move |phases| {
        adam.zero_grad()?;
        let batch = dpo.batches(0, 0, 1)?.and_then(|batches| batches.into_iter().next());
        let batch = batch.context("there is no batch")?;
        let sums = phases.time("forward", || forward.forward(|| Ok(dpo.losses(&batch)?)))?;
        let loss = sums.sums[0].f_div_scalar(batch.len() as f64)?;
        phases.time("backward", || loss.f_backward())?;
        phases.time("update", || {
            let _ = clip_grad_norm(adam.parameters(), 1.0)?;
            adam.step(LR)
        })?;
        // As a trainer that records every step.
        let _ = dpo.metrics()?;
        Ok(())
    });
    Ok(workload.of_products(step_flop(setting, rows)))
}

/// The same by the trainer: a repeat is one of its steps, with the next batch of many and a record.
pub(crate) fn trainer<M: Model>(setting: &Setting) -> Result<Workload> {
    fit::<M>(setting, DpoConfig::default())
}

/// The same with mean logits, entropy and token accuracy, which TRL always records.
pub(crate) fn trainer_logits<M: Model>(setting: &Setting) -> Result<Workload> {
    fit::<M>(setting, DpoConfig { logit_metrics: true, ..DpoConfig::default() })
}

fn fit<M: Model>(setting: &Setting, config: DpoConfig) -> Result<Workload> {
    let rows = setting.rows(4);
    let mut dpo = learner::<M>(setting, config, pairs(setting, BATCHES * rows), rows)?;
    let sizes = (rows, tokens(setting, rows), Dpo::policy(&dpo).parameters().count());
    let config = TrainerConfig {
        // The turns end the run.
        steps: u64::MAX,
        lr: LR,
        schedule: Schedule::Constant,
        betas: [ADAM.beta1, ADAM.beta2],
        eps: ADAM.eps,
        weight_decay: ADAM.weight_decay,
        max_grad_norm: 1.0,
        log_every: 1,
        eval_every: 0,
        precision: match setting.precision {
            Precision::Amp => TrainerPrecision::Bf16,
            Precision::Fp32 | Precision::Bf16 => TrainerPrecision::F32,
        },
        ..TrainerConfig::default()
    };
    let device = setting.device;
    let workload = Workload::in_turns(sizes, move |phases, turns| {
        let folder = tempfile::tempdir().context("making a folder for checkpoints")?;
        let trainer = Trainer::new(config.clone(), folder.path())?;
        let mut paced = Paced { phases, turns, device, over: false };
        let fitted = trainer.fit(&mut dpo, &mut paced);
        if !paced.over {
            fitted?;
        }
        Ok(())
    });
    Ok(workload.of_products(step_flop(setting, rows)))
}

/// Lets a trainer take a step a turn.
struct Paced<'a, 'b> {
    phases: &'a mut Phases,
    turns: &'a mut Turns<'b>,
    device: Device,
    over: bool,
}

impl Paced<'_, '_> {
    fn turn(&mut self) -> Result<(), ObserverError> {
        synchronise(self.device);
        self.over = !(self.turns)(self.phases)?;
        // An error ends the run without a checkpoint, which nobody would read.
        if self.over { Err("there are no more turns".into()) } else { Ok(()) }
    }
}

impl Observer for Paced<'_, '_> {
    fn started(&mut self, _: u64, _: u64) -> Result<(), ObserverError> {
        self.turn()
    }

    fn step(&mut self, report: &StepReport<'_>) -> Result<(), ObserverError> {
        for phase in ["data", "forward", "backward", "optimizer"] {
            let secs = report.metrics.iter().find(|(name, _)| name.strip_prefix("time/") == Some(phase));
            self.phases.add(phase, secs.map_or(0.0, |(_, secs)| *secs));
        }
        self.turn()
    }
}
