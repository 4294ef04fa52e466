//! The layers of T5: norms, attention, feed-forward, relative position bias, and the two stacks of blocks.

mod recompute;

use ruminate_torch::{
    Before, Gate, KeysValues, Packed, linear, linear_after, look_up, remember, remember_at, rms_norm,
};
use tch::{Device, Kind, Tensor};

use super::config::{FeedForward, T5Config};
use crate::checkpoint::Builder;
use crate::parameters::Init;
use crate::{Error, Result};

/// Added to the attention scores of keys that must not be seen. Finite, so that no row can become NaN.
const HIDDEN: f64 = -1e30;

/// Without gradients, attention scores up to this number are written out on a CPU, where that is faster; more of them go
/// to libtorch's fused kernel, which never holds them in memory.
const SCORES: i64 = 16 << 20;

/// Root-mean-square norm without mean and bias.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    eps: f64,
}

impl Norm {
    fn new(builder: &mut Builder, name: &str, config: &T5Config) -> Result<Self> {
        let weight = builder.parameter(&format!("{name}.weight"), &[config.d_model], Init::Ones)?;
        Ok(Self { weight, eps: config.layer_norm_epsilon })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, &self.weight, self.eps)?)
    }

    /// The same as part of the product that follows.
    fn before(&self) -> Before<'_> {
        Before::Norm { weight: &self.weight, eps: self.eps }
    }
}

/// Multi-head attention without the division by `sqrt(d_kv)`.
#[derive(Debug)]
pub(super) struct Attention {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    heads: i64,
}

impl Attention {
    fn new(builder: &mut Builder, name: &str, config: &T5Config) -> Result<Self> {
        let inner = config.num_heads * config.d_kv;
        let (d, kv, f) = (config.d_model as f64, config.d_kv as f64, config.initializer_factor);
        let mut matrix = |part: &str, shape: [i64; 2], std: f64| {
            builder.parameter(&format!("{name}.{part}.weight"), &shape, Init::Normal(f * std))
        };
        Ok(Self {
            q: matrix("q", [inner, config.d_model], (d * kv).powf(-0.5))?,
            k: matrix("k", [inner, config.d_model], d.powf(-0.5))?,
            v: matrix("v", [inner, config.d_model], d.powf(-0.5))?,
            o: matrix("o", [config.d_model, inner], (inner as f64).powf(-0.5))?,
            heads: config.num_heads,
        })
    }

    /// `[batch, time, heads * d_kv]` to `[batch, heads, time, d_kv]`.
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, _) = x.size3()?;
        Ok(x.f_view_([batch, time, self.heads, -1])?.f_transpose(1, 2)?)
    }

    /// Keys and values of the attended states `[batch, time, d_model]`, `[batch, heads, time, d_kv]` each.
    fn keys_values(&self, states: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.split(&linear(states, &self.k)?)?, self.split(&linear(states, &self.v)?)?))
    }

    /// Attention of the normed `x` `[tokens, d_model]` to itself or to a `source` of the same form, within each of the rectangles in
    /// which they lie.
    fn attend(
        &self,
        norm: &Norm,
        x: &Tensor,
        source: Option<&Tensor>,
        rectangles: &[Rectangle],
        dropout: f64,
    ) -> Result<Tensor> {
        let all = match source {
            None => linear_after(norm.before(), x, &[&self.q, &self.k, &self.v])?.f_chunk(3, -1)?,
            Some(source) => {
                let mut all = linear_after(Before::Nothing, source, &[&self.k, &self.v])?.f_chunk(2, -1)?;
                all.insert(0, linear_after(norm.before(), x, &[&self.q])?);
                all
            }
        };
        let Ok([queries, keys, values]) = <[Tensor; 3]>::try_from(all) else {
            return Err(Error::invalid("attention", "its width is 0"));
        };
        let parts = |all: Tensor, tokens: fn(&Rectangle) -> i64| -> Result<Vec<Tensor>> {
            let sizes: Vec<i64> = rectangles.iter().map(tokens).collect();
            Ok(if sizes.len() == 1 { vec![all] } else { all.f_split_with_sizes(&sizes, 0)? })
        };
        let queries = parts(queries, |r| r.rows * r.time)?;
        let (keys, values) = (parts(keys, |r| r.batch * r.keys)?, parts(values, |r| r.batch * r.keys)?);
        let mut contexts = vec![];
        for (((r, queries), keys), values) in rectangles.iter().zip(queries).zip(keys).zip(values) {
            let queries = queries.f_view_([r.rows, r.time, -1])?;
            let keys = self.split(&keys.f_view_([r.batch, r.keys, -1])?)?;
            let values = self.split(&values.f_view_([r.batch, r.keys, -1])?)?;
            contexts.push(attention(&queries, &keys, &values, r.bias.as_ref(), dropout)?.f_flatten(0, 1)?);
        }
        let context = if contexts.len() == 1 { contexts.remove(0) } else { Tensor::f_cat(&contexts, 0)? };
        Ok(linear(&context, &self.o)?)
    }
}

