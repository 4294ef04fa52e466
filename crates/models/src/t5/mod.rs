//! T5 (arXiv 1910.10683): versions 1.0, 1.1, Flan, UL2 and mT5, with or without the decoder.

mod config;
mod sizes;

use tch::Tensor;

use ruminate_torch::Gate;

use crate::batch::{check_id_tensor, check_ids, check_rows};
use crate::checkpoint::Weights;
use crate::generation::{Prefill, Started, Steps};
use crate::layers::packing::{PackedRows, longest, padding_budget};
use crate::layers::{
    Attention, AttentionBias, AttentionBlock, AttentionShape, Block, CrossAttention, Decoding, Dropout,
    Embeddings, KvCache, Linear, Mlp, Pass, Positions, RelativeBias, RmsNorm, Stack, Start, causal_bias,
    padding_bias,
};
use crate::network::{Context, Network, TargetRows};
use crate::parameters::Builder;
use crate::{Batch, Error, IGNORED, LanguageModel, ModelShape, Result, Side, TokenId};

pub use config::{FeedForward, T5Config};

/// A T5.
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
pub type T5 = LanguageModel<T5Network>;

/// The network of a [`T5`].
#[derive(Debug)]
pub struct T5Network {
    config: T5Config,
    embeddings: Embeddings,
    encoder: T5Stack,
    decoder: Option<T5Stack>,
}

/// The encoder or the decoder.
#[derive(Debug)]
struct T5Stack {
    stack: Stack,
    /// Added to the scores of every self-attention of the stack.
    position_bias: RelativeBias,
}

/// What the encoder made of a batch.
#[derive(Debug)]
pub struct Encoded {
    /// States after the final norm `[batch, source, d_model]`.
    pub states: Tensor,
    /// Masks the padding, `[batch, 1, 1, source]`.
    mask: Tensor,
}

/// Weights by their Hugging Face names. A new matrix is drawn with the standard deviations of Mesh TensorFlow.
impl T5Stack {
    fn build(builder: &mut Builder, name: &str, decoder: bool, config: &T5Config) -> Result<Self> {
        let blocks = if decoder { config.num_decoder_layers } else { config.num_layers };
        let bias = format!("{name}.block.0.layer.0.SelfAttention.relative_attention_bias");
        let std = config.initializer_factor * (config.d_model as f64).powf(-0.5);
        let buckets = [config.relative_attention_num_buckets, config.num_heads];
        let max_distance = config.relative_attention_max_distance;
        let position_bias = RelativeBias::new(builder, &bias, buckets, std, !decoder, max_distance)?;
        let blocks = (0..blocks).map(|i| block(builder, &format!("{name}.block.{i}"), decoder, config));
        let blocks = blocks.collect::<Result<_>>()?;
        let final_norm = norm(builder, &format!("{name}.final_layer_norm"), config)?;
        Ok(Self { stack: Stack { blocks, final_norm, gradient_checkpointing: false }, position_bias })
    }
}

fn norm(builder: &mut Builder, name: &str, config: &T5Config) -> Result<RmsNorm> {
    RmsNorm::new(builder, name, config.d_model, config.layer_norm_epsilon)
}

fn block(builder: &mut Builder, name: &str, decoder: bool, config: &T5Config) -> Result<Block> {
    let self_attention = attention(builder, &format!("{name}.layer.0.SelfAttention"), config)?;
    let self_attention_norm = norm(builder, &format!("{name}.layer.0.layer_norm"), config)?;
    let cross_attention = match decoder {
        true => Some(CrossAttention {
            attention: attention(builder, &format!("{name}.layer.1.EncDecAttention"), config)?,
            norm: norm(builder, &format!("{name}.layer.1.layer_norm"), config)?,
        }),
        false => None,
    };
    let last = if decoder { 2 } else { 1 };
    let mlp = mlp(builder, &format!("{name}.layer.{last}.DenseReluDense"), config)?;
    let mlp_norm = norm(builder, &format!("{name}.layer.{last}.layer_norm"), config)?;
    Ok(Block { self_attention_norm, self_attention, sliding: false, cross_attention, mlp_norm, mlp })
}

