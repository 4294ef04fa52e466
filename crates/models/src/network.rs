//! The interface that a family of models implements. Everything else is written once, on [`LanguageModel`](crate::LanguageModel).

use std::path::Path;

use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use crate::checkpoint::Weights;
use crate::config::generation_end_tokens;
use crate::files::{read_json, write_json};
use crate::generation::{Prefill, Started};
use crate::layers::{Decoding, Embeddings};
use crate::parameters::Builder;
use crate::policy::{check_targets, targets_per_prompt};
use crate::{Labels, ModelShape, Result, TokenId};

/// How a network runs.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Kind of the parameters.
    pub kind: Kind,
    /// Device of the parameters.
    pub device: Device,
    /// Whether dropout is on.
    pub training: bool,
}

/// The configuration of a network: what `config.json` says.
pub trait NetworkConfig: ModelShape + Clone {
    /// Reads `config.json` of a model folder, or a configuration file of any name. Where `generation_config.json` of the folder
    /// names end tokens, they take the place of those in `config.json`, as in transformers.
    ///
    /// # Errors
    /// When a file cannot be read, or asks for something that this crate does not know.
    fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::from_json(read_json(path)?, path);
        }
        let file = path.join("config.json");
        let mut config = Self::from_json(read_json(&file)?, &file)?;
        if let Some(ids) = generation_end_tokens(path)? {
            config.set_eos_token_ids(ids);
            config.check()?;
        }
        Ok(config)
    }

    /// Writes `config.json` so that transformers 4 and 5 read the same model.
    ///
    /// # Errors
    /// When the folder is not writable.
    fn save(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join("config.json"), &self.to_json())
    }

    /// Checks and reads the keys of a `config.json`; `path` is for messages.
    ///
    /// Keys that transformers' implementation of the `model_type` does not read change nothing: they are named once through the
    /// crate `log`, at level `info`.
    ///
    /// # Errors
    /// When a key is missing, or has a value that changes what the model computes and that is not implemented.
    fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self>;

    /// Checks that sizes and token ids are possible.
    ///
    /// # Errors
    /// Names the first key that is not.
    fn check(&self) -> Result<()>;

    /// The keys of `config.json`, so that transformers reads the same model.
    fn to_json(&self) -> Value;

    /// Whether an encoder reads the prompt. Without one, the prompt and what is written behind it are one row.
    fn has_encoder(&self) -> bool;

    /// The token that rows are filled up with. Padding is masked, so any token will do.
    fn pad_token_id(&self) -> TokenId;

    /// The tokens that end a text.
    fn eos_token_ids(&self) -> &[TokenId];

    /// Changes the tokens that end a text.
    fn set_eos_token_ids(&mut self, ids: Vec<TokenId>);

    /// Changes the number of rows of the embedding.
    fn set_vocab_size(&mut self, vocab_size: i64);
}

/// A family of networks that predict the next token.
///
/// [`T5Network`](crate::T5Network) has an encoder, [`LlamaNetwork`](crate::LlamaNetwork) has none, and
/// [`AnyNetwork`](crate::AnyNetwork) is whichever a folder holds. The methods take and give types of this crate, so families live in
/// it; a model of your own outside of it implements [`Policy`](crate::Policy).
#[allow(private_interfaces, reason = "families live in this crate")]
pub trait Network: std::fmt::Debug + Sized {
    /// Its configuration.
    type Config: NetworkConfig;

    /// The configuration.
    fn config(&self) -> &Self::Config;

    /// Takes the configuration of changed embeddings.
    fn set_config(&mut self, config: Self::Config);

    /// Takes the network's parameters out of `builder`, by their Hugging Face names.
    ///
    /// # Errors
    /// When libtorch refuses, e.g. for want of memory; what is missing is reported by the builder.
    fn build(config: Self::Config, builder: &mut Builder) -> Result<Self>;

    /// Makes a checkpoint's tensors what `build` expects: other names of the same tensor, tensors without meaning, and whether the
    /// output matrix is the embedding.
    ///
    /// # Errors
    /// When libtorch refuses.
    fn adapt(config: &mut Self::Config, weights: &mut Weights) -> Result<()>;

    /// Embedding and output matrix.
    fn embeddings(&self) -> &Embeddings;

    /// Embedding and output matrix.
    fn embeddings_mut(&mut self) -> &mut Embeddings;

    /// Whether blocks run again in the backward pass instead of keeping their activations.
    fn set_gradient_checkpointing(&mut self, on: bool);

    /// The states after the final norm from which each target token is predicted, `[rows, time, width]`.
    ///
    /// # Errors
    /// When a prompt is empty, an id is outside the vocabulary, or libtorch refuses.
    fn target_states(&self, context: Context, rows: &TargetRows<'_>) -> Result<Tensor>;

    /// Reads prompts, without dropout.
    ///
    /// # Errors
    /// When a prompt is empty, an id is outside the vocabulary, or libtorch refuses.
    fn prefill(&self, context: Context, prefill: Prefill<'_>) -> Result<Started<Decoding<'_>>>;
}

/// Targets and the prompts that they follow.
#[derive(Debug)]
pub(crate) struct TargetRows<'a> {
    pub(crate) prompts: &'a [&'a [TokenId]],
    /// Each prompt has equally many consecutive ones.
    pub(crate) targets: &'a [&'a [TokenId]],
    /// How many each prompt has.
    pub(crate) per_prompt: usize,
    /// The targets as tensors.
    pub(crate) labels: Labels,
}

impl<'a> TargetRows<'a> {
    pub(crate) fn new(
        vocab_size: i64,
        prompts: &'a [&'a [TokenId]],
        targets: &'a [&'a [TokenId]],
        device: Device,
    ) -> Result<Self> {
        let per_prompt = targets_per_prompt(prompts.len(), targets.len())?;
        check_targets(vocab_size, targets)?;
        Ok(Self { prompts, targets, per_prompt, labels: Labels::new(targets, device)? })
    }
}
