//! The layers of Llama: norms, attention with shared heads, gated feed-forward, and the stack of blocks.

mod step;

use ruminate_torch::{Before, Gate, linear, linear_after, matmul, rms_norm};
use tch::{Device, Kind, Tensor};

use super::config::LlamaConfig;
use super::rope::Rotation;
use crate::Result;
use crate::checkpoint::Builder;
use crate::parameters::Init;

pub(super) use step::{At, LayerCache, Place};

/// Added to the attention scores of keys that must not be seen. Finite, so that no row can become NaN.
pub(super) const HIDDEN: f64 = -1e30;

/// Attention scores up to this number are written out on a CPU, where that is faster; more of them go to libtorch's fused
/// kernel, which never holds them in memory.
const SCORES: i64 = 16 << 20;

/// Root-mean-square norm without mean and bias.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    eps: f64,
}

impl Norm {
    pub(super) fn new(builder: &mut Builder, name: &str, config: &LlamaConfig) -> Result<Self> {
        let weight = builder.parameter(&format!("{name}.weight"), &[config.hidden_size], Init::Ones)?;
        Ok(Self { weight, eps: config.rms_norm_eps })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, &self.weight, self.eps)?)
    }

    /// The same as part of the product that follows.
    pub(super) fn before(&self) -> Before<'_> {
        Before::Norm { weight: &self.weight, eps: self.eps }
    }

    fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), eps: self.eps }
    }
}

/// Keys and values `[batch, key_value_heads, time, head_dim]` each.
#[derive(Debug)]
pub(super) struct KeyValues {
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

/// What is the same for all blocks of one pass.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) rotation: Rotation,
    /// Score offsets `[1 or rows, 1, time, keys]`, the keys of the prefix first; `None`, where only the future is hidden and
    /// the fused kernel does that by itself.
    pub(super) mask: Option<Tensor>,
    /// Dropout rate on probabilities.
    pub(super) dropout: f64,
    /// The rows, where all tokens come as one; otherwise there are none.
    pub(super) rectangles: Vec<Rectangle>,
}

/// Rows of a pass whose tokens come one behind the other, `[1, tokens, hidden]`.
#[derive(Debug)]
pub(super) struct Rectangle {
    pub(super) rows: i64,
    pub(super) time: i64,
    /// As in [`Pass`].
    pub(super) mask: Option<Tensor>,
}

impl Pass {
    /// Attention within each rectangle: queries `[1, tokens, heads, head_dim]`, keys and values of one row, and the result
    /// `[1, tokens, heads * head_dim]`.
    fn attend_apart(&self, queries: &Tensor, own: &KeyValues) -> Result<Tensor> {
        let sizes: Vec<i64> = self.rectangles.iter().map(|r| r.rows * r.time).collect();
        let parts = |t: &Tensor, dim| t.f_split_with_sizes(sizes.as_slice(), dim);
        let (queries, keys, values) = (parts(queries, 1)?, parts(&own.keys, 2)?, parts(&own.values, 2)?);
        let mut contexts = vec![];
        for (((r, queries), keys), values) in self.rectangles.iter().zip(queries).zip(keys).zip(values) {
            let (_, _, heads, width) = queries.size4()?;
            let queries = queries.f_view_([r.rows, r.time, heads, width])?;
            let rows = |t: &Tensor| -> Result<Tensor> {
                let t = t.f_transpose(1, 2)?.f_view_([r.rows, r.time, -1, width])?;
                Ok(t.f_transpose(1, 2)?)
            };
            let own = KeyValues { keys: rows(&keys)?, values: rows(&values)? };
            let context = attention(&queries, &[&own], r.mask.as_ref(), self.dropout)?;
            contexts.push(context.f_view_([1, r.rows * r.time, -1])?);
        }
        Ok(Tensor::f_cat(&contexts, 1)?)
    }

    fn share(&self) -> Self {
        let share = |mask: &Option<Tensor>| mask.as_ref().map(Tensor::shallow_clone);
        let rectangle = |r: &Rectangle| Rectangle { mask: share(&r.mask), ..*r };
        Self {
            rotation: self.rotation.share(),
            mask: share(&self.mask),
            dropout: self.dropout,
            rectangles: self.rectangles.iter().map(rectangle).collect(),
        }
    }
}

