//! What an observer is told, and what it can do.

use approx::relative_eq;
use ruminate_algorithms::{Ending, Error, NullObserver, TrainerConfig};

use crate::support::{Drill, Recorder, alone, chain, examples, fit, names, short, target};

fn drill() -> Drill {
    Drill::new(examples(4), 2)
}

fn config() -> TrainerConfig {
    TrainerConfig { eval_every: 2, ..short(3) }
}

#[test]
fn events_come_in_order() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Recorder::default();
    fit(folder.path(), &config(), drill(), &mut observer).unwrap();
    let expected = [
        "started 0 of 3",
        "samples 0",
        "evaluated 0",
        "checkpoint 0",
        "step 0 of 3",
        "step 1 of 3",
        "samples 2",
        "evaluated 2",
        "checkpoint 2",
        "step 2 of 3",
        "samples 3",
        "evaluated 3",
        "checkpoint 3",
    ];
    assert_eq!(observer.events, expected);
}

#[test]
fn a_resumed_run_starts_where_it_stopped() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Recorder::stopping_after(1);
    let (fitted, _) = fit(folder.path(), &config(), drill(), &mut observer).unwrap();
    assert_eq!((fitted.ending, fitted.steps), (Ending::Stopped, 2));
    assert_eq!(observer.events[4..], ["step 0 of 3", "step 1 of 3", "checkpoint 2"]);
    assert_eq!(target(folder.path(), "last"), "step-2");
    assert_eq!(fitted.last, folder.path().join("step-2"));
    assert_eq!(fitted.best.path, folder.path().join("step-0"), "the stop has not been validated");
    let mut observer = Recorder::default();
    let (fitted, _) = fit(folder.path(), &config(), drill(), &mut observer).unwrap();
    assert_eq!(fitted.ending, Ending::Finished);
    assert_eq!(
        observer.events[..5],
        ["started 2 of 3", "samples 2", "evaluated 2", "checkpoint 2", "step 2 of 3"]
    );
}

#[test]
fn a_stop_without_any_validation_has_a_checkpoint_all_the_same() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (fitted, _) = fit(folder.path(), &short(3), drill(), &mut Recorder::stopping_after(0)).unwrap();
    assert_eq!((fitted.ending, fitted.steps), (Ending::Stopped, 1));
    assert_eq!(names(folder.path()), ["last", "step-1"]);
    assert!(fitted.best.path.is_dir(), "{:?}", fitted.best);
}

#[test]
fn a_request_after_the_last_step_comes_too_late() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (fitted, _) = fit(folder.path(), &config(), drill(), &mut Recorder::stopping_after(2)).unwrap();
    assert_eq!((fitted.ending, fitted.steps, fitted.best.path.is_dir()), (Ending::Finished, 3, true));
}

#[test]
fn its_errors_end_the_run() {
    let _alone = alone();
    let mut lengths = vec![];
    for event in ["started 0 of 3", "step 1 of 3", "evaluated 2", "checkpoint 3"] {
        let folder = tempfile::tempdir().unwrap();
        let mut observer = Recorder::failing_at(event);
        let error = fit(folder.path(), &config(), drill(), &mut observer).unwrap_err();
        assert!(matches!(error, Error::Observer(_)), "{event}: {error}");
        assert_eq!(chain(&error), "the run cannot be recorded: no paper left");
        assert_eq!(observer.events.last().map(String::as_str), Some(event));
        lengths.push(observer.events.len());
        // And it can go on with one that works.
        fit(folder.path(), &config(), drill(), &mut NullObserver).unwrap();
    }
    assert_eq!(lengths, [1, 6, 8, 13]);
}

#[test]
fn metrics_are_means_over_the_steps_between_two_records() {
    let _alone = alone();
    let run = |log_every| {
        let folder = tempfile::tempdir().unwrap();
        let mut observer = Recorder::default();
        fit(folder.path(), &TrainerConfig { log_every, ..short(6) }, drill(), &mut observer).unwrap();
        observer
    };
    let (each, some) = (run(1), run(4));
    assert_eq!(each.metrics.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(some.metrics.keys().copied().collect::<Vec<_>>(), [0, 4, 5]);
    for name in ["train/loss", "train/drill_loss", "train/grad_norm"] {
        let (each, some) = (each.series(name), some.series(name));
        let mean = each[1..5].iter().sum::<f64>() / 4.0;
        assert_eq!((some[0], some[2]), (each[0], each[5]));
        assert!(
            relative_eq!(some[1], mean, epsilon = 0.0, max_relative = 1e-5),
            "{name}: {} {mean}",
            some[1]
        );
    }
    assert_eq!(each.series("train/lr"), [1e-2; 6]);
}
