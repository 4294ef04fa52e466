//! Where the time goes, and how the end is told.

use std::collections::BTreeMap;
use std::time::Instant;

use approx::assert_abs_diff_eq;
use ruminate_algorithms::{
    Algorithm, Ending, Evaluation, Metrics, Observer, ObserverError, Phases, Result, Sft, StepReport,
    Trainer, TrainerConfig, trainer,
};
use ruminate_models::{Policy, T5};

use crate::support::{Drill, alone, examples, model, short, tokenizer};

/// A drill that says that it has spent time of its own.
struct Rollouts(Sft<T5, Drill>, Phases);

impl Algorithm for Rollouts {
    type Batch = <Sft<T5, Drill> as Algorithm>::Batch;

    fn policy(&self) -> &dyn Policy {
        self.0.policy()
    }
    fn policy_mut(&mut self) -> &mut dyn Policy {
        self.0.policy_mut()
    }
    fn batches(&mut self, step: u64, update: usize, accumulate: usize) -> Result<Option<Vec<Self::Batch>>> {
        if update == 0 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            self.1.add("rollout", 0.015);
            self.1.add("reward", 0.005);
        }
        self.0.batches(step, update, accumulate)
    }
    fn phases(&mut self) -> Phases {
        std::mem::take(&mut self.1)
    }
    fn terms(&self, batch: &Self::Batch) -> Vec<trainer::Term> {
        self.0.terms(batch)
    }
    fn losses(&mut self, batch: &Self::Batch) -> Result<trainer::Losses> {
        self.0.losses(batch)
    }
    fn evaluate(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        self.0.evaluate(step, observer)
    }
    fn state(&self) -> serde_json::Value {
        self.0.state()
    }
    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        self.0.load_state(state)
    }
    fn save_extras(&self, folder: &std::path::Path) -> Result<()> {
        self.0.save_extras(folder)
    }
}

#[derive(Default)]
struct Clock {
    /// Phases of each record, by name; the end is one too.
    records: Vec<BTreeMap<String, f64>>,
    end: Option<(u64, Ending)>,
    stop: bool,
}

impl Clock {
    fn record(&mut self, metrics: &Metrics) {
        let phases =
            metrics.iter().filter_map(|(name, secs)| Some((name.strip_prefix("time/")?.to_owned(), *secs)));
        self.records.push(phases.collect());
    }
}

impl Observer for Clock {
    fn step(&mut self, report: &StepReport<'_>) -> std::result::Result<(), ObserverError> {
        if !report.metrics.is_empty() {
            self.record(report.metrics);
        }
        Ok(())
    }
    fn ended(
        &mut self,
        step: u64,
        ending: Ending,
        metrics: &Metrics,
    ) -> std::result::Result<(), ObserverError> {
        assert!(metrics.iter().all(|(name, _)| name.starts_with("time/")));
        self.record(metrics);
        self.end = Some((step, ending));
        Ok(())
    }
    fn stop_requested(&self) -> bool {
        self.stop
    }
}

fn run(config: &TrainerConfig, stop: bool) -> (Clock, f64) {
    let folder = tempfile::tempdir().unwrap();
    let mut clock = Clock { stop, ..Clock::default() };
    let mut rollouts =
        Rollouts(Sft::new(model(0.0, 1), Drill::new(examples(4), 2), tokenizer()), Phases::default());
    let trainer = Trainer::new(config.clone(), folder.path()).unwrap();
    let started = Instant::now();
    trainer.fit(&mut rollouts, &mut clock).unwrap();
    (clock, started.elapsed().as_secs_f64())
}

#[test]
fn phases_account_for_the_time_of_a_run() {
    let _alone = alone();
    let (clock, secs) = run(&TrainerConfig { log_every: 2, eval_every: 2, ..short(4) }, false);
    assert_eq!(clock.end, Some((4, Ending::Finished)));
    // Steps 0, 2 and the last are recorded, and then the end.
    assert_eq!(clock.records.len(), 4);
    let names: Vec<&str> = clock.records[0].keys().map(String::as_str).collect();
    let all = ["backward", "checkpoint", "data", "evaluation", "forward", "optimizer", "reward", "rollout"];
    assert_eq!(names, all);
    let last: Vec<&str> = clock.records[3].keys().map(String::as_str).collect();
    assert_eq!(last, ["checkpoint", "evaluation"], "the last validation comes after the last record");
    let sum = |name: &str| clock.records.iter().filter_map(|record| record.get(name)).sum::<f64>();
    assert_abs_diff_eq!(sum("rollout"), 4.0 * 0.015, epsilon = 1e-9);
    assert_abs_diff_eq!(sum("reward"), 4.0 * 0.005, epsilon = 1e-9);
    let total: f64 = clock.records.iter().flat_map(BTreeMap::values).sum();
    assert!(total <= secs, "{total} of {secs}");
    assert!(total > 0.5 * secs, "{total} of {secs}: much time is in no phase");
    assert!(clock.records.iter().flat_map(BTreeMap::values).all(|&secs| secs >= 0.0));
}

#[test]
fn a_stop_is_told_as_a_stop() {
    let _alone = alone();
    let (clock, _) = run(&short(4), true);
    assert_eq!(clock.end, Some((1, Ending::Stopped)));
    assert!(clock.records.last().unwrap().contains_key("checkpoint"));
}