/// Tokens that attention takes together: `rows` times `time` queries, and `batch` times `keys` that they look at. `rows` is a
/// multiple of `batch`: consecutive rows share the keys and values of one batch entry without copies.
#[derive(Debug)]
pub(super) struct Rectangle {
    pub(super) rows: i64,
    pub(super) time: i64,
    pub(super) batch: i64,
    pub(super) keys: i64,
    /// Position bias and mask, broadcastable to `[batch, heads, time, keys]`.
    pub(super) bias: Option<Tensor>,
}

impl Rectangle {
    /// Rows that look at themselves.
    pub(super) fn own(rows: i64, time: i64, bias: Tensor) -> Self {
        Self { rows, time, batch: rows, keys: time, bias: Some(bias) }
    }
}

/// Attention of queries `[rows, time, heads * d_kv]` to keys and values `[batch, heads, keys, d_kv]`; the result has the
/// shape of the queries.
fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    bias: Option<&Tensor>,
    dropout: f64,
) -> Result<Tensor> {
    let (rows, time, inner) = queries.size3()?;
    let (batch, heads, _, _) = keys.size4()?;
    let shared_by = rows / batch;
    let q = queries.f_view_([batch, shared_by * time, heads, -1])?.f_transpose(1, 2)?;
    let trains = bias.is_some_and(Tensor::requires_grad) || q.requires_grad() || dropout > 0.0;
    let scores = rows * time * heads * keys.size()[2];
    let context = if trains || (q.device() == Device::Cpu && scores <= SCORES) {
        ruminate_torch::attention(&q, keys, values, bias, 1.0, dropout)?
    } else {
        let bias = bias.map(|bias| bias.f_to_kind(q.kind())).transpose()?;
        Tensor::f_scaled_dot_product_attention(&q, keys, values, bias.as_ref(), 0.0, false, 1.0, false)?
    };
    Ok(context.f_transpose(1, 2)?.f_reshape([rows, time, inner])?)
}

/// The same in a step, which knows no gradients: queries `[rows, 1, heads, d_kv]`, result `[rows, 1, heads * d_kv]`.
fn attention_in_step(queries: &Tensor, keys: &Tensor, values: &Tensor, bias: &Tensor) -> Result<Tensor> {
    match look_up(queries, &[KeysValues { keys, values }], Some(bias), 1.0)? {
        Some(context) => Ok(context),
        None => attention(&queries.f_flatten(2, 3)?, keys, values, Some(bias), 0.0),
    }
}

/// The feed-forward layer, plain or gated.
#[derive(Debug)]
enum Dense {
    Relu { wi: Tensor, wo: Tensor },
    GatedGelu { wi_0: Tensor, wi_1: Tensor, wo: Tensor },
}

impl Dense {
    fn new(builder: &mut Builder, name: &str, config: &T5Config) -> Result<Self> {
        let (d, ff, f) = (config.d_model, config.d_ff, config.initializer_factor);
        let mut matrix = |part: &str, rows: i64, columns: i64| {
            let init = Init::Normal(f * (columns as f64).powf(-0.5));
            builder.parameter(&format!("{name}.{part}.weight"), &[rows, columns], init)
        };
        Ok(match config.feed_forward {
            FeedForward::Relu => Self::Relu { wi: matrix("wi", ff, d)?, wo: matrix("wo", d, ff)? },
            FeedForward::GatedGelu => Self::GatedGelu {
                wi_0: matrix("wi_0", ff, d)?,
                wi_1: matrix("wi_1", ff, d)?,
                wo: matrix("wo", d, ff)?,
            },
        })
    }

