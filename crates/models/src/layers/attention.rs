//! Multi-head attention (arXiv 1706.03762), with key/value heads shared by several query heads where there are fewer (arXiv 2305.13245).

use ruminate_torch::matmul;
use tch::{Device, Kind, Tensor};

use super::mask::causal_bias;
use super::{Input, Linear, PackedLinear, Pass, RmsNorm, Rope, TensorHandle};
use crate::{Error, Result};

/// On a CPU, libtorch's fused kernel takes over above this number of scores. Below it, written-out scores are faster; above it, they would
/// fill the memory.
const MAX_WRITTEN_SCORES: i64 = 16 << 20;

/// Keys and values `[batch, kv_heads, time, head_dim]` each.
#[derive(Debug)]
pub(crate) struct KeyValues {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

/// A mask or bias on attention scores.
#[derive(Debug, Clone)]
pub(crate) enum AttentionBias {
    /// Nothing: every query sees every key.
    None,
    /// Masks the future; the fused kernel does it without a tensor.
    Causal,
    /// Mask, position bias or both, broadcastable to `[batch, heads, time, keys]`.
    Scores(TensorHandle),
}

impl AttentionBias {
    /// Masks the future of `rows` rows of `time` tokens, and what lies before the window.
    pub(crate) fn causal(
        rows: i64,
        time: i64,
        heads: i64,
        window: Option<i64>,
        dropout: f64,
        options: (Kind, Device),
    ) -> Result<Self> {
        let windowed = window.is_some_and(|window| window < time);
        if !windowed && dropout == 0.0 && uses_fused_kernel(options.1, rows * heads * time * time) {
            return Ok(Self::Causal);
        }
        Ok(Self::Scores(causal_bias(time, time, window, options)?.into()))
    }

    /// The tensor, where there is one.
    pub(crate) fn scores(&self) -> Option<&Tensor> {
        match self {
            Self::Scores(scores) => Some(scores),
            Self::None | Self::Causal => None,
        }
    }
}

/// A group of rows of equal length that attend together (not a block of layers): `rows` times `time` queries to `batch` times `keys`
/// keys. `rows` is a multiple of `batch`: consecutive rows share one batch entry's keys and values without copies.
#[derive(Debug, Clone)]
pub(crate) struct AttentionBlock {
    pub(crate) rows: i64,
    pub(crate) time: i64,
    pub(crate) batch: i64,
    pub(crate) keys: i64,
    pub(crate) bias: AttentionBias,
}

impl AttentionBlock {
    /// Rows that attend to themselves.
    pub(crate) fn to_itself(rows: i64, time: i64, bias: AttentionBias) -> Self {
        Self { rows, time, batch: rows, keys: time, bias }
    }
}

/// Sizes of an attention layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    /// Query heads.
    pub(crate) heads: i64,
    /// Heads of keys and values, each shared by equally many consecutive query heads.
    pub(crate) kv_heads: i64,
    pub(crate) head_dim: i64,
    /// Factor on the scores.
    pub(crate) scale: f64,
}

/// `softmax(scale * q k^T + bias) v`, between four projections.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) shape: AttentionShape,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    /// Norms over each head of queries and keys, before the rotation.
    pub(crate) qk_norm: Option<[RmsNorm; 2]>,
}

impl Attention {
    /// Attention of tokens `[tokens, width]` to their own rows, behind the keys and values of a `prefix` where there is one. `kept`
    /// receives their own keys and values.
    pub(crate) fn to_itself(
        &self,
        x: Input<'_>,
        blocks: &[AttentionBlock],
        prefix: Option<&KeyValues>,
        kept: Option<&mut Vec<KeyValues>>,
        pass: &Pass,
    ) -> Result<Tensor> {
        let qkv = Linear::forward_all(&[&self.q, &self.k, &self.v], x)?;
        let [queries, keys, values] = self.split_heads(&qkv)?;
        let [queries, keys] = self.rotate([queries, keys], pass.rope.as_ref())?;
        let [queries, keys, values] = [&queries, &keys, &values];
        let context =
            attend_in_blocks([queries, keys, values], blocks, prefix, kept, self.shape.scale, pass)?;
        self.o.forward(&context)
    }

