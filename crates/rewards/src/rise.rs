//! How good several turns, or several samples, are: the metrics of RISE (arXiv 2407.18219) with bootstrap intervals.

use std::collections::BTreeMap;

use ruminate_datasets::environments::{Environment, is_success};
use ruminate_datasets::rise::{Episode, Log};
use serde::{Deserialize, Serialize};

use crate::mario::{Interval, bootstrap, mean};

/// One attempt at a problem.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempt {
    /// What it votes for; attempts without an answer do not vote.
    pub answer: Option<String>,
    /// Is it right?
    pub right: bool,
}

/// All attempts at a problem.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempts {
    /// `[turn][sample]`.
    pub turns: Vec<Vec<Attempt>>,
}

impl Attempts {
    /// Those of an episode: rewards as they were logged, answers as the environment reads them. A turn whose sampling failed is
    /// one wrong attempt without an answer.
    #[must_use]
    pub fn of(episode: &Episode, environment: &dyn Environment) -> Self {
        let problem = episode.problem();
        let attempt = |(action, &reward): (&String, &Option<f64>)| match reward {
            Some(reward) => {
                Attempt { answer: environment.judge(&problem, action).answer, right: is_success(reward) }
            }
            None => Attempt::default(),
        };
        let history = &episode.turn_history;
        let turn = |(turn, actions): (&usize, &Vec<String>)| {
            let rewards = history.rewards.get(turn).map_or(&[][..], Vec::as_slice);
            actions.iter().zip(rewards).map(attempt).collect()
        };
        Self { turns: history.actions.iter().map(turn).collect() }
    }

    /// Those of all episodes of a log, of this or the published program.
    #[must_use]
    pub fn of_log(log: &Log, environment: &dyn Environment) -> Vec<Self> {
        log.episodes.iter().map(|episode| Self::of(episode, environment)).collect()
    }

    /// The first attempt of a turn. None where an oracle had ended the episode before; after a failure, turns that were never
    /// played count as wrong.
    fn first(&self, turn: usize) -> Option<Attempt> {
        match self.turns.get(turn) {
            Some(samples) => Some(samples.first().cloned().unwrap_or_default()),
            None if self.turns.last().is_some_and(|last| last.iter().any(|attempt| attempt.right)) => None,
            None => Some(Attempt::default()),
        }
    }
}

/// Who wins a vote when several answers have as many votes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ties {
    /// The answer that was given first.
    #[default]
    First,
    /// The answer that was given last.
    Last,
}

/// Is the answer with the most votes right? It is if the attempt that gave it first is. None if nobody votes.
///
/// # Example
/// ```
/// use ruminate_rewards::rise::{Attempt, Ties, majority};
/// let attempt = |answer: &str, right| Attempt { answer: Some(answer.into()), right };
/// let attempts = [attempt("4", false), attempt("5", true), Attempt::default()];
/// assert_eq!(majority(&attempts, Ties::First), Some(false));
/// assert_eq!(majority(&attempts, Ties::Last), Some(true));
/// ```
#[must_use]
pub fn majority(attempts: &[Attempt], ties: Ties) -> Option<bool> {
    struct Votes {
        count: usize,
        first: usize,
        last: usize,
    }
    let mut votes: BTreeMap<&str, Votes> = BTreeMap::new();
    for (i, attempt) in attempts.iter().enumerate() {
        if let Some(answer) = &attempt.answer {
            let of = votes.entry(answer).or_insert(Votes { count: 0, first: i, last: i });
            of.count += 1;
            of.last = i;
        }
    }
    let winner = votes.values().max_by_key(|votes| match ties {
        Ties::First => (votes.count, attempts.len() - votes.first),
        Ties::Last => (votes.count, votes.last),
    })?;
    Some(attempts[winner.first].right)
}

