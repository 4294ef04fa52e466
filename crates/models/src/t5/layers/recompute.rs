//! Activation checkpointing of blocks.

use tch::Tensor;

use super::{Attention, Block, Dense, Layout, Norm, Rectangle};
use crate::Result;

impl Block {
    /// As `forward`, keeping only what goes in for the backward pass, which runs the block again.
    pub(super) fn forward_recomputed(
        &self,
        x: &Tensor,
        source: Option<&Tensor>,
        layout: &Layout,
        dropout: f64,
    ) -> Result<Tensor> {
        let block = self.share();
        let mut again = layout.share();
        // What has gradients has to go in: the position bias is learnt.
        let biases: Vec<&Tensor> = layout.own.iter().filter_map(|r| r.bias.as_ref()).collect();
        let inputs: Vec<&Tensor> = [x].into_iter().chain(biases).chain(source).collect();
        ruminate_torch::checkpoint(&inputs, move |inputs| -> Result<Tensor> {
            let mut rest = inputs[1..].iter();
            for bias in again.own.iter_mut().filter_map(|r| r.bias.as_mut()) {
                if let Some(input) = rest.next() {
                    *bias = input.shallow_clone();
                }
            }
            block.forward(&inputs[0], rest.next(), &again, dropout)
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

impl Layout {
    fn share(&self) -> Self {
        let share = |all: &[Rectangle]| all.iter().map(Rectangle::share).collect();
        Self { own: share(&self.own), cross: share(&self.cross) }
    }
}

impl Rectangle {
    fn share(&self) -> Self {
        Self { bias: self.bias.as_ref().map(Tensor::shallow_clone), ..*self }
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
