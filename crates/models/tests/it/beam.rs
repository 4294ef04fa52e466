//! Beam search, and the rules against repetition.

use ruminate_models::{
    Beam, EarlyStopping, Example, Finish, Generate, GenerationConfig, Policy, ScoreOptions, Strategy, T5,
    TokenId,
};
use tch::Kind;

use crate::support::{VOCAB, assert_close_rows, kinds, model, plain, refused};

const EOS: TokenId = 1;

fn beam(num_beams: usize, length_penalty: f64) -> GenerationConfig {
    let settings = Beam { num_beams, length_penalty, early_stopping: EarlyStopping::Never };
    GenerationConfig { strategy: Strategy::Beam(settings), max_new_tokens: 6, ..Default::default() }
}

fn prompts() -> Vec<Vec<TokenId>> {
    vec![vec![5, 9, 3, EOS], vec![7, EOS], (2..20).collect(), vec![30, 31, 32, EOS]]
}

/// Sum of log-probabilities of each target after the prompt.
fn totals(t5: &T5, prompt: &[TokenId], targets: &[Vec<TokenId>]) -> Vec<f64> {
    let example = |target: &Vec<TokenId>| Example { prompt: prompt.to_vec(), target: target.clone() };
    let examples: Vec<Example> = targets.iter().map(example).collect();
    let scores = tch::no_grad(|| t5.score(&examples, ScoreOptions::default())).unwrap();
    Vec::try_from(scores.log_probs.sum_dim_intlist(1, false, Kind::Double)).unwrap()
}

#[test]
fn enough_beams_find_the_best_of_all_sequences() {
    let t5 = model(plain());
    let config = GenerationConfig { max_new_tokens: 2, ..beam(VOCAB as usize, 0.0) };
    // Everything that can be written in two tokens.
    let mut all = vec![vec![EOS]];
    for first in (0..VOCAB).filter(|&id| id != EOS) {
        all.extend((0..VOCAB).map(|second| vec![first, second]));
    }
    for prompt in prompts() {
        let totals = totals(&t5, &prompt, &all);
        let best = (0..all.len()).max_by(|&a, &b| totals[a].total_cmp(&totals[b])).unwrap();
        let found = &t5.generate(std::slice::from_ref(&prompt), &config, &[]).unwrap()[0][0];
        assert_eq!(found.ids, all[best]);
        assert!((found.score.unwrap() - totals[best]).abs() < 1e-4, "{found:?} {}", totals[best]);
        assert_eq!(found.finish, if found.ids.ends_with(&[EOS]) { Finish::Stop } else { Finish::Length });
    }
}

#[test]
fn prompts_do_not_disturb_each_other() {
    for (name, t5) in kinds() {
        let config = GenerationConfig { samples_per_prompt: 3, ..beam(3, 1.0) };
        let together = t5.generate(&prompts(), &config, &[]).unwrap();
        for (prompt, together) in prompts().iter().zip(&together) {
            let alone = &t5.generate(std::slice::from_ref(prompt), &config, &[]).unwrap()[0];
            let ids = |found: &[ruminate_models::Generated]| {
                found.iter().map(|g| g.ids.clone()).collect::<Vec<_>>()
            };
            assert_eq!(ids(alone), ids(together), "{name}");
            assert!(together.is_sorted_by(|a, b| a.score >= b.score), "{name}");
            for found in together {
                let total = totals(&t5, prompt, std::slice::from_ref(&found.ids))[0];
                let score = total / found.ids.len() as f64;
                assert!((found.score.unwrap() - score).abs() < 1e-4, "{name}: {found:?} {score}");
            }
        }
    }
}

#[test]
fn no_pair_of_tokens_is_written_twice() {
    let t5 = model(plain());
    for strategy in [Strategy::Greedy, beam(3, 1.0).strategy] {
        let free =
            GenerationConfig { strategy, max_new_tokens: 12, forbidden_ids: vec![EOS], ..Default::default() };
        let config = GenerationConfig { no_repeat_ngram_size: 2, ..free.clone() };
        let repeats = |config: &GenerationConfig| {
            let written = t5.generate(&prompts(), config, &[]).unwrap();
            let repeats = |ids: &[TokenId]| {
                let mut pairs: Vec<&[TokenId]> = ids.windows(2).collect();
                let count = pairs.len();
                pairs.sort_unstable();
                pairs.dedup();
                count - pairs.len()
            };
            written.iter().flatten().map(|g| repeats(&g.ids)).sum::<usize>()
        };
        assert!(repeats(&free) > 0, "the model does not repeat itself; the test says nothing");
        assert_eq!(repeats(&config), 0);
    }
}

#[test]
fn a_penalty_makes_repetition_rarer() {
    let t5 = model(plain());
    let distinct = |repetition_penalty| {
        let config = GenerationConfig { repetition_penalty, max_new_tokens: 12, ..Default::default() };
        let written = t5.generate(&prompts(), &config, &[]).unwrap();
        let distinct = |ids: &[TokenId]| ids.iter().collect::<std::collections::BTreeSet<_>>().len();
        written.iter().flatten().map(|g| distinct(&g.ids)).sum::<usize>()
    };
    assert!(distinct(5.0) > distinct(1.0));
}

#[test]
fn a_prefix_is_continued_and_not_returned() {
    for (name, t5) in kinds() {
        let prefix = vec![11, 4, 22];
        let config = GenerationConfig { prefix: prefix.clone(), max_new_tokens: 5, ..Default::default() };
        let written = t5.generate(&prompts(), &config, &[]).unwrap();
        for (prompt, written) in prompts().iter().zip(&written) {
            let written = &written[0];
            assert!(written.ids.len() <= 5, "{name}");
            let target = [prefix.clone(), written.ids.clone()].concat();
            let scores = tch::no_grad(|| {
                t5.score(&[Example { prompt: prompt.clone(), target }], ScoreOptions::default())
            })
            .unwrap();
            let expected: Vec<f32> = Vec::try_from(scores.log_probs.view([-1])).unwrap();
            assert_close_rows(&written.log_probs, &expected[prefix.len()..], name);
        }
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let t5 = model(plain());
    let refuse = |config: GenerationConfig, part: &str| {
        refused(t5.generate(&prompts(), &config, &[]), &[part]);
    };
    refuse(GenerationConfig { samples_per_prompt: 3, ..beam(2, 1.0) }, "2 beams cannot return 3");
    refuse(beam(2, f64::NAN), "length_penalty");
    refuse(GenerationConfig { repetition_penalty: 0.0, ..Default::default() }, "repetition_penalty");
    refuse(GenerationConfig { prefix: vec![VOCAB], ..Default::default() }, "outside the vocabulary");
}