    /// Attention of tokens `[tokens, width]` to the encoder's states `[encoder tokens, width]`.
    pub(crate) fn to_encoder(&self, x: Input<'_>, encoder: &Tensor, pass: &Pass) -> Result<Tensor> {
        let AttentionShape { kv_heads, head_dim, scale, .. } = self.shape;
        let queries = self.q.forward(x)?.f_view_([-1, self.shape.heads, head_dim])?;
        let kv = Linear::forward_all(&[&self.k, &self.v], encoder)?.f_view_([-1, 2 * kv_heads, head_dim])?;
        let kv = kv.f_chunk(2, 1)?;
        let [keys, values] = &kv[..] else { return Err(no_width()) };
        let blocks = &pass.cross_attention;
        let context = attend_in_blocks([&queries, keys, values], blocks, None, None, scale, pass)?;
        self.o.forward(&context)
    }

    /// Keys and values of the encoder's states `[batch, time, width]`.
    pub(crate) fn encoder_keys_values(&self, encoder: &Tensor) -> Result<KeyValues> {
        let (batch, time, _) = encoder.size3()?;
        let shape = [batch, time, self.shape.kv_heads, self.shape.head_dim];
        let project = |layer: &Linear| -> Result<Tensor> {
            Ok(layer.forward(encoder)?.f_view_(shape)?.f_transpose(1, 2)?.f_contiguous()?)
        };
        Ok(KeyValues { keys: project(&self.k)?, values: project(&self.v)? })
    }

    /// `[tokens, heads + 2 kv_heads, head_dim]` (or those side by side) into queries, keys and values, `[tokens, heads, head_dim]`.
    fn split_heads(&self, qkv: &Tensor) -> Result<[Tensor; 3]> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let qkv = qkv.f_view_([-1, heads + 2 * kv_heads, head_dim])?;
        <[Tensor; 3]>::try_from(qkv.f_split_with_sizes([heads, kv_heads, kv_heads], 1)?)
            .map_err(|_| no_width())
    }

    /// Queries and keys with the norms of their heads and their rotary positions.
    fn rotate(&self, queries_keys: [Tensor; 2], rope: Option<&Rope>) -> Result<[Tensor; 2]> {
        let [mut queries, mut keys] = queries_keys;
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            (queries, keys) = (q_norm.forward(&queries)?, k_norm.forward(&keys)?);
        }
        Ok(match rope {
            Some(rope) => [rope.apply(&queries)?, rope.apply(&keys)?],
            None => [queries, keys],
        })
    }

    /// Queries, keys and values of one position for decoding, `[rows, heads + 2 kv_heads, head_dim]`, not rotated yet.
    pub(crate) fn qkv_of_position(&self, qkv: &PackedLinear, x: Input<'_>) -> Result<Tensor> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let states = qkv.forward(x)?.f_view_([-1, heads + 2 * kv_heads, head_dim])?;
        let Some([q_norm, k_norm]) = &self.qk_norm else { return Ok(states) };
        let [queries, keys, values] = self.split_heads(&states)?;
        Ok(Tensor::f_cat(&[q_norm.forward(&queries)?, k_norm.forward(&keys)?, values], 1)?)
    }
}

fn no_width() -> Error {
    Error::invalid("attention", "its width is 0")
}

/// Attention within each block: queries, keys and values `[tokens, heads, head_dim]`, the result `[tokens, heads * head_dim]`. `kept`
/// receives keys and values of each block.
fn attend_in_blocks(
    [queries, keys, values]: [&Tensor; 3],
    blocks: &[AttentionBlock],
    prefix: Option<&KeyValues>,
    mut kept: Option<&mut Vec<KeyValues>>,
    scale: f64,
    pass: &Pass,
) -> Result<Tensor> {
    let split = |all: &Tensor, tokens: fn(&AttentionBlock) -> i64| -> Result<Vec<Tensor>> {
        let sizes: Vec<i64> = blocks.iter().map(tokens).collect();
        Ok(if sizes.len() == 1 { vec![all.shallow_clone()] } else { all.f_split_with_sizes(&sizes, 0)? })
    };
    let queries = split(queries, |block| block.rows * block.time)?;
    let [keys, values] = [keys, values].map(|t| split(t, |block| block.batch * block.keys));
    let mut contexts = vec![];
    for (((block, queries), keys), values) in blocks.iter().zip(queries).zip(keys?).zip(values?) {
        let (_, heads, head_dim) = queries.size3()?;
        let queries = queries.f_view_([block.rows, block.time, heads, head_dim])?;
        let rows = |t: &Tensor| -> Result<Tensor> {
            Ok(t.f_view_([block.batch, block.keys, -1, head_dim])?.f_transpose(1, 2)?)
        };
        let own = KeyValues { keys: rows(&keys)?, values: rows(&values)? };
        let parts: Vec<&KeyValues> = prefix.into_iter().chain([&own]).collect();
        let context = attention(&queries, &parts, &block.bias, scale, pass.dropout.attention)?;
        contexts.push(context.f_flatten(0, 1)?);
        if let Some(kept) = kept.as_deref_mut() {
            // The values are a view into queries, keys and values together, whose memory can end with the block.
            kept.push(KeyValues { values: own.values.f_contiguous()?, ..own });
        }
    }
    Ok(if contexts.len() == 1 { contexts.remove(0) } else { Tensor::f_cat(&contexts, 0)? })
}