/// A metric over all problems.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TurnMetric {
    /// Its name, see [`turn_metrics`].
    pub name: String,
    /// Its value, in `[0, 1]`.
    pub value: f64,
    /// Its 95 % bootstrap interval over problems.
    pub interval: Option<Interval>,
}

/// How metrics are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricOptions {
    /// Who wins a tie.
    pub ties: Ties,
    /// Resamples of the bootstrap; without any, there are no intervals. Default: 1000.
    pub resamples: usize,
    /// Their seed.
    pub seed: u64,
}

impl Default for MetricOptions {
    fn default() -> Self {
        Self { ties: Ties::First, resamples: 1000, seed: 0 }
    }
}

/// The metrics of RISE, as shares of the problems. With `k` turns and `K` samples:
///
/// | name | which problems count |
/// | --- | --- |
/// | `acc@tk` | the attempt of turn k is right |
/// | `m1@tk` | the majority of turns 1 to k is right |
/// | `p1@tk` | some attempt of turns 1 to k is right |
/// | `mK@t1`, `passK@t1` | the majority of the first K attempts of turn 1, or one of them, is right |
/// | `improved_t1_to_last`, `broken_t1_to_last` | wrong in turn 1 and right in the last one; the reverse |
///
/// The first sample of a turn stands for it. A metric is left out where it is not defined for every problem: in logs with an oracle,
/// episodes end with the first right attempt, and only `p1` has a meaning beyond it.
#[must_use]
pub fn turn_metrics(problems: &[Attempts], options: MetricOptions) -> Vec<TurnMetric> {
    let turns = problems.iter().map(|problem| problem.turns.len()).max().unwrap_or(0);
    let samples = problems.iter().map(|problem| problem.turns.first().map_or(0, Vec::len)).min().unwrap_or(0);
    let mut metrics = vec![];
    let mut add = |name: String, of: &dyn Fn(&Attempts) -> Option<bool>| {
        let counts: Option<Vec<bool>> = problems.iter().map(of).collect();
        if let Some(counts) = counts {
            metrics.extend(metric(name, &counts, options));
        }
    };
    let first = |problem: &Attempts, upto: usize| -> Option<Vec<Attempt>> {
        (0..upto).map(|turn| problem.first(turn)).collect()
    };
    let vote = |attempts: &[Attempt]| majority(attempts, options.ties).unwrap_or(false);
    for k in 1..=turns {
        add(format!("acc@t{k}"), &|problem| Some(problem.first(k - 1)?.right));
        add(format!("m1@t{k}"), &|problem| Some(vote(&first(problem, k)?)));
        let right = |samples: &Vec<Attempt>| samples.first().is_some_and(|attempt| attempt.right);
        add(format!("p1@t{k}"), &|problem| Some(problem.turns.iter().take(k).any(right)));
    }
    for k in 2..=samples {
        add(format!("m{k}@t1"), &|problem| Some(vote(&problem.turns[0][..k])));
        add(format!("pass{k}@t1"), &|problem| Some(problem.turns[0][..k].iter().any(|a| a.right)));
    }
    if turns > 1 {
        let ends = |problem: &Attempts| Some((problem.first(0)?.right, problem.first(turns - 1)?.right));
        add("improved_t1_to_last".into(), &|problem| ends(problem).map(|(first, last)| !first && last));
        add("broken_t1_to_last".into(), &|problem| ends(problem).map(|(first, last)| first && !last));
    }
    metrics
}

fn metric(name: String, counts: &[bool], options: MetricOptions) -> Option<TurnMetric> {
    let share = |counts: &mut dyn Iterator<Item = bool>| mean(counts.map(|c| Some(f64::from(u8::from(c)))));
    let value = share(&mut counts.iter().copied())?;
    let resampled = |rows: &[usize]| share(&mut rows.iter().map(|&row| counts[row]));
    let interval = bootstrap(counts.len(), options.resamples, options.seed, resampled);
    Some(TurnMetric { name, value, interval })
}

