//! T5 (arXiv 1910.10683): versions 1.0 and 1.1/Flan, with or without the decoder.

mod config;
mod decoding;
mod layers;
mod policy;
mod resize;
mod sizes;

use std::path::Path;

use ruminate_torch::linear;
use tch::{Device, Kind, Tensor};

use crate::batch::{check_id_tensor, check_ids, check_states};
use crate::checkpoint::{Builder, SHARD_BYTES, Weights, write_model};
use crate::parameters::{Init, Parameters, seeded};
use crate::{Batch, Error, Result, Side, TokenId, Tokenizer};

pub use config::{FeedForward, T5Config};
pub use decoding::Decoding;

use layers::{Layout, Rectangle, Stack, causal_mask, padding_mask};

/// A T5. Parameters carry their Hugging Face names, so that folders written here load in `transformers` and theirs
/// load here.
///
/// # Example
/// ```no_run
/// use ruminate_models::{Batch, Side, T5};
/// use tch::{Device, Kind};
/// let t5 = T5::load("t5-large".as_ref(), Kind::Float, Device::cuda_if_available())?;
/// let source = t5.batch(&[vec![37, 1997, 1]])?;
/// let encoded = t5.encode(&source)?;
/// # Ok::<(), ruminate_models::Error>(())
/// ```
#[derive(Debug)]
pub struct T5 {
    config: T5Config,
    kind: Kind,
    device: Device,
    parameters: Parameters,
    shared: Tensor,
    encoder: Stack,
    decoder: Option<Stack>,
    /// The output matrix, where it is not the embedding.
    lm_head: Option<Tensor>,
    training: bool,
    tokenizer: Option<Tokenizer>,
}

/// What the encoder made of a batch.
#[derive(Debug)]
pub struct Encoded {
    /// States after the final norm `[batch, source, d_model]`.
    pub states: Tensor,
    /// Score offsets that hide the padding `[batch, 1, 1, source]`.
    mask: Tensor,
}