fn attention(builder: &mut Builder, name: &str, config: &T5Config) -> Result<Attention> {
    let T5Config { d_model, d_kv, num_heads, initializer_factor, .. } = *config;
    let inner = num_heads * d_kv;
    let mut linear = |part: &str, shape, fan: i64| {
        let std = initializer_factor * (fan as f64).powf(-0.5);
        Linear::new(builder, &format!("{name}.{part}"), shape, std)
    };
    Ok(Attention {
        // T5 has no factor on the scores; the queries' matrix begins smaller instead.
        shape: AttentionShape { heads: num_heads, kv_heads: num_heads, head_dim: d_kv, scale: 1.0 },
        q: linear("q", [inner, d_model], d_model * d_kv)?,
        k: linear("k", [inner, d_model], d_model)?,
        v: linear("v", [inner, d_model], d_model)?,
        o: linear("o", [d_model, inner], inner)?,
        qk_norm: None,
    })
}

fn mlp(builder: &mut Builder, name: &str, config: &T5Config) -> Result<Mlp> {
    let T5Config { d_model, d_ff, initializer_factor, .. } = *config;
    let mut linear = |part: &str, shape: [i64; 2]| {
        let std = initializer_factor * (shape[1] as f64).powf(-0.5);
        Linear::new(builder, &format!("{name}.{part}"), shape, std)
    };
    let (up, down) = ([d_ff, d_model], [d_model, d_ff]);
    let activation = match config.feed_forward {
        FeedForward::Relu => return Ok(Mlp::Relu { up: linear("wi", up)?, down: linear("wo", down)? }),
        FeedForward::GatedGelu => Gate::GeluTanh,
        FeedForward::GatedSilu => Gate::Silu,
    };
    let (gate, up) = (linear("wi_0", up)?, linear("wi_1", up)?);
    Ok(Mlp::Gated { activation, gate, up, down: linear("wo", down)? })
}

#[allow(private_interfaces, reason = "as the trait's")]
impl Network for T5Network {
    type Config = T5Config;

    fn config(&self) -> &T5Config {
        &self.config
    }

    fn set_config(&mut self, config: T5Config) {
        self.config = config;
    }

    fn build(config: T5Config, builder: &mut Builder) -> Result<Self> {
        let (shape, std) = ([config.vocab_size, config.d_model], config.initializer_factor);
        let mut embeddings = Embeddings::new(builder, "shared.weight", shape, std, None)?;
        if config.scale_decoder_outputs {
            embeddings.scale_output((config.d_model as f64).powf(-0.5));
        }
        let encoder = T5Stack::build(builder, "encoder", false, &config)?;
        let mut decoder = None;
        if config.is_encoder_decoder {
            decoder = Some(T5Stack::build(builder, "decoder", true, &config)?);
            if !config.tie_word_embeddings {
                embeddings.untie(builder, "lm_head.weight", std)?;
            }
        }
        Ok(Self { config, embeddings, encoder, decoder })
    }

