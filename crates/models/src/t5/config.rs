//! `config.json` of T5.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::checkpoint::{read_json, write_json};
use crate::{Error, Result, TokenId};

/// The feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForward {
    /// T5 1.0: `wo(relu(wi(x)))`.
    Relu,
    /// T5 1.1, Flan: `wo(gelu_tanh(wi_0(x)) * wi_1(x))`.
    GatedGelu,
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
    /// Ends a sequence.
    pub eos_token_id: TokenId,
    /// The decoder's first input.
    pub decoder_start_token_id: TokenId,
}

/// The keys that describe the model, as they stand in the file.
#[derive(Deserialize)]
struct File {
    vocab_size: i64,
    d_model: i64,
    d_kv: i64,
    d_ff: i64,
    num_layers: i64,
    num_decoder_layers: Option<i64>,
    num_heads: i64,
    #[serde(default = "default_buckets")]
    relative_attention_num_buckets: i64,
    #[serde(default = "default_distance")]
    relative_attention_max_distance: i64,
    #[serde(default = "default_dropout")]
    dropout_rate: f64,
    #[serde(default = "default_epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "default_factor")]
    initializer_factor: f64,
    feed_forward_proj: Option<String>,
    dense_act_fn: Option<String>,
    is_gated_act: Option<bool>,
    tie_word_embeddings: Option<bool>,
    scale_decoder_outputs: Option<bool>,
    is_encoder_decoder: Option<bool>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    pad_token_id: TokenId,
    #[serde(default = "default_eos")]
    eos_token_id: TokenId,
    decoder_start_token_id: Option<TokenId>,
    model_type: Option<String>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
}

fn default_buckets() -> i64 {
    32
}
fn default_distance() -> i64 {
    128
}
fn default_dropout() -> f64 {
    0.1
}
fn default_epsilon() -> f64 {
    1e-6
}
fn default_factor() -> f64 {
    1.0
}
fn default_eos() -> TokenId {
    1
}

/// Keys of [`File`] that have no default.
const REQUIRED: [&str; 6] = ["vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"];

/// Keys of [`File`].
const KNOWN: [&str; 26] = [
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "dropout_rate",
    "layer_norm_epsilon",
    "initializer_factor",
    "feed_forward_proj",
    "dense_act_fn",
    "is_gated_act",
    "tie_word_embeddings",
    "scale_decoder_outputs",
    "is_encoder_decoder",
    "is_decoder",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "model_type",
    "architectures",
    // Written into every file by transformers; neither changes what the model computes.
    "transformers_version",
    "torch_dtype",
];

/// Keys that Hugging Face writes and that do not change the network: bookkeeping, generation defaults (ours come
/// from the caller), and settings of heads that the accepted architectures do not have.
const HARMLESS: [&str; 44] = [
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation_autoset",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "n_positions",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "use_cache",
];

impl T5Config {
    /// Reads `config.json` of a model folder, or a configuration file of any name.
    ///
    /// # Errors
    /// When the file cannot be read, or asks for something that this crate does not know.
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
        Self::from_json(read_json(&file)?, &file)
    }

    /// Checks and reads the keys of a `config.json`; `path` is for error messages.
    ///
    /// # Errors
    /// When a key is missing, unknown, or has a value that this crate does not implement.
    pub fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self> {
        for (key, value) in &json {
            let known = KNOWN.contains(&key.as_str()) || HARMLESS.contains(&key.as_str()) || value.is_null();
            if !known {
                let reason = format!(
                    "unknown option {value}; it may change what the model computes, so the model is \
                                      not loaded. If it has no effect, take it out of {}",
                    path.display()
                );
                return Err(refuse(key, reason));
            }
        }
        // A key without value is as good as none.
        let json: Map<String, Value> = json.into_iter().filter(|(_, value)| !value.is_null()).collect();
        if let Some(key) = REQUIRED.into_iter().find(|&key| !json.contains_key(key)) {
            return Err(refuse(key, format!("is missing in {}", path.display())));
        }
        let file: File = serde_path_to_error::deserialize(Value::Object(json)).map_err(|error| {
            let key = error.path().iter().next().map(ToString::to_string);
            refuse(&key.unwrap_or_default(), error.into_inner().to_string())
        })?;
        file.check()
    }

    /// Writes `config.json` so that transformers 4 and 5 read the same model.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn save(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join("config.json"), &self.to_json())
    }

    /// The keys of `config.json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
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
            },
            "tie_word_embeddings": self.tie_word_embeddings,
            "scale_decoder_outputs": self.scale_decoder_outputs,
            "is_encoder_decoder": self.is_encoder_decoder,
            "pad_token_id": self.pad_token_id,
            "eos_token_id": self.eos_token_id,
            "decoder_start_token_id": self.decoder_start_token_id,
        })
    }
}

