//! Building blocks of transformers. Every family is made of these; a family's own folder holds its configuration, the names of its
//! weights and what is peculiar to it.
//!
//! tch's functions that begin with `f_` return an error where the others panic: `f_add` is `add`.

mod attention;
mod block;
mod decoding;
mod embeddings;
mod kv_cache;
mod linear;
mod mask;
mod mlp;
mod norm;
pub(crate) mod packing;
mod relative_bias;
mod rope;

use std::ops::Deref;

use tch::Tensor;

use crate::Result;

pub(crate) use attention::{Attention, AttentionBias, AttentionBlock, AttentionShape, KeyValues};
pub(crate) use block::{Block, CrossAttention, Dropout, Pass, Stack};
pub use decoding::Decoding;
pub(crate) use decoding::{LeftPadding, Positions, Start};
pub(crate) use embeddings::Embeddings;
pub(crate) use kv_cache::KvCache;
pub(crate) use linear::{Input, Linear, PackedLinear};
pub(crate) use mask::{causal_bias, padding_bias};
pub(crate) use mlp::Mlp;
pub(crate) use norm::RmsNorm;
pub(crate) use relative_bias::RelativeBias;
pub use rope::RopeScaling;
pub(crate) use rope::{Rope, RopeConfig};

/// A tensor handle. A clone is a second handle to the same values and gradients, not a copy.
#[derive(Debug)]
pub(crate) struct TensorHandle(Tensor);

impl Clone for TensorHandle {
    fn clone(&self) -> Self {
        Self(self.0.shallow_clone())
    }
}

impl Deref for TensorHandle {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.0
    }
}

impl From<Tensor> for TensorHandle {
    fn from(tensor: Tensor) -> Self {
        Self(tensor)
    }
}

/// `x` with elements dropped at this rate; `x` itself at rate 0.
pub(crate) fn dropout(x: &Tensor, rate: f64) -> Result<Tensor> {
    Ok(if rate > 0.0 { ruminate_torch::dropout(x, rate)? } else { x.shallow_clone() })
}
