//! Scores of choices by the mean log-probability of their labels.

use super::ChoiceError;
use tch::Tensor;

/// The score of a slot that holds no choice: its probability is 0 among any real scores.
pub const UNUSED_SLOT_SCORE: f64 = -1e9;

/// The length-normalised score of each choice: the mean of its label's token log-probabilities, that is minus its
/// mean cross-entropy. Computed in the kind and on the device of `log_probs`.
///
/// * `log_probs` `[batch, capacity, label]`: the log-probability of each label token.
/// * `labels` `[batch, capacity, label]`, `i64`: the tokens, right-padded with `pad`; the eos at the end of a label
///   counts as one of its tokens. A slot that begins with `eos` is unused and scores [`UNUSED_SLOT_SCORE`].
///
/// Returns `[batch, capacity]`.
///
/// # Errors
/// [`ChoiceError::Shape`] and [`ChoiceError::Torch`].
///
/// # Example
/// ```
/// use ruminate_rewards::choices::{UNUSED_SLOT_SCORE, mean_nll_scores};
/// use tch::Tensor;
///
/// let labels = Tensor::from_slice(&[71i64, 1, 1, 0]).view([1, 2, 2]); // "A" and an unused slot
/// let log_probs = Tensor::from_slice(&[-2.0f32, -1.0, -7.0, -7.0]).view([1, 2, 2]);
/// let scores = mean_nll_scores(&log_probs, &labels, 1, 0)?;
/// assert_eq!(scores.double_value(&[0, 0]), -1.5);
/// assert_eq!(scores.double_value(&[0, 1]), UNUSED_SLOT_SCORE);
/// # Ok::<(), ruminate_rewards::ChoiceError>(())
/// ```
pub fn mean_nll_scores(
    log_probs: &Tensor,
    labels: &Tensor,
    eos: i64,
    pad: i64,
) -> Result<Tensor, ChoiceError> {
    let (have, want) = (log_probs.size(), labels.size());
    if have != want || have.len() != 3 || have[2] == 0 {
        return Err(ChoiceError::Shape { log_probs: have, labels: want });
    }
    let is_token = labels.f_ne(pad)?;
    // Selected rather than multiplied: what a model says about padding may be infinite.
    let tokens = log_probs.f_where_self(&is_token, &log_probs.f_zeros_like()?)?;
    let sum = tokens.f_sum_dim_intlist(-1, false, None)?;
    let count = is_token.f_sum_dim_intlist(-1, false, log_probs.f_kind()?)?;
    let unused = labels.f_select(-1, 0)?.f_eq(eos)?;
    Ok(sum.f_div(&count)?.f_masked_fill(&unused, UNUSED_SLOT_SCORE)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn padding_is_invisible_and_the_kind_is_kept() {
        let labels = Tensor::from_slice(&[4i64, 5, 1, 6, 1, 0, 1, 0, 0]).view([1, 3, 3]);
        let inf = f64::NEG_INFINITY;
        let log_probs =
            Tensor::from_slice(&[-1.0, -2.0, -6.0, -1.0, -2.0, inf, inf, inf, inf]).view([1, 3, 3]);
        let scores = mean_nll_scores(&log_probs, &labels, 1, 0).unwrap();
        assert_eq!(scores.kind(), Kind::Double);
        assert_eq!(Vec::<f64>::try_from(scores.view([-1])).unwrap(), [-3.0, -1.5, UNUSED_SLOT_SCORE]);
        let single = mean_nll_scores(&log_probs.to_kind(Kind::Float), &labels, 1, 0).unwrap();
        assert_eq!(single.kind(), Kind::Float);
    }

    #[test]
    fn shapes_are_checked() {
        let labels = Tensor::zeros([1, 2, 2], (Kind::Int64, tch::Device::Cpu));
        let log_probs = Tensor::zeros([1, 2, 3], (Kind::Double, tch::Device::Cpu));
        let error = mean_nll_scores(&log_probs, &labels, 1, 0).unwrap_err().to_string();
        assert!(error.starts_with("log-probs [1, 2, 3] and labels [1, 2, 2]"), "{error}");
    }
}
