//! The loss against the plain formulas, from logits, from states in chunks, and through the algorithm.

use ruminate_algorithms::Algorithm;
use ruminate_algorithms::ppo::KlPenalty;
use ruminate_algorithms::quark::{Predictions, QuarkConfig, TokenTerms, quark_loss};
use ruminate_models::{T5, TokenId};
use tch::{Device, Kind, Tensor};

use super::{config, data, quark_of};
use crate::support::{alone, model};

const KL_VOCAB: i64 = 30;

/// Numbers without a pattern.
fn numbers(shape: &[i64], phase: f64) -> Tensor {
    let n: i64 = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| (((i * i + 7 * i) as f64 + phase).sin() * 2.0) as f32).collect();
    Tensor::from_slice(&values).view(shape)
}

/// Loss, and gradients of the policy's states and weight, by the definitions in double precision.
fn naive(
    states: &Tensor,
    weight: &Tensor,
    reference: &Tensor,
    targets: &Tensor,
    coefs: [f64; 2],
) -> [Tensor; 3] {
    let [states, weight] = [states, weight].map(|x| x.to_kind(Kind::Double).set_requires_grad(true));
    let logits = states.matmul(&weight.tr()) * 0.5;
    let reference = reference.to_kind(Kind::Double).narrow(1, 0, KL_VOCAB).softmax(-1, Kind::Double);
    let p = logits.softmax(-1, Kind::Double);
    let lm = -p.gather(1, &targets.unsqueeze(1), false).log().squeeze_dim(1);
    let inside = logits.narrow(1, 0, KL_VOCAB).softmax(-1, Kind::Double);
    let sum = |x: Tensor| x.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let kl = sum(&inside * (inside.log() - reference.log()));
    let entropy = -sum(&p * p.log());
    let loss = (lm + kl * coefs[0] - entropy * coefs[1]).sum(Kind::Double);
    loss.backward();
    [loss.detach(), states.grad(), weight.grad()]
}

#[test]
fn values_and_gradients_are_those_of_the_definitions() {
    let _alone = alone();
    let (rows, vocab, width) = (11, 37, 6);
    let (states, weight) = (numbers(&[rows, width], 0.0), numbers(&[vocab, width], 0.5));
    let (other_states, other_weight) = (numbers(&[rows, 4], 0.9), numbers(&[KL_VOCAB + 3, 4], 0.2));
    let targets = Tensor::from_slice(&(0..rows).map(|row| row * 31 % vocab).collect::<Vec<_>>());
    let reference = other_states.matmul(&other_weight.tr());
    for coefs in [[0.0, 0.0], [0.1, 0.0], [0.7, 0.3]] {
        let expected = naive(&states, &weight, &reference, &targets, coefs);
        for chunk in [1, 3, 11, 100] {
            let leaf = |x: &Tensor| x.copy().set_requires_grad(true);
            let policy = Predictions { states: leaf(&states), weight: leaf(&weight), scale: 0.5 };
            let frozen = Predictions { states: leaf(&other_states), weight: leaf(&other_weight), scale: 1.0 };
            let terms = TokenTerms::chunked_by(chunk, &policy, Some(&frozen), &targets, KL_VOCAB).unwrap();
            let loss = quark_loss(&terms, coefs[0], coefs[1]).unwrap();
            assert_eq!(loss.count, rows as u64);
            loss.sum.backward();
            let got = [loss.sum.detach(), policy.states.grad(), policy.weight.grad()];
            for (got, expected) in got.iter().zip(&expected) {
                let error = (got - expected).abs().max().double_value(&[]);
                let allowed = 2e-6 * expected.abs().max().double_value(&[]).max(1.0);
                assert!(error < allowed, "chunks of {chunk}, {coefs:?}: {error:e}");
            }
            assert!(
                !frozen.states.grad().defined() && !frozen.weight.grad().defined(),
                "the reference is frozen"
            );
        }
    }
}