    /// What lies between the matrices, without dropout; of the gated layer, the two inputs lie side by side.
    fn between(&self) -> Before<'static> {
        match self {
            Self::Relu { .. } => Before::Relu,
            Self::GatedGelu { .. } => Before::Gate(Gate::GeluTanh),
        }
    }

    /// Of the normed `x`.
    fn forward(&self, norm: &Norm, x: &Tensor, dropout: f64) -> Result<Tensor> {
        Ok(match self {
            Self::Relu { wi, wo } => {
                // Dropout first or relu first is the same; in this order a single result is kept for the backward pass.
                let inner = drop_out(&linear_after(norm.before(), x, &[wi])?, dropout)?;
                linear_after(Before::Relu, &inner, &[wo])?
            }
            Self::GatedGelu { wi_0, wi_1, wo } => {
                let inner = linear_after(norm.before(), x, &[wi_0, wi_1])?;
                let inner = Before::Gate(Gate::GeluTanh).of(&inner)?;
                linear(&drop_out(&inner, dropout)?, wo)?
            }
        })
    }
}

fn drop_out(x: &Tensor, rate: f64) -> Result<Tensor> {
    Ok(if rate > 0.0 { ruminate_torch::dropout(x, rate)? } else { x.shallow_clone() })
}

/// The learnt bias of a stack's self-attention, which depends on the distance of key and query only.
#[derive(Debug)]
pub(super) struct PositionBias {
    /// `[buckets, heads]`.
    table: Tensor,
    bidirectional: bool,
    max_distance: i64,
}

impl PositionBias {
    /// Buckets of key-minus-query distances (any shape, `i64`).
    pub(super) fn buckets(&self, distance: &Tensor) -> Result<Tensor> {
        let mut buckets = self.table.size()[0];
        let mut offset = distance.f_zeros_like()?;
        let n = if self.bidirectional {
            buckets /= 2;
            offset = distance.f_gt(0)?.f_to_kind(Kind::Int64)?.f_mul_scalar(buckets)?;
            distance.f_abs()?
        } else {
            distance.f_neg()?.f_clamp_min(0)?
        };
        // Small distances have a bucket each, larger ones share buckets on a logarithmic scale. The arithmetic is
        // float32 in this order, because bucket limits fall on exact powers.
        let exact = buckets / 2;
        let scale = (self.max_distance as f64 / exact as f64).ln();
        let far = n
            .f_to_kind(Kind::Float)?
            .f_div_scalar(exact as f64)?
            .f_log()?
            .f_div_scalar(scale)?
            .f_mul_scalar((buckets - exact) as f64)?
            .f_to_kind(Kind::Int64)?
            .f_add_scalar(exact)?
            .f_clamp_max(buckets - 1)?;
        Ok(n.f_where_self(&n.f_lt(exact)?, &far)?.f_add(&offset)?)
    }

    /// Bias `[1, heads, queries, keys]` of positions that both start at 0.
    pub(super) fn full(&self, time: i64) -> Result<Tensor> {
        let positions = Tensor::f_arange(time, (Kind::Int64, self.table.device()))?;
        let distance = positions.f_unsqueeze(0)?.f_sub(&positions.f_unsqueeze(1)?)?;
        let bias = Tensor::f_embedding(&self.table, &self.buckets(&distance)?, -1, false, false)?;
        Ok(bias.f_permute([2, 0, 1])?.f_unsqueeze(0)?)
    }

    /// Bias `[1, heads, 1, time]` of the last query; the row of query `t` is its last `t + 1` columns.
    fn last_row(&self, time: i64) -> Result<Tensor> {
        let distance = Tensor::f_arange_start(1 - time, 1, (Kind::Int64, self.table.device()))?;
        let bias = Tensor::f_embedding(&self.table, &self.buckets(&distance)?, -1, false, false)?;
        Ok(bias.f_transpose(0, 1)?.f_contiguous()?.f_view_([1, -1, 1, time])?)
    }
}

