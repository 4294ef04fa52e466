//! Chunked log-probabilities against the plain formulas.

use ruminate_torch::{autocast, cross_entropy, log_probs};
use tch::{Device, Kind, Tensor};

use crate::numbers;

/// Values and gradients of a loss in which every log-probability and entropy has a weight of its own.
fn run(
    hidden: &Tensor,
    weight: &Tensor,
    score: impl Fn(&Tensor, &Tensor) -> (Tensor, Tensor),
) -> [Tensor; 4] {
    let hidden = hidden.copy().set_requires_grad(true);
    let weight = weight.copy().set_requires_grad(true);
    let (log_probs, entropy) = score(&hidden, &weight);
    let rows = hidden.size()[0];
    let weights = numbers(&[rows], 1.0) + 1.5;
    let loss = (&log_probs * &weights).sum(Kind::Float) - (&entropy * weights.square()).sum(Kind::Float);
    loss.backward();
    [log_probs.detach(), entropy.detach(), hidden.grad(), weight.grad()]
}

fn same_as_plain(rows: i64, vocab: i64, width: i64, scale: f64) {
    let hidden = numbers(&[rows, width], 0.0) * 2.0;
    let weight = numbers(&[vocab, width], 0.5) * 2.0;
    let targets = Tensor::from_slice(&(0..rows).map(|row| row * 7919 % vocab).collect::<Vec<_>>());
    let chunked = run(&hidden, &weight, |h, w| {
        let scores = log_probs(h, w, &targets, scale, true).unwrap();
        (scores.log_probs, scores.entropy.unwrap())
    });
    let plain = |kind| {
        run(&hidden.to_kind(kind), &weight.to_kind(kind), |h, w| {
            let all = (h.matmul(&w.tr()) * scale).log_softmax(-1, kind);
            let entropy = -(all.exp() * &all).sum_dim_intlist(-1, false, kind);
            (all.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1), entropy)
        })
    };
    let (single, exact) = (plain(Kind::Float), plain(Kind::Double));
    for (i, what) in ["log-probs", "entropy", "gradient of hidden", "gradient of weight"].iter().enumerate() {
        let error = |got: &Tensor| (got - &exact[i]).abs().max().double_value(&[]);
        // Sums over a large vocabulary lose digits in float32, however they are made.
        let allowed = (2.0 * error(&single[i])).max(1e-5 * exact[i].abs().max().double_value(&[]).max(1.0));
        assert!(error(&chunked[i]) <= allowed, "{what}: {:e}, allowed {allowed:e}", error(&chunked[i]));
    }
}

#[test]
pub(crate) fn values_and_gradients_are_those_of_the_full_logits() {
    same_as_plain(7, 50, 8, 1.0);
    same_as_plain(1, 3, 2, 0.25);
}

#[test]
pub(crate) fn several_chunks_are_as_one() {
    // A vocabulary of this size leaves 335 rows to a chunk.
    same_as_plain(400, 50_000, 2, 0.5);
}