/// Attention of queries `[rows, time, heads, head_dim]`, scaled by `1 / sqrt(head_dim)`, to the keys of all parts, one part
/// behind the other. A part may have fewer rows: consecutive rows then share one without copies. The result is
/// `[rows, time, heads * head_dim]`.
pub(super) fn attention(
    queries: &Tensor,
    parts: &[&KeyValues],
    mask: Option<&Tensor>,
    dropout: f64,
) -> Result<Tensor> {
    let (rows, time, heads, width) = queries.size4()?;
    let scale = (width as f64).powf(-0.5);
    let all: i64 = parts.iter().map(|part| part.keys.size()[2]).sum();
    if let [part] = parts
        && part.keys.size()[0] == rows
        && dropout == 0.0
        && time > 1
        && fused(queries.device(), rows * heads * time * all)
    {
        let mask = mask.map(|mask| mask.f_to_kind(queries.kind())).transpose()?;
        let shared = part.keys.size()[1] != heads;
        let context = Tensor::f_scaled_dot_product_attention(
            &queries.f_transpose(1, 2)?,
            &part.keys,
            &part.values,
            mask.as_ref(),
            0.0,
            mask.is_none(),
            scale,
            shared,
        )?;
        return Ok(context.f_transpose(1, 2)?.f_reshape([rows, time, -1])?);
    }
    // Query heads that share a key head, and rows that share a part, are folded into the time.
    if let [part] = parts
        && part.keys.size()[0] == rows
    {
        let shared = part.keys.size()[1];
        let group = heads / shared;
        let folded = queries.f_view_([rows, time, shared, group, width])?.f_transpose(1, 2)?;
        let folded = folded.f_reshape([rows, shared, time * group, width])?;
        let mask = match mask {
            Some(mask) if group > 1 && time > 1 => {
                let (of, _, _, keys) = mask.size4()?;
                let spread = mask.f_unsqueeze(3)?.f_expand([of, 1, time, group, keys], false)?;
                Some(spread.f_reshape([of, 1, time * group, keys])?)
            }
            mask => mask.map(Tensor::shallow_clone),
        };
        let context =
            ruminate_torch::attention(&folded, &part.keys, &part.values, mask.as_ref(), scale, dropout)?;
        let context = context.f_reshape([rows, shared, time, group, width])?.f_transpose(1, 2)?;
        return Ok(context.f_reshape([rows, time, heads * width])?);
    }
    // Behind a shared prompt, long rows are better off with copies of its keys and values, whose scores then need none.
    if parts.len() > 1 && time >= width {
        let own = KeyValues {
            keys: for_each_row(parts.iter().map(|part| &part.keys), rows)?,
            values: for_each_row(parts.iter().map(|part| &part.values), rows)?,
        };
        return attention(queries, &[&own], mask, dropout);
    }
    let queries = queries.f_mul_scalar(scale)?;
    let scores = parts.iter().map(|part| -> Result<Tensor> {
        let (batch, shared, keys, _) = part.keys.size4()?;
        let (each, group) = (rows / batch, heads / shared);
        let folded = queries
            .f_view_([batch, each * time, shared, group, width])?
            .f_transpose(1, 2)?
            .f_reshape([batch, shared, each * time * group, width])?;
        let scores = matmul(&folded, &part.keys.f_transpose(2, 3)?)?;
        let scores = scores.f_view_([batch, shared, each, time, group, keys])?;
        Ok(scores.f_transpose(1, 2)?.f_reshape([rows, shared, time, group, keys])?)
    });
    let mut scores = joined(scores.collect::<Result<Vec<_>>>()?)?;
    if let Some(mask) = mask {
        scores = scores.f_add(&mask.f_unsqueeze(3)?)?;
    }
    // Softmax in float32 whatever the precision of the products.
    let kind = parts[0].values.kind();
    let mut probs = scores.f_softmax(-1, Kind::Float)?.f_to_kind(kind)?;
    if dropout > 0.0 {
        probs = ruminate_torch::dropout(&probs, dropout)?;
    }
    let mut from = 0;
    let mut context: Option<Tensor> = None;
    for part in parts {
        let (batch, shared, keys, _) = part.keys.size4()?;
        let (each, group) = (rows / batch, heads / shared);
        let folded = probs
            .f_narrow(4, from, keys)?
            .f_reshape([batch, each, shared, time * group, keys])?
            .f_transpose(1, 2)?
            .f_reshape([batch, shared, each * time * group, keys])?;
        let mixed = matmul(&folded, &part.values)?
            .f_view_([batch, shared, each * time, group, width])?
            .f_transpose(1, 2)?
            .f_reshape([rows, time, heads * width])?;
        context = Some(match context {
            Some(context) => context.f_add(&mixed)?,
            None => mixed,
        });
        from += keys;
    }
    context.ok_or_else(|| crate::Error::invalid("attention", "there is nothing to look at"))
}

