//! A run that was interrupted is the run that was not.

use std::fs;
use std::path::Path;

use approx::assert_abs_diff_eq;
use ruminate_algorithms::trainer::seal;
use ruminate_algorithms::{Ending, Fitted, OptimizerChoice, Schedule, Sft, Trainer, TrainerConfig};
use ruminate_torch::optim::AdafactorConfig;

use crate::support::{Drill, Recorder, alone, examples, model, names, short, target, tokenizer};

const DROPOUT: f64 = 0.3;

/// Everything that an update depends on is in use, and validations fall between the stops.
fn config() -> TrainerConfig {
    TrainerConfig {
        schedule: Schedule::Linear,
        warmup_steps: 3,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        accumulate: 2,
        eval_every: 5,
        ..short(12)
    }
}

fn adafactor_of(adafactor: AdafactorConfig) -> TrainerConfig {
    TrainerConfig {
        optimizer: OptimizerChoice::Adafactor(adafactor),
        schedule: Schedule::Constant,
        warmup_steps: 0,
        weight_decay: 0.0,
        ..config()
    }
}

/// One process of a run: other objects, and the generator wherever its predecessor did not leave it.
fn process(folder: &Path, seed: i64, observer: &mut Recorder) -> ruminate_algorithms::Result<Fitted> {
    process_with(config(), folder, seed, observer)
}

fn process_with(
    config: TrainerConfig,
    folder: &Path,
    seed: i64,
    observer: &mut Recorder,
) -> ruminate_algorithms::Result<Fitted> {
    // 7 examples in batches of 2: the position in the data is never the same for two steps in a row.
    let mut sft = Sft::new(model(DROPOUT, seed), Drill::new(examples(7), 2), tokenizer());
    tch::manual_seed(seed);
    Trainer::new(config, folder)?.fit(&mut sft, observer)
}

/// The bytes of the last checkpoint: parameters, optimizer and generator, scores and position.
fn last(folder: &Path) -> [Vec<u8>; 3] {
    ["model.safetensors", "trainer.safetensors", "state.json"]
        .map(|file| fs::read(folder.join("last").join(file)).unwrap())
}

fn straight() -> [Vec<u8>; 3] {
    let folder = tempfile::tempdir().unwrap();
    let fitted = process(folder.path(), 1, &mut Recorder::default()).unwrap();
    assert_eq!((fitted.ending, fitted.steps), (Ending::Finished, 12));
    last(folder.path())
}

/// Finishes what lies in `folder` in a new process.
fn finish(folder: &Path, first_step: u64) {
    let mut observer = Recorder::default();
    let fitted = process(folder, 99, &mut observer).unwrap();
    assert_eq!((fitted.ending, fitted.steps), (Ending::Finished, 12));
    assert_eq!(observer.events[0], format!("started {first_step} of 12"));
}

#[test]
fn stops_leave_no_trace() {
    let _alone = alone();
    tch::set_num_threads(2);
    let straight = straight();
    let folder = tempfile::tempdir().unwrap();
    // Inside the warm-up, right before a validation, and twice within one interval.
    for (seed, stop_after) in [(1, 1), (2, 4), (3, 6), (4, 7)] {
        let fitted = process(folder.path(), seed, &mut Recorder::stopping_after(stop_after)).unwrap();
        assert_eq!((fitted.ending, fitted.steps), (Ending::Stopped, stop_after + 1));
    }
    finish(folder.path(), 8);
    assert!(last(folder.path()) == straight, "parameters, optimizer or state differ");
}

#[test]
fn adafactor_and_gradient_checkpointing_resume_alike() {
    let _alone = alone();
    let own_rate = AdafactorConfig {
        beta1: Some(0.9),
        scale_parameter: true,
        relative_step: true,
        ..AdafactorConfig::default()
    };
    let adafactor = adafactor_of(own_rate);
    let remade = TrainerConfig { gradient_checkpointing: true, ..adafactor.clone() };
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut observer = Recorder::default();
    process_with(adafactor.clone(), whole.path(), 1, &mut observer).unwrap();
    for (i, lr) in observer.series("train/lr").into_iter().enumerate() {
        let expected = 1e-2f64.min(1.0 / ((i + 1) as f64).sqrt());
        assert_abs_diff_eq!(lr, expected, epsilon = 1e-15);
    }
    // The first part without, the second with gradient checkpointing: it changes no bit.
    process_with(adafactor, parts.path(), 2, &mut Recorder::stopping_after(6)).unwrap();
    process_with(remade.clone(), parts.path(), 99, &mut Recorder::default()).unwrap();
    // The seeds of the model differ, and so must what is trained from the start.
    assert!(last(whole.path()) != last(parts.path()));
    let again = tempfile::tempdir().unwrap();
    process_with(remade, again.path(), 2, &mut Recorder::default()).unwrap();
    assert!(last(again.path()) == last(parts.path()), "parameters, optimizer or state differ");
}

