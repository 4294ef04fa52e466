//! `config.json` of T5.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::{Keys, UNIMPLEMENTED, Unimplemented, end_tokens_json, refuse};
use crate::network::NetworkConfig;
use crate::{Result, TokenId};

/// The feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForward {
    /// T5 1.0: `wo(relu(wi(x)))`.
    Relu,
    /// T5 1.1, Flan: `wo(gelu_tanh(wi_0(x)) * wi_1(x))`.
    GatedGelu,
    /// UL2: `wo(silu(wi_0(x)) * wi_1(x))`.
    GatedSilu,
}

/// What `config.json` says about a T5; the field names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    /// Rows of the embedding; at least the size of the tokenizer.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub d_model: i64,
    /// Width of one attention head. `num_heads * d_kv` may differ from `d_model`.
    pub d_kv: i64,
    /// Width of the feed-forward layer.
    pub d_ff: i64,
    /// Encoder blocks.
    pub num_layers: i64,
    /// Decoder blocks.
    pub num_decoder_layers: i64,
    /// Attention heads.
    pub num_heads: i64,
    /// Buckets of the relative position bias.
    pub relative_attention_num_buckets: i64,
    /// Distance from which on all positions share the last bucket.
    pub relative_attention_max_distance: i64,
    /// Dropout rate in training mode.
    pub dropout_rate: f64,
    /// Added to the mean square in the norms.
    pub layer_norm_epsilon: f64,
    /// Scale of the standard deviations of a new model.
    pub initializer_factor: f64,
    /// The feed-forward layer.
    pub feed_forward: FeedForward,
    /// Whether the output matrix is the embedding (1.0) or a matrix of its own (1.1).
    pub tie_word_embeddings: bool,
    /// Whether the decoder's output is multiplied by `d_model^-0.5` before the output matrix.
    pub scale_decoder_outputs: bool,
    /// Whether there is a decoder; without one the model only encodes.
    pub is_encoder_decoder: bool,
    /// Fills up rows, and stands first in the decoder.
    pub pad_token_id: TokenId,
    /// The tokens that end a text. Without any, every text goes on to the limit of its length.
    pub eos_token_ids: Vec<TokenId>,
    /// The decoder's first input.
    pub decoder_start_token_id: TokenId,
}

/// The keys that transformers reads for these model types and that are not implemented here.
const UNIMPLEMENTED_HERE: [Unimplemented; 2] = [
    // A decoder alone.
    ("is_decoder", |value| *value == false),
    // Whether a token of the decoder sees those behind it; a missing key stands for yes.
    ("is_causal", |value| *value == true),
];

impl T5Config {
    /// Reads `config.json` of a model folder, or a configuration file of any name; see [`NetworkConfig::open`].
    ///
    /// # Errors
    /// Those of [`NetworkConfig::open`].
    pub fn open(path: &Path) -> Result<Self> {
        NetworkConfig::open(path)
    }

