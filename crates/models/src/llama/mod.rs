//! Llama (arXiv 2302.13971) and its kin: Llama 2, 3 and 3.1, DeepSeek, Mistral (arXiv 2310.06825).

mod config;
mod decoding;
mod layers;
mod policy;
mod resize;
mod rope;
mod sizes;

use std::path::Path;

use ruminate_torch::linear;
use tch::{Device, Kind, Tensor};

use crate::batch::{check_id_tensor, check_ids, check_states};
use crate::checkpoint::{Builder, SHARD_BYTES, Weights, write_model};
use crate::parameters::{Init, Parameters, seeded};
use crate::{Batch, Error, Result, Side, TokenId, Tokenizer};

pub use config::{LlamaConfig, LlamaFamily};
pub use rope::RopeScaling;

use layers::{HIDDEN, Pass, Stack, causal_mask, fused};
use rope::Rotation;

/// A Llama or Mistral. Parameters carry their Hugging Face names, so that folders written here load in `transformers` and
/// theirs load here.
///
/// # Example
/// ```no_run
/// use ruminate_models::{Generate, GenerationConfig, Llama};
/// use tch::{Device, Kind};
/// let llama = Llama::load("Llama-3.1-8B".as_ref(), Kind::BFloat16, Device::cuda_if_available())?;
/// let written = llama.generate(&[vec![128_000, 791, 6864]], &GenerationConfig::default(), &[])?;
/// # Ok::<(), ruminate_models::Error>(())
/// ```
#[derive(Debug)]
pub struct Llama {
    config: LlamaConfig,
    kind: Kind,
    device: Device,
    parameters: Parameters,
    embed_tokens: Tensor,
    stack: Stack,
    /// The output matrix, where it is not the embedding.
    lm_head: Option<Tensor>,
    training: bool,
    tokenizer: Option<Tokenizer>,
}

