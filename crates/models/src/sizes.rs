//! What models cost, told from their configurations alone.

use crate::{LlamaConfig, T5Config};

/// Rows of one batch and their lengths in tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchShape {
    /// Rows.
    pub rows: f64,
    /// Source or prompt tokens of a row, padding included.
    pub source: f64,
    /// Target tokens of a row, padding included.
    pub target: f64,
}

/// The shape of a model, whatever its architecture.
pub trait ModelShape: std::fmt::Debug {
    /// Width of the states that a value head reads.
    fn width(&self) -> i64;

    /// The shape of every parameter; tied ones come once.
    fn parameter_shapes(&self) -> Vec<Vec<i64>>;

    /// Number of scalar parameters; tied ones count once.
    fn parameter_count(&self) -> u64;

    /// Floating-point operations of one forward pass. A training step takes three times as many.
    fn forward_flops(&self, batch: BatchShape) -> f64;

    /// Bytes of the intermediate results that the backward pass of a training step needs, estimated.
    fn activation_bytes(&self, batch: BatchShape, bf16: bool) -> f64;
}

/// The methods of the same names, documented there.
macro_rules! model_shape {
    ($config:ty, $width:ident) => {
        impl ModelShape for $config {
            fn width(&self) -> i64 {
                self.$width
            }

            fn parameter_shapes(&self) -> Vec<Vec<i64>> {
                <$config>::parameter_shapes(self)
            }

            fn parameter_count(&self) -> u64 {
                <$config>::parameter_count(self)
            }

            fn forward_flops(&self, batch: BatchShape) -> f64 {
                <$config>::forward_flops(self, batch)
            }

            fn activation_bytes(&self, batch: BatchShape, bf16: bool) -> f64 {
                <$config>::activation_bytes(self, batch, bf16)
            }
        }
    };
}

model_shape!(T5Config, d_model);
model_shape!(LlamaConfig, hidden_size);
