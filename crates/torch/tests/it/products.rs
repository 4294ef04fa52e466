//! Products on either library, against double precision.

use ruminate_torch::{Gate, Packed, Prologue, gate, linear, log_probs, matmul, rms_norm};
use tch::{Kind, Tensor};

use crate::{largest_difference, numbers, parameter};

/// Value and gradients of `f` must be those of `reference` in double precision.
#[track_caller]
fn same(
    inputs: [&Tensor; 2],
    f: impl Fn(&Tensor, &Tensor) -> Tensor,
    reference: impl Fn(&Tensor, &Tensor) -> Tensor,
) {
    let out = f(inputs[0], inputs[1]);
    let doubles = inputs.map(|t| t.detach().to_kind(Kind::Double).set_requires_grad(true));
    let expected = reference(&doubles[0], &doubles[1]);
    // Sums over some hundred products of numbers around 1. libtorch's own product, which some
    // shapes are left to, is off by 1.5e-4 of 150 on one processor.
    let difference = largest_difference(&out, &expected);
    let of_libtorch = out == reference(&inputs[0].detach(), &inputs[1].detach());
    assert!(difference < 1e-4 || of_libtorch, "the value differs by {difference:e}");
    let weights = numbers(&out.size(), 0.3);
    let grads = |out: &Tensor, inputs: [&Tensor; 2]| {
        Tensor::run_backward(&[(out * &weights).sum(out.kind())], &inputs, false, false)
    };
    let (got, wanted) = (grads(&out, inputs), grads(&expected, [&doubles[0], &doubles[1]]));
    for (got, wanted) in got.iter().zip(&wanted) {
        let difference = largest_difference(got, wanted);
        assert!(difference < 2e-4, "the gradient differs by {difference:e}");
    }
}

#[test]
fn a_linear_layer_has_the_right_value_and_gradients() {
    // Below and above the size from which on another library is used.
    for (rows, width, out) in [(3, 8, 5), (48, 256, 512), (1, 512, 9000)] {
        let (x, weight) = (parameter(&[2, rows, width], 0.0), parameter(&[out, width], 1.0));
        let reference = |x: &Tensor, w: &Tensor| x.linear(w, None::<&Tensor>);
        same([&x, &weight], |x, w| linear(x, w).unwrap(), reference);
        // Not in order of memory.
        let x = parameter(&[width, rows, 2], 0.0);
        same(
            [&x, &weight],
            |x, w| linear(&x.transpose(0, 2), w).unwrap(),
            |x, w| reference(&x.transpose(0, 2), w),
        );
    }
}

#[test]
fn a_single_row_without_a_batch_is_a_row() {
    let (x, weight) = (parameter(&[512], 0.0), parameter(&[9000, 512], 1.0));
    same([&x, &weight], |x, w| linear(x, w).unwrap(), |x, w| x.linear(w, None::<&Tensor>));
}

#[test]
fn batches_of_products_have_the_right_value_and_gradients() {
    for (time, width) in [(3, 4), (64, 64)] {
        let shape = [4, time, 8, width];
        let (a, b) = (parameter(&shape, 0.0), parameter(&shape, 1.0));
        // As in attention: heads become a dimension of the batch, and one side is transposed.
        let scores = |a: &Tensor, b: &Tensor| (a.transpose(1, 2), b.permute([0, 2, 3, 1]));
        same(
            [&a, &b],
            |a, b| {
                let (a, b) = scores(a, b);
                matmul(&a, &b).unwrap()
            },
            |a, b| {
                let (a, b) = scores(a, b);
                a.matmul(&b)
            },
        );
    }
}

#[test]
fn a_second_derivative_is_right() {
    let (x, weight) = (parameter(&[64, 256], 0.0), parameter(&[512, 256], 1.0));
    let second = |product: &dyn Fn() -> Tensor| {
        let loss = product().square().sum(Kind::Float);
        let first = Tensor::run_backward(&[loss], &[&x], true, true);
        Tensor::run_backward(&[first[0].square().mean(Kind::Float)], &[&weight], false, false).remove(0)
    };
    let ours = second(&|| linear(&x, &weight).unwrap());
    let theirs = second(&|| x.linear(&weight, None::<&Tensor>));
    let size = theirs.abs().max().double_value(&[]);
    assert!(size > 0.0 && largest_difference(&ours, &theirs) < 1e-5 * size);
}

