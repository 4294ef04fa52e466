//! What a T5 costs, told from its configuration alone.

use tch::Kind;

use super::config::{FeedForward, T5Config};
use crate::sizes::LOGITS;
use crate::{BatchShape, ModelShape};

impl T5Config {
    /// The published shapes: `t5-small`, `t5-base`, `t5-large`, `t5-3b` and `t5-11b` (arXiv 1910.10683, version 1.0).
    ///
    /// ```
    /// use ruminate_models::{ModelShape, T5Config};
    /// assert_eq!(T5Config::published("t5-large").map(|t5| t5.parameter_count()), Some(737_668_096));
    /// ```
    #[must_use]
    pub fn published(name: &str) -> Option<Self> {
        let (d_model, d_ff, num_layers, num_heads, d_kv) = match name {
            "t5-small" => (512, 2048, 6, 8, 64),
            "t5-base" => (768, 3072, 12, 12, 64),
            "t5-large" => (1024, 4096, 24, 16, 64),
            "t5-3b" => (1024, 16_384, 24, 32, 128),
            "t5-11b" => (1024, 65_536, 24, 128, 128),
            _ => return None,
        };
        Some(Self {
            vocab_size: 32_128,
            d_model,
            d_kv,
            d_ff,
            num_layers,
            num_decoder_layers: num_layers,
            num_heads,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            dropout_rate: 0.1,
            layer_norm_epsilon: 1e-6,
            initializer_factor: 1.0,
            feed_forward: FeedForward::Relu,
            tie_word_embeddings: true,
            scale_decoder_outputs: true,
            is_encoder_decoder: true,
            pad_token_id: 0,
            eos_token_ids: vec![1],
            decoder_start_token_id: 0,
        })
    }
}

impl ModelShape for T5Config {
    fn width(&self) -> i64 {
        self.d_model
    }

    fn vocab_size(&self) -> i64 {
        self.vocab_size
    }

    fn dropout_rate(&self) -> f64 {
        self.dropout_rate
    }

    fn blocks(&self) -> [i64; 2] {
        [self.num_layers, self.num_decoder_layers]
    }

    /// The shape of every parameter; tied ones come once.
    fn parameter_shapes(&self) -> Vec<Vec<i64>> {
        let (d, inner) = (self.d_model, self.inner());
        let embedding = vec![self.vocab_size, d];
        let attention = || [vec![inner, d], vec![inner, d], vec![inner, d], vec![d, inner], vec![d]];
        let dense = || {
            let into = (1..self.dense_matrices()).map(|_| vec![self.d_ff, d]);
            into.chain([vec![d, self.d_ff], vec![d]])
        };
        // Of a stack: its relative positions and its last norm.
        let stack = || [vec![self.relative_attention_num_buckets, self.num_heads], vec![d]];
        let mut shapes = vec![embedding.clone()];
        shapes.extend(stack());
        for _ in 0..self.num_layers {
            shapes.extend(attention().into_iter().chain(dense()));
        }
        if self.is_encoder_decoder {
            shapes.extend(stack());
            for _ in 0..self.num_decoder_layers {
                shapes.extend(attention().into_iter().chain(attention()).chain(dense()));
            }
            shapes.extend((!self.tie_word_embeddings).then_some(embedding));
        }
        shapes
    }

    /// Floating-point operations of one forward pass: twice the multiplications in matrix products, which are nearly all
    /// there is. A training step takes three times as many.
    fn forward_flops(&self, shape: BatchShape) -> f64 {
        let BatchShape { rows, source, target } = shape;
        let (d, inner) = (self.d_model as f64, self.inner() as f64);
        let dense = (self.dense_matrices() * self.d_model * self.d_ff) as f64;
        let encoder = source * (4.0 * d * inner + dense) + 2.0 * source * source * inner;
        let own = target * (4.0 * d * inner + dense) + 2.0 * target * target * inner;
        let cross = (target + source) * 2.0 * d * inner + 2.0 * target * source * inner;
        let output = target * d * self.vocab_size as f64;
        2.0 * rows
            * (self.num_layers as f64 * encoder + self.num_decoder_layers as f64 * (own + cross) + output)
    }

    /// Bytes that are held while `rows` rows of `prompts` prompts are written, weights aside: the encoder's states, keys and values of
    /// prompts of up to `longest` tokens and of `new` tokens in each row, in the weights' `kind`, and some copies of the logits in float32.
    fn decoding_bytes(&self, prompts: usize, longest: usize, rows: usize, new: usize, kind: Kind) -> u64 {
        let element = kind.elt_size_in_bytes() as i64;
        let token = 2 * self.num_decoder_layers * self.inner() * element;
        let source = (token + self.d_model * element).unsigned_abs() * (prompts * longest) as u64;
        let target = token.unsigned_abs() * (rows * (1 + new)) as u64;
        source + target + rows as u64 * LOGITS * self.vocab_size.unsigned_abs()
    }

