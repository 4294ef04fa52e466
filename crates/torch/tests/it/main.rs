//! The libtorch layer on the CPU.

mod adafactor;
mod autocast;
mod checkpoint;
mod clipping;
mod dist;
mod dropout;
mod files;
mod fused;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod kernels;
mod log_probs;
mod memory;
mod optim;
mod products;
mod rng;
mod sampling;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

/// For tests that draw from the random generator, which all threads share.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers without a pattern, the same in every run and untouched by the random generator.
fn numbers(shape: &[i64], phase: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i as f64 + 1.0) * 1.7 + phase).sin() as f32).collect();
    Tensor::from_slice(&values).view(shape)
}

fn parameter(shape: &[i64], phase: f64) -> Tensor {
    numbers(shape, phase).set_requires_grad(true)
}

/// Adds `grad` to the parameter's gradient: that of a product with a constant is the constant.
fn add_grad(parameter: &Tensor, grad: &Tensor) {
    (parameter * grad).sum(Kind::Float).backward();
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

/// The tensor's bits, so that a comparison forgives nothing.
fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = Vec::<f32>::try_from(tensor.detach().to_device(Device::Cpu).reshape([-1])).unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// A linker drops libraries that nothing refers to; without this one, a CUDA build runs on the CPU without a word.
#[test]
#[cfg(target_os = "linux")]
fn cuda_is_loaded_exactly_when_libtorch_has_it() {
    let loaded = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert_eq!(loaded.contains("libtorch_cuda.so"), cfg!(ruminate_cuda));
}
