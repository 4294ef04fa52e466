//! Rewards that a configuration names.

mod guide;
mod models;
mod programs;
mod servers;
mod texts;

use ruminate_datasets::rows::{PromptRow, TextOrMessages};
use ruminate_rewards::configured::{RewardConfig, WeightedRewards};
use serde_json::{Value, json};

fn row(answer: Option<&str>) -> PromptRow {
    let fields = json!({"level": 3}).as_object().unwrap().clone();
    PromptRow { prompt: TextOrMessages::Text("q".into()), answer: answer.map(Into::into), fields }
}

fn rewards(kind: Value) -> WeightedRewards {
    let config = json!([{"name": "r", "kind": kind}]);
    WeightedRewards::new(&serde_json::from_value::<Vec<RewardConfig>>(config).unwrap()).unwrap()
}

/// The reward of a text, or the error with its causes.
fn reward(rewards: &WeightedRewards, answer: Option<&str>, text: &str) -> Result<f32, String> {
    let judged = rewards.judge(&[&row(answer)], &[text]).map_err(|error| told(&error))?;
    Ok(judged[0].value)
}

fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
