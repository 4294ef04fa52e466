//! The numbers of the comparison.

use ruminate::rewards::mario::bootstrap;
use ruminate::rewards::rise::{Attempt, Attempts, Ties, majority};
use ruminate::run::demo::{Comparison, Estimate};
use serde_json::{Map, Value, json};

/// Turns of an evaluation.
pub(super) const TURNS: usize = 5;

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

/// The models of one seed.
pub(crate) struct SeedResult {
    pub(super) seed: u64,
    /// Each model's answers to the test problems in each turn, in the order of [`Model::ALL`].
    pub(super) attempts: Vec<Vec<Attempts>>,
    /// Problems that were collected on, and those that were solved in the end.
    pub(super) solved: [usize; 2],
    pub(super) examples: u64,
}

/// True if the majority of the first turns is right.
fn vote(problem: &Attempts, turns: usize) -> f64 {
    let first: Vec<Attempt> =
        problem.turns.iter().take(turns).filter_map(|turn| turn.first().cloned()).collect();
    f64::from(u8::from(majority(&first, Ties::First).unwrap_or(false)))
}

/// How many attempts that were right or wrong, as asked, were followed by another, and by a right one.
fn followed(problem: &Attempts, right: bool) -> [usize; 2] {
    let rights: Vec<bool> =
        problem.turns.iter().filter_map(|turn| turn.first()).map(|attempt| attempt.right).collect();
    let after = || rights.windows(2).filter(|pair| pair[0] == right);
    [after().count(), after().filter(|pair| pair[1]).count()]
}

/// A vote of all seeds, and of each.
pub(super) struct Vote {
    pub(super) estimate: Estimate,
    pub(super) by_seed: Vec<f64>,
}

pub(super) struct Results<'a> {
    pub(super) seeds: &'a [SeedResult],
    /// The votes of 1, 2, … turns.
    votes: Comparison,
}

impl<'a> Results<'a> {
    pub(super) fn of(seeds: &'a [SeedResult]) -> Self {
        let mut votes =
            Comparison::new(Model::ALL.map(Model::name), (1..=TURNS).map(|turns| format!("m1@t{turns}")));
        for seed in seeds {
            votes.add_seed(|model, metric| {
                seed.attempts[model].iter().map(|problem| vote(problem, metric + 1)).collect()
            });
        }
        Self { seeds, votes }
    }

    pub(super) fn vote(&self, model: Model, turns: usize) -> Vote {
        let estimate = self.votes.estimate(model as usize, turns - 1);
        let of = |seed| self.votes.of_seed(seed, model as usize, turns - 1);
        Vote { estimate, by_seed: (0..self.seeds.len()).map(of).collect() }
    }

    pub(super) fn gain(&self, gain: Gain) -> Estimate {
        let [from, to] = gain.votes().map(|(model, turns)| (model as usize, turns - 1));
        self.votes.gain(from, to)
    }

    /// From a model's first attempt to its vote.
    pub(super) fn by_voting(&self, model: Model) -> Estimate {
        self.votes.gain((model as usize, 0), (model as usize, TURNS - 1))
    }

    /// The share of right attempts among those after a right or wrong one, as asked, of all seeds together.
    pub(super) fn then_right(&self, model: Model, right: bool) -> Estimate {
        let rows: Vec<Vec<[usize; 2]>> = self
            .seeds
            .iter()
            .map(|seed| {
                seed.attempts[model as usize].iter().map(|problem| followed(problem, right)).collect()
            })
            .collect();
        let width = rows.iter().map(Vec::len).min().unwrap_or(0);
        let share = |of: &[usize]| {
            let sum =
                |k: usize| of.iter().flat_map(|&i| rows.iter().map(move |row| row[i][k])).sum::<usize>();
            let [all, then] = [0, 1].map(sum);
            (all > 0).then(|| then as f64 / all as f64)
        };
        let all: Vec<usize> = (0..width).collect();
        Estimate { mean: share(&all).unwrap_or(0.0), interval: bootstrap(width, 2000, 1, share) }
    }

    /// A value of each model's first attempt and of its vote.
    pub(super) fn by_metric(&self, value: impl Fn(Vote) -> Value) -> Value {
        let models = Model::ALL.iter();
        let of = |&model: &Model| {
            [1, TURNS].map(|turns| (format!("{}m1t{turns}", model.prefix()), value(self.vote(model, turns))))
        };
        models.flat_map(of).collect::<Map<_, _>>().into()
    }

    pub(super) fn gains(&self) -> Value {
        let gains = Gain::ALL.map(|gain| {
            let Estimate { mean, interval } = self.gain(gain);
            let [from, to] = gain.votes().map(|(model, turns)| self.vote(model, turns).by_seed);
            let by_seed: Vec<f64> = to.iter().zip(from).map(|(to, from)| to - from).collect();
            (gain.name().to_string(), json!({ "mean": mean, "interval": interval, "by_seed": by_seed }))
        });
        Map::from_iter(gains).into()
    }

    /// How often the attempt after a wrong or a right one is right.
    pub(super) fn next_attempts(&self) -> Value {
        let next = Model::ALL.iter().flat_map(|&model| {
            [("after_wrong", false), ("after_right", true)].map(|(name, right)| {
                (format!("{}{name}", model.prefix()), json!(self.then_right(model, right).mean))
            })
        });
        next.collect::<Map<String, Value>>().into()
    }
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
        let seeds = [seed];
        let results = Results::of(&seeds);
        let metrics = results.by_metric(|of| json!(of.estimate.mean));
        assert_eq!(metrics["start_m1t1"], 0.5);
        assert_eq!(metrics["start_m1t5"], 0.0);
        assert_eq!(metrics["m1t5"], 1.0);
        assert_eq!(results.gains()["over_start"]["mean"], 1.0);
        assert_eq!(results.gains()["by_voting"]["mean"], 0.5);
        assert_eq!(results.gains()["over_unweighted"]["by_seed"], json!([0.5]));
        // After 1, 1 and 2, 9 follows; after 9 it is 9 three times, 1 and 2 once.
        assert_eq!(results.next_attempts()["after_wrong"], 1.0);
        assert_eq!(results.next_attempts()["after_right"], 0.6);
        assert_eq!(results.next_attempts()["start_after_wrong"], 0.0);
    }
}
