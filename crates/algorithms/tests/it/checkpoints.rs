//! What lies in a checkpoint folder while a run goes on, and afterwards.

use std::fs;
use std::path::{Path, PathBuf};

use ruminate_algorithms::trainer::{TrainerState, verify};
use ruminate_algorithms::{Metrics, Observer, ObserverError, StepReport, Trainer, TrainerConfig};
use ruminate_models::checkpoint::{read_json, read_tensors};
use ruminate_models::{T5, Tokenizer};
use tch::{Device, Kind};

use crate::support::{Drill, Recorder, alone, best_checkpoint, examples, fit, names, short, target};

/// Looks into the folder at every event.
struct Inspector {
    root: PathBuf,
    steps: u64,
}

impl Inspector {
    /// `last` is complete, and stands for `step` steps.
    fn restores(&self, step: u64) {
        let last = self.root.join("last");
        let state: TrainerState = read_json(&last.join("state.json")).unwrap();
        assert_eq!(state.step, step);
        let t5 = T5::load(&last, Kind::Float, Device::Cpu).unwrap();
        Tokenizer::open(&last).unwrap();
        let tensors = read_tensors(&last.join("trainer.safetensors"), Device::Cpu).unwrap();
        for (name, parameter) in t5.parameters().iter() {
            assert_eq!(tensors[&format!("{name}.exp_avg")].size(), parameter.size());
        }
        assert!(tensors.contains_key("rng.cpu"));
    }

    /// Nothing but `last`, `best`, what they point to, and the checkpoint before `last` with its best.
    fn nothing_else(&self, step: u64) {
        let mut expected = vec!["best".to_string(), "last".into()];
        expected.extend(["best", "last"].map(|link| target(&self.root, link)));
        if let Some(before) = step.checked_sub(1) {
            let state: TrainerState =
                read_json(&self.root.join(format!("step-{before}/state.json"))).unwrap();
            expected.extend([format!("step-{before}"), format!("step-{}", state.best().unwrap())]);
        }
        expected.sort();
        expected.dedup();
        assert_eq!(names(&self.root), expected);
    }
}

impl Observer for Inspector {
    fn step(&mut self, report: &StepReport<'_>) -> Result<(), ObserverError> {
        self.restores(report.step);
        self.steps += 1;
        Ok(())
    }

    fn evaluated(&mut self, step: u64, _: &Metrics) -> Result<(), ObserverError> {
        if step > 0 {
            self.restores(step - 1);
        }
        Ok(())
    }

    fn checkpoint(&mut self, step: u64, path: &Path) -> Result<(), ObserverError> {
        assert_eq!(path, self.root.join(format!("step-{step}")));
        self.restores(step);
        verify(path).unwrap();
        self.nothing_else(step);
        Ok(())
    }
}

#[test]
fn at_every_moment_the_last_one_is_complete() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut inspector = Inspector { root: folder.path().to_path_buf(), steps: 0 };
    let config = TrainerConfig { save_every: 1, eval_every: 3, ..short(7) };
    let mut drill = Drill::new(examples(6), 2);
    drill.scores = [(0, 0.0), (3, 2.0), (6, 1.0), (7, 1.5)].into();
    let (fitted, _) = fit(folder.path(), &config, drill, &mut inspector).unwrap();
    assert_eq!(inspector.steps, 7);
    assert_eq!(fitted.last, folder.path().join("step-7"));
    assert_eq!(fitted.best, best_checkpoint(folder.path(), 3, 2.0));
    assert_eq!(names(folder.path()), ["best", "last", "step-3", "step-6", "step-7"]);
    inspector.restores(7);
}

