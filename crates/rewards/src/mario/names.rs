//! Rewards by the names that the published code gives them.

use ruminate_datasets::mario::MarioDataset;

use super::{ConsistencyMode, FactualityForm, LengthBetween};

/// A reward under the name that configurations and result files have for it.
///
/// # Example
/// ```
/// use ruminate_datasets::mario::MarioDataset;
/// use ruminate_rewards::mario::{ConsistencyMode, RewardName};
///
/// let dataset = MarioDataset::QuaRel;
/// let name = RewardName::parse("quarel-rationale-quality-continuous", dataset)?;
/// assert_eq!(name, RewardName::Consistency(ConsistencyMode::Continuous));
/// assert!(RewardName::parse("beauty", dataset).is_err());
/// # Ok::<(), ruminate_rewards::mario::UnknownReward>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RewardName {
    /// `accuracy`
    Accuracy,
    /// `diversity`
    Diversity,
    /// `diversity-3-4`
    WholeDiversity,
    /// `plausibility`
    Plausibility,
    /// `plausibility-w-qn`
    PlausibilityWithQuestion,
    /// `{dataset}-rationale-quality-continuous` and `{dataset}-rationale-quality-discrete`
    Consistency(ConsistencyMode),
    /// `num_words`
    NumWords,
    /// `length-more`
    LengthMore,
    /// `length-min-L-max-M`
    LengthBetween(LengthBetween),
    /// `length-more_and_diversity-3-4`
    LengthAndDiversity,
    /// `flan-t5-factuality`, `flan-t5-factuality-full` and `flan-t5-factuality-w-qn`
    Factuality(FactualityForm),
}

/// A name that stands for no reward here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownReward {
    /// Nobody knows it.
    #[error(
        "there is no reward `{name}`; the rewards are {dataset}-rationale-quality-continuous, \
         {dataset}-rationale-quality-discrete, accuracy, plausibility, plausibility-w-qn, diversity, diversity-3-4, num_words, \
         length-more, length-more_and_diversity-3-4, length-min-L-max-M, flan-t5-factuality, flan-t5-factuality-full and \
         flan-t5-factuality-w-qn"
    )]
    Unknown {
        /// The name.
        name: String,
        /// The data set, which is part of some names.
        dataset: MarioDataset,
    },
    /// The published code names it, and this project does not compute it.
    #[error("the reward `{name}` of the published code is not supported: {reason}")]
    Unsupported {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
}

impl RewardName {
    /// Understands a name; those of consistency begin with the data set's.
    ///
    /// # Errors
    /// No reward has this name, or one that only the published code has.
    pub fn parse(name: &str, dataset: MarioDataset) -> Result<Self, UnknownReward> {
        let quality =
            name.strip_prefix(dataset.name()).and_then(|rest| rest.strip_prefix("-rationale-quality-"));
        Ok(match (name, quality) {
            (_, Some("continuous")) => Self::Consistency(ConsistencyMode::Continuous),
            (_, Some("discrete")) => Self::Consistency(ConsistencyMode::Discrete),
            ("accuracy", _) => Self::Accuracy,
            ("diversity", _) => Self::Diversity,
            ("diversity-3-4", _) => Self::WholeDiversity,
            ("plausibility", _) => Self::Plausibility,
            ("plausibility-w-qn", _) => Self::PlausibilityWithQuestion,
            ("num_words", _) => Self::NumWords,
            ("length-more", _) => Self::LengthMore,
            ("length-more_and_diversity-3-4", _) => Self::LengthAndDiversity,
            ("flan-t5-factuality", _) => Self::Factuality(FactualityForm::Sentences),
            ("flan-t5-factuality-full", _) => Self::Factuality(FactualityForm::Rationale),
            ("flan-t5-factuality-w-qn", _) => Self::Factuality(FactualityForm::WithQuestion),
            _ => match (length_between(name), unsupported(name)) {
                (Some(reward), _) => Self::LengthBetween(reward),
                (None, Some(reason)) => {
                    return Err(UnknownReward::Unsupported { name: name.into(), reason });
                }
                (None, None) => return Err(UnknownReward::Unknown { name: name.into(), dataset }),
            },
        })
    }
}

/// `length-min-2-max-5`.
fn length_between(name: &str) -> Option<LengthBetween> {
    let (min, max) = name.strip_prefix("length-min-")?.split_once("-max-")?;
    Some(LengthBetween { min: min.parse().ok()?, max: max.parse().ok()? })
}

/// Why a reward of the published code cannot be had.
fn unsupported(name: &str) -> Option<&'static str> {
    Some(match name {
        "cola_grammar" => {
            "it asks textattack/roberta-base-CoLA, and RoBERTa is no model family of this project"
        }
        "flan-t5-completeness" | "flan-t5-completeness-1" => {
            "the published code reads a variable there before it is set, so nothing tells what the score is"
        }
        "rev" | "csqa-acceptability" | "csqa-acceptability-and-accuracy" => {
            "the module that computes it is not part of the published code"
        }
        _ if name.contains("roscoe") => "the module that computes ROSCOE is not part of the published code",
        _ if name.ends_with("-plausibility") => "its data set is not one of the five",
        _ => return None,
    })
}

/// The name of consistency on a data set.
pub(super) fn consistency(dataset: MarioDataset, mode: ConsistencyMode) -> String {
    let mode = match mode {
        ConsistencyMode::Continuous => "continuous",
        ConsistencyMode::Discrete => "discrete",
    };
    format!("{}-rationale-quality-{mode}", dataset.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mario::{Accuracy, Diversity, LengthAndDiversity, LengthMore, NumWords, TextReward};

    #[test]
    fn every_reward_is_found_by_its_name() {
        let dataset = MarioDataset::Qasc;
        let parse = |name: &str| RewardName::parse(name, dataset);
        let between = LengthBetween { min: 2, max: 5 };
        let rewards: [(&dyn TextReward, RewardName); 7] = [
            (&Accuracy, RewardName::Accuracy),
            (&Diversity::Rationale, RewardName::Diversity),
            (&Diversity::WholeResponse, RewardName::WholeDiversity),
            (&NumWords, RewardName::NumWords),
            (&LengthMore, RewardName::LengthMore),
            (&LengthAndDiversity, RewardName::LengthAndDiversity),
            (&between, RewardName::LengthBetween(between)),
        ];
        for (reward, name) in rewards {
            assert_eq!(parse(&reward.name()), Ok(name));
        }
        for form in [FactualityForm::Sentences, FactualityForm::Rationale, FactualityForm::WithQuestion] {
            assert_eq!(parse(form.name()), Ok(RewardName::Factuality(form)));
        }
        for mode in [ConsistencyMode::Continuous, ConsistencyMode::Discrete] {
            let name = consistency(dataset, mode);
            assert_eq!(parse(&name), Ok(RewardName::Consistency(mode)));
            // Another data set's models are not those that are configured.
            assert!(RewardName::parse(&name, MarioDataset::QuaRel).is_err());
        }
    }

    #[test]
    fn names_without_a_reward_are_explained() {
        for (name, reason) in [
            ("beauty", "there is no reward `beauty`"),
            ("", "the rewards are quarel-rationale-quality-continuous"),
            ("length-min--1-max-5", "length-min-L-max-M"),
            ("cola_grammar", "RoBERTa"),
            ("rev", "not part of the published code"),
            ("roscoe-faithfulness", "ROSCOE"),
            ("flan-t5-completeness", "before it is set"),
        ] {
            let error = RewardName::parse(name, MarioDataset::QuaRel).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
