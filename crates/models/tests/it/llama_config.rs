//! `config.json` of Llama and Mistral: what is understood, and what is refused by name.

use std::path::Path;

use ruminate_models::{Error, LlamaConfig, LlamaFamily, Result, RopeScaling};
use serde_json::{Value, json};

use crate::support::{llama_changes, llama_config, llama_keys, refused};

fn read(changes: Value) -> Result<LlamaConfig> {
    LlamaConfig::from_json(llama_keys(changes), Path::new("some/config.json"))
}

const LLAMA3: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 64,
};

fn llama3() -> Value {
    json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    })
}

fn with(mut value: Value, key: &str, new: Value) -> Value {
    value[key] = new;
    value
}

#[test]
fn each_refusal_names_its_key() {
    let scaling = |value: Value| json!({"rope_scaling": value});
    let refusals = [
        ("num_experts", json!({"num_experts": 8})),
        ("model_type", json!({"model_type": "t5"})),
        ("model_type", json!({"model_type": "qwen2"})),
        ("model_type", json!({"architectures": ["LlamaForSequenceClassification"]})),
        ("model_type", json!({"model_type": "llama", "architectures": ["MistralForCausalLM"]})),
        ("hidden_act", json!({"hidden_act": "gelu"})),
        ("attention_bias", json!({"attention_bias": true})),
        ("mlp_bias", json!({"mlp_bias": true})),
        ("sliding_window", json!({"sliding_window": 4})),
        ("sliding_window", json!({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 0})),
        // Mistral's default of 8.
        ("num_key_value_heads", json!({"model_type": "mistral"})),
        ("num_key_value_heads", json!({"num_key_value_heads": 3})),
        ("num_key_value_heads", json!({"num_key_value_heads": 0})),
        ("num_attention_heads", json!({"num_attention_heads": 0, "head_dim": 4})),
        ("head_dim", json!({"head_dim": 5})),
        ("head_dim", json!({"hidden_size": 18})),
        ("hidden_size", json!({"hidden_size": null})),
        ("vocab_size", json!({"vocab_size": 0})),
        ("vocab_size", json!({"vocab_size": "many"})),
        ("num_hidden_layers", json!({"num_hidden_layers": i64::MAX})),
        ("max_position_embeddings", json!({"max_position_embeddings": 0})),
        ("rms_norm_eps", json!({"rms_norm_eps": 0.0})),
        ("attention_dropout", json!({"attention_dropout": 1.0})),
        ("rope_theta", json!({"rope_theta": 0.0})),
        ("rope_theta", json!({"rope_theta": "large"})),
        ("rope_theta", json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}})),
        ("rope_scaling", json!({"rope_scaling": llama3(), "rope_parameters": {"rope_type": "default"}})),
        ("rope_scaling", scaling(json!("linear"))),
        ("rope_scaling", scaling(json!({"type": "dynamic", "factor": 2.0}))),
        ("rope_scaling", scaling(json!({"rope_type": "yarn", "factor": 2.0}))),
        ("rope_scaling", scaling(json!({"type": "linear"}))),
        ("rope_scaling", scaling(json!({"type": "linear", "rope_type": "default", "factor": 2.0}))),
        ("rope_scaling", scaling(json!({"type": "linear", "factor": 0.5}))),
        ("rope_scaling", scaling(json!({"type": "linear", "factor": 2.0, "mscale": 1.0}))),
        ("rope_scaling", scaling(with(llama3(), "original_max_position_embeddings", json!(null)))),
        ("rope_scaling", scaling(with(llama3(), "original_max_position_embeddings", json!(0)))),
        ("rope_scaling", scaling(with(llama3(), "high_freq_factor", json!(1.0)))),
        ("rope_parameters", json!({"rope_parameters": {"partial_rotary_factor": 0.5}})),
        ("eos_token_id", json!({"eos_token_id": 40})),
        ("eos_token_id", json!({"eos_token_id": [2, 40]})),
        ("eos_token_id", json!({"eos_token_id": []})),
        ("pad_token_id", json!({"pad_token_id": -1})),
        ("bos_token_id", json!({"bos_token_id": 40})),
    ];
    for (key, changes) in refusals {
        match read(changes.clone()) {
            Err(Error::Config { key: named, .. }) => assert_eq!(named, key, "{changes}"),
            other => panic!("{changes}: {other:?}"),
        }
    }
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    {
        let mut keys = llama_keys(json!({}));
        keys.remove(key);
        refused(LlamaConfig::from_json(keys, Path::new("some/config.json")), &[key, "some/config.json"]);
    }
}

