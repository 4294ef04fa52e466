//! Root-mean-square norm.

use ruminate_torch::{Prologue, rms_norm};
use tch::Tensor;

use super::{Input, TensorHandle};
use crate::Result;
use crate::parameters::{Builder, Init};

/// Root-mean-square norm without mean and bias (arXiv 1910.07467): `x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    /// `[width]`.
    weight: TensorHandle,
    eps: f64,
}

impl RmsNorm {
    pub(crate) fn new(builder: &mut Builder, name: &str, width: i64, eps: f64) -> Result<Self> {
        let weight = builder.parameter(&format!("{name}.weight"), &[width], Init::Ones)?;
        Ok(Self { weight: weight.into(), eps })
    }

    /// Normalises the last dimension.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, &self.weight, self.eps)?)
    }

    /// The normalised `x` as the input of a projection, which normalises in its own pass over memory.
    pub(crate) fn fused<'a>(&'a self, x: &'a Tensor) -> Input<'a> {
        Input { x, prologue: Prologue::Norm { weight: &self.weight, eps: self.eps } }
    }
}
