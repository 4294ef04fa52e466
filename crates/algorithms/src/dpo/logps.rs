//! Log-probabilities of completions, from those of their tokens.

use ruminate_models::IGNORED;
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Log-probabilities of the pairs of a batch, all `[pairs]`.
#[derive(Debug)]
pub struct PairLogps {
    /// Sum over the chosen completion's tokens.
    pub chosen: Tensor,
    /// Sum over the rejected completion's tokens.
    pub rejected: Tensor,
    /// Tokens of the chosen completion.
    pub chosen_len: Tensor,
    /// Tokens of the rejected completion.
    pub rejected_len: Tensor,
}

impl PairLogps {
    /// From given sums and counts, `[pairs]` each.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn new(chosen: Tensor, rejected: Tensor, chosen_len: Tensor, rejected_len: Tensor) -> Result<Self> {
        let shape = chosen.size();
        if shape.len() != 1 || [&rejected, &chosen_len, &rejected_len].iter().any(|t| t.size() != shape) {
            let sizes = [&chosen, &rejected, &chosen_len, &rejected_len].map(Tensor::size);
            return Err(Error::config("pairs", format!("are of shapes {sizes:?}, but must be [pairs] each")));
        }
        Ok(Self { chosen, rejected, chosen_len, rejected_len })
    }

    /// Sums of token log-probabilities `[pairs, time]` where the masks are set. Of the tokens by which the longer completion
    /// of a pair exceeds the shorter, `ld_alpha` counts; 1 counts all.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn from_tokens(
        [chosen, rejected]: [&Tensor; 2],
        [chosen_mask, rejected_mask]: [&Tensor; 2],
        ld_alpha: f64,
    ) -> Result<Self> {
        let length = |mask: &Tensor| mask.f_sum_dim_intlist(1i64, false, chosen.kind());
        let (chosen_len, rejected_len) = (length(chosen_mask)?, length(rejected_mask)?);
        let common = chosen_len.f_minimum(&rejected_len)?.f_unsqueeze(1)?;
        let sum = |log_probs: &Tensor, mask: &Tensor| -> Result<Tensor> {
            let mask = mask.f_to_kind(log_probs.kind())?;
            let mask = if ld_alpha == 1.0 {
                mask
            } else {
                // Of the n-th token, n beginning at 1.
                let head = mask.f_cumsum(1, mask.kind())?.f_le_tensor(&common)?.f_to_kind(mask.kind())?;
                mask.f_mul(&head.f_mul_scalar(1.0 - ld_alpha)?.f_add_scalar(ld_alpha)?)?
            };
            Ok(log_probs.f_mul(&mask)?.f_sum_dim_intlist(1i64, false, None::<Kind>)?)
        };
        Self::new(sum(chosen, chosen_mask)?, sum(rejected, rejected_mask)?, chosen_len, rejected_len)
    }

    /// Means over tokens of both completions; 0 for one without any token.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn means(&self) -> Result<[Tensor; 2]> {
        Ok([per_token(&self.chosen, &self.chosen_len)?, per_token(&self.rejected, &self.rejected_len)?])
    }
}

pub(super) fn per_token(sum: &Tensor, len: &Tensor) -> Result<Tensor> {
    Ok(sum.f_div(&len.f_clamp_min(1.0)?)?)
}

/// Log-probabilities `[batch, time]` of labels under logits `[batch, time, vocab]`, in the logits' precision but at least
/// `f32`; 0 where the label is [`IGNORED`]. The labels stay as they are.
///
/// For models whose logits are there anyway. [`Policy::score`](ruminate_models::Policy::score) gives the same without
/// them.
///
/// # Errors
/// When the shapes do not fit.
pub fn token_logps(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let (shape, logits_shape) = (labels.size(), logits.size());
    if logits_shape.len() != shape.len() + 1 || logits_shape[..shape.len()] != shape {
        let reason =
            format!("are {logits_shape:?} for labels {shape:?}, but must be [batch, time, vocab] of them");
        return Err(Error::config("logits", reason));
    }
    let logits = match logits.kind() {
        Kind::Double => logits.shallow_clone(),
        _ => logits.f_to_kind(Kind::Float)?,
    };
    let mask = labels.f_ne(IGNORED)?.f_to_kind(logits.kind())?;
    let ids = labels.f_clamp_min(0)?.f_unsqueeze(-1)?;
    let picked = logits.f_gather(-1, &ids, false)?.f_squeeze_dim(-1)?;
    Ok(picked.f_sub(&logits.f_logsumexp(-1i64, false)?)?.f_mul(&mask)?)
}

