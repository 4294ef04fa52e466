//! SmolLM2-135M-Instruct against transformers. Runs where `cargo xtask model smollm2` has put the model, or in the folder that
//! `RUMINATE_SMOLLM2` names, with float32 weights. `tests/smollm2/make.py` wrote the reference from the same GGUF file.

use std::io::Write;
use std::path::{Path, PathBuf};

use ruminate_datasets::chat::{ChatTemplate, Message};
use ruminate_models::checkpoint::read_json;
use ruminate_models::{
    Example, Generate, GenerationConfig, Llama, Policy, ScoreOptions, Side, TokenId, Tokenizer,
};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::support::close;

/// The variable that names another folder.
const FOLDER: &str = "RUMINATE_SMOLLM2";

#[derive(Deserialize)]
struct Reference {
    tokens: Vec<Tokens>,
    dialogues: Vec<Dialogue>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Tokens {
    text: String,
    ids: Vec<TokenId>,
}

#[derive(Deserialize)]
struct Dialogue {
    messages: Vec<Message>,
    prompt: String,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<TokenId>,
    top_ids: Vec<TokenId>,
    top_logits: Vec<f32>,
    logits_mean: f64,
    logits_norm: f64,
    log_probs: Vec<f32>,
    greedy: Vec<TokenId>,
    greedy_text: String,
}

#[test]
fn smollm2_gives_the_logits_and_texts_of_transformers() {
    // Written past the harness, which hides what tests that pass print.
    let skip = |reason: &str| {
        let _ = writeln!(std::io::stderr(), "skipped: {reason}");
    };
    let own = std::env::var_os(FOLDER).map(PathBuf::from);
    let folder =
        own.clone().unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/smollm2"));
    if own.is_none() && !folder.join("config.json").exists() {
        return skip("SmolLM2 is not there; fetch it with cargo xtask model smollm2 (98 MB)");
    }
    let config: serde_json::Value = read_json(&folder.join("config.json")).unwrap();
    if config.get("torch_dtype").is_some_and(|dtype| dtype != "float32") {
        return skip("this SmolLM2 has rounded weights; remove the folder and run cargo xtask model smollm2");
    }
    let reference: Reference = serde_json::from_str(include_str!("../smollm2/reference.json")).unwrap();
    let llama = Llama::load(&folder, Kind::Float, Device::Cpu).unwrap();
    let tokenizer = Tokenizer::open(&folder).unwrap();
    assert_eq!(tokenizer.end_token(), Some(("<|im_end|>", 2)));
    for Tokens { text, ids } in &reference.tokens {
        assert_eq!(tokenizer.encode(text).unwrap(), *ids, "{text:?}");
        assert_eq!(tokenizer.decode(ids, false).unwrap(), *text);
    }
    let template = ChatTemplate::open(&folder).unwrap();
    for Dialogue { messages, prompt } in &reference.dialogues {
        assert_eq!(template.prompt(messages).unwrap(), *prompt);
    }
    let settings = GenerationConfig { max_new_tokens: 40, ..GenerationConfig::default() };
    assert!(!reference.cases.is_empty());
    tch::no_grad(|| {
        for (i, case) in reference.cases.iter().enumerate() {
            assert_eq!(tokenizer.encode_plain(&case.text).unwrap(), case.ids, "case {i}");
            let agree = |what: &str, got: &Tensor, expected: &Tensor| {
                close(got, expected, 1e-3).unwrap_or_else(|reason| panic!("case {i}, {what}: {reason}"));
            };
            let batch = llama.batch(&[&case.ids], Side::Right).unwrap();
            let states = llama.forward(&batch).unwrap().select(1, case.ids.len() as i64 - 1);
            let logits = llama.logits(&states).unwrap().view([-1]);
            let (largest, ids) = logits.topk(case.top_ids.len() as i64, 0, true, true);
            assert_eq!(Vec::<TokenId>::try_from(ids).unwrap(), case.top_ids, "case {i}");
            agree("logits", &largest, &Tensor::from_slice(&case.top_logits));
            let all = logits.to_kind(Kind::Double);
            agree("mean", &all.mean(Kind::Double), &Tensor::from(case.logits_mean));
            agree("norm", &all.norm(), &Tensor::from(case.logits_norm));

            let example = Example { prompt: case.ids[..1].to_vec(), target: case.ids[1..].to_vec() };
            let scores = llama.score(&[example], ScoreOptions::default()).unwrap().log_probs.squeeze_dim(0);
            let count = case.log_probs.len() as i64;
            let last = scores.narrow(0, scores.size()[0] - count, count);
            agree("log-probs", &last, &Tensor::from_slice(&case.log_probs));

            let written = llama.generate(std::slice::from_ref(&case.ids), &settings, &[]).unwrap();
            assert_eq!(written[0][0].ids, case.greedy, "case {i}");
            assert_eq!(tokenizer.decode(&written[0][0].ids, true).unwrap(), case.greedy_text, "case {i}");
        }
    });
}
