//! Adafactor: its state, its memory, and what goldens do not show. Its numbers are compared by the golden vectors.

use std::collections::BTreeMap;

use ruminate_torch::optim::{Adafactor, AdafactorConfig, AdamConfig, Optimizer, OptimizerConfig};
use tch::{Kind, Tensor};

use crate::{add_grad, bits, largest_difference, numbers, parameter};

fn parameters() -> Vec<Tensor> {
    [&[3, 4][..], &[5], &[2, 3, 2], &[]].iter().zip(0..).map(|(s, i)| parameter(s, f64::from(i))).collect()
}

fn named(parameters: &[Tensor]) -> Vec<(String, Tensor)> {
    ["w", "b", "e", "s"]
        .map(String::from)
        .into_iter()
        .zip(parameters.iter().map(Tensor::shallow_clone))
        .collect()
}

fn all() -> [AdafactorConfig; 3] {
    let fixed = AdafactorConfig::default();
    let relative = AdafactorConfig { scale_parameter: true, relative_step: true, warmup_init: true, ..fixed };
    [fixed, relative, AdafactorConfig { beta1: Some(0.9), weight_decay: 0.1, clip_threshold: 0.5, ..fixed }]
}

fn train(optimizer: &mut dyn Optimizer, parameters: &[Tensor], steps: std::ops::Range<u32>) {
    for step in steps {
        optimizer.zero_grad().unwrap();
        for p in parameters {
            add_grad(p, &numbers(&p.size(), 0.3 + f64::from(step) * 2.1).to_kind(p.kind()));
        }
        optimizer.step(0.05).unwrap();
    }
}

fn copy(optimizer: &dyn Optimizer) -> BTreeMap<String, Tensor> {
    optimizer.state().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect()
}

#[test]
fn a_restored_state_goes_on_bit_for_bit() {
    for config in all() {
        let straight = parameters();
        let mut optimizer = Adafactor::new(named(&straight), config).unwrap();
        train(&mut optimizer, &straight, 0..3);
        let saved = copy(&optimizer);
        let values: Vec<Tensor> = straight.iter().map(|p| p.detach().copy()).collect();
        train(&mut optimizer, &straight, 3..6);

        let resumed: Vec<Tensor> = values.into_iter().map(|p| p.set_requires_grad(true)).collect();
        let mut fresh = Adafactor::new(named(&resumed), config).unwrap();
        fresh.load_state(&|name| saved.get(name).map(Tensor::shallow_clone)).unwrap();
        train(&mut fresh, &resumed, 3..6);
        for (a, b) in straight.iter().zip(&resumed) {
            assert_eq!(bits(a), bits(b), "{config:?}");
        }
        // Without the state it goes elsewhere: the comparison is not empty.
        let mut forgetful = Adafactor::new(named(&resumed), config).unwrap();
        train(&mut forgetful, &resumed, 3..4);
        train(&mut optimizer, &straight, 3..4);
        assert_ne!(bits(&straight[0]), bits(&resumed[0]));
    }
}

#[test]
fn the_state_is_small_and_its_size_is_known_before() {
    for config in all() {
        let parameters = parameters();
        let optimizer = Adafactor::new(named(&parameters), config).unwrap();
        let state = optimizer.state();
        let bytes: usize = state.iter().map(|(_, t)| t.numel() * t.kind().elt_size_in_bytes()).sum();
        assert_eq!(
            OptimizerConfig::Adafactor(config).state_bytes(parameters.iter().map(Tensor::size)),
            bytes as u64
        );
        let shape = |name: &str| state.iter().find(|(n, _)| n == name).map(|(_, t)| t.size());
        assert_eq!(shape("w.exp_avg_sq_row"), Some(vec![3]));
        assert_eq!(shape("w.exp_avg_sq_col"), Some(vec![4]));
        assert_eq!(shape("e.exp_avg_sq_row"), Some(vec![2, 3]));
        assert_eq!(shape("e.exp_avg_sq_col"), Some(vec![2, 2]));
        assert_eq!(shape("b.exp_avg_sq"), Some(vec![5]));
        assert_eq!(shape("w.exp_avg"), config.beta1.map(|_| vec![3, 4]));
    }
    let parameters = parameters();
    let adam = OptimizerConfig::Adam(AdamConfig::default());
    let state = adam.build(named(&parameters)).unwrap().state();
    let bytes: usize = state.iter().map(|(_, t)| t.numel() * t.kind().elt_size_in_bytes()).sum();
    assert_eq!(adam.state_bytes(parameters.iter().map(Tensor::size)), bytes as u64);
}