impl File {
    fn check(self) -> Result<T5Config> {
        if let Some(kind) = &self.model_type
            && !["t5", "mt5"].contains(&kind.as_str())
        {
            return Err(refuse("model_type", format!("`{kind}` is not a T5 (`t5` or `mt5`)")));
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
        let architectures = self.architectures.unwrap_or_default();
        if let Some(other) = architectures.iter().find(|a| !ARCHITECTURES.contains(&a.as_str())) {
            let reason = format!("`{other}` is not implemented; known are {}", ARCHITECTURES.join(", "));
            return Err(refuse("architectures", reason));
        }
        if self.is_decoder {
            return Err(refuse("is_decoder", "a T5 that is only a decoder is not implemented".into()));
        }
        let encoder_only = architectures.iter().any(|a| a.ends_with("EncoderModel"));
        let projection = self.feed_forward_proj.as_deref().unwrap_or("relu");
        let feed_forward = match projection {
            "relu" => FeedForward::Relu,
            "gated-gelu" => FeedForward::GatedGelu,
            other => {
                let reason = format!("`{other}` is not implemented; known are `relu` and `gated-gelu`");
                return Err(refuse("feed_forward_proj", reason));
            }
        };
        // transformers writes these two beside feed_forward_proj; a contradiction means a hand-made file.
        let (activation, gated) = match feed_forward {
            FeedForward::Relu => ("relu", false),
            FeedForward::GatedGelu => ("gelu_new", true),
        };
        if self.dense_act_fn.as_deref().is_some_and(|a| a != activation) {
            return Err(refuse("dense_act_fn", format!("contradicts feed_forward_proj `{projection}`")));
        }
        if self.is_gated_act.is_some_and(|g| g != gated) {
            return Err(refuse("is_gated_act", format!("contradicts feed_forward_proj `{projection}`")));
        }
        let tied = self.tie_word_embeddings.unwrap_or(true);
        let config = T5Config {
            vocab_size: self.vocab_size,
            d_model: self.d_model,
            d_kv: self.d_kv,
            d_ff: self.d_ff,
            num_layers: self.num_layers,
            num_decoder_layers: self.num_decoder_layers.unwrap_or(self.num_layers),
            num_heads: self.num_heads,
            relative_attention_num_buckets: self.relative_attention_num_buckets,
            relative_attention_max_distance: self.relative_attention_max_distance,
            dropout_rate: self.dropout_rate,
            layer_norm_epsilon: self.layer_norm_epsilon,
            initializer_factor: self.initializer_factor,
            feed_forward,
            tie_word_embeddings: tied,
            // transformers 5 always writes `tie_word_embeddings: true` and puts the truth here.
            scale_decoder_outputs: self.scale_decoder_outputs.unwrap_or(tied),
            is_encoder_decoder: !encoder_only && self.is_encoder_decoder.unwrap_or(true),
            pad_token_id: self.pad_token_id,
            eos_token_id: self.eos_token_id,
            decoder_start_token_id: self.decoder_start_token_id.unwrap_or(self.pad_token_id),
        };
        config.check_sizes()?;
        Ok(config)
    }
}

impl T5Config {
    fn check_sizes(&self) -> Result<()> {
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
        let ids = [
            ("pad_token_id", self.pad_token_id),
            ("eos_token_id", self.eos_token_id),
            ("decoder_start_token_id", self.decoder_start_token_id),
        ];
        match ids.into_iter().find(|&(_, id)| id < 0 || id >= self.vocab_size) {
            Some((key, id)) => {
                Err(refuse(key, format!("is {id}, outside the vocabulary of {}", self.vocab_size)))
            }
            None => Ok(()),
        }
    }
}

fn refuse(key: &str, reason: String) -> Error {
    Error::Config { key: key.to_string(), reason }
}
