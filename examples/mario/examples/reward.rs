//! A reward of one's own for rationales: beside the rewards that are there, and as what Quark learns from.

use ruminate::algorithms::mario::TextScorer;
use ruminate::algorithms::quark::{Buckets, ControlConfig, ControlTokens, RewardSpec};
use ruminate::models::Tokenizer;
use ruminate::rewards::RewardError;
use ruminate::rewards::mario::{Accuracy, Diversity, Response, RewardSet, TextReward};

/// How many of the question's names the response speaks of.
struct OnTopic;

impl TextReward for OnTopic {
    fn name(&self) -> String {
        "on-topic".into()
    }

    /// With bounds, a reward has a part in the normalised average.
    fn bounds(&self) -> Option<(f64, f64)> {
        Some((0.0, 1.0))
    }

    /// All responses at once, so that a reward with a model behind it can make batches.
    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError> {
        Ok(responses.iter().map(|response| named(response.question, response.text)).collect())
    }
}

fn named(question: &str, text: &str) -> f64 {
    let is_name = |word: &&str| word.starts_with(char::is_uppercase);
    // The first word of a question is a capital anyway.
    let names: Vec<&str> = question.split_whitespace().skip(1).filter(is_name).collect();
    let found = names.iter().filter(|name| text.contains(**name)).count();
    if names.is_empty() { 1.0 } else { found as f64 / names.len() as f64 }
}

#[expect(clippy::print_stdout, reason = "the result is for whoever runs the example")]
fn main() -> anyhow::Result<()> {
    let rewards = RewardSet::new().add(OnTopic).add(Accuracy).add(Diversity::Rationale);
    let question = "What is the weather where Anna lives? (A) sunny (B) rainy";
    let texts = [
        "Our Anna lives in Corvale. Corvale is rainy. So the answer is (B).",
        "Every city has a weather. So the answer is (B).",
        "Anna Anna Anna Anna Anna. So the answer is (A).",
    ];
    let responses = texts.map(|text| Response { question, gold: "(B)", text });
    for (name, scores) in rewards.names().iter().zip(rewards.scores(&responses)?.columns()) {
        println!("{name}: {scores:.2}");
    }

    // For Quark: a control token for each of three quantiles, or for right and wrong. The names are those of the rewards.
    let quantiles = Buckets::Quantiles { count: 3, ties: Default::default() };
    let spec = |name: String| match name.as_str() {
        "accuracy" => RewardSpec::new(&name).buckets(Buckets::Correctness),
        _ => RewardSpec::new(&name).buckets(quantiles.clone()),
    };
    let control = ControlConfig {
        rewards: rewards.names().into_iter().map(spec).collect(),
        ..ControlConfig::default()
    };
    let mut tokenizer = Tokenizer::open("fixtures/world/t5".as_ref())?;
    let tokens = ControlTokens::add_to(&mut tokenizer, &control)?;
    let scorer = TextScorer::new(rewards);
    println!("{} control tokens for {:?}", tokens.names().len(), scorer.rewards().names());
    Ok(())
}