impl T5 {
    /// A new model whose parameters are drawn as Hugging Face draws them; the same seed gives the same model.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(config: T5Config, kind: Kind, device: Device, seed: i64) -> Result<Self> {
        seeded(seed, || Self::build(config, Builder::new(None, kind, device)))
    }

    /// Loads a Hugging Face folder: `config.json` and `model.safetensors` or its shards; see [`T5Config::open`]. Whether the
    /// output matrix is the embedding is decided by the weights: a matrix of its own is used, whatever `tie_word_embeddings`
    /// says.
    ///
    /// # Errors
    /// When a file cannot be read, the configuration asks for something unknown, or tensors are missing, unexpected
    /// or misshapen; the error names them all.
    pub fn load(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        if !folder.is_dir() {
            let reason = "there is no such folder".into();
            return Err(Error::NoWeights { path: folder.to_path_buf(), reason });
        }
        Self::load_with(T5Config::open(folder)?, folder, kind, device)
    }

    /// As [`load`](Self::load), with a configuration from elsewhere.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(mut config: T5Config, folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let mut weights = Weights::open(folder, Device::Cpu)?;
        // The embedding under its other two names, and a bias that the first T5 code wrote but never used.
        let aliases = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
        if weights.get("shared.weight").is_none()
            && let Some(alias) = aliases.into_iter().find(|&name| weights.get(name).is_some())
        {
            weights.rename(alias, "shared.weight");
        }
        for alias in aliases {
            weights.ignore(alias);
        }
        weights.ignore("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight");
        if config.is_encoder_decoder {
            let tied = config.tie_word_embeddings;
            config.tie_word_embeddings = weights.settle_tie("shared.weight", "lm_head.weight", tied)?;
            // Files of transformers 5 say "tied" of every T5, and tell of an output matrix of its own by another key.
            if tied && !config.tie_word_embeddings && config.scale_decoder_outputs {
                weights.say_untied("lm_head.weight");
            }
        }
        Self::build(config, Builder::new(Some(weights), kind, device))
    }

    fn build(config: T5Config, mut builder: Builder) -> Result<Self> {
        config.check()?;
        let (kind, device) = builder.options();
        let embedding = [config.vocab_size, config.d_model];
        let init = Init::Normal(config.initializer_factor);
        let shared = builder.parameter("shared.weight", &embedding, init)?;
        let encoder = Stack::new(&mut builder, "encoder", false, &config)?;
        let (mut decoder, mut lm_head) = (None, None);
        if config.is_encoder_decoder {
            decoder = Some(Stack::new(&mut builder, "decoder", true, &config)?);
            if !config.tie_word_embeddings {
                lm_head = Some(builder.parameter("lm_head.weight", &embedding, init)?);
            }
        }
        let parameters = builder.finish()?;
        let (training, tokenizer) = (false, None);
        Ok(Self { config, kind, device, parameters, shared, encoder, decoder, lm_head, training, tokenizer })
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
    pub fn config(&self) -> &T5Config {
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

    /// Training mode switches dropout on. A new or loaded model is in evaluation mode.
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
        self.encoder.recompute = on;
        if let Some(decoder) = &mut self.decoder {
            decoder.recompute = on;
        }
    }

    /// A source batch: rows of ids padded on the right.
    ///
    /// # Errors
    /// When a row is empty or holds an id outside the vocabulary.
    pub fn batch<R: AsRef<[TokenId]>>(&self, rows: &[R]) -> Result<Batch> {
        check_ids(self.config.vocab_size, rows)?;
        Batch::new(rows, self.config.pad_token_id, Side::Right, self.device)
    }

    /// Runs the encoder.
    ///
    /// # Errors
    /// When libtorch refuses, e.g. for want of memory.
    pub fn encode(&self, source: &Batch) -> Result<Encoded> {
        self.encode_traced(source, None)
    }

    /// Runs the encoder; `trace` receives the output of every block, before the final norm.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn encode_traced(&self, source: &Batch, trace: Option<&mut Vec<Tensor>>) -> Result<Encoded> {
        check_id_tensor("source", &source.ids, self.config.vocab_size)?;
        self.encode_with(source, self.dropout(), trace)
    }

    pub(crate) fn encode_with(
        &self,
        source: &Batch,
        dropout: f64,
        trace: Option<&mut Vec<Tensor>>,
    ) -> Result<Encoded> {
        let (rows, time) = source.ids.size2()?;
        let mask = padding_mask(&source.mask, self.kind)?;
        let bias = self.encoder.position_bias.full(time)?.f_add(&mask)?;
        let layout = Layout { own: vec![Rectangle::own(rows, time, bias)], cross: vec![] };
        let states = self.run(&self.encoder, &source.ids, None, &layout, dropout, trace)?;
        Ok(Encoded { states, mask })
    }

    /// Runs the decoder over whole target inputs `[rows, time]` and returns its states after the final norm
    /// `[rows, time, d_model]`. `rows` may be a multiple of the encoded batch: consecutive rows then share one
    /// source.
    ///
    /// # Errors
    /// When the model has no decoder, or libtorch refuses.
    pub fn decode(&self, encoded: &Encoded, inputs: &Tensor) -> Result<Tensor> {
        self.decode_traced(encoded, inputs, None)
    }

    /// As [`decode`](Self::decode); `trace` receives the output of every block, before the final norm.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_traced(
        &self,
        encoded: &Encoded,
        inputs: &Tensor,
        trace: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let decoder = self.decoder()?;
        if let &[rows, _] = &inputs.size()[..] {
            check_rows(rows, &encoded.states)?;
        }
        let (rows, time) = check_id_tensor("decoder input", inputs, self.config.vocab_size)?;
        let (batch, keys, _) = encoded.states.size3()?;
        let bias = decoder.position_bias.full(time)?.f_add(&causal_mask(time, (self.kind, self.device))?)?;
        let mask = Some(encoded.mask.shallow_clone());
        let layout = Layout {
            own: vec![Rectangle::own(rows, time, bias)],
            cross: vec![Rectangle { rows, time, batch, keys, bias: mask }],
        };
        let source = encoded.states.f_flatten(0, 1)?;
        self.run(decoder, inputs, Some(&source), &layout, self.dropout(), trace)
    }

    /// One stack over rows of ids `[rows, time]`; its states and the traced ones are `[rows, time, d_model]`.
    fn run(
        &self,
        stack: &Stack,
        ids: &Tensor,
        source: Option<&Tensor>,
        layout: &Layout,
        dropout: f64,
        mut trace: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let (rows, time) = ids.size2()?;
        let embedded = self.embed(&ids.f_view_([-1])?)?;
        let states = stack.forward(embedded, source, layout, dropout, trace.as_deref_mut())?;
        for traced in trace.into_iter().flatten() {
            *traced = traced.f_view_([rows, time, -1])?;
        }
        Ok(states.f_view_([rows, time, -1])?)
    }

    /// Vocabulary logits of decoder states `[..., d_model]`, in `f32`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn logits(&self, states: &Tensor) -> Result<Tensor> {
        check_states(states, self.config.d_model)?;
        let (weight, scale) = self.output_projection();
        Ok(linear(&scaled(states, scale)?, weight)?.f_to_kind(Kind::Float)?)
    }

    /// Logits of a few tokens only: states `[batch, d_model]`, ids `[batch, n]`, result `[batch, n]`, `f32`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn logits_of(&self, states: &Tensor, ids: &Tensor) -> Result<Tensor> {
        check_states(states, self.config.d_model)?;
        let (batch, n) = check_id_tensor("ids", ids, self.config.vocab_size)?;
        if states.size()[..states.dim() - 1] != [batch] {
            let reason = format!("{:?} for ids of {batch} rows", states.size());
            return Err(Error::invalid("states", reason));
        }
        let (weight, scale) = self.output_projection();
        let rows = weight.f_index_select(0, &ids.f_reshape([-1])?)?.f_view_([batch, n, -1])?;
        Ok(rows
            .f_matmul(&scaled(states, scale)?.f_unsqueeze(2)?)?
            .f_squeeze_dim(2)?
            .f_to_kind(Kind::Float)?)
    }

    /// Buckets of key-minus-query distances in the encoder's (`bidirectional`) or decoder's self-attention.
    ///
    /// # Errors
    /// When the model has no decoder, or libtorch refuses.
    pub fn position_buckets(&self, distance: &Tensor, bidirectional: bool) -> Result<Tensor> {
        self.stack(bidirectional)?.position_bias.buckets(distance)
    }

    /// Position bias `[1, heads, time, time]` of the encoder (`bidirectional`) or the decoder, without any mask.
    ///
    /// # Errors
    /// When the model has no decoder, or libtorch refuses.
    pub fn position_bias(&self, time: i64, bidirectional: bool) -> Result<Tensor> {
        if time < 1 {
            return Err(Error::invalid(
                "position bias",
                format!("{time} positions; there must be 1 at least"),
            ));
        }
        self.stack(bidirectional)?.position_bias.full(time)
    }

    /// Decoder inputs of labels `[batch, time]`: shifted right behind the start token, ignored positions as padding.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn shift_right(&self, labels: &Tensor) -> Result<Tensor> {
        let &[batch, time] = &labels.size()[..] else {
            return Err(Error::invalid("labels", format!("{:?}, but must be [batch, time]", labels.size())));
        };
        if time == 0 {
            return Ok(labels.shallow_clone());
        }
        let inputs = labels.f_full_like(self.config.decoder_start_token_id)?;
        inputs.f_narrow(1, 1, time - 1)?.f_copy_(&labels.f_narrow(1, 0, time - 1)?)?;
        let ignored = inputs.f_eq(crate::IGNORED)?;
        debug_assert_eq!(inputs.size(), [batch, time]);
        Ok(inputs.f_masked_fill(&ignored, self.config.pad_token_id)?)
    }

    fn stack(&self, encoder: bool) -> Result<&Stack> {
        if encoder { Ok(&self.encoder) } else { self.decoder() }
    }

    fn decoder(&self) -> Result<&Stack> {
        self.decoder.as_ref().ok_or_else(|| Error::invalid("T5", "this model has only an encoder"))
    }

    /// The embedding `[d_model]` of one token.
    pub(crate) fn embedding(&self, id: TokenId) -> Result<Tensor> {
        Ok(self.shared.f_detach()?.f_get(id)?)
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(Tensor::f_embedding(&self.shared, ids, -1, false, false)?)
    }

    /// The output matrix `[vocab, d_model]`, and the factor on its product with the decoder's states.
    pub(crate) fn output_projection(&self) -> (&Tensor, f64) {
        let scaled = self.config.scale_decoder_outputs;
        let scale = if scaled { (self.config.d_model as f64).powf(-0.5) } else { 1.0 };
        (self.lm_head.as_ref().unwrap_or(&self.shared), scale)
    }

    fn dropout(&self) -> f64 {
        if self.training { self.config.dropout_rate } else { 0.0 }
    }
}

fn scaled(states: &Tensor, scale: f64) -> Result<Tensor> {
    Ok(if scale == 1.0 { states.shallow_clone() } else { states.f_mul_scalar(scale)? })
}

fn check_rows(rows: i64, states: &Tensor) -> Result<()> {
    let batch = states.size()[0];
    if rows > 0 && rows % batch == 0 {
        return Ok(());
    }
    Err(Error::invalid("decoder input", format!("{rows} rows cannot share {batch} encoded sources evenly")))
}
