//! `config.json`: what is understood, and what is refused by name.

use std::path::Path;

use ruminate_models::{Error, FeedForward, Result, T5Config};
use serde_json::{Value, json};

use crate::support::{deep, encoder_only, gated, keys, keys_with, plain, refused};

fn read(changes: Value) -> Result<T5Config> {
    T5Config::from_json(keys_with(changes), Path::new("some/config.json"))
}

#[test]
fn each_refusal_names_its_key() {
    let refusals = [
        ("num_experts", json!({"num_experts": 8})),
        ("rope_theta", json!({"rope_theta": 1e4})),
        ("model_type", json!({"model_type": "llama"})),
        ("architectures", json!({"architectures": ["T5ForTokenClassification"]})),
        ("architectures", json!({"architectures": ["T5ForConditionalGeneration", "LlamaForCausalLM"]})),
        ("is_decoder", json!({"is_decoder": true})),
        ("feed_forward_proj", json!({"feed_forward_proj": "gated-silu"})),
        ("feed_forward_proj", json!({"feed_forward_proj": "gelu"})),
        ("dense_act_fn", json!({"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"})),
        ("dense_act_fn", json!({"feed_forward_proj": "gated-gelu", "dense_act_fn": "relu"})),
        ("is_gated_act", json!({"is_gated_act": true})),
        ("is_gated_act", json!({"feed_forward_proj": "gated-gelu", "is_gated_act": false})),
        ("pad_token_id", json!({"pad_token_id": 40})),
        ("pad_token_id", json!({"pad_token_id": -1})),
        ("eos_token_id", json!({"eos_token_id": 40})),
        ("decoder_start_token_id", json!({"decoder_start_token_id": 100})),
        ("vocab_size", json!({"vocab_size": 0})),
        ("d_model", json!({"d_model": 0})),
        ("d_kv", json!({"d_kv": -8})),
        ("d_ff", json!({"d_ff": 0})),
        ("num_layers", json!({"num_layers": 0})),
        ("num_decoder_layers", json!({"num_decoder_layers": 0})),
        ("num_heads", json!({"num_heads": 0})),
        ("num_heads", json!({"num_heads": i64::MAX})),
        ("relative_attention_num_buckets", json!({"relative_attention_num_buckets": 2})),
        ("relative_attention_num_buckets", json!({"relative_attention_num_buckets": 9})),
        ("relative_attention_max_distance", json!({"relative_attention_max_distance": 4})),
        ("dropout_rate", json!({"dropout_rate": 1.0})),
        ("dropout_rate", json!({"dropout_rate": -0.1})),
        // Of the wrong type.
        ("d_model", json!({"d_model": "16"})),
        ("num_heads", json!({"num_heads": 2.5})),
        ("vocab_size", json!({"vocab_size": 1e30})),
        ("dropout_rate", json!({"dropout_rate": "none"})),
        ("feed_forward_proj", json!({"feed_forward_proj": 1})),
        ("architectures", json!({"architectures": "T5ForConditionalGeneration"})),
        ("tie_word_embeddings", json!({"tie_word_embeddings": "yes"})),
        ("eos_token_id", json!({"eos_token_id": [1, 2]})),
    ];
    for (key, changes) in refusals {
        match read(changes.clone()) {
            Err(Error::Config { key: named, .. }) => assert_eq!(named, key, "{changes}"),
            other => panic!("{changes}: {other:?}"),
        }
        refused(read(changes), &[&format!("`{key}`")]);
    }
}

#[test]
fn a_missing_key_is_named() {
    for key in ["vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"] {
        let mut without = keys();
        without.remove(key);
        refused(T5Config::from_json(without, Path::new("config.json")), &[&format!("`{key}`"), "missing"]);
        refused(read(json!({key: null})), &[&format!("`{key}`"), "missing"]);
    }
}

#[test]
fn an_unknown_key_comes_with_its_value_and_file() {
    refused(read(json!({"num_experts": 8})), &["num_experts", "8", "some/config.json"]);
}

