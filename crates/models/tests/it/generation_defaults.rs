//! Generation defaults and chat template of a model folder.

use ruminate_datasets::chat::Message;
use ruminate_models::{
    Beam, EarlyStopping, Error, Finish, Generate, GenerationConfig, Model, ModelConfig, NetworkConfig,
    Sampling, SequenceBias, Strategy, T5Config, TokenId,
};
use serde_json::{Value, json};
use tch::{Device, Kind};

use crate::support::{VOCAB, chain, entries, llama, llama_config, model, plain, refused};

fn published(name: &str) -> ModelConfig {
    ModelConfig::published(name).unwrap()
}

/// The defaults of a folder that holds this file only.
fn open(file: &str, text: &str, model: &impl NetworkConfig) -> ruminate_models::Result<GenerationConfig> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(file), text).unwrap();
    GenerationConfig::open(folder.path(), model)
}

fn defaults(json: Value, model: &impl NetworkConfig) -> GenerationConfig {
    open("generation_config.json", &json.to_string(), model).unwrap()
}

/// Defaults of transformers where a file says nothing.
fn bare() -> GenerationConfig {
    GenerationConfig { max_new_tokens: 20, ..GenerationConfig::default() }
}

#[test]
fn files_of_published_models() {
    let qwen = r#"{
        "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643],
        "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "transformers_version": "4.37.0"
    }"#;
    let sampling = Sampling { temperature: 0.7, top_k: Some(20), top_p: Some(0.8), ..Sampling::default() };
    assert_eq!(
        open("generation_config.json", qwen, &published("qwen2.5-0.5b")).unwrap(),
        GenerationConfig { strategy: Strategy::Sample(sampling), repetition_penalty: 1.1, ..bare() }
    );

    let llama = r#"{
        "bos_token_id": 128000, "eos_token_id": [128001, 128009], "do_sample": true, "temperature": 0.6,
        "max_length": 4096, "top_p": 0.9, "transformers_version": "4.40.0.dev0"
    }"#;
    // transformers' own top_k.
    let sampling = Sampling { temperature: 0.6, top_k: Some(50), top_p: Some(0.9), ..Sampling::default() };
    assert_eq!(
        open("generation_config.json", llama, &published("llama-3.1-8b")).unwrap(),
        GenerationConfig {
            strategy: Strategy::Sample(sampling),
            max_new_tokens: 4096,
            max_length: Some(4096),
            ..bare()
        }
    );

    let flan = r#"{
        "_from_model_config": true, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
        "transformers_version": "4.27.0.dev0"
    }"#;
    assert_eq!(open("generation_config.json", flan, &published("t5-large")).unwrap(), bare());

    // Files of transformers 4.20 and before: everything is in config.json, the defaults included.
    let old = r#"{
        "model_type": "t5", "d_model": 512, "decoder_start_token_id": 0, "eos_token_id": 1, "max_length": 200, "min_length": 30,
        "num_beams": 4, "early_stopping": true, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "bad_words_ids": null,
        "num_beam_groups": 1, "diversity_penalty": 0.0, "repetition_penalty": 1.0, "top_k": 50, "top_p": 1.0,
        "encoder_no_repeat_ngram_size": 0, "remove_invalid_values": false, "use_cache": true, "output_scores": false,
        "task_specific_params": {"summarization": {"num_beams": 8}}
    }"#;
    let beam = Beam { num_beams: 4, length_penalty: 2.0, early_stopping: EarlyStopping::Yes };
    assert_eq!(
        open("config.json", old, &published("t5-large")).unwrap(),
        GenerationConfig {
            strategy: Strategy::Beam(beam),
            // The start token counts.
            max_new_tokens: 199,
            min_new_tokens: 29,
            no_repeat_ngram_size: 3,
            ..bare()
        }
    );
}

