//! The sizes of model that workloads run on.

use std::path::Path;

use anyhow::{Context, Result};
use ruminate_models::{Generate, Llama, LlamaConfig, Policy, ScoreChoices, T5, T5Config};
use serde_json::{Value, json};
use tch::{Device, Kind};

/// The architecture of a model.
#[derive(Debug, Clone)]
pub enum Shape {
    /// Reads prompts in its encoder.
    T5(T5Config),
    /// Reads prompts and targets in one row.
    Llama(LlamaConfig),
}

impl Shape {
    pub(crate) fn family(&self) -> &'static str {
        match self {
            Self::T5(_) => "T5",
            Self::Llama(_) => "Llama",
        }
    }

    pub(crate) fn vocab_size(&self) -> i64 {
        match self {
            Self::T5(config) => config.vocab_size,
            Self::Llama(config) => config.vocab_size,
        }
    }

    pub(crate) fn hidden_size(&self) -> i64 {
        match self {
            Self::T5(config) => config.d_model,
            Self::Llama(config) => config.hidden_size,
        }
    }

    /// The dropout rate in training.
    #[must_use]
    pub fn dropout(&self) -> f64 {
        match self {
            Self::T5(config) => config.dropout_rate,
            Self::Llama(config) => config.attention_dropout,
        }
    }
}

/// What workloads ask of a model.
pub(crate) trait Model: Policy + Generate + ScoreChoices + Sized + 'static {
    /// With random weights, always the same.
    fn build(shape: &Shape, kind: Kind, device: Device) -> Result<Self>;
}

impl Model for T5 {
    fn build(shape: &Shape, kind: Kind, device: Device) -> Result<Self> {
        let Shape::T5(config) = shape else { anyhow::bail!("a {} is no T5", shape.family()) };
        Ok(Self::new(config.clone(), kind, device, 1)?)
    }
}

impl Model for Llama {
    fn build(shape: &Shape, kind: Kind, device: Device) -> Result<Self> {
        let Shape::Llama(config) = shape else { anyhow::bail!("a {} is no Llama", shape.family()) };
        Ok(Self::new(config.clone(), kind, device, 1)?)
    }
}

/// Names of the sizes. The minis are for a quick look, the tiny ones for tests.
pub const MODELS: [&str; 10] = [
    "tiny",
    "t5-mini",
    "t5-small",
    "t5-base",
    "t5-large",
    "flan-t5-base",
    "llama-tiny",
    "llama-mini",
    "llama-60m",
    "llama-1b",
];

/// The architecture of a size.
///
/// # Errors
/// When there is none of that name.
pub fn shape(name: &str) -> Result<Shape> {
    let keys = t5(name).or_else(|| llama(name));
    let Some(Value::Object(keys)) = keys else {
        return Err(anyhow::anyhow!("no model '{name}'")).context(format!("models: {}", MODELS.join(", ")));
    };
    Ok(match keys.contains_key("d_model") {
        true => Shape::T5(T5Config::from_json(keys, Path::new(name))?),
        false => Shape::Llama(LlamaConfig::from_json(keys, Path::new(name))?),
    })
}

fn t5(name: &str) -> Option<Value> {
    let size = |d_model: i64, d_ff: i64, layers: i64, heads: i64| {
        json!({
            "d_model": d_model, "d_kv": 64, "d_ff": d_ff, "num_layers": layers, "num_heads": heads,
            "vocab_size": 32128, "feed_forward_proj": "relu",
        })
    };
    Some(match name {
        "tiny" => {
            json!({"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 50})
        }
        "t5-mini" => size(256, 1024, 2, 4),
        "t5-small" => size(512, 2048, 6, 8),
        "t5-base" => size(768, 3072, 12, 12),
        "t5-large" => size(1024, 4096, 24, 16),
        "flan-t5-base" => {
            let mut keys = size(768, 2048, 12, 12);
            keys["feed_forward_proj"] = "gated-gelu".into();
            keys["tie_word_embeddings"] = false.into();
            keys
        }
        _ => return None,
    })
}

fn llama(name: &str) -> Option<Value> {
    let size = |hidden: i64, intermediate: i64, layers: i64, heads: i64, key_value_heads: i64| {
        json!({
            "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": key_value_heads, "vocab_size": 32000,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        })
    };
    Some(match name {
        "llama-tiny" => {
            let mut keys = size(16, 32, 1, 4, 2);
            keys["vocab_size"] = 50.into();
            keys
        }
        "llama-mini" => size(256, 688, 2, 4, 4),
        "llama-60m" => size(512, 1376, 8, 8, 8),
        "llama-1b" => {
            let mut keys = size(2048, 8192, 16, 32, 8);
            keys["vocab_size"] = 128_256.into();
            keys["rope_theta"] = 500_000.0.into();
            keys["tie_word_embeddings"] = true.into();
            keys
        }
        _ => return None,
    })
}
