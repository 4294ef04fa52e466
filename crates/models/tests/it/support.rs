//! Tiny models and comparisons.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;
use ruminate_models::{T5, T5Config, TokenId};
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
