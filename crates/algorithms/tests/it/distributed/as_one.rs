//! They take the steps of one process, whatever is trained.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use ruminate_algorithms::{Collective, Metrics};
use ruminate_torch::dist::Sharding;
use tempfile::TempDir;

use super::{Method, Setup, fit, record, run, same_model};
use crate::support::{alone, target};

/// How far a validation is, each rank says of its own part.
fn without_progress(events: &[String]) -> Vec<&String> {
    let phases = ["validation", "recall", "analyze", "summarize"];
    events.iter().filter(|event| !phases.iter().any(|phase| event.starts_with(phase))).collect()
}

/// All metrics but times are as in one process.
fn same_metrics(found: &BTreeMap<u64, Metrics>, single: &BTreeMap<u64, Metrics>, what: &str) {
    assert!(found.keys().eq(single.keys()), "{what}");
    for (step, metrics) in single {
        for (name, value) in metrics.iter().filter(|(name, _)| !name.starts_with("time/")) {
            let found = found[step].iter().find(|(n, _)| n == name).map(|(_, v)| *v);
            let close = found.is_some_and(|found| (found - value).abs() <= 1e-5 * (1.0 + value.abs()));
            assert!(close, "{what}, step {step}, {name}: {found:?} instead of {value}");
        }
    }
}

#[test]
fn several_processes_take_the_steps_of_one() {
    as_one(Method::Sft, &ALL);
}

#[test]
fn several_processes_end_early_as_one() {
    for (single, several) in as_one_with(&Setup { early_stopping: 1, ..Setup::default() }, &FEW) {
        for folder in [single.path(), several.path()] {
            assert_eq!([target(folder, "best"), target(folder, "last")], ["step-8", "step-16"]);
        }
    }
}

#[test]
fn several_processes_prefer_as_one() {
    as_one(Method::Dpo, &ALL);
}

#[test]
fn a_running_mean_is_that_of_all_processes() {
    // It moves with each micro-batch.
    as_one(Method::Bco, &[(2, 1, Sharding::None), (4, 1, Sharding::None), (4, 1, Sharding::Gradients)]);
}

#[test]
fn several_processes_reinforce_as_one() {
    as_one(Method::Ppo, &ALL);
}

#[test]
fn several_processes_weigh_as_one() {
    as_one(Method::Rwr, &ALL);
}

#[test]
fn several_processes_rank_as_one() {
    for (single, several) in as_one(Method::Quark, &ALL) {
        same_file("last/pool.jsonl", single.path(), several.path());
    }
}

#[test]
fn several_processes_acquire_as_one() {
    as_one(Method::Acquire, &FEW);
}

#[test]
fn several_processes_reflect_as_one() {
    for (single, several) in as_one(Method::Reflect, &FEW) {
        for file in ["recall_runs.jsonl", "analyze_runs.jsonl", "recall_dpo.json", "pairs.json"] {
            same_file(&format!("round/{file}"), single.path(), several.path());
        }
    }
}

fn same_file(name: &str, a: &Path, b: &Path) {
    let read = |folder: &Path| std::fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(read(a), read(b), "{name}");
}

/// Numbers of processes and of micro-batches, and what is divided.
type Case = (usize, usize, Sharding);
const ALL: [Case; 9] = [
    (1, 1, Sharding::Optimizer),
    (1, 2, Sharding::None),
    (2, 1, Sharding::None),
    (2, 1, Sharding::Optimizer),
    (2, 2, Sharding::Gradients),
    (4, 1, Sharding::None),
    (4, 1, Sharding::Gradients),
    (4, 2, Sharding::None),
    (4, 2, Sharding::Optimizer),
];
/// For what costs more.
const FEW: [Case; 2] = [(2, 1, Sharding::None), (4, 2, Sharding::Gradients)];

/// Trains in one process and in several; returns their folders.
fn as_one(method: Method, cases: &[Case]) -> Vec<(Rc<TempDir>, TempDir)> {
    as_one_with(&Setup { method, ..Setup::default() }, cases)
}

fn as_one_with(setup: &Setup, cases: &[Case]) -> Vec<(Rc<TempDir>, TempDir)> {
    let _alone = alone();
    let whole = Rc::new(tempfile::tempdir().unwrap());
    let (_, single) = fit(setup, whole.path(), &Collective::default()).unwrap();
    let mut folders = vec![];
    for &(size, accumulate, sharding) in cases {
        let folder = tempfile::tempdir().unwrap();
        // Half of the cases.
        let checkpointing = accumulate == 2;
        let setup = Setup { accumulate, sharding, checkpointing, ..setup.clone() };
        let texts = run(&setup, folder.path(), size);
        same_model(folder.path(), whole.path());
        for text in texts {
            let record = record(&text);
            let what = format!("{size} processes, {accumulate} micro-batches, {sharding:?}");
            assert_eq!(without_progress(&record.events), without_progress(&single.events), "{what}");
            same_metrics(&record.metrics, &single.metrics, &what);
            same_metrics(&record.validations, &single.validations, &what);
        }
        folders.push((Rc::clone(&whole), folder));
    }
    folders
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    goes_on(Method::Sft);
}

#[test]
fn a_pool_goes_on_with_another_number_of_ranks() {
    let [through, moved] = goes_on(Method::Quark);
    same_file("last/pool.jsonl", through.path(), moved.path());
}

fn goes_on(method: Method) -> [TempDir; 2] {
    let _alone = alone();
    let setup = Setup { method, ..Setup::default() };
    let [through, moved] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    fit(&setup, through.path(), &Collective::default()).unwrap();
    run(&Setup { stop: Some((0, 6)), ..setup.clone() }, moved.path(), 4);
    run(&Setup { stop: Some((0, 12)), ..setup.clone() }, moved.path(), 2);
    fit(&setup, moved.path(), &Collective::default()).unwrap();
    same_model(through.path(), moved.path());
    [through, moved]
}
