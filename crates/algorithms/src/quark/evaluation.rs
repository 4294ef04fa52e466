//! What validation tells.

use super::{Judged, QuarkConfig};
use crate::ppo::{Prompt, Response};
use crate::trainer::Evaluation;
use crate::{Error, Metrics, Result};

/// Sum and number of the scores that a reward has given.
pub(super) fn total(judged: &[Judged], reward: usize) -> (f64, usize) {
    scores(judged, reward).fold((0.0, 0), |(sum, count), score| (sum + score, count + 1))
}

/// The scores that a reward has given.
pub(super) fn scores(judged: &[Judged], reward: usize) -> impl Iterator<Item = f64> {
    judged.iter().filter_map(move |judged| judged.scores[reward]).filter(|score| score.is_finite())
}

/// Means of the rewards, and the score that they give.
pub(crate) fn summarize(config: &QuarkConfig, judged: &[Judged]) -> Result<Evaluation> {
    let share = |count: usize| count as f64 / judged.len().max(1) as f64;
    let mut metrics: Metrics = vec![
        ("eval/correct".into(), share(judged.iter().filter(|judged| judged.correct).count())),
        ("eval/valid".into(), share(judged.iter().filter(|judged| judged.valid).count())),
    ];
    let mut deciding = vec![];
    for (i, reward) in config.control.rewards.iter().enumerate() {
        let (sum, count) = total(judged, i);
        if count == 0 {
            continue;
        }
        let mean = sum / count as f64;
        metrics.push((format!("eval/{}", reward.name), mean));
        if config.best_by.is_empty() || config.best_by == reward.name {
            deciding.push(mean);
        }
    }
    if deciding.is_empty() {
        let what = if config.best_by.is_empty() { "any reward" } else { &config.best_by };
        let reason =
            format!("no held-out response has a score for {what}, so that no best checkpoint can be chosen");
        return Err(Error::Pool { reason });
    }
    let score = deciding.iter().sum::<f64>() / deciding.len() as f64;
    Ok(Evaluation { metrics, score })
}

/// The values behind the means of a [summary](summarize).
pub(super) fn distributions(config: &QuarkConfig, judged: &[Judged]) -> Vec<(String, Vec<f64>)> {
    let share =
        |of: fn(&Judged) -> bool| judged.iter().map(|judged| f64::from(u8::from(of(judged)))).collect();
    let mut all = vec![
        ("eval/correct".into(), share(|judged| judged.correct)),
        ("eval/valid".into(), share(|judged| judged.valid)),
    ];
    let named = config.control.rewards.iter().enumerate();
    all.extend(named.map(|(i, reward)| (format!("eval/{}", reward.name), scores(judged, i).collect())));
    all
}

pub(crate) fn shown_sample<'a, Q>(
    step: u64,
    prompt: &Prompt<Q>,
    response: &Response,
    judged: &Judged,
    names: impl Iterator<Item = &'a str>,
) -> serde_json::Value {
    let mut sample = serde_json::json!({
        "step": step, "task": prompt.task, "prompt": prompt.text, "response": response.text,
        "correct": judged.correct,
    });
    for (name, score) in names.zip(&judged.scores) {
        sample[name] = (*score).into();
    }
    sample
}
