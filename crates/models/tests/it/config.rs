//! `config.json`: what is understood, and what is refused by name.

use std::path::Path;

use ruminate_models::{Error, FeedForward, NetworkConfig, Result, T5Config};
use serde_json::{Value, json};

use crate::support::{deep, encoder_only, gated, keys, keys_with, plain, refused};

fn read(changes: Value) -> Result<T5Config> {
    T5Config::from_json(keys_with(changes), Path::new("some/config.json"))
}

#[test]
fn each_refusal_names_its_key() {
    let refusals = [
        ("quantization_config", json!({"quantization_config": {"load_in_8bit": true}})),
        ("per_layer_config", json!({"per_layer_config": {"0": {"d_ff": 8}}})),
        ("is_causal", json!({"is_causal": false})),
        ("hidden_size", json!({"hidden_size": 17})),
        ("num_hidden_layers", json!({"num_hidden_layers": 1})),
        ("scale_decoder_outputs", json!({"scale_decoder_outputs": "no"})),
        ("model_type", json!({"model_type": "llama"})),
        ("architectures", json!({"architectures": ["T5ForTokenClassification"]})),
        ("architectures", json!({"architectures": ["T5ForConditionalGeneration", "LlamaForCausalLM"]})),
        ("is_decoder", json!({"is_decoder": true})),
        ("feed_forward_proj", json!({"feed_forward_proj": "gated-swish"})),
        ("feed_forward_proj", json!({"feed_forward_proj": "gelu"})),
        ("dense_act_fn", json!({"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"})),
        ("dense_act_fn", json!({"feed_forward_proj": "gated-gelu", "dense_act_fn": "relu"})),
        ("dense_act_fn", json!({"feed_forward_proj": "gated-silu", "dense_act_fn": "gelu_new"})),
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
        ("eos_token_id", json!({"eos_token_id": [1, 40]})),
        ("eos_token_id", json!({"eos_token_id": []})),
        ("eos_token_id", json!({"eos_token_id": "</s>"})),
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
fn a_key_that_is_not_implemented_comes_with_its_value_and_file() {
    refused(read(json!({"is_decoder": true})), &["is_decoder", "true", "some/config.json"]);
}

#[test]
fn null_is_no_missing_key() {
    assert!(read(json!({"eos_token_id": null})).unwrap().eos_token_ids.is_empty());
    let layers = read(json!({"num_decoder_layers": null})).unwrap();
    assert_eq!(layers.num_decoder_layers, layers.num_layers);
    // Scaled unless it says no; but a null is no yes where it says so itself.
    assert!(read(json!({"tie_word_embeddings": null})).unwrap().scale_decoder_outputs);
    assert!(!read(json!({"scale_decoder_outputs": null})).unwrap().scale_decoder_outputs);
    // A decoder begins with the padding token; an encoder can do without.
    refused(read(json!({"pad_token_id": null})), &["`pad_token_id`", "null"]);
    let encoder = json!({"architectures": ["T5EncoderModel"], "pad_token_id": null});
    assert_eq!(read(encoder).unwrap().pad_token_id, 0);
    for key in ["model_type", "architectures", "torch_dtype", "rope_theta"] {
        assert_eq!(read(json!({key: null})).unwrap(), plain(), "{key}");
    }
    // Keys for which transformers knows no null.
    for key in [
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        "dropout_rate",
        "layer_norm_epsilon",
        "initializer_factor",
        "feed_forward_proj",
        "dense_act_fn",
        "is_gated_act",
        "is_encoder_decoder",
        "decoder_start_token_id",
    ] {
        refused(read(json!({key: null})), &[&format!("`{key}`"), "null", "leave it out"]);
    }
}

#[test]
fn other_names_of_transformers_are_read() {
    let mut keys = keys();
    for (alias, key) in
        [("hidden_size", "d_model"), ("head_dim", "d_kv"), ("num_attention_heads", "num_heads")]
    {
        let value = keys.remove(key).unwrap();
        keys.insert(alias.into(), value);
    }
    assert_eq!(T5Config::from_json(keys, Path::new("c")).unwrap(), plain());
}

#[test]
fn an_mt5_has_defaults_of_its_own() {
    let mt5 = read(json!({"model_type": "mt5", "tie_word_embeddings": false})).unwrap();
    assert_eq!((mt5.feed_forward, mt5.scale_decoder_outputs), (FeedForward::GatedGelu, false));
    assert!(!read(json!({"model_type": "mt5"})).unwrap().scale_decoder_outputs, "it is never scaled");
}

#[test]
fn end_tokens_come_as_a_list_and_from_the_generation_config() {
    assert_eq!(read(json!({"eos_token_id": [1, 2]})).unwrap().eos_token_ids, [1, 2]);
    let folder = tempfile::tempdir().unwrap();
    plain().save(folder.path()).unwrap();
    let open = |text: &str| {
        std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
        T5Config::open(folder.path()).map(|config| config.eos_token_ids)
    };
    assert_eq!(open(r#"{"eos_token_id": [3, 7]}"#).unwrap(), [3, 7]);
    assert_eq!(open(r#"{"do_sample": true}"#).unwrap(), [1], "it names none");
    assert!(open("\u{feff}{\"eos_token_id\": null}").unwrap().is_empty());
    refused(open(r#"{"eos_token_id": 40}"#), &["eos_token_id", "40"]);
    refused(open(r#"{"eos_token_id": []}"#), &["eos_token_id", "generation_config.json"]);
    // A file that is named by itself stands alone.
    assert_eq!(T5Config::open(&folder.path().join("config.json")).unwrap().eos_token_ids, [1]);
}

#[test]
fn keys_that_change_nothing_are_accepted() {
    let harmless = json!({
        "_name_or_path": "t5-small", "transformers_version": "4.44.2", "torch_dtype": "float32", "dtype": "bfloat16",
        "n_positions": 512, "output_past": true, "use_cache": true, "gradient_checkpointing": false,
        "task_specific_params": {"summarization": {"num_beams": 4}}, "tokenizer_class": "T5Tokenizer",
        "num_beams": 1, "id2label": {"0": "LABEL_0"}, "return_dict": true, "classifier_dropout": 0.0,
        "num_experts": 8, "rope_theta": 1e4, "is_causal": true, "hidden_size": 16, "quantization_config": null,
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
        eos_token_ids: vec![1],
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
        eos_token_ids: vec![4, 6],
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
    let path = folder.path().join("config.json");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    std::fs::write(&path, pointer).unwrap();
    refused(T5Config::open(folder.path()), &["config.json", "Git LFS", "lfs pull"]);
    std::fs::write(&path, [0xff, 0xfe, b'{', 0]).unwrap();
    refused(T5Config::open(folder.path()), &["config.json", "UTF-16", "iconv"]);
    // A byte order mark is no part of the file.
    let text = serde_json::to_string(&plain().to_json()).unwrap();
    std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    assert_eq!(T5Config::open(folder.path()).unwrap(), plain());
    for text in ["", "[1]", "{\"a\": }", "\u{0}"] {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        refused(T5Config::open(folder.path()), &["config.json", "line"]);
    }
}