    fn adapt(config: &mut T5Config, weights: &mut Weights) -> Result<()> {
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
            config.tie_word_embeddings = weights.resolve_tie("shared.weight", "lm_head.weight", tied)?;
            // Files of transformers 5 say "tied" of every T5, and tell of an output matrix of its own by another key.
            if tied && !config.tie_word_embeddings && config.scale_decoder_outputs {
                weights.say_untied("lm_head.weight");
            }
        }
        Ok(())
    }

    fn embeddings(&self) -> &Embeddings {
        &self.embeddings
    }

    fn embeddings_mut(&mut self) -> &mut Embeddings {
        &mut self.embeddings
    }

    fn set_gradient_checkpointing(&mut self, on: bool) {
        self.encoder.stack.gradient_checkpointing = on;
        if let Some(decoder) = &mut self.decoder {
            decoder.stack.gradient_checkpointing = on;
        }
    }

    /// The encoder reads the prompts, the decoder the targets behind the start token. Prompts and targets of different lengths are
    /// hardly padded.
    fn target_states(&self, context: Context, rows: &TargetRows<'_>) -> Result<Tensor> {
        let TargetRows { prompts, targets, per_prompt, ref labels } = *rows;
        let Context { kind, device, .. } = context;
        let config = &self.config;
        check_rows(prompts)?;
        check_ids(config.vocab_size, prompts)?;
        let decoder = self.decoder()?;

        // A target without tokens has its row all the same.
        let sizes: Vec<[i64; 2]> = prompts
            .iter()
            .zip(targets.chunks(per_prompt))
            .map(|(prompt, targets)| [prompt.len() as i64, per_prompt as i64 * longest(targets)])
            .collect();
        let encoder_bias = self.encoder.position_bias.full(longest(prompts))?;
        let time = longest(targets);
        let causal = causal_bias(time, time, None, (kind, device))?;
        let decoder_bias = decoder.position_bias.full(time)?.f_add(&causal)?;
        let corner = |bias: &Tensor, time: i64| bias.f_narrow(2, 0, time)?.f_narrow(3, 0, time);

        let pad = config.pad_token_id;
        let (mut source, mut inputs) = (PackedRows::new(prompts.len()), PackedRows::new(targets.len()));
        let (mut encoder_pass, mut decoder_pass) = (self.pass(context), self.pass(context));
        for group in crate::layers::packing::groups(&sizes, padding_budget(self.block_parameters(), device)) {
            let batch = group.len() as i64;
            let rows = batch * per_prompt as i64;
            let members: Vec<&[TokenId]> = group.iter().map(|&i| prompts[i]).collect();
            let keys = longest(&members);
            let time = group.iter().map(|&i| sizes[i][1] / per_prompt as i64).max().unwrap_or(1);
            for (&i, prompt) in group.iter().zip(&members) {
                source.push(i, prompt.iter().copied(), keys, pad);
            }
            for row in group.iter().flat_map(|&i| i * per_prompt..(i + 1) * per_prompt) {
                let read = targets[row].iter().take(targets[row].len().saturating_sub(1));
                let read = read.map(|&id| if id == IGNORED { pad } else { id });
                let start = std::iter::once(config.decoder_start_token_id);
                inputs.push(row, start.chain(read), time, pad);
            }
            let mut own = corner(&encoder_bias, keys)?;
            let mut mask = AttentionBias::None;
            if members.iter().any(|prompt| prompt.len() as i64 != keys) {
                let batch = Batch::new(&members, pad, Side::Right, device)?;
                let padding = padding_bias(&batch.mask, kind)?;
                own = own.f_add(&padding)?;
                mask = AttentionBias::Scores(padding.into());
            }
            let own = AttentionBias::Scores(own.into());
            encoder_pass.self_attention.push(AttentionBlock::to_itself(batch, keys, own));
            let own = AttentionBias::Scores(corner(&decoder_bias, time)?.into());
            decoder_pass.self_attention.push(AttentionBlock::to_itself(rows, time, own));
            decoder_pass.cross_attention.push(AttentionBlock { rows, time, batch, keys, bias: mask });
        }
        // Embedded together: each look-up has a gradient of the embedding's size.
        let sizes = [source.ids.len() as i64, inputs.ids.len() as i64];
        let ids = [source.ids.as_slice(), inputs.ids.as_slice()].concat();
        let ids = Tensor::f_from_slice(&ids)?.f_to_device(device)?;
        let embedded = self.embeddings.embed(&ids)?.f_split_with_sizes(sizes, 0)?;
        let encoded = self.encoder.stack.forward(&embedded[0], None, &encoder_pass, None)?;
        let states = decoder.stack.forward(&embedded[1], Some(&encoded), &decoder_pass, None)?;
        inputs.unpack(&states, labels.ids.size()[1])
    }

    fn prefill(&self, context: Context, prefill: Prefill<'_>) -> Result<Started<Decoding<'_>>> {
        let Prefill { prompts, prefix, samples_per_prompt, max_new } = prefill;
        let context = Context { training: false, ..context };
        let beginning = [&[self.config.decoder_start_token_id], prefix].concat();
        let (rows, width) = ((prompts.len() * samples_per_prompt) as i64, beginning.len() as i64);
        let prompt = Tensor::f_from_slice(&beginning)?.f_to_device(context.device)?;
        let prompt = prompt.f_unsqueeze(0)?.f_repeat([rows, 1])?;
        let encoded = self.encode(context, &self.batch(context, prompts)?, None)?;
        let mut steps = self.start_decoding(&encoded, rows, width + max_new as i64 - 1)?;
        // All but the last of the prompt's tokens only fill the cache.
        for position in 0..width - 1 {
            steps.fill(&prompt.f_narrow(1, position, 1)?)?;
        }
        let logits = steps.next_logits(&prompt.f_narrow(1, width - 1, 1)?)?;
        Ok(Started { steps, logits, prompt, padding: None })
    }
}