#[derive(Debug)]
struct Block {
    self_norm: Norm,
    self_attention: Attention,
    /// Only in the decoder.
    cross: Option<(Norm, Attention)>,
    dense_norm: Norm,
    dense: Dense,
}

/// How the tokens of a forward pass lie, one rectangle behind the other.
#[derive(Debug)]
pub(super) struct Layout {
    /// Of the self-attention.
    pub(super) own: Vec<Rectangle>,
    /// Of the attention to the encoder's states; in the encoder there is none.
    pub(super) cross: Vec<Rectangle>,
}

/// Where a step's token stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// Here; it looks at this position and those before.
    At(i64),
    /// Where the device knows, `[1]`; it looks at so many positions, of which those to come are hidden.
    Fixed { position: &'a Tensor, length: i64 },
}

/// What a step adds to attention scores.
struct Masks<'a> {
    /// Position bias `[1, heads, 1, time]`.
    own: &'a Tensor,
    /// Mask of the encoder states `[batch, 1, 1, source]`.
    source: &'a Tensor,
}

impl Block {
    fn new(builder: &mut Builder, name: &str, decoder: bool, config: &T5Config) -> Result<Self> {
        let self_attention = Attention::new(builder, &format!("{name}.layer.0.SelfAttention"), config)?;
        let self_norm = Norm::new(builder, &format!("{name}.layer.0.layer_norm"), config)?;
        let cross = if decoder {
            let attention = Attention::new(builder, &format!("{name}.layer.1.EncDecAttention"), config)?;
            Some((Norm::new(builder, &format!("{name}.layer.1.layer_norm"), config)?, attention))
        } else {
            None
        };
        let last = if decoder { 2 } else { 1 };
        let dense = Dense::new(builder, &format!("{name}.layer.{last}.DenseReluDense"), config)?;
        let dense_norm = Norm::new(builder, &format!("{name}.layer.{last}.layer_norm"), config)?;
        Ok(Self { self_norm, self_attention, cross, dense_norm, dense })
    }

    /// One block over whole sequences, `[tokens, d_model]`. `source` are the encoder states that a decoder block attends to.
    fn forward(&self, x: &Tensor, source: Option<&Tensor>, layout: &Layout, dropout: f64) -> Result<Tensor> {
        let out = self.self_attention.attend(&self.self_norm, x, None, &layout.own, dropout)?;
        let mut x = x.f_add(&drop_out(&out, dropout)?)?;
        if let (Some((norm, attention)), Some(source)) = (&self.cross, source) {
            let out = attention.attend(norm, &x, Some(source), &layout.cross, dropout)?;
            x = x.f_add(&drop_out(&out, dropout)?)?;
        }
        let out = self.dense.forward(&self.dense_norm, &x, dropout)?;
        Ok(x.f_add(&drop_out(&out, dropout)?)?)
    }

    /// One block for one new position, whose key and value are stored in the cache.
    fn step(
        &self,
        x: &Tensor,
        cache: &mut LayerCache,
        place: Place<'_>,
        masks: &Masks<'_>,
    ) -> Result<Tensor> {
        let (rows, heads) = (x.size()[0], self.self_attention.heads);
        let LayerCache { weights, keys, values, source_keys, source_values } = cache;
        let states = weights.qkv.linear_after(self.self_norm.before(), x, None)?;
        let states = states.f_view_([rows, 3 * heads, -1])?;
        let store = KeysValues { keys, values };
        let (queries, seen) = match place {
            Place::At(step) => (remember(states, None, store, step)?, step + 1),
            Place::Fixed { position, length } => (remember_at(&states, None, store, position)?, length),
        };
        let (keys, values) = (keys.f_narrow(2, 0, seen)?, values.f_narrow(2, 0, seen)?);
        let context = attention_in_step(&queries, &keys, &values, masks.own)?;
        let mut x = weights.o.linear_after(Before::Nothing, &context, Some(x))?;
        if let Some((norm, _)) = &self.cross {
            let queries = weights.cross_q.linear_after(norm.before(), &x, None)?;
            let queries = queries.f_view_([rows, 1, heads, -1])?;
            let context = attention_in_step(&queries, source_keys, source_values, masks.source)?;
            x = weights.cross_o.linear_after(Before::Nothing, &context, Some(&x))?;
        }
        let inner = weights.dense_in.linear_after(self.dense_norm.before(), &x, None)?;
        Ok(weights.dense_out.linear_after(self.dense.between(), &inner, Some(&x))?)
    }
}

