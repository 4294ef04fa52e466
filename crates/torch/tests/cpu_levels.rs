//! Levels of the CPU's vector units, in a process of its own: a level is set for all threads.

use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use ruminate_torch::{
    CpuLevel, Gate, Packed, Prologue, Sampler, attention, choose, gate, log_probs, rms_norm,
};
use tch::{Device, Kind, Tensor};

static LEVEL: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    LEVEL.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn numbers(shape: &[i64], phase: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    let steps = Tensor::arange(count, (Kind::Double, Device::Cpu));
    (steps * 1.7 + phase).sin().to_kind(Kind::Float).view(shape)
}

/// Results of loops of every sort, one tensor each.
fn results() -> Vec<Tensor> {
    let weight = numbers(&[100, 300], 0.3);
    let packed = Packed::new(&[&weight]).unwrap();
    let halves = Packed::new(&[&weight.to_kind(Kind::BFloat16)]).unwrap();
    let mut all = vec![];
    for rows in [1, 2, 5, 8, 61] {
        let x = numbers(&[rows, 300], 1.0);
        all.push(packed.linear(&x).unwrap());
        all.push(halves.fused_linear(Prologue::Relu, &x, Some(&numbers(&[rows, 100], 2.0))).unwrap());
    }
    let x = numbers(&[7, 33], 0.1);
    all.push(rms_norm(&x, &numbers(&[33], 0.2), 1e-6).unwrap());
    all.push(gate(Gate::Silu, &x, &numbers(&[7, 33], 0.4)).unwrap());
    all.push(gate(Gate::GeluTanh, &x, &numbers(&[7, 33], 0.4)).unwrap());
    let [q, k, v] = [0.0, 1.0, 2.0].map(|phase| numbers(&[2, 3, 19, 16], phase));
    all.push(attention(&q, &k, &v, None, 0.25, 0.0).unwrap());
    let targets = Tensor::from_slice(&[0i64, 5, 99]);
    let scores = log_probs(&numbers(&[3, 300], 0.9), &weight, &targets, 1.0, true).unwrap();
    all.extend([scores.log_probs, scores.entropy.unwrap()]);
    all
}

#[test]
fn levels_agree_up_to_rounding() {
    let _alone = alone();
    let best = CpuLevel::in_use().unwrap();
    let expected = results();
    for level in CpuLevel::ALL.into_iter().filter(|level| *level < best) {
        level.set().unwrap();
        assert_eq!(CpuLevel::in_use().unwrap(), level);
        for (i, (got, expected)) in results().iter().zip(&expected).enumerate() {
            let largest = expected.abs().max().double_value(&[]).max(1.0);
            let difference = (got - expected).abs().max().double_value(&[]) / largest;
            assert!(difference < 2e-6, "{level}, result {i}: {difference:e}");
            // Fused multiplication and addition rounds alike in vectors of any width.
            if level >= CpuLevel::Avx2 && i < 10 {
                assert_eq!(got, expected, "{level}: products");
            }
        }
    }
    best.set().unwrap();
    for level in CpuLevel::ALL.into_iter().filter(|level| *level > CpuLevel::detected().unwrap()) {
        assert!(level.set().unwrap_err().to_string().contains("has no level"));
    }
}

#[test]
fn the_undeclared_product_of_this_libtorch_is_found() {
    let library = ruminate_torch::product_library().unwrap();
    assert!(library.contains("MKL") && !library.contains("does not export"), "{library}");
}

#[test]
fn every_level_draws_the_same_tokens() {
    let _alone = alone();
    let best = CpuLevel::in_use().unwrap();
    let logits = numbers(&[40, 3001], 0.5) * 3.0;
    let uniform = (Tensor::arange(40, (Kind::Float, Device::Cpu)) / 40.0).view([40, 1]);
    let draw = || {
        let sampler = Sampler { temperature: 0.7, top_k: 500, top_p: 0.9 };
        let drawn = choose(&logits, &logits, Some((sampler, &uniform))).unwrap();
        (drawn.tokens, choose(&logits, &logits, None).unwrap().tokens)
    };
    let expected = draw();
    for level in CpuLevel::ALL.into_iter().filter(|level| *level < best) {
        level.set().unwrap();
        assert_eq!(draw(), expected, "{level}");
    }
    best.set().unwrap();
}

/// Runs this test alone in a process with the environment variable; it prints what it finds.
fn child(level: &str) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    for name in ["ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"] {
        child.env_remove(name);
    }
    child.args(["--exact", "says_what_it_finds", "--nocapture", "--ignored"]).env("RUMINATE_CPU", level);
    String::from_utf8_lossy(&child.output().unwrap().stdout).into_owned()
}

#[test]
#[ignore = "run by the next test, in a process of its own"]
#[allow(clippy::print_stdout, reason = "the parent reads it")]
fn says_what_it_finds() {
    match CpuLevel::in_use() {
        Ok(level) => println!("level {level}\n{}", ruminate_torch::build_info().unwrap()),
        Err(error) => println!("{error}"),
    }
    // A loop says the same, and does not fall back.
    let x = numbers(&[2, 8], 0.0);
    match rms_norm(&x, &x.ones_like().narrow(0, 0, 1).view([8]), 1e-6) {
        Ok(_) => println!("loops run"),
        Err(error) => println!("loops: {error}"),
    }
}

#[test]
fn the_environment_names_a_level() {
    let said = child("baseline");
    assert!(said.contains("level baseline") && said.contains("loops run"), "{said}");
    if cfg!(target_arch = "x86_64") {
        assert!(said.contains("CPU capability usage: Default") || said.contains("usage: DEFAULT"), "{said}");
    }
    for wrong in ["sse9", "AVX2"] {
        let said = child(wrong);
        let refusal = format!("RUMINATE_CPU is '{wrong}', but this processor knows these levels: baseline");
        assert_eq!(said.matches(&refusal).count(), 2, "{said}");
    }
    for level in CpuLevel::ALL.into_iter().filter(|level| *level > CpuLevel::detected().unwrap()) {
        assert!(child(level.name()).contains("but this processor knows"), "{level}");
    }
}
