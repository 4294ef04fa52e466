//! The plausibility scorer on a small encoder. Its numbers are compared by the golden vectors.

use std::path::Path;

use ruminate_models::{T5, T5Config, Vera, VeraHead};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::support::{generator, refused, world};

const TOKENS: [&str; 3] = VeraHead::TOKENS;

/// Writes a scorer whose temperature is `temperature`, with the hidden rows' tokens in its tokenizer or without.
fn write(folder: &Path, temperature: f64, tokens: bool) {
    let text = std::fs::read_to_string(world().join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    TOKENS.iter().for_each(|token| drop(vocab.remove(*token)));
    let next = vocab.values().filter_map(Value::as_i64).max().unwrap() + 1;
    if tokens {
        TOKENS.iter().zip(next..).for_each(|(token, id)| {
            vocab.insert((*token).into(), json!(id));
        });
    }
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = T5Config {
        d_model: 16,
        d_kv: 8,
        d_ff: 24,
        num_heads: 2,
        is_encoder_decoder: false,
        vocab_size: next + 3,
        ..T5Config::open(&world().join("config.json")).unwrap()
    };
    let _generator = generator();
    let t5 = T5::new(config, Kind::Float, Device::Cpu, 3).unwrap();
    tch::no_grad(|| {
        let table = t5.parameters().get("shared.weight").unwrap();
        let _ = table.get(next + 2).fill_(temperature);
    });
    t5.save(folder).unwrap();
}

fn load(folder: &Path) -> ruminate_models::Result<Vera> {
    Vera::load(folder, Kind::Float, Device::Cpu)
}

#[test]
fn a_statement_scores_the_same_in_any_company_and_order() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 2.0, true);
    let vera = load(folder.path()).unwrap();
    assert!(vera.score::<&str>(&[]).unwrap().is_empty());
    // More than a batch, of all lengths, the longest beyond what is read; the empty one too.
    let statements: Vec<String> = (0..90).map(|i| vec!["Ada Adam ."; i * 7 % 50].join(" ")).collect();
    assert!(statements.iter().any(|s| s.is_empty()) && statements.iter().any(|s| s.len() > 500));
    let scores = vera.score(&statements).unwrap();
    let mut backwards = vera.score(&statements.iter().rev().collect::<Vec<_>>()).unwrap();
    backwards.reverse();
    for (i, score) in scores.iter().enumerate().step_by(6) {
        let alone = vera.score(&statements[i..=i]).unwrap()[0];
        assert!((score.logit - alone.logit).abs() < 1e-5 && (score.logit - backwards[i].logit).abs() < 1e-5);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert!((score.raw - sigmoid(score.logit)).abs() < 1e-12);
        assert!((score.calibrated - sigmoid(score.logit / 2.0)).abs() < 1e-12);
    }
    assert!(scores.iter().any(|s| (s.logit - scores[0].logit).abs() > 1e-3), "statements differ");
    assert_eq!(vera.tokens(&statements[7]).unwrap().len(), 128);
    assert_eq!(vera.tokens(&statements[7]).unwrap()[127], 1, "the end token is kept");
    // The state that counts is that of the last token, also in float64 by hand.
    let t5 = T5::load(folder.path(), Kind::Float, Device::Cpu).unwrap();
    let row = vera.tokens("Ada Adam .").unwrap();
    let states = tch::no_grad(|| t5.encode(&t5.batch(&[&row]).unwrap())).unwrap().states;
    let table = t5.parameters().get("shared.weight").unwrap().to_kind(Kind::Double);
    let first = t5.config().vocab_size - 3;
    let state: Tensor = states.get(0).get(row.len() as i64 - 1).to_kind(Kind::Double);
    let logit = (state * table.get(first)).sum(Kind::Double) + table.get(first + 1).get(0);
    let got = vera.score(&["Ada Adam ."]).unwrap()[0].logit;
    assert!((logit.double_value(&[]) - got).abs() < 1e-5);
}

#[test]
fn what_is_no_scorer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 2.0, false);
    refused(load(folder.path()), &["<extra_id_0>"]);
    for temperature in [0.0, -1.0, f64::NAN] {
        write(folder.path(), temperature, true);
        refused(load(folder.path()), &["temperature", "<extra_id_2>"]);
    }
}
