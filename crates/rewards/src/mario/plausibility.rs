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
