//! Learning in miniature.

use std::f64::consts::PI;

use approx::{abs_diff_eq, assert_abs_diff_eq};
use ruminate_algorithms::{Precision, Schedule, TrainerConfig, mean_loss};
use tch::Kind;

use crate::support::{Drill, Recorder, alone, examples, fit, model, short};

#[test]
fn a_handful_of_examples_is_learnt_by_heart() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let examples = examples(6);
    let before = mean_loss(&model(0.0, 1), &examples).unwrap();
    assert!(before > 3.0, "{before}");
    let mut observer = Recorder::default();
    let config = TrainerConfig { max_grad_norm: 1.0, lr: 3e-2, ..short(100) };
    let (_, trained) = fit(folder.path(), &config, Drill::new(examples.clone(), 6), &mut observer).unwrap();
    let after = mean_loss(&trained, &examples).unwrap();
    assert!(after < 0.05, "{after}");
    assert!(
        abs_diff_eq!(observer.series("train/loss")[0], before, epsilon = 1e-5),
        "the first step starts from the new model"
    );
}

#[test]
fn bfloat16_products_learn_too() {
    let _alone = alone();
    let run = |precision| {
        let folder = tempfile::tempdir().unwrap();
        let mut observer = Recorder::default();
        let config = TrainerConfig { precision, max_grad_norm: 1.0, ..short(30) };
        let (_, trained) = fit(folder.path(), &config, Drill::new(examples(6), 6), &mut observer).unwrap();
        for (name, parameter) in trained.parameters().iter() {
            assert_eq!((parameter.kind(), parameter.grad().kind()), (Kind::Float, Kind::Float), "{name}");
        }
        observer.series("train/loss")
    };
    let (exact, rounded) = (run(Precision::F32), run(Precision::Bf16));
    assert_ne!(exact[0], rounded[0], "the products are rounded");
    for step in [0, 10, 29] {
        let off = (rounded[step] - exact[step]).abs() / exact[step];
        assert!(off < 0.04, "step {step}: {} {}", rounded[step], exact[step]);
    }
    assert!(rounded[29] < 0.7 * rounded[0], "{} {}", rounded[0], rounded[29]);
}

#[test]
fn gradient_checkpointing_changes_no_bit() {
    let _alone = alone();
    for precision in [Precision::F32, Precision::Bf16] {
        let train = |gradient_checkpointing| {
            let folder = tempfile::tempdir().unwrap();
            let config = TrainerConfig { precision, gradient_checkpointing, ..short(4) };
            let drill = Drill::new(examples(4), 2);
            fit(folder.path(), &config, drill, &mut Recorder::default()).unwrap().1
        };
        let (kept, remade) = (train(false), train(true));
        for ((name, a), (_, b)) in kept.parameters().iter().zip(remade.parameters().iter()) {
            assert_eq!(a, b, "{name} in {precision:?}");
        }
    }
}

#[test]
fn the_rate_follows_its_schedule() {
    let _alone = alone();
    let run = |schedule, warmup_steps| {
        let folder = tempfile::tempdir().unwrap();
        let mut observer = Recorder::default();
        let config = TrainerConfig { schedule, warmup_steps, lr: 1.0 / 1024.0, ..short(6) };
        fit(folder.path(), &config, Drill::new(examples(4), 2), &mut observer).unwrap();
        observer.series("train/lr").into_iter().map(|lr| lr * 1024.0).collect::<Vec<_>>()
    };
    assert_eq!(run(Schedule::Linear, 2), [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
    assert_eq!(run(Schedule::Constant, 4), [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]);
    let cosine = run(Schedule::Cosine { cycles: 0.5 }, 0);
    for (step, factor) in cosine.into_iter().enumerate() {
        assert_abs_diff_eq!(factor, 0.5 * (1.0 + (PI * step as f64 / 6.0).cos()), epsilon = 1e-12);
    }
}

#[test]
fn a_rate_of_zero_moves_nothing() {
    // The first update of a warm-up; weight decay goes with the rate.
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let config = TrainerConfig { warmup_steps: 5, weight_decay: 0.1, ..short(1) };
    let (_, trained) =
        fit(folder.path(), &config, Drill::new(examples(4), 4), &mut Recorder::default()).unwrap();
    for ((name, a), (_, b)) in trained.parameters().iter().zip(model(0.0, 1).parameters().iter()) {
        assert_eq!(a, b, "{name}");
    }
}
