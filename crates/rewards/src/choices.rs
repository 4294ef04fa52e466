//! From scores of answer choices to probabilities, and from several experts' probabilities to one prediction.

mod judgement;
mod mean_nll;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

pub use judgement::{EnsembleConfig, Expert, Judgement};
pub use mean_nll::{UNUSED_SLOT_SCORE, mean_nll_scores};

/// What can be wrong with the scores of a question.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChoiceError {
    /// A question without choices.
    #[error("a question needs at least one choice; give the scores of its real choices")]
    NoChoices,
    /// A score or probability that is not a number.
    #[error(
        "the score of choice {choice} is {value}; the model that gave it has diverged or is badly loaded"
    )]
    NotFinite {
        /// The choice's index.
        choice: usize,
        /// Its score.
        value: f64,
    },
    /// Nobody to ask.
    #[error("an ensemble needs at least one expert")]
    NoExperts,
    /// Experts that were asked different questions.
    #[error(
        "expert {expert} scores {found} choices, expert 0 scores {expected}; all must score the same ones"
    )]
    Ragged {
        /// The expert's index.
        expert: usize,
        /// Its choices.
        found: usize,
        /// Those of the first expert.
        expected: usize,
    },
    /// A gold answer that is none of the choices.
    #[error("the gold answer is choice {gold}, counted from 0, but there are {choices} choices")]
    GoldOutOfRange {
        /// The gold index.
        gold: usize,
        /// How many choices there are.
        choices: usize,
    },
    /// A judgement put together with a question or statements that it is not about.
    #[error("the judgement is about {expected} {what}, not {found}")]
    Mismatch {
        /// `choices` or `statements`.
        what: &'static str,
        /// How many were judged.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// Tensors whose shapes do not fit together.
    #[error(
        "log-probs {log_probs:?} and labels {labels:?} must have the same shape [batch, capacity, label]"
    )]
    Shape {
        /// Shape of the log-probabilities.
        log_probs: Vec<i64>,
        /// Shape of the labels.
        labels: Vec<i64>,
    },
    /// A word that names no way to combine experts.
    #[error("unknown ensemble `{0}`; take max, moe, poe or majority")]
    UnknownEnsemble(String),
    /// libtorch refused.
    #[error("libtorch")]
    Torch(#[source] tch::TchError),
}

impl From<tch::TchError> for ChoiceError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(ruminate_torch::plain(error))
    }
}

/// Softmax over the scores of a question's real choices.
///
/// # Errors
/// [`ChoiceError::NoChoices`] and [`ChoiceError::NotFinite`].
pub fn choice_probs(scores: &[f64]) -> Result<Vec<f64>, ChoiceError> {
    check(scores)?;
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    Ok(exps.iter().map(|exp| exp / sum).collect())
}

/// The index of the largest value, the lowest one on ties; 0 for no values.
pub fn argmax(values: &[f64]) -> usize {
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(0)
}

/// How the probabilities of several experts become one prediction. No combined score is normalised again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ensemble {
    /// A choice's highest probability: the most confident expert decides.
    #[default]
    Max,
    /// A choice's mean probability.
    Moe,
    /// A choice's geometric mean probability.
    Poe,
    /// Each expert has one vote.
    Majority,
}

impl Ensemble {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Max, Self::Moe, Self::Poe, Self::Majority];

    /// Combines `[expert][choice]` probabilities.
    ///
    /// # Errors
    /// [`ChoiceError::NoExperts`], [`ChoiceError::NoChoices`], [`ChoiceError::Ragged`] and
    /// [`ChoiceError::NotFinite`].
    pub fn combine(self, experts: &[Vec<f64>]) -> Result<Combined, ChoiceError> {
        let first = experts.first().ok_or(ChoiceError::NoExperts)?;
        for (expert, probs) in experts.iter().enumerate() {
            check(probs)?;
            if probs.len() != first.len() {
                return Err(ChoiceError::Ragged { expert, found: probs.len(), expected: first.len() });
            }
        }
        let n = experts.len() as f64;
        let per_choice = |score: &dyn Fn(&mut dyn Iterator<Item = f64>) -> f64| -> Vec<f64> {
            (0..first.len()).map(|choice| score(&mut experts.iter().map(|probs| probs[choice]))).collect()
        };
        let scores = match self {
            Self::Max => per_choice(&|probs| probs.fold(f64::NEG_INFINITY, f64::max)),
            Self::Moe => per_choice(&|probs| probs.sum::<f64>() / n),
            Self::Poe => per_choice(&|probs| (probs.map(f64::ln).sum::<f64>() / n).exp()),
            Self::Majority => {
                let mut votes = vec![0.0; first.len()];
                experts.iter().for_each(|probs| votes[argmax(probs)] += 1.0);
                return Ok(Combined { scores: None, prediction: argmax(&votes), best_expert: None });
            }
        };
        let prediction = argmax(&scores);
        let best_expert = (self == Self::Max).then(|| {
            let probs: Vec<f64> = experts.iter().map(|probs| probs[prediction]).collect();
            argmax(&probs)
        });
        Ok(Combined { scores: Some(scores), prediction, best_expert })
    }
}

