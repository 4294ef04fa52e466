//! Criterion groups of the operations that there are kernels for, with throughput in elements: on the CPU (`cpu`), and on CUDA by
//! libtorch's operations (`cuda`) and by our kernel (`kernel`). A kernel that is no faster than libtorch has no reason to be.
#![allow(missing_docs, clippy::print_stderr, clippy::unwrap_used, reason = "a benchmark")]

use criterion::{Criterion, Throughput};
use ruminate_torch::kernels::{Kernel, turn_on};
use ruminate_torch::{Gate, KvRef, attention, decode_attention, gate, log_probs, rope, top_p};
use tch::{Device, Kind, Tensor};

/// A repeat, and the elements that it works on.
type Operation = (Box<dyn Fn() -> Tensor>, u64);

fn main() {
    ruminate_torch::keep_freed_memory();
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    measure(&mut criterion, "cpu", Device::Cpu, Kind::Float, &[]);
    if tch::Cuda::is_available() {
        for kind in [Kind::Float, Kind::BFloat16] {
            measure(&mut criterion, "cuda", Device::Cuda(0), kind, &[]);
            measure(&mut criterion, "kernel", Device::Cuda(0), kind, &Kernel::ALL);
        }
    } else {
        eprintln!("cuda: skipped, there is no such device");
    }
    criterion.final_summary();
}

fn measure(criterion: &mut Criterion, name: &str, device: Device, kind: Kind, kernels: &[Kernel]) {
    turn_on(kernels).unwrap();
    for kernel in Kernel::ALL.into_iter().filter(|&kernel| kernel != Kernel::Graphs) {
        let (operation, elements) = operation(kernel, device, kind);
        let mut group = criterion.benchmark_group(kernel.name());
        group.throughput(Throughput::Elements(elements));
        group.bench_function(format!("{name}/{kind:?}"), |bencher| {
            bencher.iter(|| {
                let out = operation();
                if let Device::Cuda(index) = device {
                    tch::Cuda::synchronize(index as i64);
                }
                out
            });
        });
        group.finish();
    }
}

/// At shapes of T5-small and Llama-60M.
fn operation(kernel: Kernel, device: Device, kind: Kind) -> Operation {
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, device)).to_kind(kind);
    let repeat: Box<dyn Fn() -> Tensor>;
    let shape: &[i64];
    match kernel {
        Kernel::LogProbs => {
            let hidden = random(&[512, 512]).set_requires_grad(true);
            let weight = random(&[32_128, 512]).set_requires_grad(true);
            let targets = Tensor::randint(32_128, [512], (Kind::Int64, device));
            shape = &[512, 32_128];
            repeat = Box::new(move || {
                let scores = log_probs(&hidden, &weight, &targets, 1.0, true).unwrap();
                let entropy = scores.entropy.unwrap();
                gradient((scores.log_probs + entropy).sum(Kind::Float), &[&hidden, &weight])
            });
        }
        Kernel::TopP => {
            shape = &[32, 32_128];
            let logits = random(shape).to_kind(Kind::Float) * 3.0;
            // libtorch's way on a GPU, as transformers has it.
            let sorted = device != Device::Cpu && !Kernel::TopP.is_on();
            repeat = Box::new(move || {
                if sorted {
                    let (sorted, order) = logits.sort(-1, false);
                    let dropped = sorted.softmax(-1, Kind::Float).cumsum(-1, Kind::Float).le(0.1);
                    return logits.masked_fill(&dropped.scatter(1, &order, &dropped), f64::NEG_INFINITY);
                }
                top_p(&logits, 0.9).unwrap()
            });
        }
        Kernel::DecodeAttention => {
            let (q, keys) = (random(&[32, 1, 8, 64]), random(&[32, 8, 200, 64]));
            shape = &[32, 8, 200, 64];
            repeat = Box::new(move || {
                let parts = [KvRef { keys: &keys, values: &keys }];
                // Or libtorch's way.
                decode_attention(&q, &parts, None, 0.125)
                    .unwrap()
                    .unwrap_or_else(|| attention(&q.transpose(1, 2), &keys, &keys, None, 0.125, 0.0).unwrap())
            });
        }
        Kernel::Attention => {
            shape = &[8, 8, 256, 64];
            let [q, k, v] = [(); 3].map(|()| random(shape).set_requires_grad(true));
            let bias = random(&[1, 8, 256, 256]).set_requires_grad(true);
            repeat = Box::new(move || {
                let out = attention(&q, &k, &v, Some(&bias), 0.125, 0.0).unwrap();
                gradient(out.sum(Kind::Float), &[&q, &k, &v, &bias])
            });
        }
        Kernel::Graphs => unreachable!("they are no operation"),
        Kernel::Rope => {
            shape = &[8, 256, 8, 64];
            let (x, tables) = (random(shape), random(&[1, 256, 1, 64]));
            repeat = Box::new(move || rope(&x, &tables, &tables).unwrap());
        }
        Kernel::Gate => {
            shape = &[2048, 1376];
            let (x, y) = (random(shape), random(shape));
            repeat = Box::new(move || gate(Gate::Silu, &x, &y).unwrap());
        }
    }
    (repeat, shape.iter().product::<i64>() as u64)
}

/// That of the first input; none is added to an earlier one.
fn gradient(loss: Tensor, inputs: &[&Tensor]) -> Tensor {
    Tensor::run_backward(&[loss], inputs, false, false).remove(0)
}
