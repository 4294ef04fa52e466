//! Parts of layers in one pass, against the operations of libtorch that they stand for.

use ruminate_torch::{
    Gate, KvRef, Prologue, append_kv, append_kv_at, attention, autocast, decode_attention, dropout,
    fused_linear, gate, rms_norm, rope,
};
use tch::{Device, Kind, Tensor};

/// Values and the gradients of the inputs, under weights that are all different.
fn with_gradients(inputs: &[&Tensor], body: &dyn Fn(&[Tensor]) -> Tensor) -> (Tensor, Vec<Tensor>) {
    let inputs: Vec<Tensor> = inputs.iter().map(|x| x.detach().copy().set_requires_grad(true)).collect();
    let out = body(&inputs);
    let weights = Tensor::arange(out.numel() as i64, (Kind::Float, Device::Cpu)).sin().view_as(&out);
    let total = (out.to_kind(Kind::Float) * weights).sum(Kind::Float);
    total.backward();
    (out.detach(), inputs.iter().map(Tensor::grad).collect())
}

/// By the size of the largest element; bfloat16 is rounded at other places.
fn assert_same(a: &Tensor, b: &Tensor, what: &str) {
    assert_eq!(a.size(), b.size(), "{what}");
    assert_eq!(a.kind(), b.kind(), "{what}");
    let tolerance = if a.kind() == Kind::BFloat16 { 3e-2 } else { 5e-6 };
    let [a, b] = [a, b].map(|x| x.to_kind(Kind::Float));
    let largest = b.abs().max().double_value(&[]).max(1.0);
    let difference = (&a - &b).abs().max().double_value(&[]) / largest;
    assert!(difference < tolerance, "{what}: {difference}");
}

fn agree(
    inputs: &[&Tensor],
    ours: &dyn Fn(&[Tensor]) -> Tensor,
    theirs: &dyn Fn(&[Tensor]) -> Tensor,
    what: &str,
) {
    for kind in [Kind::Float, Kind::BFloat16] {
        let inputs: Vec<Tensor> = inputs.iter().map(|x| x.to_kind(kind)).collect();
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        // What is to be met: float32 arithmetic on the same numbers.
        let (expected, slopes) = with_gradients(&inputs, &|x| {
            let wide: Vec<Tensor> = x.iter().map(|x| x.to_kind(Kind::Float)).collect();
            theirs(&wide).to_kind(kind)
        });
        let (values, gradients) = with_gradients(&inputs, ours);
        assert_same(&values, &expected, &format!("{what}, {kind:?}"));
        for (i, (gradient, slope)) in gradients.iter().zip(&slopes).enumerate() {
            assert_same(gradient, slope, &format!("{what}, gradient {i}, {kind:?}"));
        }
        // Without gradients other code may run.
        let plain: Vec<Tensor> = inputs.iter().map(|x| x.shallow_clone()).collect();
        assert_same(
            &tch::no_grad(|| ours(&plain)),
            &expected,
            &format!("{what}, without gradients, {kind:?}"),
        );
    }
}

fn random(shape: &[i64], seed: i64) -> Tensor {
    let count: i64 = shape.iter().product();
    // Fixed numbers without the generator, which is one for all tests.
    ((Tensor::arange(count, (Kind::Double, Device::Cpu)) + seed * 1000).sin() * 43758.5453)
        .frac()
        .to_kind(Kind::Float)
        .view(shape)
        * 2.0
}

#[test]
fn norms() {
    for (rows, width) in [(1, 1), (3, 7), (130, 64), (70, 515)] {
        let (x, weight) = (random(&[rows, width], 1), random(&[width], 2));
        let ours = |x: &[Tensor]| rms_norm(&x[0], &x[1], 1e-6).unwrap();
        agree(
            &[&x, &weight],
            &ours,
            &|x| x[0].rms_norm([width], Some(&x[1]), 1e-6),
            &format!("{rows} x {width}"),
        );
    }
    let x = random(&[4, 6, 10], 3).transpose(0, 1);
    let weight = random(&[10], 4);
    assert_same(&rms_norm(&x, &weight, 1e-5).unwrap(), &x.rms_norm([10], Some(&weight), 1e-5), "strided");
    assert!(rms_norm(&x, &random(&[9], 4), 1e-5).is_err());
}

