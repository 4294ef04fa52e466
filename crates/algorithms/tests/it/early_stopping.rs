//! Training that ends because validations do not get better.

use std::fs;
use std::path::Path;

use ruminate_algorithms::{Ending, Fitted, Sft, Trainer, TrainerConfig};

use crate::support::{
    Drill, Recorder, alone, best_checkpoint, examples, model, names, short, target, tokenizer,
};

/// Validations of every second step; the one before step 2 is the best for a while, and that before step 8 is better.
fn process(folder: &Path, early_stopping: u64, seed: i64, observer: &mut Recorder) -> Fitted {
    let mut drill = Drill::new(examples(7), 2);
    drill.scores = [(0, 0.0), (2, 2.0), (4, 1.0), (6, 2.0), (8, 3.0), (10, 0.0)].into();
    // With dropout, so that a resumed run needs the generator.
    let mut sft = Sft::new(model(0.3, seed), drill, tokenizer());
    tch::manual_seed(seed);
    let config = TrainerConfig { eval_every: 2, early_stopping, ..short(10) };
    Trainer::new(config, folder).unwrap().fit(&mut sft, observer).unwrap()
}

fn last(folder: &Path) -> [Vec<u8>; 3] {
    ["model.safetensors", "trainer.safetensors", "state.json"]
        .map(|file| fs::read(folder.join("last").join(file)).unwrap())
}

#[test]
fn it_ends_after_as_many_validations_without_a_better_score() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut observer = Recorder::default();
    let fitted = process(folder.path(), 2, 1, &mut observer);
    // An equal score is no better one.
    assert_eq!((fitted.ending, fitted.steps), (Ending::Finished, 6));
    assert_eq!(fitted.best, best_checkpoint(folder.path(), 2, 2.0));
    assert_eq!(
        observer.events[observer.events.len() - 3..],
        ["evaluated 6", "checkpoint 6", "stopped early 6, best 2"]
    );
    assert_eq!(names(folder.path()), ["best", "last", "step-2", "step-4", "step-6"]);
    assert_eq!([target(folder.path(), "best"), target(folder.path(), "last")], ["step-2", "step-6"]);
}

#[test]
fn with_more_patience_or_none_it_goes_on() {
    let _alone = alone();
    for early_stopping in [3, 0] {
        let folder = tempfile::tempdir().unwrap();
        let mut observer = Recorder::default();
        let fitted = process(folder.path(), early_stopping, 1, &mut observer);
        assert_eq!((fitted.ending, fitted.steps, fitted.best.step), (Ending::Finished, 10, 8));
        assert!(observer.events.iter().all(|event| !event.starts_with("stopped early")));
    }
}

#[test]
fn a_resumed_run_ends_at_the_same_step() {
    let _alone = alone();
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    process(whole.path(), 2, 1, &mut Recorder::default());
    // Before and right after the best validation, and before the one that ends it.
    for (seed, stop_after) in [(1, 1), (2, 2), (3, 5)] {
        let fitted = process(parts.path(), 2, seed, &mut Recorder::stopping_after(stop_after));
        assert_eq!((fitted.ending, fitted.steps), (Ending::Stopped, stop_after + 1));
    }
    // Ended once, it stays so.
    for first in [6, 6] {
        let mut observer = Recorder::default();
        let fitted = process(parts.path(), 2, 9, &mut observer);
        assert_eq!((fitted.ending, fitted.steps, fitted.best.step), (Ending::Finished, 6, 2));
        assert_eq!(observer.events[0], format!("started {first} of 10"));
        assert_eq!(observer.events.last().unwrap(), "stopped early 6, best 2");
        assert!(observer.last.is_none(), "{:?}", observer.events);
    }
    assert!(last(parts.path()) == last(whole.path()), "parameters, optimizer or state differ");
    // With more patience it is the run that never stopped.
    process(parts.path(), 0, 9, &mut Recorder::default());
    let unstopped = tempfile::tempdir().unwrap();
    process(unstopped.path(), 0, 1, &mut Recorder::default());
    assert!(last(parts.path()) == last(unstopped.path()), "parameters, optimizer or state differ");
}
