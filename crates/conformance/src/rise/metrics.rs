//! Kind `metrics`: shares of problems from answers and rewards.

use std::collections::BTreeMap;
use std::path::Path;

use ruminate_datasets::environments::{is_success, normalise};
use ruminate_rewards::rise::{Attempt, Attempts, MetricOptions, turn_metrics};
use serde::Deserialize;
use serde_json::Value;

use crate::Outcome;
use crate::compare::{Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};

pub(super) fn metrics(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Group {
        problems: Vec<Problem>,
        metrics: BTreeMap<String, f64>,
    }
    #[derive(Deserialize)]
    struct Problem {
        answers: Vec<Vec<Value>>,
        rewards: Vec<Vec<Option<f64>>>,
        /// Answers of the first samples before normalisation.
        #[serde(default)]
        raw: Vec<String>,
    }
    let file = GoldenFile::read(path)?;
    // Values are written with ten digits.
    let tolerance = file.tolerance_or(Tolerance { absolute: 1e-9, relative: 0.0 })?;
    let cases = file.cases("groups", |group: Group| {
        let mut problems = vec![];
        for problem in &group.problems {
            equal("turns of rewards", problem.rewards.len(), problem.answers.len())?;
            let mut turns = vec![];
            for (answers, rewards) in problem.answers.iter().zip(&problem.rewards) {
                equal("samples with rewards", rewards.len(), answers.len())?;
                let attempt = |(answer, reward): (&Value, &Option<f64>)| Attempt {
                    answer: (!answer.is_null()).then(|| answer.to_string()),
                    right: reward.is_some_and(is_success),
                };
                turns.push(answers.iter().zip(rewards).map(attempt).collect());
            }
            for (raw, answers) in problem.raw.iter().zip(&problem.answers) {
                equal("normalised answer", answers.first(), Some(&Value::from(normalise(raw)?)))?;
            }
            problems.push(Attempts { turns });
        }
        let got = turn_metrics(&problems, MetricOptions { resamples: 100, ..MetricOptions::default() });
        for (name, want) in &group.metrics {
            let metric = got.iter().find(|metric| metric.name == *name);
            let metric = metric.ok_or_else(|| Mismatch(format!("{name}: missing")))?;
            tolerance.close(name, &[metric.value], &[*want])?;
        }
        equal("number of metrics", got.len(), group.metrics.len())
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}