#[test]
fn every_setting_that_is_implemented() {
    let t5 = plain();
    let written = json!({
        "do_sample": true, "num_beams": 1, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8,
        "max_new_tokens": 9, "max_length": 5, "min_new_tokens": 2, "min_length": 4, "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3, "bad_words_ids": [[5], [6, 7], [1]], "sequence_bias": [[[8, 9], -0.5]],
        "suppress_tokens": [10, 4000], "forced_eos_token_id": [1], "stop_strings": ["\n", "Q:"], "num_return_sequences": 3,
        "eos_token_id": 1,
    });
    let bias = |ids: &[TokenId], bias| SequenceBias { ids: ids.into(), bias };
    let sampling = Sampling {
        temperature: 0.5,
        top_k: Some(7),
        top_p: Some(0.9),
        min_p: Some(0.05),
        typical_p: Some(0.8),
    };
    let expected = GenerationConfig {
        strategy: Strategy::Sample(sampling),
        max_new_tokens: 9,
        min_new_tokens: 2,
        repetition_penalty: 1.2,
        no_repeat_ngram_size: 3,
        stop_strings: vec!["\n".into(), "Q:".into()],
        forbidden_ids: vec![10],
        sequence_bias: vec![
            bias(&[8, 9], -0.5),
            bias(&[5], f64::NEG_INFINITY),
            bias(&[6, 7], f64::NEG_INFINITY),
        ],
        forced_eos_token_id: Some(1),
        samples_per_prompt: 3,
        ..bare()
    };
    assert_eq!(defaults(written, &t5), expected);
    let nulls = json!({"do_sample": null, "temperature": null, "max_length": null, "guidance_scale": null, "num_beams": null});
    assert_eq!(defaults(nulls, &t5), bare());
    // What is only read when drawing changes nothing otherwise; neither do values that keep everything.
    let greedy = json!({"temperature": 0.0, "top_p": 0.9, "epsilon_cutoff": 0.1, "top_h": 0.4, "renormalize_logits": true});
    assert_eq!(defaults(greedy, &t5), bare());
    let all = json!({"do_sample": true, "top_k": 0, "top_p": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "penalty_alpha": 0.6});
    let keeps_all = Sampling { top_k: Some(0), ..Sampling::default() };
    assert_eq!(defaults(all, &t5).strategy, Strategy::Sample(keeps_all));
    let beams = json!({"num_beams": 2, "early_stopping": "never", "num_return_sequences": 2, "forced_eos_token_id": 1});
    let beam = Beam { num_beams: 2, early_stopping: EarlyStopping::Never, ..Beam::default() };
    let expected = GenerationConfig {
        strategy: Strategy::Beam(beam),
        samples_per_prompt: 2,
        forced_eos_token_id: Some(1),
        ..bare()
    };
    assert_eq!(defaults(beams, &t5), expected);
    assert_eq!(defaults(json!({"stop_strings": "\n"}), &t5).stop_strings, ["\n"]);
    // Faster or not, and what is returned beside the text.
    let ignored = json!({
        "use_cache": false, "cache_implementation": "static", "output_scores": true, "num_assistant_tokens": 7, "colour": "blue",
        "prompt_lookup_num_tokens": 3, "low_memory": true, "pad_token_id": 3, "num_beam_groups": 1,
    });
    assert_eq!(defaults(ignored, &t5), bare());
    // Refused for a decoder alone, where the prompt counts.
    assert_eq!(defaults(json!({"min_length": 0}), &llama_config(json!({}))), bare());
}

