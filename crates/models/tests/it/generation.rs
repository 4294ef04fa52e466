//! Generation: what is written, with which probabilities, and what is refused.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ruminate_models::{
    Beam, Example, Finish, Generate, Generated, GenerationConfig, Interrupt, Llama, Policy, Sampling,
    ScoreChoices, ScoreOptions, SequenceBias, Strategy, T5, TokenId, derive_seed, filter_logits, forbid,
};
use ruminate_torch::kernels::{Kernel, turn_on};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::support::{
    VOCAB, assert_close_rows, config, generator, ids, kinds, llama, llama_config, llamas, model, plain,
    refused,
};

const SAMPLING: Sampling =
    Sampling { temperature: 0.8, top_k: Some(20), top_p: Some(0.9), min_p: None, typical_p: None };

fn sampled(sampling: Sampling) -> GenerationConfig {
    GenerationConfig { strategy: Strategy::Sample(sampling), max_new_tokens: 8, ..Default::default() }
}

fn greedy() -> GenerationConfig {
    GenerationConfig { max_new_tokens: 8, ..Default::default() }
}

/// Prompts of very different lengths. The numbers are fixed: a draw that falls within a rounding error of the border
/// of two tokens is rare, but not impossible.
fn prompts(count: usize) -> Vec<Vec<TokenId>> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    (0..count).map(|i| (0..1 + 5 * (i % 4)).map(|_| rng.random_range(0..VOCAB)).collect()).collect()
}

fn seeds(count: usize) -> Vec<u64> {
    (0..count as u64).map(|i| derive_seed(5, &[i])).collect()
}