#[test]
fn products_behind_a_norm_are_those_of_what_is_normed() {
    let columns = |x: &Tensor, weights: &[Tensor]| {
        let all: Vec<Tensor> = weights.iter().map(|w| x.linear(w, None::<&Tensor>)).collect();
        Tensor::cat(&all, -1)
    };
    // More rows than a block of sums has, and a width that fills no vector.
    for (rows, width) in [(1, 1), (5, 10), (210, 33)] {
        let inputs = [
            random(&[2, rows, width], 1),
            random(&[width], 2),
            random(&[7, width], 3),
            random(&[4, width], 4),
        ];
        agree(
            &inputs.each_ref(),
            &|x| fused_linear(Prologue::Norm { weight: &x[1], eps: 1e-6 }, &x[0], &[&x[2], &x[3]]).unwrap(),
            &|x| columns(&x[0].rms_norm([width], Some(&x[1]), 1e-6), &x[2..]),
            &format!("norm of {rows} rows of {width}"),
        );
        agree(
            &[&inputs[0], &inputs[2], &inputs[3]],
            &|x| fused_linear(Prologue::None, &x[0], &[&x[1], &x[2]]).unwrap(),
            &|x| columns(&x[0], &x[1..]),
            &format!("{rows} rows of {width}"),
        );
    }
}

#[test]
fn gradients_behind_a_norm_are_made_for_what_wants_them() {
    let inputs = [random(&[6, 10], 1), random(&[10], 2), random(&[7, 10], 3), random(&[4, 10], 4)];
    let all = |learn: [bool; 4]| {
        let x: Vec<Tensor> =
            inputs.iter().zip(learn).map(|(x, learn)| x.copy().set_requires_grad(learn)).collect();
        let norm = Prologue::Norm { weight: &x[1], eps: 1e-6 };
        fused_linear(norm, &x[0], &[&x[2], &x[3]]).unwrap().square().sum(Kind::Float).backward();
        x.iter().map(Tensor::grad).collect::<Vec<_>>()
    };
    let expected = all([true; 4]);
    for one in 0..4 {
        let grads = all(std::array::from_fn(|i| i == one));
        for (i, grad) in grads.iter().enumerate() {
            assert_eq!(grad.defined(), i == one);
        }
        assert_same(&grads[one], &expected[one], &format!("gradient {one} alone"));
    }
}

#[test]
fn products_behind_a_norm_refuse_what_does_not_fit() {
    let (x, weight) = (random(&[2, 10], 1), random(&[3, 9], 2));
    for before in [Prologue::None, Prologue::Norm { weight: &random(&[10], 3), eps: 1e-6 }] {
        let error = fused_linear(before, &x, &[&weight]).unwrap_err();
        assert!(error.to_string().contains("do not fit"), "{error}");
        assert!(fused_linear(before, &x, &[]).is_err());
    }
    let norm = Prologue::Norm { weight: &random(&[9], 3), eps: 1e-6 };
    assert!(fused_linear(norm, &x, &[&random(&[3, 10], 2)]).is_err());
    // With gradients and without them.
    let norm = Prologue::Norm { weight: &random(&[10], 3), eps: 1e-6 };
    for learns in [false, true] {
        let wide = random(&[3, 10], 2).set_requires_grad(learns);
        let narrow = random(&[3, 10], 2).to_kind(Kind::BFloat16).set_requires_grad(learns);
        assert!(fused_linear(norm, &x, &[&narrow]).is_err(), "another kind than x");
        assert!(fused_linear(norm, &x, &[&wide, &narrow]).is_err(), "two kinds");
    }
    let error = Prologue::Gate(Gate::Silu).apply(&random(&[2, 1], 1)).unwrap_err();
    assert!(error.to_string().contains("no two halves"), "{error}");
}

