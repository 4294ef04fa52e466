//! What models cost, told from their configurations alone.

use tch::Kind;

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

    /// Rows of the embedding.
    fn vocab_size(&self) -> i64;

    /// The largest dropout rate in training.
    fn dropout_rate(&self) -> f64;

    /// The shape of every parameter; tied ones come once.
    fn parameter_shapes(&self) -> Vec<Vec<i64>>;

    /// Number of scalar parameters; tied ones count once.
    fn parameter_count(&self) -> u64 {
        let numbers = |shape: Vec<i64>| shape.iter().product::<i64>().unsigned_abs();
        self.parameter_shapes().into_iter().map(numbers).sum()
    }

    /// Floating-point operations of one forward pass. A training step takes three times as many.
    fn forward_flops(&self, batch: BatchShape) -> f64;

    /// Bytes of the intermediate results that the backward pass of a training step needs, estimated.
    fn activation_bytes(&self, batch: BatchShape, bf16: bool) -> f64;

    /// Bytes that are held while `rows` rows of `prompts` prompts are written, weights aside: prompts of up to `longest` tokens, and `new`
    /// tokens in each row, in the weights' `kind`.
    fn decoding_bytes(&self, prompts: usize, longest: usize, rows: usize, new: usize, kind: Kind) -> u64;

    /// Blocks that sources and targets go through.
    fn blocks(&self) -> [i64; 2];

    /// The same with activation checkpointing: the inputs of all blocks in float32, and what is inside of one of them.
    fn checkpointed_activation_bytes(&self, batch: BatchShape, bf16: bool) -> f64 {
        let [source, target] = self.blocks().map(|blocks| blocks as f64);
        let inputs = 4.0 * self.width() as f64 * batch.rows * (source * batch.source + target * batch.target);
        inputs + self.activation_bytes(batch, bf16) / source.max(1.0)
    }
}
