//! Gradients, dropout, and new models.

use ruminate_models::{Example, FeedForward, Policy, ScoreOptions, T5, T5Config};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::support::{
    assert_close, assert_same_parameters, config, deep, encoder_only, gated, generator, kinds, model,
    model_of, plain,
};

fn examples() -> Vec<Example> {
    let target = (0..12).map(|i| (3 + 11 * i) % 40).collect();
    vec![
        Example { prompt: (0..14).map(|i| (5 + 7 * i) % 40).collect(), target },
        Example { prompt: vec![9, 1], target: vec![8, 1] },
    ]
}

fn log_probs(t5: &T5) -> Tensor {
    t5.score(&examples(), ScoreOptions::default()).unwrap().log_probs
}

#[test]
fn gradients_reach_every_parameter() {
    for (kind, t5) in kinds() {
        let scores = t5.score(&examples(), ScoreOptions { entropy: true, states: false }).unwrap();
        scores.log_probs.sum(Kind::Float).backward();
        for (name, parameter) in t5.parameters().iter() {
            let gradient = parameter.grad();
            assert!(gradient.defined(), "{kind}: {name} has no gradient");
            let norm = gradient.norm().double_value(&[]);
            assert!(norm.is_finite() && norm > 0.0, "{kind}: the gradient of {name} has norm {norm}");
        }
        assert!(scores.entropy.unwrap().requires_grad());
    }
}

#[test]
fn a_gradient_is_the_slope_of_the_loss() {
    for (kind, t5) in kinds() {
        let loss = || log_probs(&t5).sum(Kind::Double).neg();
        loss().backward();
        for (name, parameter) in t5.parameters().iter() {
            let slope = parameter.grad().square().sum(Kind::Double).double_value(&[]);
            // One small step along the gradient changes the loss by the step times the squared norm.
            let step = 1e-3 / slope.sqrt();
            let moved = |by: f64| {
                tch::no_grad(|| {
                    let _ = parameter.shallow_clone().g_add_(&(parameter.grad() * by));
                    loss().double_value(&[])
                })
            };
            let up = moved(step);
            let down = moved(-2.0 * step);
            moved(step);
            let measured = (up - down) / (2.0 * step);
            assert!((measured / slope - 1.0).abs() < 0.05, "{kind}: {name}: {measured} against {slope}");
        }
    }
}

#[test]
fn no_gradients_without_them() {
    let t5 = model(plain());
    assert!(log_probs(&t5).requires_grad());
    assert!(!tch::no_grad(|| log_probs(&t5)).requires_grad());
}

#[test]
fn dropout_acts_in_training_mode_only() {
    for base in [plain(), gated(), deep()] {
        let mut t5 = model(T5Config { dropout_rate: 0.3, ..base });
        let _generator = generator();
        let eval = log_probs(&t5);
        assert!(eval.equal(&log_probs(&t5)), "evaluation draws nothing");
        t5.set_training(true);
        let differ = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) > 1e-2;
        let (first, second) = (log_probs(&t5), log_probs(&t5));
        assert!(differ(&first, &eval) && differ(&first, &second));
        t5.set_training(false);
        assert!(eval.equal(&log_probs(&t5)), "training mode leaves nothing behind");
    }
}

#[test]
fn dropout_is_the_same_with_and_without_gradients() {
    let mut t5 = model(config(json!({"dropout_rate": 0.3})));
    t5.set_training(true);
    let _generator = generator();
    let seeded = || {
        tch::manual_seed(5);
        log_probs(&t5)
    };
    assert_close(&seeded(), &tch::no_grad(seeded), "the same masks");
}

#[test]
fn gradient_checkpointing_changes_no_bit() {
    for base in [plain(), gated(), deep()] {
        for dropout_rate in [0.0, 0.3] {
            let mut t5 = model(T5Config { dropout_rate, ..base.clone() });
            t5.set_training(true);
            let _generator = generator();
            let mut run = |on: bool| -> Vec<Tensor> {
                t5.set_gradient_checkpointing(on);
                tch::manual_seed(5);
                let scores = log_probs(&t5);
                scores.sum(Kind::Float).backward();
                let grads = t5.parameters().iter().map(|(_, parameter)| {
                    let copy = parameter.grad().copy();
                    let _ = parameter.grad().zero_();
                    copy
                });
                std::iter::once(scores.detach()).chain(grads.collect::<Vec<_>>()).collect()
            };
            let (kept, remade) = (run(false), run(true));
            let names: Vec<&str> =
                std::iter::once("values").chain(t5.parameters().iter().map(|(name, _)| name)).collect();
            for ((name, a), b) in names.iter().zip(&kept).zip(&remade) {
                assert!(a.equal(b), "{name}, dropout {dropout_rate}: {}", (a - b).abs().max());
            }
        }
    }
}