/// The weights of a decoder block as steps use them, with what reads the same input joined.
#[derive(Debug)]
struct StepWeights {
    qkv: Packed,
    o: Packed,
    cross_q: Packed,
    cross_o: Packed,
    dense_in: Packed,
    dense_out: Packed,
}

impl StepWeights {
    fn new(own: &Attention, cross: &Attention, dense: &Dense) -> Result<Self> {
        let (dense_in, dense_out) = match dense {
            Dense::Relu { wi, wo } => (Packed::new(&[wi])?, wo),
            Dense::GatedGelu { wi_0, wi_1, wo } => (Packed::new(&[wi_0, wi_1])?, wo),
        };
        Ok(Self {
            qkv: Packed::new(&[&own.q, &own.k, &own.v])?,
            o: Packed::new(&[&own.o])?,
            cross_q: Packed::new(&[&cross.q])?,
            cross_o: Packed::new(&[&cross.o])?,
            dense_in,
            dense_out: Packed::new(&[dense_out])?,
        })
    }
}

/// The encoder or the decoder.
#[derive(Debug)]
pub(super) struct Stack {
    blocks: Vec<Block>,
    final_norm: Norm,
    pub(super) position_bias: PositionBias,
    /// Whether blocks run again in the backward pass instead of keeping their activations.
    pub(super) recompute: bool,
}