#[test]
fn what_is_wrong_or_not_implemented_names_file_and_key() {
    let (t5, llama) = (plain(), llama_config(json!({})));
    let check = |error: ruminate_models::Result<GenerationConfig>, words: &[&str]| {
        let error = error.unwrap_err();
        assert!(matches!(error, Error::GenerationConfig { .. }), "{error:?}");
        let text = chain(&error);
        for word in [&["generation_config.json"], words].concat() {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    };
    for (json, words) in [
        (json!({"temperature": "warm"}), &["`temperature`", "warm"][..]),
        (json!({"do_sample": true, "temperature": 0.0}), &["temperature is 0", "greedy"]),
        (json!({"do_sample": true, "min_p": 2.0}), &["min_p", "2"]),
        (json!({"do_sample": 1}), &["`do_sample`", "1"]),
        (json!({"do_sample": true, "top_k": -1}), &["`top_k`", "-1"]),
        (json!({"num_beams": 0}), &["`num_beams`"]),
        (json!({"num_beams": 2.5}), &["`num_beams`", "2.5"]),
        (json!({"num_beams": 4, "do_sample": true}), &["`num_beams`", "do_sample"]),
        (json!({"early_stopping": "soon"}), &["`early_stopping`", "soon", "never"]),
        (json!({"max_new_tokens": 0}), &["`max_new_tokens`"]),
        (json!({"max_new_tokens": u64::MAX}), &["max_new_tokens"]),
        (json!({"max_length": 1}), &["`max_length`", "no room"]),
        (json!({"repetition_penalty": 0.0}), &["repetition_penalty is 0"]),
        (json!({"num_return_sequences": 2}), &["`num_return_sequences`", "do_sample"]),
        (json!({"num_return_sequences": 3, "num_beams": 2}), &["`num_return_sequences`", "num_beams"]),
        (json!({"bad_words_ids": [5]}), &["`bad_words_ids`"]),
        (json!({"bad_words_ids": [[]]}), &["`bad_words_ids`", "empty"]),
        (json!({"bad_words_ids": [[VOCAB]]}), &["`bad_words_ids`", "vocabulary"]),
        (json!({"sequence_bias": {"5": 1.0}}), &["`sequence_bias`"]),
        (json!({"forced_eos_token_id": [1, 2]}), &["`forced_eos_token_id`", "one"]),
        (json!({"forced_eos_token_id": -1}), &["`forced_eos_token_id`", "vocabulary"]),
        (json!({"suppress_tokens": "all"}), &["`suppress_tokens`"]),
        (json!({"stop_strings": [""]}), &["stop string"]),
        (json!({"stop_strings": ["a"], "num_beams": 2}), &["stop_strings"]),
        (json!({"decoder_start_token_id": 5}), &["`decoder_start_token_id`", "config.json"]),
        (json!({"guidance_scale": 1.5}), &["`guidance_scale`", "not implemented"]),
        (json!({"encoder_repetition_penalty": 1.5}), &["`encoder_repetition_penalty`"]),
        (json!({"encoder_no_repeat_ngram_size": 2}), &["`encoder_no_repeat_ngram_size`"]),
        (json!({"forced_bos_token_id": 5}), &["`forced_bos_token_id`"]),
        (json!({"begin_suppress_tokens": [5]}), &["`begin_suppress_tokens`"]),
        (json!({"exponential_decay_length_penalty": [5, 1.1]}), &["`exponential_decay_length_penalty`"]),
        (json!({"watermarking_config": {}}), &["`watermarking_config`"]),
        (json!({"num_beam_groups": 2, "num_beams": 2}), &["`num_beam_groups`"]),
        (json!({"penalty_alpha": 0.6, "top_k": 4}), &["`penalty_alpha`"]),
        (json!({"renormalize_logits": true, "num_beams": 2}), &["`renormalize_logits`"]),
        (json!({"epsilon_cutoff": 3e-4, "do_sample": true}), &["`epsilon_cutoff`"]),
        (json!({"eta_cutoff": 3e-4, "do_sample": true}), &["`eta_cutoff`"]),
        (json!({"cache_implementation": "quantized"}), &["`cache_implementation`"]),
        (json!({"max_time": 3.0}), &["`max_time`"]),
    ] {
        check(open("generation_config.json", &json.to_string(), &t5), words);
    }
    let least = json!({"min_length": 10}).to_string();
    check(open("generation_config.json", &least, &llama), &["`min_length`", "min_new_tokens"]);
    refused(open("generation_config.json", "{", &llama), &["generation_config.json"]);
    refused(open("config.json", r#"{"top_k": "many"}"#, &llama), &["config.json: `top_k`"]);
}

/// Writes a model's folder with further files, and loads it.
fn loaded(model: &dyn Fn(&std::path::Path), files: &[(&str, &str)]) -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let loaded = Model::load(folder.path(), Kind::Float, Device::Cpu).unwrap();
    (folder, loaded)
}

#[test]
fn a_model_brings_the_defaults_and_the_template_of_its_folder() {
    let save = |folder: &std::path::Path| llama(json!({})).save(folder).unwrap();
    let (_folder, model) = loaded(
        &save,
        &[
            ("generation_config.json", r#"{"max_new_tokens": 3, "eos_token_id": [2, 5]}"#),
            ("chat_template.jinja", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"),
        ],
    );
    assert_eq!(model.generation_config().unwrap(), GenerationConfig { max_new_tokens: 3, ..bare() });
    let template = model.chat_template().unwrap().unwrap();
    assert_eq!(template.prompt(&[Message::new("user", "2+2?")]).unwrap(), "<user>2+2?");
    // Whoever only trains is not bothered by what others cannot read.
    let (folder, model) = loaded(
        &save,
        &[("generation_config.json", r#"{"guidance_scale": 2.0}"#), ("chat_template.jinja", "{% for %}")],
    );
    refused(model.generation_config(), &["generation_config.json", "guidance_scale"]);
    refused(model.chat_template(), &["chat template"]);
    for file in ["generation_config.json", "chat_template.jinja"] {
        std::fs::remove_file(folder.path().join(file)).unwrap();
    }
    assert_eq!(entries(folder.path()), ["config.json", "model.safetensors"]);
    assert_eq!(model.generation_config().unwrap(), bare());
    assert!(model.chat_template().unwrap().is_none());
    // It stays with the model, whatever type it has.
    let (_folder, model) = loaded(
        &|folder| crate::support::model(plain()).save(folder).unwrap(),
        &[("generation_config.json", r#"{"num_beams": 2}"#)],
    );
    let model = Model::from(model.into_t5().unwrap());
    assert!(matches!(model.generation_config().unwrap().strategy, Strategy::Beam(_)));
    // A new model has no folder.
    assert_eq!(llama(json!({})).generation_config().unwrap(), GenerationConfig::default());
    assert!(llama(json!({})).chat_template().unwrap().is_none());
}

/// Prompts of several lengths; alone, each is written with as many new tokens as the length leaves it.
#[test]
fn rows_end_at_their_length() {
    let prompts: Vec<Vec<TokenId>> =
        vec![vec![5, 6, 7, 8, 9, 10], vec![11, 12], vec![13, 14, 15, 16], vec![17, 18]];
    let seeds = [1, 2, 3, 4];
    let beam = Strategy::Beam(Beam { num_beams: 3, ..Beam::default() });
    for strategy in [Strategy::Greedy, Strategy::Sample(Sampling::default()), beam] {
        for (forced_eos_token_id, samples_per_prompt) in [(None, 1), (None, 2), (Some(2), 1)] {
            for max_new_tokens in [5, 30] {
                let config = GenerationConfig {
                    strategy,
                    max_new_tokens,
                    max_length: Some(9),
                    // No row ends before.
                    forbidden_ids: if forced_eos_token_id.is_none() { vec![2] } else { vec![] },
                    forced_eos_token_id,
                    samples_per_prompt,
                    ..GenerationConfig::default()
                };
                let llama = llama(json!({}));
                let together = llama.generate(&prompts, &config, &seeds).unwrap();
                for (i, prompt) in prompts.iter().enumerate() {
                    let room = max_new_tokens.min(9 - prompt.len());
                    let alone = GenerationConfig { max_new_tokens: room, max_length: None, ..config.clone() };
                    let alone = llama.generate(&prompts[i..=i], &alone, &seeds[i..=i]).unwrap();
                    let ids = |of: &[ruminate_models::Generated]| {
                        of.iter().map(|g| (g.ids.clone(), g.finish)).collect::<Vec<_>>()
                    };
                    assert_eq!(ids(&together[i]), ids(&alone[0]), "{strategy:?} {forced_eos_token_id:?} {i}");
                    if forced_eos_token_id.is_none() {
                        assert!(
                            together[i].iter().all(|g| g.ids.len() == room && g.finish == Finish::Length)
                        );
                    }
                }
            }
        }
    }
    // An encoder reads the prompt; the start token and the prefix count.
    let config = GenerationConfig { max_length: Some(5), prefix: vec![7], forbidden_ids: vec![1], ..bare() };
    let t5 = model(T5Config { eos_token_ids: vec![1], ..plain() });
    assert_eq!(t5.generate(&prompts, &config, &[]).unwrap()[0][0].ids.len(), 3);
    let short = GenerationConfig { max_length: Some(6), ..bare() };
    refused(llama(json!({})).generate(&prompts, &short, &[]), &["prompt 0", "max_length 6"]);
}
