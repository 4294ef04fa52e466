//! What a Llama costs, told from its configuration alone.

use tch::Kind;

use super::config::{LlamaConfig, LlamaFamily};
use crate::layers::RopeScaling;
use crate::sizes::LOGITS;
use crate::{BatchShape, ModelShape};

impl LlamaConfig {
    /// The published shapes: `llama-2-7b`, `llama-3.1-8b`, `mistral-7b-v0.1`, `deepseek-math-7b`, `smollm2-135m`, `qwen2.5-0.5b`,
    /// `qwen2.5-7b` and `qwen3-0.6b`.
    ///
    /// ```
    /// use ruminate_models::{LlamaConfig, ModelShape};
    /// assert_eq!(LlamaConfig::published("llama-2-7b").map(|llama| llama.parameter_count()), Some(6_738_415_616));
    /// ```
    #[must_use]
    pub fn published(name: &str) -> Option<Self> {
        let llama2 = Self {
            family: LlamaFamily::Llama,
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: 128,
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            sliding_window: None,
            max_window_layers: 0,
            tie_word_embeddings: false,
            attention_dropout: 0.0,
            initializer_range: 0.02,
            pad_token_id: None,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
        };
        Some(match name {
            "llama-2-7b" => llama2,
            "llama-3.1-8b" => Self {
                vocab_size: 128_256,
                intermediate_size: 14_336,
                num_key_value_heads: 8,
                max_position_embeddings: 131_072,
                rope_theta: 500_000.0,
                rope_scaling: RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position_embeddings: 8192,
                },
                bos_token_id: Some(128_000),
                eos_token_ids: vec![128_001],
                ..llama2
            },
            "mistral-7b-v0.1" => Self {
                family: LlamaFamily::Mistral,
                intermediate_size: 14_336,
                num_key_value_heads: 8,
                max_position_embeddings: 32_768,
                sliding_window: Some(4096),
                ..llama2
            },
            "deepseek-math-7b" => Self {
                vocab_size: 102_400,
                num_hidden_layers: 30,
                rms_norm_eps: 1e-6,
                bos_token_id: Some(100_000),
                eos_token_ids: vec![100_001],
                ..llama2
            },
            "smollm2-135m" => Self {
                vocab_size: 49_152,
                hidden_size: 576,
                intermediate_size: 1536,
                num_hidden_layers: 30,
                num_attention_heads: 9,
                num_key_value_heads: 3,
                head_dim: 64,
                max_position_embeddings: 8192,
                rope_theta: 100_000.0,
                tie_word_embeddings: true,
                initializer_range: 1.0 / 24.0,
                pad_token_id: Some(2),
                ..llama2
            },
            "qwen2.5-0.5b" | "qwen2.5-7b" | "qwen3-0.6b" => Self::published_qwen(name, llama2),
            _ => return None,
        })
    }
}

impl LlamaConfig {
    fn published_qwen(name: &str, llama2: Self) -> Self {
        let qwen2 = Self {
            family: LlamaFamily::Qwen2,
            vocab_size: 151_936,
            hidden_size: 896,
            intermediate_size: 4864,
            num_hidden_layers: 24,
            num_attention_heads: 14,
            num_key_value_heads: 2,
            head_dim: 64,
            max_position_embeddings: 32_768,
            max_window_layers: 24,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            tie_word_embeddings: true,
            bos_token_id: Some(151_643),
            eos_token_ids: vec![151_643],
            ..llama2
        };
        match name {
            "qwen2.5-0.5b" => qwen2,
            "qwen2.5-7b" => Self {
                vocab_size: 152_064,
                hidden_size: 3584,
                intermediate_size: 18_944,
                num_hidden_layers: 28,
                num_attention_heads: 28,
                num_key_value_heads: 4,
                head_dim: 128,
                max_position_embeddings: 131_072,
                max_window_layers: 28,
                tie_word_embeddings: false,
                ..qwen2
            },
            _ => Self {
                family: LlamaFamily::Qwen3,
                hidden_size: 1024,
                intermediate_size: 3072,
                num_hidden_layers: 28,
                num_attention_heads: 16,
                num_key_value_heads: 8,
                head_dim: 128,
                max_position_embeddings: 40_960,
                max_window_layers: 28,
                eos_token_ids: vec![151_645],
                ..qwen2
            },
        }
    }
}

