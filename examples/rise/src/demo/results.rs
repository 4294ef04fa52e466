//! The numbers of the comparison.

use ruminate::rewards::mario::{Interval, bootstrap};
use ruminate::rewards::rise::{Attempt, Attempts, Ties, majority};
use serde_json::{Map, Value, json};

const RESAMPLES: usize = 2000;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    /// Has seen some solutions.
    Start,
    /// Has learnt from its own episodes, by what attempts were worth.
    Rise,
    /// Has learnt from the same examples, all of equal weight.
    Unweighted,
}

impl Model {
    pub(super) const ALL: [Self; 3] = [Self::Start, Self::Rise, Self::Unweighted];

    /// In tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Rise => "one iteration",
            Self::Unweighted => "the same, unweighted",
        }
    }

    /// In JSON, before the name of the metric.
    fn prefix(self) -> &'static str {
        match self {
            Self::Start => "start_",
            Self::Rise => "",
            Self::Unweighted => "unweighted_",
        }
    }
}

/// The models of one seed.
pub(super) struct SeedResult {
    pub(super) seed: u64,
    /// What each model answers to the test problems in each turn, in the order of [`Model::ALL`].
    pub(super) attempts: Vec<Vec<Attempts>>,
    /// Problems that were collected on, and those that were solved in the end.
    pub(super) solved: [usize; 2],
    pub(super) examples: usize,
}

impl SeedResult {
    /// Whether the majority of the first turns is right, for each problem.
    fn values(&self, model: Model, turns: usize) -> Vec<f64> {
        let vote = |problem: &Attempts| {
            let first: Vec<Attempt> =
                problem.turns.iter().take(turns).filter_map(|turn| turn.first().cloned()).collect();
            f64::from(u8::from(majority(&first, Ties::First).unwrap_or(false)))
        };
        self.attempts[model as usize].iter().map(vote).collect()
    }

    pub(super) fn vote(&self, model: Model, turns: usize) -> f64 {
        average(&self.values(model, turns))
    }
}

#[derive(Default)]
pub(super) struct Results {
    pub(super) seeds: Vec<SeedResult>,
}

impl Results {
    /// For each problem, averaged over seeds: the problems are the same for all, and no more than they are.
    fn values(&self, model: Model, turns: usize) -> Vec<f64> {
        let rows: Vec<Vec<f64>> = self.seeds.iter().map(|seed| seed.values(model, turns)).collect();
        let width = rows.iter().map(Vec::len).min().unwrap_or(0);
        (0..width).map(|i| average(&rows.iter().map(|row| row[i]).collect::<Vec<_>>())).collect()
    }

    pub(super) fn vote(&self, model: Model, turns: usize) -> (f64, Option<Interval>) {
        let values = self.values(model, turns);
        (average(&values), interval(&values))
    }

    /// How much more one vote is right than another, problem by problem.
    pub(super) fn gain(&self, from: (Model, usize), to: (Model, usize)) -> (f64, Option<Interval>) {
        let (from, to) = (self.values(from.0, from.1), self.values(to.0, to.1));
        let gains: Vec<f64> = to.iter().zip(from).map(|(to, from)| to - from).collect();
        (average(&gains), interval(&gains))
    }

    pub(super) fn metrics(&self) -> Value {
        by_metric(|model, turns| json!(self.vote(model, turns).0))
    }

    pub(super) fn intervals(&self) -> Value {
        by_metric(|model, turns| json!(self.vote(model, turns).1))
    }

    pub(super) fn by_seed(&self) -> Value {
        by_metric(|model, turns| self.seeds.iter().map(|seed| seed.vote(model, turns)).collect())
    }
}

fn by_metric(value: impl Fn(Model, usize) -> Value) -> Value {
    let metrics: Map<String, Value> = Model::ALL
        .iter()
        .flat_map(|&model| [1, 5].map(|turns| (format!("{}m1t{turns}", model.prefix()), value(model, turns))))
        .collect();
    metrics.into()
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn interval(values: &[f64]) -> Option<Interval> {
    let mean = |of: &[usize]| Some(of.iter().map(|&i| values[i]).sum::<f64>() / of.len().max(1) as f64);
    bootstrap(values.len(), RESAMPLES, 1, mean)
}
