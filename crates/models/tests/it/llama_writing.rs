//! Llama and the families of its form write: the cache changes nothing, and neither does the rest of the batch.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use ruminate_models::{
    Beam, Finish, Generate, Generated, GenerationConfig, Llama, Sampling, Side, Strategy as Choice, TokenId,
    Tokenizer,
};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::padding::row;
use crate::support::{VOCAB, assert_close_rows, cases, llama, llamas, refused, world};

const NEW: usize = 9;

fn greedy() -> GenerationConfig {
    GenerationConfig { max_new_tokens: NEW, ..GenerationConfig::default() }
}

fn sampled() -> GenerationConfig {
    let sampling = Sampling { temperature: 0.9, top_k: Some(20), top_p: Some(0.95), ..Sampling::default() };
    GenerationConfig { strategy: Choice::Sample(sampling), ..greedy() }
}

fn beams() -> GenerationConfig {
    let beam = Beam { num_beams: 3, ..Beam::default() };
    GenerationConfig { strategy: Choice::Beam(beam), samples_per_prompt: 2, ..greedy() }
}

/// Every way of choosing tokens, and every rule that looks back.
fn settings() -> Vec<GenerationConfig> {
    vec![
        greedy(),
        GenerationConfig { samples_per_prompt: 3, ..sampled() },
        GenerationConfig { repetition_penalty: 1.7, min_new_tokens: 4, ..sampled() },
        GenerationConfig { no_repeat_ngram_size: 2, samples_per_prompt: 2, ..greedy() },
        GenerationConfig { prefix: vec![4, 5], ..beams() },
    ]
}

/// The logits behind `ids`, with neither cache nor padding.
fn next(llama: &Llama, ids: &[TokenId]) -> Tensor {
    let states = llama.forward(&llama.batch(&[ids], Side::Right).unwrap()).unwrap();
    llama.logits(&states.select(1, ids.len() as i64 - 1)).unwrap().view([-1])
}

#[track_caller]
fn assert_same(a: &[Generated], b: &[Generated], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (a, b) in a.iter().zip(b) {
        assert_eq!((&a.ids, a.finish), (&b.ids, b.finish), "{what}");
        assert_close_rows(&a.log_probs, &b.log_probs, what);
        assert_close_rows(&a.sampling_log_probs, &b.sampling_log_probs, what);
    }
}

fn named(kind: &str, reason: String) -> TestCaseError {
    TestCaseError::fail(format!("{kind}: {reason}"))
}

proptest! {
    #![proptest_config(cases(10))]

    /// Prompts on both sides of the window, rows with a prompt of their own and rows that share one.
    #[test]
    fn the_cache_changes_nothing(prompts in prop::collection::vec(row(1..12), 1..4), each in 1..3usize) {
        for (kind, llama) in llamas() {
            let settings = GenerationConfig { samples_per_prompt: each, prefix: vec![7], ..greedy() };
            for (prompt, written) in prompts.iter().zip(llama.generate(&prompts, &settings, &[]).unwrap()) {
                for row in &written {
                    let mut ids = [&prompt[..], &[7]].concat();
                    for (&id, &log_prob) in row.ids.iter().zip(&row.log_probs) {
                        let logits = tch::no_grad(|| next(&llama, &ids));
                        let behind = logits.max().double_value(&[]) - logits.double_value(&[id]);
                        // Two tokens may be equally good but for rounding.
                        prop_assert!(behind < 1e-4, "{}: {} is not the best by {}", kind, id, behind);
                        let expected = logits.log_softmax(-1, Kind::Float).double_value(&[id]);
                        let off = (f64::from(log_prob) - expected).abs();
                        if off > 1e-4 {
                            return Err(named(kind, format!("log-probability off by {off}")));
                        }
                        ids.push(id);
                    }
                }
            }
        }
    }
}

fn prompts() -> Vec<Vec<TokenId>> {
    vec![vec![9], (0..11).map(|i| (3 * i + 5) % VOCAB).collect(), vec![8, 30, 8, 30, 8], vec![6, 7], vec![9]]
}

const SEEDS: [u64; 5] = [11, 12, 13, 14, 15];

#[test]
fn a_prompt_gets_the_same_whatever_else_is_in_the_batch() {
    for (kind, llama) in llamas() {
        for settings in settings() {
            let together = llama.generate(&prompts(), &settings, &SEEDS).unwrap();
            for (i, prompt) in prompts().into_iter().enumerate() {
                let alone = llama.generate(&[prompt], &settings, &SEEDS[i..=i]).unwrap();
                assert_same(&together[i], &alone[0], &format!("{kind}: {settings:?}"));
            }
        }
    }
}

#[test]
fn rows_leave_the_batch_when_they_have_ended() {
    let llama = llama(json!({}));
    // So many end tokens that most rows end soon, and at different times.
    let settings = GenerationConfig {
        stop_ids: (0..VOCAB).step_by(4).collect(),
        max_new_tokens: 24,
        samples_per_prompt: 2,
        ..sampled()
    };
    let prompts: Vec<Vec<TokenId>> = (0..12).map(|i| (0..1 + i % 5).map(|j| 3 * i + j).collect()).collect();
    let seeds: Vec<u64> = (0..12).collect();
    let together = llama.generate(&prompts, &settings, &seeds).unwrap();
    let lengths: std::collections::BTreeSet<usize> =
        together.iter().map(|rows| rows.iter().map(|row| row.ids.len()).max().unwrap()).collect();
    assert!(lengths.len() > 3, "{lengths:?}");
    for (i, rows) in together.iter().enumerate() {
        assert_same(rows, &llama.generate(&prompts[i..=i], &settings, &seeds[i..=i]).unwrap()[0], "alone");
        for row in rows {
            let stopped = row.ids.last().is_some_and(|id| id % 4 == 0);
            assert_eq!(row.finish, if stopped { Finish::Stop } else { Finish::Length });
        }
    }
}