#[test]
fn without_a_gradient_nothing_moves_and_no_step_is_counted() {
    let parameters = parameters();
    let mut optimizer = Adafactor::new(named(&parameters), all()[1]).unwrap();
    let before = bits(&parameters[1]);
    for step in 0..3 {
        optimizer.zero_grad().unwrap();
        for (i, p) in parameters.iter().enumerate().filter(|(i, _)| *i != 1 || step == 2) {
            add_grad(p, &numbers(&p.size(), i as f64));
        }
        assert!(step == 0 || bits(&parameters[1]) == before);
        optimizer.step(f64::NAN).unwrap();
    }
    assert_ne!(bits(&parameters[1]), before);
    let steps = |name: &str| copy(&optimizer)[name].double_value(&[]);
    assert_eq!((steps("w.step"), steps("b.step"), steps("s.step")), (3.0, 1.0, 3.0));
}

#[test]
fn a_rate_of_its_own_is_told() {
    let parameters = parameters();
    let [fixed, warm, _] = all();
    assert_eq!(Adafactor::new(named(&parameters), fixed).unwrap().rate(0.3), 0.3);
    let mut optimizer = Adafactor::new(named(&parameters), warm).unwrap();
    assert_eq!(optimizer.rate(0.3), 1e-6);
    train(&mut optimizer, &parameters, 0..2);
    assert!((optimizer.rate(0.3) - 3e-6).abs() < 1e-18);
    let cold = AdafactorConfig { warmup_init: false, ..warm };
    let mut optimizer = Adafactor::new(named(&parameters), cold).unwrap();
    assert_eq!(optimizer.rate(0.3), 1e-2);
    let late = |name: &str| Some(optimizer.state().iter().find(|(n, _)| n == name)?.1.full_like(39_999));
    let state: BTreeMap<String, Tensor> =
        optimizer.state().iter().map(|(name, _)| (name.clone(), late(name).unwrap())).collect();
    optimizer.load_state(&|name| state.get(name).map(Tensor::shallow_clone)).unwrap();
    assert!((optimizer.rate(0.3) - 0.005).abs() < 1e-15);
}

#[test]
fn bfloat16_parameters_follow_float32_ones() {
    for config in all() {
        let exact = parameters();
        let rounded: Vec<Tensor> =
            exact.iter().map(|p| p.detach().to_kind(Kind::BFloat16).set_requires_grad(true)).collect();
        // Both begin at numbers that bfloat16 has.
        tch::no_grad(|| {
            exact.iter().zip(&rounded).for_each(|(p, r)| p.shallow_clone().copy_(&r.to_kind(Kind::Float)));
        });
        let mut a = Adafactor::new(named(&exact), config).unwrap();
        let mut b = Adafactor::new(named(&rounded), config).unwrap();
        train(&mut a, &exact, 0..1);
        train(&mut b, &rounded, 0..1);
        for (a, b) in exact.iter().zip(&rounded) {
            // The gradients differ by a rounding of 2^-9, and so do the parameters after the step.
            let size = a.abs().max().double_value(&[]);
            assert!(largest_difference(a, b) <= size / 128.0, "{config:?}");
            assert_eq!(b.kind(), Kind::BFloat16);
        }
        assert!(b.state().iter().all(|(_, t)| t.kind() == Kind::Float));
    }
}
