//! Language models: networks with parameters, tokenizer and mode.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ruminate_datasets::chat::{ChatError, ChatTemplate};
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{SHARD_BYTES, Weights, write_model};
use crate::files::{GENERATION_CONFIG, write_bytes};
use crate::generation::{
    Decoder, Generate, Generated, GenerationConfig, Interrupt, Prefill, Started, generate,
};
use crate::layers::Decoding;
use crate::network::{Context, Network, NetworkConfig, TargetRows};
use crate::parameters::{Builder, Parameters, seeded};
use crate::policy::{
    Policy, ScoreOptions, TokenScores, check_targets, label_cross_entropy, label_scores, tokens_of,
};
use crate::scoring::{ScoreChoices, check_choices, padded_targets, padded_tokens};
use crate::{CrossEntropy, Error, Example, IGNORED, Labels, ModelShape, Result, TokenId, Tokenizer};

/// A language model. Its parameters have their Hugging Face names, so that folders written here load in `transformers` and theirs load
/// here.
///
/// [`Model`](crate::Model) is whichever a folder holds; [`T5`](crate::T5) and [`Llama`](crate::Llama) are known to be of one family.
///
/// # Example
/// ```no_run
/// use ruminate_models::{Generate, Model};
/// use tch::{Device, Kind};
/// let model = Model::load("Qwen2.5-0.5B".as_ref(), Kind::Float, Device::cuda_if_available())?;
/// let tokenizer = model.tokenizer().ok_or("the folder has no tokenizer.json")?;
/// let prompt = tokenizer.encode("The capital of France is")?;
/// let written = model.generate(&[prompt], &model.generation_config()?, &[1])?;
/// println!("{}", tokenizer.decode(&written[0][0].ids, true)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LanguageModel<N> {
    pub(crate) network: N,
    pub(crate) context: Context,
    pub(crate) parameters: Parameters,
    pub(crate) tokenizer: Option<Tokenizer>,
    /// Where the weights come from.
    pub(crate) folder: Option<PathBuf>,
    /// The folder's `generation_config.json`, as it was when the weights were loaded.
    pub(crate) generation_defaults: Option<Vec<u8>>,
}

impl<N: Network> LanguageModel<N> {
    /// A new model whose parameters are drawn as Hugging Face draws them; the same seed gives the same model.
    ///
    /// # Errors
    /// When the configuration is not possible, or memory is short.
    pub fn new(config: N::Config, kind: Kind, device: Device, seed: i64) -> Result<Self> {
        seeded(seed, || Self::build(config, Builder::new(None, kind, device)))
    }

    /// Loads a Hugging Face folder: `config.json`, `model.safetensors` or its shards, and `tokenizer.json` where there is one. Whether
    /// the output matrix is the embedding is decided by the weights: a matrix of its own is used, whatever `tie_word_embeddings` says.
    ///
    /// # Errors
    /// When a file cannot be read, the configuration asks for something unknown, tensors are missing, unexpected or misshapen (the error
    /// names them all), or the tokenizer has more tokens than the embedding.
    pub fn load(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        if !folder.is_dir() {
            let reason = "there is no such folder".into();
            return Err(Error::NoWeights { path: folder.to_path_buf(), reason });
        }
        let mut model = Self::load_with(N::Config::open(folder)?, folder, kind, device)?;
        if folder.join("tokenizer.json").is_file() {
            let tokenizer = Tokenizer::open(folder)?;
            tokenizer.check_fits(model.config().vocab_size())?;
            model.tokenizer = Some(tokenizer);
        }
        Ok(model)
    }

    /// The weights of a folder with a configuration from elsewhere, and no tokenizer.
    ///
    /// # Errors
    /// When weights cannot be read or do not fit the configuration; see [`load`](Self::load).
    pub fn load_with(mut config: N::Config, folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let mut weights = Weights::open(folder, Device::Cpu)?;
        N::adapt(&mut config, &mut weights)?;
        let model = Self::build(config, Builder::new(Some(weights), kind, device))?;
        let defaults = folder.join(GENERATION_CONFIG);
        let generation_defaults = match defaults.is_file() {
            true => Some(std::fs::read(&defaults).map_err(Error::read(&defaults))?),
            false => None,
        };
        Ok(Self { folder: Some(folder.to_path_buf()), generation_defaults, ..model })
    }

    fn build(config: N::Config, mut builder: Builder) -> Result<Self> {
        config.check()?;
        let (kind, device) = builder.options();
        let network = N::build(config, &mut builder)?;
        let context = Context { kind, device, training: false };
        Ok(Self {
            network,
            context,
            parameters: builder.finish()?,
            tokenizer: None,
            folder: None,
            generation_defaults: None,
        })
    }

