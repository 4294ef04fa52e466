//! What is taken out of a distribution before a token is chosen.

use tch::{Kind, Tensor};

use super::Sampling;
use crate::Result;

/// Applies temperature, top-k and top-p to logits `[rows, vocab]`; what may not be drawn becomes `-inf`.
///
/// # Errors
/// When libtorch refuses.
///
/// # Example
/// ```
/// use ruminate_models::{Sampling, filter_logits};
/// use tch::Tensor;
/// let logits = Tensor::from_slice(&[1.0, 3.0, 2.0]).view([1, 3]);
/// let kept = filter_logits(&logits, &Sampling { top_k: Some(2), ..Sampling::default() })?;
/// assert_eq!(kept.double_value(&[0, 0]), f64::NEG_INFINITY);
/// assert_eq!(kept.double_value(&[0, 2]), 2.0);
/// # Ok::<(), ruminate_models::Error>(())
/// ```
pub fn filter_logits(logits: &Tensor, sampling: &Sampling) -> Result<Tensor> {
    let mut logits = logits.shallow_clone();
    if sampling.temperature != 1.0 {
        logits = logits.f_div_scalar(sampling.temperature)?;
    }
    let vocab = logits.size()[1];
    if let Some(k) = sampling.top_k
        && (k as i64) < vocab
    {
        let (largest, _) = logits.f_topk(k as i64, -1, true, true)?;
        let threshold = largest.f_narrow(1, k as i64 - 1, 1)?;
        logits = logits.f_masked_fill(&logits.f_lt_tensor(&threshold)?, f64::NEG_INFINITY)?;
    }
    if let Some(p) = sampling.top_p
        && p < 1.0
    {
        let (sorted, order) = logits.f_sort(-1, false)?;
        let cumulative = sorted.f_softmax(-1, None::<Kind>)?.f_cumsum(-1, None::<Kind>)?;
        let drop = cumulative.f_le(1.0 - p)?;
        // The most probable token always survives, also when rounding says otherwise.
        let _ = drop.f_narrow(1, vocab - 1, 1)?.f_fill_(0.0)?;
        let drop = drop.f_scatter(1, &order, &drop)?;
        logits = logits.f_masked_fill(&drop, f64::NEG_INFINITY)?;
    }
    Ok(logits)
}

/// Takes some tokens out of logits `[rows, vocab]`; `ids` is a one-dimensional `i64` tensor on their device.
///
/// # Errors
/// When libtorch refuses.
pub fn forbid(logits: &Tensor, ids: &Tensor) -> Result<Tensor> {
    Ok(logits.f_index_fill(1, ids, f64::NEG_INFINITY)?)
}

/// Draws one token per row from filtered logits with a uniform number in `[0, 1)` each: `uniform` is `[rows, 1]`.
/// A row's draw depends on nothing but its own logits and number.
pub(super) fn draw(filtered: &Tensor, uniform: &Tensor) -> Result<Tensor> {
    let cumulative = filtered.f_softmax(-1, None::<Kind>)?.f_cumsum(-1, None::<Kind>)?;
    let total = cumulative.f_narrow(1, cumulative.size()[1] - 1, 1)?;
    // The first token whose cumulative probability exceeds the number; it has a probability above 0, because the sum
    // grew there. The total is not exactly 1 in floating point, so the number is scaled to it.
    let number = uniform.f_mul(&total)?;
    Ok(number.f_searchsorted(&cumulative, false, true, "right", None::<&Tensor>)?)
}
