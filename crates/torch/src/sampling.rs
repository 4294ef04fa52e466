//! Filters of distributions.

use tch::Tensor;

use crate::{Result, ffi};

/// Top-p (arXiv 1904.09751) on `f32` logits `[rows, vocab]` on the CPU: the least probable tokens whose probabilities add
/// up to at most `1 - p` become `-inf`; the most probable token stays. Of equal tokens the first ones go first.
///
/// The vocabulary is not sorted: a histogram finds the narrow range of probabilities in which the sum passes the limit.
///
/// # Errors
/// When the logits are of another kind, shape or device.
///
/// # Example
/// ```
/// use tch::Tensor;
/// let logits = Tensor::from_slice(&[0.6f32, 0.3, 0.1]).log().view([1, 3]);
/// let kept = ruminate_torch::top_p(&logits, 0.7)?;
/// assert_eq!(Vec::<bool>::try_from(kept.isfinite().view([-1]))?, [true, true, false]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn top_p(logits: &Tensor, p: f64) -> Result<Tensor> {
    // SAFETY: the tensor outlives the call.
    ffi::call_tensor("top-p", |out, error| unsafe { ffi::ruminate_top_p(logits.as_ptr(), p, out, error) })
}