impl fmt::Display for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Max => "max",
            Self::Moe => "moe",
            Self::Poe => "poe",
            Self::Majority => "majority",
        })
    }
}

impl FromStr for Ensemble {
    type Err = ChoiceError;

    fn from_str(name: &str) -> Result<Self, ChoiceError> {
        let known = Self::ALL.into_iter().find(|ensemble| ensemble.to_string() == name);
        known.ok_or_else(|| ChoiceError::UnknownEnsemble(name.to_owned()))
    }
}

/// What an ensemble says.
#[derive(Debug, Clone, PartialEq)]
pub struct Combined {
    /// The score of each choice; none where experts vote.
    pub scores: Option<Vec<f64>>,
    /// The index of the predicted choice, the lowest one on ties.
    pub prediction: usize,
    /// With [`Ensemble::Max`], the expert that is most confident of the prediction, the first one on ties.
    pub best_expert: Option<usize>,
}

fn check(scores: &[f64]) -> Result<(), ChoiceError> {
    if scores.is_empty() {
        return Err(ChoiceError::NoChoices);
    }
    match scores.iter().position(|score| !score.is_finite()) {
        None => Ok(()),
        Some(choice) => Err(ChoiceError::NotFinite { choice, value: scores[choice] }),
    }
}

#[cfg(test)]
mod tests {
    use approx::abs_diff_eq;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_lowest_index() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(argmax(&[]), 0);
        let experts = [vec![0.5, 0.25, 0.25], vec![0.25, 0.5, 0.25]];
        let combined = |e: Ensemble| e.combine(&experts).unwrap();
        assert_eq!(
            combined(Ensemble::Max),
            Combined { scores: Some(vec![0.5, 0.5, 0.25]), prediction: 0, best_expert: Some(0) }
        );
        assert_eq!(combined(Ensemble::Moe).scores, Some(vec![0.375, 0.375, 0.25]));
        assert_eq!(combined(Ensemble::Majority), Combined { scores: None, prediction: 0, best_expert: None });
    }

    #[test]
    fn an_impossible_choice_is_never_taken_by_a_product() {
        let combined = Ensemble::Poe.combine(&[vec![0.0, 1.0], vec![1.0, 0.0], vec![0.5, 0.5]]).unwrap();
        assert_eq!(combined.scores, Some(vec![0.0, 0.0]));
        assert_eq!(combined.prediction, 0);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(choice_probs(&[]), Err(ChoiceError::NoChoices)));
        assert!(matches!(choice_probs(&[1.0, f64::NAN]), Err(ChoiceError::NotFinite { choice: 1, .. })));
        assert!(matches!(Ensemble::Max.combine(&[]), Err(ChoiceError::NoExperts)));
        let ragged = Ensemble::Max.combine(&[vec![1.0], vec![0.5, 0.5]]);
        assert!(matches!(ragged, Err(ChoiceError::Ragged { expert: 1, found: 2, expected: 1 })));
    }

    #[test]
    fn ensembles_have_names() {
        for ensemble in Ensemble::ALL {
            assert_eq!(ensemble.to_string().parse::<Ensemble>().unwrap(), ensemble);
            assert_eq!(serde_json::to_string(&ensemble).unwrap(), format!("\"{ensemble}\""));
        }
        assert!("mean".parse::<Ensemble>().is_err());
    }

    proptest! {
        #[test]
        fn one_expert_is_its_own_ensemble(scores in prop::collection::vec(-50.0f64..50.0, 1..16)) {
            let probs = choice_probs(&scores).unwrap();
            prop_assert!(abs_diff_eq!(probs.iter().sum::<f64>(), 1.0, epsilon = 1e-12));
            for ensemble in Ensemble::ALL {
                let combined = ensemble.combine(std::slice::from_ref(&probs)).unwrap();
                // The product goes through a logarithm and may round two neighbours to a tie.
                prop_assert!(abs_diff_eq!(probs[combined.prediction], probs[argmax(&probs)], epsilon = 1e-12));
            }
        }
    }
}
