#![doc = include_str!("../README.md")]

pub mod choices;
pub mod configured;
pub mod mario;
mod reward;
pub mod rise;
mod self_feedback;

pub use choices::{ChoiceError, Ensemble, EnsembleConfig, Expert, Judgement};
pub use reward::{Normalization, Reward, RewardError, Rewarded, Sample, Statistics, check_rewards};
pub use self_feedback::{EncodedQuestion, SelfFeedback, Shape, first_token_scores};