#[test]
fn missing_keys_have_the_defaults_of_transformers() {
    let llama = read(json!({"eos_token_id": null})).unwrap();
    assert_eq!((llama.family, llama.num_key_value_heads, llama.head_dim), (LlamaFamily::Llama, 4, 4));
    assert_eq!((llama.rms_norm_eps, llama.rope_theta, llama.rope_scaling), (1e-6, 1e4, RopeScaling::None));
    assert_eq!((llama.sliding_window, llama.max_position_embeddings), (None, 2048));
    assert_eq!(
        (llama.tie_word_embeddings, llama.pad_token_id, &llama.eos_token_ids[..]),
        (false, None, &[2][..])
    );
    let mistral = |changes: Value| {
        let mut all = json!({"model_type": "mistral", "num_attention_heads": 8, "hidden_size": 32});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        read(all).unwrap()
    };
    let first = mistral(json!({}));
    assert_eq!((first.num_key_value_heads, first.sliding_window), (8, Some(4096)));
    let later = mistral(json!({"sliding_window": null, "num_key_value_heads": null}));
    assert_eq!((later.num_key_value_heads, later.sliding_window), (8, None));
    assert_eq!(later.max_position_embeddings, 131_072);
    // Enough to know a Mistral by.
    let named = json!({"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2});
    assert_eq!(read(named).unwrap().family, LlamaFamily::Mistral);
}

#[test]
fn all_spellings_of_a_scaling_are_one() {
    let new = with(llama3(), "rope_theta", json!(5e5));
    for changes in [
        json!({"rope_theta": 5e5, "rope_scaling": llama3()}),
        json!({"rope_parameters": new}),
        json!({"rope_theta": 5e5, "rope_parameters": llama3()}),
        json!({"rope_theta": 5e5, "rope_scaling": llama3(), "rope_parameters": llama3()}),
    ] {
        let config = read(changes).unwrap();
        assert_eq!((config.rope_theta, config.rope_scaling), (5e5, LLAMA3));
    }
    for scaling in [json!({"type": "linear", "factor": 4.0}), json!({"rope_type": "linear", "factor": 4})] {
        let config = read(json!({"rope_scaling": scaling})).unwrap();
        assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 4.0 });
    }
    for none in [json!(null), json!({"rope_type": "default"}), json!({"type": "default"}), json!({})] {
        assert_eq!(read(json!({"rope_scaling": none})).unwrap().rope_scaling, RopeScaling::None);
    }
}

#[test]
fn what_is_written_is_read_again() {
    let changes = llama_changes().map(|(_, changes)| changes).into_iter().chain([
        json!({"rope_scaling": {"type": "linear", "factor": 4.0}, "pad_token_id": 0, "bos_token_id": 1}),
        json!({"eos_token_id": [3, 4], "attention_dropout": 0.1}),
        json!({"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": null}),
    ]);
    for changes in changes {
        let config = llama_config(changes);
        let folder = tempfile::tempdir().unwrap();
        config.save(folder.path()).unwrap();
        assert_eq!(LlamaConfig::open(folder.path()).unwrap(), config);
    }
}

#[test]
fn published_files_are_understood() {
    // As they stand on the hub, shortened by nothing: bookkeeping of several versions.
    let deepseek = r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 100000,
        "eos_token_id": 100001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 30, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-06,
        "rope_scaling": null, "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1", "use_cache": true, "vocab_size": 102400}"#;
    let mistral = r#"{"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0",
        "use_cache": true, "vocab_size": 32000}"#;
    for (text, layers, window) in [(deepseek, 30, None), (mistral, 32, Some(4096))] {
        let config = LlamaConfig::from_json(serde_json::from_str(text).unwrap(), Path::new("config.json"));
        let config = config.unwrap();
        assert_eq!((config.num_hidden_layers, config.sliding_window, config.head_dim), (layers, window, 128));
    }
}
