//! Models whose weights are bfloat16: they score and write as float32 ones do, within the rounding of their weights and
//! states (a relative 2^-9 each).

use ruminate_models::{
    Example, Generate, GenerationConfig, Policy, Sampling, ScoreOptions, Strategy, T5, TokenId,
};
use tch::{Device, Kind, Tensor};

use crate::support::{deep, gated, model, plain};

/// A model in float32, whose weights are numbers that bfloat16 has, the same in bfloat16, and the nats by which their
/// log-probabilities may differ: about 2^-6 of the size of the logits, which T5 1.1 does not scale down.
fn pairs() -> Vec<(T5, T5, f64)> {
    let pair = |(config, nats)| {
        let exact = model(config);
        tch::no_grad(|| {
            for (_, p) in exact.parameters().iter() {
                p.shallow_clone().copy_(&p.to_kind(Kind::BFloat16));
            }
        });
        let folder = tempfile::tempdir().unwrap();
        exact.save(folder.path()).unwrap();
        let rounded = T5::load(folder.path(), Kind::BFloat16, Device::Cpu).unwrap();
        assert!(rounded.parameters().iter().all(|(_, p)| p.kind() == Kind::BFloat16));
        (exact, rounded, nats)
    };
    [(plain(), 0.08), (gated(), 0.3), (deep(), 0.08)].map(pair).into()
}

fn examples() -> Vec<Example> {
    let row =
        |length: i64, first: i64| -> Vec<TokenId> { (0..length).map(|i| (first + 7 * i) % 40).collect() };
    vec![
        Example { prompt: row(14, 5), target: row(9, 3) },
        Example { prompt: row(3, 8), target: row(4, 11) },
        Example { prompt: row(1, 8), target: row(1, 20) },
    ]
}

#[track_caller]
fn assert_near(a: &Tensor, b: &Tensor, nats: f64) {
    assert_eq!((a.kind(), a.size()), (Kind::Float, b.size()));
    let off = (a - b).abs().max().double_value(&[]);
    assert!(off <= nats, "{off} nats apart");
}

#[test]
fn scores_are_those_of_float32() {
    for (exact, rounded, nats) in pairs() {
        let want = ScoreOptions { entropy: true, states: false };
        let (a, b) = (exact.score(&examples(), want).unwrap(), rounded.score(&examples(), want).unwrap());
        assert_near(&b.log_probs, &a.log_probs, nats);
        assert_near(&b.entropy.unwrap(), &a.entropy.unwrap(), nats);
        assert!(!b.log_probs.equal(&a.log_probs), "there is a rounding to tolerate");
        // Without gradients, through the fused attention.
        assert_near(
            &tch::no_grad(|| rounded.score(&examples(), want)).unwrap().log_probs,
            &a.log_probs,
            nats,
        );
    }
}

#[test]
fn padding_is_as_invisible() {
    for (_, rounded, nats) in pairs() {
        let together = rounded.score(&examples(), ScoreOptions::default()).unwrap().log_probs;
        for (i, example) in examples().iter().enumerate() {
            let alone =
                rounded.score(std::slice::from_ref(example), ScoreOptions::default()).unwrap().log_probs;
            assert_near(&together.get(i as i64).narrow(0, 0, alone.size()[1]).unsqueeze(0), &alone, nats);
        }
    }
}

#[test]
fn what_is_written_has_the_log_probabilities_of_float32() {
    let prompts: Vec<Vec<TokenId>> = examples().into_iter().map(|e| e.prompt).collect();
    let sampling = Strategy::Sample(Sampling { top_k: Some(20), ..Sampling::default() });
    for (exact, rounded, nats) in pairs() {
        for strategy in [Strategy::Greedy, sampling] {
            let config = GenerationConfig {
                strategy,
                max_new_tokens: 8,
                samples_per_prompt: 2,
                repetition_penalty: 1.2,
                ..GenerationConfig::default()
            };
            let written = rounded.generate(&prompts, &config, &[1, 2, 3]).unwrap();
            for (prompt, rows) in prompts.iter().zip(&written) {
                for row in rows {
                    let example = Example { prompt: prompt.clone(), target: row.ids.clone() };
                    let expected = exact.score(&[example], ScoreOptions::default()).unwrap().log_probs;
                    assert_near(&Tensor::from_slice(&row.log_probs).unsqueeze(0), &expected.detach(), nats);
                }
            }
        }
    }
}
