//! Kind `bookkeeping`: what surrounds the arithmetic.

use crate::Outcome;
use crate::compare::{Check, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};
use ruminate_algorithms::TrainerConfig;
use ruminate_algorithms::crystal::ImitationConfig;
use ruminate_algorithms::ppo::{KlPenalty, Phase, PpoConfig, summarize};
use ruminate_algorithms::trainer::TrainerState;
use ruminate_datasets::order::{evaluation_batches, merge};
use ruminate_datasets::{Order, Shard, TrainBatches};
use ruminate_rewards::{Normalization, Rewarded, Statistics};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

type Rows<T> = Vec<Vec<T>>;

/// Schedules, best checkpoints, normalisation, accuracies and the order of data.
pub(super) fn check(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Sharding {
        dataset_size: usize,
        batch_size_per_rank: usize,
        world_size: usize,
        drop_last: bool,
        expected: Expected,
    }
    #[derive(Deserialize)]
    struct Expected {
        batches_by_rank: Vec<Rows<usize>>,
        merged_then_cut: Option<Vec<usize>>,
    }
    let file = GoldenFile::read(path)?;
    let mut cases = file.cases("sharding", |case: Sharding| {
        let (len, size) = (case.dataset_size, case.batch_size_per_rank);
        let mut ranks = Vec::new();
        for rank in 0..case.world_size {
            let shard = Shard::new(rank, case.world_size)?;
            ranks.push(if case.drop_last {
                let batches = TrainBatches::new(Order::sequential(len), size, shard)?;
                let steps = batches.steps_per_epoch();
                batches.take(steps).collect()
            } else {
                evaluation_batches(len, size, shard)?
            });
        }
        equal("batches_by_rank", &ranks, &case.expected.batches_by_rank)?;
        match case.expected.merged_then_cut {
            Some(want) => equal("merged_then_cut", merge(ranks, len), want),
            None => Ok(()),
        }
    })?;
    cases.extend(file.cases("stage1_schedule", stage1_schedule)?);
    cases.extend(file.cases("best_checkpoint", best_checkpoint)?);
    cases.extend(file.cases("stage2_schedule", stage2_schedule)?);
    let tolerance = file.tolerance()?;
    cases.extend(file.cases("reward_normalisation", |case| reward_normalisation(case, tolerance))?);
    cases.extend(file.cases("accuracy_aggregation", |case| accuracy_aggregation(case, tolerance))?);
    cases.extend(file.cases("adaptive_kl_extension", |case| adaptive_kl(case, tolerance))?);
    let mut pending = Vec::new();
    let covered = [
        "sharding",
        "stage1_schedule",
        "best_checkpoint",
        "stage2_schedule",
        "reward_normalisation",
        "accuracy_aggregation",
        "adaptive_kl_extension",
    ];
    let sections = file.content().as_object().into_iter().flatten();
    for (name, _) in sections.filter(|(name, value)| value.is_array() && !covered.contains(&name.as_str())) {
        pending.extend(file.case_names(name)?);
    }
    Ok(Outcome { cases, pending })
}

#[derive(Deserialize)]
struct Stage1Schedule {
    total_steps: u64,
    qk_steps: u64,
    cycle_steps: u64,
    eval_interval: u64,
    multipliers: BTreeMap<String, f64>,
    expected: Stage1Expected,
}

#[derive(Deserialize)]
struct Stage1Expected {
    iterations: u64,
    losses_computed_at: BTreeMap<u64, Vec<String>>,
    eval_count: usize,
    eval_last: u64,
}

