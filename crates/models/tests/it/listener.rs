//! Tokens that are told while they are written, and sequences that are ended early.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ruminate_models::{
    Alternative, Beam, Example, Finish, Generate, Generated, GenerationConfig, LanguageModel, Listener,
    Network, Policy, Sampling, ScoreOptions, SequenceId, Strategy, TokenId, WrittenToken,
};
use serde_json::json;

use crate::support::{assert_close_rows, llama, model, plain, refused};

const SEEDS: [u64; 5] = [11, 12, 13, 14, 15];

/// Keeps what it hears, and ends sequences behind some token.
#[derive(Default)]
struct Book {
    alternatives: usize,
    /// The length at which a sequence is to end.
    ends: BTreeMap<SequenceId, usize>,
    heard: BTreeMap<SequenceId, Vec<(TokenId, f32, Vec<Alternative>)>>,
    ended: BTreeMap<SequenceId, Finish>,
}

impl Listener for Book {
    fn alternatives(&self) -> usize {
        self.alternatives
    }

    fn token(&mut self, token: WrittenToken<'_>) -> ControlFlow<()> {
        assert!(!self.ended.contains_key(&token.sequence), "nothing comes behind the end");
        let heard = self.heard.entry(token.sequence).or_default();
        heard.push((token.id, token.log_prob, token.alternatives.to_vec()));
        match self.ends.get(&token.sequence) {
            Some(&end) if heard.len() >= end => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn ended(&mut self, sequence: SequenceId, finish: Finish) {
        assert!(self.ended.insert(sequence, finish).is_none(), "an end comes once");
    }
}

fn prompts() -> Vec<Vec<TokenId>> {
    vec![vec![9, 4, 1], vec![30, 31, 32, 33, 34, 35, 1], vec![8, 1], vec![6, 7, 18, 1], vec![5]]
}

fn sampled(samples_per_prompt: usize) -> GenerationConfig {
    GenerationConfig {
        strategy: Strategy::Sample(Sampling { temperature: 1.5, ..Sampling::default() }),
        max_new_tokens: 12,
        samples_per_prompt,
        ..GenerationConfig::default()
    }
}

/// Everything that must hold of a listener with any settings and any model.
fn check<N: Network>(model: &LanguageModel<N>, config: &GenerationConfig, what: &str) {
    let prompts = prompts();
    let free = model.generate(&prompts, config, &SEEDS).unwrap();
    let at = |id: SequenceId| &free[id.prompt][id.sample];
    let mut book = Book::default();
    let written = model.generate_with_listener(&prompts, config, &SEEDS, &mut book).unwrap();
    assert_eq!(written, free, "{what}: hearing changes nothing");
    assert_eq!(book.ended.len(), prompts.len() * config.samples_per_prompt, "{what}");
    for (&id, heard) in &book.heard {
        let ids: Vec<TokenId> = heard.iter().map(|token| token.0).collect();
        let log_probs: Vec<f32> = heard.iter().map(|token| token.1).collect();
        assert_eq!((&ids, &log_probs), (&at(id).ids, &at(id).log_probs), "{what}: {id:?}");
        assert_eq!(book.ended[&id], at(id).finish, "{what}: {id:?}");
    }

    // Some sequences are ended, at different lengths; the others do not notice.
    let ends: BTreeMap<SequenceId, usize> = book
        .heard
        .keys()
        .filter(|id| (id.prompt + id.sample).is_multiple_of(2))
        .map(|&id| (id, 1 + id.prompt + id.sample))
        .collect();
    let mut book = Book { ends, ..Book::default() };
    let written = model.generate_with_listener(&prompts, config, &SEEDS, &mut book).unwrap();
    let mut cancelled = 0;
    for (prompt, rows) in written.iter().enumerate() {
        for (sample, row) in rows.iter().enumerate() {
            let id = SequenceId { prompt, sample };
            let whole = at(id);
            let expected = match book.ends.get(&id) {
                Some(&end) if end < whole.ids.len() => {
                    cancelled += 1;
                    Generated {
                        ids: whole.ids[..end].to_vec(),
                        log_probs: whole.log_probs[..end].to_vec(),
                        sampling_log_probs: whole.sampling_log_probs[..end].to_vec(),
                        finish: Finish::Cancelled,
                        score: None,
                    }
                }
                _ => whole.clone(),
            };
            assert_eq!(*row, expected, "{what}: {id:?}");
            assert_eq!((book.heard[&id].len(), book.ended[&id]), (row.ids.len(), row.finish), "{what}");
        }
    }
    assert!(cancelled > 1, "{what}: the comparison is empty");
}

#[test]
fn hearing_changes_nothing_and_ends_only_what_is_ended() {
    let (t5, llama) = (model(plain()), llama(json!({})));
    // Prompts, then samples of one prompt, that do not fit into memory together.
    let small = |bytes| GenerationConfig { max_memory: Some(bytes), ..sampled(3) };
    let limited = |end| GenerationConfig { max_length: Some(14), forced_eos_token_id: end, ..sampled(2) };
    let settings = [
        ("one sample", sampled(1)),
        ("three samples", sampled(3)),
        ("greedy", GenerationConfig { strategy: Strategy::Greedy, min_new_tokens: 12, ..sampled(1) }),
        ("a few at a time", small(30_000)),
        ("one at a time", small(1)),
        ("limits of their own", limited(None)),
        ("a forced end at each limit", limited(Some(2))),
    ];
    for (what, config) in settings {
        check(&t5, &config, &format!("t5, {what}"));
        check(&llama, &config, &format!("llama, {what}"));
    }
}

#[test]
fn alternatives_are_the_most_probable_tokens() {
    let llama = llama(json!({}));
    let mut book = Book { alternatives: 3, ..Book::default() };
    let written = llama.generate_with_listener(&prompts(), &sampled(2), &SEEDS, &mut book).unwrap();
    for (id, heard) in &book.heard {
        let prompt = &prompts()[id.prompt];
        let row = &written[id.prompt][id.sample];
        for (i, (token, log_prob, alternatives)) in heard.iter().enumerate() {
            assert_eq!(alternatives.len(), 3);
            assert!(alternatives.is_sorted_by(|a, b| a.log_prob >= b.log_prob), "{alternatives:?}");
            assert!(alternatives[0].log_prob >= *log_prob);
            if let Some(same) = alternatives.iter().find(|one| one.id == *token) {
                assert_eq!(same.log_prob, *log_prob);
            }
            let context = [prompt.as_slice(), &row.ids[..i]].concat();
            let example = |one: &Alternative| Example { prompt: context.clone(), target: vec![one.id] };
            let examples: Vec<Example> = alternatives.iter().map(example).collect();
            let scores = tch::no_grad(|| llama.score(&examples, ScoreOptions::default())).unwrap().log_probs;
            let scores = Vec::<f32>::try_from(scores.view([-1])).unwrap();
            let told: Vec<f32> = alternatives.iter().map(|one| one.log_prob).collect();
            assert_close_rows(&told, &scores, "log-probabilities");
        }
    }
    // More than there are.
    let mut book = Book { alternatives: 100, ..Book::default() };
    llama.generate_with_listener(&prompts()[..1], &sampled(1), &SEEDS[..1], &mut book).unwrap();
    assert!(book.heard.values().flatten().all(|token| token.2.len() == 40));
}

#[test]
fn beam_search_is_not_heard() {
    let beam = GenerationConfig { strategy: Strategy::Beam(Beam::default()), ..sampled(1) };
    let heard = model(plain()).generate_with_listener(&prompts(), &beam, &[], &mut Book::default());
    refused(heard, &["beam search"]);
}