#[cfg(test)]
mod tests {
    use approx::abs_diff_eq;
    use proptest::prelude::*;
    use ruminate_datasets::environments::{Compat, Gsm8k};

    use super::*;

    fn problem(turns: &[&[(u8, bool)]]) -> Attempts {
        // 0 stands for no answer.
        let attempt = |&(answer, right): &(u8, bool)| Attempt {
            answer: (answer > 0).then(|| answer.to_string()),
            right,
        };
        Attempts { turns: turns.iter().map(|samples| samples.iter().map(attempt).collect()).collect() }
    }

    fn value(problems: &[Attempts], name: &str) -> Option<f64> {
        let options = MetricOptions { resamples: 0, ..MetricOptions::default() };
        turn_metrics(problems, options).into_iter().find(|m| m.name == name).map(|m| m.value)
    }

    #[test]
    fn ends_by_an_oracle_leave_out_what_they_make_meaningless_and_failures_are_wrong() {
        let stopped = problem(&[&[(1, true)]]);
        let wrong = problem(&[&[(1, false)], &[(2, false)]]);
        let both = [stopped.clone(), wrong.clone()];
        assert_eq!(value(&both, "acc@t1"), Some(0.5));
        assert_eq!(value(&both, "p1@t2"), Some(0.5));
        for undefined in ["acc@t2", "m1@t2", "improved_t1_to_last", "broken_t1_to_last"] {
            assert_eq!(value(&both, undefined), None);
        }
        let failed = problem(&[&[(0, false)]]);
        assert_eq!(value(&[failed, wrong], "acc@t2"), Some(0.0));
        assert!(turn_metrics(&[], MetricOptions::default()).is_empty());
    }

    #[test]
    fn a_public_log_gives_the_numbers_of_the_specification() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../../shared/data/rise/logs/eval_gsm8k_5_turns.json");
        if !path.is_file() {
            return;
        }
        let log = Log::read(&path).unwrap();
        let problems = Attempts::of_log(&log, &Gsm8k { compat: Compat::Reference });
        for (name, problems_right) in
            [("acc@t1", 10.0), ("acc@t5", 7.0), ("m1@t5", 9.0), ("p1@t5", 11.0), ("improved_t1_to_last", 1.0)]
        {
            let got = value(&problems, name).unwrap() * 15.0;
            assert!(abs_diff_eq!(got, problems_right, epsilon = 1e-9), "{name}: {got}");
        }
    }

    proptest! {
        #[test]
        fn metrics_keep_their_order(
            answers in prop::collection::vec(prop::collection::vec(0u8..4, 4), 1..12), gold in 1u8..4,
        ) {
            let problems: Vec<Attempts> = answers
                .iter()
                .map(|answers| {
                    let turns: Vec<[(u8, bool); 1]> = answers.iter().map(|&a| [(a, a == gold)]).collect();
                    problem(&turns.iter().map(|turn| &turn[..]).collect::<Vec<_>>())
                })
                .collect();
            let options = MetricOptions { resamples: 50, ..MetricOptions::default() };
            let metrics = turn_metrics(&problems, options);
            let value = |name: &str| metrics.iter().find(|m| m.name == name).unwrap().value;
            for k in 1..=4 {
                let any = value(&format!("p1@t{k}"));
                let (one, most) = (value(&format!("acc@t{k}")), value(&format!("m1@t{k}")));
                prop_assert!(one <= any && most <= any);
            }
            prop_assert_eq!(value("m1@t1"), value("acc@t1"));
            let change = value("improved_t1_to_last") - value("broken_t1_to_last");
            prop_assert!(abs_diff_eq!(value("acc@t4") - value("acc@t1"), change, epsilon = 1e-12));
            for metric in &metrics {
                let interval = metric.interval.unwrap();
                prop_assert!(0.0 <= interval.low && interval.low <= interval.high && interval.high <= 1.0);
            }
        }
    }
}
