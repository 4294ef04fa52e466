//! Losses as pure functions of tensors. Each returns a sum and a count; the trainer divides once, by the count over
//! all micro-batches (and ranks), so that no average of averages slips in.

use tch::Tensor;

/// A loss before its division.
#[derive(Debug)]
pub struct SumCount {
    /// Sum over the counted positions, a scalar with gradients.
    pub sum: Tensor,
    /// Positions that were summed.
    pub count: u64,
}
