//! The loss as a pure function of log-probabilities.

use tch::{Kind, Tensor};

use crate::{Error, Result, SumCount};

/// What [`rwr_loss`] returns.
#[derive(Debug)]
pub struct RwrLoss {
    /// Sum of weight times mean negative log-likelihood over the examples, and their number.
    pub loss: SumCount,
    /// Mean negative log-likelihood of each example in nats, `[batch]`, with gradients.
    pub nll: Tensor,
}

/// Weighted cross-entropy in which every example counts alike, however long it is: the sum over examples of `w_i * l_i`, where
/// `l_i` is the mean of `-log p` over the trained tokens of example i. `log_probs` and `mask` are `[batch, time]`, `weights`
/// `[batch]`. An example without a trained token adds nothing to the sum but counts.
///
/// # Errors
/// When the shapes do not fit.
///
/// # Example
/// ```
/// use ruminate_algorithms::rwr::rwr_loss;
/// use tch::Tensor;
///
/// let log_probs = Tensor::from_slice(&[-1f32, -3.0, -5.0, 0.0]).view([2, 2]);
/// let mask = Tensor::from_slice(&[1f32, 1.0, 1.0, 0.0]).view([2, 2]);
/// let loss = rwr_loss(&log_probs, &mask, &Tensor::from_slice(&[10f32, 1.0]))?.loss;
/// assert_eq!((loss.sum.double_value(&[]), loss.count), (10.0 * 2.0 + 5.0, 2));
/// # Ok::<(), ruminate_algorithms::Error>(())
/// ```
pub fn rwr_loss(log_probs: &Tensor, mask: &Tensor, weights: &Tensor) -> Result<RwrLoss> {
    let (shape, count) = (log_probs.size(), weights.size());
    if shape.len() != 2 || mask.size() != shape || count != shape[..1] {
        let reason = format!(
            "log_probs {shape:?}, mask {:?} and weights {count:?} do not fit; they should be [batch, time] twice and [batch]",
            mask.size()
        );
        return Err(Error::config("rwr_loss", reason));
    }
    let mask = mask.f_to_kind(log_probs.kind())?;
    let sums = log_probs.f_mul(&mask)?.f_sum_dim_intlist(1i64, false, None::<Kind>)?;
    let tokens = mask.f_sum_dim_intlist(1i64, false, None::<Kind>)?.f_clamp_min(1.0)?;
    let nll = sums.f_div(&tokens)?.f_neg()?;
    let sum = nll.f_mul(weights)?.f_sum(None::<Kind>)?;
    Ok(RwrLoss { loss: SumCount { sum, count: shape[0] as u64 }, nll })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn shapes_must_fit() {
        let t = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        for (a, b, c) in [(&[2, 3][..], &[2, 2][..], &[2][..]), (&[2, 3], &[2, 3], &[3]), (&[2], &[2], &[2])]
        {
            let error = rwr_loss(&t(a), &t(b), &t(c)).unwrap_err().to_string();
            assert!(error.contains("do not fit"), "{error}");
        }
    }

    #[test]
    fn an_example_without_trained_tokens_is_zero_and_not_a_number_nowhere() {
        let log_probs = Tensor::ones([1, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let mask = Tensor::zeros([1, 3], (Kind::Float, Device::Cpu));
        let loss = rwr_loss(&log_probs, &mask, &Tensor::from_slice(&[3f32])).unwrap().loss;
        loss.sum.backward();
        assert_eq!(loss.sum.double_value(&[]), 0.0);
        assert_eq!(log_probs.grad().abs().sum(Kind::Float).double_value(&[]), 0.0);
    }
}
