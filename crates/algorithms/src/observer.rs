//! What a trainer tells the outside world, and the one thing it asks: whether to stop.

use std::path::Path;

use ruminate_datasets::NullObserver;
use ruminate_models::Interrupt;

use crate::{Ending, Error, Result as CrateResult};

/// Named numbers in the order in which they are to be shown, e.g. `("train/qk_loss", 1.25)`.
pub type Metrics = Vec<(String, f64)>;

/// The error of an [`Observer`]: whatever went wrong while it wrote its files or drew its bars.
pub type ObserverError = Box<dyn std::error::Error + Send + Sync>;

/// What happened in one optimizer step.
#[derive(Debug, Clone)]
pub struct StepReport<'a> {
    /// Zero-based index of the step that was just taken.
    pub step: u64,
    /// Steps of the whole run; `step + 1 == total_steps` is the last one.
    pub total_steps: u64,
    /// Losses and whatever else the algorithm reports, and `time/PHASE`: the seconds that went into each
    /// [phase](crate::Phases) since the last step that reported any.
    pub metrics: &'a Metrics,
    /// Real (not padding) tokens that went through the model, source and target together.
    pub tokens: u64,
    /// Wall-clock seconds that the step took.
    pub secs: f64,
}

/// Receives the events of a run. Every method has an empty default, so an implementation names only what it
/// needs; `ruminate-run` implements it with progress bars and files.
///
/// # Errors
/// An error of any method ends the run, because an observer that cannot write loses data.
pub trait Observer {
    /// A run starts at `first_step` (0, or the step after the checkpoint it resumes from).
    fn started(&mut self, first_step: u64, total_steps: u64) -> Result<(), ObserverError> {
        let _ = (first_step, total_steps);
        Ok(())
    }

    /// An optimizer step was taken.
    fn step(&mut self, report: &StepReport<'_>) -> Result<(), ObserverError> {
        let _ = report;
        Ok(())
    }

    /// The policy was validated before step `step`.
    fn evaluated(&mut self, step: u64, metrics: &Metrics) -> Result<(), ObserverError> {
        let _ = (step, metrics);
        Ok(())
    }

    /// Examples of what the model does, one JSON object each.
    fn samples(&mut self, step: u64, samples: &[serde_json::Value]) -> Result<(), ObserverError> {
        let _ = (step, samples);
        Ok(())
    }

    /// The values whose mean is the metric `name` of this step or validation, such as the reward of each response: for histograms and
    /// intervals. Not every metric has them.
    fn distribution(&mut self, step: u64, name: &str, values: &[f64]) -> Result<(), ObserverError> {
        let _ = (step, name, values);
        Ok(())
    }

    /// A checkpoint is complete on disk.
    fn checkpoint(&mut self, step: u64, path: &Path) -> Result<(), ObserverError> {
        let _ = (step, path);
        Ok(())
    }

    /// A phase other than training (validation, scoring, generation) has done `done` of `total` units.
    fn progress(&mut self, phase: &str, done: u64, total: u64) -> Result<(), ObserverError> {
        let _ = (phase, done, total);
        Ok(())
    }

    /// Training ends before step `step`, ahead of its last one, because no validation since that of step `best` was better
    /// ([`TrainerConfig::early_stopping`](crate::TrainerConfig::early_stopping)). [`ended`](Self::ended) follows.
    fn stopped_early(&mut self, step: u64, best: u64) -> Result<(), ObserverError> {
        let _ = (step, best);
        Ok(())
    }

    /// Training is over, after `step` steps in total. `metrics` holds the `time/PHASE` since the last step that reported
    /// any: of the last validation and checkpoint.
    fn ended(&mut self, step: u64, ending: Ending, metrics: &Metrics) -> Result<(), ObserverError> {
        let _ = (step, ending, metrics);
        Ok(())
    }

    /// Asked after every step: should the trainer write a checkpoint and stop?
    fn stop_requested(&self) -> bool {
        false
    }

    /// The request that is raised when somebody asks to stop: validations and rollouts of a process that trains alone end within a token, and the
    /// trainer writes a checkpoint from which they begin anew. Default: nothing is, and they go to their end.
    fn interrupt(&self) -> Interrupt {
        Interrupt::default()
    }
}

impl Observer for NullObserver {}

/// Tells which answers were right: the values behind the accuracy `name`, in which a right answer counts `right`.
pub(crate) fn report_answers(
    observer: &mut dyn Observer,
    step: u64,
    name: &str,
    right: f64,
    answers: impl IntoIterator<Item = bool>,
) -> CrateResult<()> {
    let values: Vec<f64> = answers.into_iter().map(|correct| if correct { right } else { 0.0 }).collect();
    observer.distribution(step, name, &values).map_err(Error::Observer)
}