impl ModelShape for LlamaConfig {
    fn width(&self) -> i64 {
        self.hidden_size
    }

    fn vocab_size(&self) -> i64 {
        self.vocab_size
    }

    fn dropout_rate(&self) -> f64 {
        self.attention_dropout
    }

    fn blocks(&self) -> [i64; 2] {
        [self.num_hidden_layers, self.num_hidden_layers]
    }

    /// The shape of every parameter; tied ones come once.
    fn parameter_shapes(&self) -> Vec<Vec<i64>> {
        let (d, ff, queries, shared) =
            (self.hidden_size, self.intermediate_size, self.queries(), self.shared());
        let mut shapes = vec![vec![self.vocab_size, d], vec![d]];
        for _ in 0..self.num_hidden_layers {
            shapes.extend([vec![queries, d], vec![shared, d], vec![shared, d], vec![d, queries]]);
            shapes.extend([vec![ff, d], vec![ff, d], vec![d, ff], vec![d], vec![d]]);
            if self.family.has_qkv_bias() {
                shapes.extend([vec![queries], vec![shared], vec![shared]]);
            }
            if self.family.has_qk_norm() {
                shapes.extend([vec![self.head_dim], vec![self.head_dim]]);
            }
        }
        shapes.extend((!self.tie_word_embeddings).then(|| vec![self.vocab_size, d]));
        shapes
    }

    /// Floating-point operations of one forward pass over rows of `source` prompt and `target` target tokens: twice the
    /// multiplications in matrix products, which are nearly all there is. A training step takes three times as many.
    fn forward_flops(&self, shape: BatchShape) -> f64 {
        let BatchShape { rows, source, target } = shape;
        let time = source + target;
        let (d, ff) = (self.hidden_size as f64, self.intermediate_size as f64);
        let (queries, shared) = (self.queries() as f64, self.shared() as f64);
        let layer = time * d * (2.0 * queries + 2.0 * shared + 3.0 * ff) + 2.0 * time * time * queries;
        let output = target * d * self.vocab_size as f64;
        2.0 * rows * (self.num_hidden_layers as f64 * layer + output)
    }

    /// Bytes of the intermediate results that the backward pass of a training step needs, estimated.
    ///
    /// With `d` = `hidden_size`, `q` and `k` the joint width of the query and of the key heads, `f` = `intermediate_size`, `h`
    /// = query heads and `w` the bytes of an element in products (4, or 2 in bfloat16), a layer keeps for each token:
    /// - `12 d` bytes for each of two norms and, in bfloat16, `2 d` for a cast copy,
    /// - `w (4 q + 4 k)` for the attention: queries and keys before and after they are turned, values, context,
    /// - `(4 + w) h` (in float32: `4 h`) for each token of the row: its probability, where the scores are written out,
    /// - `4 w f` for the inside of the feed-forward layer.
    ///
    /// What the kernels need while they run comes on top. On the CPU it is less: norms keep their input alone, and probabilities
    /// are made again.
    fn activation_bytes(&self, shape: BatchShape, bf16: bool) -> f64 {
        let BatchShape { rows, source, target } = shape;
        let time = source + target;
        let (d, ff, heads) =
            (self.hidden_size as f64, self.intermediate_size as f64, self.num_attention_heads as f64);
        let (element, norm, probability) = if bf16 { (2.0, 14.0 * d, 6.0) } else { (4.0, 12.0 * d, 4.0) };
        let attention = element * 4.0 * (self.queries() + self.shared()) as f64;
        let token = 2.0 * norm + attention + element * 4.0 * ff + probability * heads * time;
        rows * self.num_hidden_layers as f64 * time * token
    }

