//! MaRio (multi-reward distillation of rationales): a T5 that writes a rationale and then its answer.
//!
//! [`Rationales`] is its supervised stage, [`OptionTraining`] trains the two models behind its consistency reward, and
//! [`judge`] scores responses, whoever wrote them.

mod data;
mod judging;
mod option_training;
mod rationales;
mod rows;

pub use data::MarioData;
pub use judging::{Judged, JudgingConfig, judge};
pub use option_training::{OptionMode, OptionTraining, OptionTrainingConfig};
pub use rationales::{Rationales, RationalesConfig};
