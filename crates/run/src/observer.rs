use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use ruminate_algorithms::{Ending, Metrics, Observer, ObserverError, StepReport};
use ruminate_models::Interrupt;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::json;
use tch::Device;

use crate::console::{Console, Verbosity};
use crate::distribution::Distribution;
use crate::hyperparameters;
use crate::jsonl::StepLines;
use crate::provenance;
use crate::report::write_as as write_report;
use crate::rundir::{RunDir, RunDirError};
use crate::signals::StopFlag;
use crate::tensorboard::EventFile;

const TRAIN: &str = "train";
const EVAL: &str = "eval";
const END: &str = "end";
pub(crate) const DISTRIBUTION: &str = "distribution";
/// Between two reports pass at least this time, and as many times the time that it takes to write one.
const REPORT_INTERVAL: Duration = Duration::from_secs(20);
const REPORT_SHARE: u32 = 100;

/// Writes a run's events into its folder and shows them on stderr.
///
/// - `metrics.jsonl`: `{"kind":"train","step":0,"time":1.25,"total_steps":100,"secs":1.2,"tokens":4096,
///   "train/loss":2.5,"time/forward":0.5}` for each step that reports metrics,
///   `{"kind":"eval","step":0,"time":1.3,"dev/accuracy":0.5}` for each validation, and a last
///   `{"kind":"end","step":100,"time":130.5,"ending":"finished","time/evaluation":2.1}`. `time` counts the seconds since
///   the start, without the breaks between interruption and resumption; `secs`, `tokens` and `time/PHASE` count since the
///   line of kind `train` before. JSON has no NaN and no infinity: they become `null`.
/// - in `metrics.jsonl`, too: `{"kind":"distribution","step":0,"time":1.3,"name":"eval/acc_weighted","count":300,"mean":0.5,"std":0.5,
///   "interval":[0.44,0.56],"low":0.0,"high":1.0,"bins":[...]}` where an algorithm tells the values behind a metric: a histogram in equally
///   wide bins, and the 95 % interval of the mean.
/// - `samples.jsonl`: `{"step":0,"time":1.3,"sample":{...}}`.
/// - `report.html`: all of this on a page, written now and then; see [`write_report`](crate::write_report).
/// - `run.json`: what each start of the run depends on: command line, version, commit, libtorch, machine, and the hashes of the files that
///   were read. A run that is resumed with other data, another vector unit or number of threads says so.
/// - TensorBoard event files with the same numbers, one for each process that worked on the run. Their step is the number
///   of updates taken, so that a training record stands beside the validation that follows it.
///
/// What a resumed run repeats replaces the earlier lines about it.
#[derive(Debug)]
pub struct RunObserver {
    dir: RunDir,
    device: Device,
    metrics: StepLines,
    samples: StepLines,
    events: EventFile,
    /// Seconds and tokens of the steps since the last line.
    cost: (f64, u64),
    console: Console,
    stop: StopFlag,
    clock: Instant,
    /// Seconds that the run took before it was resumed.
    earlier_secs: f64,
    started: bool,
    ended: bool,
    /// The end of an earlier start stands in the metrics.
    has_end: bool,
    /// When the next report is due.
    report_at: Instant,
    /// The step that a resumed run starts with, until its evaluation or samples are written again.
    repeated_eval: Option<u64>,
    repeated_samples: Option<u64>,
}

impl RunObserver {
    /// An observer that writes into `dir` about a run on `device`, and asks the trainer to stop when `stop` is raised. It keeps `dir`
    /// locked.
    ///
    /// # Errors
    /// The files cannot be created.
    pub fn new(
        dir: &RunDir,
        device: Device,
        verbosity: Verbosity,
        stop: StopFlag,
    ) -> Result<Self, RunDirError> {
        Self::with_console(dir, device, Console::stderr(verbosity), stop)
    }