    /// Bytes of the intermediate results that the backward pass of a training step needs, estimated.
    ///
    /// With `d` = `d_model`, `i` = `num_heads * d_kv`, `f` = `d_ff` (four times that for a gated layer), `h` = heads and
    /// `w` the bytes of an element in products (4, or 2 in bfloat16), a layer keeps for each token:
    /// - `12 d` bytes for each norm (input, normalised and scaled, in float32) and, in bfloat16, `2 d` for a cast copy,
    /// - `w 4 i` for each attention (queries, keys, values, context; those of the source in the cross-attention count per
    ///   source token),
    /// - `(4 + w) h` (in float32: `4 h`) for each token that it attends to: its probability,
    /// - `w f` for the inside of the feed-forward layer.
    ///
    /// Dropout, and what the kernels need while they run, comes on top. On the CPU it is less: norms keep their input alone, and
    /// probabilities are made again.
    fn activation_bytes(&self, shape: BatchShape, bf16: bool) -> f64 {
        let BatchShape { rows, source, target } = shape;
        let (d, inner, heads) = (self.d_model as f64, self.inner() as f64, self.num_heads as f64);
        let (element, norm, probability) = if bf16 { (2.0, 14.0 * d, 6.0) } else { (4.0, 12.0 * d, 4.0) };
        let gated = self.feed_forward != FeedForward::Relu;
        let dense = element * if gated { 4.0 } else { 1.0 } * self.d_ff as f64;
        let attention = |queries: f64, keys: f64| {
            element * inner * 2.0 * (queries + keys) + probability * heads * queries * keys
        };
        let encoder = source * (2.0 * norm + dense) + attention(source, source);
        let decoder = target * (3.0 * norm + dense) + attention(target, target) + attention(target, source);
        rows * (self.num_layers as f64 * encoder + self.num_decoder_layers as f64 * decoder)
    }
}

impl T5Config {
    fn inner(&self) -> i64 {
        self.num_heads * self.d_kv
    }

    /// Matrices of the feed-forward layer.
    fn dense_matrices(&self) -> i64 {
        match self.feed_forward {
            FeedForward::Relu => 2,
            FeedForward::GatedGelu | FeedForward::GatedSilu => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::T5;

    #[test]
    fn published_models_have_their_published_sizes() {
        let count = |name| T5Config::published(name).unwrap().parameter_count();
        assert_eq!(count("t5-small"), 60_506_624);
        assert_eq!(count("t5-base"), 222_903_552);
        assert_eq!(count("t5-3b"), 2_851_598_336);
        assert_eq!(count("t5-11b"), 11_307_321_344);
        assert_eq!(T5Config::published("t5-huge"), None);
    }

    #[test]
    fn parameters_are_counted_without_a_model() {
        let small = T5Config {
            vocab_size: 50,
            d_model: 12,
            d_kv: 5,
            d_ff: 20,
            num_heads: 3,
            num_layers: 2,
            num_decoder_layers: 3,
            ..T5Config::published("t5-small").unwrap()
        };
        for feed_forward in [FeedForward::Relu, FeedForward::GatedGelu] {
            for (tie_word_embeddings, is_encoder_decoder) in [(true, true), (false, true), (true, false)] {
                let config =
                    T5Config { feed_forward, tie_word_embeddings, is_encoder_decoder, ..small.clone() };
                let model = T5::new(config.clone(), Kind::Float, Device::Cpu, 1).unwrap();
                let mut shapes: Vec<_> = model.parameters().named().iter().map(|(_, t)| t.size()).collect();
                let mut planned = config.parameter_shapes();
                shapes.sort();
                planned.sort();
                assert_eq!(planned, shapes, "{config:?}");
                assert_eq!(config.parameter_count(), model.parameters().count());
            }
        }
    }

    #[test]
    fn costs_grow_as_they_should() {
        let large = T5Config::published("t5-large").unwrap();
        let shape = BatchShape { rows: 1.0, source: 128.0, target: 32.0 };
        // The rule of thumb, two operations for each parameter and token, where the embedding costs nothing and half of
        // the decoder's cross-attention sees the source.
        let thumb = 2.0 * (302e6 * 128.0 + 402e6 * 32.0 + 33e6 * 32.0);
        let flops = large.forward_flops(shape);
        assert!((0.9..1.3).contains(&(flops / thumb)), "{}", flops / thumb);
        let twice = BatchShape { rows: 2.0, ..shape };
        assert_eq!(large.forward_flops(twice), 2.0 * flops);
        let bytes = |bf16| large.activation_bytes(shape, bf16);
        // Norms and probabilities stay in float32.
        assert!(bytes(true) < bytes(false) && bytes(true) > 0.5 * bytes(false));
        assert_eq!(large.activation_bytes(twice, true), 2.0 * bytes(true));
    }
}
