//! Fused kernels (RMSNorm, RoPE, gating, attention), one pass over memory each.
//!
//! On the CPU, in float32 and bfloat16, these are our own loops with float32 arithmetic inside and first derivatives. Elsewhere, unless a
//! [CUDA kernel](crate::kernels) is on, they are the libtorch operations that they replace, against which they are tested.

use tch::{Device, Kind, Tensor};

use crate::{Result, ffi};

/// Root-mean-square norm over the last dimension: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// # Errors
/// When shapes do not fit.
///
/// # Example
/// ```
/// use tch::Tensor;
/// let normed = ruminate_torch::rms_norm(&Tensor::from_slice(&[3f32, 4.0]), &Tensor::from_slice(&[1f32, 2.0]), 0.0)?;
/// assert!((normed.double_value(&[1]) - 8.0 / 12.5f64.sqrt()).abs() < 1e-6);
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    // SAFETY: the tensors outlive the call.
    ffi::call_tensor("norm", |out, error| unsafe {
        ffi::ruminate_rms_norm(x.as_ptr(), weight.as_ptr(), eps, out, error)
    })
}

/// What a gated feed-forward layer does with its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x * sigmoid(x)`, as in Llama.
    Silu,
    /// Gelu in its tanh form, as in T5 1.1.
    GeluTanh,
}

/// `activation(gate) * up`, element by element.
///
/// # Errors
/// When shapes do not fit.
pub fn gate(activation: Gate, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let gelu = (activation == Gate::GeluTanh).into();
    // SAFETY: the tensors outlive the call.
    ffi::call_tensor("gate", |out, error| unsafe {
        ffi::ruminate_gate(gate.as_ptr(), up.as_ptr(), gelu, out, error)
    })
}

/// Rotary position embedding: rotates `x` `[rows, time, heads, width]` by angles whose cosines and sines are `[1 or rows, time, 1,
/// width]`, where element `i` forms a pair with element `i + width / 2`. Both halves of the tables are equal, except that the sines of
/// the first half are negated.
///
/// # Errors
/// When shapes do not fit.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    // SAFETY: the tensors outlive the call.
    ffi::call_tensor("rope", |out, error| unsafe {
        ffi::ruminate_rope(x.as_ptr(), cos.as_ptr(), sin.as_ptr(), out, error)
    })
}

/// `softmax(scale * queries keys^T + bias) values`, with dropout on the probabilities: queries `[batch, heads, time, width]`, keys
/// and values `[batch, heads, keys, width]`, the bias broadcast to `[batch, heads, time, keys]`, the result shaped as the queries.
///
/// Probabilities are not kept: the backward pass computes them again.
///
/// # Errors
/// When shapes do not fit, or the dropout rate is not in `[0, 1)`.
pub fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    bias: Option<&Tensor>,
    scale: f64,
    dropout: f64,
) -> Result<Tensor> {
    let bias = bias.map_or(std::ptr::null(), |bias| bias.as_ptr());
    // SAFETY: the tensors outlive the call.
    ffi::call_tensor("attention", |out, error| unsafe {
        let (q, k, v) = (queries.as_ptr(), keys.as_ptr(), values.as_ptr());
        ffi::ruminate_attention(q, k, v, bias, scale, dropout, out, error)
    })
}

/// Borrowed keys and values `[batch, heads, keys, width]`.
#[derive(Debug, Clone, Copy)]
pub struct KvRef<'a> {
    /// The keys.
    pub keys: &'a Tensor,
    /// The values.
    pub values: &'a Tensor,
}

