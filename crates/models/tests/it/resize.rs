//! New tokens: rows for them in the model, ids for them in the tokenizer.

use ruminate_models::{
    Example, Generate, GenerationConfig, Policy, T5, Tokenizer, Want, embedding_statistics,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::support::{VOCAB, chain, config, model, plain, world};

/// Both matrices that have a row for each token; they are one where they are tied.
fn matrices(t5: &T5) -> Vec<Tensor> {
    ["shared.weight", "lm_head.weight"]
        .iter()
        .filter_map(|name| t5.parameters().get(name).map(|tensor| tensor.detach().copy()))
        .collect()
}

fn example(target: &[i64]) -> Example {
    Example { prompt: vec![5, 6, 7, 1], target: target.to_vec() }
}

#[test]
fn old_rows_stay_and_new_ones_are_like_them() {
    for tied in [true, false] {
        // Smaller, as large, and larger than before: 40 rows.
        for (start, end) in [(30, 35), (30, 40), (38, 44), (40, 3000)] {
            let mut t5 = model(config(json!({ "tie_word_embeddings": tied })));
            let before = matrices(&t5);
            assert_eq!(before.len(), if tied { 1 } else { 2 });
            let old = t5.score(&[example(&[9, 8, 1])], Want { states: true, ..Want::default() }).unwrap();
            t5.add_tokens(start..end, 3).unwrap();
            assert_eq!(t5.config().vocab_size, end);
            for (before, after) in before.iter().zip(matrices(&t5)) {
                assert_eq!(after.size(), [end, 16]);
                assert_eq!(after.narrow(0, 0, start), before.narrow(0, 0, start));
                if end < 1000 {
                    continue;
                }
                let (mean, std) = embedding_statistics(before).unwrap();
                let (new_mean, new_std) = embedding_statistics(&after.narrow(0, start, end - start)).unwrap();
                let far = |a: &Tensor, b: &Tensor| ((a - b) / &std).abs().max().double_value(&[]);
                assert!(far(&new_mean, &mean) < 0.08 && far(&new_std, &std) < 0.08, "{tied}");
            }
            // The network behind the embedding is the same.
            let new = t5.score(&[example(&[9, 8, 1])], Want { states: true, ..Want::default() }).unwrap();
            assert_eq!(old.states, new.states);
        }
    }
}

#[test]
fn new_tokens_are_read_written_and_trained() {
    for tied in [true, false] {
        let mut t5 = model(config(json!({ "tie_word_embeddings": tied })));
        t5.add_tokens(VOCAB..VOCAB + 2, 3).unwrap();
        // Before a response they change it, and as a response they have a probability.
        let score = |target: &[i64]| t5.score(&[example(target)], Want::default()).unwrap().log_probs;
        let (plain, behind) = (score(&[9, 1]), score(&[VOCAB, 9, 1]));
        assert_ne!(plain.double_value(&[0, 0]), behind.double_value(&[0, 1]));
        score(&[VOCAB + 1]).sum(Kind::Float).neg().backward();
        for name in ["shared.weight", "lm_head.weight"] {
            let Some(weight) = t5.parameters().get(name) else { continue };
            let gradient = weight.grad().narrow(0, VOCAB, 2).abs().max().double_value(&[]);
            assert_eq!(gradient > 0.0, tied || name == "lm_head.weight", "{name}");
        }
        let generation = GenerationConfig {
            prefix: vec![VOCAB, VOCAB + 1],
            forbidden_ids: vec![VOCAB, VOCAB + 1],
            max_new_tokens: 4,
            ..GenerationConfig::default()
        };
        let written = t5.generate(&[vec![5, 1]], &generation, &[]).unwrap();
        assert!(written[0][0].ids.iter().all(|&id| id < VOCAB));
    }
}

#[test]
fn a_saved_model_has_its_new_tokens() {
    for tied in [true, false] {
        let mut t5 = model(config(json!({ "tie_word_embeddings": tied })));
        t5.add_tokens(38..43, 3).unwrap();
        let folder = tempfile::tempdir().unwrap();
        t5.save(folder.path()).unwrap();
        let loaded = T5::load(folder.path(), Kind::Float, Device::Cpu).unwrap();
        assert_eq!(loaded.config(), t5.config());
        for ((name, a), (_, b)) in loaded.parameters().iter().zip(t5.parameters().iter()) {
            assert_eq!(a, b, "{name}");
        }
        // And goes back into a model of the same size, not into one of another.
        Policy::restore(&t5, folder.path()).unwrap();
        let other = model(config(json!({ "tie_word_embeddings": tied })));
        assert!(chain(&Policy::restore(&other, folder.path()).unwrap_err()).contains("shared.weight"));
    }
}

#[test]
fn the_same_seed_draws_the_same_rows() {
    let drawn = |seed| {
        let mut t5 = model(plain());
        t5.add_tokens(VOCAB..VOCAB + 3, seed).unwrap();
        matrices(&t5).remove(0)
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn ids_that_do_not_follow_are_refused() {
    for (start, end) in [(41, 44), (30, 30), (-2, 3)] {
        let mut t5 = model(plain());
        let error = t5.add_tokens(start..end, 1).unwrap_err().to_string();
        assert!(error.contains("new tokens") && error.contains("vocabulary of 40"), "{error}");
        assert_eq!(t5.config().vocab_size, VOCAB);
    }
}

#[test]
fn a_tokenizer_takes_new_tokens() {
    let mut tokenizer = Tokenizer::open(&world()).unwrap();
    let size = tokenizer.vocab_size() as i64;
    let names = ["_TOKEN0_00000".to_string(), "_TOKEN0_00001".to_string()];
    assert_eq!(tokenizer.add_tokens(&names).unwrap(), [size, size + 1]);
    let encoded = tokenizer.encode_plain("_TOKEN0_00001 Ada").unwrap();
    assert_eq!(encoded[0], size + 1);
    // They are no special tokens: what a model writes of them shows.
    assert!(tokenizer.decode(&[size], true).unwrap().contains("_TOKEN0_00000"));
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    let loaded = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(loaded.encode_plain("_TOKEN0_00001 Ada").unwrap(), encoded);
    assert_eq!(loaded.vocab_size() as i64, size + 2);
    for bad in [vec![names[0].clone()], vec!["x y".into(), "x y".into()], vec![String::new()]] {
        let error = tokenizer.add_tokens(&bad).unwrap_err().to_string();
        assert!(error.contains("cannot be added"), "{error}");
        assert_eq!(tokenizer.vocab_size() as i64, size + 2);
    }
}