#[test]
fn a_rate_of_zero_is_no_dropout() {
    let mut t5 = model(plain());
    let eval = log_probs(&t5);
    t5.set_training(true);
    assert!(eval.equal(&log_probs(&t5)));
}

#[test]
fn a_seed_is_a_model() {
    for make in [plain, gated, deep, encoder_only] {
        let first = model_of(make(), 3);
        assert_same_parameters(&first, &model_of(make(), 3));
        let other = model_of(make(), 4);
        assert!(
            !first
                .parameters()
                .get("shared.weight")
                .unwrap()
                .equal(other.parameters().get("shared.weight").unwrap())
        );
    }
}

#[test]
fn a_new_model_leaves_the_generator_alone() {
    let _generator = generator();
    let draw = || Tensor::rand([4], (Kind::Float, Device::Cpu));
    tch::manual_seed(9);
    let expected = [draw(), draw()];
    tch::manual_seed(9);
    let first = draw();
    T5::new(plain(), Kind::Float, Device::Cpu, 1).unwrap();
    assert!(first.equal(&expected[0]) && draw().equal(&expected[1]));
}

#[test]
fn models_made_at_the_same_time_do_not_disturb_each_other() {
    // Large enough that the draws of two threads overlap.
    let config = || T5Config { d_model: 64, d_ff: 512, ..deep() };
    let expected = model_of(config(), 3);
    let _generator = generator();
    let made: Vec<T5> = std::thread::scope(|scope| {
        let make =
            || (0..4).map(|_| T5::new(config(), Kind::Float, Device::Cpu, 3).unwrap()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    made.iter().for_each(|made| assert_same_parameters(&expected, made));
}

#[test]
fn new_parameters_have_the_published_deviations() {
    let mut config = gated();
    (config.vocab_size, config.d_model, config.d_kv, config.num_heads, config.d_ff) = (300, 64, 12, 6, 96);
    config.relative_attention_num_buckets = 32;
    config.relative_attention_max_distance = 128;
    config.initializer_factor = 0.5;
    let gated = model(config.clone());
    config.feed_forward = FeedForward::Relu;
    let relu = model(config);
    let block = "decoder.block.1.layer";
    let expected = [
        ("shared.weight".to_string(), 0.5),
        ("lm_head.weight".to_string(), 0.5),
        (format!("{block}.0.SelfAttention.q.weight"), 0.5 / (64.0f64 * 12.0).sqrt()),
        (format!("{block}.0.SelfAttention.k.weight"), 0.5 / 8.0),
        (format!("{block}.1.EncDecAttention.v.weight"), 0.5 / 8.0),
        (format!("{block}.1.EncDecAttention.o.weight"), 0.5 / 72f64.sqrt()),
        (format!("{block}.2.DenseReluDense.wi_1.weight"), 0.5 / 8.0),
        (format!("{block}.2.DenseReluDense.wo.weight"), 0.5 / 96f64.sqrt()),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight".to_string(), 0.5 / 8.0),
    ];
    for (name, std) in expected {
        let tensor = gated.parameters().get(&name).unwrap();
        let found = tensor.std(false).double_value(&[]);
        assert!(
            (found / std - 1.0).abs() < 4.0 / (tensor.numel() as f64).sqrt(),
            "{name}: {found}, not {std}"
        );
    }
    let wi = relu.parameters().get(&format!("{block}.2.DenseReluDense.wi.weight")).unwrap();
    assert!((wi.std(false).double_value(&[]) * 16.0 - 1.0).abs() < 0.05);
    let norm = gated.parameters().get("encoder.final_layer_norm.weight").unwrap();
    assert!(norm.equal(&norm.ones_like()));
}

#[test]
fn parameters_are_shared_with_the_layers() {
    let t5 = model(plain());
    let before = log_probs(&t5);
    for (_, parameter) in t5.parameters().named() {
        let _ = tch::no_grad(|| parameter.shallow_clone().g_mul_scalar_(1.1));
    }
    assert!((log_probs(&t5) - before).abs().max().double_value(&[]) > 1e-2);
    let count: usize = t5.parameters().iter().map(|(_, p)| p.numel()).sum();
    assert_eq!(t5.parameters().count(), count as u64);
    assert!(t5.parameters().get("lm_head.weight").is_none(), "tied parameters count once");
}