/// Which losses are computed when, and when the model is validated.
fn stage1_schedule(case: Stage1Schedule) -> Check {
    let weight = |name: &str| case.multipliers.get(name).copied().unwrap_or(0.0);
    let config = ImitationConfig {
        qk_weight: weight("qk"),
        qa_weight: weight("qa"),
        qka_weight: weight("qka"),
        qk_and_qka_steps: case.cycle_steps,
        qk_steps: case.qk_steps,
        ..ImitationConfig::default()
    };
    config.validate()?;
    for (step, want) in &case.expected.losses_computed_at {
        let mut got: Vec<String> =
            config.losses_at(*step).map(|name| name.trim_end_matches("_loss").to_owned()).collect();
        got.sort();
        equal(&format!("losses_computed_at.{step}"), &got, want)?;
    }
    // The reference counts its steps inclusively, and an interval of 0 stands for a cycle.
    let iterations = case.total_steps + 1;
    equal("iterations", iterations, case.expected.iterations)?;
    let every = if case.eval_interval > 0 { case.eval_interval } else { case.cycle_steps };
    let trainer = TrainerConfig { steps: iterations, eval_every: every, ..TrainerConfig::default() };
    let validated: Vec<u64> = (0..trainer.steps).filter(|&step| trainer.validates_at(step)).collect();
    equal("eval_count", validated.len(), case.expected.eval_count)?;
    equal("eval_last", validated.last().copied(), Some(case.expected.eval_last))
}

#[derive(Deserialize)]
struct BestCheckpoint {
    mode: String,
    metric_by_step: Vec<(u64, f64)>,
    expected: BestExpected,
}

#[derive(Deserialize)]
struct BestExpected {
    updates: Vec<BestUpdate>,
    kept_checkpoint_step: u64,
}

#[derive(Debug, PartialEq, Deserialize)]
struct BestUpdate {
    step: u64,
    removes: Option<u64>,
}

/// Which checkpoint is the best after each validation.
fn best_checkpoint(case: BestCheckpoint) -> Check {
    let mut state = TrainerState::default();
    let (mut best, mut updates) = (None, vec![]);
    for (step, metric) in case.metric_by_step {
        state.scores.insert(step, if case.mode == "min" { -metric } else { metric });
        let now = state.best();
        if now != best {
            updates.push(BestUpdate { step, removes: best });
            best = now;
        }
    }
    equal("updates", &updates, &case.expected.updates)?;
    equal("kept_checkpoint_step", best, Some(case.expected.kept_checkpoint_step))
}

#[derive(Deserialize)]
struct Stage2Schedule {
    total_episodes: u64,
    batch_size_per_device: usize,
    devices: usize,
    rl_steps: u64,
    cycle_steps: u64,
    eval_interval: u64,
    save_interval: u64,
    expected: Stage2Expected,
}

#[derive(Deserialize)]
struct Stage2Expected {
    total_steps: u64,
    iterations: u64,
    phase_at: BTreeMap<u64, String>,
    eval_count: usize,
    eval_first: Vec<u64>,
    eval_last: u64,
    save_count: usize,
    save_last: u64,
    rl_iterations: u64,
    qka_iterations: u64,
}

/// Which steps are reinforced, and when the model is validated and saved.
fn stage2_schedule(case: Stage2Schedule) -> Check {
    let config = PpoConfig {
        rl_steps: case.rl_steps,
        cycle_steps: case.cycle_steps,
        batch_size: case.batch_size_per_device * case.devices,
        ..PpoConfig::default()
    };
    config.validate()?;
    let want = case.expected;
    equal("total_steps", config.steps_for(case.total_episodes), want.total_steps)?;
    // The reference counts its steps inclusively.
    let steps = config.steps_for(case.total_episodes) + 1;
    equal("iterations", steps, want.iterations)?;
    let name = |phase| if phase == Phase::Reinforced { "rl" } else { "qka" };
    for (step, phase) in &want.phase_at {
        equal(&format!("phase_at.{step}"), name(config.phase(*step)), phase.as_str())?;
    }
    let reinforced = (0..steps).filter(|&step| config.phase(step) == Phase::Reinforced).count() as u64;
    equal("rl_iterations", reinforced, want.rl_iterations)?;
    equal("qka_iterations", steps - reinforced, want.qka_iterations)?;
    let due = |every: u64| -> Vec<u64> {
        let trainer = TrainerConfig { eval_every: every, ..TrainerConfig::default() };
        (0..steps)
            .filter(|&step| trainer.validates_at(step) || (every == 0 && config.phase_begins(step)))
            .collect()
    };
    let validated = due(case.eval_interval);
    equal("eval_count", validated.len(), want.eval_count)?;
    equal("eval_first", &validated[..want.eval_first.len().min(validated.len())], &want.eval_first[..])?;
    equal("eval_last", validated.last().copied(), Some(want.eval_last))?;
    let saved = due(case.save_interval);
    equal("save_count", saved.len(), want.save_count)?;
    equal("save_last", saved.last().copied(), Some(want.save_last))
}

