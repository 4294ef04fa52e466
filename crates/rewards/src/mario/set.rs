//! Several rewards together.

use std::fmt;

use ndarray::{Array1, Array2};

use super::{Response, TextReward};
use crate::RewardError;

/// Rewards in order. Their scores stay apart: each has a name and bounds of its own.
///
/// # Example
/// ```
/// use ruminate_rewards::mario::{Accuracy, Diversity, Response, RewardSet};
///
/// let rewards = RewardSet::new().add(Accuracy).add(Diversity::Rationale);
/// let text = "Ice is frozen water. So the answer is yes.";
/// let scores = rewards.scores(&[Response { question: "Is ice cold?", gold: "yes", text }])?;
/// assert_eq!(rewards.names(), ["accuracy", "diversity"]);
/// assert_eq!(scores.row(0).to_vec(), [1.0, 1.0]);
/// # Ok::<(), ruminate_rewards::RewardError>(())
/// ```
#[derive(Default)]
pub struct RewardSet {
    rewards: Vec<Box<dyn TextReward>>,
}

impl fmt::Debug for RewardSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RewardSet").field(&self.names()).finish()
    }
}

impl RewardSet {
    /// No rewards.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a reward behind the others.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "rewards are added to a set, not to each other")]
    pub fn add(mut self, reward: impl TextReward + 'static) -> Self {
        self.rewards.push(Box::new(reward));
        self
    }

    /// Their names, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.rewards.iter().map(|reward| reward.name()).collect()
    }

    /// Their bounds, in order.
    #[must_use]
    pub fn bounds(&self) -> Vec<Option<(f64, f64)>> {
        self.rewards.iter().map(|reward| reward.bounds()).collect()
    }

    /// Drops what the rewards remember of earlier calls; see [`TextReward::forget`].
    pub fn forget(&self) {
        self.rewards.iter().for_each(|reward| reward.forget());
    }

    /// Scores `[responses, rewards]`, all finite.
    ///
    /// # Errors
    /// Those of the rewards; [`RewardError::Count`] and [`RewardError::NotFinite`] when one does not keep its promise.
    pub fn scores(&self, responses: &[Response<'_>]) -> Result<Array2<f64>, RewardError> {
        let mut table = Array2::zeros((responses.len(), self.rewards.len()));
        for (reward, mut column) in self.rewards.iter().zip(table.columns_mut()) {
            let scores = reward.scores(responses)?;
            if scores.len() != responses.len() {
                return Err(RewardError::Count { samples: responses.len(), rewards: scores.len() });
            }
            if let Some(sample) = scores.iter().position(|score| !score.is_finite()) {
                return Err(RewardError::NotFinite { sample, task: reward.name(), value: scores[sample] });
            }
            column.assign(&Array1::from(scores));
        }
        Ok(table)
    }
}
