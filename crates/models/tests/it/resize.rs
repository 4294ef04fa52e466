//! New tokens: rows for them in the model, ids for them in the tokenizer.

use std::ops::Range;
use std::path::Path;

use ruminate_models::{
    Example, Generate, GenerationConfig, Llama, NetworkConfig, Policy, Result, ScoreOptions, T5, TokenId,
    Tokenizer, embedding_statistics,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::support::{VOCAB, chain, config, llama, model, world};

/// What takes new tokens.
trait Grows: Policy + Generate + Sized {
    /// Both matrices that have a row for each token; they are one where they are tied.
    const MATRICES: [&str; 2];

    fn new(tied: bool) -> Self;
    fn grow(&mut self, ids: Range<TokenId>, seed: u64) -> Result<()>;
    fn load(folder: &Path) -> Self;
    /// As in `config.json`.
    fn keys(&self) -> Value;

    fn matrices(&self) -> Vec<Tensor> {
        let matrix = |name| self.parameters().get(name).map(|tensor| tensor.detach().copy());
        Self::MATRICES.into_iter().filter_map(matrix).collect()
    }

    fn vocab(&self) -> i64 {
        self.keys()["vocab_size"].as_i64().unwrap()
    }
}

impl Grows for T5 {
    const MATRICES: [&str; 2] = ["shared.weight", "lm_head.weight"];

    fn new(tied: bool) -> Self {
        model(config(json!({ "tie_word_embeddings": tied })))
    }

    fn grow(&mut self, ids: Range<TokenId>, seed: u64) -> Result<()> {
        self.add_tokens(ids, seed)
    }

    fn load(folder: &Path) -> Self {
        Self::load(folder, Kind::Float, Device::Cpu).unwrap()
    }

    fn keys(&self) -> Value {
        self.config().to_json()
    }
}

impl Grows for Llama {
    const MATRICES: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];

    fn new(tied: bool) -> Self {
        llama(json!({ "tie_word_embeddings": tied, "num_key_value_heads": 2 }))
    }

    fn grow(&mut self, ids: Range<TokenId>, seed: u64) -> Result<()> {
        self.add_tokens(ids, seed)
    }

    fn load(folder: &Path) -> Self {
        Self::load(folder, Kind::Float, Device::Cpu).unwrap()
    }

    fn keys(&self) -> Value {
        self.config().to_json()
    }
}

fn example(target: &[i64]) -> Example {
    Example { prompt: vec![5, 6, 7, 1], target: target.to_vec() }
}

fn old_rows_stay<M: Grows>() {
    for tied in [true, false] {
        // Smaller, as large, and larger than before: 40 rows.
        for (start, end) in [(30, 35), (30, 40), (38, 44), (40, 3000)] {
            let mut model = M::new(tied);
            let before = model.matrices();
            assert_eq!(before.len(), if tied { 1 } else { 2 });
            let old = model
                .score(&[example(&[9, 8, 1])], ScoreOptions { states: true, ..ScoreOptions::default() })
                .unwrap();
            model.grow(start..end, 3).unwrap();
            assert_eq!(model.vocab(), end);
            for (before, after) in before.iter().zip(model.matrices()) {
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
            let new = model
                .score(&[example(&[9, 8, 1])], ScoreOptions { states: true, ..ScoreOptions::default() })
                .unwrap();
            assert_eq!(old.states, new.states);
        }
    }
}

#[test]
fn old_rows_stay_and_new_ones_are_like_them() {
    old_rows_stay::<T5>();
    old_rows_stay::<Llama>();
}

fn new_tokens_are_used<M: Grows>() {
    for tied in [true, false] {
        let mut model = M::new(tied);
        model.grow(VOCAB..VOCAB + 2, 3).unwrap();
        // Before a response they change it, and as a response they have a probability.
        let score =
            |target: &[i64]| model.score(&[example(target)], ScoreOptions::default()).unwrap().log_probs;
        let (plain, behind) = (score(&[9, 1]), score(&[VOCAB, 9, 1]));
        assert_ne!(plain.double_value(&[0, 0]), behind.double_value(&[0, 1]));
        score(&[VOCAB + 1]).sum(Kind::Float).neg().backward();
        for name in M::MATRICES {
            let Some(weight) = model.parameters().get(name) else { continue };
            let gradient = weight.grad().narrow(0, VOCAB, 2).abs().max().double_value(&[]);
            assert_eq!(gradient > 0.0, tied || name == "lm_head.weight", "{name}");
        }
        let generation = GenerationConfig {
            prefix: vec![VOCAB, VOCAB + 1],
            forbidden_ids: vec![VOCAB, VOCAB + 1],
            max_new_tokens: 4,
            ..GenerationConfig::default()
        };
        let written = model.generate(&[vec![5, 1]], &generation, &[]).unwrap();
        assert!(written[0][0].ids.iter().all(|&id| id < VOCAB));
    }
}

#[test]
fn new_tokens_are_read_written_and_trained() {
    new_tokens_are_used::<T5>();
    new_tokens_are_used::<Llama>();
}

fn a_saved_model_has_them<M: Grows>() {
    for tied in [true, false] {
        let mut model = M::new(tied);
        model.grow(38..43, 3).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path()).unwrap();
        let loaded = M::load(folder.path());
        assert_eq!(loaded.keys(), model.keys());
        for ((name, a), (_, b)) in loaded.parameters().iter().zip(model.parameters().iter()) {
            assert_eq!(a, b, "{name}");
        }
        // And goes back into a model of the same size, not into one of another.
        model.restore(folder.path()).unwrap();
        let refusal = M::new(tied).restore(folder.path()).unwrap_err();
        assert!(chain(&refusal).contains(M::MATRICES[0]));
    }
}

#[test]
fn a_saved_model_has_its_new_tokens() {
    a_saved_model_has_them::<T5>();
    a_saved_model_has_them::<Llama>();
}

fn drawn<M: Grows>(seed: u64) -> Vec<Tensor> {
    let mut model = M::new(false);
    model.grow(VOCAB..VOCAB + 3, seed).unwrap();
    model.matrices()
}

#[test]
fn the_same_seed_draws_the_same_rows() {
    for drawn in [drawn::<T5>, drawn::<Llama>] {
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1)[0], drawn(2)[0]);
        assert_ne!(drawn(1)[1], drawn(2)[1]);
    }
}

fn ids_are_refused<M: Grows>(ids: Range<TokenId>, reason: &str) {
    let mut model = M::new(false);
    let before = model.matrices();
    let error = model.grow(ids, 1).unwrap_err().to_string();
    assert!(error.contains(reason), "{error}");
    assert_eq!(model.vocab(), VOCAB);
    assert_eq!(model.matrices(), before);
}

#[test]
fn ids_that_do_not_follow_are_refused() {
    for (start, end) in [(41, 44), (30, 30), (-2, 3)] {
        for refused in [ids_are_refused::<T5>, ids_are_refused::<Llama>] {
            refused(start..end, "vocabulary of 40");
            refused(start..end, "new tokens");
        }
    }
    // The end token's row would go.
    ids_are_refused::<Llama>(1..2, "eos_token_id");
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
