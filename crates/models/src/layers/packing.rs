//! Packed sequences: rows of different lengths one behind the other, so that they need hardly any padding.
//!
//! Norms, projections and feed-forward layers see tokens, wherever a row ends. Only attention needs blocks `[rows, time]`. Rows of about
//! one length share a block; the others have blocks of their own.

use tch::{Device, Tensor};

use crate::{Result, TokenId};

/// Cost of the calls for one more attention block in a transformer block, forward and backward, in tokens times parameters of the
/// transformer block. Estimated from 100 microseconds of calls, on two CPU cores and on a GPU; the GPU's was never measured.
const CALLS: (i64, i64) = (5_000_000, 3_000_000_000);

/// How many tokens of padding are worth one attention block less, in a model whose blocks hold so many parameters.
pub(crate) fn padding_budget(block_parameters: i64, device: Device) -> i64 {
    let calls = if device == Device::Cpu { CALLS.0 } else { CALLS.1 };
    calls / block_parameters.max(1)
}

/// The length of the longest row, at least 1.
pub(crate) fn longest(rows: &[&[TokenId]]) -> i64 {
    rows.iter().map(|row| row.len() as i64).max().unwrap_or(0).max(1)
}

/// Groups of rows, by index, that together cost the least: each row its tokens as padded within its group, each group
/// `budget` tokens. `sizes` are the lengths of each row, e.g. of its source and of its target. Rows of one group are neighbours
/// in length.
pub(crate) fn groups(sizes: &[[i64; 2]], budget: i64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&row| sizes[row]);
    // The least cost of the first `n` rows, and where their last group begins.
    let mut best = vec![(0i64, 0usize)];
    for n in 1..=order.len() {
        let (mut longest, mut tokens) = ([0i64; 2], 0i64);
        let mut least = (i64::MAX, n - 1);
        for begin in (0..n).rev() {
            let size = sizes[order[begin]];
            longest = [longest[0].max(size[0]), longest[1].max(size[1])];
            tokens += size[0] + size[1];
            let count = (n - begin) as i64;
            let padding = count * (longest[0] + longest[1]) - tokens;
            let cost = best[begin].0 + padding + budget;
            // Of two that cost the same, the larger group.
            if cost <= least.0 {
                least = (cost, begin);
            }
            // Even a group for each row would cost less.
            if padding > budget * count {
                break;
            }
        }
        best.push(least);
    }
    let mut groups = vec![];
    let mut end = order.len();
    while end > 0 {
        let begin = best[end].1;
        groups.push(order[begin..end].to_vec());
        end = begin;
    }
    groups.reverse();
    groups
}

/// Ids of padded rows, one behind the other, and where each row lies.
#[derive(Debug)]
pub(crate) struct PackedRows {
    pub(crate) ids: Vec<TokenId>,
    begins: Vec<i64>,
    ends: Vec<i64>,
}

impl PackedRows {
    /// For so many rows.
    pub(crate) fn new(rows: usize) -> Self {
        Self { ids: vec![], begins: vec![0; rows], ends: vec![0; rows] }
    }

    /// Appends a row, filled up to `width`.
    pub(crate) fn push(&mut self, row: usize, ids: impl Iterator<Item = TokenId>, width: i64, pad: TokenId) {
        self.begins[row] = self.ids.len() as i64;
        self.ids.extend(ids);
        self.ids.resize(self.begins[row] as usize + width as usize, pad);
        self.ends[row] = self.ids.len() as i64;
    }

    /// Leaves out the first tokens of a row that was pushed, in what [`unpack`](Self::unpack) picks.
    pub(crate) fn skip(&mut self, row: usize, tokens: i64) {
        self.begins[row] += tokens;
    }

    /// The first `time` tokens of each row out of `[tokens, width]`, as `[rows, time, width]`. A shorter row repeats its last one.
    pub(crate) fn unpack(&self, tokens: &Tensor, time: i64) -> Result<Tensor> {
        let row = |(&begin, &end): (&i64, &i64)| (begin..begin + time).map(move |at| at.min(end - 1));
        let positions: Vec<i64> = self.begins.iter().zip(&self.ends).flat_map(row).collect();
        let positions = Tensor::f_from_slice(&positions)?.f_to_device(tokens.device())?;
        Ok(tokens.f_index_select(0, &positions)?.f_view_([self.begins.len() as i64, time, -1])?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cost(sizes: &[[i64; 2]], groups: &[Vec<usize>], budget: i64) -> i64 {
        let longest = |group: &[usize], i: usize| group.iter().map(|&row| sizes[row][i]).max().unwrap_or(0);
        let padded = |group: &Vec<usize>| group.len() as i64 * (longest(group, 0) + longest(group, 1));
        groups.iter().map(|group| padded(group) + budget).sum::<i64>()
            - sizes.iter().flatten().copied().sum::<i64>()
    }

    #[test]
    fn rows_of_one_length_share_a_group() {
        assert_eq!(groups(&[[5, 2]; 4], 0), [[0, 1, 2, 3]]);
        assert_eq!(groups(&[[5, 2], [90, 2], [5, 2]], 3), [vec![0, 2], vec![1]]);
        assert_eq!(groups(&[], 3), Vec::<Vec<usize>>::new());
        assert!(padding_budget(3_000_000, Device::Cpu) < padding_budget(3_000_000, Device::Cuda(0)));
    }

    proptest! {
        #[test]
        fn every_row_has_one_group_and_no_other_choice_of_neighbours_is_cheaper(
            lengths in prop::collection::vec(1..40i64, 1..9), budget in 0..60i64
        ) {
            let sizes: Vec<[i64; 2]> = lengths.iter().map(|&length| [length, 0]).collect();
            let found = groups(&sizes, budget);
            let mut rows = found.concat();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..sizes.len()).collect::<Vec<_>>());
            let order = found.concat();
            // All ways to cut the rows, in order of length, into groups.
            let least = (0..1u32 << (order.len() - 1)).map(|cuts| {
                let mut all = vec![vec![order[0]]];
                for (i, &row) in order.iter().enumerate().skip(1) {
                    match cuts >> (i - 1) & 1 {
                        1 => all.push(vec![row]),
                        _ => all.last_mut().unwrap().push(row),
                    }
                }
                cost(&sizes, &all, budget)
            });
            prop_assert_eq!(cost(&sizes, &found, budget), least.min().unwrap());
        }
    }
}
