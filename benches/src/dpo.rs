//! Preference optimisation: scoring of pairs, and whole steps.

use std::path::Path;

use anyhow::{Context, Result};
use ruminate_algorithms::Algorithm;
use ruminate_algorithms::dpo::{Dpo, DpoConfig, Pair, Reference, ShuffledPairs, precompute};
use ruminate_models::Tokenizer;
use ruminate_torch::optim::{Adam, Optimizer, clip_grad_norm};

use crate::models::Model;
use crate::training::{ADAM, LR};
use crate::{Setting, Workload};

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

/// A step of DPO with a frozen copy of the policy as its reference: forward of both, backward, clipping, AdamW.
pub(crate) fn step<M: Model>(setting: &Setting) -> Result<Workload> {
    let pairs = pairs(setting, setting.rows(4));
    let (policy, reference): (M, M) = (setting.build()?, setting.build()?);
    let sizes = (pairs.len(), tokens(setting, pairs.len()), policy.parameters().count());
    // The reference's pass, and three for a pass with its gradient.
    let flop = 4.0 * setting.shared_pass(pairs.len(), 2, setting.target);
    // It goes into checkpoints only, which nobody writes here.
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/world/t5");
    let mut dpo = Dpo::new(
        DpoConfig::default(),
        policy,
        Reference::Model(reference),
        ShuffledPairs::new(pairs.clone(), pairs.len(), 1)?,
        pairs,
        Tokenizer::open(&tokenizer)?,
    )?;
    let mut adam = Adam::new(Dpo::policy(&dpo).parameters().named(), ADAM)?;
    let forward = setting.clone();
    let workload = Workload::in_phases(setting, sizes, move |phases| {
        adam.zero_grad()?;
        let batch = dpo.batches(0, 0, 1)?.and_then(|batches| batches.into_iter().next());
        let batch = batch.context("there is no batch")?;
        let sums = phases.time("forward", || forward.forward(|| Ok(dpo.sums(&batch)?)))?;
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
    Ok(workload.of_products(flop))
}
