#![doc = include_str!("../README.md")]

mod collective;
pub mod crystal;
pub mod dpo;
mod error;
mod kept;
mod loss;
pub mod mario;
mod observer;
pub mod plan;
pub mod ppo;
pub mod quark;
pub mod rwr;
mod schedule;
mod sft;
mod shuffled;
mod supervised;
pub mod tinythinker;
pub mod trainer;
mod validated;

pub use collective::Collective;
pub use error::{Error, Result};
pub use kept::{KeptTexts, model_identity};
pub use loss::SumCount;
pub use observer::{Metrics, Observer, ObserverError, StepReport};
pub use plan::{MemoryPlan, Networks, Pass, Plan, Work, WritingPlan};
pub use ruminate_datasets::NullObserver;
pub use schedule::Schedule;
pub use sft::{Curriculum, Objective, Sft, mean_loss};
pub use shuffled::Shuffled;
pub use supervised::{SupervisedData, encode_supervised};
pub use trainer::{
    Algorithm, BestCheckpoint, Ending, Evaluation, Fitted, OptimizerChoice, Phases, Precision, Trainer,
    TrainerConfig,
};
pub use validated::{RewardEvaluation, RewardEvaluationConfig};
