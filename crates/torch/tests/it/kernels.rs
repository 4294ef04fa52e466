//! The kernels for CUDA: emulated on the CPU they have to pass the tests of what they stand for, and NVRTC has to take them. On a GPU, where
//! there is one, they are held to the CPU.

use std::ffi::c_int;

use ruminate_torch::kernels::{Kernel, compile, turn_on};
use ruminate_torch::{Gate, Graph, KvRef, decode_attention, gate, log_probs, rope, top_p};
use tch::{Device, Kind, Tensor};

use crate::{bits, fused, log_probs as whole, numbers};

unsafe extern "C" {
    /// Gives how many kernels this thread has started since it was called last.
    fn ruminate_emulate_kernels(on: c_int) -> i64;
}

fn emulated(started: i64, test: impl FnOnce()) {
    // SAFETY: both calls only change what this thread does.
    unsafe { ruminate_emulate_kernels(1) };
    test();
    // SAFETY: as above.
    let count = unsafe { ruminate_emulate_kernels(0) };
    assert!(count >= started, "only {count} kernels were started");
}

#[test]
fn gates() {
    emulated(30, fused::gates);
}

#[test]
fn rotations() {
    // The tables of the first are float32: what is bfloat16 goes another way there.
    emulated(20, || {
        fused::rotations();
        fused::a_position_is_remembered_turned();
    });
}

#[test]
fn a_few_queries_look_at_shared_and_own_keys() {
    emulated(30, fused::a_few_queries_look_at_shared_and_own_keys);
}

#[test]
fn attention_in_all_shapes() {
    // libtorch's own is not counted.
    emulated(0, || {
        fused::attention_in_all_shapes();
        fused::hidden_keys_get_nothing();
    });
}

#[test]
fn log_probabilities() {
    emulated(8, || {
        whole::values_and_gradients_are_those_of_the_full_logits();
        whole::several_chunks_are_as_one();
        whole::entropy_is_left_out_unless_asked_for();
        whole::cross_entropy_is_the_sum_with_its_gradients();
    });
}

#[test]
fn a_target_that_is_none_has_no_probability() {
    let hidden = numbers(&[2, 3], 0.0);
    let scores = |targets: &[i64]| {
        log_probs(&hidden, &numbers(&[5, 3], 1.0), &Tensor::from_slice(targets), 1.0, false)
            .unwrap()
            .log_probs
    };
    emulated(2, || {
        assert!(scores(&[5, 1]).double_value(&[0]).is_nan());
        assert!(!scores(&[4, 1]).double_value(&[0]).is_nan());
    });
}

/// Logits `[rows, vocab]` as those of a model, of which some are equal and some impossible.
fn uneven(rows: i64, vocab: i64) -> Tensor {
    let logits = numbers(&[rows, vocab], 0.3) * 6.0;
    let coarse = (&logits * 4.0).round() / 4.0;
    let row = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).unsqueeze(1);
    let logits = coarse.where_self(&row.remainder(2).eq(0), &logits);
    let _ = logits.narrow(1, 0, vocab / 5).fill_(f64::NEG_INFINITY);
    logits
}

fn kept(logits: &Tensor) -> Vec<bool> {
    Vec::try_from(logits.isfinite().to_device(Device::Cpu).view([-1])).unwrap()
}

#[test]
fn top_p_keeps_what_the_loops_keep() {
    for (rows, vocab) in [(2, 1), (4, 7), (6, 500), (2, 5000)] {
        let logits = uneven(rows, vocab);
        for p in [1e-9, 0.3, 0.7, 0.95, 0.999] {
            let expected = kept(&top_p(&logits, p).unwrap());
            emulated(1, || {
                let filtered = top_p(&logits, p).unwrap();
                assert_eq!(kept(&filtered), expected, "{rows} x {vocab}, {p}");
                let mask = filtered.isfinite();
                let [values, given] = [&filtered, &logits].map(|x| bits(&x.masked_select(&mask)));
                assert_eq!(values, given, "what stays is as it was");
            });
        }
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "says why nothing was tested")]
fn nvrtc_takes_them() {
    for kernel in Kernel::ALL {
        match compile(kernel, "sm_90").unwrap() {
            Some(bytes) => assert!(bytes > 1000, "{kernel:?}: {bytes} bytes"),
            None if matches!(kernel, Kernel::Attention | Kernel::Graphs) => {}
            None => eprintln!("skipped: there is no NVRTC"),
        }
    }
}

#[test]
#[cfg(not(ruminate_cuda))]
fn without_cuda_none_can_be_turned_on() {
    let error = turn_on(&[Kernel::Gate]).unwrap_err().to_string();
    assert!(error.contains("no kernels"), "{error}");
    turn_on(&[]).unwrap();
    assert!(!Kernel::Gate.is_on());
}