/// Keys or values of all parts `[rows or fewer, heads, keys, width]` one behind the other, for each of the rows.
fn for_each_row<'a>(parts: impl Iterator<Item = &'a Tensor>, rows: i64) -> Result<Tensor> {
    let parts: Vec<&Tensor> = parts.collect();
    let batch = parts.iter().map(|part| part.size()[0]).min().unwrap_or(rows);
    let spread = parts.iter().map(|part| -> Result<Tensor> {
        let (own, heads, keys, width) = part.size4()?;
        let part = part.f_view_([batch, own / batch, heads, keys, width])?;
        Ok(part.f_expand([batch, rows / batch, heads, keys, width], false)?)
    });
    let all = Tensor::f_cat(&spread.collect::<Result<Vec<_>>>()?, 3)?;
    Ok(all.f_flatten(0, 1)?)
}

/// Whether libtorch's fused kernel takes so many scores of whole sequences.
pub(super) fn fused(device: Device, scores: i64) -> bool {
    device != Device::Cpu || scores > SCORES
}

fn joined(mut scores: Vec<Tensor>) -> Result<Tensor> {
    Ok(if scores.len() == 1 { scores.remove(0) } else { Tensor::f_cat(&scores, -1)? })
}

/// Score offsets `[1, 1, time, keys]` of the last `time` of `keys` positions: those ahead are hidden, and those behind the
/// window.
pub(super) fn causal_mask(
    time: i64,
    keys: i64,
    window: Option<i64>,
    options: (Kind, Device),
) -> Result<Tensor> {
    let full = Tensor::f_full([1, 1, time, keys], HIDDEN, options)?;
    let ahead = full.f_triu(keys - time + 1)?;
    Ok(match window {
        Some(window) if window < keys => ahead.f_add(&full.f_tril(keys - time - window)?)?,
        _ => ahead,
    })
}

/// One block.
#[derive(Debug)]
pub(super) struct Block {
    attention_norm: Norm,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    dense_norm: Norm,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    heads: i64,
    key_value_heads: i64,
}

