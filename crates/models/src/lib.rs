#![doc = include_str!("../README.md")]

mod batch;
pub mod checkpoint;
mod config;
mod error;
mod generation;
mod llama;
mod packing;
mod parameters;
mod policy;
mod resize;
mod scoring;
mod sizes;
mod t5;
mod tokenizer;
mod value;
mod vera;

pub use batch::{Batch, IGNORED, Labels, Side, TokenId, by_length};
pub use error::{Error, Result};
pub use generation::{
    Beam, EarlyStopping, Finish, Generate, Generated, GenerationConfig, History, Interrupt, Processor,
    Sampling, Strategy, derive_seed, filter_logits, forbid,
};
pub use llama::{Llama, LlamaConfig, LlamaFamily, RopeScaling};
pub use parameters::Parameters;
pub use policy::{CrossEntropy, Example, LogitStatistics, Policy, TokenScores, Want};
pub use resize::embedding_statistics;
pub use scoring::ScoreChoices;
pub use sizes::{BatchShape, ModelShape};
pub use t5::{Decoding, Encoded, FeedForward, T5, T5Config};
pub use tokenizer::{EncodedText, Tokenizer, Truncate, clean_up_spaces};
pub use value::{ActorCritic, VALUE_WEIGHTS};
pub use vera::{Plausibility, Vera, VeraHead, last_states};

/// The examples of the guide, so that they keep compiling.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guide/your-own-model.md")]
struct Guide;
