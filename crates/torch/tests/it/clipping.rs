//! Gradient clipping by the global norm.

use ruminate_torch::Error;
use ruminate_torch::optim::clip_grad_norm;
use tch::{Kind, Tensor};

use crate::{add_grad, bits, largest_difference, numbers, parameter};

/// Two parameters whose gradients have the norms 3 and 4, and between them one without a gradient.
fn parameters() -> Vec<Tensor> {
    let parameters = vec![parameter(&[2, 2], 0.0), parameter(&[3], 1.0), parameter(&[4], 2.0)];
    add_grad(&parameters[0], &Tensor::from_slice(&[3f32, 0.0, 0.0, 0.0]).view([2, 2]));
    add_grad(&parameters[2], &Tensor::from_slice(&[2f32, -2.0, 2.0, -2.0]));
    parameters
}

fn norm(parameters: &[Tensor], max_norm: f64) -> f64 {
    clip_grad_norm(parameters, max_norm).unwrap().double_value(&[])
}

#[test]
fn scales_what_is_too_long() {
    let parameters = parameters();
    assert!((norm(&parameters, 1.0) - 5.0).abs() < 1e-6);
    let factor = 1.0 / (5.0 + 1e-6);
    let want = Tensor::from_slice(&[2.0, -2.0, 2.0, -2.0]) * factor;
    assert!(largest_difference(&parameters[2].grad(), &want) < 1e-7);
    let after = norm(&parameters, f64::INFINITY);
    assert!((after - 5.0 * factor).abs() < 1e-6, "both are scaled by the common norm: {after}");
    assert!(!parameters[1].grad().defined());
}

#[test]
fn leaves_the_rest_alone() {
    for max_norm in [5.1, 1e9, f64::INFINITY] {
        let parameters = parameters();
        let before = [bits(&parameters[0].grad()), bits(&parameters[2].grad())];
        assert!((norm(&parameters, max_norm) - 5.0).abs() < 1e-6);
        assert_eq!([bits(&parameters[0].grad()), bits(&parameters[2].grad())], before, "{max_norm}");
    }
}

#[test]
fn the_norm_of_long_gradients_is_that_of_double_precision() {
    for kind in [Kind::Float, Kind::BFloat16] {
        // Some parts of the sum are full, and the last is not.
        let grads =
            [numbers(&[100, 517], 0.0), numbers(&[3], 1.0), numbers(&[16384], 2.0)].map(|g| g.to_kind(kind));
        let parameters: Vec<Tensor> =
            grads.iter().map(|grad| grad.zeros_like().set_requires_grad(true)).collect();
        parameters.iter().zip(&grads).for_each(|(parameter, grad)| add_grad(parameter, grad));
        let all = Tensor::cat(&grads.each_ref().map(|grad| grad.to_kind(Kind::Double).view([-1])), 0);
        let expected = all.norm().double_value(&[]);
        let tolerance = if kind == Kind::Float { 1e-6 } else { 4e-3 };
        let got = norm(&parameters, 1.0);
        assert!((got / expected - 1.0).abs() < tolerance, "{kind:?}: {got}, not {expected}");
        assert!((norm(&parameters, 1.0) - 1.0).abs() < 10.0 * tolerance, "{kind:?}: it is scaled to 1");
    }
}

#[test]
fn the_norm_of_several_kinds_has_the_digits_of_the_wider() {
    let parameters =
        [Kind::BFloat16, Kind::Float].map(|kind| numbers(&[300], 0.0).to_kind(kind).set_requires_grad(true));
    for parameter in &parameters {
        parameter.square().sum(parameter.kind()).backward();
    }
    let all: Vec<Tensor> = parameters.iter().map(|p| p.grad().to_kind(Kind::Double)).collect();
    let expected = Tensor::cat(&all, 0).norm().double_value(&[]);
    let got = norm(&parameters, f64::INFINITY);
    assert!((got / expected - 1.0).abs() < 1e-6, "{got}, not {expected}");
}

#[test]
fn without_gradients_the_norm_is_zero() {
    let parameters = vec![parameter(&[2], 0.0)];
    assert_eq!(norm(&parameters, 1.0), 0.0);
    assert_eq!(norm(&[], 1.0), 0.0);
    assert!(!parameters[0].grad().defined());
}

#[test]
fn a_gradient_that_is_no_number_shows_in_the_norm() {
    for (value, max_norm) in [(f32::INFINITY, 1.0), (f32::NAN, 1.0), (f32::NAN, f64::INFINITY)] {
        let parameters = parameters();
        add_grad(&parameters[1], &Tensor::from_slice(&[0.0, value, 0.0]));
        assert!(!norm(&parameters, max_norm).is_finite(), "{value} {max_norm}");
    }
}

#[test]
fn refusals_are_errors_in_libtorchs_words() {
    // A sparse gradient has no dense values whose norm could be taken.
    let table = parameter(&[4, 2], 0.0);
    let ids = Tensor::from_slice(&[1i64, 3]);
    Tensor::embedding(&table, &ids, -1, false, true).sum(Kind::Float).backward();
    assert!(table.grad().is_sparse());
    match clip_grad_norm(&[table], 1.0) {
        Err(Error::Libtorch { op, message }) => {
            assert_eq!(op, "clip gradient norm");
            assert!(message.to_lowercase().contains("sparse"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}
