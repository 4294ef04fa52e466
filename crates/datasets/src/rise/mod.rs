//! RISE's data (arXiv 2407.18219): dialogues of several turns about problems with checkable answers, logs of them, and the training
//! examples that they become. Texts only, no tensors.
//!
//! [`MultiTurn`] collects episodes from whoever answers ([`Answerer`]): a local model, a teacher, a closure. A [`Log`] is the
//! published code's file of them; [`convert`] makes [`TrainingExample`]s of it, and [`training_text`] the text that a model is
//! trained on.

mod config;
mod convert;
mod data;
mod dialogue;
mod judge;
mod log;
mod players;
mod rollout;
mod store;
mod teacher;
mod training;

pub use config::{EvaluationSetting, RolloutConfig, Setting};
pub use convert::{
    Conversion, ConversionConfig, ConvertConfig, Criterion, TrainingExample, Utterance, convert, solutions,
};
pub use data::{ChatConfig, RiseData};
pub use dialogue::{dialogue, is_degenerate};
pub use judge::JudgeError;
pub use log::{Episode, Log, Rescored, TurnCount, TurnHistory};
pub use players::{PlayerConfig, ServiceSampling};
pub use rollout::{Answerer, Ask, BLOCKED, Failed, MultiTurn, Reply, RolloutError, RolloutObserver, Stopped};
pub use teacher::TeacherAnswerer;
pub use training::{Layout, TrainingText, training_text};