#[test]
fn autocast_rounds_products_behind_a_norm_as_it_does_others() {
    let inputs = [random(&[6, 10], 1), random(&[10], 2), random(&[7, 10], 3), random(&[4, 10], 4)];
    let inputs = inputs.each_ref();
    let cast = |body: &dyn Fn() -> Tensor| autocast(Device::Cpu, body).unwrap();
    let ours = |x: &[Tensor]| {
        let norm = Prologue::Norm { weight: &x[1], eps: 1e-6 };
        cast(&|| fused_linear(norm, &x[0], &[&x[2], &x[3]]).unwrap())
    };
    let theirs = |x: &[Tensor]| {
        cast(&|| {
            let normed = rms_norm(&x[0], &x[1], 1e-6).unwrap();
            Tensor::cat(&[2, 3].map(|i: usize| normed.linear(&x[i], None::<&Tensor>)), -1)
        })
    };
    let ((value, grads), (expected, slopes)) =
        (with_gradients(&inputs, &ours), with_gradients(&inputs, &theirs));
    assert_eq!(value.kind(), Kind::BFloat16);
    assert_same(&value, &expected, "value");
    for (i, (grad, slope)) in grads.iter().zip(&slopes).enumerate() {
        assert_eq!(grad.kind(), Kind::Float);
        let error = (grad - slope).abs().max().double_value(&[]) / slope.abs().max().double_value(&[]);
        assert!(error < 3e-2, "gradient {i}: {error}");
    }
}

#[test]
pub(crate) fn gates() {
    for width in [1, 9, 100] {
        let (x, y) = (random(&[5, 3, width], 1) * 4.0, random(&[5, 3, width], 2));
        for activation in [Gate::Silu, Gate::GeluTanh] {
            let ours = |x: &[Tensor]| gate(activation, &x[0], &x[1]).unwrap();
            let theirs = |x: &[Tensor]| match activation {
                Gate::Silu => x[0].silu() * &x[1],
                Gate::GeluTanh => x[0].gelu("tanh") * &x[1],
            };
            agree(&[&x, &y], &ours, &theirs, &format!("{activation:?} of {width}"));
        }
        let halves = Tensor::cat(&[&x, &y], -1).chunk(2, -1);
        assert_same(&gate(Gate::Silu, &halves[0], &halves[1]).unwrap(), &(x.silu() * &y), "side by side");
    }
    let far = Tensor::from_slice(&[-1e30f32, -200.0, 200.0, 1e30]);
    let values = gate(Gate::Silu, &far, &far.ones_like()).unwrap();
    assert_eq!(Vec::<f32>::try_from(values).unwrap(), [0.0, 0.0, 200.0, 1e30]);
}

#[test]
pub(crate) fn rotations() {
    for (rows, time, heads, width) in [(1, 1, 1, 2), (2, 5, 3, 8), (3, 4, 2, 34)] {
        let x = random(&[rows, time, heads, width], 1);
        for tables in [1, rows] {
            let angles = random(&[tables, time, 1, width / 2], 2);
            let cos = Tensor::cat(&[angles.cos(), angles.cos()], -1);
            let sin = Tensor::cat(&[-angles.sin(), angles.sin()], -1);
            let theirs = |x: &[Tensor]| &x[0] * &cos + x[0].roll([width / 2], [-1]) * &sin;
            agree(&[&x], &|x| rope(&x[0], &cos, &sin).unwrap(), &theirs, &format!("{rows} {tables}"));
        }
    }
}