/// `softmax(scale * q k^T + bias) v` of queries `[rows, time, heads, head_dim]` over the keys of all parts, one part behind the other. A
/// part may have fewer rows: consecutive rows then share one batch entry without copies. The result is `[rows, time, heads *
/// head_dim]`.
pub(crate) fn attention(
    queries: &Tensor,
    parts: &[&KeyValues],
    bias: &AttentionBias,
    scale: f64,
    dropout: f64,
) -> Result<Tensor> {
    let (rows, time, _, head_dim) = queries.size4()?;
    match parts {
        [part] => attention_to_one(queries, part, bias, scale, dropout),
        // Behind a shared prefix, long rows are better off with copies of its keys and values: their scores then need no copies.
        _ if time >= head_dim => {
            let own = KeyValues {
                keys: repeat_interleave(parts.iter().map(|part| &part.keys), rows)?,
                values: repeat_interleave(parts.iter().map(|part| &part.values), rows)?,
            };
            attention_to_one(queries, &own, bias, scale, dropout)
        }
        _ => attention_to_parts(queries, parts, bias, scale, dropout),
    }
}

/// [`attention`] over one part.
fn attention_to_one(
    queries: &Tensor,
    KeyValues { keys, values }: &KeyValues,
    bias: &AttentionBias,
    scale: f64,
    dropout: f64,
) -> Result<Tensor> {
    let (rows, time, heads, head_dim) = queries.size4()?;
    let (batch, kv_heads, key_count, _) = keys.size4()?;
    // Rows that share a batch entry, and query heads that share a key head, are folded into the time.
    let (shared_time, group) = (rows / batch * time, heads / kv_heads);
    let learnt = bias.scores().is_some_and(Tensor::requires_grad);
    let count = rows * heads * time * key_count;
    if !learnt && dropout == 0.0 && shared_time > 1 && uses_fused_kernel(queries.device(), count) {
        let queries = queries.f_view_([batch, shared_time, heads, head_dim])?.f_transpose(1, 2)?;
        let mask = bias.scores().map(|scores| scores.f_to_kind(queries.kind())).transpose()?;
        let (mask, causal) = (mask.as_ref(), matches!(bias, AttentionBias::Causal));
        let gqa = group > 1;
        let context =
            Tensor::f_scaled_dot_product_attention(&queries, keys, values, mask, 0.0, causal, scale, gqa)?;
        return Ok(context.f_transpose(1, 2)?.f_reshape([rows, time, heads * head_dim])?);
    }
    let folded = queries.f_view_([batch, shared_time, kv_heads, group, head_dim])?.f_transpose(1, 2)?;
    let folded = folded.f_reshape([batch, kv_heads, shared_time * group, head_dim])?;
    let scores = match bias {
        AttentionBias::None => None,
        AttentionBias::Causal => Some(causal_bias(time, time, None, (queries.kind(), queries.device()))?),
        AttentionBias::Scores(scores) => Some(scores.shallow_clone()),
    };
    let scores = match scores {
        Some(scores) if group > 1 && scores.size()[2] > 1 => {
            let (of, _, queries, keys) = scores.size4()?;
            let expanded = scores.f_unsqueeze(3)?.f_expand([of, 1, queries, group, keys], false)?;
            Some(expanded.f_reshape([of, 1, queries * group, keys])?)
        }
        scores => scores,
    };
    let context = ruminate_torch::attention(&folded, keys, values, scores.as_ref(), scale, dropout)?;
    let context = context.f_view_([batch, kv_heads, shared_time, group, head_dim])?.f_transpose(1, 2)?;
    Ok(context.f_reshape([rows, time, heads * head_dim])?)
}

