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

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(logits: &[f32], sampling: Sampling) -> Vec<f32> {
        let logits = Tensor::from_slice(logits).view([1, -1]);
        filter_logits(&logits, &sampling).unwrap().view([-1]).try_into().unwrap()
    }

    const NO: f32 = f32::NEG_INFINITY;

    #[test]
    fn top_k_keeps_ties() {
        let top = |k| filtered(&[1.0, 3.0, 2.0, 3.0], Sampling { top_k: Some(k), ..Sampling::default() });
        assert_eq!(top(1), [NO, 3.0, NO, 3.0]);
        assert_eq!(top(3), [NO, 3.0, 2.0, 3.0]);
        assert_eq!(top(4), [1.0, 3.0, 2.0, 3.0]);
        assert_eq!(top(100), [1.0, 3.0, 2.0, 3.0]);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let kept = |p| {
            let left = filtered(&logits, Sampling { top_p: Some(p), ..Sampling::default() });
            left.iter().filter(|x| x.is_finite()).count()
        };
        assert_eq!(
            [kept(1e-9), kept(0.49), kept(0.51), kept(0.79), kept(0.81), kept(0.96), kept(1.0)],
            [1, 1, 2, 2, 3, 4, 4]
        );
    }

    #[test]
    fn filters_are_applied_in_order() {
        let logits: Vec<f32> = [0.4f32, 0.3, 0.2, 0.1].iter().map(|p| p.ln()).collect();
        // Of the two that top-k leaves, the first has 4/7 of the probability.
        let both = Sampling { temperature: 1.0, top_k: Some(2), top_p: Some(0.5) };
        assert_eq!(filtered(&logits, both)[1], NO);
        // A high temperature evens them out before top-p looks at them.
        let hot = Sampling { temperature: 100.0, top_k: None, top_p: Some(0.6) };
        assert!(filtered(&logits, hot)[2].is_finite());
        assert_eq!(filtered(&logits, Sampling { temperature: 1.0, ..hot })[2], NO);
    }

    #[test]
    fn a_row_is_filtered_by_itself() {
        let sampling = Sampling { temperature: 0.5, top_k: Some(2), top_p: Some(0.9) };
        let rows = [[0.0f32, 1.0, 2.0], [5.0, 0.0, 4.9]];
        let together = filter_logits(&Tensor::from_slice2(&rows), &sampling).unwrap();
        let together: Vec<Vec<f32>> = together.try_into().unwrap();
        for (row, together) in rows.iter().zip(&together) {
            assert_eq!(&filtered(row, sampling), together);
        }
    }

    #[test]
    fn evenly_spaced_numbers_draw_in_proportion() {
        let probabilities = [0.0f32, 0.25, 0.0, 0.5, 0.125, 0.125, 0.0];
        let n = 4096;
        let logits = Tensor::from_slice(&probabilities).log().view([1, -1]).expand([n, -1], false);
        let numbers: Vec<f32> = (0..n).map(|i| i as f32 / n as f32).collect();
        let drawn = draw(&logits, &Tensor::from_slice(&numbers).view([-1, 1])).unwrap();
        for (id, p) in probabilities.iter().enumerate() {
            let count = drawn.eq(id as i64).sum(Kind::Int64).int64_value(&[]);
            assert!((count - (p * n as f32) as i64).abs() <= 1, "token {id}: {count} of {n}");
            assert!(*p > 0.0 || count == 0, "token {id} cannot be drawn");
        }
    }

    #[test]
    fn the_ends_of_the_interval_draw_possible_tokens() {
        let largest = 1.0 - 1.0 / (1u32 << 23) as f32;
        // Many equal tokens between two impossible ones: the total is off 1 by rounding.
        for count in [1usize, 3, 10, 1000, 32_000] {
            let logits: Vec<f32> = [vec![NO], vec![0.3; count], vec![NO]].concat();
            let logits = Tensor::from_slice(&logits).view([1, -1]).repeat([2, 1]);
            let drawn = draw(&logits, &Tensor::from_slice(&[0.0, largest]).view([2, 1])).unwrap();
            assert_eq!(Vec::<i64>::try_from(drawn.view([-1])).unwrap(), [1, count as i64]);
        }
    }
}
