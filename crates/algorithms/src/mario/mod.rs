//! MaRio (multi-reward distillation of rationales): a T5 that writes a rationale and then its answer.
//!
//! [`Rationales`] is its supervised stage, [`OptionTraining`] trains the two models behind its consistency reward,
//! [`Distillation`] is Quark with its rewards, and [`judge`] scores responses, whoever wrote them.

mod data;
mod distillation;
mod judging;
mod option_training;
mod rationales;
mod rows;
mod scoring;
mod verifier;

pub use data::MarioData;
pub use distillation::{
    Asking, Distillation, answers, for_dataset, prompt, published_quark, published_quark_trainer, quark_data,
};
pub use judging::{Judged, JudgingConfig, NormalisedAverage, judge};
pub use option_training::{OptionMode, OptionTraining, OptionTrainingConfig};
pub use rationales::{Rationales, RationalesConfig};
pub use scoring::TextScorer;
pub use verifier::{VerifierConfig, VerifierTraining};