/// [`attention`] over several parts, of few queries each: scores of all parts side by side.
fn attention_to_parts(
    queries: &Tensor,
    parts: &[&KeyValues],
    bias: &AttentionBias,
    scale: f64,
    dropout: f64,
) -> Result<Tensor> {
    let (rows, time, heads, head_dim) = queries.size4()?;
    let queries = queries.f_mul_scalar(scale)?;
    let scores = parts.iter().map(|part| -> Result<Tensor> {
        let (batch, kv_heads, keys, _) = part.keys.size4()?;
        let (per_entry, group) = (rows / batch, heads / kv_heads);
        let folded = queries
            .f_view_([batch, per_entry * time, kv_heads, group, head_dim])?
            .f_transpose(1, 2)?
            .f_reshape([batch, kv_heads, per_entry * time * group, head_dim])?;
        let scores = matmul(&folded, &part.keys.f_transpose(2, 3)?)?;
        let scores = scores.f_view_([batch, kv_heads, per_entry, time, group, keys])?;
        Ok(scores.f_transpose(1, 2)?.f_reshape([rows, kv_heads, time, group, keys])?)
    });
    let mut scores = Tensor::f_cat(&scores.collect::<Result<Vec<_>>>()?, -1)?;
    if let Some(bias) = bias.scores() {
        scores = scores.f_add(&bias.f_unsqueeze(3)?)?;
    }
    // Softmax in float32, whatever the precision of the products.
    let kind = queries.kind();
    let mut probs = scores.f_softmax(-1, Kind::Float)?.f_to_kind(kind)?;
    probs = super::dropout(&probs, dropout)?;
    let mut from = 0;
    let contexts = parts.iter().map(|part| -> Result<Tensor> {
        let (batch, kv_heads, keys, _) = part.keys.size4()?;
        let (per_entry, group) = (rows / batch, heads / kv_heads);
        let folded = probs
            .f_narrow(4, from, keys)?
            .f_reshape([batch, per_entry, kv_heads, time * group, keys])?
            .f_transpose(1, 2)?
            .f_reshape([batch, kv_heads, per_entry * time * group, keys])?;
        from += keys;
        let context = matmul(&folded, &part.values)?
            .f_view_([batch, kv_heads, per_entry * time, group, head_dim])?
            .f_transpose(1, 2)?;
        Ok(context.f_reshape([rows, time, heads * head_dim])?)
    });
    let contexts = contexts.collect::<Result<Vec<_>>>()?;
    let sum = contexts.into_iter().map(Ok).reduce(|sum: Result<Tensor>, next| Ok(sum?.f_add(&next?)?));
    sum.unwrap_or_else(|| Err(Error::invalid("attention", "there is nothing to attend to")))
}

/// Keys or values of all parts `[rows or fewer, heads, keys, head_dim]` one behind the other, repeated for each of the rows.
fn repeat_interleave<'a>(parts: impl Iterator<Item = &'a Tensor>, rows: i64) -> Result<Tensor> {
    let parts: Vec<&Tensor> = parts.collect();
    let batch = parts.iter().map(|part| part.size()[0]).min().unwrap_or(rows);
    let repeated = parts.iter().map(|part| -> Result<Tensor> {
        let (own, heads, keys, head_dim) = part.size4()?;
        let part = part.f_view_([batch, own / batch, heads, keys, head_dim])?;
        Ok(part.f_expand([batch, rows / batch, heads, keys, head_dim], false)?)
    });
    let all = Tensor::f_cat(&repeated.collect::<Result<Vec<_>>>()?, 3)?;
    Ok(all.f_flatten(0, 1)?)
}

/// Whether libtorch's fused kernel is the better choice for so many scores.
fn uses_fused_kernel(device: Device, scores: i64) -> bool {
    device != Device::Cpu || scores > MAX_WRITTEN_SCORES
}