impl T5Network {
    fn decoder(&self) -> Result<&T5Stack> {
        self.decoder.as_ref().ok_or_else(|| Error::invalid("T5", "this model has only an encoder"))
    }

    fn stack(&self, encoder: bool) -> Result<&T5Stack> {
        if encoder { Ok(&self.encoder) } else { self.decoder() }
    }

    /// A pass without any attention yet.
    fn pass(&self, context: Context) -> Pass {
        let rate = if context.training { self.config.dropout_rate } else { 0.0 };
        Pass { dropout: Dropout { attention: rate, hidden: rate }, ..Pass::default() }
    }

    /// Parameters of a block, on average.
    fn block_parameters(&self) -> i64 {
        let T5Config { vocab_size, d_model, num_layers, num_decoder_layers, .. } = self.config;
        let all = self.config.parameter_count() as i64 - vocab_size * d_model;
        all / (num_layers + num_decoder_layers).max(1)
    }

    fn batch<R: AsRef<[TokenId]>>(&self, context: Context, rows: &[R]) -> Result<Batch> {
        check_ids(self.config.vocab_size, rows)?;
        Batch::new(rows, self.config.pad_token_id, Side::Right, context.device)
    }

    fn encode(&self, context: Context, source: &Batch, trace: Option<&mut Vec<Tensor>>) -> Result<Encoded> {
        let (rows, time) = source.ids.size2()?;
        let mask = padding_bias(&source.mask, context.kind)?;
        let bias = self.encoder.position_bias.full(time)?.f_add(&mask)?;
        let mut pass = self.pass(context);
        let bias = AttentionBias::Scores(bias.into());
        pass.self_attention = vec![AttentionBlock::to_itself(rows, time, bias)];
        let states = self.run(&self.encoder, &source.ids, None, &pass, trace)?;
        Ok(Encoded { states, mask })
    }

    /// One stack over rows of ids `[rows, time]`; its states and the traced ones are `[rows, time, d_model]`.
    fn run(
        &self,
        stack: &T5Stack,
        ids: &Tensor,
        encoder: Option<&Tensor>,
        pass: &Pass,
        mut trace: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let (rows, time) = ids.size2()?;
        let embedded = self.embeddings.embed(&ids.f_view_([-1])?)?;
        let states = stack.stack.forward(&embedded, encoder, pass, trace.as_deref_mut())?;
        for traced in trace.into_iter().flatten() {
            *traced = traced.f_view_([rows, time, -1])?;
        }
        Ok(states.f_view_([rows, time, -1])?)
    }

    fn start_decoding(&self, encoded: &Encoded, rows: i64, max_time: i64) -> Result<Decoding<'_>> {
        let decoder = self.decoder()?;
        check_shared_rows(rows, &encoded.states)?;
        if max_time < 1 {
            let reason = format!("room for {max_time} tokens; there must be 1 at least");
            return Err(Error::invalid("decoding", reason));
        }
        let options = (encoded.states.kind(), encoded.states.device());
        let caches = decoder.stack.blocks.iter().map(|block| {
            let cache = KvCache::empty(rows, &block.self_attention.shape, max_time, options)?;
            let cross = block.cross_attention.as_ref();
            let encoder = cross.map(|cross| cross.attention.encoder_keys_values(&encoded.states));
            Ok((cache, encoder.transpose()?))
        });
        Ok(Decoding::new(Start {
            embeddings: &self.embeddings,
            stack: &decoder.stack,
            caches: caches.collect::<Result<_>>()?,
            output: Some(self.embeddings.packed_output()?),
            positions: Positions::Bias(decoder.position_bias.last_row(max_time)?),
            padding: None,
            encoder_bias: Some(encoded.mask.shallow_clone()),
            rows,
            prompt_len: 0,
            capacity: max_time,
        }))
    }
}

