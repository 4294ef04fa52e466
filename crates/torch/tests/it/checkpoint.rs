//! Activation checkpointing: the same values, gradients and random numbers, in less memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ruminate_torch::{Error, Result, autocast, checkpoint, rng};
use tch::{Device, Kind, Tensor};

use crate::alone;
use crate::{add_grad, bits, numbers, parameter};

/// A layer with dropout on a captured weight.
fn layer(x: &Tensor, bias: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let hidden = x.f_matmul(weight)?.f_add(bias)?.f_tanh()?;
    Ok(hidden.f_dropout(0.3, true)?.f_add(x)?)
}

/// Values, and gradients of the input, the bias and the weights, after three layers.
fn run(checkpointed: bool) -> Vec<Vec<u32>> {
    rng::seed(Device::Cpu, 5).unwrap();
    let (x, bias) = (parameter(&[4, 6], 0.0), parameter(&[6], 1.0));
    let weights: Vec<Tensor> = (0..3).map(|i| parameter(&[6, 6], 2.0 + f64::from(i))).collect();
    let mut hidden = &x * 1.0;
    for weight in &weights {
        hidden = if checkpointed {
            let weight = weight.shallow_clone();
            checkpoint(&[&hidden, &bias], move |inputs| layer(&inputs[0], &inputs[1], &weight)).unwrap()
        } else {
            layer(&hidden, &bias, weight).unwrap()
        };
    }
    // What is drawn between the passes must not matter to the second run, nor the second run to what is drawn later.
    let between = Tensor::rand([3], (Kind::Float, Device::Cpu));
    (&hidden * numbers(&[4, 6], 9.0)).sum(Kind::Float).backward();
    let after = Tensor::rand([3], (Kind::Float, Device::Cpu));
    let grads = [&x, &bias].into_iter().chain(&weights).map(Tensor::grad);
    [hidden, between, after].into_iter().chain(grads).map(|t| bits(&t)).collect()
}

#[test]
fn values_gradients_and_random_numbers_are_the_same() {
    let _alone = alone();
    let plain = run(false);
    assert_eq!(plain, run(true));
    assert_ne!(plain[3], vec![0; 24], "there are gradients");
}

#[test]
fn parameters_get_gradients_where_no_input_needs_one() {
    let (x, weight) = (numbers(&[2, 3], 0.0), parameter(&[3, 3], 1.0));
    let captured = weight.shallow_clone();
    let out = checkpoint(&[&x], move |i| -> Result<Tensor> { Ok(i[0].f_matmul(&captured)?) }).unwrap();
    out.sum(Kind::Float).backward();
    let got = bits(&weight.grad());
    let other = parameter(&[3, 3], 1.0);
    x.matmul(&other).sum(Kind::Float).backward();
    assert_eq!(got, bits(&other.grad()));
    // Where nothing needs one, nothing gets one.
    let out = checkpoint(&[&x], |i| -> Result<Tensor> { Ok(i[0].f_exp()?) }).unwrap();
    out.sum(Kind::Float).backward();
    assert!(!x.grad().defined());
}

