//! The feed-forward layer.

use ruminate_torch::{Gate, Prologue};
use tch::Tensor;

use super::{Input, Linear, PackedLinear, dropout};
use crate::Result;

/// The feed-forward layer of a block.
#[derive(Debug, Clone)]
pub(crate) enum Mlp {
    /// `down(relu(up(x)))`.
    Relu { up: Linear, down: Linear },
    /// `down(activation(gate(x)) * up(x))` (arXiv 2002.05202).
    Gated { activation: Gate, gate: Linear, up: Linear, down: Linear },
}

impl Mlp {
    /// With dropout on what `down` reads.
    pub(crate) fn forward(&self, x: Input<'_>, rate: f64) -> Result<Tensor> {
        match self {
            Self::Relu { up, down } => {
                // Dropout and ReLU commute; in this order only one tensor is kept for the backward pass.
                let inner = dropout(&up.forward(x)?, rate)?;
                down.forward(Input { x: &inner, prologue: Prologue::Relu })
            }
            Self::Gated { activation, gate, up, down } => {
                let gate_and_up = Linear::forward_all(&[gate, up], x)?;
                let inner = Prologue::Gate(*activation).apply(&gate_and_up)?;
                down.forward(&dropout(&inner, rate)?)
            }
        }
    }

    pub(crate) fn packed(&self) -> Result<PackedMlp> {
        Ok(match self {
            Self::Relu { up, down } => PackedMlp {
                up: PackedLinear::new(&[up])?,
                activation: Prologue::Relu,
                down: PackedLinear::new(&[down])?,
            },
            Self::Gated { activation, gate, up, down } => PackedMlp {
                up: PackedLinear::new(&[gate, up])?,
                activation: Prologue::Gate(*activation),
                down: PackedLinear::new(&[down])?,
            },
        })
    }
}

/// [`Mlp`] for decoding.
#[derive(Debug)]
pub(crate) struct PackedMlp {
    /// `up`, or `gate` and `up` side by side.
    up: PackedLinear,
    activation: Prologue<'static>,
    down: PackedLinear,
}

impl PackedMlp {
    /// `residual + mlp(x)`.
    pub(crate) fn forward_add(&self, x: Input<'_>, residual: &Tensor) -> Result<Tensor> {
        let inner = self.up.forward(x)?;
        self.down.forward_add(Input { x: &inner, prologue: self.activation }, residual)
    }
}