    /// Checks and reads the keys of a `config.json`; see [`NetworkConfig::from_json`].
    ///
    /// # Errors
    /// Those of [`NetworkConfig::from_json`].
    pub fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self> {
        let mut keys = Keys::new(json, path);
        let kind: Option<String> = keys.nullable("model_type", None)?;
        if let Some(kind) = kind.as_deref().filter(|kind| !["t5", "mt5"].contains(kind)) {
            return Err(refuse("model_type", format!("`{kind}` is not a T5 (`t5` or `mt5`)")));
        }
        let mt5 = kind.as_deref() == Some("mt5");
        let architectures: Vec<String> = keys.nullable("architectures", None)?.unwrap_or_default();
        if let Some(other) = architectures.iter().find(|a| !ARCHITECTURES.contains(&a.as_str())) {
            let reason = format!("`{other}` is not implemented; known are {}", ARCHITECTURES.join(", "));
            return Err(refuse("architectures", reason));
        }
        let encoder_only = architectures.iter().any(|a| a.ends_with("EncoderModel"));
        keys.unimplemented(&UNIMPLEMENTED)?;
        keys.unimplemented(&UNIMPLEMENTED_HERE)?;
        for (alias, key) in [
            ("hidden_size", "d_model"),
            ("num_attention_heads", "num_heads"),
            ("num_hidden_layers", "num_layers"),
            ("head_dim", "d_kv"),
        ] {
            keys.alias(alias, key)?;
        }
        let feed_forward = FeedForward::read(&mut keys, mt5)?;
        let tied = keys.nullable("tie_word_embeddings", None)?.unwrap_or(true);
        // Where the key is missing, tied embeddings are scaled; a null is no yes.
        let scaled = match keys.take("scale_decoder_outputs") {
            None => tied,
            Some(Value::Null) => false,
            Some(Value::Bool(scaled)) => scaled,
            Some(other) => {
                return Err(refuse("scale_decoder_outputs", format!("is {other}, not true or false")));
            }
        };
        let num_layers = keys.required("num_layers")?;
        let is_encoder_decoder = !encoder_only & keys.or("is_encoder_decoder", true)?;
        let pad_token_id = match keys.nullable("pad_token_id", Some(0))? {
            Some(id) => id,
            // An encoder's padding is invisible.
            None if !is_encoder_decoder => 0,
            None => {
                let reason = "is null, but the decoder begins with the padding token; name it";
                return Err(refuse("pad_token_id", reason.into()));
            }
        };
        let config = Self {
            vocab_size: keys.required("vocab_size")?,
            d_model: keys.required("d_model")?,
            d_kv: keys.required("d_kv")?,
            d_ff: keys.required("d_ff")?,
            num_layers,
            num_decoder_layers: keys.nullable("num_decoder_layers", None)?.unwrap_or(num_layers),
            num_heads: keys.required("num_heads")?,
            relative_attention_num_buckets: keys.or("relative_attention_num_buckets", 32)?,
            relative_attention_max_distance: keys.or("relative_attention_max_distance", 128)?,
            dropout_rate: keys.or("dropout_rate", 0.1)?,
            layer_norm_epsilon: keys.or("layer_norm_epsilon", 1e-6)?,
            initializer_factor: keys.or("initializer_factor", 1.0)?,
            feed_forward,
            tie_word_embeddings: tied,
            // transformers 5 always writes `tie_word_embeddings: true` and puts the truth here. It never scales an mT5.
            scale_decoder_outputs: scaled && !mt5,
            is_encoder_decoder,
            pad_token_id,
            eos_token_ids: keys.end_tokens(&[1])?,
            decoder_start_token_id: keys.or("decoder_start_token_id", pad_token_id)?,
        };
        config.check()?;
        keys.finish();
        Ok(config)
    }
}

const ARCHITECTURES: [&str; 7] = [
    "T5ForConditionalGeneration",
    "T5WithLMHeadModel",
    "T5Model",
    "T5EncoderModel",
    "MT5ForConditionalGeneration",
    "MT5Model",
    "MT5EncoderModel",
];

impl FeedForward {
    fn read(keys: &mut Keys, mt5: bool) -> Result<Self> {
        let default = if mt5 { "gated-gelu" } else { "relu" };
        let projection: String = keys.or("feed_forward_proj", default.into())?;
        let (feed_forward, activation, gated) = match projection.as_str() {
            "relu" => (Self::Relu, "relu", false),
            "gated-gelu" => (Self::GatedGelu, "gelu_new", true),
            "gated-silu" => (Self::GatedSilu, "silu", true),
            other => {
                let reason =
                    format!("`{other}` is not implemented; known are `relu`, `gated-gelu` and `gated-silu`");
                return Err(refuse("feed_forward_proj", reason));
            }
        };
        // transformers writes these two beside feed_forward_proj; a contradiction means a hand-made file.
        let contradicts = |key| Err(refuse(key, format!("contradicts feed_forward_proj `{projection}`")));
        if keys.optional::<String>("dense_act_fn")?.is_some_and(|a| a != activation) {
            return contradicts("dense_act_fn");
        }
        if keys.optional::<bool>("is_gated_act")?.is_some_and(|g| g != gated) {
            return contradicts("is_gated_act");
        }
        Ok(feed_forward)
    }
}

