//! What a reward is, and how its scale is fixed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use ruminate_datasets::json;
use ruminate_models::TokenId;
use serde::{Deserialize, Serialize};

use crate::ChoiceError;

/// A response to be judged.
#[derive(Debug)]
pub struct Sample<'a, Q> {
    /// The task that the question belongs to, for statistics; may be empty.
    pub task: &'a str,
    /// What the response is about: whatever the reward needs to know.
    pub item: &'a Q,
    /// The response as it was generated, end token included.
    pub response: &'a [TokenId],
    /// The response as text.
    pub text: &'a str,
}

/// The judgement of one sample.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rewarded {
    /// The reward; finite.
    pub value: f32,
    /// Named parts for the records, e.g. `("acc", 1.0)`. Every sample of a reward has the same names.
    pub parts: Vec<(Cow<'static, str>, f32)>,
}

impl From<f32> for Rewarded {
    fn from(value: f32) -> Self {
        Self { value, parts: vec![] }
    }
}

/// Judges responses. `P` is the policy that wrote them, which a reward may ask; `Q` is what the responses are about.
///
/// # Example
/// A reward for short answers, whatever the policy and the question:
/// ```
/// use ruminate_rewards::{Reward, RewardError, Rewarded, Sample};
///
/// struct Brevity;
///
/// impl<P, Q> Reward<P, Q> for Brevity {
///     fn rewards(&self, _: &P, samples: &[Sample<'_, Q>]) -> Result<Vec<Rewarded>, RewardError> {
///         Ok(samples.iter().map(|s| Rewarded::from(1.0 / s.response.len() as f32)).collect())
///     }
/// }
/// ```
pub trait Reward<P: ?Sized, Q> {
    /// One judgement per sample, in their order. A sample that cannot be judged is an error, never a silent 0.
    ///
    /// # Errors
    /// Whatever prevents a judgement; it names the sample.
    fn rewards(&self, policy: &P, samples: &[Sample<'_, Q>]) -> Result<Vec<Rewarded>, RewardError>;
}

/// Why a reward could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RewardError {
    /// The scores of a sample's choices make no sense.
    #[error("sample {sample}{}", of_task(task))]
    Choices {
        /// The sample's index.
        sample: usize,
        /// Its task.
        task: String,
        /// What is wrong with them.
        source: ChoiceError,
    },
    /// A gold label that the data set does not have.
    #[error("sample {sample}: the gold label {label:?} is none of {}", known.join(", "))]
    GoldLabel {
        /// The sample's index.
        sample: usize,
        /// Its gold label.
        label: String,
        /// The labels of the data set.
        known: Vec<String>,
    },
    /// A word that the model behind a reward answers with is not a token of its tokenizer.
    #[error(
        "`{word}` is not one token of the tokenizer, so the model cannot be asked for it; name a Flan-T5"
    )]
    AnswerWord {
        /// The word.
        word: &'static str,
    },
    /// A reward that is no number.
    #[error(
        "the reward of sample {sample}{} is {value}; the model behind it has diverged or is badly loaded",
        of_task(task)
    )]
    NotFinite {
        /// The sample's index.
        sample: usize,
        /// Its task.
        task: String,
        /// Its reward.
        value: f64,
    },
    /// A reward that did not judge every sample.
    #[error("{samples} samples were given, but {rewards} rewards came back")]
    Count {
        /// Samples.
        samples: usize,
        /// Rewards.
        rewards: usize,
    },
    /// Rewards without spread cannot be scaled to a spread of 1.
    #[error(
        "cannot normalise {count} rewards whose standard deviation is {std}; the policy's responses make no difference \
         (try another reward shape or temperature), or set gain and bias"
    )]
    NoSpread {
        /// How many rewards there were.
        count: usize,
        /// Their spread.
        std: f64,
    },
    /// Files.
    #[error(transparent)]
    Data(#[from] ruminate_datasets::Error),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ruminate_models::Error),
    /// An error of a reward from outside this crate.
    #[error("the reward failed")]
    Other(#[source] Box<dyn std::error::Error + Send + Sync>),
}

fn of_task(task: &str) -> String {
    if task.is_empty() { String::new() } else { format!(" (task {task})") }
}

/// Checks what came back from a reward.
///
/// # Errors
/// [`RewardError::Count`] and [`RewardError::NotFinite`].
pub fn check_rewards<Q>(samples: &[Sample<'_, Q>], rewards: &[Rewarded]) -> Result<(), RewardError> {
    if samples.len() != rewards.len() {
        return Err(RewardError::Count { samples: samples.len(), rewards: rewards.len() });
    }
    match rewards.iter().position(|r| !r.value.is_finite()) {
        Some(sample) => {
            let (task, value) = (samples[sample].task.to_string(), f64::from(rewards[sample].value));
            Err(RewardError::NotFinite { sample, task, value })
        }
        None => Ok(()),
    }
}

/// An affine map of rewards, constant for a whole run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// Factor.
    pub gain: f64,
    /// Added afterwards.
    pub bias: f64,
}

impl Default for Normalization {
    fn default() -> Self {
        Self { gain: 1.0, bias: 0.0 }
    }
}

impl Normalization {
    /// The map that gives these rewards mean 0 and (unbiased) standard deviation 1.
    ///
    /// # Errors
    /// [`RewardError::NoSpread`].
    pub fn fit(rewards: &[f64]) -> Result<Self, RewardError> {
        let Statistics { count, mean, std, .. } = Statistics::of(rewards.iter().copied());
        // Equal rewards differ by rounding.
        let spread = std > 1e-12 * mean.abs().max(f64::MIN_POSITIVE);
        if count < 2 || !spread {
            return Err(RewardError::NoSpread { count, std });
        }
        Ok(Self { gain: 1.0 / std, bias: -mean / std })
    }

    /// The normalised reward.
    #[must_use]
    pub fn apply(self, reward: f64) -> f64 {
        self.gain * reward + self.bias
    }

    /// Reads a file as [`save`](Self::save) or the reference writes it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(path: &Path) -> Result<Self, RewardError> {
        Ok(json::read(path)?)
    }

    /// Writes `{"gain": .., "bias": ..}`.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn save(self, path: &Path) -> Result<(), RewardError> {
        Ok(json::write(path, &self)?)
    }
}