/// [`attention`] of a few queries `[rows, time, heads, width]`, as in decoding, over the keys of all parts, one part behind the other;
/// the result is `[rows, time, heads * width]`. Consecutive rows may share a batch entry of a part, and consecutive heads one of its
/// heads. The bias is `[rows, heads, time, keys of all parts]`; each of the first three may be 1, the first any divisor.
///
/// Returns `None` where there is no such loop: on other devices than the CPU, unless its [kernel](crate::kernels) is on, in other kinds,
/// with more than eight queries, and where gradients are wanted.
///
/// # Errors
/// When shapes do not fit.
pub fn decode_attention(
    queries: &Tensor,
    parts: &[KvRef<'_>],
    bias: Option<&Tensor>,
    scale: f64,
) -> Result<Option<Tensor>> {
    let keys = ffi::pointers(parts.iter().map(|part| part.keys));
    let values = ffi::pointers(parts.iter().map(|part| part.values));
    let bias = bias.map_or(std::ptr::null(), |bias| bias.as_ptr());
    // SAFETY: the tensors outlive the call.
    ffi::call_if_any("attention", |out, error| unsafe {
        let (q, k, v) = (queries.as_ptr(), keys.as_ptr(), values.as_ptr());
        ffi::ruminate_decode_attention(q, k, v, parts.len(), bias, scale, out, error)
    })
}

/// Appends a position to a key/value cache. `states` `[rows, heads + 2 * kv_heads, width]` hold its queries, keys and values; the caches
/// are `[rows, kv_heads, time, width]`. Queries and keys are first [rotated](rope) by the cosines and sines `tables`, where there are some.
/// Returns the queries `[rows, 1, heads, width]`. The states are used up, and there are no gradients.
///
/// # Errors
/// When shapes do not fit.
pub fn append_kv(
    states: Tensor,
    tables: Option<(&Tensor, &Tensor)>,
    cache: KvRef<'_>,
    position: i64,
) -> Result<Tensor> {
    let (_, count, _) = states.size3()?;
    let shared = cache.keys.size4()?.1;
    let heads = count - 2 * shared;
    if [&states, cache.keys, cache.values].into_iter().all(has_rows) && states.is_contiguous() {
        let (cos, sin) =
            tables.map_or((std::ptr::null(), std::ptr::null()), |(cos, sin)| (cos.as_ptr(), sin.as_ptr()));
        // SAFETY: the tensors outlive the call, and nobody else reads the states.
        ffi::call("key/value cache", |error| unsafe {
            let (keys, values) = (cache.keys.as_ptr(), cache.values.as_ptr());
            ffi::ruminate_append_kv(states.as_ptr(), cos, sin, keys, values, position, error)
        })?;
        return Ok(states.f_narrow(1, 0, heads)?.f_unsqueeze(1)?);
    }
    let (heads, rotated, values) = rotated(&states, tables, cache)?;
    cache.keys.f_select(2, position)?.f_copy_(&rotated.f_narrow(2, heads, shared)?.f_squeeze_dim(1)?)?;
    cache.values.f_select(2, position)?.f_copy_(&values)?;
    Ok(rotated.f_narrow(2, 0, heads)?.f_contiguous()?)
}

/// Appends like [`append_kv`], at a position `[1]` that is known on the device only.
///
/// # Errors
/// When shapes do not fit; on a CPU also when the position lies behind the cache, which CUDA tells by an error of some later call.
pub fn append_kv_at(
    states: &Tensor,
    tables: Option<(&Tensor, &Tensor)>,
    cache: KvRef<'_>,
    position: &Tensor,
) -> Result<Tensor> {
    let (heads, rotated, values) = rotated(states, tables, cache)?;
    let shared = cache.keys.size4()?.1;
    let keys = rotated.f_narrow(2, heads, shared)?.f_transpose(1, 2)?;
    let _ = cache.keys.shallow_clone().f_index_copy_(2, position, &keys)?;
    let _ = cache.values.shallow_clone().f_index_copy_(2, position, &values.f_unsqueeze(2)?)?;
    Ok(rotated.f_narrow(2, 0, heads)?.f_contiguous()?)
}

/// The number of queries, queries and keys `[rows, 1, heads + shared, width]`, rotated, and values `[rows, shared, width]`.
fn rotated(
    states: &Tensor,
    tables: Option<(&Tensor, &Tensor)>,
    cache: KvRef<'_>,
) -> Result<(i64, Tensor, Tensor)> {
    let (_, count, _) = states.size3()?;
    let shared = cache.keys.size4()?.1;
    let heads = count - 2 * shared;
    let values = states.f_narrow(1, heads + shared, shared)?;
    let rotated = states.f_narrow(1, 0, heads + shared)?.f_unsqueeze(1)?;
    let rotated = match tables {
        Some((cos, sin)) => rope(&rotated, cos, sin)?,
        None => rotated,
    };
    Ok((heads, rotated, values))
}

/// Whether the loops of this module take such a tensor.
fn has_rows(x: &Tensor) -> bool {
    x.device() == Device::Cpu && matches!(x.kind(), Kind::Float | Kind::BFloat16)
}
