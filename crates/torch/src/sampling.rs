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

/// Settings of a draw: logits are divided by the temperature, then top-k and then top-p leave some.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Above 0.
    pub temperature: f64,
    /// Tokens to keep, and what is tied with the last of them; 0 keeps all.
    pub top_k: usize,
    /// The mass to keep, in `(0, 1]`.
    pub top_p: f64,
}

/// Chosen tokens, one per row.
#[derive(Debug)]
pub struct Choice {
    /// Token ids `[rows, 1]`, `i64`.
    pub tokens: Tensor,
    /// Log-probabilities under the model `[rows, 1]`, `f32`.
    pub log_probs: Tensor,
    /// Log-probabilities under what was drawn from `[rows, 1]`, `f32`; of greedy choices, those under the model.
    pub sampling_log_probs: Tensor,
}

/// Chooses a token per row in one pass over few kilobytes at a time, where operations on tensors would make a dozen over all rows:
/// the most probable one, or, with a sampler and numbers in `[0, 1)`, the first up to which the probabilities that are left sum up to
/// more than the row's number. A row's choice depends on its own logits and number alone.
///
/// `logits` are the model's, `allowed` what is left of them (the same tensor where nothing was taken out): both `f32`
/// `[rows, vocab]` on the CPU. Numbers are `f32` `[rows, 1]`.
///
/// # Errors
/// When the tensors are of another kind, shape or device, or the sampler's settings are out of range.
///
/// # Example
/// ```
/// use tch::Tensor;
/// let logits = Tensor::from_slice(&[0.5f32, 0.3, 0.2]).log().view([1, 3]);
/// let greedy = ruminate_torch::choose(&logits, &logits, None)?;
/// assert_eq!(greedy.tokens.int64_value(&[0, 0]), 0);
/// assert!((greedy.log_probs.double_value(&[0, 0]) - 0.5f64.ln()).abs() < 1e-6);
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
pub fn choose(logits: &Tensor, allowed: &Tensor, sampler: Option<(Sampler, &Tensor)>) -> Result<Choice> {
    let greedy = Sampler { temperature: 1.0, top_k: 0, top_p: 1.0 };
    let (Sampler { temperature, top_k, top_p }, numbers) =
        sampler.map_or((greedy, std::ptr::null()), |(sampler, numbers)| (sampler, numbers.as_ptr()));
    let top_k = i64::try_from(top_k).unwrap_or(i64::MAX);
    let mut out = [std::ptr::null_mut(); 3];
    let [tokens, log_probs, sampling] = &mut out;
    // SAFETY: the tensors and places outlive the call.
    ffi::call("choice of tokens", |error| unsafe {
        let (logits, allowed) = (logits.as_ptr(), allowed.as_ptr());
        ffi::ruminate_choose(
            logits,
            allowed,
            numbers,
            temperature,
            top_k,
            top_p,
            tokens,
            log_probs,
            sampling,
            error,
        )
    })?;
    // SAFETY: on success each is a tensor of its own that we own.
    let [tokens, log_probs, sampling_log_probs] = out.map(|tensor| unsafe { Tensor::from_ptr(tensor) });
    Ok(Choice { tokens, log_probs, sampling_log_probs })
}