#[test]
pub(crate) fn attention_in_all_shapes() {
    for (batch, heads, time, keys, width) in
        [(1, 1, 1, 1, 2), (2, 3, 1, 19, 8), (2, 3, 7, 5, 20), (3, 2, 33, 40, 64), (1, 2, 12, 12, 6)]
    {
        let q = random(&[batch, heads, time, width], 1);
        let k = random(&[batch, heads, keys, width], 2);
        let v = random(&[batch, heads, keys, width], 3);
        for sizes in
            [[1, heads, time, keys], [batch, 1, 1, keys], [batch, heads, time, keys], [1, 1, 1, keys]]
        {
            let bias = random(&sizes, 4);
            let ours = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], Some(&x[3]), 0.05, 0.0).unwrap();
            let theirs = |x: &[Tensor]| {
                let scores: Tensor = x[0].matmul(&x[1].transpose(2, 3)) * 0.05 + &x[3];
                scores.softmax(-1, Kind::Float).matmul(&x[2])
            };
            agree(&[&q, &k, &v, &bias], &ours, &theirs, &format!("{batch} {heads} {time} {keys} {sizes:?}"));
        }
        // Heads side by side in memory, as a layer's product leaves them, and no bias.
        let ours = |x: &[Tensor]| {
            let parts: Vec<Tensor> =
                x.iter().map(|x| x.transpose(1, 2).contiguous().transpose(1, 2)).collect();
            attention(&parts[0], &parts[1], &parts[2], None, 0.05, 0.0).unwrap()
        };
        let theirs = |x: &[Tensor]| {
            let scores: Tensor = x[0].matmul(&x[1].transpose(2, 3)) * 0.05;
            scores.softmax(-1, Kind::Float).matmul(&x[2])
        };
        agree(&[&q, &k, &v], &ours, &theirs, "strided");
    }
}

/// Every row and head gets its own copy of what it shares.
fn spread(x: &Tensor, rows: i64, heads: i64) -> Tensor {
    let (batch, shared, _, _) = x.size4().unwrap();
    x.repeat_interleave_self_int(rows / batch, 0, None).repeat_interleave_self_int(heads / shared, 1, None)
}

#[test]
pub(crate) fn a_few_queries_look_at_shared_and_own_keys() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for (rows, time, heads, width) in [(1, 1, 1, 2), (6, 1, 4, 16), (6, 3, 4, 20), (4, 8, 2, 64)] {
            // Batch entries, heads and keys of each part.
            for parts in [vec![[rows, heads, 5]], vec![[2.min(rows), heads / 2, 9], [rows, heads, 1]]] {
                if parts[0][1] == 0 {
                    continue;
                }
                let q = random(&[rows, time, heads, width], 1).to_kind(kind);
                let make = |seed: i64| -> Vec<Tensor> {
                    let shapes = parts.iter().map(|[batch, heads, keys]| [*batch, *heads, *keys, width]);
                    shapes.map(|shape| random(&shape, seed).to_kind(kind)).collect()
                };
                let (keys, values) = (make(2), make(3));
                let all = |x: &[Tensor]| {
                    let spread: Vec<_> =
                        x.iter().map(|x| spread(&x.to_kind(Kind::Float), rows, heads)).collect();
                    Tensor::cat(&spread, 2)
                };
                let (k, v) = (all(&keys), all(&values));
                let seen = k.size()[2];
                let pairs: Vec<KvRef<'_>> =
                    keys.iter().zip(&values).map(|(keys, values)| KvRef { keys, values }).collect();
                for sizes in [[1, heads, time, seen], [rows, 1, 1, seen], [1, 1, 1, seen]] {
                    let bias = random(&sizes, 4).to_kind(kind);
                    let scores = q.to_kind(Kind::Float).transpose(1, 2).matmul(&k.transpose(2, 3)) * 0.3;
                    let expected = (scores + &bias).softmax(-1, Kind::Float).matmul(&v).transpose(1, 2);
                    let expected = expected.reshape([rows, time, heads * width]).to_kind(kind);
                    let out = decode_attention(&q, &pairs, Some(&bias), 0.3).unwrap().unwrap();
                    assert_same(&out, &expected, &format!("{kind:?} {rows} {time} {parts:?} {sizes:?}"));
                }
            }
        }
    }
    // A bias of two prompts, each of two rows.
    let [q, k, v] = [1, 2, 3].map(|seed| random(&[4, 1, 1, 8], seed));
    let k = k.transpose(1, 2).narrow(0, 0, 2).repeat([1, 1, 3, 1]);
    let v = Tensor::cat(&[&v.transpose(1, 2), &k.repeat([2, 1, 1, 1])], 2).narrow(0, 0, 2).narrow(2, 0, 3);
    let hidden = Tensor::from_slice(&[0f32, -1e30, -1e30, -1e30, 0.0, -1e30]).view([2, 1, 1, 3]);
    let out = decode_attention(&q, &[KvRef { keys: &k, values: &v.contiguous() }], Some(&hidden), 1.0)
        .unwrap()
        .unwrap();
    assert_same(
        &out.select(0, 1).view([8]),
        &v.select(0, 0).select(1, 0).view([8]),
        "the first prompt's first key",
    );
    assert_same(
        &out.select(0, 2).view([8]),
        &v.select(0, 1).select(1, 1).view([8]),
        "the second one's second",
    );
}

