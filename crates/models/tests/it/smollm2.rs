//! SmolLM2-135M-Instruct, with the keys of its published `config.json`, against transformers. Runs where `RUMINATE_SMOLLM2` names
//! the folder that `tests/smollm2/make.py` wrote.

use std::io::Write;
use std::path::PathBuf;

use ruminate_models::checkpoint::{read_json, read_tensors};
use ruminate_models::{
    Example, Generate, GenerationConfig, Llama, Policy, ScoreOptions, Side, TokenId, Tokenizer,
};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::support::close;

/// The variable that names the folder.
const FOLDER: &str = "RUMINATE_SMOLLM2";

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<TokenId>,
    greedy: Vec<TokenId>,
    greedy_text: String,
}

#[test]
fn smollm2_gives_the_logits_and_texts_of_transformers() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        // Written past the harness, which hides what tests that pass print.
        let _ = writeln!(std::io::stderr(), "skipped: {FOLDER} names no folder of tests/smollm2/make.py");
        return;
    };
    let config: serde_json::Value = read_json(&folder.join("config.json")).unwrap();
    for key in ["is_llama_config", "rope_interleaved", "transformers.js_config"] {
        assert!(config.get(key).is_some(), "`{key}` is published, but not in this folder");
    }
    let llama = Llama::load(&folder, Kind::Float, Device::Cpu).unwrap();
    let tokenizer = Tokenizer::open(&folder).unwrap();
    assert_eq!(tokenizer.end_token(), Some(("<|im_end|>", 2)));
    let tensors = read_tensors(&folder.join("reference.safetensors"), Device::Cpu).unwrap();
    let reference: Reference = read_json(&folder.join("reference.json")).unwrap();
    assert!(!reference.cases.is_empty());
    let settings = GenerationConfig { max_new_tokens: 40, ..GenerationConfig::default() };
    tch::no_grad(|| {
        for (i, case) in reference.cases.iter().enumerate() {
            assert_eq!(tokenizer.encode_plain(&case.text).unwrap(), case.ids, "case {i}");
            let batch = llama.batch(&[&case.ids], Side::Right).unwrap();
            let states = llama.forward(&batch).unwrap().squeeze_dim(0);
            let expected = &tensors[&format!("{i}.logits")];
            let time = case.ids.len() as i64;
            let last = states.narrow(0, time - expected.size()[0], expected.size()[0]);
            let agree = |what: &str, got: &Tensor, expected: &Tensor| {
                close(got, expected, 1e-3).unwrap_or_else(|reason| panic!("case {i}, {what}: {reason}"));
            };
            agree("logits", &llama.logits(&last).unwrap(), expected);
            let example = Example { prompt: case.ids[..1].to_vec(), target: case.ids[1..].to_vec() };
            let scores = llama.score(&[example], ScoreOptions::default()).unwrap();
            agree("log-probs", &scores.log_probs.squeeze_dim(0), &tensors[&format!("{i}.log_probs")]);
            let written = llama.generate(std::slice::from_ref(&case.ids), &settings, &[]).unwrap();
            assert_eq!(written[0][0].ids, case.greedy, "case {i}");
            assert_eq!(tokenizer.decode(&written[0][0].ids, true).unwrap(), case.greedy_text, "case {i}");
        }
    });
}