fn example(prompt: &[TokenId], written: &Generated) -> Example {
    Example { prompt: prompt.to_vec(), target: written.ids.clone() }
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

#[test]
fn a_prompt_gets_the_same_whatever_else_is_in_the_batch() {
    let (prompts, seeds) = (prompts(6), seeds(6));
    let backwards = |i: usize| prompts.len() - 1 - i;
    for (kind, t5) in kinds() {
        for settings in
            [greedy(), sampled(SAMPLING), GenerationConfig { samples_per_prompt: 3, ..sampled(SAMPLING) }]
        {
            let together = t5.generate(&prompts, &settings, &seeds).unwrap();
            let reversed: (Vec<_>, Vec<_>) = prompts.iter().cloned().zip(seeds.iter().copied()).rev().unzip();
            let reversed = t5.generate(&reversed.0, &settings, &reversed.1).unwrap();
            for i in 0..prompts.len() {
                let alone = t5.generate(&prompts[i..=i], &settings, &seeds[i..=i]).unwrap();
                assert_same(&together[i], &alone[0], kind);
                assert_same(&together[i], &reversed[backwards(i)], kind);
            }
        }
    }
}

/// As CUDA graphs need them; what they look at grows after 64 and 128 positions, and rows end on the way.
#[test]
#[expect(clippy::print_stderr, reason = "says what was not tested")]
fn steps_of_fixed_shapes_write_the_same() {
    fn check<M: Generate>(model: &M, kind: &str) {
        let (prompts, seeds) = (prompts(6), seeds(6));
        for samples_per_prompt in [1, 3] {
            for settings in [greedy(), sampled(SAMPLING)] {
                let settings = GenerationConfig {
                    max_new_tokens: 150,
                    samples_per_prompt,
                    stop_ids: vec![7, 11],
                    prefix: vec![5, 6],
                    ..settings
                };
                let plain = model.generate(&prompts, &settings, &seeds).unwrap();
                turn_on(&[Kernel::Graphs]).unwrap();
                let fixed = model.generate(&prompts, &settings, &seeds);
                turn_on(&[]).unwrap();
                for (plain, fixed) in plain.iter().zip(&fixed.unwrap()) {
                    assert_same(plain, fixed, &format!("{kind}, {samples_per_prompt}"));
                }
            }
        }
    }
    for (kind, t5) in kinds() {
        check(&t5, kind);
    }
    for (kind, llama) in llamas() {
        check(&llama, kind);
    }
    check(
        &llama(json!({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 70})),
        "a long window",
    );
    if !tch::Cuda::is_available() {
        eprintln!("skipped on CUDA: there is no GPU");
        return;
    }
    let device = Device::Cuda(0);
    check(&T5::new(plain(), Kind::Float, device, 1).unwrap(), "T5 on CUDA");
    check(&Llama::new(llama_config(json!({})), Kind::Float, device, 1).unwrap(), "Llama on CUDA");
}

#[test]
fn seeds_and_samples_decide_what_is_drawn() {
    let t5 = model(plain());
    let settings = GenerationConfig { samples_per_prompt: 4, ..sampled(Sampling::default()) };
    let prompt = [vec![4, 9, 1], vec![4, 9, 1], vec![4, 9, 1]];
    let written = t5.generate(&prompt, &settings, &[1, 1, 2]).unwrap();
    assert_same(&written[0], &written[1], "one seed");
    assert!(written[0].iter().zip(&written[2]).all(|(a, b)| a.ids != b.ids), "two seeds: {written:?}");
    for (i, a) in written[0].iter().enumerate() {
        assert!(written[0][..i].iter().all(|b| a.ids != b.ids), "samples of one prompt differ: {written:?}");
    }
}

#[test]
fn fewer_samples_or_tokens_are_the_beginning_of_more() {
    let t5 = model(plain());
    let settings = |samples_per_prompt, max_new_tokens| GenerationConfig {
        samples_per_prompt,
        max_new_tokens,
        ..sampled(SAMPLING)
    };
    let prompt = [vec![4, 9, 1]];
    let many = &t5.generate(&prompt, &settings(4, 8), &[1]).unwrap()[0];
    let few = &t5.generate(&prompt, &settings(2, 3), &[1]).unwrap()[0];
    assert_eq!(few.len(), 2);
    for (few, many) in few.iter().zip(many) {
        assert_eq!(few.ids, many.ids[..many.ids.len().min(3)]);
    }
}

#[test]
fn greedy_takes_the_largest_logit_at_every_step() {
    for (kind, t5) in kinds() {
        let prompts = prompts(3);
        let settings = GenerationConfig { samples_per_prompt: 2, ..greedy() };
        for (prompt, written) in prompts.iter().zip(t5.generate(&prompts, &settings, &[]).unwrap()) {
            let encoded = t5.encode(&t5.batch(&[prompt]).unwrap()).unwrap();
            let mut row = vec![0];
            while row.len() <= 8 && row.last() != Some(&1) {
                let states = t5.decode(&encoded, &ids(std::slice::from_ref(&row))).unwrap();
                let last = t5.logits(&states).unwrap().get(0).get(-1);
                row.push(last.argmax(0, false).int64_value(&[]));
            }
            assert_eq!(written[0].ids, row[1..], "{kind}");
            assert_same(&written[..1], &written[1..], kind);
            assert_eq!(written[0].log_probs, written[0].sampling_log_probs, "{kind}");
        }
    }
}

#[test]
fn the_largest_of_one_is_greedy() {
    for (kind, t5) in kinds() {
        let top = sampled(Sampling { top_k: Some(1), ..Sampling::default() });
        let tiny = sampled(Sampling { top_p: Some(1e-6), ..Sampling::default() });
        let cold = sampled(Sampling { temperature: 1e-5, ..Sampling::default() });
        let expected = t5.generate(&prompts(4), &greedy(), &[]).unwrap();
        for settings in [top, tiny, cold] {
            let written = t5.generate(&prompts(4), &settings, &seeds(4)).unwrap();
            for (written, expected) in written.iter().flatten().zip(expected.iter().flatten()) {
                assert_eq!(written.ids, expected.ids, "{kind}");
                assert_close_rows(&written.log_probs, &expected.log_probs, kind);
                assert!(
                    written.sampling_log_probs.iter().all(|p| p.abs() < 1e-6),
                    "a certain draw: {written:?}"
                );
            }
        }
    }
}

#[test]
fn log_probs_are_those_of_score() {
    for (kind, t5) in kinds() {
        let settings = GenerationConfig {
            samples_per_prompt: 2,
            forbidden_ids: vec![0, 3],
            min_new_tokens: 2,
            ..sampled(SAMPLING)
        };
        let prompts = prompts(4);
        let written = t5.generate(&prompts, &settings, &seeds(4)).unwrap();
        for (prompt, written) in prompts.iter().zip(&written) {
            for written in written {
                let scores = t5.score(&[example(prompt, written)], ScoreOptions::default()).unwrap();
                let expected: Vec<f32> = scores.log_probs.get(0).try_into().unwrap();
                assert_close_rows(&written.log_probs, &expected, kind);
            }
        }
    }
}

#[test]
fn sampling_log_probs_are_those_of_the_filtered_distribution() {
    let settings = [
        Sampling::default(),
        Sampling { temperature: 1.7, ..Sampling::default() },
        Sampling { top_k: Some(5), ..Sampling::default() },
        Sampling { top_p: Some(0.6), ..Sampling::default() },
        SAMPLING,
    ];
    let (forbidden, stop) = (vec![0, 7], vec![1, 12]);
    for (kind, t5) in kinds() {
        for sampling in settings {
            let settings = GenerationConfig {
                forbidden_ids: forbidden.clone(),
                stop_ids: stop.clone(),
                min_new_tokens: 3,
                ..sampled(sampling)
            };
            let prompt = vec![8, 30, 1];
            let written = &t5.generate(std::slice::from_ref(&prompt), &settings, &[6]).unwrap()[0][0];
            let states = t5
                .score(&[example(&prompt, written)], ScoreOptions { entropy: false, states: true })
                .unwrap();
            let mut logits = t5.logits(&states.states.unwrap().get(0)).unwrap();
            logits = forbid(&logits, &Tensor::from_slice(&forbidden)).unwrap();
            let early = (written.ids.len() as i64).min(3);
            let mut first = logits.narrow(0, 0, early);
            first.copy_(&forbid(&first, &Tensor::from_slice(&stop)).unwrap());
            let all = filter_logits(&logits, &sampling).unwrap().log_softmax(-1, Kind::Float);
            let chosen = all.gather(1, &Tensor::from_slice(&written.ids).unsqueeze(1), false);
            let expected: Vec<f32> = chosen.view([-1]).try_into().unwrap();
            assert_close_rows(&written.sampling_log_probs, &expected, kind);
        }
    }
}

/// Many samples of one prompt.
fn many(t5: &T5, settings: GenerationConfig) -> Vec<Generated> {
    let settings = GenerationConfig { samples_per_prompt: 200, ..settings };
    t5.generate(&[vec![4, 9, 1]], &settings, &[11]).unwrap().remove(0)
}

#[test]
fn rows_end_with_their_first_stop_token_or_at_the_limit() {
    let t5 = model(plain());
    for stop_ids in [vec![], vec![3, 17, 22, 5, 6]] {
        let stop = if stop_ids.is_empty() { vec![1] } else { stop_ids.clone() };
        let settings =
            GenerationConfig { stop_ids, ..sampled(Sampling { temperature: 3.0, ..Sampling::default() }) };
        let written = many(&t5, settings);
        for row in &written {
            let (last, before) = row.ids.split_last().unwrap();
            assert!(before.iter().all(|id| !stop.contains(id)), "{row:?}");
            assert_eq!(row.finish == Finish::Stop, stop.contains(last), "{row:?}");
            assert!(row.ids.len() == 8 || row.finish == Finish::Stop, "{row:?}");
            assert!(row.ids.len() <= 8);
            assert_eq!((row.log_probs.len(), row.sampling_log_probs.len()), (row.ids.len(), row.ids.len()));
        }
        assert!(written.iter().any(|row| row.finish == Finish::Stop && row.ids.len() < 8));
        assert!(written.iter().any(|row| row.finish == Finish::Length));
    }
}

#[test]
fn no_stop_token_comes_too_early() {
    let t5 = model(plain());
    let settings = |min_new_tokens| GenerationConfig {
        min_new_tokens,
        stop_ids: (1..20).collect(),
        ..sampled(Sampling::default())
    };
    let shortest = |rows: &[Generated]| rows.iter().map(|row| row.ids.len()).min().unwrap();
    assert_eq!(shortest(&many(&t5, settings(0))), 1);
    assert_eq!(shortest(&many(&t5, settings(3))), 4);
    assert!(many(&t5, settings(8)).iter().all(|row| row.finish == Finish::Length));
    // The greedy choice keeps to it as well.
    let first = |min_new_tokens| {
        let settings = GenerationConfig { strategy: Strategy::Greedy, ..settings(min_new_tokens) };
        t5.generate(&prompts(8), &settings, &[]).unwrap()
    };
    assert!(first(0).iter().any(|rows| rows[0].ids.len() == 1));
    assert!(first(2).iter().all(|rows| rows[0].ids.len() > 2));
}

#[test]
fn forbidden_tokens_never_come() {
    let t5 = model(plain());
    let forbidden: Vec<TokenId> = (0..VOCAB).filter(|&id| id % 3 != 0).collect();
    let settings = |forbidden_ids: &[TokenId]| GenerationConfig {
        forbidden_ids: forbidden_ids.to_vec(),
        ..sampled(Sampling { temperature: 3.0, ..Sampling::default() })
    };
    let any = |rows: &[Generated]| rows.iter().flat_map(|row| &row.ids).any(|id| forbidden.contains(id));
    assert!(any(&many(&t5, settings(&[]))));
    assert!(!any(&many(&t5, settings(&forbidden))));
    // A forbidden end token never ends a row.
    assert!(many(&t5, settings(&forbidden)).iter().all(|row| row.finish == Finish::Length));
    let greedy = GenerationConfig { strategy: Strategy::Greedy, ..settings(&forbidden) };
    assert!(!any(&t5.generate(&prompts(4), &greedy, &[]).unwrap().concat()));
}

/// Pearson's statistic of draws against a distribution, and the number of categories.
fn chi_square(counts: &[u32], expected: &[f32], draws: f64) -> (f64, usize) {
    let mut statistic = 0.0;
    // Rare tokens share a category, as the statistic asks for.
    let (mut rare_seen, mut rare_expected, mut categories) = (0.0, 0.0, 0);
    for (&count, &p) in counts.iter().zip(expected) {
        let mean = f64::from(p) * draws;
        if mean < 5.0 {
            rare_seen += f64::from(count);
            rare_expected += mean;
        } else {
            statistic += (f64::from(count) - mean).powi(2) / mean;
            categories += 1;
        }
    }
    if rare_expected > 1.0 {
        statistic += (rare_seen - rare_expected).powi(2) / rare_expected;
        categories += 1;
    }
    (statistic, categories)
}

#[test]
fn draws_follow_the_distribution() {
    let t5 = model(plain());
    let prompt = vec![4, 9, 1];
    let encoded = t5.encode(&t5.batch(&[&prompt]).unwrap()).unwrap();
    let logits = t5.logits(&t5.decode(&encoded, &ids(&[vec![0]])).unwrap()).unwrap().view([1, -1]);
    for sampling in [Sampling::default(), Sampling { temperature: 2.0, ..Sampling::default() }, SAMPLING] {
        let p: Vec<f32> = filter_logits(&logits, &sampling)
            .unwrap()
            .softmax(-1, Kind::Float)
            .view([-1])
            .try_into()
            .unwrap();
        // Samples of one prompt, and the first sample of many prompts, are both independent draws.
        let one = GenerationConfig { max_new_tokens: 1, samples_per_prompt: 4000, ..sampled(sampling) };
        let each = GenerationConfig { samples_per_prompt: 1, ..one.clone() };
        let samples = t5.generate(std::slice::from_ref(&prompt), &one, &[21]).unwrap().concat();
        let prompts = t5.generate(&vec![prompt.clone(); 4000], &each, &seeds(4000)).unwrap().concat();
        for written in [samples, prompts] {
            let mut counts = vec![0; VOCAB as usize];
            written.iter().for_each(|row| counts[row.ids[0] as usize] += 1);
            for (id, (&count, &p)) in counts.iter().zip(&p).enumerate() {
                assert!(p > 0.0 || count == 0, "token {id} was filtered out, but came {count} times");
            }
            let (statistic, categories) = chi_square(&counts, &p, 4000.0);
            // Mean n - 1 and variance 2 (n - 1): five standard deviations.
            let freedom = categories as f64 - 1.0;
            assert!(statistic < freedom + 5.0 * (2.0 * freedom).sqrt(), "{statistic} with {freedom} degrees");
        }
    }
}

#[test]
fn later_tokens_are_drawn_with_fresh_numbers() {
    let t5 = model(plain());
    let written = many(
        &t5,
        GenerationConfig {
            min_new_tokens: 8,
            ..sampled(Sampling { temperature: 1e5, ..Sampling::default() })
        },
    );
    // At this temperature all tokens are equally likely at every step, so that repeated numbers would show.
    let repeats = written.iter().flat_map(|row| row.ids.windows(2)).filter(|pair| pair[0] == pair[1]).count();
    let pairs = 200 * 7;
    assert!(
        (10..80).contains(&repeats),
        "{repeats} of {pairs} tokens repeat the one before; 36 are expected"
    );
}

#[test]
fn wrong_settings_are_named() {
    let t5 = model(plain());
    let wrong = |settings: GenerationConfig, parts: &[&str]| {
        refused(t5.generate(&[vec![4, 1]], &settings, &[1]), parts);
        // A wrong setting is an error even when there is nothing to do.
        refused(t5.generate(&[], &settings, &[]), parts);
    };
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-45] {
        wrong(sampled(Sampling { temperature, ..Sampling::default() }), &["temperature"]);
    }
    for top_p in [0.0, -0.5, 1.5, f64::NAN] {
        wrong(sampled(Sampling { top_p: Some(top_p), ..Sampling::default() }), &["top_p"]);
    }
    wrong(GenerationConfig { max_new_tokens: 0, ..greedy() }, &["max_new_tokens"]);
    wrong(GenerationConfig { samples_per_prompt: 0, ..greedy() }, &["samples_per_prompt"]);
    for id in [-1, VOCAB] {
        wrong(GenerationConfig { stop_ids: vec![1, id], ..greedy() }, &[&id.to_string(), "vocabulary of 40"]);
        wrong(
            GenerationConfig { forbidden_ids: vec![id], ..greedy() },
            &[&id.to_string(), "vocabulary of 40"],
        );
    }
}