    fn with_console(
        dir: &RunDir,
        device: Device,
        console: Console,
        stop: StopFlag,
    ) -> Result<Self, RunDirError> {
        Ok(Self {
            device,
            metrics: StepLines::open(dir.metrics())?,
            samples: StepLines::open(dir.samples())?,
            events: EventFile::new(dir.path()),
            cost: (0.0, 0),
            dir: dir.clone(),
            console,
            stop,
            clock: Instant::now(),
            earlier_secs: 0.0,
            started: false,
            ended: false,
            has_end: false,
            report_at: Instant::now(),
            repeated_eval: None,
            repeated_samples: None,
        })
    }

    fn line(
        &mut self,
        kind: &'static str,
        step: u64,
        fields: &[(&'static str, serde_json::Value)],
        metrics: &Metrics,
    ) -> Result<(), RunDirError> {
        let time = self.time();
        self.metrics.write(&MetricsLine { kind, step, time, fields, metrics })
    }

    fn report(&mut self) -> Result<(), RunDirError> {
        let started = Instant::now();
        write_report(self.dir.path(), true)?;
        let taken = started.elapsed();
        self.report_at = started + REPORT_INTERVAL.max(taken * REPORT_SHARE);
        Ok(())
    }

    /// To the millisecond, which keeps the files readable.
    fn time(&self) -> f64 {
        ((self.earlier_secs + self.clock.elapsed().as_secs_f64()) * 1e3).round() / 1e3
    }
}

impl Observer for RunObserver {
    fn started(&mut self, first_step: u64, total_steps: u64) -> Result<(), ObserverError> {
        // Only the first start can repeat steps; a later one is the next stage of the same process.
        let repeats = self.dir.is_resumed() && !self.started;
        if repeats {
            // A step's evaluation comes before the step, and may have come before the checkpoint to resume from.
            let has_end = Cell::new(false);
            self.earlier_secs = self.metrics.retain(|line| match line.kind.as_str() {
                EVAL => line.step <= first_step,
                // The end of a run that was stopped is no end; that of one that took all steps stays.
                END => {
                    let stays = first_step >= total_steps;
                    has_end.set(has_end.get() || stays);
                    stays
                }
                DISTRIBUTION if line.name.starts_with(EVAL) => line.step <= first_step,
                _ => line.step < first_step,
            })?;
            self.has_end = has_end.get();
            self.samples.retain(|line| line.step <= first_step)?;
            self.clock = Instant::now();
            // Updates are counted there: what is repeated begins with the next one.
            self.events.repeats_from(first_step + 1)?;
        }
        self.repeated_eval = repeats.then_some(first_step);
        self.repeated_samples = self.repeated_eval;
        let note = if self.started {
            None
        } else {
            self.events.hyperparameters(&hyperparameters::of_run(self.dir.path()))?;
            provenance::record(&self.dir, self.device)?
        };
        self.started = true;
        self.ended = false;
        self.console.started(first_step, total_steps);
        if let Some(note) = note {
            self.console.line(&note);
        }
        Ok(self.report()?)
    }

    fn step(&mut self, report: &StepReport<'_>) -> Result<(), ObserverError> {
        let StepReport { step, total_steps, metrics, secs, tokens } = *report;
        self.cost = (self.cost.0 + secs, self.cost.1 + tokens);
        if !metrics.is_empty() {
            let (secs, tokens) = std::mem::take(&mut self.cost);
            let fields =
                [("total_steps", json!(total_steps)), ("secs", json!(secs)), ("tokens", json!(tokens))];
            self.line(TRAIN, step, &fields, metrics)?;
            self.events.scalars(step + 1, metrics)?;
        }
        self.console.step(report);
        if Instant::now() >= self.report_at {
            self.report()?;
        }
        Ok(())
    }

    fn evaluated(&mut self, step: u64, metrics: &Metrics) -> Result<(), ObserverError> {
        if self.repeated_eval.take_if(|first| *first == step).is_some() {
            self.metrics.retain(|line| line.step != step || line.kind != EVAL)?;
        }
        self.line(EVAL, step, &[], metrics)?;
        self.events.scalars(step, metrics)?;
        self.console.evaluated(step, metrics);
        Ok(self.report()?)
    }

    fn samples(&mut self, step: u64, samples: &[serde_json::Value]) -> Result<(), ObserverError> {
        if self.repeated_samples.take_if(|first| *first == step).is_some() {
            self.samples.retain(|line| line.step != step)?;
        }
        let time = self.time();
        for sample in samples {
            self.samples.write(&json!({ "step": step, "time": time, "sample": sample }))?;
        }
        self.events.samples(step, samples)?;
        self.console.samples(step, samples);
        Ok(())
    }

    fn distribution(&mut self, step: u64, name: &str, values: &[f64]) -> Result<(), ObserverError> {
        let Some(distribution) = Distribution::of(values) else { return Ok(()) };
        let of_validation = name.starts_with(EVAL);
        if of_validation && self.repeated_eval == Some(step) {
            self.metrics
                .retain(|line| line.step != step || line.kind != DISTRIBUTION || line.name != name)?;
        }
        let time = self.time();
        self.metrics.write(&DistributionLine {
            kind: DISTRIBUTION,
            step,
            time,
            name,
            distribution: &distribution,
        })?;
        Ok(self.events.histogram(if of_validation { step } else { step + 1 }, name, &distribution)?)
    }

    fn checkpoint(&mut self, step: u64, path: &Path) -> Result<(), ObserverError> {
        self.console.line(&format!("step {step}: checkpoint {}", path.display()));
        Ok(())
    }

    fn progress(&mut self, phase: &str, done: u64, total: u64) -> Result<(), ObserverError> {
        self.console.progress(phase, done, total);
        Ok(())
    }

    fn stopped_early(&mut self, step: u64, best: u64) -> Result<(), ObserverError> {
        self.console.line(&format!(
            "step {step}: training ends early, because no validation since step {best} was better (early_stopping)"
        ));
        Ok(())
    }

    fn ended(&mut self, step: u64, ending: Ending, metrics: &Metrics) -> Result<(), ObserverError> {
        // A finished run that is started once more has its end already.
        if !metrics.is_empty() || !self.has_end {
            let ending = match ending {
                Ending::Finished => "finished",
                Ending::Stopped => "stopped",
            };
            self.line(END, step, &[("ending", json!(ending))], metrics)?;
        }
        self.ended = true;
        Ok(self.report()?)
    }

    fn stop_requested(&self) -> bool {
        self.stop.is_requested()
    }

    fn interrupt(&self) -> Interrupt {
        self.stop.interrupt()
    }
}

impl Drop for RunObserver {
    /// A run that ended in an error is not running any more.
    fn drop(&mut self) {
        if self.started && !self.ended {
            let _ = write_report(self.dir.path(), false);
        }
    }
}

/// Shows the progress of work that has no run folder, such as an evaluation.
#[derive(Debug)]
pub struct ConsoleObserver {
    console: Console,
}

impl ConsoleObserver {
    /// An observer that only shows.
    #[must_use]
    pub fn new(verbosity: Verbosity) -> Self {
        Self { console: Console::stderr(verbosity) }
    }
}

impl Observer for ConsoleObserver {
    fn progress(&mut self, phase: &str, done: u64, total: u64) -> Result<(), ObserverError> {
        self.console.progress(phase, done, total);
        Ok(())
    }
}

/// Metrics stand beside the fixed keys, in the order in which the trainer reports them.
struct MetricsLine<'a> {
    kind: &'static str,
    step: u64,
    time: f64,
    fields: &'a [(&'static str, serde_json::Value)],
    metrics: &'a Metrics,
}

impl Serialize for MetricsLine<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", self.kind)?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("time", &self.time)?;
        for (name, value) in self.fields {
            map.serialize_entry(name, value)?;
        }
        for (name, value) in self.metrics {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Values behind a metric.
#[derive(Serialize)]
struct DistributionLine<'a> {
    kind: &'static str,
    step: u64,
    time: f64,
    name: &'a str,
    #[serde(flatten)]
    distribution: &'a Distribution,
}

#[cfg(test)]
mod tests;