impl Stack {
    pub(super) fn new(builder: &mut Builder, name: &str, decoder: bool, config: &T5Config) -> Result<Self> {
        let blocks = if decoder { config.num_decoder_layers } else { config.num_layers };
        let bias = format!("{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let std = config.initializer_factor * (config.d_model as f64).powf(-0.5);
        let shape = [config.relative_attention_num_buckets, config.num_heads];
        Ok(Self {
            position_bias: PositionBias {
                table: builder.parameter(&bias, &shape, Init::Normal(std))?,
                bidirectional: !decoder,
                max_distance: config.relative_attention_max_distance,
            },
            blocks: (0..blocks)
                .map(|i| Block::new(builder, &format!("{name}.block.{i}"), decoder, config))
                .collect::<Result<_>>()?,
            final_norm: Norm::new(builder, &format!("{name}.final_layer_norm"), config)?,
            recompute: false,
        })
    }

    /// All blocks and the final norm over embedded tokens `[tokens, d_model]`. `trace` receives the output of every block.
    pub(super) fn forward(
        &self,
        x: Tensor,
        source: Option<&Tensor>,
        layout: &Layout,
        dropout: f64,
        mut trace: Option<&mut Vec<Tensor>>,
    ) -> Result<Tensor> {
        let mut x = drop_out(&x, dropout)?;
        for block in &self.blocks {
            // A view for each block: gradients of the source are then summed by block, with recomputation or without,
            // and agree to the last bit.
            let view = source.map(Tensor::f_alias).transpose()?;
            let source = view.as_ref();
            x = if self.recompute {
                block.forward_recomputed(&x, source, layout, dropout)?
            } else {
                block.forward(&x, source, layout, dropout)?
            };
            if let Some(trace) = trace.as_deref_mut() {
                trace.push(x.shallow_clone());
            }
        }
        drop_out(&self.final_norm.forward(&x)?, dropout)
    }

    /// An empty cache for `rows` sequences of at most `max_time` tokens over the encoder states `[batch, source,
    /// d_model]`, whose keys and values are projected here, once.
    pub(super) fn cache(&self, source: &Tensor, rows: i64, max_time: i64) -> Result<DecoderCache> {
        let options = (source.kind(), source.device());
        let layers = self
            .blocks
            .iter()
            .filter_map(|block| block.cross.as_ref().map(|(_, cross)| (block, cross)))
            .map(|(block, cross)| {
                let own = &block.self_attention;
                let shape = [rows, own.heads, max_time, own.q.size()[0] / own.heads];
                let (source_keys, source_values) = cross.keys_values(source)?;
                Ok(LayerCache {
                    weights: StepWeights::new(own, cross, &block.dense)?,
                    keys: Tensor::f_zeros(shape, options)?,
                    values: Tensor::f_zeros(shape, options)?,
                    source_keys: source_keys.f_contiguous()?,
                    source_values: source_values.f_contiguous()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(DecoderCache { layers, bias: self.position_bias.last_row(max_time)?, rows, max_time, step: 0 })
    }

    /// All blocks and the final norm for one new position of every row, `[rows, 1, d_model]`.
    pub(super) fn step(
        &self,
        x: Tensor,
        cache: &mut DecoderCache,
        place: Place<'_>,
        source_mask: &Tensor,
    ) -> Result<Tensor> {
        let own = cache.bias(place)?;
        let masks = Masks { own: &own, source: source_mask };
        let mut x = x;
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.step(&x, layer, place, &masks)?;
        }
        self.final_norm.forward(&x)
    }
}

/// Keys and values of the decoder, allocated once for the longest sequence.
#[derive(Debug)]
pub(super) struct DecoderCache {
    layers: Vec<LayerCache>,
    /// Of the last position `[1, heads, 1, max_time]`.
    bias: Tensor,
    rows: i64,
    pub(super) max_time: i64,
    /// The next position.
    pub(super) step: i64,
}

impl DecoderCache {
    /// Refuses what is not the next token of every row.
    pub(super) fn check(&self, tokens: &Tensor) -> Result<()> {
        let Self { rows, max_time, step, .. } = self;
        if tokens.size() != [*rows, 1] {
            let reason = format!("has shape {:?}, but one token for every row is [{rows}, 1]", tokens.size());
            return Err(Error::invalid("decoder input", reason));
        }
        if step >= max_time {
            return Err(Error::invalid(
                "decoder input",
                format!("the cache has room for {max_time} tokens only"),
            ));
        }
        Ok(())
    }

    /// Position bias `[1, heads, 1, seen]` of a token.
    fn bias(&self, place: Place<'_>) -> Result<Tensor> {
        let last = self.max_time - 1;
        match place {
            Place::At(step) => Ok(self.bias.f_narrow(3, last - step, step + 1)?),
            Place::Fixed { position, length } => {
                let keys = Tensor::f_arange(length, (Kind::Int64, position.device()))?;
                let columns = keys.f_sub(position)?.f_add_scalar(last)?.f_clamp_max(last)?;
                let bias = self.bias.f_index_select(3, &columns)?;
                Ok(bias.f_masked_fill(&keys.f_gt_tensor(position)?, HIDDEN)?)
            }
        }
    }

    pub(super) fn select_rows(&mut self, rows: &Tensor) -> Result<()> {
        self.rows = rows.size()[0];
        for layer in &mut self.layers {
            layer.keys = layer.keys.f_index_select(0, rows)?;
            layer.values = layer.values.f_index_select(0, rows)?;
        }
        Ok(())
    }

    pub(super) fn select_sources(&mut self, sources: &Tensor) -> Result<()> {
        for layer in &mut self.layers {
            layer.source_keys = layer.source_keys.f_index_select(0, sources)?;
            layer.source_values = layer.source_values.f_index_select(0, sources)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct LayerCache {
    weights: StepWeights,
    keys: Tensor,
    values: Tensor,
    source_keys: Tensor,
    source_values: Tensor,
}

/// Score offsets that hide padding: `[batch, time]` mask to `[batch, 1, 1, time]`.
pub(super) fn padding_mask(mask: &Tensor, kind: Kind) -> Result<Tensor> {
    let hidden = mask.f_eq(0)?.f_to_kind(Kind::Float)?.f_mul_scalar(HIDDEN)?;
    Ok(hidden.f_to_kind(kind)?.f_unsqueeze(1)?.f_unsqueeze(1)?)
}

/// Score offsets that hide the future: `[1, 1, time, time]`.
pub(super) fn causal_mask(time: i64, options: (Kind, Device)) -> Result<Tensor> {
    Ok(Tensor::f_full([1, 1, time, time], HIDDEN, options)?.f_triu(1)?)
}
