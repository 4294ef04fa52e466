//! The numbers of the comparison.

use ruminate::rewards::mario::{Interval, bootstrap};
use ruminate::rewards::rise::{Attempt, Attempts, Ties, majority};
use serde_json::{Map, Value, json};

const RESAMPLES: usize = 2000;
/// Turns of an evaluation.
pub(super) const TURNS: usize = 5;

/// A mean with its 95 % bootstrap interval over the problems.
pub(super) type Measured = (f64, Option<Interval>);

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

    /// For each problem: how many attempts that were right or wrong, as asked, were followed by another, and by a right one.
    fn followed(&self, model: Model, right: bool) -> Vec<[usize; 2]> {
        let follows = |problem: &Attempts| {
            let rights: Vec<bool> =
                problem.turns.iter().filter_map(|turn| turn.first()).map(|attempt| attempt.right).collect();
            let after: Vec<bool> =
                rights.windows(2).filter(|pair| pair[0] == right).map(|pair| pair[1]).collect();
            [after.len(), after.iter().filter(|&&right| right).count()]
        };
        self.attempts[model as usize].iter().map(follows).collect()
    }
}

/// What the models differ in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gain {
    /// The vote, from the start to one iteration.
    OverStart,
    /// After the iteration, from the first attempt to the vote.
    ByVoting,
    /// The vote, from unweighted to weighted training.
    OverUnweighted,
}

impl Gain {
    pub(super) const ALL: [Self; 3] = [Self::OverStart, Self::ByVoting, Self::OverUnweighted];

    /// From which vote to which: model and turns.
    fn votes(self) -> [(Model, usize); 2] {
        let from = match self {
            Self::OverStart => (Model::Start, TURNS),
            Self::ByVoting => (Model::Rise, 1),
            Self::OverUnweighted => (Model::Unweighted, TURNS),
        };
        [from, (Model::Rise, TURNS)]
    }

    /// In JSON.
    fn name(self) -> &'static str {
        match self {
            Self::OverStart => "over_start",
            Self::ByVoting => "by_voting",
            Self::OverUnweighted => "over_unweighted",
        }
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

    pub(super) fn vote(&self, model: Model, turns: usize) -> Measured {
        let values = self.values(model, turns);
        (average(&values), interval(&values))
    }

    /// How much more one vote is right than another, problem by problem.
    pub(super) fn difference(&self, from: (Model, usize), to: (Model, usize)) -> Measured {
        let (from, to) = (self.values(from.0, from.1), self.values(to.0, to.1));
        let gains: Vec<f64> = to.iter().zip(from).map(|(to, from)| to - from).collect();
        (average(&gains), interval(&gains))
    }

    pub(super) fn gain(&self, gain: Gain) -> Measured {
        let [from, to] = gain.votes();
        self.difference(from, to)
    }

    /// The share of right attempts among those after a right or wrong one, as asked, of all seeds together.
    pub(super) fn then_right(&self, model: Model, right: bool) -> Measured {
        let rows: Vec<Vec<[usize; 2]>> = self.seeds.iter().map(|seed| seed.followed(model, right)).collect();
        let width = rows.iter().map(Vec::len).min().unwrap_or(0);
        let share = |of: &[usize]| {
            let sum =
                |k: usize| of.iter().flat_map(|&i| rows.iter().map(move |row| row[i][k])).sum::<usize>();
            let [all, then] = [0, 1].map(sum);
            (all > 0).then(|| then as f64 / all as f64)
        };
        let all: Vec<usize> = (0..width).collect();
        (share(&all).unwrap_or(0.0), bootstrap(width, RESAMPLES, 1, share))
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

    pub(super) fn gains(&self) -> Value {
        let gains = Gain::ALL.map(|gain| {
            let by_seed = self.seeds.iter().map(|seed| {
                let [from, to] = gain.votes().map(|(model, turns)| seed.vote(model, turns));
                to - from
            });
            let (mean, interval) = self.gain(gain);
            let value = json!({ "mean": mean, "interval": interval, "by_seed": by_seed.collect::<Vec<_>>() });
            (gain.name().to_string(), value)
        });
        Map::from_iter(gains).into()
    }

    /// How often the attempt after a wrong or a right one is right.
    pub(super) fn next_attempts(&self) -> Value {
        let next = Model::ALL.iter().flat_map(|&model| {
            [("after_wrong", false), ("after_right", true)].map(|(name, right)| {
                (format!("{}{name}", model.prefix()), json!(self.then_right(model, right).0))
            })
        });
        next.collect::<Map<String, Value>>().into()
    }
}

fn by_metric(value: impl Fn(Model, usize) -> Value) -> Value {
    let metrics: Map<String, Value> = Model::ALL
        .iter()
        .flat_map(|&model| {
            [1, TURNS].map(|turns| (format!("{}m1t{turns}", model.prefix()), value(model, turns)))
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A problem whose turns give these answers; `9` is right.
    fn problem(answers: &str) -> Attempts {
        let attempt = |answer: char| vec![Attempt { answer: Some(answer.to_string()), right: answer == '9' }];
        Attempts { turns: answers.chars().map(attempt).collect() }
    }

    #[test]
    fn votes_gains_and_next_attempts_are_counted() {
        let start = vec![problem("91111"), problem("12345")];
        let rise = vec![problem("99199"), problem("19299")];
        let unweighted = vec![problem("99999"), problem("11111")];
        let seed =
            SeedResult { seed: 1, attempts: vec![start, rise, unweighted], solved: [2, 2], examples: 4 };
        let results = Results { seeds: vec![seed] };
        assert_eq!(results.metrics()["start_m1t1"], 0.5);
        assert_eq!(results.metrics()["start_m1t5"], 0.0);
        assert_eq!(results.metrics()["m1t5"], 1.0);
        assert_eq!(results.gains()["over_start"]["mean"], 1.0);
        assert_eq!(results.gains()["by_voting"]["mean"], 0.5);
        assert_eq!(results.gains()["over_unweighted"]["by_seed"], json!([0.5]));
        // After 1, 1 and 2, 9 follows; after 9 it is 9 three times, 1 and 2 once.
        assert_eq!(results.next_attempts()["after_wrong"], 1.0);
        assert_eq!(results.next_attempts()["after_right"], 0.6);
        assert_eq!(results.next_attempts()["start_after_wrong"], 0.0);
    }
}
