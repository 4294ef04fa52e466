//! Llama (arXiv 2302.13971) and the families of its form: Mistral (arXiv 2310.06825), Qwen2 (arXiv 2407.10671) and Qwen3 (arXiv
//! 2505.09388). They differ in their configuration, in biases and norms of the attention, and in its window.

mod config;
mod sizes;

use ruminate_torch::Gate;
use tch::{Kind, Tensor};

use crate::batch::{check_id_tensor, check_ids};
use crate::checkpoint::Weights;
use crate::generation::{Prefill, Started};
use crate::layers::packing::{PackedRows, groups, padding_budget};
use crate::layers::{
    Attention, AttentionBias, AttentionBlock, AttentionShape, Block, Decoding, Dropout, Embeddings,
    KeyValues, KvCache, LeftPadding, Linear, Mlp, Pass, Positions, RmsNorm, Rope, RopeConfig, Stack, Start,
    causal_bias, padding_bias,
};
use crate::network::{Context, Network, NetworkConfig, TargetRows};
use crate::parameters::Builder;
use crate::{Batch, Error, IGNORED, LanguageModel, ModelShape, Result, Side, TokenId};

pub use config::{LlamaConfig, LlamaFamily};

/// A Llama, Mistral, Qwen2 or Qwen3.
///
/// # Example
/// ```no_run
/// use ruminate_models::{Generate, GenerationConfig, Llama};
/// use tch::{Device, Kind};
/// let llama = Llama::load("Llama-3.1-8B".as_ref(), Kind::BFloat16, Device::cuda_if_available())?;
/// let written = llama.generate(&[vec![128_000, 791, 6864]], &GenerationConfig::default(), &[])?;
/// # Ok::<(), ruminate_models::Error>(())
/// ```
pub type Llama = LanguageModel<LlamaNetwork>;

/// The network of a [`Llama`].
#[derive(Debug)]
pub struct LlamaNetwork {
    config: LlamaConfig,
    embeddings: Embeddings,
    stack: Stack,
}

fn norm(builder: &mut Builder, name: &str, config: &LlamaConfig) -> Result<RmsNorm> {
    RmsNorm::new(builder, name, config.hidden_size, config.rms_norm_eps)
}

/// One block, by its Hugging Face names.
fn block(builder: &mut Builder, index: i64, config: &LlamaConfig) -> Result<Block> {
    let (name, std) = (format!("model.layers.{index}"), config.initializer_range);
    let LlamaConfig { hidden_size, intermediate_size, .. } = *config;
    let self_attention_norm = norm(builder, &format!("{name}.input_layernorm"), config)?;
    let self_attention = attention(builder, &format!("{name}.self_attn"), config)?;
    let mut linear = |part: &str, shape| Linear::new(builder, &format!("{name}.mlp.{part}_proj"), shape, std);
    let mlp = Mlp::Gated {
        activation: Gate::Silu,
        gate: linear("gate", [intermediate_size, hidden_size])?,
        up: linear("up", [intermediate_size, hidden_size])?,
        down: linear("down", [hidden_size, intermediate_size])?,
    };
    let mlp_norm = norm(builder, &format!("{name}.post_attention_layernorm"), config)?;
    let sliding = config.sliding_window.is_some() && index >= config.max_window_layers;
    Ok(Block { self_attention_norm, self_attention, sliding, cross_attention: None, mlp_norm, mlp })
}

fn attention(builder: &mut Builder, name: &str, config: &LlamaConfig) -> Result<Attention> {
    let (std, width) = (config.initializer_range, config.hidden_size);
    let (heads, kv_heads, head_dim) =
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let make = if config.family.has_qkv_bias() { Linear::with_bias } else { Linear::new };
    let mut linear = |part: &str, heads: i64| {
        make(builder, &format!("{name}.{part}_proj"), [heads * head_dim, width], std)
    };
    let (q, k, v) = (linear("q", heads)?, linear("k", kv_heads)?, linear("v", kv_heads)?);
    let o = Linear::new(builder, &format!("{name}.o_proj"), [width, heads * head_dim], std)?;
    let mut head_norm =
        |part: &str| RmsNorm::new(builder, &format!("{name}.{part}"), head_dim, config.rms_norm_eps);
    let qk_norm = match config.family.has_qk_norm() {
        true => Some([head_norm("q_norm")?, head_norm("k_norm")?]),
        false => None,
    };
    let scale = (head_dim as f64).powf(-0.5);
    Ok(Attention { shape: AttentionShape { heads, kv_heads, head_dim, scale }, q, k, v, o, qk_norm })
}