/// What each kernel does, with gradients where it has some, on a device.
fn results(device: Device, kind: Kind) -> Vec<(&'static str, Tensor)> {
    let place = |x: Tensor| x.to_kind(kind).to_device(device);
    let leaf = |shape: &[i64], phase: f64| place(numbers(shape, phase)).set_requires_grad(true);
    let mut all = vec![];

    let (x, y) = (leaf(&[5, 70], 0.1), leaf(&[5, 70], 0.2));
    for activation in [Gate::Silu, Gate::GeluTanh] {
        let out = gate(activation, &x, &y).unwrap();
        out.square().sum(Kind::Float).backward();
        all.push(("gate", out.detach()));
    }
    all.extend([("gradient of a gate", x.grad()), ("gradient behind a gate", y.grad())]);

    let x = leaf(&[2, 5, 3, 64], 0.3);
    let angles = numbers(&[1, 5, 1, 32], 0.4);
    let cos = place(Tensor::cat(&[angles.cos(), angles.cos()], -1));
    let sin = place(Tensor::cat(&[-angles.sin(), angles.sin()], -1));
    let out = rope(&x, &cos, &sin).unwrap();
    (&out * place(numbers(&[2, 5, 3, 64], 0.5))).sum(Kind::Float).backward();
    all.extend([("rotation", out.detach()), ("gradient of a rotation", x.grad())]);

    let [q, k, v] = [1.1, 1.2, 1.3].map(|phase| leaf(&[2, 3, 20, 64], phase));
    let bias = leaf(&[1, 3, 20, 20], 1.4);
    let out = ruminate_torch::attention(&q, &k, &v, Some(&bias), 0.125, 0.0).unwrap();
    out.square().sum(Kind::Float).backward();
    all.extend([
        ("attention", out.detach()),
        ("gradient of queries", q.grad()),
        ("gradient of the bias", bias.grad()),
    ]);

    let (hidden, weight) = (leaf(&[9, 16], 0.6), leaf(&[300, 16], 0.7));
    let targets = Tensor::arange(9, (Kind::Int64, device)) * 31;
    let scores = log_probs(&hidden, &weight, &targets, 0.5, true).unwrap();
    let entropy = scores.entropy.unwrap();
    (scores.log_probs.sum(Kind::Float) + entropy.square().sum(Kind::Float)).backward();
    all.extend([("log-probabilities", scores.log_probs.detach()), ("entropies", entropy.detach())]);
    all.extend([("gradient of states", hidden.grad()), ("gradient of the output matrix", weight.grad())]);

    let [q, own, shared] =
        [[6, 1, 8, 64], [6, 4, 30, 64], [2, 4, 200, 64]].map(|shape| place(numbers(&shape, 0.8)));
    let parts = [&shared, &own].map(|keys| KvRef { keys, values: keys });
    let bias = numbers(&[1, 8, 1, 230], 0.9).to_device(device);
    // Without its kernel there is none on a GPU.
    all.extend(
        decode_attention(&q, &parts, Some(&bias), 0.125).unwrap().map(|out| ("attention of a query", out)),
    );
    all
}

#[test]
#[expect(clippy::print_stderr, reason = "says why nothing was tested")]
fn on_a_gpu_they_agree_with_the_cpu() {
    if !tch::Cuda::is_available() {
        eprintln!("skipped: there is no GPU");
        return;
    }
    turn_on(&Kernel::ALL).unwrap();
    for kind in [Kind::Float, Kind::BFloat16] {
        let (here, there) = (results(Device::Cpu, kind), results(Device::Cuda(0), kind));
        assert_eq!(here.len(), there.len());
        for ((what, expected), (_, found)) in here.iter().zip(&there) {
            let [expected, found] = [expected, found].map(|x| x.to_kind(Kind::Double).to_device(Device::Cpu));
            let difference = (&expected - &found).abs().max().double_value(&[]);
            let allowed = if kind == Kind::Float { 1e-5 } else { 3e-2 }
                * expected.abs().max().double_value(&[]).max(1.0);
            assert!(difference <= allowed, "{what}, {kind:?}: {difference:e}");
        }
    }
    for (rows, vocab) in [(4, 7), (3, 32_128)] {
        let logits = uneven(rows, vocab);
        let found = top_p(&logits.to_device(Device::Cuda(0)), 0.9).unwrap();
        assert_eq!(kept(&found), kept(&top_p(&logits, 0.9).unwrap()));
    }
    // Off again between forward and backward: what began with a kernel ends with it.
    let x = numbers(&[3, 8], 0.0).to_device(Device::Cuda(0)).set_requires_grad(true);
    let out = gate(Gate::Silu, &x, &x).unwrap();
    turn_on(&[]).unwrap();
    out.sum(Kind::Float).backward();
}

#[test]
#[expect(clippy::print_stderr, reason = "says why nothing was tested")]
fn a_graph_does_again_what_was_recorded() {
    if !tch::Cuda::is_available() {
        eprintln!("skipped: there is no GPU");
        return;
    }
    let device = Device::Cuda(0);
    let mut x = numbers(&[4, 4], 0.0).to_device(device);
    let body = || -> ruminate_torch::Result<Tensor> { Ok(x.f_matmul(&x)?.f_relu()?) };
    let _ = body().unwrap();
    let (graph, out) = Graph::record(device, body).unwrap();
    for phase in [1.0, 2.0] {
        let new = numbers(&[4, 4], phase).to_device(device);
        x.copy_(&new);
        graph.replay().unwrap();
        assert!((&out - new.matmul(&new).relu()).abs().max().double_value(&[]) < 1e-5);
    }
    let failed = Graph::record(device, || {
        Err::<(), _>(ruminate_torch::Error::from(tch::TchError::Torch("no".into())))
    });
    assert!(failed.is_err());
    // Recording has ended, so that the device can be waited for.
    tch::Cuda::synchronize(0);
}

#[test]
fn a_graph_is_of_cuda_only() {
    let error = Graph::record(Device::Cpu, || Ok::<_, ruminate_torch::Error>(())).unwrap_err();
    assert!(error.to_string().contains("has no graphs"), "{error}");
}