#[test]
fn settings_that_leave_no_token_are_an_error() {
    let t5 = model(plain());
    let generate = |settings| t5.generate(&[vec![4, 1]], &settings, &[1]);
    let all = GenerationConfig { forbidden_ids: (0..VOCAB).collect(), ..greedy() };
    refused(generate(all), &["forbidden_ids"]);
    let but_the_end: Vec<TokenId> = (0..VOCAB).filter(|&id| id != 1).collect();
    let settings = GenerationConfig { forbidden_ids: but_the_end, ..sampled(Sampling::default()) };
    assert_eq!(generate(settings.clone()).unwrap()[0][0].ids, [1]);
    refused(
        generate(GenerationConfig { min_new_tokens: 1, ..settings }),
        &["forbidden_ids", "min_new_tokens"],
    );
}

#[test]
fn seeds_and_prompts_that_do_not_fit_are_errors() {
    let t5 = model(plain());
    for seeds in [&[][..], &[1], &[1, 2, 3]] {
        let count = format!("{} seeds for 2 prompts", seeds.len());
        refused(t5.generate(&prompts(2), &sampled(SAMPLING), seeds), &[&count]);
        assert_eq!(t5.generate(&prompts(2), &greedy(), seeds).unwrap().len(), 2, "greedy needs none");
    }
    assert!(t5.generate(&[], &sampled(SAMPLING), &[]).unwrap().is_empty());
    refused(t5.generate(&[vec![3], vec![]], &greedy(), &[]), &["row 1"]);
    refused(t5.generate(&[vec![3, 40]], &greedy(), &[]), &["id 40"]);
    refused(model(crate::support::encoder_only()).generate(&[vec![3]], &greedy(), &[]), &["only an encoder"]);
}