#[test]
fn a_packed_weight_gives_the_products_of_its_parts() {
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
        let weights = [numbers(&[24, 64], 0.0), numbers(&[40, 64], 1.0)].map(|w| w.to_kind(kind));
        let packed = Packed::new(&[&weights[0], &weights[1]]).unwrap();
        for rows in [1, 3, 40] {
            let x = numbers(&[rows, 1, 64], 2.0).to_kind(kind);
            let expected = Tensor::cat(&weights.each_ref().map(|w| x.linear(w, None::<&Tensor>)), 2);
            // Processors add in different orders, and terms as large as the largest element cancel.
            let size = expected.abs().max().double_value(&[]).max(1.0);
            let tolerance = if kind == Kind::BFloat16 { 0.1 } else { 1e-5 * size };
            assert!(
                largest_difference(&packed.linear(&x).unwrap(), &expected) < tolerance,
                "{kind:?} {rows}"
            );
        }
    }
    let narrow = Packed::new(&[&numbers(&[4, 8], 0.0)]).unwrap();
    assert!(narrow.linear(&numbers(&[2, 9], 0.0)).is_err());
    let norm = Prologue::Norm { weight: &numbers(&[9], 0.0), eps: 0.1 };
    assert!(narrow.fused_linear(norm, &numbers(&[2, 8], 0.0), None).is_err());
    assert!(narrow.fused_linear(Prologue::Gate(Gate::Silu), &numbers(&[2, 8], 0.0), None).is_err());
    assert!(Packed::new(&[&numbers(&[4, 8], 0.0), &numbers(&[4, 9], 0.0)]).is_err());
    assert!(linear(&numbers(&[2, 9], 0.0), &numbers(&[4, 8], 0.0)).is_err());
}

#[test]
fn a_packed_product_takes_in_what_lies_before_and_beside_it() {
    for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::Double, 1e-5), (Kind::BFloat16, 3e-2)] {
        // Blocks of outputs are 64; 100 leaves one in part.
        for (rows, k, outputs) in [(1, 7, 5), (2, 32, 64), (3, 33, 100), (7, 64, 200), (70, 20, 65)] {
            let weight = numbers(&[outputs, k], 1.0).to_kind(kind);
            let packed = Packed::new(&[&weight]).unwrap();
            let scale = numbers(&[k], 2.0).to_kind(kind);
            let residual = numbers(&[rows, 1, outputs], 3.0).to_kind(kind);
            let x = numbers(&[rows, 1, k], 4.0).to_kind(kind);
            let wide = numbers(&[rows, 1, 2 * k], 5.0).to_kind(kind);
            let halves = wide.chunk(2, -1);
            let gated = |activation| gate(activation, &halves[0], &halves[1]).unwrap();
            for (before, x, made) in [
                (Prologue::None, &x, x.shallow_clone()),
                (Prologue::Relu, &x, x.relu()),
                (Prologue::Norm { weight: &scale, eps: 0.1 }, &x, rms_norm(&x, &scale, 0.1).unwrap()),
                (Prologue::Gate(Gate::Silu), &wide, gated(Gate::Silu)),
                (Prologue::Gate(Gate::GeluTanh), &wide, gated(Gate::GeluTanh)),
            ] {
                let product =
                    made.to_kind(Kind::Double).linear(&weight.to_kind(Kind::Double), None::<&Tensor>);
                let size = product.abs().max().double_value(&[]).max(1.0);
                for residual in [None, Some(&residual)] {
                    let out = packed.fused_linear(before, x, residual).unwrap();
                    let expected = residual.map_or_else(|| product.shallow_clone(), |r| &product + r);
                    let difference = largest_difference(&out, &expected) / size;
                    assert!(difference < tolerance, "{kind:?} {rows} {k} {outputs} {before:?}: {difference}");
                    assert_eq!((out.kind(), out.size()), (kind, vec![rows, 1, outputs]));
                }
            }
            assert!(packed.fused_linear(Prologue::None, &x, Some(&residual.narrow(2, 0, 1))).is_err());
        }
    }
}

