#![doc = include_str!("../README.md")]

mod any;
mod batch;
pub mod checkpoint;
mod config;
mod error;
mod files;
mod generation;
mod generation_config;
mod layers;
mod llama;
mod model;
mod network;
mod parameters;
mod policy;
mod resize;
mod scoring;
mod sizes;
mod t5;
mod tokenizer;
mod value;
mod vera;

pub use any::{AnyNetwork, Model, ModelConfig};
pub use batch::{Batch, IGNORED, Labels, Side, TokenId, by_length};
pub use error::{Error, Result};
pub use generation::{
    Alternative, Beam, EarlyStopping, Finish, Generate, Generated, GenerationConfig, History, Interrupt,
    Listener, Processor, Sampling, SequenceBias, SequenceId, Strategy, TextStream, WrittenToken, derive_seed,
    filter_logits, forbid,
};
pub use layers::{Decoding, RopeScaling};
pub use llama::{Llama, LlamaConfig, LlamaFamily, LlamaNetwork};
pub use model::LanguageModel;
pub use network::{Context, Network, NetworkConfig};
pub use parameters::Parameters;
pub use policy::{CrossEntropy, Example, LogitStatistics, Policy, ScoreOptions, TokenScores};
pub use resize::embedding_statistics;
pub use scoring::ScoreChoices;
pub use sizes::{BatchShape, ModelShape};
pub use t5::{Encoded, FeedForward, T5, T5Config, T5Network};
pub use tokenizer::{EncodedText, Tokenizer, Truncate, clean_up_spaces};
pub use value::{ActorCritic, VALUE_WEIGHTS};
pub use vera::{Plausibility, Vera, VeraHead, last_states};

/// The examples of the guide, so that they keep compiling.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guide/your-own-model.md")]
struct Guide;
