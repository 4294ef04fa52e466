//! The fused optimizer against the formulas, and its state.

use std::collections::BTreeMap;

use ruminate_torch::Error;
use ruminate_torch::optim::{Adam, AdamConfig, Decay, DecayOn, Optimizer};
use tch::{Kind, Tensor};

use crate::{add_grad, bits, largest_difference, numbers, parameter};

/// Adam in plain operations on `f64` tensors.
struct Plain {
    config: AdamConfig,
    parameters: Vec<Tensor>,
    moments: Vec<(Tensor, Tensor)>,
    steps: Vec<i32>,
}

impl Plain {
    fn new(parameters: &[Tensor], config: AdamConfig) -> Self {
        let parameters: Vec<Tensor> = parameters.iter().map(|p| p.detach().to_kind(Kind::Double)).collect();
        let moments = parameters.iter().map(|p| (p.zeros_like(), p.zeros_like())).collect();
        Self { config, steps: vec![0; parameters.len()], parameters, moments }
    }

    fn step(&mut self, lr: f64, grads: &[Option<Tensor>]) {
        let AdamConfig { beta1, beta2, eps, .. } = self.config;
        for (i, grad) in grads.iter().enumerate() {
            let Some(grad) = grad else { continue };
            let p = &self.parameters[i];
            let decays = self.config.decay_on == DecayOn::All || p.dim() >= 2;
            let decay = if decays { self.config.weight_decay } else { 0.0 };
            let mut g = grad.to_kind(Kind::Double);
            let mut p = p.copy();
            match self.config.decay {
                Decay::Decoupled => p *= 1.0 - lr * decay,
                Decay::L2 => g += &p * decay,
            }
            let (m, v) = &self.moments[i];
            let m = m * beta1 + &g * (1.0 - beta1);
            let v = v * beta2 + g.square() * (1.0 - beta2);
            self.steps[i] += 1;
            let corrected_m = &m / (1.0 - beta1.powi(self.steps[i]));
            let corrected_v = &v / (1.0 - beta2.powi(self.steps[i]));
            self.parameters[i] = p - corrected_m * lr / (corrected_v.sqrt() + eps);
            self.moments[i] = (m, v);
        }
    }
}

/// A vector between two matrices, so that an optimizer that sorts its parameters has something to mix up.
fn parameters() -> Vec<Tensor> {
    [&[3, 4][..], &[5], &[2, 3, 2]].iter().zip(0..).map(|(shape, i)| parameter(shape, f64::from(i))).collect()
}

fn named(parameters: &[Tensor]) -> Vec<(String, Tensor)> {
    ["w", "b", "e"].map(String::from).into_iter().zip(parameters.iter().map(Tensor::shallow_clone)).collect()
}

fn grads(parameters: &[Tensor], step: u32) -> Vec<Tensor> {
    parameters.iter().map(|p| numbers(&p.size(), 0.3 + f64::from(step) * 2.1)).collect()
}

fn config(decay: Decay, decay_on: DecayOn) -> AdamConfig {
    AdamConfig { beta1: 0.8, beta2: 0.95, eps: 1e-6, weight_decay: 0.3, decay, decay_on }
}

#[test]
fn follows_the_formulas() {
    for decay in [Decay::Decoupled, Decay::L2] {
        for decay_on in [DecayOn::All, DecayOn::Matrices] {
            let config = config(decay, decay_on);
            let parameters = parameters();
            let mut plain = Plain::new(&parameters, config);
            let mut adam = Adam::new(named(&parameters), config).unwrap();
            for step in 0..6 {
                let lr = 0.05 / f64::from(step + 1);
                adam.zero_grad().unwrap();
                let grads = grads(&parameters, step);
                parameters.iter().zip(&grads).for_each(|(p, g)| add_grad(p, g));
                adam.step(lr).unwrap();
                plain.step(lr, &grads.into_iter().map(Some).collect::<Vec<_>>());
                for (i, (got, want)) in parameters.iter().zip(&plain.parameters).enumerate() {
                    let off = largest_difference(got, want);
                    assert!(off < 2e-6, "{decay:?} {decay_on:?}: parameter {i} is {off} off at step {step}");
                }
            }
        }
    }
}

#[test]
fn the_kind_of_decay_matters() {
    // The comparison above would be empty if all variants did the same.
    let after = |decay, decay_on| {
        let parameters = parameters();
        let mut adam = Adam::new(named(&parameters), config(decay, decay_on)).unwrap();
        for (p, g) in parameters.iter().zip(&grads(&parameters, 0)) {
            add_grad(p, g);
        }
        adam.step(0.1).unwrap();
        parameters.iter().map(bits).collect::<Vec<_>>()
    };
    let all = after(Decay::Decoupled, DecayOn::All);
    let matrices = after(Decay::Decoupled, DecayOn::Matrices);
    assert_eq!((&all[0], &all[2]), (&matrices[0], &matrices[2]));
    assert_ne!(all[1], matrices[1], "the vector decays or not");
    assert_ne!(all[0], after(Decay::L2, DecayOn::All)[0]);
}