    /// Writes `config.json`, the weights and, if the model was loaded with one, `generation_config.json` into an existing folder.
    ///
    /// # Errors
    /// When the folder is not writable or the disk is full.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.config().save(folder)?;
        if let Some(defaults) = &self.generation_defaults {
            write_bytes(&folder.join(GENERATION_CONFIG), defaults)?;
        }
        write_model(folder, &self.parameters, SHARD_BYTES)
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &N::Config {
        self.network.config()
    }

    /// The parameters; they are shared with the layers.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The device of the parameters.
    #[must_use]
    pub fn device(&self) -> Device {
        self.context.device
    }

    /// The kind of the parameters.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.context.kind
    }

    /// The tokenizer of the model's folder, or the one that was set.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Sets the tokenizer, which generation needs to find stop strings, and nothing else does.
    pub fn set_tokenizer(&mut self, tokenizer: Tokenizer) {
        self.tokenizer = Some(tokenizer);
    }

    /// How the model's folder wants it to write; see [`GenerationConfig::open`]. A new model has the defaults of [`GenerationConfig`].
    ///
    /// The folder is read when this is called: a model whose defaults ask for something that is not implemented still trains.
    ///
    /// # Errors
    /// Those of [`GenerationConfig::open`].
    pub fn generation_config(&self) -> Result<GenerationConfig> {
        match &self.folder {
            Some(folder) => GenerationConfig::open(folder, self.config()),
            None => Ok(GenerationConfig::default()),
        }
    }

    /// The chat template of the model's folder, where it has one. The folder is read when this is called.
    ///
    /// # Errors
    /// When the template cannot be read.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match self.folder.as_deref().map(ChatTemplate::open) {
            None | Some(Err(ChatError::NoTemplate { .. })) => Ok(None),
            Some(template) => Ok(Some(template?)),
        }
    }

    /// Training mode switches dropout on. A new or loaded model is in evaluation mode.
    pub fn set_training(&mut self, training: bool) {
        self.context.training = training;
    }

    /// Activation checkpointing: blocks keep only their inputs for the backward pass, which runs them again. Takes memory for one
    /// block's activations instead of all, for the price of a second forward pass. Values and gradients stay the same.
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.network.set_gradient_checkpointing(on);
    }

    /// Vocabulary logits `[..., vocab]` `f32` of states after the final norm, `[..., width]`.
    ///
    /// # Errors
    /// When the width differs, or libtorch refuses.
    pub fn logits(&self, states: &Tensor) -> Result<Tensor> {
        self.network.embeddings().logits(states)
    }

    /// Logits of a few tokens only: states `[batch, width]`, ids `[batch, n]`, result `[batch, n]`, `f32`.
    ///
    /// # Errors
    /// When shapes do not fit, or an id is outside the vocabulary.
    pub fn logits_of(&self, states: &Tensor, ids: &Tensor) -> Result<Tensor> {
        self.network.embeddings().logits_of(states, ids)
    }

    /// Makes the embedding end with the tokens `ids`, as a tokenizer numbers the ones that it was given last. Their rows
    /// are drawn from a normal distribution with the mean and spread of the old embedding's columns; rows before them
    /// stay, and rows behind them, which no token uses, go: the embedding may become smaller. An output matrix of its own
    /// is treated alike. The same seed gives the same rows.
    ///
    /// The model has new parameters afterwards; an optimizer that knows the old ones does not train it.
    ///
    /// # Errors
    /// When there are no ids, rows before them would be missing, or a begin, end or padding token would lose its row.
    pub fn add_tokens(&mut self, ids: Range<TokenId>, seed: u64) -> Result<()> {
        let matrices = self.network.embeddings().resized(&ids, seed)?;
        let mut config = self.config().clone();
        config.set_vocab_size(ids.end);
        config.check()?;
        self.network.embeddings_mut().replace(matrices, &mut self.parameters);
        self.network.set_config(config);
        Ok(())
    }

    /// The states from which the tokens of targets are predicted, and the targets. A request to stop is looked at before.
    fn target_states(&self, prompts: &[&[TokenId]], targets: &[&[TokenId]]) -> Result<(Tensor, Labels)> {
        Interrupt::check()?;
        let rows = TargetRows::new(self.config().vocab_size(), prompts, targets, self.context.device)?;
        let states = self.network.target_states(self.context, &rows)?;
        Ok((states, rows.labels))
    }

    /// Score of targets that share prompts: states, log-probabilities, entropies.
    fn score_rows(
        &self,
        prompts: &[&[TokenId]],
        targets: &[&[TokenId]],
        options: ScoreOptions,
    ) -> Result<TokenScores> {
        let (states, labels) = self.target_states(prompts, targets)?;
        let output = self.network.embeddings().output_projection();
        let (log_probs, entropy) = label_scores(&states, output, &labels, options.entropy)?;
        let tokens = tokens_of(prompts, &labels);
        Ok(TokenScores { log_probs, entropy, states: options.states.then_some(states), labels, tokens })
    }
}

/// Prompts and targets of some examples.
fn rows(examples: &[Example]) -> (Vec<&[TokenId]>, Vec<&[TokenId]>) {
    examples.iter().map(|example| (example.prompt.as_slice(), example.target.as_slice())).unzip()
}