impl T5 {
    /// A source batch: rows of ids padded on the right.
    ///
    /// # Errors
    /// When a row is empty or holds an id outside the vocabulary.
    pub fn batch<R: AsRef<[TokenId]>>(&self, rows: &[R]) -> Result<Batch> {
        self.network.batch(self.context, rows)
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
        check_id_tensor("source", &source.ids, self.config().vocab_size)?;
        self.network.encode(self.context, source, trace)
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
        let decoder = self.network.decoder()?;
        if let &[rows, _] = &inputs.size()[..] {
            check_shared_rows(rows, &encoded.states)?;
        }
        let (rows, time) = check_id_tensor("decoder input", inputs, self.config().vocab_size)?;
        let (batch, keys, _) = encoded.states.size3()?;
        let causal = causal_bias(time, time, None, (self.kind(), self.device()))?;
        let bias = AttentionBias::Scores(decoder.position_bias.full(time)?.f_add(&causal)?.into());
        let mut pass = self.network.pass(self.context);
        pass.self_attention = vec![AttentionBlock::to_itself(rows, time, bias)];
        let mask = AttentionBias::Scores(encoded.mask.shallow_clone().into());
        pass.cross_attention = vec![AttentionBlock { rows, time, batch, keys, bias: mask }];
        let encoder = encoded.states.f_flatten(0, 1)?;
        self.network.run(decoder, inputs, Some(&encoder), &pass, trace)
    }

    /// Starts decoding step by step, without dropout: `rows` sequences (a multiple of the encoded batch) of at most `max_time`
    /// tokens. Memory for keys and values is taken here, once.
    ///
    /// # Errors
    /// When the model has no decoder, or libtorch refuses.
    pub fn start_decoding(&self, encoded: &Encoded, rows: i64, max_time: i64) -> Result<Decoding<'_>> {
        self.network.start_decoding(encoded, rows, max_time)
    }

    /// The encoder's states of the last token of each row, `[rows, d_model]`, without dropout.
    pub(crate) fn last_states<R: AsRef<[TokenId]>>(&self, rows: &[R]) -> Result<Tensor> {
        let context = Context { training: false, ..self.context };
        let states = self.network.encode(context, &self.batch(rows)?, None)?.states;
        let (_, time, _) = states.size3()?;
        let last: Vec<i64> =
            rows.iter().zip(0..).map(|(row, i)| i * time + row.as_ref().len() as i64 - 1).collect();
        let last = Tensor::f_from_slice(&last)?.f_to_device(self.device())?;
        Ok(states.f_flatten(0, 1)?.f_index_select(0, &last)?)
    }

    /// Buckets of key-minus-query distances in the encoder's (`bidirectional`) or decoder's self-attention.
    ///
    /// # Errors
    /// When the model has no decoder, or libtorch refuses.
    pub fn position_buckets(&self, distance: &Tensor, bidirectional: bool) -> Result<Tensor> {
        self.network.stack(bidirectional)?.position_bias.buckets(distance)
    }

    /// Position bias `[1, heads, time, time]` of the encoder (`bidirectional`) or the decoder, without any mask.
    ///
    /// # Errors
    /// When the model has no decoder, or libtorch refuses.
    pub fn position_bias(&self, time: i64, bidirectional: bool) -> Result<Tensor> {
        if time < 1 {
            let reason = format!("{time} positions; there must be 1 at least");
            return Err(Error::invalid("position bias", reason));
        }
        self.network.stack(bidirectional)?.position_bias.full(time)
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
        let inputs = labels.f_full_like(self.config().decoder_start_token_id)?;
        inputs.f_narrow(1, 1, time - 1)?.f_copy_(&labels.f_narrow(1, 0, time - 1)?)?;
        let ignored = inputs.f_eq(IGNORED)?;
        debug_assert_eq!(inputs.size(), [batch, time]);
        Ok(inputs.f_masked_fill(&ignored, self.config().pad_token_id)?)
    }
}

fn check_shared_rows(rows: i64, states: &Tensor) -> Result<()> {
    let batch = states.size()[0];
    if rows > 0 && rows % batch == 0 {
        return Ok(());
    }
    Err(Error::invalid("decoder input", format!("{rows} rows cannot share {batch} encoded sources evenly")))
}
