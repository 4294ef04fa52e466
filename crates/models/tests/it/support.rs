//! Tiny models and comparisons.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;
use ruminate_models::{Llama, LlamaConfig, T5, T5Config, TokenId};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

/// Largest difference of float32 numbers that are to be the same.
pub(crate) const CLOSE: f64 = 1e-5;
/// Every tiny model has this many embeddings.
pub(crate) const VOCAB: TokenId = 40;

/// The keys of a small T5 1.0: relu, shared embeddings. The few buckets make short rows reach the last one.
pub(crate) fn keys() -> Map<String, Value> {
    let keys = json!({
        "vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10, "dropout_rate": 0.0,
    });
    keys.as_object().unwrap().clone()
}

/// [`keys`] with some replaced.
pub(crate) fn keys_with(changes: Value) -> Map<String, Value> {
    let mut keys = keys();
    keys.extend(changes.as_object().unwrap().clone());
    keys
}

pub(crate) fn config(changes: Value) -> T5Config {
    T5Config::from_json(keys_with(changes), Path::new("config.json")).unwrap()
}

/// T5 1.0.
pub(crate) fn plain() -> T5Config {
    config(json!({}))
}

/// T5 1.1: gated, an output matrix of its own, heads that do not add up to the width.
pub(crate) fn gated() -> T5Config {
    config(
        json!({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "d_kv": 6, "num_heads": 3}),
    )
}

/// More decoder than encoder blocks.
pub(crate) fn deep() -> T5Config {
    config(json!({"num_layers": 1, "num_decoder_layers": 3}))
}

/// Only the encoder.
pub(crate) fn encoder_only() -> T5Config {
    config(json!({"architectures": ["T5EncoderModel"]}))
}

/// The kinds of network that must all behave alike.
pub(crate) fn kinds() -> [(&'static str, T5); 3] {
    [("plain", model(plain())), ("gated", model(gated())), ("deep", model(deep()))]
}

/// The keys of a small Llama, with some replaced: four query heads, each with keys of its own.
pub(crate) fn llama_keys(changes: Value) -> Map<String, Value> {
    let keys = json!({
        "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "eos_token_id": 2, "initializer_range": 0.3,
    });
    let mut keys = keys.as_object().unwrap().clone();
    keys.extend(changes.as_object().unwrap().clone());
    keys
}

pub(crate) fn llama_config(changes: Value) -> LlamaConfig {
    LlamaConfig::from_json(llama_keys(changes), Path::new("config.json")).unwrap()
}

pub(crate) fn llama(changes: Value) -> Llama {
    let _generator = generator();
    let llama = Llama::new(llama_config(changes), Kind::Float, Device::Cpu, 7).unwrap();
    // Biases begin at zero, where they could not be missed.
    for (i, (_, bias)) in llama.parameters().iter().filter(|(name, _)| name.ends_with(".bias")).enumerate() {
        let values = Tensor::arange(bias.numel() as i64, (Kind::Float, Device::Cpu));
        tch::no_grad(|| bias.shallow_clone().copy_(&((values + i as i64).sin() * 0.3)));
    }
    llama
}

/// The kinds of network that must all behave alike: with and without shared keys, one or two matrices for tokens, rotary
/// scaling, a window shorter than most rows in all layers or in the last, heads that do not add up to the width, biases and norms of
/// heads.
pub(crate) fn llama_changes() -> [(&'static str, Value); 6] {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    });
    [
        ("llama", json!({})),
        ("tied", json!({"num_key_value_heads": 2, "tie_word_embeddings": true, "rope_theta": 5e5})),
        ("scaled", json!({"num_key_value_heads": 1, "rope_scaling": scaling})),
        (
            "mistral",
            json!({"model_type": "mistral", "num_key_value_heads": 2, "head_dim": 6, "sliding_window": 5}),
        ),
        (
            "qwen2",
            json!({"model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": true,
                   "sliding_window": 5, "max_window_layers": 1}),
        ),
        (
            "qwen3",
            json!({"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 6,
                   "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}}),
        ),
    ]
}

pub(crate) fn llamas() -> [(&'static str, Llama); 6] {
    llama_changes().map(|(kind, changes)| (kind, llama(changes)))
}

/// Held by whoever needs libtorch's generator for itself: it is one for all tests of the process.
pub(crate) fn generator() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn model(config: T5Config) -> T5 {
    model_of(config, 7)
}

pub(crate) fn model_of(config: T5Config, seed: i64) -> T5 {
    let _generator = generator();
    T5::new(config, Kind::Float, Device::Cpu, seed).unwrap()
}

/// The bundled model folder, which has a tokenizer and no weights.
pub(crate) fn world() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/world/t5")
}

/// Property tests with a model in them are slow: fewer cases than the default, and always the same ones, so that a
/// rounding error at a border cannot come and go.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(7),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

pub(crate) fn ids(rows: &[Vec<TokenId>]) -> Tensor {
    Tensor::from_slice2(rows)
}

pub(crate) fn matrix(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.try_into().unwrap()
}

/// Whether shapes agree and no number differs by more than `tolerance`, for numbers above 1 in relation to their size:
/// float32 has no more digits than that. NaN differs from everything.
pub(crate) fn close(a: &Tensor, b: &Tensor, tolerance: f64) -> Result<(), String> {
    if a.size() != b.size() {
        return Err(format!("shapes {:?} and {:?}", a.size(), b.size()));
    }
    let size = b.abs().clamp_min(1.0);
    let difference = if a.numel() == 0 { 0.0 } else { ((a - b).abs() / size).max().double_value(&[]) };
    if difference <= tolerance { Ok(()) } else { Err(format!("differ by {difference:e}:\n{a}\n{b}")) }
}

#[track_caller]
pub(crate) fn assert_close(a: &Tensor, b: &Tensor, what: &str) {
    if let Err(reason) = close(a, b, CLOSE) {
        panic!("{what}: {reason}");
    }
}

#[track_caller]
pub(crate) fn assert_close_rows(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    assert_close(&Tensor::from_slice(a), &Tensor::from_slice(b), what);
}

/// Parameters with the same names and the same bits.
#[track_caller]
pub(crate) fn assert_same_parameters(a: &T5, b: &T5) {
    let names = |t5: &T5| t5.parameters().iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(a), names(b));
    for ((name, x), (_, y)) in a.parameters().iter().zip(b.parameters().iter()) {
        assert!(x.equal(y), "{name}");
    }
}

/// The message of an error with those of its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The message of a result that must be an error, which must hold all of `parts`.
#[track_caller]
pub(crate) fn refused<T>(result: ruminate_models::Result<T>, parts: &[&str]) -> String {
    let Err(error) = result else { panic!("accepted, though it should name {parts:?}") };
    let text = chain(&error);
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    text
}

/// Names of the entries of a folder, sorted.
pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
