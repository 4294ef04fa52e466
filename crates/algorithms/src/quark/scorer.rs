//! What responses are worth under several rewards.

use ruminate_rewards::{Reward, RewardError, Sample, check_rewards};
use serde::{Deserialize, Serialize};

/// What is known of a response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// One score for each reward, in the order of [`Scorer::names`]; `None` where there is none.
    pub scores: Vec<Option<f64>>,
    /// Whether there is an answer in it at all; what has none is not trained on.
    pub valid: bool,
    /// Whether the answer is right.
    pub correct: bool,
}

impl From<Vec<Option<f64>>> for Judged {
    /// Valid and right.
    fn from(scores: Vec<Option<f64>>) -> Self {
        Self { scores, valid: true, correct: true }
    }
}

/// Judges responses by several rewards. `P` is the policy, which a reward may ask; `Q` is what the responses are about.
///
/// One [`Reward`] becomes a scorer as [`Single`].
///
/// # Example
/// ```
/// use ruminate_algorithms::quark::{Judged, Scorer};
/// use ruminate_rewards::{RewardError, Sample};
///
/// /// Short responses, and polite ones.
/// struct Manners;
///
/// impl<P, Q> Scorer<P, Q> for Manners {
///     fn names(&self) -> Vec<String> {
///         vec!["brevity".into(), "please".into()]
///     }
///
///     fn judge(&self, _: &P, samples: &[Sample<'_, Q>]) -> Result<Vec<Judged>, RewardError> {
///         let judge = |sample: &Sample<'_, Q>| {
///             let brevity = 1.0 / sample.response.len() as f64;
///             vec![Some(brevity), Some(sample.text.matches("please").count() as f64)].into()
///         };
///         Ok(samples.iter().map(judge).collect())
///     }
/// }
/// ```
pub trait Scorer<P: ?Sized, Q> {
    /// The rewards' names.
    fn names(&self) -> Vec<String>;

    /// One judgement per sample, in their order.
    ///
    /// # Errors
    /// Whatever prevents a judgement; it names the sample.
    fn judge(&self, policy: &P, samples: &[Sample<'_, Q>]) -> Result<Vec<Judged>, RewardError>;

    /// Sees judgements of samples that came together, to write them down. Where processes have judged parts of them, rank 0 sees
    /// them all, and the others see none.
    fn record(&self, samples: &[Sample<'_, Q>], judged: &[Judged]) {
        let _ = (samples, judged);
    }
}

/// One reward, under a name.
#[derive(Debug, Clone)]
pub struct Single<R> {
    name: String,
    reward: R,
}

impl<R> Single<R> {
    /// Names a reward.
    #[must_use]
    pub fn new(name: &str, reward: R) -> Self {
        Self { name: name.into(), reward }
    }
}

impl<P: ?Sized, Q, R: Reward<P, Q>> Scorer<P, Q> for Single<R> {
    fn names(&self) -> Vec<String> {
        vec![self.name.clone()]
    }

    fn judge(&self, policy: &P, samples: &[Sample<'_, Q>]) -> Result<Vec<Judged>, RewardError> {
        let rewards = self.reward.rewards(policy, samples)?;
        check_rewards(samples, &rewards)?;
        Ok(rewards.iter().map(|reward| vec![Some(f64::from(reward.value))].into()).collect())
    }
}