#[test]
pub(crate) fn entropy_is_left_out_unless_asked_for() {
    let hidden = Tensor::ones([2, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let weight = Tensor::ones([4, 3], (Kind::Float, Device::Cpu));
    let scores = log_probs(&hidden, &weight, &Tensor::from_slice(&[0i64, 3]), 1.0, false).unwrap();
    assert!(scores.entropy.is_none());
    scores.log_probs.sum(Kind::Float).backward();
    // Equal logits: moving the state changes none of the probabilities.
    assert!(hidden.grad().abs().max().double_value(&[]) < 1e-6);
    let graph_free =
        tch::no_grad(|| log_probs(&hidden, &weight, &Tensor::from_slice(&[0i64, 3]), 1.0, false)).unwrap();
    assert!(!graph_free.log_probs.requires_grad());
}

/// The loss with its gradients, and the same by log-probabilities.
fn losses(hidden: &Tensor, weight: &Tensor, targets: &Tensor, scale: f64) -> [[Tensor; 3]; 2] {
    let run = |loss: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
        let [hidden, weight] = [hidden, weight].map(|x| x.copy().set_requires_grad(true));
        let loss = loss(&hidden, &weight);
        // A factor that is known to the backward pass alone.
        (&loss * 0.3).backward();
        [loss.detach(), hidden.grad(), weight.grad()]
    };
    let ours = run(&|h, w| cross_entropy(h, w, targets, scale).unwrap());
    [ours, run(&|h, w| -log_probs(h, w, targets, scale, false).unwrap().log_probs.sum(Kind::Float))]
}

fn assert_losses_agree([ours, theirs]: &[[Tensor; 3]; 2], allowed: f64) {
    for (i, (got, expected)) in ours.iter().zip(theirs).enumerate() {
        assert_eq!((got.kind(), got.size()), (expected.kind(), expected.size()));
        let [got, expected] = [got, expected].map(|x| x.to_kind(Kind::Double));
        let error = (&got - &expected).abs().max() / expected.abs().max();
        assert!(error.double_value(&[]) < allowed, "{i}: {:e}", error.double_value(&[]));
    }
}

#[test]
pub(crate) fn cross_entropy_is_the_sum_with_its_gradients() {
    for (rows, vocab, scale) in [(7, 50, 1.0), (1, 3, 0.25), (400, 50_000, 0.5)] {
        let (hidden, weight) = (numbers(&[rows, 4], 0.0) * 2.0, numbers(&[vocab, 4], 0.5) * 2.0);
        let targets = Tensor::from_slice(&(0..rows).map(|row| row * 7919 % vocab).collect::<Vec<_>>());
        assert_losses_agree(&losses(&hidden, &weight, &targets, scale), 1e-5);
        let [hidden, weight] = [hidden, weight].map(|x| x.to_kind(Kind::BFloat16));
        assert_losses_agree(&losses(&hidden, &weight, &targets, scale), 2e-2);
    }
}

#[test]
fn cross_entropy_under_autocast_has_the_same_gradients() {
    let (hidden, weight) = (numbers(&[9, 16], 0.0), numbers(&[40, 16], 0.5));
    let targets = Tensor::from_slice(&(0..9).map(|row| row * 4).collect::<Vec<i64>>());
    let all = autocast(Device::Cpu, || losses(&hidden, &weight, &targets, 1.0)).unwrap();
    assert_losses_agree(&all, 1e-2);
}

#[test]
fn cross_entropy_needs_no_gradients_and_gives_them_once() {
    let (hidden, weight) = (numbers(&[3, 4], 0.0), numbers(&[5, 4], 0.5));
    let targets = Tensor::from_slice(&[4i64, 0, 2]);
    let plain = cross_entropy(&hidden, &weight, &targets, 1.0).unwrap();
    let hidden = hidden.set_requires_grad(true);
    let without = tch::no_grad(|| cross_entropy(&hidden, &weight, &targets, 1.0)).unwrap();
    assert!(!plain.requires_grad() && !without.requires_grad());
    // Only the states learn.
    let loss = cross_entropy(&hidden, &weight, &targets, 1.0).unwrap();
    for value in [&without, &loss] {
        assert_eq!(value.double_value(&[]), plain.double_value(&[]));
    }
    let take = |create_graph| Tensor::f_run_backward(&[&loss], &[&hidden], true, create_graph);
    assert!(take(true).is_err(), "second derivatives");
    take(false).unwrap();
    assert!(take(false).is_err(), "once more");
    // Nothing to sum.
    let none = Tensor::zeros([0, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let weight = weight.set_requires_grad(true);
    let loss = cross_entropy(&none, &weight, &targets.narrow(0, 0, 0), 1.0).unwrap();
    loss.backward();
    assert_eq!((loss.double_value(&[]), weight.grad().abs().max().double_value(&[])), (0.0, 0.0));
}

#[test]
fn what_does_not_fit_is_refused() {
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let targets = Tensor::from_slice(&[0i64, 1]);
    for (hidden, weight) in [(vec![2, 3], vec![4, 2]), (vec![3, 3], vec![4, 3]), (vec![2], vec![4, 3])] {
        let error = log_probs(&zeros(&hidden), &zeros(&weight), &targets, 1.0, false).unwrap_err();
        assert!(error.to_string().contains("do not fit"), "{error}");
        cross_entropy(&zeros(&hidden), &zeros(&weight), &targets, 1.0).unwrap_err();
    }
    let outside = Tensor::from_slice(&[0i64, 4]);
    log_probs(&zeros(&[2, 3]), &zeros(&[4, 3]), &outside, 1.0, false).unwrap_err();
    cross_entropy(&zeros(&[2, 3]), &zeros(&[4, 3]), &outside, 1.0).unwrap_err();
}

#[test]
fn second_derivatives_are_refused_instead_of_wrong() {
    let hidden = numbers(&[2, 3], 0.0).set_requires_grad(true);
    let weight = numbers(&[4, 3], 1.0);
    let scores = log_probs(&hidden, &weight, &Tensor::from_slice(&[0i64, 3]), 1.0, false).unwrap();
    let total = scores.log_probs.sum(Kind::Float);
    let error = Tensor::f_run_backward(&[total], &[&hidden], true, true).unwrap_err();
    assert!(error.to_string().contains("second derivatives"), "{error}");
}
