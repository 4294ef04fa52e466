//! Losses as pure functions of tensors. Each returns a sum and a count; the trainer divides once, by the count over
//! all micro-batches (and ranks), so that no average of averages slips in.

use ruminate_models::TokenScores;
use tch::{Kind, Tensor};

use crate::Result;

/// A loss before its division.
#[derive(Debug)]
pub struct SumCount {
    /// Sum over the counted positions, a scalar with gradients.
    pub sum: Tensor,
    /// Positions that were summed.
    pub count: u64,
}

/// Cross-entropy in nats over all labelled positions.
///
/// # Errors
/// When libtorch refuses.
pub fn cross_entropy(scores: &TokenScores) -> Result<SumCount> {
    Ok(SumCount { sum: scores.log_probs.f_sum(Kind::Float)?.f_neg()?, count: scores.labels.count })
}
