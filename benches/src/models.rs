//! The sizes of model that workloads run on.

use std::path::Path;

use anyhow::{Context, Result};
use ruminate_models::T5Config;
use serde_json::{Value, json};

/// Names of the sizes. `t5-mini` is for a quick look, `tiny` for tests.
pub const MODELS: [&str; 6] = ["tiny", "t5-mini", "t5-small", "t5-base", "t5-large", "flan-t5-base"];

/// The configuration of a size.
///
/// # Errors
/// When there is none of that name.
pub fn config(name: &str) -> Result<T5Config> {
    let size = |d_model: i64, d_ff: i64, layers: i64, heads: i64| {
        json!({
            "d_model": d_model, "d_kv": 64, "d_ff": d_ff, "num_layers": layers, "num_heads": heads,
            "vocab_size": 32128, "feed_forward_proj": "relu",
        })
    };
    let keys = match name {
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
        _ => Value::Null,
    };
    let Value::Object(keys) = keys else {
        return Err(anyhow::anyhow!("no model '{name}'")).context(format!("models: {}", MODELS.join(", ")));
    };
    Ok(T5Config::from_json(keys, Path::new(name))?)
}
