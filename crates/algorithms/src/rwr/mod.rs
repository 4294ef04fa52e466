//! Reward-weighted regression, as in RISE (arXiv 2407.18219): cross-entropy on a model's own attempts, each weighted by the
//! exponential of its reward.
//!
//! [`Rwr`] is an [`Algorithm`](crate::Algorithm): give it a policy and [`WeightedExample`]s, and run it with the
//! [`Trainer`](crate::Trainer). [`RwrData`] makes examples of the texts of
//! [`training_text`](ruminate_datasets::rise::training_text); [`rwr_loss`] is the loss as a pure function. A [`LocalModel`] takes turns
//! in [`MultiTurn`](ruminate_datasets::rise::MultiTurn), and several processes take turns together as [`Divided`].
//! [`CollectionConfig`], [`FinetuneConfig`], [`EvaluationConfig`] and [`IterationConfig`] are sections of a configuration.
//! [`TokenLengths`] tells how long examples are.

mod answerer;
mod config;
mod data;
mod divided;
mod kept;
mod lengths;
mod loss;
mod settings;
mod train;

pub use answerer::LocalModel;
pub use config::{RwrConfig, RwrCounts, RwrData};
pub use data::{EncodedExamples, TooLong, WeightedExample, Weighting, encode_texts};
pub use divided::Divided;
pub use kept::{Kept, KeptAnswers};
pub use lengths::{LengthStatistics, TokenLengths};
pub use loss::{RwrLoss, rwr_loss};
pub use settings::{
    CollectionConfig, EvaluationConfig, FinetuneConfig, GenerationSettings, IterationConfig, Source, Start,
    training_texts,
};
pub use train::{Rwr, trainer_config, warmup_steps};