impl<N: Network> Policy for LanguageModel<N> {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn device(&self) -> Device {
        self.context.device
    }

    fn hidden_size(&self) -> i64 {
        self.config().width()
    }

    fn pad_token_id(&self) -> TokenId {
        self.config().pad_token_id()
    }

    fn output_projection(&self) -> Option<(&Tensor, f64)> {
        Some(self.network.embeddings().output_projection())
    }

    fn end_token_ids(&self) -> &[TokenId] {
        self.config().eos_token_ids()
    }

    fn set_training(&mut self, training: bool) {
        self.context.training = training;
    }

    fn has_dropout(&self) -> bool {
        self.config().dropout_rate() > 0.0
    }

    fn set_gradient_checkpointing(&mut self, on: bool) -> Result<()> {
        self.network.set_gradient_checkpointing(on);
        Ok(())
    }

    /// Without an encoder, prompt and target are read in one row: a target's [`IGNORED`] position is read as the padding token, so
    /// tokens that are to be read without loss belong to the prompt.
    fn score(&self, examples: &[Example], options: ScoreOptions) -> Result<TokenScores> {
        let (prompts, targets) = rows(examples);
        self.score_rows(&prompts, &targets, options)
    }

    /// Several targets of a prompt share one pass over it.
    fn score_alternatives(
        &self,
        prompts: &[&[TokenId]],
        targets: &[&[TokenId]],
        options: ScoreOptions,
    ) -> Result<TokenScores> {
        self.score_rows(prompts, targets, options)
    }

    fn cross_entropy(&self, examples: &[Example]) -> Result<CrossEntropy> {
        let (prompts, targets) = rows(examples);
        let (states, labels) = self.target_states(&prompts, &targets)?;
        let sum = label_cross_entropy(&states, self.network.embeddings().output_projection(), &labels)?;
        Ok(CrossEntropy { sum, count: labels.count, tokens: tokens_of(&prompts, &labels) })
    }

    fn states(&self, examples: &[Example]) -> Result<Option<Tensor>> {
        let (prompts, targets) = rows(examples);
        Ok(Some(self.target_states(&prompts, &targets)?.0))
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.save(folder)
    }
}

impl<N: Network> ScoreChoices for LanguageModel<N> {
    fn choice_log_probs(&self, prompts: &[Vec<TokenId>], choices: &[Vec<Vec<TokenId>>]) -> Result<Tensor> {
        let capacity = check_choices(prompts, choices)?;
        let targets = padded_targets(choices, capacity)?;
        let rows: Vec<&[TokenId]> = prompts.iter().map(Vec::as_slice).collect();
        let scores = self.score_rows(&rows, &targets, ScoreOptions::default())?;
        Ok(scores.log_probs.f_view_([prompts.len() as i64, capacity as i64, -1])?)
    }

    fn first_token_logits(&self, prompts: &[Vec<TokenId>], tokens: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>> {
        let capacity = check_choices(prompts, tokens)?;
        check_targets(self.config().vocab_size(), &tokens.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        let ids = padded_tokens(tokens, capacity, self.context.device)?;
        let rows: Vec<&[TokenId]> = prompts.iter().map(Vec::as_slice).collect();
        let first: &[TokenId] = &[IGNORED];
        let (states, _) = self.target_states(&rows, &vec![first; rows.len()])?;
        let logits = self.logits_of(&states.f_squeeze_dim(1)?, &ids)?;
        let mut logits: Vec<Vec<f32>> = Vec::try_from(logits)?;
        logits.iter_mut().zip(tokens).for_each(|(row, tokens)| row.truncate(tokens.len()));
        Ok(logits)
    }
}

impl<N: Network> Generate for LanguageModel<N> {
    fn generate(
        &self,
        prompts: &[Vec<TokenId>],
        config: &GenerationConfig,
        seeds: &[u64],
    ) -> Result<Vec<Vec<Generated>>> {
        generate(self, prompts, config, seeds, None)
    }
}

impl<N: Network> Decoder for LanguageModel<N> {
    fn device(&self) -> Device {
        self.context.device
    }

    fn vocab_size(&self) -> i64 {
        self.config().vocab_size()
    }

    fn pad_token_id(&self) -> TokenId {
        self.config().pad_token_id()
    }

    fn end_ids(&self) -> &[TokenId] {
        self.config().eos_token_ids()
    }

    fn given_tokens(&self, prompt: &[TokenId]) -> usize {
        if self.config().has_encoder() { 1 } else { prompt.len() }
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    fn bytes_in_flight(&self, prompts: usize, longest: usize, rows: usize, new: usize) -> u64 {
        self.config().decoding_bytes(prompts, longest, rows, new, self.context.kind)
    }

    fn prefill(&self, prefill: Prefill<'_>) -> Result<Started<Decoding<'_>>> {
        self.network.prefill(self.context, prefill)
    }
}