/// Rewards at a glance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Statistics {
    /// How many.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their unbiased standard deviation; 0 for fewer than two.
    pub std: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Statistics {
    /// Of some numbers.
    pub fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (count, sum) = values.clone().fold((0, 0.0), |(n, sum), x| (n + 1, sum + x));
        let mean = if count == 0 { 0.0 } else { sum / count as f64 };
        let squares: f64 = values.clone().map(|x| (x - mean).powi(2)).sum();
        let std = if count < 2 { 0.0 } else { (squares / (count - 1) as f64).sqrt() };
        let (min, max) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        let (min, max) = if count == 0 { (0.0, 0.0) } else { (min, max) };
        Self { count, mean, std, min, max }
    }

    /// Of the numbers of each task.
    pub fn by_task<'a>(values: impl Iterator<Item = (&'a str, f64)>) -> BTreeMap<String, Self> {
        let mut tasks: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (task, value) in values {
            tasks.entry(task.to_string()).or_default().push(value);
        }
        tasks.into_iter().map(|(task, values)| (task, Self::of(values.into_iter()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn normalised_rewards_have_no_mean_and_unit_spread() {
        let rewards = [0.5, -0.25, 0.125, 1.0, 0.0];
        let map = Normalization::fit(&rewards).unwrap();
        let statistics = Statistics::of(rewards.iter().map(|&r| map.apply(r)));
        assert_abs_diff_eq!(statistics.mean, 0.0, epsilon = 1e-15);
        assert_abs_diff_eq!(statistics.std, 1.0, epsilon = 1e-12);
        assert_eq!(Normalization::default().apply(0.7), 0.7);
    }

    #[test]
    fn rewards_without_spread_are_refused() {
        for rewards in [&[][..], &[1.0], &[0.3; 7], &[0.0; 3]] {
            let error = Normalization::fit(rewards).unwrap_err().to_string();
            assert!(error.contains("set gain and bias"), "{error}");
        }
    }

    #[test]
    fn the_file_is_the_reference_s() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reward/reward_normalization.json");
        let map = Normalization { gain: 2.5, bias: -0.125 };
        map.save(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\n    \"gain\": 2.5,\n    \"bias\": -0.125\n}");
        assert_eq!(Normalization::load(&path).unwrap(), map);
        std::fs::write(&path, "{\"gain\": 1.0}").unwrap();
        assert!(Normalization::load(&path).unwrap_err().to_string().contains("reward_normalization"));
    }

    #[test]
    fn what_a_reward_returns_is_checked() {
        let sample = Sample { task: "csqa", item: &(), response: &[1], text: "" };
        let error = check_rewards(&[sample], &[f32::NAN.into()]).unwrap_err().to_string();
        assert!(error.contains("sample 0 (task csqa) is NaN"), "{error}");
        assert!(matches!(
            check_rewards::<()>(&[], &[Rewarded::default()]),
            Err(RewardError::Count { samples: 0, rewards: 1 })
        ));
    }

    #[test]
    fn statistics_by_task() {
        let all = Statistics::by_task([("b", 1.0), ("a", 5.0), ("b", 3.0)].into_iter());
        assert_eq!(all["a"], Statistics { count: 1, mean: 5.0, std: 0.0, min: 5.0, max: 5.0 });
        assert_eq!(all["b"], Statistics { count: 2, mean: 2.0, std: 2f64.sqrt(), min: 1.0, max: 3.0 });
    }
}