impl Block {
    fn new(builder: &mut Builder, name: &str, config: &LlamaConfig) -> Result<Self> {
        let (d, ff, width) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (heads, key_value_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let attention_norm = Norm::new(builder, &format!("{name}.input_layernorm"), config)?;
        let mut matrix = |part: &str, rows: i64, columns: i64| {
            let init = Init::Normal(config.initializer_range);
            builder.parameter(&format!("{name}.{part}.weight"), &[rows, columns], init)
        };
        let q = matrix("self_attn.q_proj", heads * width, d)?;
        let k = matrix("self_attn.k_proj", key_value_heads * width, d)?;
        let v = matrix("self_attn.v_proj", key_value_heads * width, d)?;
        let o = matrix("self_attn.o_proj", d, heads * width)?;
        let gate = matrix("mlp.gate_proj", ff, d)?;
        let up = matrix("mlp.up_proj", ff, d)?;
        let down = matrix("mlp.down_proj", d, ff)?;
        let dense_norm = Norm::new(builder, &format!("{name}.post_attention_layernorm"), config)?;
        Ok(Self { attention_norm, q, k, v, o, dense_norm, gate, up, down, heads, key_value_heads })
    }

    /// One block over whole sequences `[rows, time, hidden]`, behind a prefix where there is one; also gives their own keys
    /// and values.
    fn forward(&self, x: &Tensor, pass: &Pass, prefix: Option<&KeyValues>) -> Result<(Tensor, KeyValues)> {
        let (rows, time, _) = x.size3()?;
        let all = linear_after(self.attention_norm.before(), x, &[&self.q, &self.k, &self.v])?;
        let (heads, shared) = (self.heads, self.key_value_heads);
        let all = all.f_view_([rows, time, heads + 2 * shared, -1])?;
        let [queries, keys, values] = &all.f_split_with_sizes([heads, shared, shared], 2)?[..] else {
            return Err(crate::Error::invalid("attention", "its width is 0"));
        };
        let queries = pass.rotation.rotate(queries)?;
        let keys = pass.rotation.rotate(keys)?.f_transpose(1, 2)?;
        let own = KeyValues { keys, values: values.f_transpose(1, 2)? };
        let context = if pass.rectangles.is_empty() {
            let parts: Vec<&KeyValues> = prefix.into_iter().chain([&own]).collect();
            attention(&queries, &parts, pass.mask.as_ref(), pass.dropout)?
        } else {
            pass.attend_apart(&queries, &own)?
        };
        let x = x.f_add(&linear(&context, &self.o)?)?;
        let inner = linear_after(self.dense_norm.before(), &x, &[&self.gate, &self.up])?;
        let out = linear_after(Before::Gate(Gate::Silu), &inner, &[&self.down])?;
        Ok((x.f_add(&out)?, own))
    }

    /// As `forward`, keeping only what goes in for the backward pass, which runs the block again.
    fn forward_recomputed(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (block, pass) = (self.share(), pass.share());
        ruminate_torch::checkpoint(&[x], move |inputs| -> Result<Tensor> {
            Ok(block.forward(&inputs[0], &pass, None)?.0)
        })
    }

    /// A block on the same parameters, for a closure that outlives the call.
    fn share(&self) -> Self {
        let [q, k, v, o] = [&self.q, &self.k, &self.v, &self.o].map(Tensor::shallow_clone);
        let [gate, up, down] = [&self.gate, &self.up, &self.down].map(Tensor::shallow_clone);
        let (attention_norm, dense_norm) = (self.attention_norm.share(), self.dense_norm.share());
        let (heads, key_value_heads) = (self.heads, self.key_value_heads);
        Self { attention_norm, q, k, v, o, dense_norm, gate, up, down, heads, key_value_heads }
    }
}

/// All blocks and the final norm.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) blocks: Vec<Block>,
    pub(super) final_norm: Norm,
    /// Whether blocks run again in the backward pass instead of keeping their activations.
    pub(super) recompute: bool,
}

impl Stack {
    pub(super) fn new(builder: &mut Builder, config: &LlamaConfig) -> Result<Self> {
        Ok(Self {
            blocks: (0..config.num_hidden_layers)
                .map(|i| Block::new(builder, &format!("model.layers.{i}"), config))
                .collect::<Result<_>>()?,
            final_norm: Norm::new(builder, "model.norm", config)?,
            recompute: false,
        })
    }

    /// Embedded tokens `[rows, time, hidden]` to states after the final norm. `trace` receives the output of every block.
    pub(super) fn forward(
        &self,
        x: Tensor,
        pass: &Pass,
        mut trace: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let mut x = x;
        for block in &self.blocks {
            x = match self.recompute {
                true => block.forward_recomputed(&x, pass)?,
                false => block.forward(&x, pass, None)?.0,
            };
            if let Some(trace) = trace.as_deref_mut() {
                trace.push(x.shallow_clone());
            }
        }
        self.final_norm.forward(&x)
    }

    /// As [`forward`](Self::forward), and gives the keys and values of every block. There may be those of a prefix, of which
    /// consecutive rows share one.
    pub(super) fn forward_behind(
        &self,
        x: Tensor,
        pass: &Pass,
        prefix: Option<&[KeyValues]>,
    ) -> Result<(Tensor, Vec<KeyValues>)> {
        let (mut x, mut all) = (x, vec![]);
        for (i, block) in self.blocks.iter().enumerate() {
            let (out, own) = block.forward(&x, pass, prefix.map(|prefix| &prefix[i]))?;
            x = out;
            // The values are a part of what they came with, which nobody else needs any more.
            all.push(KeyValues { values: own.values.f_contiguous()?, ..own });
        }
        Ok((self.final_norm.forward(&x)?, all))
    }
}