#[test]
fn the_divergence_from_oneself_is_nothing() {
    let _alone = alone();
    let logits = numbers(&[5, 20], 0.0);
    let targets = Tensor::from_slice(&[0i64, 3, 5, 7, 19]);
    let terms = TokenTerms::new(&logits, Some(&logits), &targets, 20).unwrap();
    assert!(terms.kl.abs().max().double_value(&[]) < 1e-6);
    // Entries beyond the border are no part of it.
    let other = Tensor::cat(&[logits.narrow(1, 0, 12), numbers(&[5, 9], 1.0)], 1);
    let terms = TokenTerms::new(&logits, Some(&other), &targets, 12).unwrap();
    assert!(terms.kl.abs().max().double_value(&[]) < 1e-6);
    let terms = TokenTerms::new(&logits, Some(&other), &targets, 13).unwrap();
    assert!(terms.kl.abs().max().double_value(&[]) > 1e-3);
    assert!(TokenTerms::new(&logits, Some(&other), &targets, 21).is_err());
}

/// Logits of a response behind a code, by the network's own functions.
fn logits(t5: &T5, prompt: &[TokenId], code: &[TokenId], response: &[TokenId]) -> Tensor {
    let source = t5.batch(&[prompt.to_vec()]).unwrap();
    let labels = Tensor::from_slice(&[code, response].concat()).unsqueeze(0);
    let states = t5.decode(&t5.encode(&source).unwrap(), &t5.shift_right(&labels).unwrap()).unwrap();
    let all = t5.logits(&states).unwrap().squeeze_dim(0);
    all.narrow(0, code.len() as i64, response.len() as i64)
}

#[test]
fn the_code_stands_before_the_response_and_has_no_loss() {
    let _alone = alone();
    let config = QuarkConfig { entropy: KlPenalty::Fixed { coef: 0.02 }, ..config() };
    let mut quark = quark_of(config, 1.0, 2, data()).unwrap();
    let batches = quark.batches(0, 0, 3).unwrap().unwrap();
    assert_eq!(batches.len(), 3);
    assert!(quark.batches(0, 1, 3).unwrap().is_none(), "there is one update a step");
    let reference = model(0.0, 1);
    let kl_vocab = quark.tokens().id_range().start;
    let mut samples = 0;
    for batch in &batches {
        let sums = quark.losses(batch).unwrap();
        let terms = quark.terms(batch);
        let names: Vec<_> = terms.iter().map(|term| (term.name, term.weight)).collect();
        assert_eq!(names, [("loss/lm", 1.0), ("loss/kl", 0.05), ("loss/entropy", -0.02)]);
        let (mut expected, mut count) = ([0.0; 3], 0);
        for &row in batch.rows() {
            let ranked = &quark.pool().samples()[row];
            let code = quark.tokens().code(&ranked.buckets, true).unwrap();
            let (prompt, response) = (&ranked.sample.item.prompt, &ranked.sample.item.response);
            assert_eq!((code.len(), response.last()), (1, Some(&1)), "an end token is always there");
            let policy = logits(quark.policy(), prompt, &code, response);
            let other = logits(&reference, prompt, &[], response);
            let terms =
                TokenTerms::new(&policy, Some(&other), &Tensor::from_slice(response), kl_vocab).unwrap();
            for (sum, part) in expected.iter_mut().zip([terms.lm, terms.kl, terms.entropy]) {
                *sum += part.sum(Kind::Double).double_value(&[]);
            }
            count += response.len() as u64;
            samples += 1;
        }
        assert!(terms.iter().all(|term| term.count == count));
        for (sum, expected) in sums.sums.iter().zip(expected) {
            let error = (sum.double_value(&[]) - expected).abs();
            assert!(error < 1e-4 * expected.abs().max(1.0), "{expected} {error:e}");
        }
    }
    assert_eq!(samples, 16);
    assert_eq!(quark.policy().device(), Device::Cpu);
}