#[test]
fn looking_up_is_for_few_queries_without_gradients() {
    let x = random(&[1, 9, 1, 4], 1);
    let few = x.narrow(1, 0, 2);
    let k = random(&[1, 1, 3, 4], 2);
    let pair = KvRef { keys: &k, values: &k };
    assert!(decode_attention(&x, &[pair], None, 1.0).unwrap().is_none());
    assert!(decode_attention(&few, &[pair], None, 1.0).unwrap().is_some());
    assert!(decode_attention(&few.to_kind(Kind::Double), &[pair], None, 1.0).unwrap().is_none());
    let trained = few.detach().set_requires_grad(true);
    assert!(decode_attention(&trained, &[pair], None, 1.0).unwrap().is_none());
    assert!(tch::no_grad(|| decode_attention(&trained, &[pair], None, 1.0)).unwrap().is_some());
    assert!(decode_attention(&few, &[], None, 1.0).is_err());
    let narrow = k.narrow(3, 0, 3);
    assert!(decode_attention(&few, &[KvRef { keys: &narrow, values: &narrow }], None, 1.0).is_err());
}

#[test]
pub(crate) fn a_position_is_remembered_turned() {
    let (rows, heads, shared, width, time) = (3, 4, 2, 6, 5);
    for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
        let states = random(&[rows, heads + 2 * shared, width], 1).to_kind(kind);
        for tables in [0, 1, rows] {
            let angles = random(&[tables.max(1), 1, 1, width / 2], 2);
            let cos = Tensor::cat(&[angles.cos(), angles.cos()], -1).to_kind(kind);
            let sin = Tensor::cat(&[-angles.sin(), angles.sin()], -1).to_kind(kind);
            let cache = || Tensor::zeros([rows, shared, time, width], (kind, Device::Cpu));
            let (keys, values) = (cache(), cache());
            let turn = (tables > 0).then_some((&cos, &sin));
            let place = KvRef { keys: &keys, values: &values };
            let queries = append_kv(states.copy(), turn, place, 3).unwrap();
            let turned = states.narrow(1, 0, heads + shared).unsqueeze(1);
            let turned = if tables > 0 { rope(&turned, &cos, &sin).unwrap() } else { turned };
            let what = format!("{kind:?} {tables}");
            assert_same(&queries, &turned.narrow(2, 0, heads), &what);
            assert_same(&keys.select(2, 3), &turned.narrow(2, heads, shared).squeeze_dim(1), &what);
            assert_same(&values.select(2, 3), &states.narrow(1, heads + shared, shared), &what);
            let others = keys.index_select(2, &Tensor::from_slice(&[0i64, 1, 2, 4]));
            assert_eq!(others.abs().sum(Kind::Double).double_value(&[]), 0.0, "{what}");
            assert!(append_kv(states.copy(), turn, place, time).is_err(), "behind the cache");
        }
    }
}

