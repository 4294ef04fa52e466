//! Masks as numbers that are added to attention scores.

use tch::{Device, Kind, Tensor};

use crate::Result;

/// The score of a masked key. Finite, so that a row whose keys are all masked does not become NaN.
pub(crate) const MASKED_SCORE: f64 = -1e30;

/// Masks padding: `mask` `[batch, time]`, 1 for real tokens, to `[batch, 1, 1, time]`.
pub(crate) fn padding_bias(mask: &Tensor, kind: Kind) -> Result<Tensor> {
    let bias = mask.f_eq(0)?.f_to_kind(Kind::Float)?.f_mul_scalar(MASKED_SCORE)?;
    Ok(bias.f_to_kind(kind)?.f_unsqueeze(1)?.f_unsqueeze(1)?)
}

/// Masks the future: `[1, 1, time, keys]` of the last `time` of `keys` positions. With a `window`, a position sees itself and the
/// `window - 1` before it.
pub(crate) fn causal_bias(
    time: i64,
    keys: i64,
    window: Option<i64>,
    options: (Kind, Device),
) -> Result<Tensor> {
    let masked = Tensor::f_full([1, 1, time, keys], MASKED_SCORE, options)?;
    let future = masked.f_triu(keys - time + 1)?;
    Ok(match window {
        Some(window) if window < keys => future.f_add(&masked.f_tril(keys - time - window)?)?,
        _ => future,
    })
}