#[test]
fn writing_in_training_mode_has_no_dropout() {
    let mut t5 = model(config(serde_json::json!({"dropout_rate": 0.5})));
    let prompts = prompts(4);
    let expected = t5.generate(&prompts, &greedy(), &[]).unwrap();
    t5.set_training(true);
    let _generator = generator();
    tch::manual_seed(1);
    assert_eq!(t5.generate(&prompts, &greedy(), &[]).unwrap(), expected);
}

#[test]
fn writing_uses_no_gradients_and_no_shared_generator() {
    let t5 = model(plain());
    let _generator = generator();
    let before = ruminate_torch::rng::state(tch::Device::Cpu).unwrap();
    t5.generate(&prompts(2), &sampled(SAMPLING), &[1, 2]).unwrap();
    assert!(ruminate_torch::rng::state(tch::Device::Cpu).unwrap().equal(&before));
    assert!(t5.parameters().iter().all(|(_, p)| !p.grad().defined() && p.requires_grad()));
}

#[test]
fn settings_read_from_files_have_defaults_and_no_unknown_keys() {
    let read = |text: &str| serde_json::from_str::<GenerationConfig>(text);
    assert_eq!(read("{}").unwrap(), GenerationConfig::default());
    let text = r#"{"strategy": {"sample": {"top_p": 0.5}}, "max_new_tokens": 4}"#;
    let expected = GenerationConfig {
        strategy: Strategy::Sample(Sampling { top_p: Some(0.5), ..Sampling::default() }),
        max_new_tokens: 4,
        ..Default::default()
    };
    assert_eq!(read(text).unwrap(), expected);
    assert!(read(r#"{"max_tokens": 4}"#).unwrap_err().to_string().contains("max_tokens"));
    assert!(read(r#"{"strategy": {"sample": {"topp": 0.5}}}"#).unwrap_err().to_string().contains("topp"));
}

#[test]
fn every_filter_of_a_draw_can_be_asked_for() {
    for (kind, t5) in kinds() {
        let (prompts, seeds) = (prompts(4), seeds(4));
        let best = t5.generate(&prompts, &greedy(), &[]).unwrap();
        let sample = |sampling| t5.generate(&prompts, &sampled(sampling), &seeds).unwrap();
        // Nothing but the most probable token has the whole of its probability.
        let one = sample(Sampling { min_p: Some(1.0), ..Sampling::default() });
        for (one, best) in one.iter().zip(&best) {
            assert_eq!(one[0].ids, best[0].ids, "{kind}");
            assert!(one[0].sampling_log_probs.iter().all(|&p| p == 0.0), "{kind}");
        }
        let all = sample(Sampling::default());
        let off = sample(Sampling { min_p: Some(0.0), typical_p: Some(1.0), ..Sampling::default() });
        for (all, off) in all.iter().zip(&off) {
            assert_same(all, off, kind);
        }
        let typical = sample(Sampling { typical_p: Some(0.2), ..Sampling::default() });
        // What is left is more probable than it was among all tokens.
        for row in typical.iter().flatten() {
            let pairs = row.sampling_log_probs.iter().zip(&row.log_probs);
            assert!(pairs.clone().all(|(after, before)| *after >= before - 1e-4), "{kind}");
            assert!(pairs.clone().any(|(after, before)| *after > before + 0.1), "{kind}");
        }
        says(t5.generate(&prompts, &sampled(Sampling { min_p: Some(1.5), ..SAMPLING }), &seeds), "min_p");
        says(
            t5.generate(&prompts, &sampled(Sampling { typical_p: Some(0.0), ..SAMPLING }), &seeds),
            "typical_p",
        );
    }
}

fn says(result: ruminate_models::Result<Vec<Vec<Generated>>>, what: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(what), "{error}");
}

#[test]
fn biases_and_forced_ends_are_kept() {
    for (kind, t5) in kinds() {
        let prompts = prompts(4);
        let plain = t5.generate(&prompts, &greedy(), &[]).unwrap();
        let first = plain[0][0].ids[0];
        let bias = |ids: Vec<TokenId>, bias| GenerationConfig {
            sequence_bias: vec![SequenceBias { ids, bias }],
            ..greedy()
        };
        let without = t5.generate(&prompts, &bias(vec![first], f64::NEG_INFINITY), &[]).unwrap();
        assert!(without.iter().flatten().all(|row| !row.ids.contains(&first)), "{kind}");
        let only = t5.generate(&prompts, &bias(vec![17], 1e4), &[]).unwrap();
        assert!(only.iter().flatten().all(|row| row.ids.iter().all(|&id| id == 17)), "{kind}");
        // Never twice in a row.
        let pair = t5.generate(&prompts, &bias(vec![first, first], f64::NEG_INFINITY), &[]).unwrap();
        let twice = |ids: &[TokenId]| ids.windows(2).any(|pair| pair == [first, first]);
        assert!(pair.iter().flatten().all(|row| !twice(&row.ids)), "{kind}");

        let forced = GenerationConfig { forced_eos_token_id: Some(1), max_new_tokens: 5, ..greedy() };
        for row in t5.generate(&prompts, &forced, &[]).unwrap().iter().flatten() {
            assert_eq!((row.ids.last(), row.finish), (Some(&1), Finish::Stop), "{kind}");
        }
        let contradiction = GenerationConfig { forbidden_ids: vec![1], ..forced };
        says(t5.generate(&prompts, &contradiction, &[]), "forced_eos_token_id");
        says(t5.generate(&prompts, &bias(vec![99], 1.0), &[]), "99");
        says(t5.generate(&prompts, &bias(vec![9], f64::NAN), &[]), "sequence_bias");
    }
}

#[test]
fn rows_that_wait_for_memory_get_the_same() {
    fn check<M: Generate>(model: &M, kind: &str) {
        let (prompts, seeds) = (prompts(6), seeds(6));
        let beam = Strategy::Beam(Beam { num_beams: 3, ..Beam::default() });
        for settings in [
            greedy(),
            GenerationConfig { samples_per_prompt: 3, ..sampled(SAMPLING) },
            GenerationConfig { strategy: beam, samples_per_prompt: 2, ..greedy() },
        ] {
            let together = model.generate(&prompts, &settings, &seeds).unwrap();
            // One row at a time, some, and all.
            for max_memory in [1, 60_000, u64::MAX] {
                let settings = GenerationConfig { max_memory: Some(max_memory), ..settings.clone() };
                let divided = model.generate(&prompts, &settings, &seeds).unwrap();
                for (a, b) in divided.iter().zip(&together) {
                    assert_same(a, b, kind);
                }
            }
        }
    }
    for (kind, t5) in kinds() {
        check(&t5, kind);
    }
    for (kind, llama) in llamas() {
        check(&llama, kind);
    }
}

/// Whoever writes for an hour stops within a token.
#[test]
fn writing_ends_when_somebody_asks() {
    let llama = llama(json!({}));
    let config =
        GenerationConfig { max_new_tokens: 50_000, stop_ids: vec![0], forbidden_ids: vec![0], ..greedy() };
    let interrupt = Interrupt::default();
    let raised = interrupt.clone();
    let started = std::time::Instant::now();
    let alarm = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        raised.raise();
    });
    let error = interrupt.during(|| llama.generate(&prompts(2), &config, &[])).unwrap_err();
    assert!(matches!(error, ruminate_models::Error::Interrupted), "{error}");
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    alarm.join().unwrap();
    // Elsewhere nothing ends, nor after it.
    assert_eq!(llama.generate(&prompts(2), &greedy(), &[]).unwrap().len(), 2);
    let error = interrupt.during(|| llama.first_token_logits(&prompts(1), &[vec![1]])).unwrap_err();
    assert!(matches!(error, ruminate_models::Error::Interrupted), "{error}");
}