#[allow(private_interfaces, reason = "as the trait's")]
impl Network for LlamaNetwork {
    type Config = LlamaConfig;

    fn config(&self) -> &LlamaConfig {
        &self.config
    }

    fn set_config(&mut self, config: LlamaConfig) {
        self.config = config;
    }

    fn build(config: LlamaConfig, builder: &mut Builder) -> Result<Self> {
        let (shape, std) = ([config.vocab_size, config.hidden_size], config.initializer_range);
        let name = "model.embed_tokens.weight";
        let mut embeddings = Embeddings::new(builder, name, shape, std, config.pad_token_id)?;
        let blocks = (0..config.num_hidden_layers).map(|i| block(builder, i, &config));
        let blocks = blocks.collect::<Result<_>>()?;
        let final_norm = norm(builder, "model.norm", &config)?;
        if !config.tie_word_embeddings {
            embeddings.untie(builder, "lm_head.weight", std)?;
        }
        let stack = Stack { blocks, final_norm, gradient_checkpointing: false };
        Ok(Self { config, embeddings, stack })
    }

    fn adapt(config: &mut LlamaConfig, weights: &mut Weights) -> Result<()> {
        // Old files hold the rotary frequencies, which follow from the configuration.
        weights.tensors.retain(|name, _| !name.ends_with(".self_attn.rotary_emb.inv_freq"));
        let tied = config.tie_word_embeddings;
        config.tie_word_embeddings =
            weights.resolve_tie("model.embed_tokens.weight", "lm_head.weight", tied)?;
        if tied && !config.tie_word_embeddings {
            weights.say_untied("lm_head.weight");
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
        self.stack.gradient_checkpointing = on;
    }

    /// Prompt and target are read in one row. Several targets of a prompt share one pass over it, unless activations are
    /// checkpointed.
    fn target_states(&self, context: Context, rows: &TargetRows<'_>) -> Result<Tensor> {
        check_prompts(rows.prompts)?;
        let apart = rows.per_prompt == 1 || self.stack.gradient_checkpointing;
        match apart || self.config.rope().depends_on_length() {
            true => self.states_of_rows(context, rows),
            false => self.states_behind_prompts(context, rows),
        }
    }

    fn prefill(&self, context: Context, prefill: Prefill<'_>) -> Result<Started<Decoding<'_>>> {
        let Prefill { prompts, prefix, samples_per_prompt, max_new } = prefill;
        let context = Context { training: false, ..context };
        check_prompts(prompts)?;
        let rows: Vec<Vec<TokenId>> = prompts.iter().map(|prompt| [prompt, prefix].concat()).collect();
        let batch = self.batch(context, &rows, Side::Left)?;
        let (count, prompt_len) = batch.ids.size2()?;
        let (samples, max_new) = (samples_per_prompt as i64, max_new as i64);
        let repeat_interleave = |t: &Tensor| match samples {
            1 => Ok(t.shallow_clone()),
            _ => t.f_repeat_interleave_self_int(samples, 0, count * samples),
        };
        let pass = self.pass(context, &batch)?;
        let embedded = self.embeddings.embed(&batch.ids)?.f_flatten(0, 1)?;
        let (states, kv) = self.stack.forward_with_prefix(&embedded, None, &pass)?;
        let last = states.f_view_([count, prompt_len, -1])?.f_select(1, prompt_len - 1)?;
        let output = if max_new > 1 { Some(self.embeddings.packed_output()?) } else { None };
        // The last new token is never read.
        let caches = kv.iter().map(|kv| Ok((KvCache::with_prompts(kv, samples, max_new - 1)?, None)));
        let caches = caches.collect::<Result<_>>()?;
        let (mut left_padding, mut padding) = (None, None);
        if has_padding(&batch) {
            let lengths = batch.mask.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?;
            let new = batch.mask.f_new_ones([count, max_new], (Kind::Int64, context.device))?;
            let mask = Tensor::f_cat(&[&batch.mask, &new], 1)?;
            padding = Some(repeat_interleave(&lengths.f_neg()?.f_add_scalar(prompt_len)?.f_unsqueeze(1)?)?);
            left_padding = Some(LeftPadding {
                bias: repeat_interleave(&padding_bias(&mask, context.kind)?)?,
                lengths: repeat_interleave(&lengths)?,
            });
        }
        let positions = Tensor::f_arange(prompt_len + max_new, (Kind::Int64, context.device))?;
        let positions = positions.f_unsqueeze(0)?;
        let tables = self.rope(context, &positions, &positions.f_add_scalar(1)?)?;
        let steps = Decoding::new(Start {
            embeddings: &self.embeddings,
            stack: &self.stack,
            caches,
            output,
            positions: Positions::Rope { tables, window: self.config.sliding_window },
            padding: left_padding,
            encoder_bias: None,
            rows: count * samples,
            prompt_len,
            capacity: prompt_len + max_new - 1,
        });
        let logits = repeat_interleave(&steps.logits(&last)?)?;
        Ok(Started { steps, logits, prompt: repeat_interleave(&batch.ids)?, padding })
    }
}

/// Prompts that have been read.
struct Prefix {
    /// Keys and values of every block.
    layers: Vec<KeyValues>,
    /// Tokens of each prompt `[prompts]`.
    lengths: Tensor,
    /// Masks padding `[prompts, 1, 1, time]`.
    bias: Tensor,
}

impl LlamaNetwork {
    /// Each prompt in one row with its target. Rows of different lengths are hardly padded, and on the right, where no real token
    /// sees it.
    fn states_of_rows(&self, context: Context, rows: &TargetRows<'_>) -> Result<Tensor> {
        let TargetRows { prompts, targets, per_prompt, ref labels } = *rows;
        check_ids(self.config.vocab_size, prompts)?;
        let pad = self.config.pad_token_id();
        // The last token of a target predicts nothing that is asked for.
        let read = |target: &[TokenId]| target.len().saturating_sub(1);
        let sizes: Vec<[i64; 2]> = targets
            .iter()
            .enumerate()
            .map(|(row, target)| [(prompts[row / per_prompt].len() + read(target)) as i64, 0])
            .collect();
        let mut rows = PackedRows::new(targets.len());
        let (mut positions, mut lengths) = (vec![], vec![]);
        let mut pass = Pass { dropout: self.dropout(context), ..Pass::default() };
        for group in groups(&sizes, padding_budget(self.block_parameters(), context.device)) {
            let width = group.iter().map(|&row| sizes[row][0]).max().unwrap_or(0);
            for &row in &group {
                let (prompt, target) = (prompts[row / per_prompt], targets[row]);
                let inputs = target[..read(target)].iter();
                let inputs = inputs.map(|&id| if id == IGNORED { pad } else { id });
                rows.push(row, prompt.iter().copied().chain(inputs), width, pad);
                rows.skip(row, prompt.len() as i64 - 1);
                positions.extend(0..width);
                lengths.extend((0..width).map(|_| (prompt.len() + target.len()) as i64));
            }
            self.push_causal(context, &mut pass, group.len() as i64, width)?;
        }
        let tensor = |flat: &[i64]| Tensor::f_from_slice(flat)?.f_to_device(context.device);
        let [positions, lengths] = [positions, lengths].map(|flat| tensor(&flat)?.f_unsqueeze(0));
        pass.rope = Some(self.rope(context, &positions?, &lengths?)?);
        let embedded = self.embeddings.embed(&tensor(&rows.ids)?)?;
        rows.unpack(&self.stack.forward(&embedded, None, &pass, None)?, labels.ids.size()[1])
    }

    /// The states of targets that share prompts: each prompt is read once, its targets behind it.
    fn states_behind_prompts(&self, context: Context, rows: &TargetRows<'_>) -> Result<Tensor> {
        let TargetRows { prompts, per_prompt, ref labels, .. } = *rows;
        let (last, prefix) = self.read_prompts(context, prompts)?;
        let (rows, time) = labels.ids.size2()?;
        let per_prompt = per_prompt as i64;
        let repeat_interleave = |t: &Tensor| t.f_repeat_interleave_self_int(per_prompt, 0, rows);
        let first = repeat_interleave(&last)?.f_unsqueeze(1)?;
        if time == 1 {
            return Ok(first);
        }
        // The last token of a target predicts nothing that is asked for.
        let time = time - 1;
        let inputs = labels.ids.f_narrow(1, 0, time)?;
        let inputs = inputs.f_masked_fill(&inputs.f_eq(IGNORED)?, self.config.pad_token_id())?;
        let options = (context.kind, context.device);
        let prompt_len = prefix.bias.size()[3];
        let own = prefix.bias.f_new_zeros([rows, 1, 1, time], options)?;
        let padding = Tensor::f_cat(&[&repeat_interleave(&prefix.bias)?, &own], 3)?;
        let keys = prompt_len + time;
        let block = |window| -> Result<Vec<AttentionBlock>> {
            let bias = padding.f_add(&causal_bias(time, keys, window, options)?)?;
            Ok(vec![AttentionBlock::to_itself(rows, time, AttentionBias::Scores(bias.into()))])
        };
        let positions = Tensor::f_arange(time, (Kind::Int64, context.device))?;
        let positions = repeat_interleave(&prefix.lengths)?.f_unsqueeze(1)?.f_add(&positions)?;
        let pass = Pass {
            rope: Some(self.rope(context, &positions, &positions)?),
            dropout: self.dropout(context),
            ..self.attention_blocks(block)?
        };
        let embedded = self.embeddings.embed(&inputs)?.f_flatten(0, 1)?;
        let (rest, _) = self.stack.forward_with_prefix(&embedded, Some(&prefix.layers), &pass)?;
        Ok(Tensor::f_cat(&[first, rest.f_view_([rows, time, -1])?], 1)?)
    }

    /// The state behind each prompt `[prompts, hidden_size]`, and what its continuations attend to.
    fn read_prompts(&self, context: Context, prompts: &[&[TokenId]]) -> Result<(Tensor, Prefix)> {
        let batch = self.batch(context, prompts, Side::Left)?;
        let (count, time) = batch.ids.size2()?;
        let pass = self.pass(context, &batch)?;
        let embedded = self.embeddings.embed(&batch.ids)?.f_flatten(0, 1)?;
        let (states, layers) = self.stack.forward_with_prefix(&embedded, None, &pass)?;
        let lengths = batch.mask.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?;
        let last = states.f_view_([count, time, -1])?.f_select(1, time - 1)?;
        Ok((last, Prefix { layers, lengths, bias: padding_bias(&batch.mask, context.kind)? }))
    }

    fn batch<R: AsRef<[TokenId]>>(&self, context: Context, rows: &[R], side: Side) -> Result<Batch> {
        check_ids(self.config.vocab_size, rows)?;
        Batch::new(rows, self.config.pad_token_id(), side, context.device)
    }

    /// A pass over rows with padding anywhere.
    fn pass(&self, context: Context, batch: &Batch) -> Result<Pass> {
        let (rows, time) = batch.ids.size2()?;
        let dropout = self.dropout(context);
        if !has_padding(batch) {
            let mut pass = Pass { dropout, ..Pass::default() };
            self.push_causal(context, &mut pass, rows, time)?;
            let positions = Tensor::f_arange(time, (Kind::Int64, context.device))?.f_unsqueeze(0)?;
            let length = Tensor::f_full([1, 1], time, (Kind::Int64, context.device))?;
            pass.rope = Some(self.rope(context, &positions, &length)?);
            return Ok(pass);
        }
        let mask = &batch.mask;
        let positions = mask.f_cumsum(1, Kind::Int64)?.f_sub_scalar(1)?.f_clamp_min(0)?;
        let lengths = mask.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Int64)?;
        let padding = padding_bias(mask, context.kind)?;
        let block = |window| -> Result<Vec<AttentionBlock>> {
            let causal = causal_bias(time, time, window, (context.kind, context.device))?;
            let bias = AttentionBias::Scores(padding.f_add(&causal)?.into());
            Ok(vec![AttentionBlock::to_itself(rows, time, bias)])
        };
        let rope = Some(self.rope(context, &positions, &lengths)?);
        Ok(Pass { rope, dropout, ..self.attention_blocks(block)? })
    }

    /// A pass with the attention blocks that `block` makes, without a window and with one, where some layer needs them.
    fn attention_blocks(&self, block: impl Fn(Option<i64>) -> Result<Vec<AttentionBlock>>) -> Result<Pass> {
        let [full, sliding] = self.needs();
        Ok(Pass {
            self_attention: if full { block(None)? } else { vec![] },
            sliding_attention: if sliding { block(self.config.sliding_window)? } else { vec![] },
            ..Pass::default()
        })
    }

    /// Adds rows whose padding, if any, is on the right, where no real token sees it.
    fn push_causal(&self, context: Context, pass: &mut Pass, rows: i64, time: i64) -> Result<()> {
        let block = |window| -> Result<Vec<AttentionBlock>> {
            let (heads, rate) = (self.config.num_attention_heads, self.dropout(context).attention);
            let options = (context.kind, context.device);
            let bias = AttentionBias::causal(rows, time, heads, window, rate, options)?;
            Ok(vec![AttentionBlock::to_itself(rows, time, bias)])
        };
        let Pass { self_attention, sliding_attention, .. } = self.attention_blocks(block)?;
        pass.self_attention.extend(self_attention);
        pass.sliding_attention.extend(sliding_attention);
        Ok(())
    }

    /// Whether some layer sees all positions before a token, and whether some sees a window.
    fn needs(&self) -> [bool; 2] {
        let sliding = |block: &Block| block.sliding;
        [!self.stack.blocks.iter().all(sliding), self.stack.blocks.iter().any(sliding)]
    }

    /// Rotations of positions `[1 or rows, time]` in texts of `lengths` tokens.
    fn rope(&self, context: Context, positions: &Tensor, lengths: &Tensor) -> Result<Rope> {
        Rope::new(&self.config.rope(), positions, lengths, context.kind)
    }

    fn dropout(&self, context: Context) -> Dropout {
        Dropout { attention: if context.training { self.config.attention_dropout } else { 0.0 }, hidden: 0.0 }
    }

    /// Parameters of a block.
    fn block_parameters(&self) -> i64 {
        let LlamaConfig { hidden_size, vocab_size, num_hidden_layers, tie_word_embeddings, .. } = self.config;
        let matrices = if tie_word_embeddings { 1 } else { 2 };
        let all = self.config.parameter_count() as i64 - matrices * vocab_size * hidden_size;
        all / num_hidden_layers.max(1)
    }
}

impl Llama {
    /// A batch of rows of ids, padded on the given side.
    ///
    /// # Errors
    /// When a row is empty or holds an id outside the vocabulary.
    pub fn batch<R: AsRef<[TokenId]>>(&self, rows: &[R], side: Side) -> Result<Batch> {
        self.network.batch(self.context, rows, side)
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
    pub fn forward_traced(&self, batch: &Batch, mut trace: Option<&mut Vec<Tensor>>) -> Result<Tensor> {
        let (rows, time) = check_id_tensor("batch", &batch.ids, self.config().vocab_size)?;
        let pass = self.network.pass(self.context, batch)?;
        let embedded = self.network.embeddings.embed(&batch.ids)?.f_flatten(0, 1)?;
        let states = self.network.stack.forward(&embedded, None, &pass, trace.as_deref_mut())?;
        for traced in trace.into_iter().flatten() {
            *traced = traced.f_view_([rows, time, -1])?;
        }
        Ok(states.f_view_([rows, time, -1])?)
    }

    /// Rows of the embedding `[batch, time, hidden_size]`.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        check_id_tensor("ids", ids, self.config().vocab_size)?;
        self.network.embeddings.embed(ids)
    }
}

impl LlamaConfig {
    /// Settings of the rotary positions.
    pub(crate) fn rope(&self) -> RopeConfig {
        RopeConfig {
            theta: self.rope_theta,
            head_dim: self.head_dim,
            scaling: self.rope_scaling,
            max_position_embeddings: self.max_position_embeddings,
        }
    }
}

/// Whether some token of the batch is padding.
fn has_padding(batch: &Batch) -> bool {
    batch.tokens != batch.ids.numel() as u64
}

/// Refuses prompts without a token: there is no state from which the next one could be predicted.
fn check_prompts<R: AsRef<[TokenId]>>(prompts: &[R]) -> Result<()> {
    match prompts.iter().position(|prompt| prompt.as_ref().is_empty()) {
        Some(i) => {
            let reason = format!("row {i} of {} has no token; begin it with the start token", prompts.len());
            Err(Error::invalid("prompts", reason))
        }
        None => Ok(()),
    }
}
