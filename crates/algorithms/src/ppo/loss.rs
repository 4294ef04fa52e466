//! The losses of PPO (arXiv 1707.06347) as pure functions. Each returns the sum over the tokens where `mask`
//! (`[batch, time]`, 1.0 for real tokens) is set; all other tensors have the same shape.

use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Refuses tensors of different shapes, which libtorch might stretch to fit.
fn same_shape(what: &str, tensors: &[&Tensor]) -> Result<()> {
    let shapes: Vec<Vec<i64>> = tensors.iter().map(|tensor| tensor.size()).collect();
    if shapes.windows(2).all(|pair| pair[0] == pair[1]) {
        return Ok(());
    }
    Err(Error::config(what, format!("gets tensors of the shapes {shapes:?}, which must be the same")))
}

/// Sum of `max(-A * rho, -A * clamp(rho, 1 - clip, 1 + clip))`, `rho` being the ratio of new and old probabilities.
///
/// # Errors
/// When shapes do not fit.
pub fn policy_loss(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &Tensor,
    mask: &Tensor,
    clip_range: f64,
) -> Result<Tensor> {
    same_shape("policy_loss", &[log_probs, old_log_probs, advantages, mask])?;
    let ratio = log_probs.f_sub(old_log_probs)?.f_mul(mask)?.f_exp()?;
    let gain = advantages.f_neg()?;
    let free = gain.f_mul(&ratio)?;
    let clipped = gain.f_mul(&ratio.f_clamp(1.0 - clip_range, 1.0 + clip_range)?)?;
    Ok(free.f_maximum(&clipped)?.f_mul(mask)?.f_sum(None::<Kind>)?)
}

/// Sum of `1/2 * max((V - R)^2, (V_clipped - R)^2)`; a clipped value is at most `clip_range` from the old one.
///
/// # Errors
/// When shapes do not fit.
pub fn value_loss(
    values: &Tensor,
    old_values: &Tensor,
    returns: &Tensor,
    mask: &Tensor,
    clip_range: f64,
) -> Result<Tensor> {
    same_shape("value_loss", &[values, old_values, returns, mask])?;
    let (low, high) = (old_values.f_sub_scalar(clip_range)?, old_values.f_add_scalar(clip_range)?);
    let clipped = clamp(values, &low, &high)?.f_sub(returns)?.f_square()?;
    let free = values.f_sub(returns)?.f_square()?;
    Ok(free.f_maximum(&clipped)?.f_mul(mask)?.f_sum(None::<Kind>)?.f_mul_scalar(0.5)?)
}

/// Elementwise: at most `high`, then at least `low`.
///
/// # Errors
/// When shapes do not fit.
pub fn clamp(values: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor> {
    same_shape("clamp", &[values, low, high])?;
    Ok(values.f_minimum(high)?.f_maximum(low)?)
}

/// How far an update has moved the policy.
#[derive(Debug)]
pub struct Drift {
    /// Tokens whose ratio is outside the clip range, a scalar.
    pub clipped: Tensor,
    /// Sum of `rho - 1 - ln(rho)`, an estimate of the divergence from the old policy that is never negative, a scalar.
    pub kl: Tensor,
}

/// Measures the drift, without gradients.
///
/// # Errors
/// When shapes do not fit.
pub fn drift(log_probs: &Tensor, old_log_probs: &Tensor, mask: &Tensor, clip_range: f64) -> Result<Drift> {
    same_shape("drift", &[log_probs, old_log_probs, mask])?;
    let log_ratio = log_probs.f_detach()?.f_sub(old_log_probs)?.f_mul(mask)?;
    let ratio = log_ratio.f_exp()?;
    let outside = ratio.f_sub_scalar(1.0)?.f_abs()?.f_gt(clip_range)?;
    let kl = ratio.f_sub_scalar(1.0)?.f_sub(&log_ratio)?;
    Ok(Drift {
        clipped: outside.f_to_kind(Kind::Float)?.f_mul(mask)?.f_sum(None::<Kind>)?,
        kl: kl.f_mul(mask)?.f_sum(None::<Kind>)?,
    })
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    fn row(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).view([1, -1])
    }

    #[test]
    fn the_policy_gains_nothing_beyond_the_clip_range() {
        let old = row(&[0.0, 0.0, 0.0]);
        let mask = row(&[1.0, 1.0, 0.0]);
        let new = row(&[0.5, -0.1, 3.0]).set_requires_grad(true);
        let loss = policy_loss(&new, &old, &row(&[1.0, 1.0, 1.0]), &mask, 0.2).unwrap();
        assert_abs_diff_eq!(loss.double_value(&[]), -1.2 - (-0.1f64).exp(), epsilon = 1e-12);
        loss.backward();
        let gradient = Vec::<f64>::try_from(new.grad().view([-1])).unwrap();
        assert_eq!((gradient[0], gradient[2]), (0.0, 0.0));
        assert!(gradient[1] < 0.0);
        // A bad action that has become likelier is punished without limit.
        let loss = policy_loss(&row(&[0.5]), &row(&[0.0]), &row(&[-1.0]), &row(&[1.0]), 0.2).unwrap();
        assert_abs_diff_eq!(loss.double_value(&[]), 0.5f64.exp(), epsilon = 1e-12);
    }

    #[test]
    fn shapes_must_fit() {
        let (one, two) = (row(&[1.0]), row(&[1.0, 2.0]));
        for error in [
            policy_loss(&two, &one, &two, &two, 0.2).unwrap_err(),
            value_loss(&two, &two, &one, &two, 0.2).unwrap_err(),
            clamp(&two, &one, &two).unwrap_err(),
            drift(&two, &two, &one, 0.2).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(error.contains("[[1, ") && error.contains("must be the same"), "{error}");
        }
    }

    #[test]
    fn values_take_the_worse_of_both_errors() {
        let loss = |value, old, target| {
            value_loss(&row(&[value]), &row(&[old]), &row(&[target]), &row(&[1.0]), 0.2)
                .unwrap()
                .double_value(&[])
        };
        assert_abs_diff_eq!(loss(1.0, 0.0, 1.0), 0.5 * 0.64, epsilon = 1e-12);
        assert_abs_diff_eq!(loss(0.1, 0.0, 1.0), 0.5 * 0.81, epsilon = 1e-12);
        assert_abs_diff_eq!(loss(-1.0, 0.0, 1.0), 2.0, epsilon = 1e-12);
    }

    #[test]
    fn drift_counts_real_tokens_only() {
        let measured =
            drift(&row(&[0.0, 0.5, 9.0]), &row(&[0.0, 0.0, 0.0]), &row(&[1.0, 1.0, 0.0]), 0.2).unwrap();
        assert_eq!(measured.clipped.double_value(&[]), 1.0);
        assert_abs_diff_eq!(measured.kl.double_value(&[]), 0.5f64.exp() - 1.5, epsilon = 1e-12);
    }
}