#[test]
fn without_a_gradient_nothing_moves() {
    let parameters = parameters();
    let config = config(Decay::Decoupled, DecayOn::All);
    let mut plain = Plain::new(&parameters, config);
    let mut adam = Adam::new(named(&parameters), config).unwrap();
    for step in 0..5 {
        adam.zero_grad().unwrap();
        let mut grads: Vec<Option<Tensor>> = grads(&parameters, step).into_iter().map(Some).collect();
        if step % 2 == 0 {
            grads[1] = None;
        }
        let before = bits(&parameters[1]);
        for (p, g) in parameters.iter().zip(&grads) {
            g.iter().for_each(|g| add_grad(p, g));
        }
        adam.step(0.1).unwrap();
        plain.step(0.1, &grads);
        assert_eq!(step % 2 == 0, bits(&parameters[1]) == before, "step {step}");
    }
    // The bias correction of the neglected parameter counts its own steps.
    assert!(largest_difference(&parameters[1], &plain.parameters[1]) < 2e-6);
    let steps: BTreeMap<String, f64> = adam
        .state()
        .into_iter()
        .filter(|(name, _)| name.ends_with(".step"))
        .map(|(name, t)| (name, t.double_value(&[])))
        .collect();
    assert_eq!(steps, [("b.step".into(), 2.0), ("e.step".into(), 5.0), ("w.step".into(), 5.0)].into());
    // Without any gradient at all, a step is nothing.
    adam.zero_grad().unwrap();
    let before: Vec<_> = parameters.iter().map(bits).collect();
    adam.step(0.1).unwrap();
    assert_eq!(parameters.iter().map(bits).collect::<Vec<_>>(), before);
}

#[test]
fn zero_grad_forgets_the_gradient() {
    let parameters = parameters();
    let mut adam = Adam::new(named(&parameters), AdamConfig::default()).unwrap();
    add_grad(&parameters[0], &numbers(&[3, 4], 0.0));
    assert!(parameters[0].grad().defined());
    adam.zero_grad().unwrap();
    assert!(parameters.iter().all(|p| !p.grad().defined()));
}

/// Steps `from..to` with the gradients that belong to them.
fn train(adam: &mut Adam, parameters: &[Tensor], steps: std::ops::Range<u32>) {
    for step in steps {
        adam.zero_grad().unwrap();
        for (p, g) in parameters.iter().zip(&grads(parameters, step)) {
            add_grad(p, g);
        }
        adam.step(0.1).unwrap();
    }
}

/// A copy of the optimizer's state that does not share its tensors.
fn copy(adam: &Adam) -> BTreeMap<String, Tensor> {
    adam.state().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect()
}

#[test]
fn a_restored_state_goes_on_bit_for_bit() {
    let config = config(Decay::Decoupled, DecayOn::Matrices);
    let straight = parameters();
    let mut adam = Adam::new(named(&straight), config).unwrap();
    train(&mut adam, &straight, 0..3);
    let saved = copy(&adam);
    let values: Vec<Tensor> = straight.iter().map(|p| p.detach().copy()).collect();
    train(&mut adam, &straight, 3..6);

    let names: Vec<&str> = saved.keys().map(String::as_str).collect();
    let parts = ["exp_avg", "exp_avg_sq", "step"];
    let expected: Vec<String> =
        ["b", "e", "w"].iter().flat_map(|p| parts.map(|part| format!("{p}.{part}"))).collect();
    assert_eq!(names, expected);

    let resumed: Vec<Tensor> = values.into_iter().map(|p| p.set_requires_grad(true)).collect();
    let mut fresh = Adam::new(named(&resumed), config).unwrap();
    fresh.load_state(&|name| saved.get(name).map(Tensor::shallow_clone)).unwrap();
    train(&mut fresh, &resumed, 3..6);
    for (a, b) in straight.iter().zip(&resumed) {
        assert_eq!(bits(a), bits(b));
    }
    for ((name, a), (_, b)) in adam.state().iter().zip(&fresh.state()) {
        assert_eq!(bits(a), bits(b), "{name}");
    }
    // What was loaded is a copy: going on has not changed the saved state.
    assert_eq!(saved["w.step"].double_value(&[]), 3.0);
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let config = AdamConfig::default();
    let trained = parameters();
    let mut adam = Adam::new(named(&trained), config).unwrap();
    train(&mut adam, &trained, 0..2);
    let good = copy(&adam);
    // Each is the last of its kind that is looked at, so that an eager copy would have changed the others.
    let last = adam.state().pop().unwrap().0;
    let moment = last.replace(".step", ".exp_avg_sq");
    let parameters = parameters();
    let mut fresh = Adam::new(named(&parameters), config).unwrap();
    let untouched = copy(&fresh);
    let same = |adam: &Adam| copy(adam).iter().all(|(name, t)| bits(t) == bits(&untouched[name]));

    let missing = fresh.load_state(&|name| (name != last).then(|| good[name].shallow_clone())).unwrap_err();
    assert!(matches!(&missing, Error::State { name, reason } if *name == last && reason.contains("missing")));
    assert!(same(&fresh));

    let misshapen = |name: &str| {
        Some(if name == moment {
            Tensor::zeros([7, 7], tch::kind::FLOAT_CPU)
        } else {
            good[name].shallow_clone()
        })
    };
    let error = fresh.load_state(&misshapen).unwrap_err().to_string();
    assert!(error.contains(&moment) && error.contains("[7, 7]"), "{error}");
    assert!(same(&fresh));

    fresh.load_state(&|name| good.get(name).map(Tensor::shallow_clone)).unwrap();
    assert!(!same(&fresh));
}

#[test]
fn refusals_are_errors_in_libtorchs_words() {
    // A parameter that becomes another kind behind the optimizer's back.
    let mut w = parameter(&[3], 0.0);
    let mut adam = Adam::new(vec![("w".into(), w.shallow_clone())], AdamConfig::default()).unwrap();
    add_grad(&w, &numbers(&[3], 1.0));
    let double = w.detach().to_kind(Kind::Double);
    tch::no_grad(|| w.set_data(&double));
    match adam.step(0.1) {
        Err(Error::Libtorch { op, message }) => {
            assert_eq!(op, "fused Adam step");
            assert!(message.contains("Float") || message.contains("dtype"), "{message}");
            assert!(!message.contains("frame #"), "no C++ backtrace: {message}");
        }
        other => panic!("{other:?}"),
    }
}