impl NetworkConfig for T5Config {
    fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self> {
        Self::from_json(json, path)
    }

    fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_decoder_layers", self.num_decoder_layers),
            ("num_heads", self.num_heads),
        ];
        // So that products of two sizes are numbers, too.
        const LARGEST: i64 = i32::MAX as i64;
        if let Some((key, value)) = sizes.into_iter().find(|(_, value)| !(1..=LARGEST).contains(value)) {
            return Err(refuse(key, format!("is {value}, but must be between 1 and {LARGEST}")));
        }
        if self.relative_attention_num_buckets < 4 || self.relative_attention_num_buckets % 2 != 0 {
            let reason =
                format!("is {}, but must be even and at least 4", self.relative_attention_num_buckets);
            return Err(refuse("relative_attention_num_buckets", reason));
        }
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets / 2 {
            let reason =
                format!("is {}, but must exceed half the buckets", self.relative_attention_max_distance);
            return Err(refuse("relative_attention_max_distance", reason));
        }
        if !(0.0..1.0).contains(&self.dropout_rate) {
            return Err(refuse("dropout_rate", format!("is {}, but must be in [0, 1)", self.dropout_rate)));
        }
        let ids =
            [("pad_token_id", self.pad_token_id), ("decoder_start_token_id", self.decoder_start_token_id)];
        let ends = self.eos_token_ids.iter().map(|&id| ("eos_token_id", id));
        match ids.into_iter().chain(ends).find(|&(_, id)| id < 0 || id >= self.vocab_size) {
            Some((key, id)) => {
                Err(refuse(key, format!("is {id}, outside the vocabulary of {}", self.vocab_size)))
            }
            None => Ok(()),
        }
    }

    fn to_json(&self) -> Value {
        let architecture =
            if self.is_encoder_decoder { "T5ForConditionalGeneration" } else { "T5EncoderModel" };
        json!({
            "architectures": [architecture],
            "model_type": "t5",
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "d_kv": self.d_kv,
            "d_ff": self.d_ff,
            "num_layers": self.num_layers,
            "num_decoder_layers": self.num_decoder_layers,
            "num_heads": self.num_heads,
            "relative_attention_num_buckets": self.relative_attention_num_buckets,
            "relative_attention_max_distance": self.relative_attention_max_distance,
            "dropout_rate": self.dropout_rate,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_factor": self.initializer_factor,
            "feed_forward_proj": match self.feed_forward {
                FeedForward::Relu => "relu",
                FeedForward::GatedGelu => "gated-gelu",
                FeedForward::GatedSilu => "gated-silu",
            },
            "tie_word_embeddings": self.tie_word_embeddings,
            "scale_decoder_outputs": self.scale_decoder_outputs,
            "is_encoder_decoder": self.is_encoder_decoder,
            "pad_token_id": self.pad_token_id,
            "eos_token_id": end_tokens_json(&self.eos_token_ids),
            "decoder_start_token_id": self.decoder_start_token_id,
        })
    }

    fn has_encoder(&self) -> bool {
        true
    }

    fn pad_token_id(&self) -> TokenId {
        self.pad_token_id
    }

    fn eos_token_ids(&self) -> &[TokenId] {
        &self.eos_token_ids
    }

    fn set_eos_token_ids(&mut self, ids: Vec<TokenId>) {
        self.eos_token_ids = ids;
    }

    fn set_vocab_size(&mut self, vocab_size: i64) {
        self.vocab_size = vocab_size;
    }
}
