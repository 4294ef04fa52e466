//! Activation checkpointing of blocks.

use tch::Tensor;

use super::{Attention, Block, Dense, Masks, Norm};
use crate::{Error, Result};

impl Block {
    /// As `forward`, keeping only what goes in for the backward pass, which runs the block again.
    pub(super) fn forward_recomputed(
        &self,
        x: &Tensor,
        source: Option<&Tensor>,
        masks: &Masks<'_>,
        dropout: f64,
    ) -> Result<Tensor> {
        let block = self.share();
        let mut inputs = vec![x, masks.own];
        let cross = self.cross.is_some();
        if let (Some(source), Some(mask), true) = (source, masks.source, cross) {
            inputs.extend([source, mask]);
        }
        ruminate_torch::checkpoint(&inputs, move |inputs| -> Result<Tensor> {
            let (x, own, source, mask) = match inputs {
                [x, own] => (x, own, None, None),
                [x, own, source, mask] => (x, own, Some(source), Some(mask)),
                _ => return Err(Error::invalid("T5 block", format!("{} inputs", inputs.len()))),
            };
            block.forward(x, source, &Masks { own, source: mask }, dropout)
        })
    }

    /// A block on the same parameters, for a closure that outlives the call.
    fn share(&self) -> Self {
        Self {
            self_norm: self.self_norm.share(),
            self_attention: self.self_attention.share(),
            cross: self.cross.as_ref().map(|(norm, attention)| (norm.share(), attention.share())),
            dense_norm: self.dense_norm.share(),
            dense: self.dense.share(),
        }
    }
}

impl Norm {
    fn share(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), eps: self.eps }
    }
}

impl Attention {
    fn share(&self) -> Self {
        let [q, k, v, o] = [&self.q, &self.k, &self.v, &self.o].map(Tensor::shallow_clone);
        Self { q, k, v, o, heads: self.heads }
    }
}

impl Dense {
    fn share(&self) -> Self {
        match self {
            Self::Relu { wi, wo } => Self::Relu { wi: wi.shallow_clone(), wo: wo.shallow_clone() },
            Self::GatedGelu { wi_0, wi_1, wo } => {
                let [wi_0, wi_1, wo] = [wi_0, wi_1, wo].map(Tensor::shallow_clone);
                Self::GatedGelu { wi_0, wi_1, wo }
            }
        }
    }
}