#[test]
fn the_closure_runs_twice_and_only_where_gradients_are_wanted() {
    let (runs, alive) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
    let x = parameter(&[2], 0.0);
    let build = || {
        let (runs, alive) = (runs.clone(), alive.clone());
        checkpoint(&[&x], move |i| -> Result<Tensor> {
            let _ = &alive;
            runs.fetch_add(1, Ordering::SeqCst);
            Ok(i[0].f_square()?)
        })
        .unwrap()
    };
    let out = tch::no_grad(build);
    assert!(!out.requires_grad());
    assert_eq!((runs.swap(0, Ordering::SeqCst), Arc::strong_count(&alive)), (1, 1));
    let out = build();
    assert_eq!((runs.load(Ordering::SeqCst), Arc::strong_count(&alive)), (1, 2));
    out.sum(Kind::Float).backward();
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    drop(out);
    assert_eq!(Arc::strong_count(&alive), 1, "the closure goes with the graph");
    // A graph that is never used takes its closure along, too.
    drop(build());
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[test]
fn errors_and_panics_come_back() {
    let x = parameter(&[2], 0.0);
    let wrong = checkpoint(&[&x], |i| -> Result<Tensor> {
        Ok(i[0].f_matmul(&i[0].f_zeros_like()?.f_view([1, 2])?)?)
    });
    assert!(matches!(wrong, Err(Error::Tch(_))), "the closure's own error: {wrong:?}");
    let own = checkpoint(&[&x], |_| -> Result<Tensor> {
        Err(Error::State { name: "n".into(), reason: "of its own".into() })
    });
    assert!(matches!(&own, Err(Error::State { name, .. }) if name == "n"), "{own:?}");
    let panicked = checkpoint(&[&x], |_| -> Result<Tensor> { panic!("no such {}", "luck") });
    let Err(Error::Libtorch { message, .. }) = panicked else { panic!("{panicked:?}") };
    assert!(message.contains("panicked: no such luck"), "{message}");

    // In the backward pass, they are errors of `backward`; what was in force is back in force.
    for panics in [false, true] {
        let mut runs = 0;
        let out = checkpoint(&[&x], move |i| -> Result<Tensor> {
            runs += 1;
            match runs {
                1 => Ok(i[0].f_square()?),
                _ if panics => panic!("at the second run"),
                _ => Err(Error::State { name: "n".into(), reason: "at the second run".into() }),
            }
        })
        .unwrap();
        let error = out.sum(Kind::Float).f_backward().unwrap_err().to_string();
        assert!(error.contains("at the second run"), "{error}");
    }
    add_grad(&x, &numbers(&[2], 0.0));
    assert!(x.grad().defined());
}

#[test]
fn an_input_that_changed_in_between_is_an_error() {
    let x = numbers(&[2], 0.0);
    let weight = parameter(&[2], 1.0);
    let captured = weight.shallow_clone();
    let out = checkpoint(&[&x], move |i| -> Result<Tensor> { Ok((&i[0] * &captured).f_exp()?) }).unwrap();
    let _ = x.shallow_clone().f_add_scalar_(1.0).unwrap();
    let error = out.sum(Kind::Float).f_backward().unwrap_err().to_string();
    assert!(error.contains("modified by an inplace operation"), "{error}");
}

#[test]
fn autocast_is_the_same_in_both_runs() {
    let kinds = Arc::new(Mutex::new(vec![]));
    let weight = parameter(&[3, 3], 1.0);
    let grads = |checkpointed: bool| {
        let x = parameter(&[2, 3], 0.0);
        let (captured, kinds) = (weight.shallow_clone(), kinds.clone());
        let body = move |i: &[Tensor]| -> Result<Tensor> {
            let out = i[0].f_matmul(&captured)?;
            kinds.lock().unwrap().push(out.kind());
            Ok(out.f_tanh()?)
        };
        let out = autocast(Device::Cpu, || {
            let out = if checkpointed { checkpoint(&[&x], body).unwrap() } else { body_once(body, &x) };
            // The same weight outside of the checkpoint, with a gradient of its own.
            (out.matmul(&weight)).to_kind(Kind::Float)
        })
        .unwrap();
        out.sum(Kind::Float).backward();
        let got = (bits(&x.grad()), bits(&weight.grad()));
        let _ = weight.grad().zero_();
        got
    };
    assert_eq!(grads(false), grads(true));
    assert_eq!(*kinds.lock().unwrap(), [Kind::BFloat16; 3]);
    // The second run left nothing behind.
    assert_eq!(numbers(&[2, 2], 0.0).matmul(&numbers(&[2, 2], 1.0)).kind(), Kind::Float);
}

fn body_once(mut body: impl FnMut(&[Tensor]) -> Result<Tensor>, x: &Tensor) -> Tensor {
    body(&[x.shallow_clone()]).unwrap()
}

/// How the child process of the test below runs, and where it writes its peak memory.
const CHILD: [&str; 2] = ["RUMINATE_TEST_CHECKPOINTS", "RUMINATE_TEST_PEAK"];

/// Peak memory of a chain of cheap layers, in a process of its own: with checkpoints, a small part of that without.
#[test]
#[cfg(target_os = "linux")]
fn memory_is_that_of_one_layer() {
    const LAYERS: usize = 24;
    const NUMBERS: i64 = 1 << 20;
    if let [Some(how), Some(file)] = CHILD.map(std::env::var_os) {
        let mut x = parameter(&[NUMBERS], 0.0);
        for _ in 0..LAYERS {
            let body = |i: &[Tensor]| -> Result<Tensor> { Ok(i[0].f_tanh()?.f_exp()?.f_sin()?.f_tanh()?) };
            x = if how == "on" { checkpoint(&[&x], body).unwrap() } else { body_once(body, &x) };
        }
        x.sum(Kind::Float).backward();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        std::fs::write(file, peak.unwrap()).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let peak_mib = |how: &str| -> f64 {
        let file = folder.path().join(how);
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "checkpoint::memory_is_that_of_one_layer"])
            .envs([(CHILD[0], how.as_ref()), (CHILD[1], file.as_os_str())])
            // Freed memory goes back at once, so that the peak is not that of a fragmented heap.
            .env("MALLOC_MMAP_THRESHOLD_", "65536")
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        std::fs::read_to_string(file).unwrap().parse::<f64>().unwrap() / 1024.0
    };
    let (with, without) = (peak_mib("on"), peak_mib("off"));
    // Three tensors of 4 MiB are kept per layer, against one.
    let saved = LAYERS as f64 * 2.0 * 4.0;
    assert!(without - with > 0.7 * saved, "{with} MiB with checkpoints, {without} MiB without");
}
