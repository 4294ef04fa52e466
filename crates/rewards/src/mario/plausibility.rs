//! How plausible a rationale is, by Vera.

use ruminate_datasets::mario::rationale;
use ruminate_models::Vera;

use super::{Response, TextReward};
use crate::RewardError;

/// Vera's calibrated score of the rationale as one statement.
///
/// # Example
/// ```no_run
/// use ruminate_models::Vera;
/// use ruminate_rewards::mario::{Plausibility, Response, TextReward};
/// use tch::{Device, Kind};
///
/// let vera = Vera::load("vera".as_ref(), Kind::Float, Device::cuda_if_available())?;
/// let text = "Birds have wings. So the answer is yes.";
/// let score = Plausibility::new(vera).scores(&[Response { question: "Do birds fly?", gold: "yes", text }])?;
/// assert!((0.0..=1.0).contains(&score[0]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Plausibility {
    vera: Vera,
    with_question: bool,
}

impl Plausibility {
    /// Judges rationales alone: MaRio's reward.
    #[must_use]
    pub fn new(vera: Vera) -> Self {
        Self { vera, with_question: false }
    }

    /// Judges the question and the whole response together (`plausibility-w-qn`).
    #[must_use]
    pub fn with_question(vera: Vera) -> Self {
        Self { vera, with_question: true }
    }
}

/// The statement of `plausibility-w-qn`: the question, with a period unless it ends in one or in a question mark, and the
/// whole response.
#[must_use]
pub fn statement_with_question(question: &str, response: &str) -> String {
    let period = if question.ends_with(['.', '?']) { "" } else { "." };
    format!("{question}{period} {response}")
}

impl TextReward for Plausibility {
    fn name(&self) -> String {
        if self.with_question { "plausibility-w-qn" } else { "plausibility" }.to_string()
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        Some((0.0, 1.0))
    }

    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError> {
        let statements: Vec<String> = if self.with_question {
            responses.iter().map(|r| statement_with_question(r.question, r.text)).collect()
        } else {
            responses.iter().map(|r| rationale(r.text).to_string()).collect()
        };
        let score = |(sample, plausibility): (usize, ruminate_models::Plausibility)| {
            let value = plausibility.calibrated;
            let task = self.name();
            if value.is_finite() { Ok(value) } else { Err(RewardError::NotFinite { sample, task, value }) }
        };
        self.vera.score(&statements)?.into_iter().enumerate().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruminate_models::{T5, T5Config, VeraHead};
    use serde_json::{Value, json};
    use std::path::Path;
    use tch::{Device, Kind};

    /// A scorer with random weights and the vocabulary of the bundled world.
    fn write(folder: &Path) {
        let world = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/world/t5");
        let text = std::fs::read_to_string(world.join("tokenizer.json")).unwrap();
        let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        VeraHead::TOKENS.iter().for_each(|token| drop(vocab.remove(*token)));
        let next = vocab.values().filter_map(Value::as_i64).max().unwrap() + 1;
        for (id, token) in (next..).zip(VeraHead::TOKENS) {
            vocab.insert(token.into(), json!(id));
        }
        std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let config = T5Config {
            d_model: 16,
            d_kv: 8,
            d_ff: 24,
            num_heads: 2,
            is_encoder_decoder: false,
            vocab_size: next + 3,
            ..T5Config::open(&world.join("config.json")).unwrap()
        };
        let t5 = T5::new(config, Kind::Float, Device::Cpu, 3).unwrap();
        tch::no_grad(|| {
            let _ = t5.parameters().get("shared.weight").unwrap().get(next + 2).fill_(2.0);
        });
        t5.save(folder).unwrap();
    }

    #[test]
    fn the_statement_is_the_rationale_or_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        let load = || Vera::load(folder.path(), Kind::Float, Device::Cpu).unwrap();
        let (question, text) =
            ("Where does Ada live?", "People in the city live in Corvale. So the answer is (A).");
        let empty = Response { question, gold: "(A)", text: "So the answer is (A)." };
        let responses = [Response { text, ..empty }, empty];
        let statements = ["People in the city live in Corvale.", ""];
        let expected: Vec<f64> = load().score(&statements).unwrap().iter().map(|p| p.calibrated).collect();
        let alone = Plausibility::new(load());
        assert_eq!(alone.scores(&responses).unwrap(), expected);
        assert!(expected[0] != expected[1] && expected.iter().all(|score| (0.0..=1.0).contains(score)));
        let with_question = Plausibility::with_question(load());
        assert_eq!(with_question.name(), "plausibility-w-qn");
        let all = load().score(&[format!("{question} {text}")]).unwrap()[0].calibrated;
        assert_eq!(with_question.scores(&responses[..1]).unwrap(), [all]);
        assert_eq!(statement_with_question("Ada lives in the city", "x"), "Ada lives in the city. x");
    }
}
