//! Dropout without a stored mask.

use ruminate_torch::dropout;
use tch::{Device, Kind, Tensor};

use crate::{alone, bits};

const N: i64 = 300_000;

fn ones() -> Tensor {
    Tensor::ones([N], (Kind::Float, Device::Cpu)).set_requires_grad(true)
}

#[test]
fn dropout_does_what_its_definition_says() {
    let _alone = alone();
    let state = ruminate_torch::rng::state(Device::Cpu).unwrap();
    let x = ones();
    let out = dropout(&x, 0.1).unwrap();

    // The right share of zeros (five standard deviations), and the rest scaled.
    let zeros = out.eq(0.0).sum(Kind::Int64).int64_value(&[]) as f64;
    let deviation = (N as f64 * 0.1 * 0.9).sqrt();
    assert!((zeros - 0.1 * N as f64).abs() < 5.0 * deviation, "{zeros}");
    let kept = out.masked_select(&out.ne(0.0));
    assert!(bits(&kept).iter().all(|&b| b == (1.0f32 / 0.9).to_bits()));

    // Neighbours, and positions that blocks of work have in common, are independent.
    let dropped = out.eq(0.0);
    for distance in [1, 2, 16, 1 << 14, 1 << 15] {
        let n = N - distance;
        let both = dropped.narrow(0, 0, n).logical_and(&dropped.narrow(0, distance, n));
        let both = both.sum(Kind::Int64).int64_value(&[]) as f64;
        let deviation = (n as f64 * 0.01 * 0.99).sqrt();
        assert!((both - 0.01 * n as f64).abs() < 6.0 * deviation, "distance {distance}: {both}");
    }

    // The gradient has the same mask.
    let grad = Tensor::run_backward(&[out.sum(Kind::Float)], &[&x], false, false).remove(0);
    assert_eq!(bits(&grad), bits(&out));

    // Another call draws anew; the same state of the generator gives the same mask.
    assert_ne!(bits(&dropout(&x, 0.1).unwrap()), bits(&out));
    ruminate_torch::rng::set_state(Device::Cpu, &state).unwrap();
    let again = dropout(&x, 0.1).unwrap();
    assert_eq!(bits(&again), bits(&out));

    for rate in [-0.1, 1.1] {
        assert!(dropout(&x, rate).is_err());
    }
    assert_eq!(dropout(&x, 1.0).unwrap().abs().max().double_value(&[]), 0.0);
}