#[test]
fn null_stands_for_a_key_that_is_not_there() {
    let optional = [
        "num_decoder_layers",
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
        "torch_dtype",
        "rope_theta",
    ];
    for key in optional {
        let mut without = keys();
        // The default of one bucket setting does not go with just any value of the other.
        without.retain(|name, _| name != key && !name.starts_with("relative_attention"));
        let mut with = without.clone();
        with.insert(key.to_string(), Value::Null);
        let expected = T5Config::from_json(without, Path::new("config.json")).unwrap();
        assert_eq!(T5Config::from_json(with, Path::new("config.json")).unwrap(), expected, "{key}");
    }
}

#[test]
fn keys_that_change_nothing_are_accepted() {
    let harmless = json!({
        "_name_or_path": "t5-small", "transformers_version": "4.44.2", "torch_dtype": "float32", "dtype": "bfloat16",
        "n_positions": 512, "output_past": true, "use_cache": true, "gradient_checkpointing": false,
        "task_specific_params": {"summarization": {"num_beams": 4}}, "tokenizer_class": "T5Tokenizer",
        "num_beams": 1, "id2label": {"0": "LABEL_0"}, "return_dict": true, "classifier_dropout": 0.0,
    });
    assert_eq!(read(harmless).unwrap(), plain());
}

#[test]
fn defaults_are_those_of_hugging_face() {
    let few =
        json!({"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2});
    let config = T5Config::from_json(few.as_object().unwrap().clone(), Path::new("c")).unwrap();
    let expected = T5Config {
        vocab_size: 40,
        d_model: 16,
        d_kv: 8,
        d_ff: 24,
        num_layers: 2,
        num_decoder_layers: 2,
        num_heads: 2,
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
        eos_token_id: 1,
        decoder_start_token_id: 0,
    };
    assert_eq!(config, expected);
}

#[test]
fn spellings_of_tying_and_scaling() {
    let both = |changes| {
        let config = read(changes).unwrap();
        (config.tie_word_embeddings, config.scale_decoder_outputs)
    };
    assert_eq!(both(json!({})), (true, true));
    assert_eq!(both(json!({"tie_word_embeddings": false})), (false, false));
    assert_eq!(both(json!({"tie_word_embeddings": true, "scale_decoder_outputs": false})), (true, false));
    assert_eq!(both(json!({"tie_word_embeddings": false, "scale_decoder_outputs": true})), (false, true));
}

#[test]
fn the_decoder_starts_with_padding_unless_told_otherwise() {
    assert_eq!(read(json!({"pad_token_id": 3})).unwrap().decoder_start_token_id, 3);
    assert_eq!(
        read(json!({"pad_token_id": 3, "decoder_start_token_id": 2})).unwrap().decoder_start_token_id,
        2
    );
}

#[test]
fn encoders_are_recognised() {
    assert!(!encoder_only().is_encoder_decoder);
    assert!(
        !read(json!({"architectures": ["MT5EncoderModel"], "model_type": "mt5"})).unwrap().is_encoder_decoder
    );
    assert!(!read(json!({"is_encoder_decoder": false})).unwrap().is_encoder_decoder);
    assert!(read(json!({"architectures": ["T5Model"]})).unwrap().is_encoder_decoder);
}

#[test]
fn what_is_written_is_read() {
    let odd = T5Config {
        dropout_rate: 0.1 + 0.2,
        layer_norm_epsilon: 1.0 / 3.0 * 1e-6,
        initializer_factor: 0.05,
        scale_decoder_outputs: true,
        pad_token_id: 3,
        eos_token_id: 4,
        decoder_start_token_id: 5,
        ..gated()
    };
    for config in [plain(), gated(), deep(), encoder_only(), odd] {
        let Value::Object(json) = config.to_json() else { panic!("not an object") };
        assert_eq!(T5Config::from_json(json, Path::new("c")).unwrap(), config);
        let folder = tempfile::tempdir().unwrap();
        config.save(folder.path()).unwrap();
        assert_eq!(T5Config::open(folder.path()).unwrap(), config);
        assert_eq!(T5Config::open(&folder.path().join("config.json")).unwrap(), config);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    refused(T5Config::open(folder.path()), &["cannot read", "config.json"]);
    for text in ["", "[1]", "{\"a\": }", "\u{0}"] {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        refused(T5Config::open(folder.path()), &["config.json", "line"]);
    }
}