/// Logits and labels of a decoder-only model, whose logits at one position score the token of the next: without the last
/// logits and the first labels.
///
/// # Errors
/// When there are no two positions.
pub fn shift_for_decoder(logits: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
    let (shape, logits_shape) = (labels.size(), logits.size());
    let &[_, time] = &shape[..] else {
        return Err(Error::config("labels", format!("are {shape:?}, but must be [batch, time]")));
    };
    if time < 1 || logits_shape.len() != 3 || logits_shape[..2] != shape {
        let reason =
            format!("are {logits_shape:?} for labels {shape:?}, but must be [batch, time, vocab] of them");
        return Err(Error::config("logits", reason));
    }
    Ok((logits.f_narrow(1, 0, time - 1)?, labels.f_narrow(1, 1, time - 1)?))
}

/// How confidently the policy would have written each completion (WPO, arXiv 2406.11827): `exp` of the mean over tokens of
/// `log p_t - log sum_v p_v^2`, `[rows]` without gradients. `log_probs`, `collision` (`log sum_v p_v^2`) and `mask` are
/// `[rows, time]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn confidence(log_probs: &Tensor, collision: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mask = mask.f_to_kind(log_probs.kind())?;
    let sum = log_probs.f_detach()?.f_sub(collision)?.f_mul(&mask)?;
    let sum = sum.f_sum_dim_intlist(1i64, false, None::<Kind>)?;
    Ok(per_token(&sum, &mask.f_sum_dim_intlist(1i64, false, None::<Kind>)?)?.f_exp()?)
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;

    #[test]
    fn longer_completions_lose_their_tail() {
        let chosen = Tensor::from_slice(&[-1f64, -2.0, -4.0, 0.0]).view([1, 4]);
        let rejected = Tensor::from_slice(&[-8f64, 0.0]).view([1, 2]);
        let masks = [Tensor::from_slice(&[1f64, 1.0, 1.0, 0.0]), Tensor::from_slice(&[1f64, 0.0])]
            .map(|t| t.view([1, -1]));
        for (ld_alpha, sum) in [(1.0, -7.0), (0.5, -4.0), (0.0, -1.0)] {
            let logps =
                PairLogps::from_tokens([&chosen, &rejected], [&masks[0], &masks[1]], ld_alpha).unwrap();
            assert_eq!(logps.chosen.double_value(&[0]), sum);
            assert_eq!(logps.rejected.double_value(&[0]), -8.0);
            assert_eq!(logps.chosen_len.double_value(&[0]), 3.0);
        }
    }

    #[test]
    fn rows_without_labels_are_zero_and_labels_stay() {
        let logits = Tensor::randn([2, 3, 5], (Kind::Double, tch::Device::Cpu));
        let labels = Tensor::from_slice(&[1i64, IGNORED, 4, IGNORED, IGNORED, IGNORED]).view([2, 3]);
        let before = labels.copy();
        let got = token_logps(&logits, &labels).unwrap();
        assert_eq!(labels, before);
        let naive = logits.log_softmax(-1, Kind::Double);
        assert_abs_diff_eq!(got.double_value(&[0, 2]), naive.double_value(&[0, 2, 4]), epsilon = 1e-12);
        assert_eq!(got.get(1).abs().sum(Kind::Double).double_value(&[]), 0.0);
        assert_eq!(got.double_value(&[0, 1]), 0.0);
        let half = token_logps(&logits.to_kind(Kind::BFloat16), &labels).unwrap();
        assert_eq!(half.kind(), Kind::Float);
    }

    #[test]
    fn shapes_must_agree() {
        let t = |n: i64| Tensor::zeros([n], (Kind::Float, tch::Device::Cpu));
        assert!(PairLogps::new(t(2), t(3), t(2), t(2)).unwrap_err().to_string().contains("[3]"));
    }
}
