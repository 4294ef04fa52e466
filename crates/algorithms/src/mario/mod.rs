//! MaRio (multi-reward distillation of rationales): a T5 that writes a rationale and then its answer.
//!
//! [`Rationales`] is its supervised stage, [`OptionTraining`] trains the two models behind its consistency reward,
//! [`Distillation`] is Quark with its rewards, and [`judge`] scores responses, whoever wrote them.

mod data;
mod distillation;
mod evaluation;
mod judging;
mod option_training;
mod rationales;
mod respondent;
mod rewards;
mod rows;
mod scoring;
mod unsupported;
mod verifier;

pub use data::MarioData;
pub use distillation::{
    Asking, Distillation, DistillationModels, answers, for_dataset, prompt, published_quark,
    published_quark_trainer, quark_data, quark_passes,
};
pub use evaluation::{Candidate, Evaluated, Evaluator, Steps};
pub use judging::{Judged, JudgingConfig, NormalisedAverage, judge, judge_across};
pub use option_training::{OptionMode, OptionTraining, OptionTrainingConfig};
pub use rationales::{Greedy, Rationales, RationalesConfig};
pub use respondent::Respondent;
pub use rewards::{RewardModel, RewardModels, rewards_named};
pub use scoring::TextScorer;
pub use unsupported::Unsupported;
pub use verifier::{VerifierConfig, VerifierTraining};
