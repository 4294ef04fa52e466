//! The numbers of the comparison.

use std::path::Path;

use anyhow::Context;
use ruminate::algorithms::tinythinker::Response;
use ruminate::rewards::mario::{Interval, bootstrap};
use serde_json::{Map, Value, json};

use crate::reflect::Finished;

const RESAMPLES: usize = 2000;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    /// Answers at once.
    SummarizeOnly,
    /// Recalls, analyzes and answers.
    Staged,
    /// The same after rounds of reflection.
    Reflected,
}

impl Model {
    pub(super) const ALL: [Self; 3] = [Self::SummarizeOnly, Self::Staged, Self::Reflected];

    /// In tables, in JSON and in names of folders.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SummarizeOnly => "summarize_only",
            Self::Staged => "staged",
            Self::Reflected => "reflected",
        }
    }
}

/// The students of one seed.
pub(super) struct SeedResult {
    pub(super) seed: u64,
    /// What each model answers to the test questions.
    pub(super) responses: [Vec<Response>; 3],
    /// Share of right answers among sampled runs, before each round and after the last.
    pub(super) right: Vec<f64>,
    /// Reward margin on held-out pairs at the end of each round; it begins at 0.
    pub(super) margins: Vec<f64>,
    pub(super) rounds: Vec<Finished>,
}

impl SeedResult {
    fn values(&self, model: Model) -> Vec<f64> {
        self.responses[model as usize].iter().map(|r| f64::from(u8::from(r.right()))).collect()
    }

    pub(super) fn accuracy(&self, model: Model) -> f64 {
        average(&self.values(model))
    }
}

#[derive(Default)]
pub(super) struct Results {
    pub(super) seeds: Vec<SeedResult>,
}

impl Results {
    /// Right or not for each question, averaged over seeds: the questions are the same for all, and no more than they are.
    fn values(&self, model: Model) -> Vec<f64> {
        columns(self.seeds.iter().map(|seed| seed.values(model)).collect())
    }

    pub(super) fn accuracy(&self, model: Model) -> f64 {
        average(&self.values(model))
    }

    pub(super) fn interval(&self, model: Model) -> Option<Interval> {
        interval(&self.values(model))
    }

    /// How much better one model is than another, question by question.
    pub(super) fn gain(&self, from: Model, to: Model) -> (f64, Option<Interval>) {
        let gains: Vec<f64> =
            self.values(to).iter().zip(self.values(from)).map(|(to, from)| to - from).collect();
        (average(&gains), interval(&gains))
    }

    /// Means over seeds.
    pub(super) fn right_samples(&self) -> Vec<f64> {
        columns(self.seeds.iter().map(|seed| seed.right.clone()).collect())
    }

    /// Means over seeds.
    pub(super) fn margins(&self) -> Vec<f64> {
        columns(self.seeds.iter().map(|seed| seed.margins.clone()).collect())
    }

    pub(super) fn metrics(&self) -> Value {
        by_model(|model| json!(self.accuracy(model)))
    }

    pub(super) fn intervals(&self) -> Value {
        by_model(|model| json!(self.interval(model)))
    }

    pub(super) fn by_seed(&self) -> Value {
        by_model(|model| self.seeds.iter().map(|seed| seed.accuracy(model)).collect())
    }
}

fn by_model(value: impl Fn(Model) -> Value) -> Value {
    let models: Map<String, Value> =
        Model::ALL.iter().map(|&model| (model.name().into(), value(model))).collect();
    models.into()
}

/// The mean of each column.
fn columns(rows: Vec<Vec<f64>>) -> Vec<f64> {
    let width = rows.iter().map(Vec::len).min().unwrap_or(0);
    (0..width).map(|i| average(&rows.iter().map(|row| row[i]).collect::<Vec<_>>())).collect()
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn interval(values: &[f64]) -> Option<Interval> {
    let mean = |of: &[usize]| Some(of.iter().map(|&i| values[i]).sum::<f64>() / of.len().max(1) as f64);
    bootstrap(values.len(), RESAMPLES, 1, mean)
}

/// The reward margin on held-out pairs at a round's last step.
pub(super) fn margins(out: &Path, round: &Finished) -> anyhow::Result<f64> {
    let path = out.join(format!("round-{}", round.round)).join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let of_line = |line: &str| -> Option<f64> {
        serde_json::from_str::<Value>(line).ok()?.get("eval/rewards/margins")?.as_f64()
    };
    Ok(text.lines().rev().find_map(of_line).unwrap_or(0.0))
}