#[test]
fn a_position_that_the_device_knows_is_remembered_alike() {
    let (rows, heads, shared, width, time) = (3, 4, 2, 6, 5);
    let angles = random(&[1, 1, 1, width / 2], 2);
    let cos = Tensor::cat(&[angles.cos(), angles.cos()], -1);
    let sin = Tensor::cat(&[-angles.sin(), angles.sin()], -1);
    let states = random(&[rows, heads + 2 * shared, width], 1);
    let cache = || Tensor::zeros([rows, shared, time, width], (Kind::Float, Device::Cpu));
    for turn in [None, Some((&cos, &sin))] {
        let [(keys, values), (others, other_values)] = [(); 2].map(|()| (cache(), cache()));
        let (known, told) =
            (KvRef { keys: &keys, values: &values }, KvRef { keys: &others, values: &other_values });
        for position in [3, 0, time - 1] {
            let queries = append_kv(states.copy(), turn, known, position).unwrap();
            let found = append_kv_at(&states, turn, told, &Tensor::from_slice(&[position])).unwrap();
            assert_same(&found, &queries, "queries");
        }
        assert_same(&others, &keys, "keys");
        assert_same(&other_values, &values, "values");
        assert!(append_kv_at(&states, turn, told, &Tensor::from_slice(&[time])).is_err(), "behind the cache");
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
#[test]
fn loops_share_the_cores() {
    assert!(ruminate_torch::build_info().unwrap().contains("Loops of ruminate: on all threads"));
}

#[test]
pub(crate) fn hidden_keys_get_nothing() {
    let [q, k, v] = [1, 2, 3].map(|seed| random(&[1, 1, 20, 4], seed));
    let bias = Tensor::full([1, 1, 20, 20], -1e30, (Kind::Float, Device::Cpu)).triu(1);
    let first = attention(&q, &k, &v, Some(&bias), 1.0, 0.0).unwrap().select(2, 0);
    assert_same(&first, &v.select(2, 0), "only the first is seen");
}

#[test]
fn attention_drops_probabilities_as_dropout_does() {
    let [q, k] = [1, 2].map(|seed| random(&[2, 2, 30, 8], seed));
    // With the identity as values, the result is what was left of the probabilities.
    let v = Tensor::eye(30, (Kind::Float, Device::Cpu)).expand([2, 2, 30, 30], false);
    let (q, k) = (
        Tensor::cat(&[&q, &q.zeros_like(), &q.zeros_like(), &q.zeros_like()], -1).narrow(3, 0, 30),
        Tensor::cat(&[&k, &k.zeros_like(), &k.zeros_like(), &k.zeros_like()], -1).narrow(3, 0, 30),
    );
    let whole = attention(&q, &k, &v, None, 1.0, 0.0).unwrap();
    let q = q.detach().set_requires_grad(true);
    let left = attention(&q, &k, &v, None, 1.0, 0.25).unwrap();
    let kept = left.not_equal(0.0);
    assert_same(&left.detach(), &(&whole * &kept / 0.75), "kept ones are scaled");
    let share = kept.to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    assert!((share - 0.75).abs() < 0.03, "{share}");
    // The backward pass drops the same ones.
    left.square().sum(Kind::Float).backward();
    let again = q.detach().set_requires_grad(true);
    let probs = again.matmul(&k.transpose(2, 3)).softmax(-1, Kind::Float);
    (probs * kept / 0.75).square().sum(Kind::Float).backward();
    assert_same(&q.grad(), &again.grad(), "gradient");
}

#[test]
fn dropout_in_bfloat16_drops_the_right_share() {
    let x = Tensor::ones([300, 70], (Kind::BFloat16, Device::Cpu)).set_requires_grad(true);
    let left = dropout(&x, 0.2).unwrap();
    let share = left.not_equal(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    assert!((share - 0.8).abs() < 0.02, "{share}");
    left.sum(Kind::Float).backward();
    assert_same(&x.grad(), &left.detach(), "the gradient has the same mask");
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let [q, k] = [[1, 2, 3, 4], [1, 2, 3, 5]].map(|shape| random(&shape, 1));
    assert!(attention(&q, &k, &k, None, 1.0, 0.0).unwrap_err().to_string().contains("do not fit"));
    assert!(attention(&q, &q, &q, None, 1.0, 1.0).unwrap_err().to_string().contains("dropout rate"));
    assert!(attention(&q, &q, &q, Some(&random(&[1, 2, 3, 9], 1)), 1.0, 0.0).is_err());
    assert!(gate(Gate::Silu, &random(&[2, 3], 1), &random(&[2, 4], 1)).is_err());
}
