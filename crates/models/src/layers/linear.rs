//! Projections: matrix products with a weight, and a bias where there is one.

use ruminate_torch::{Packed, Prologue, fused_linear};
use tch::Tensor;

use super::TensorHandle;
use crate::Result;
use crate::parameters::{Builder, Init};

/// The input of a projection: `prologue(x)`, computed in the projection's own pass over memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) prologue: Prologue<'a>,
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(x: &'a Tensor) -> Self {
        Self { x, prologue: Prologue::None }
    }
}

/// `x weight^T + bias`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// `[out, in]`.
    weight: TensorHandle,
    /// `[out]`.
    bias: Option<TensorHandle>,
}

impl Linear {
    /// A projection without bias, `[out, in]`.
    pub(crate) fn new(builder: &mut Builder, name: &str, shape: [i64; 2], std: f64) -> Result<Self> {
        let weight = builder.parameter(&format!("{name}.weight"), &shape, Init::Normal(std))?;
        Ok(Self { weight: weight.into(), bias: None })
    }

    /// A projection `[out, in]` whose bias begins at zero.
    pub(crate) fn with_bias(builder: &mut Builder, name: &str, shape: [i64; 2], std: f64) -> Result<Self> {
        let bias = builder.parameter(&format!("{name}.bias"), &shape[..1], Init::Zeros)?;
        Ok(Self { bias: Some(bias.into()), ..Self::new(builder, name, shape, std)? })
    }

    pub(crate) fn forward<'a>(&self, input: impl Into<Input<'a>>) -> Result<Tensor> {
        Self::forward_all(&[self], input)
    }

    /// Several projections of one input as one product, side by side: `[..., out_0 + out_1 + ...]`. Either all have a bias or none.
    pub(crate) fn forward_all<'a>(layers: &[&Self], input: impl Into<Input<'a>>) -> Result<Tensor> {
        let Input { x, prologue } = input.into();
        let weights: Vec<&Tensor> = layers.iter().map(|layer| &*layer.weight).collect();
        let product = fused_linear(prologue, x, &weights)?;
        match Self::joint_bias(layers)? {
            Some(bias) => Ok(product.f_add(&bias.f_to_kind(product.kind())?)?),
            None => Ok(product),
        }
    }

    fn joint_bias(layers: &[&Self]) -> Result<Option<Tensor>> {
        let biases: Vec<&Tensor> = layers.iter().filter_map(|layer| layer.bias.as_deref()).collect();
        Ok(if biases.is_empty() { None } else { Some(Tensor::f_cat(&biases, 0)?) })
    }
}

/// Projections of one input, laid out for decoding: a copy without gradients.
#[derive(Debug)]
pub(crate) struct PackedLinear {
    weight: Packed,
    bias: Option<Tensor>,
}

impl PackedLinear {
    /// Joins projections as [`Linear::forward_all`] does.
    pub(crate) fn new(layers: &[&Linear]) -> Result<Self> {
        let weights: Vec<&Tensor> = layers.iter().map(|layer| &*layer.weight).collect();
        let bias = Linear::joint_bias(layers)?;
        Ok(Self { weight: Packed::new(&weights)?, bias: bias.map(|bias| bias.f_detach()).transpose()? })
    }

    /// An output matrix `[vocab, width]`.
    pub(crate) fn of_weight(weight: &Tensor) -> Result<Self> {
        Ok(Self { weight: Packed::new(&[weight])?, bias: None })
    }

    pub(crate) fn forward<'a>(&self, input: impl Into<Input<'a>>) -> Result<Tensor> {
        self.with_bias(input.into(), None)
    }

    /// `residual` plus the projection.
    pub(crate) fn forward_add<'a>(&self, input: impl Into<Input<'a>>, residual: &Tensor) -> Result<Tensor> {
        self.with_bias(input.into(), Some(residual))
    }

    fn with_bias(&self, Input { x, prologue }: Input<'_>, residual: Option<&Tensor>) -> Result<Tensor> {
        let product = self.weight.fused_linear(prologue, x, residual)?;
        match &self.bias {
            Some(bias) => Ok(product.f_add(&bias.f_to_kind(product.kind())?)?),
            None => Ok(product),
        }
    }
}
