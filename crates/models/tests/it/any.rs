//! Models whose family is told by their folder.

use ruminate_models::{
    Example, Generate, GenerationConfig, Llama, Model, ModelConfig, ModelShape, Policy, ScoreChoices,
    ScoreOptions, T5, T5Config, TokenId, Tokenizer,
};
use serde_json::json;
use tch::{Device, Kind};
use tempfile::TempDir;

use crate::support::{assert_close, encoder_only, llamas, model, plain, refused, world};

/// Folders of a T5 and of every family of decoders, and what each is called.
fn folders() -> Vec<(String, TempDir)> {
    let mut all = vec![];
    let t5 = tempfile::tempdir().unwrap();
    model(plain()).save(t5.path()).unwrap();
    all.push(("t5".to_string(), t5));
    for (kind, llama) in llamas() {
        let folder = tempfile::tempdir().unwrap();
        llama.save(folder.path()).unwrap();
        all.push((kind.to_string(), folder));
    }
    all
}

fn load(folder: &TempDir) -> Model {
    Model::load(folder.path(), Kind::Float, Device::Cpu).unwrap()
}

fn examples() -> Vec<Example> {
    vec![
        Example { prompt: vec![5, 6, 7, 9, 1], target: vec![8, 9, 2] },
        Example { prompt: vec![12, 4], target: vec![30, 31, 32, 2] },
    ]
}

#[test]
fn a_folder_tells_its_family() {
    for (kind, folder) in folders() {
        let model = load(&folder);
        let prompts: Vec<Vec<TokenId>> = examples().into_iter().map(|example| example.prompt).collect();
        let choices = vec![vec![vec![7, 2], vec![9, 9, 2]]; 2];
        let settings = GenerationConfig { max_new_tokens: 5, ..GenerationConfig::default() };
        let all = |known: &dyn Policy, writer: &dyn Generate, chooser: &dyn ScoreChoices| {
            (
                known.score(&examples(), ScoreOptions::default()).unwrap().log_probs,
                writer.generate(&prompts, &settings, &[]).unwrap(),
                chooser.choice_log_probs(&prompts, &choices).unwrap(),
            )
        };
        let (scores, written, chosen) = all(&model, &model, &model);
        let expected = if kind == "t5" {
            let t5 = T5::load(folder.path(), Kind::Float, Device::Cpu).unwrap();
            all(&t5, &t5, &t5)
        } else {
            let llama = Llama::load(folder.path(), Kind::Float, Device::Cpu).unwrap();
            all(&llama, &llama, &llama)
        };
        assert_close(&scores, &expected.0, &kind);
        assert_eq!(written, expected.1, "{kind}");
        assert_close(&chosen, &expected.2, &kind);
        assert_eq!(model.config().has_encoder(), kind == "t5");
        assert_eq!(model.config().parameter_count(), model.parameters().count(), "{kind}");
        assert_eq!(ModelConfig::open(folder.path()).unwrap(), *model.config(), "{kind}");
        let again = tempfile::tempdir().unwrap();
        model.save(again.path()).unwrap();
        assert_eq!(load(&again).config(), model.config(), "{kind}");
    }
}

#[test]
fn models_of_any_family_train_and_grow() {
    for (kind, folder) in folders() {
        let mut model = load(&folder);
        model.set_training(true);
        let loss = model.cross_entropy(&examples()).unwrap();
        loss.sum.backward();
        assert!(model.parameters().iter().any(|(_, p)| p.grad().defined()), "{kind}");
        assert!(!model.has_dropout(), "{kind}");
        let vocab = model.config().vocab_size();
        model.add_tokens(vocab..vocab + 2, 1).unwrap();
        assert_eq!(model.config().vocab_size(), vocab + 2, "{kind}");
        assert_eq!(model.output_projection().unwrap().0.size()[0], vocab + 2, "{kind}");
    }
}

#[test]
fn what_needs_an_encoder_gets_a_t5() {
    for (kind, folder) in folders() {
        match load(&folder).into_t5() {
            Ok(t5) => {
                let scores = |policy: &dyn Policy| {
                    policy.score(&examples(), ScoreOptions::default()).unwrap().log_probs
                };
                let expected = scores(&t5);
                assert_eq!(kind, "t5");
                assert_close(&scores(&Model::from(t5)), &expected, &kind);
            }
            Err(model) => {
                assert_ne!(kind, "t5");
                assert!(!model.config().has_encoder());
            }
        }
    }
}

#[test]
fn a_tokenizer_comes_with_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    model(plain()).save(folder.path()).unwrap();
    assert!(load(&folder).tokenizer().is_none());
    // It has more tokens than the model.
    Tokenizer::open(&world()).unwrap().save(folder.path()).unwrap();
    refused(Model::load(folder.path(), Kind::Float, Device::Cpu), &["embeddings"]);
}

#[test]
fn other_families_are_refused_with_those_that_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    for (json, words) in [
        (json!({"model_type": "gpt_neox", "vocab_size": 40}), vec!["gpt_neox", "t5", "qwen2"]),
        (json!({"vocab_size": 40}), vec!["model_type", "missing", "llama"]),
        (json!({"model_type": 7}), vec!["model_type"]),
    ] {
        std::fs::write(&path, json.to_string()).unwrap();
        refused(Model::load(folder.path(), Kind::Float, Device::Cpu), &words);
    }
    let nowhere = folder.path().join("nowhere");
    refused(Model::load(&nowhere, Kind::Float, Device::Cpu), &["no such folder"]);
    for name in ["t5-large", "llama-2-7b", "qwen2.5-0.5b"] {
        assert!(ModelConfig::published(name).is_some(), "{name}");
    }
    assert!(ModelConfig::published("gpt-5").is_none());
    let mut encoder = ModelConfig::from(encoder_only());
    assert_eq!(encoder.context_length(), None);
    encoder.set_dropout(0.25);
    assert_eq!(encoder.dropout_rate(), 0.25);
}

/// A fine-tuned folder writes and talks as the one that it comes from, even if that one is gone.
#[test]
fn what_belongs_to_a_folder_goes_with_its_model_and_tokenizer() {
    let [from, to] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let others = [
        ("generation_config.json", r#"{"max_new_tokens": 7}"#),
        ("tokenizer_config.json", r#"{"eos_token": "</s>", "chat_template": "{{ messages }}"}"#),
        ("special_tokens_map.json", r#"{"eos_token": "</s>"}"#),
        ("chat_template.jinja", "{{ messages[0].content }}"),
    ];
    let t5 = T5::new(T5Config::open(&world()).unwrap(), Kind::Float, Device::Cpu, 1).unwrap();
    t5.save(from.path()).unwrap();
    std::fs::copy(world().join("tokenizer.json"), from.path().join("tokenizer.json")).unwrap();
    for (name, text) in others {
        std::fs::write(from.path().join(name), text).unwrap();
    }
    let loaded = load(&from);
    drop(from);
    loaded.save(to.path()).unwrap();
    loaded.tokenizer().unwrap().save(to.path()).unwrap();
    for (name, text) in others {
        assert_eq!(std::fs::read_to_string(to.path().join(name)).unwrap(), text, "{name}");
    }
    let again = load(&to);
    assert_eq!(again.generation_config().unwrap().max_new_tokens, 7);
    assert!(again.chat_template().unwrap().is_some());
}