impl Llama {
    /// A new model whose parameters are drawn as Hugging Face draws them; the same seed gives the same model.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(config: LlamaConfig, kind: Kind, device: Device, seed: i64) -> Result<Self> {
        seeded(seed, || Self::build(config, Builder::new(None, kind, device)))
    }

    /// Loads a Hugging Face folder: `config.json` and `model.safetensors` or its shards; see [`LlamaConfig::open`]. Whether
    /// the output matrix is the embedding is decided by the weights: a matrix of its own is used, whatever
    /// `tie_word_embeddings` says.
    ///
    /// # Errors
    /// When a file cannot be read, the configuration asks for something unknown, or tensors are missing, unexpected
    /// or misshapen; the error names them all.
    pub fn load(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        if !folder.is_dir() {
            let reason = "there is no such folder".into();
            return Err(Error::NoWeights { path: folder.to_path_buf(), reason });
        }
        Self::load_with(LlamaConfig::open(folder)?, folder, kind, device)
    }

    /// The weights of a folder with a configuration from elsewhere.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(mut config: LlamaConfig, folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let mut weights = Weights::open(folder, Device::Cpu)?;
        // Old files hold the rotary frequencies, which follow from the configuration.
        weights.tensors.retain(|name, _| !name.ends_with(".self_attn.rotary_emb.inv_freq"));
        let tied = config.tie_word_embeddings;
        config.tie_word_embeddings =
            weights.settle_tie("model.embed_tokens.weight", "lm_head.weight", tied)?;
        if tied && !config.tie_word_embeddings {
            weights.say_untied("lm_head.weight");
        }
        Self::build(config, Builder::new(Some(weights), kind, device))
    }

    fn build(config: LlamaConfig, mut builder: Builder) -> Result<Self> {
        config.check()?;
        let (kind, device) = builder.options();
        let embedding = [config.vocab_size, config.hidden_size];
        let init = Init::Normal(config.initializer_range);
        let embed_tokens = builder.parameter("model.embed_tokens.weight", &embedding, init)?;
        let stack = Stack::new(&mut builder, &config)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(builder.parameter("lm_head.weight", &embedding, init)?),
        };
        let parameters = builder.finish()?;
        let (training, tokenizer) = (false, None);
        Ok(Self { config, kind, device, parameters, embed_tokens, stack, lm_head, training, tokenizer })
    }

    /// Writes `config.json` and the weights into an existing folder.
    ///
    /// # Errors
    /// When the folder is not writable or the disk is full.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.config.save(folder)?;
        write_model(folder, &self.parameters, SHARD_BYTES)
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The parameters; they are shared with the layers.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The device on which the parameters lie.
    #[must_use]
    pub fn device(&self) -> Device {
        self.device
    }

    /// The kind of the parameters.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Training mode switches dropout on, where the configuration has some. A new or loaded model is in evaluation mode.
    pub fn set_training(&mut self, training: bool) {
        self.training = training;
    }

    /// Hands over the tokenizer, which generation needs to find stop strings, and nothing else does.
    pub fn set_tokenizer(&mut self, tokenizer: Tokenizer) {
        self.tokenizer = Some(tokenizer);
    }

    /// With it, blocks keep only their inputs for the backward pass, which runs them again: memory for one block's
    /// activations instead of all, for the price of a second forward pass. Values and gradients stay the same.
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.stack.recompute = on;
    }

    /// A batch of rows of ids, padded on the given side.
    ///
    /// # Errors
    /// When a row is empty or holds an id outside the vocabulary.
    pub fn batch<R: AsRef<[TokenId]>>(&self, rows: &[R], side: Side) -> Result<Batch> {
        check_ids(self.config.vocab_size, rows)?;
        Batch::new(rows, self.pad(), side, self.device)
    }

    /// The states after the final norm `[batch, time, hidden_size]`, each of which has seen the real tokens up to its own.
    /// Padding may stand on either side; its states mean nothing.
    ///
    /// # Errors
    /// When libtorch refuses, e.g. for want of memory.
    pub fn forward(&self, batch: &Batch) -> Result<Tensor> {
        self.forward_traced(batch, None)
    }

    /// As [`forward`](Self::forward); `trace` receives the output of every block, before the final norm.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_traced(&self, batch: &Batch, trace: Option<&mut Vec<Tensor>>) -> Result<Tensor> {
        check_id_tensor("batch", &batch.ids, self.config.vocab_size)?;
        let pass = self.pass(batch, self.dropout())?;
        self.stack.forward(self.look_up(&batch.ids)?, &pass, trace)
    }

    /// Rows of the embedding `[batch, time, hidden_size]`.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        check_id_tensor("ids", ids, self.config.vocab_size)?;
        self.look_up(ids)
    }

    /// Reads ids that are known to be in the vocabulary.
    fn look_up(&self, ids: &Tensor) -> Result<Tensor> {
        let no_gradient = self.config.pad_token_id.unwrap_or(-1);
        Ok(Tensor::f_embedding(&self.embed_tokens, ids, no_gradient, false, false)?)
    }

    /// Vocabulary logits of states `[..., hidden_size]`, in `f32`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn logits(&self, states: &Tensor) -> Result<Tensor> {
        check_states(states, self.config.hidden_size)?;
        Ok(linear(states, self.output())?.f_to_kind(Kind::Float)?)
    }

    /// The output matrix `[vocab, hidden_size]`.
    fn output(&self) -> &Tensor {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// What fills up rows; since padding is invisible, any token does.
    fn pad(&self) -> TokenId {
        self.config.pad_token_id.or(self.config.eos_token_ids.first().copied()).unwrap_or(0)
    }

    fn dropout(&self) -> f64 {
        if self.training { self.config.attention_dropout } else { 0.0 }
    }

    /// A pass over rows whose padding, if any, is on the right, where no real token sees it.
    fn plain_pass(&self, rows: i64, time: i64, dropout: f64) -> Result<Pass> {
        let mask = self.plain_mask(rows, time, dropout)?;
        let positions = Tensor::f_arange(time, (Kind::Int64, self.device))?.f_unsqueeze(0)?;
        let rotation = Rotation::new(&self.config, &positions, self.kind)?;
        Ok(Pass { rotation, mask, dropout, rectangles: vec![] })
    }

    /// The mask of such rows, where attention needs one.
    fn plain_mask(&self, rows: i64, time: i64, dropout: f64) -> Result<Option<Tensor>> {
        let windowed = self.config.sliding_window.is_some_and(|window| window < time);
        let scores = rows * self.config.num_attention_heads * time * time;
        let unmasked = !windowed && dropout == 0.0 && fused(self.device, scores);
        Ok(if unmasked { None } else { Some(self.causal(time, time)?) })
    }

    /// A pass over rows with padding anywhere.
    fn pass(&self, batch: &Batch, dropout: f64) -> Result<Pass> {
        let (rows, time) = batch.ids.size2()?;
        if !padded(batch) {
            return self.plain_pass(rows, time, dropout);
        }
        let mask = &batch.mask;
        let positions = mask.f_cumsum(1, Kind::Int64)?.f_sub_scalar(1)?.f_clamp_min(0)?;
        let mask = self.hidden(mask)?.f_add(&self.causal(time, time)?)?;
        let rotation = Rotation::new(&self.config, &positions, self.kind)?;
        Ok(Pass { rotation, mask: Some(mask), dropout, rectangles: vec![] })
    }

    /// Score offsets `[1, 1, time, keys]` that hide the future and what is behind the window.
    fn causal(&self, time: i64, keys: i64) -> Result<Tensor> {
        causal_mask(time, keys, self.config.sliding_window, (self.kind, self.device))
    }

    /// Score offsets `[rows, 1, 1, time]` that hide padding.
    fn hidden(&self, mask: &Tensor) -> Result<Tensor> {
        let hidden = mask.f_eq(0)?.f_to_kind(Kind::Float)?.f_mul_scalar(HIDDEN)?;
        Ok(hidden.f_to_kind(self.kind)?.f_unsqueeze(1)?.f_unsqueeze(1)?)
    }
}

/// Whether some token of the batch is padding.
fn padded(batch: &Batch) -> bool {
    batch.tokens != batch.ids.numel() as u64
}