    /// Bytes that are held while `rows` rows of `prompts` prompts are written, weights aside: keys and values of prompts of up to `longest`
    /// tokens and of `new` more in each row, in the weights' `kind`, and some copies of the logits in float32.
    fn decoding_bytes(&self, prompts: usize, longest: usize, rows: usize, new: usize, kind: Kind) -> u64 {
        let token = 2 * self.num_hidden_layers * self.shared() * kind.elt_size_in_bytes() as i64;
        let tokens = (prompts * longest + rows * new) as u64;
        tokens * token.unsigned_abs() + rows as u64 * LOGITS * self.vocab_size.unsigned_abs()
    }
}

impl LlamaConfig {
    fn queries(&self) -> i64 {
        self.num_attention_heads * self.head_dim
    }

    fn shared(&self) -> i64 {
        self.num_key_value_heads * self.head_dim
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::Llama;

    #[test]
    fn published_models_have_their_published_sizes() {
        let count = |name| LlamaConfig::published(name).unwrap().parameter_count();
        assert_eq!(count("llama-3.1-8b"), 8_030_261_248);
        assert_eq!(count("mistral-7b-v0.1"), 7_241_732_096);
        assert_eq!(count("deepseek-math-7b"), 6_910_365_696);
        assert_eq!(count("smollm2-135m"), 134_515_008);
        assert_eq!(count("qwen2.5-0.5b"), 494_032_768);
        assert_eq!(count("qwen2.5-7b"), 7_615_616_512);
        assert_eq!(count("qwen3-0.6b"), 596_049_920);
        assert_eq!(LlamaConfig::published("llama-huge"), None);
    }

    #[test]
    fn parameters_are_counted_without_a_model() {
        let small = LlamaConfig {
            vocab_size: 50,
            hidden_size: 12,
            intermediate_size: 20,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 6,
            ..LlamaConfig::published("mistral-7b-v0.1").unwrap()
        };
        let families = [LlamaFamily::Mistral, LlamaFamily::Qwen2, LlamaFamily::Qwen3];
        for (family, tie_word_embeddings) in families.into_iter().flat_map(|f| [(f, true), (f, false)]) {
            let config = LlamaConfig { family, tie_word_embeddings, ..small.clone() };
            let model = Llama::new(config.clone(), Kind::Float, Device::Cpu, 1).unwrap();
            let mut shapes: Vec<_> = model.parameters().named().iter().map(|(_, t)| t.size()).collect();
            let mut planned = config.parameter_shapes();
            shapes.sort();
            planned.sort();
            assert_eq!(planned, shapes);
            assert_eq!(config.parameter_count(), model.parameters().count());
        }
    }

    /// The self-distillation of the published settings: 64 problems with 16 answers of 1000 tokens.
    #[test]
    fn what_writing_takes_is_reckoned_by_hand() {
        let mistral = LlamaConfig::published("mistral-7b-v0.1").unwrap();
        // 32 layers, 8 key heads of 128, keys and values, 2 bytes.
        let token = 2 * 32 * 8 * 128 * 2;
        let bytes = mistral.decoding_bytes(64, 1000, 64 * 16, 1000, Kind::BFloat16);
        assert_eq!(bytes, (64_000 + 1_024_000) * token + 1024 * 16 * 32_000);
        assert!(bytes > 134_000_000_000);
    }

    #[test]
    fn costs_grow_as_they_should() {
        let llama = LlamaConfig::published("llama-2-7b").unwrap();
        let shape = BatchShape { rows: 1.0, source: 128.0, target: 128.0 };
        // Two operations for each parameter and token, of which the embedding has none.
        let thumb = 2.0 * (6.74e9 - 131e6) * 256.0;
        let flops = llama.forward_flops(shape);
        assert!((0.95..1.05).contains(&(flops / thumb)), "{}", flops / thumb);
        let twice = BatchShape { rows: 2.0, ..shape };
        assert_eq!(llama.forward_flops(twice), 2.0 * flops);
        let bytes = |bf16| llama.activation_bytes(shape, bf16);
        assert!(bytes(true) < bytes(false) && bytes(true) > 0.5 * bytes(false));
        assert_eq!(llama.activation_bytes(twice, true), 2.0 * bytes(true));
    }
}
