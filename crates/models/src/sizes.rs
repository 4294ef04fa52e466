//! What models cost, told from their configurations alone.

use crate::{LlamaConfig, T5Config};

/// Bytes of a row's logits for each entry of the vocabulary: filters need about as many copies in float32.
pub(crate) const LOGITS: u64 = 4 * 4;

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

    /// Blocks that sources and targets go through.
    fn blocks(&self) -> [i64; 2];

    /// The same with activation checkpointing: the inputs of all blocks in float32, and what is inside of one of them.
    fn checkpointed_activation_bytes(&self, batch: BatchShape, bf16: bool) -> f64 {
        let [source, target] = self.blocks().map(|blocks| blocks as f64);
        let inputs = 4.0 * self.width() as f64 * batch.rows * (source * batch.source + target * batch.target);
        inputs + self.activation_bytes(batch, bf16) / source.max(1.0)
    }
}

/// The methods of the same names, documented there.
macro_rules! model_shape {
    ($config:ty, $width:ident, $source:ident, $target:ident) => {
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

            fn blocks(&self) -> [i64; 2] {
                [self.$source, self.$target]
            }
        }
    };
}

model_shape!(T5Config, d_model, num_layers, num_decoder_layers);
model_shape!(LlamaConfig, hidden_size, num_hidden_layers, num_hidden_layers);
