//! Rows that end where their text holds a string.

use ruminate_models::{
    Beam, Finish, Generate, Generated, GenerationConfig, Sampling, Strategy, T5, T5Config, TokenId, Tokenizer,
};
use tch::{Device, Kind};

use crate::support::{generator, refused, world};

const TIME: usize = 14;

fn config() -> T5Config {
    T5Config {
        d_model: 16,
        d_kv: 8,
        d_ff: 24,
        num_heads: 2,
        ..T5Config::open(&world().join("config.json")).unwrap()
    }
}

fn model() -> T5 {
    let _generator = generator();
    let mut t5 = T5::new(config(), Kind::Float, Device::Cpu, 5).unwrap();
    t5.set_tokenizer(tokenizer());
    t5
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&world()).unwrap()
}

fn settings(stop_strings: &[&str]) -> GenerationConfig {
    GenerationConfig {
        // A new model says nothing with confidence: rows differ, and each is full of words.
        strategy: Strategy::Sample(Sampling { temperature: 2.0, ..Sampling::default() }),
        max_new_tokens: TIME,
        samples_per_prompt: 3,
        stop_strings: stop_strings.iter().map(|s| s.to_string()).collect(),
        ..GenerationConfig::default()
    }
}

/// The same, with a word in every place: neither special tokens nor embeddings without a token have a text.
fn wordy(stop_strings: &[&str]) -> GenerationConfig {
    let without_text = (0..3).chain(tokenizer().vocab_size() as TokenId..config().vocab_size);
    GenerationConfig { forbidden_ids: without_text.collect(), ..settings(stop_strings) }
}

const SEEDS: [u64; 4] = [11, 12, 13, 14];

fn prompts() -> Vec<Vec<TokenId>> {
    vec![vec![9, 4, 1], vec![30, 31, 32, 33, 34, 35, 1], vec![8, 1], vec![60, 70, 80, 1]]
}

fn text(ids: &[TokenId]) -> String {
    tokenizer().decode(ids, true).unwrap()
}

/// What a row is cut to: its beginning that ends with the first token by which one more string is complete.
fn cut(free: &Generated, settings: &GenerationConfig) -> Option<usize> {
    let count = |n: usize| -> usize {
        let text = text(&free.ids[..n]);
        settings.stop_strings.iter().map(|stop| text.matches(stop.as_str()).count()).sum()
    };
    (settings.min_new_tokens.max(1)..=free.ids.len()).find(|&n| count(n) > count(n - 1))
}

#[test]
fn rows_end_with_the_token_that_completes_a_string() {
    let t5 = model();
    let free = t5.generate(&prompts(), &wordy(&[]), &SEEDS).unwrap();
    let whole = text(&free[1][0].ids);
    // Across the border of two tokens: the end of a word, a blank, the beginning of the next word.
    let words: Vec<&str> = whole.split(' ').collect();
    assert!(words.len() > 8, "{whole}");
    let across = format!("{} {}", &words[4][words[4].len() - 1..], &words[5][..1]);
    // Late enough for either minimum.
    let within = text(&free[2][1].ids).split(' ').nth(10).unwrap().to_string();
    for min_new_tokens in [0, 9] {
        let settings = GenerationConfig { min_new_tokens, ..wordy(&[&across, &within]) };
        // Settings change what is drawn before `min_new_tokens`, so the free run has them too.
        let without = GenerationConfig { stop_strings: vec![], ..settings.clone() };
        let free = t5.generate(&prompts(), &without, &SEEDS).unwrap();
        let stopped = t5.generate(&prompts(), &settings, &SEEDS).unwrap();
        let mut ended = 0;
        for (i, (free, stopped)) in free.iter().zip(&stopped).enumerate() {
            let alone = t5.generate(&prompts()[i..=i], &settings, &SEEDS[i..=i]).unwrap();
            for ((free, stopped), alone) in free.iter().zip(stopped).zip(&alone[0]) {
                let length = cut(free, &settings);
                let expected = length.unwrap_or(free.ids.len());
                assert_eq!(stopped.ids, free.ids[..expected]);
                assert_eq!(stopped.log_probs.len(), expected);
                assert_eq!(stopped.sampling_log_probs.len(), expected);
                let finish = if length.is_some() { Finish::StopString } else { free.finish };
                assert_eq!(stopped.finish, finish);
                assert_eq!(
                    (&alone.ids, alone.finish),
                    (&stopped.ids, stopped.finish),
                    "whatever else is there"
                );
                ended += usize::from(length.is_some_and(|length| length < free.ids.len()));
            }
        }
        assert!(ended > 0, "no row was cut: the comparison is empty");
    }
}

#[test]
fn greedy_rows_end_too_and_a_stop_token_comes_first() {
    let t5 = model();
    let greedy = |stop: &[&str]| GenerationConfig { strategy: Strategy::Greedy, ..wordy(stop) };
    let free = &t5.generate(&prompts(), &greedy(&[]), &[]).unwrap()[0][0];
    let word = text(&free.ids[..1]);
    let stopped = &t5.generate(&prompts(), &greedy(&[&word]), &[]).unwrap()[0];
    for row in stopped {
        assert_eq!((&row.ids[..], row.finish), (&free.ids[..1], Finish::StopString));
    }
    // The same token as a stop token.
    let both = GenerationConfig { stop_ids: vec![free.ids[0]], ..greedy(&[&word]) };
    assert_eq!(t5.generate(&prompts(), &both, &[]).unwrap()[0][0].finish, Finish::Stop);
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let t5 = model();
    refused(t5.generate(&prompts(), &settings(&["x", ""]), &SEEDS), &["stop string is empty"]);
    let beam = GenerationConfig { strategy: Strategy::Beam(Beam::default()), ..settings(&["x"]) };
    refused(t5.generate(&prompts(), &beam, &[]), &["stop_strings", "beam"]);
    let without = crate::support::model(crate::support::plain());
    refused(without.generate(&[vec![4, 1]], &settings(&["x"]), &[1]), &["stop_strings", "set_tokenizer"]);
}
