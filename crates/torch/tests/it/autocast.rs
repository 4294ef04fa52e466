//! Automatic bfloat16.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ruminate_torch::autocast;
use tch::{Device, Kind, Tensor};

use crate::{largest_difference, numbers, parameter};

/// The kind of a matrix product here and now.
fn product() -> Kind {
    numbers(&[4, 4], 0.0).matmul(&numbers(&[4, 4], 1.0)).kind()
}

#[test]
fn products_are_bfloat16_inside_only() {
    assert_eq!(product(), Kind::Float);
    let inside = autocast(Device::Cpu, || {
        let sum = numbers(&[4], 0.0).sum(Kind::Float);
        (product(), sum.kind())
    });
    assert_eq!(inside.unwrap(), (Kind::BFloat16, Kind::Float));
    assert_eq!(product(), Kind::Float);
}

#[test]
fn the_setting_comes_back_after_a_failure() {
    let failed: Result<(), tch::TchError> =
        autocast(Device::Cpu, || numbers(&[4, 4], 0.0).f_matmul(&numbers(&[3, 3], 0.0)).map(|_| ())).unwrap();
    assert!(failed.is_err());
    assert_eq!(product(), Kind::Float);

    let panicked = catch_unwind(AssertUnwindSafe(|| autocast(Device::Cpu, || panic!("in the body"))));
    assert!(panicked.is_err());
    assert_eq!(product(), Kind::Float);
}

#[test]
fn inside_another_one_it_stays_on() {
    let kinds = autocast(Device::Cpu, || {
        let inner = autocast(Device::Cpu, product).unwrap();
        (inner, product())
    });
    assert_eq!(kinds.unwrap(), (Kind::BFloat16, Kind::BFloat16));
    assert_eq!(product(), Kind::Float);
}

#[test]
fn gradients_are_float32_and_follow_the_weights() {
    let mut w = parameter(&[8, 8], 0.0);
    let x = numbers(&[3, 8], 1.0);
    let forward = |w: &Tensor| autocast(Device::Cpu, || x.matmul(w)).unwrap();
    let y = forward(&w);
    y.sum(Kind::Float).backward();
    assert_eq!((w.kind(), w.grad().kind()), (Kind::Float, Kind::Float));
    let exact = x.matmul(&w);
    let off = largest_difference(&y, &exact);
    assert!(off > 0.0 && off < 0.05, "{off}");
    // A copy in bfloat16 that outlived an update would give the old product.
    tch::no_grad(|| {
        let _ = w.g_mul_scalar_(-1.0);
    });
    assert!(largest_difference(&forward(&w), &-exact) < 0.05);
}
