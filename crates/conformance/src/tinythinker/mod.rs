//! TinyThinker: what the teacher is asked and answers, records, stages, votes, pairs, schedules.

mod data;
mod pairs;
mod teacher;

use crate::compare::{Check, Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};
use crate::{KindFn, Outcome};
use ruminate_algorithms::Schedule;
use ruminate_algorithms::tinythinker::{
    Interval, Machine, preference_limits, steps_in, supervised_limits, warmup_steps,
};
use ruminate_datasets::tinythinker::Source;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The kinds that are covered.
pub const KINDS: &[(&str, KindFn)] = &[
    ("answers", data::answers),
    ("candidate_selection", teacher::candidate_selection),
    ("dpo_pairs", pairs::dpo_pairs),
    ("interval_schedule", interval_schedule),
    ("lr_schedule", lr_schedule),
    ("records_csqa", data::records),
    ("records_obqa", data::records),
    ("records_strategyqa", data::records),
    ("stage_prompts", data::stage_prompts),
    ("teacher_extract", teacher::teacher_extract),
    ("teacher_filter", teacher::teacher_filter),
    ("teacher_prompts", teacher::teacher_prompts),
];

fn source(name: &str) -> Check<Source> {
    Ok(serde_json::from_value(Value::String(name.to_owned()))?)
}

/// What is wrong with a field.
fn problem((field, reason): (&'static str, String)) -> Mismatch {
    Mismatch(format!("{field}: {reason}"))
}

fn letter(text: &str) -> Check<char> {
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(letter), None) => Ok(letter),
        _ => Err(Mismatch(format!("`{text}` is not one letter"))),
    }
}

fn interval_schedule(path: &Path) -> Result<Outcome, GoldenError> {
    const STAGES: [&str; 3] = ["recall", "analyze", "summarize"];
    #[derive(Deserialize)]
    struct Case {
        stage_type: String,
        intervals: BTreeMap<String, u64>,
        batch_size: u64,
        dataset_sizes: BTreeMap<String, u64>,
        batches_per_epoch: BTreeMap<String, u64>,
        epochs: Option<f64>,
        max_steps_arg: Option<u64>,
        total_optimizer_steps: u64,
        planned_max_steps: u64,
        eval_at_global_steps: Vec<u64>,
        epoch_starts_at_step: Vec<u64>,
        runs: Vec<Run>,
    }
    #[derive(Deserialize, Debug, PartialEq)]
    struct Run {
        epoch: u64,
        stage: String,
        steps: u64,
    }
    let cases = GoldenFile::read(path)?.cases("cases", |case: Case| {
        let stages: Vec<&str> = STAGES.into_iter().filter(|s| case.dataset_sizes.contains_key(*s)).collect();
        let sizes: Vec<u64> = stages.iter().map(|s| case.dataset_sizes[*s]).collect();
        if case.batch_size == 0 {
            return Err(Mismatch("batch_size: is 0".to_owned()));
        }
        let batches: Vec<u64> = sizes.iter().map(|size| size.div_ceil(case.batch_size)).collect();
        let limits: Vec<u64> = stages.iter().map(|s| case.intervals.get(*s).copied().unwrap_or(0)).collect();
        for (stage, &batches) in stages.iter().zip(&batches) {
            equal("batches_per_epoch", Some(&batches), case.batches_per_epoch.get(*stage))?;
        }
        match case.epochs {
            // The block of the last stage is the interval itself; that of analyses is a multiple of it.
            Some(_) => {
                let (recalls, analyzes) = (stages.contains(&"recall"), stages.contains(&"analyze"));
                let interval = limits.last().copied().unwrap_or(0);
                let options = case.intervals.get("analyze").map_or(0, |analyze| analyze / interval.max(1));
                equal("intervals", &supervised_limits(recalls, analyzes, interval, options), &limits)?;
            }
            None => {
                let size = |stage: &str| case.dataset_sizes.get(stage).copied();
                let own = preference_limits(size("recall"), size("analyze"), case.batch_size)?;
                equal("intervals", &own, &limits)?;
            }
        }
        let interval = Interval::new(limits, batches, Machine::Reference)?;
        let planned = match (case.max_steps_arg, case.epochs) {
            (Some(steps), _) => steps,
            (None, Some(epochs)) => steps_in(epochs, interval.epoch_steps()),
            (None, None) => return Err(Mismatch("epochs: missing".to_owned())),
        };
        equal("planned_max_steps", planned, case.planned_max_steps)?;
        equal("total_optimizer_steps", planned, case.total_optimizer_steps)?;
        let cycle = interval.cycle_steps();
        let evaluations: Vec<u64> = (1..=planned / cycle).map(|i| i * cycle).collect();
        equal("eval_at_global_steps", &evaluations, &case.eval_at_global_steps)?;
        let (mut runs, mut starts): (Vec<Run>, Vec<u64>) = (vec![], vec![]);
        for (step, turn) in (0..planned).zip(interval) {
            if turn.epoch == starts.len() as u64 {
                starts.push(step);
            }
            let (epoch, stage) = (turn.epoch + 1, stages[turn.stage]);
            match runs.last_mut() {
                Some(run) if run.epoch == epoch && run.stage == stage => run.steps += 1,
                _ => runs.push(Run { epoch, stage: stage.to_owned(), steps: 1 }),
            }
        }
        equal("epoch_starts_at_step", &starts, &case.epoch_starts_at_step)?;
        equal(&format!("runs of {}", case.stage_type), &runs, &case.runs)
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

fn lr_schedule(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        peak_lr: f64,
        total_steps: u64,
        warmup_steps: u64,
        lr_at_step: Rates,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Rates {
        All(Vec<f64>),
        Some(BTreeMap<String, f64>),
    }
    let file = GoldenFile::read(path)?;
    let usual = Tolerance { absolute: 1e-18, relative: 1e-12 };
    let tolerance = file.tolerance_or(usual)?;
    let cases = file.cases("cases", |case: Case| {
        let warmup = warmup_steps(case.total_steps);
        equal("warmup_steps", warmup, case.warmup_steps)?;
        let rates: Vec<(u64, f64)> = match case.lr_at_step {
            Rates::All(rates) => (0..).zip(rates).collect(),
            Rates::Some(rates) => {
                rates.into_iter().map(|(step, rate)| Ok((step.parse()?, rate))).collect::<Check<_>>()?
            }
        };
        if rates.is_empty() {
            return Err(Mismatch("lr_at_step: is empty".to_owned()));
        }
        let cosine = Schedule::Cosine { cycles: 0.5 };
        rates.iter().try_for_each(|&(step, rate)| {
            let got = cosine.lr(case.peak_lr, step, warmup, case.total_steps);
            tolerance.close(&format!("lr_at_step {step}"), &[got], &[rate])
        })
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}