#[test]
fn samples_that_share_a_prompt_are_those_that_have_it_alone() {
    for (kind, llama) in llamas() {
        let many = GenerationConfig { samples_per_prompt: 4, ..sampled() };
        let one = GenerationConfig { samples_per_prompt: 1, ..sampled() };
        let shared = llama.generate(&prompts(), &many, &SEEDS).unwrap();
        let alone = llama.generate(&prompts(), &one, &SEEDS).unwrap();
        for (shared, alone) in shared.iter().zip(&alone) {
            assert_same(&shared[..1], alone, kind);
        }
    }
}

#[test]
fn one_new_token_needs_no_step() {
    for (kind, llama) in llamas() {
        for each in [1, 3] {
            let one = GenerationConfig { max_new_tokens: 1, samples_per_prompt: each, ..greedy() };
            for (prompt, rows) in prompts().iter().zip(llama.generate(&prompts(), &one, &[]).unwrap()) {
                let best = next(&llama, prompt).argmax(-1, false).int64_value(&[]);
                assert!(rows.len() == each && rows.iter().all(|row| row.ids == [best]), "{kind}");
            }
        }
    }
}

#[test]
fn a_beam_is_scored_by_the_model() {
    for (kind, llama) in llamas() {
        for (prompt, rows) in prompts().iter().zip(llama.generate(&prompts(), &beams(), &[]).unwrap()) {
            for row in rows {
                let mut ids = prompt.clone();
                let mut total = 0.0;
                for &id in &row.ids {
                    total += next(&llama, &ids).log_softmax(-1, Kind::Float).double_value(&[id]);
                    ids.push(id);
                }
                let score = total / row.ids.len() as f64;
                assert!((row.score.unwrap() - score).abs() < 1e-4, "{kind}: {:?} {score}", row.score);
            }
        }
    }
}

#[test]
fn every_end_token_ends_a_row() {
    let open = llama(json!({"eos_token_id": 39}));
    let free = open.generate(&[vec![5, 6]], &greedy(), &[]).unwrap()[0][0].ids.clone();
    let ends = [free[4], free[2]];
    let closed = llama(json!({"eos_token_id": ends}));
    let row = &closed.generate(&[vec![5, 6]], &greedy(), &[]).unwrap()[0][0];
    let first = free.iter().position(|id| ends.contains(id)).unwrap();
    assert_eq!((&row.ids[..], row.finish), (&free[..=first], Finish::Stop));
}

#[test]
fn a_stop_string_ends_a_row() {
    let tokenizer = || Tokenizer::open(&world()).unwrap();
    let vocabulary = tokenizer().vocab_size();
    let mut llama = llama(json!({"vocab_size": vocabulary}));
    let settings = GenerationConfig { max_new_tokens: 12, ..sampled() };
    let prompt = [vec![20, 30, 40]];
    let free = llama.generate(&prompt, &settings, &[3]).unwrap().concat().remove(0);
    let text = |ids: &[TokenId]| tokenizer().decode(ids, true).unwrap();
    let word = text(&free.ids[4..5]);
    assert!(!word.trim().is_empty(), "{free:?}");
    let stop = GenerationConfig { stop_strings: vec![word.clone()], ..settings };
    refused(llama.generate(&prompt, &stop, &[3]), &["set_tokenizer"]);
    llama.set_tokenizer(tokenizer());
    let row = llama.generate(&prompt, &stop, &[3]).unwrap().concat().remove(0);
    assert_eq!(row.finish, Finish::StopString);
    assert_eq!(row.ids, free.ids[..row.ids.len()]);
    assert!(text(&row.ids).contains(&word) && !text(&row.ids[..row.ids.len() - 1]).contains(&word));
}

#[test]
fn prompts_that_cannot_be_continued_are_errors() {
    let llama = llama(json!({}));
    refused(llama.generate(&[vec![3], vec![]], &greedy(), &[]), &["row 1", "no token"]);
    refused(llama.generate(&[vec![3, 40]], &greedy(), &[]), &["id 40"]);
    refused(llama.generate(&[vec![3]], &sampled(), &[]), &["0 seeds for 1 prompts"]);
    assert!(llama.generate(&[], &greedy(), &[]).unwrap().is_empty());
}

#[test]
fn writing_uses_no_gradients_and_no_shared_generator() {
    let llama = llama(json!({"attention_dropout": 0.5}));
    let _generator = crate::support::generator();
    let before = ruminate_torch::rng::state(tch::Device::Cpu).unwrap();
    llama.generate(&prompts(), &sampled(), &SEEDS).unwrap();
    assert!(ruminate_torch::rng::state(tch::Device::Cpu).unwrap().equal(&before));
    assert!(llama.parameters().iter().all(|(_, p)| !p.grad().defined() && p.requires_grad()));
}