#[derive(Deserialize)]
struct Rewards {
    rewards_raw: Vec<f64>,
    expected: Normalized,
}

#[derive(Deserialize)]
struct Normalized {
    gain: f64,
    bias: f64,
    normalized_mean: f64,
    normalized_std_unbiased: f64,
}

fn reward_normalisation(case: Rewards, tolerance: Tolerance) -> Check {
    let (map, want) = (Normalization::fit(&case.rewards_raw)?, case.expected);
    tolerance.close("gain, bias", &[map.gain, map.bias], &[want.gain, want.bias])?;
    let got = Statistics::of(case.rewards_raw.iter().map(|&reward| map.apply(reward)));
    tolerance.close(
        "mean and std of the normalised",
        &[got.mean, got.std],
        &[want.normalized_mean, want.normalized_std_unbiased],
    )
}

#[derive(Deserialize)]
struct Accuracies {
    tasks: Vec<String>,
    task_index: Vec<usize>,
    correct: Vec<f32>,
    correct_knowless: Vec<f32>,
    expected: AccuraciesExpected,
}

#[derive(Deserialize)]
struct AccuraciesExpected {
    acc_weighted: f64,
    acc_by_task: BTreeMap<String, f64>,
    acc_unweighted: f64,
    acc_unweighted_knowless: f64,
    acc_unweighted_delta: f64,
}

/// What validation makes of right and wrong answers.
fn accuracy_aggregation(case: Accuracies, tolerance: Tolerance) -> Check {
    let task = |&ix: &usize| case.tasks.get(ix).map(String::as_str);
    let tasks: Vec<&str> = case.task_index.iter().filter_map(task).collect();
    equal("tasks", tasks.len(), case.task_index.len())?;
    let rewards: Vec<Rewarded> = case
        .correct
        .iter()
        .zip(&case.correct_knowless)
        .map(|(&acc, &knowless)| Rewarded {
            value: 0.0,
            parts: vec![
                ("acc".into(), acc),
                ("acc_knowless".into(), knowless),
                ("acc_delta".into(), acc - knowless),
            ],
        })
        .collect();
    let evaluation = summarize("acc", &tasks, &rewards)?;
    let metrics: BTreeMap<String, f64> = evaluation.metrics.into_iter().collect();
    let want = case.expected;
    let mut wanted = BTreeMap::from([
        ("eval/acc_weighted".to_owned(), want.acc_weighted),
        ("eval/acc_unweighted".to_owned(), want.acc_unweighted),
        ("eval/acc_unweighted_knowless".to_owned(), want.acc_unweighted_knowless),
        ("eval/acc_unweighted_delta".to_owned(), want.acc_unweighted_delta),
    ]);
    wanted.extend(want.acc_by_task.into_iter().map(|(task, value)| (format!("eval/acc/{task}"), value)));
    tolerance.close("score", &[evaluation.score], &[want.acc_unweighted])?;
    for (name, want) in wanted {
        let got = metrics.get(&name).copied().unwrap_or(f64::NAN);
        tolerance.close(&name, &[got], &[want])?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct AdaptiveKl {
    initial_coefficient: f64,
    target_kl: f64,
    horizon: f64,
    updates: Vec<KlUpdate>,
    expected: KlExpected,
}

#[derive(Deserialize)]
struct KlUpdate {
    observed_kl: f64,
    samples: usize,
}

#[derive(Deserialize)]
struct KlExpected {
    coefficient_after_each_update: Vec<f64>,
}

fn adaptive_kl(case: AdaptiveKl, tolerance: Tolerance) -> Check {
    let penalty = KlPenalty::Adaptive {
        initial: case.initial_coefficient,
        target: case.target_kl,
        horizon: case.horizon,
    };
    let mut coef = penalty.initial();
    let step = |update: &KlUpdate| {
        coef = penalty.next(coef, update.observed_kl, update.samples);
        coef
    };
    let got: Vec<f64> = case.updates.iter().map(step).collect();
    tolerance.close("coefficient_after_each_update", &got, &case.expected.coefficient_after_each_update)
}
