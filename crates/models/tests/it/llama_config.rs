//! `config.json` of Llama and Mistral: what is understood, and what is refused by name.

use std::path::Path;

use ruminate_models::{Error, LlamaConfig, LlamaFamily, NetworkConfig, Result, RopeScaling};
use serde_json::{Value, json};
use tch::Tensor;

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
        ("quantization_config", json!({"quantization_config": {"quant_method": "gptq", "bits": 4}})),
        ("per_layer_config", json!({"per_layer_config": {"0": {"head_dim": 8}}})),
        ("is_causal", json!({"is_causal": false})),
        ("is_causal", json!({"is_causal": null})),
        ("is_encoder_decoder", json!({"is_encoder_decoder": true})),
        ("model_type", json!({"model_type": "t5"})),
        ("model_type", json!({"model_type": "qwen2_moe"})),
        ("model_type", json!({"model_type": "qwen3", "architectures": ["Qwen2ForCausalLM"]})),
        // Defaults of 32 and 128.
        ("num_key_value_heads", json!({"model_type": "qwen2"})),
        ("attention_bias", json!({"model_type": "qwen3", "num_key_value_heads": 4, "attention_bias": true})),
        ("layer_types", qwen(json!({"layer_types": ["full_attention"]}))),
        ("layer_types", qwen(json!({"layer_types": ["full_attention", "linear_attention"]}))),
        ("layer_types", qwen(json!({"layer_types": ["sliding_attention", "full_attention"]}))),
        (
            "layer_types",
            qwen(
                json!({"use_sliding_window": false, "layer_types": ["full_attention", "sliding_attention"]}),
            ),
        ),
        ("max_window_layers", qwen(json!({"max_window_layers": -1}))),
        ("model_type", json!({"architectures": ["LlamaForSequenceClassification"]})),
        ("model_type", json!({"model_type": "llama", "architectures": ["MistralForCausalLM"]})),
        ("hidden_act", json!({"hidden_act": "gelu"})),
        ("attention_bias", json!({"attention_bias": true})),
        ("mlp_bias", json!({"mlp_bias": true})),
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
        ("rope_scaling", scaling(json!({"rope_type": "longrope", "factor": 2.0}))),
        ("rope_scaling", scaling(json!({"type": "dynamic"}))),
        ("rope_scaling", scaling(json!({"type": "dynamic", "factor": 0.5}))),
        ("rope_scaling", scaling(json!({"rope_type": "yarn"}))),
        ("rope_scaling", scaling(json!({"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.0}))),
        (
            "rope_scaling",
            scaling(json!({"rope_type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 2})),
        ),
        ("rope_scaling", scaling(json!({"type": "linear"}))),
        ("rope_scaling", scaling(json!({"type": "linear", "rope_type": "default", "factor": 2.0}))),
        ("rope_scaling", scaling(json!({"type": "linear", "factor": 0.5}))),
        ("rope_scaling", scaling(json!({"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}))),
        (
            "rope_scaling",
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5}),
        ),
        ("rope_scaling", scaling(json!({"rope_type": null}))),
        ("rope_parameters", json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}})),
        ("rope_scaling", scaling(with(llama3(), "original_max_position_embeddings", json!(null)))),
        ("rope_scaling", scaling(with(llama3(), "original_max_position_embeddings", json!(0)))),
        ("rope_scaling", scaling(with(llama3(), "high_freq_factor", json!(1.0)))),
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

fn qwen(changes: Value) -> Value {
    let mut keys = json!({"model_type": "qwen2", "num_key_value_heads": 4, "use_sliding_window": true});
    keys.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    keys
}

#[test]
fn the_window_of_a_qwen_begins_at_a_layer() {
    let window = |changes: Value| {
        let config = read(qwen(changes)).unwrap();
        (config.sliding_window, config.max_window_layers)
    };
    assert_eq!(window(json!({})), (Some(4096), 28));
    assert_eq!(window(json!({"use_sliding_window": false, "sliding_window": 8})), (None, 28));
    assert_eq!(window(json!({"sliding_window": 8, "max_window_layers": 1})), (Some(8), 1));
    let types = |types: [&str; 2]| json!({"sliding_window": 8, "layer_types": types});
    assert_eq!(window(types(["full_attention", "sliding_attention"])), (Some(8), 1));
    assert_eq!(window(types(["sliding_attention", "sliding_attention"])), (Some(8), 0));
    assert_eq!(window(types(["full_attention", "full_attention"])), (Some(8), 2));
}

#[test]
fn the_factors_of_yarn_are_those_of_transformers() {
    let factor = |changes: Value| {
        let mut scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        scaling.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        match read(json!({"rope_scaling": scaling})).unwrap().rope_scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            other => panic!("{other:?}"),
        }
    };
    let mscale = |m: f64| 0.1 * m * 4f64.ln() + 1.0;
    assert_eq!(factor(json!({})), mscale(1.0));
    assert_eq!(factor(json!({"attention_factor": null})), mscale(1.0));
    assert_eq!(factor(json!({"attention_factor": 0.5, "mscale": 2.0})), 0.5);
    assert_eq!(factor(json!({"mscale": 2.0, "mscale_all_dim": 0.5})), mscale(2.0) / mscale(0.5));
    // One of the two alone does nothing.
    assert_eq!(factor(json!({"mscale": 2.0})), mscale(1.0));
    assert_eq!(factor(json!({"factor": 1.0})), 1.0);
}

#[test]
fn null_is_no_missing_key() {
    let llama = read(json!({"eos_token_id": null, "bos_token_id": null, "pad_token_id": null})).unwrap();
    assert_eq!((&llama.eos_token_ids[..], llama.bos_token_id, llama.pad_token_id), (&[][..], None, None));
    let heads =
        read(json!({"num_key_value_heads": null, "head_dim": null, "attention_dropout": null})).unwrap();
    assert_eq!((heads.num_key_value_heads, heads.head_dim, heads.attention_dropout), (4, 4, 0.0));
    let mistral = json!({"model_type": "mistral", "sliding_window": null, "num_key_value_heads": null});
    let mistral = read(mistral).unwrap();
    assert_eq!((mistral.sliding_window, mistral.num_key_value_heads), (None, 4));
    let kept = read(json!({"rope_theta": null, "rope_parameters": {"rope_theta": 5e5}})).unwrap();
    assert_eq!(kept.rope_theta, 5e5);
    // Keys for which transformers knows no null.
    for key in [
        "rms_norm_eps",
        "max_position_embeddings",
        "initializer_range",
        "tie_word_embeddings",
        "hidden_act",
        "rope_theta",
    ] {
        refused(read(json!({key: null})), &[&format!("`{key}`"), "null", "leave it out"]);
    }
    refused(
        read(json!({"model_type": "mistral", "num_key_value_heads": 2, "attention_dropout": null})),
        &["null"],
    );
}

#[test]
fn what_transformers_does_not_read_is_ignored() {
    let plain = read(json!({})).unwrap();
    for ignored in [
        // SmolLM2-135M-Instruct, as it is published.
        json!({"is_llama_config": true, "rope_interleaved": false,
               "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}}),
        // Vicuna 16k, and what `config.to_dict()` writes.
        json!({"max_sequence_length": 16384, "is_encoder_decoder": false, "is_causal": true}),
        json!({"num_experts": 8, "rope_interleaved": true, "sliding_window": 4, "quantization_config": null}),
        json!({"per_layer_config": {}, "transformers_weights": "model.safetensors", "pretraining_tp": 2}),
        json!({"rope_scaling": {"rope_type": "default", "factor": 2.0, "partial_rotary_factor": 0.5}}),
    ] {
        assert_eq!(read(ignored.clone()).unwrap(), plain, "{ignored}");
    }
    let linear = |extra: Value| {
        let mut scaling = json!({"type": "linear", "factor": 2.0});
        scaling.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        read(json!({"rope_scaling": scaling})).unwrap()
    };
    assert_eq!(linear(json!({"mscale": 1.0, "partial_rotary_factor": 1.0})), linear(json!({})));
    // Mistral's projections have no bias in transformers, whatever the file says.
    let mistral = json!({"model_type": "mistral", "num_key_value_heads": 2, "attention_bias": true});
    assert_eq!(read(mistral).unwrap().family, LlamaFamily::Mistral);
    // Llama 3.1 takes its first length from outside of the dictionary where that has none.
    let mut inner = llama3();
    inner.as_object_mut().unwrap().remove("original_max_position_embeddings");
    let original = |changes: Value| match read(changes).unwrap().rope_scaling {
        RopeScaling::Llama3 { original_max_position_embeddings, .. } => original_max_position_embeddings,
        other => panic!("{other:?}"),
    };
    assert_eq!(original(json!({"rope_scaling": inner, "max_position_embeddings": 64})), 64);
    assert_eq!(original(json!({"rope_scaling": llama3(), "original_max_position_embeddings": 32})), 32);
}

#[test]
fn angles_are_those_of_transformers_at_large_positions() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rope/reference.json");
    let reference: Value = ruminate_models::checkpoint::read_json(&path).unwrap();
    let positions: Vec<i64> = serde_json::from_value(reference["positions"].clone()).unwrap();
    let positions = Tensor::from_slice(&positions);
    for case in reference["cases"].as_array().unwrap() {
        let head_dim = case["head_dim"].as_i64().unwrap();
        let config = read(json!({
            "hidden_size": 4 * head_dim, "head_dim": head_dim, "rope_theta": case["rope_theta"],
            "rope_scaling": case["rope_scaling"], "max_position_embeddings": 131072,
        }))
        .unwrap();
        let frequencies: Vec<f32> = serde_json::from_value(case["inv_freq"].clone()).unwrap();
        assert_eq!(config.rotary_frequencies().unwrap(), frequencies, "{}", case["rope_scaling"]);
        let (cos, sin) = config.rotary(&positions).unwrap();
        for (name, got) in [("cos", cos), ("sin", sin)] {
            let rows: Vec<Vec<f32>> = serde_json::from_value(case[name].clone()).unwrap();
            let difference = (got.narrow(1, 0, head_dim / 2) - Tensor::from_slice2(&rows)).abs().max();
            assert!(difference.double_value(&[]) < 1e-6, "{name} of {}: {difference}", case["rope_scaling"]);
        }
    }
}

#[test]
fn missing_keys_have_the_defaults_of_transformers() {
    let llama = read(json!({})).unwrap();
    assert_eq!(llama.bos_token_id, Some(1));
    let mut keys = llama_keys(json!({}));
    keys.remove("eos_token_id");
    assert_eq!(LlamaConfig::from_json(keys, Path::new("c")).unwrap().eos_token_ids, [2]);
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
        json!({"eos_token_id": null, "bos_token_id": null}),
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

/// Messages that the crate has logged in this process.
fn logged() -> &'static std::sync::Mutex<Vec<(log::Level, String)>> {
    struct Recorder;
    impl log::Log for Recorder {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            logged().lock().unwrap().push((record.level(), record.args().to_string()));
        }
        fn flush(&self) {}
    }
    static LOGGED: std::sync::Mutex<Vec<(log::Level, String)>> = std::sync::Mutex::new(vec![]);
    static INSTALLED: std::sync::Once = std::sync::Once::new();
    INSTALLED.call_once(|| {
        log::set_logger(&Recorder).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
    &LOGGED
}

#[test]
fn ignored_keys_are_named_once() {
    let logged = logged();
    let keys = || {
        llama_keys(json!({"is_llama_config": true, "transformers.js_config": {}, "torch_dtype": "bfloat16"}))
    };
    let path = Path::new("smollm2/config.json");
    for _ in 0..3 {
        LlamaConfig::from_json(keys(), path).unwrap();
    }
    let said = logged.lock().unwrap();
    let said: Vec<_> = said.iter().filter(|(_, message)| message.contains("smollm2/config.json")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0].0, log::Level::Info);
    for key in ["is_llama_config", "transformers.js_config", "torch_dtype"] {
        assert!(said[0].1.contains(key), "{said:?}");
    }
    assert!(!said[0].1.contains("hidden_size"), "{said:?}");
}

#[test]
fn an_output_matrix_that_the_configuration_denies_is_told() {
    let logged = logged();
    let llama = crate::support::llama(json!({"tie_word_embeddings": true}));
    let folder = tempfile::tempdir().unwrap();
    llama.save(folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");
    let mut tensors = ruminate_models::checkpoint::read_tensors(&path, tch::Device::Cpu).unwrap();
    let write = |tensors: &std::collections::BTreeMap<String, Tensor>| {
        let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        ruminate_models::checkpoint::write_tensors(&path, tensors).unwrap();
        ruminate_models::Llama::load(folder.path(), tch::Kind::Float, tch::Device::Cpu).unwrap();
        let said = logged.lock().unwrap();
        let here = |(level, text): &&(log::Level, String)| {
            *level == log::Level::Warn && text.contains(path.to_str().unwrap())
        };
        said.iter().filter(here).count()
    };
    tensors.insert("lm_head.weight".into(), tensors["model.embed_tokens.weight"].copy());
    assert_eq!(write(&tensors), 0, "a copy is no output matrix");
    tensors.insert("lm_head.weight".into(), &tensors["model.embed_tokens.weight"] + 1.0);
    assert_eq!(write(&tensors), 1);
}