#[test]
fn as_many_are_kept_as_are_asked_for() {
    let _alone = alone();
    let scores = [(0, 0.0), (3, 2.0), (6, 3.0), (9, 1.0)];
    for (keep, kept) in [
        (1, &["step-6", "step-9"][..]),
        (3, &["step-6", "step-7", "step-8", "step-9"]),
        // The best of step 5, too: that is what a run finds which goes back to it.
        (5, &["step-3", "step-5", "step-6", "step-7", "step-8", "step-9"]),
        (
            100,
            &[
                "step-0", "step-1", "step-2", "step-3", "step-4", "step-5", "step-6", "step-7", "step-8",
                "step-9",
            ],
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut drill = Drill::new(examples(4), 2);
        drill.scores = scores.into();
        let config = TrainerConfig { save_every: 1, eval_every: 3, keep, ..short(9) };
        fit(folder.path(), &config, drill, &mut Recorder::default()).unwrap();
        assert_eq!(names(folder.path())[2..], *kept, "{keep}");
    }
}

#[test]
fn the_best_has_the_highest_score_the_earliest_among_equals() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    /// Where `best` points to after each checkpoint.
    struct Best(PathBuf, Vec<String>);
    impl Observer for Best {
        fn checkpoint(&mut self, _: u64, _: &Path) -> Result<(), ObserverError> {
            self.1.push(target(&self.0, "best"));
            Ok(())
        }
    }
    let mut drill = Drill::new(examples(4), 2);
    drill.scores = [(0, -3.0), (1, -1.0), (2, -2.0), (3, -1.0), (4, -0.5), (5, -0.5)].into();
    let mut best = Best(folder.path().to_path_buf(), vec![]);
    let (fitted, _) =
        fit(folder.path(), &TrainerConfig { eval_every: 1, ..short(5) }, drill, &mut best).unwrap();
    assert_eq!(best.1, ["step-0", "step-1", "step-1", "step-1", "step-4", "step-4"]);
    assert_eq!(fitted.best, best_checkpoint(folder.path(), 4, -0.5));
    assert_eq!(names(folder.path()), ["best", "last", "step-4", "step-5"]);
    // It is that step's model, not a later one.
    let state: TrainerState = read_json(&folder.path().join("best/state.json")).unwrap();
    assert_eq!((state.step, state.best()), (4, Some(4)));
}

#[test]
fn the_end_is_saved_and_validated() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let drill = Drill::new(examples(4), 2);
    let validated = drill.validated.clone();
    let (fitted, trained) = fit(folder.path(), &short(5), drill, &mut Recorder::default()).unwrap();
    assert_eq!(*validated.borrow(), [5]);
    assert_eq!((fitted.best.step, fitted.last.clone()), (5, folder.path().join("step-5")));
    let saved = T5::load(&folder.path().join("last"), Kind::Float, Device::Cpu).unwrap();
    for ((name, a), (_, b)) in trained.parameters().iter().zip(saved.parameters().iter()) {
        assert_eq!(a, b, "{name}");
    }
}

#[test]
fn a_step_in_the_history_is_not_validated_again() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let config = TrainerConfig { eval_every: 2, save_every: 1, ..short(6) };
    let mut seen = vec![];
    // Dies right after the validation of step 4 was saved, and is stopped right before that of step 2.
    for observer in [Recorder::stopping_after(1), Recorder::failing_at("checkpoint 4"), Recorder::default()] {
        let drill = Drill::new(examples(4), 2);
        let validated = drill.validated.clone();
        let mut observer = observer;
        let _ = fit(folder.path(), &config, drill, &mut observer);
        seen.push(validated.borrow().clone());
    }
    assert_eq!(seen, [vec![0], vec![2, 4], vec![6]]);
    let state: TrainerState = read_json(&folder.path().join("last/state.json")).unwrap();
    assert_eq!(state.scores.keys().copied().collect::<Vec<_>>(), [0, 2, 4, 6]);
}

#[test]
fn the_next_step_is_that_of_the_last_checkpoint() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let trainer = || Trainer::new(short(6), folder.path()).unwrap();
    assert_eq!(trainer().next_step().unwrap(), 0);
    let drill = Drill::new(examples(4), 2);
    fit(folder.path(), &short(6), drill, &mut Recorder::stopping_after(3)).unwrap();
    assert_eq!(trainer().next_step().unwrap(), 4);
    assert!(fs::metadata(folder.path().join("last")).unwrap().is_dir());
}