#[test]
fn a_row_of_a_packed_product_does_not_depend_on_the_other_rows() {
    for kind in [Kind::Float, Kind::BFloat16] {
        // Several stretches of inputs, and blocks of outputs of which the last is not full.
        let packed = Packed::new(&[&numbers(&[130, 300], 0.0).to_kind(kind)]).unwrap();
        let x = numbers(&[61, 300], 1.0).to_kind(kind);
        let alone: Vec<Tensor> = (0..61).map(|row| packed.linear(&x.narrow(0, row, 1)).unwrap()).collect();
        let alone = Tensor::cat(&alone, 0);
        for rows in [2, 3, 5, 6, 7, 13, 49, 61] {
            let together = packed.linear(&x.narrow(0, 61 - rows, rows)).unwrap();
            assert_eq!(together, alone.narrow(0, 61 - rows, rows), "{rows} rows of {kind:?}");
        }
    }
}

#[test]
fn long_sums_of_narrow_products_keep_their_digits() {
    // As gradients over a vocabulary: one after the other, terms of one sign lose digits.
    for (m, k, n) in [(335, 50_000, 4), (4, 50_000, 300), (1, 60_000, 16), (9, 60_000, 16)] {
        let [a, b] = [numbers(&[m, k], 0.0), numbers(&[n, k], 0.5)].map(|x| x.square());
        let exact = a.to_kind(Kind::Double).matmul(&b.to_kind(Kind::Double).tr());
        let largest = exact.abs().max().double_value(&[]);
        let error = largest_difference(&linear(&a, &b).unwrap(), &exact) / largest;
        assert!(error < 5e-6, "{m} {k} {n}: {error:e}");
        let x = numbers(&[k, n], 0.2).set_requires_grad(true);
        let weight = numbers(&[m, n], 0.7).set_requires_grad(true);
        same([&x, &weight], |x, w| linear(x, w).unwrap(), |x, w| x.linear(w, None::<&Tensor>));
    }
}

#[test]
fn a_weight_packed_under_autocast_multiplies_in_bfloat16() {
    let (weight, x) = (numbers(&[70, 40], 0.0), numbers(&[3, 40], 1.0));
    let (product, sum) = ruminate_torch::autocast(tch::Device::Cpu, || {
        let packed = Packed::new(&[&weight])?;
        let residual = x.ones_like().narrow(1, 0, 1).expand([3, 70], false).contiguous();
        let sum = packed.fused_linear(Prologue::None, &x, Some(&residual))?;
        Ok::<_, ruminate_torch::Error>((packed.linear(&x)?, sum))
    })
    .unwrap()
    .unwrap();
    assert_eq!((product.kind(), sum.kind()), (Kind::BFloat16, Kind::Float));
    let expected = x.linear(&weight, None::<&Tensor>);
    assert!(largest_difference(&product, &expected) < 0.1);
    assert!(largest_difference(&sum, &(expected + 1.0)) < 0.1);
}

#[test]
fn log_probabilities_over_a_large_vocabulary_are_right() {
    let (rows, vocab) = (700, 20_000);
    let (hidden, weight) = (parameter(&[rows, 32], 0.0), parameter(&[vocab, 32], 1.0));
    let targets = Tensor::arange(rows, (Kind::Int64, tch::Device::Cpu)) * 7;
    let reference = |h: &Tensor, w: &Tensor| {
        let log_probs = (h.matmul(&w.tr()) * 0.5).log_softmax(-1, None::<Kind>);
        log_probs.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1)
    };
    same([&hidden, &weight], |h, w| log_probs(h, w, &targets, 0.5, false).unwrap().log_probs, reference);
}