#[test]
fn another_optimizers_state_is_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    process(folder.path(), 1, &mut Recorder::stopping_after(3)).unwrap();
    let other = adafactor_of(AdafactorConfig::default());
    let error = process_with(other, folder.path(), 1, &mut Recorder::default()).unwrap_err().to_string();
    assert!(error.contains("exp_avg_sq_row") && error.contains("another model or optimizer"), "{error}");
}

#[test]
fn the_comparison_sees_the_generator() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    process(folder.path(), 1, &mut Recorder::stopping_after(3)).unwrap();
    // The same, but with another generator state: dropout is different from here on.
    let path = folder.path().join("last/trainer.safetensors");
    let mut tensors = ruminate_models::checkpoint::read_tensors(&path, tch::Device::Cpu).unwrap();
    tch::manual_seed(5);
    tensors.insert("rng.cpu".into(), ruminate_torch::rng::state(tch::Device::Cpu).unwrap());
    ruminate_models::checkpoint::write_tensors(&path, tensors.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
    seal(path.parent().unwrap()).unwrap();
    finish(folder.path(), 4);
    assert!(last(folder.path())[0] != straight()[0]);
}

#[test]
fn a_run_that_dies_between_steps_goes_on_from_its_last_checkpoint() {
    let _alone = alone();
    let straight = straight();
    for (event, first_step) in [
        ("step 3 of 12", 0),
        ("step 8 of 12", 5),
        ("samples 10", 5),
        ("step 11 of 12", 10),
        ("samples 12", 10),
    ] {
        let folder = tempfile::tempdir().unwrap();
        process(folder.path(), 1, &mut Recorder::failing_at(event)).unwrap_err();
        finish(folder.path(), first_step);
        assert!(last(folder.path()) == straight, "died at {event}");
    }
}

#[test]
fn what_a_crash_left_behind_does_not_matter() {
    let _alone = alone();
    let straight = straight();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    process(root, 1, &mut Recorder::stopping_after(6)).unwrap();
    assert_eq!(target(root, "last"), "step-7");
    // A save that was cut off while it wrote: half a checkpoint, and links that were never renamed.
    let half = root.join(".tmp-step-10");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("model.safetensors"), b"half").unwrap();
    std::os::unix::fs::symlink("step-10", root.join(".tmp-last")).unwrap();
    std::os::unix::fs::symlink("step-5", root.join(".tmp-best")).unwrap();
    // A save that was cut off before `last` was replaced: complete, but it does not count yet. That it holds other
    // values shows that nobody reads it.
    let complete = root.join("step-10");
    fs::create_dir(&complete).unwrap();
    for file in names(&root.join("step-7")) {
        fs::copy(root.join("step-7").join(&file), complete.join(&file)).unwrap();
    }
    fs::write(complete.join("leftover"), b"").unwrap();

    finish(root, 7);
    assert!(last(root) == straight);
    let best = target(root, "best");
    let mut expected = vec!["best".to_string(), "last".into(), "step-10".into(), "step-12".into(), best];
    expected.sort();
    expected.dedup();
    assert_eq!(names(root), expected, "nothing unfinished is left");
    assert!(!root.join("last/leftover").exists() && !root.join("step-10/leftover").exists());
}

#[test]
fn a_crash_before_the_best_link_was_replaced_is_mended() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let fitted = process(root, 1, &mut Recorder::default()).unwrap();
    assert_eq!(fitted.best.step, 12, "this drill learns until the end");
    // As if the process had died after `last` was replaced, before `best` was.
    fs::remove_file(root.join("best")).unwrap();
    std::os::unix::fs::symlink("step-10", root.join("best")).unwrap();
    finish(root, 12);
    assert_eq!(target(root, "best"), "step-12");
    assert_eq!(names(root), ["best", "last", "step-10", "step-12"]);
}

#[test]
fn a_crash_while_a_checkpoint_is_replaced_is_mended() {
    let _alone = alone();
    let straight = straight();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    // Stopped before a validation that writes the same checkpoint again: with its score.
    process(root, 1, &mut Recorder::stopping_after(9)).unwrap();
    assert_eq!(target(root, "last"), "step-10");
    // As if the process had died when the old one had given its name away and the new one had not taken it.
    fs::rename(root.join("step-10"), root.join(".old-step-10")).unwrap();
    finish(root, 10);
    assert!(last(root) == straight);
    // And as if it had died before it removed the old one.
    fs::create_dir(root.join(".old-step-12")).unwrap();
    fs::write(root.join(".old-step-12/state.json"), b"old").unwrap();
    finish(root, 12);
    assert!(last(root) == straight);
    assert_eq!(names(root), ["best", "last", "step-10", "step-12"]);
}

#[test]
fn a_finished_run_stays_finished() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let first = process(folder.path(), 1, &mut Recorder::default()).unwrap();
    let before = last(folder.path());
    let mut observer = Recorder::default();
    let again = process(folder.path(), 2, &mut observer).unwrap();
    assert_eq!(again, first);
    assert_eq!(observer.events, ["started 12 of 12"]);
    assert!(last(folder.path()) == before);
}
