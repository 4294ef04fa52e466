//! T5's relative position bias (arXiv 1910.10683, section 2.1).

use tch::{Kind, Tensor};

use crate::Result;
use crate::parameters::{Builder, Init};

/// A learnt number for each head and each bucket of key-minus-query distances, added to the attention scores of every block of a stack.
#[derive(Debug)]
pub(crate) struct RelativeBias {
    /// `[buckets, heads]`.
    table: Tensor,
    bidirectional: bool,
    max_distance: i64,
}

impl RelativeBias {
    pub(crate) fn new(
        builder: &mut Builder,
        name: &str,
        shape: [i64; 2],
        std: f64,
        bidirectional: bool,
        max_distance: i64,
    ) -> Result<Self> {
        let table = builder.parameter(&format!("{name}.weight"), &shape, Init::Normal(std))?;
        Ok(Self { table, bidirectional, max_distance })
    }

    /// Buckets of key-minus-query distances (any shape, `i64`).
    pub(crate) fn buckets(&self, distance: &Tensor) -> Result<Tensor> {
        let mut buckets = self.table.size()[0];
        let mut offset = distance.f_zeros_like()?;
        let n = if self.bidirectional {
            buckets /= 2;
            offset = distance.f_gt(0)?.f_to_kind(Kind::Int64)?.f_mul_scalar(buckets)?;
            distance.f_abs()?
        } else {
            distance.f_neg()?.f_clamp_min(0)?
        };
        // Small distances have a bucket each, larger ones share buckets on a logarithmic scale. The arithmetic is
        // float32 in this order, because bucket limits fall on exact powers.
        let exact = buckets / 2;
        let scale = (self.max_distance as f64 / exact as f64).ln();
        let far = n
            .f_to_kind(Kind::Float)?
            .f_div_scalar(exact as f64)?
            .f_log()?
            .f_div_scalar(scale)?
            .f_mul_scalar((buckets - exact) as f64)?
            .f_to_kind(Kind::Int64)?
            .f_add_scalar(exact)?
            .f_clamp_max(buckets - 1)?;
        Ok(n.f_where_self(&n.f_lt(exact)?, &far)?.f_add(&offset)?)
    }

    /// Bias `[1, heads, time, time]` of queries and keys at positions 0, 1, ...
    pub(crate) fn full(&self, time: i64) -> Result<Tensor> {
        let positions = Tensor::f_arange(time, (Kind::Int64, self.table.device()))?;
        let distance = positions.f_unsqueeze(0)?.f_sub(&positions.f_unsqueeze(1)?)?;
        let bias = Tensor::f_embedding(&self.table, &self.buckets(&distance)?, -1, false, false)?;
        Ok(bias.f_permute([2, 0, 1])?.f_unsqueeze(0)?)
    }

    /// Bias `[1, heads, 1, time]` of the last query. The bias of an earlier query `t` is the last `t + 1` columns.
    pub(crate) fn last_row(&self, time: i64) -> Result<Tensor> {
        let distance = Tensor::f_arange_start(1 - time, 1, (Kind::Int64, self.table.device()))?;
        let bias = Tensor::f_embedding(&self.table, &self.buckets(&distance)?, -1, false, false)?;
        Ok(bias.f_transpose(0, 1)?.f_contiguous()?.f_view_([1, -1, 1, time])?)
    }
}
