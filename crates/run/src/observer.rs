use std::path::Path;
use std::time::Instant;

use ruminate_algorithms::{Metrics, Observer, ObserverError, StepReport};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;

use crate::console::{Console, Verbosity};
use crate::jsonl::JsonLines;
use crate::rundir::{RunDir, RunDirError};
use crate::signals::StopFlag;

const TRAIN: &str = "train";
const EVAL: &str = "eval";

/// Writes a run's events into its folder and shows them on stderr.
///
/// - `metrics.jsonl`: `{"kind":"train","step":0,"time":1.25,"secs":1.2,"tokens":4096,"train/loss":2.5}` for each step
///   that reports metrics, `{"kind":"eval","step":0,"time":1.3,"dev/accuracy":0.5}` for each validation. `time` counts
///   the seconds since the start, without the breaks between interruption and resumption. JSON has no NaN and no
///   infinity: they become `null`.
/// - `samples.jsonl`: `{"step":0,"time":1.3,"sample":{...}}`.
///
/// What a resumed run repeats replaces the earlier lines about it.
#[derive(Debug)]
pub struct RunObserver {
    dir: RunDir,
    metrics: JsonLines,
    samples: JsonLines,
    console: Console,
    stop: StopFlag,
    clock: Instant,
    /// Seconds that the run took before it was resumed.
    earlier_secs: f64,
    started: bool,
    /// The step that a resumed run starts with, until its evaluation or samples are written again.
    repeated_eval: Option<u64>,
    repeated_samples: Option<u64>,
}

impl RunObserver {
    /// An observer that writes into `dir` and asks the trainer to stop when `stop` is raised. It keeps `dir` locked.
    ///
    /// # Errors
    /// The files cannot be created.
    pub fn new(dir: &RunDir, verbosity: Verbosity, stop: StopFlag) -> Result<Self, RunDirError> {
        Self::with_console(dir, Console::stderr(verbosity), stop)
    }

    fn with_console(dir: &RunDir, console: Console, stop: StopFlag) -> Result<Self, RunDirError> {
        Ok(Self {
            metrics: JsonLines::open(dir.metrics())?,
            samples: JsonLines::open(dir.samples())?,
            dir: dir.clone(),
            console,
            stop,
            clock: Instant::now(),
            earlier_secs: 0.0,
            started: false,
            repeated_eval: None,
            repeated_samples: None,
        })
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
            self.earlier_secs = self
                .metrics
                .retain(|line| line.step < first_step || (line.step == first_step && line.kind == EVAL))?;
            self.samples.retain(|line| line.step <= first_step)?;
            self.clock = Instant::now();
        }
        self.repeated_eval = repeats.then_some(first_step);
        self.repeated_samples = self.repeated_eval;
        self.started = true;
        self.console.started(first_step, total_steps);
        Ok(())
    }

    fn step(&mut self, report: &StepReport<'_>) -> Result<(), ObserverError> {
        let StepReport { step, metrics, secs, tokens, .. } = *report;
        if !metrics.is_empty() {
            let line =
                MetricsLine { kind: TRAIN, step, time: self.time(), cost: Some((secs, tokens)), metrics };
            self.metrics.write(&line)?;
        }
        self.console.step(report);
        Ok(())
    }

    fn evaluated(&mut self, step: u64, metrics: &Metrics) -> Result<(), ObserverError> {
        if self.repeated_eval.take_if(|first| *first == step).is_some() {
            self.metrics.retain(|line| line.step != step || line.kind != EVAL)?;
        }
        let line = MetricsLine { kind: EVAL, step, time: self.time(), cost: None, metrics };
        self.metrics.write(&line)?;
        self.console.evaluated(step, metrics);
        Ok(())
    }

    fn samples(&mut self, step: u64, samples: &[serde_json::Value]) -> Result<(), ObserverError> {
        if self.repeated_samples.take_if(|first| *first == step).is_some() {
            self.samples.retain(|line| line.step != step)?;
        }
        let time = self.time();
        for sample in samples {
            self.samples.write(&json!({ "step": step, "time": time, "sample": sample }))?;
        }
        self.console.samples(step, samples);
        Ok(())
    }

    fn checkpoint(&mut self, step: u64, path: &Path) -> Result<(), ObserverError> {
        self.console.line(&format!("step {step}: checkpoint {}", path.display()));
        Ok(())
    }

    fn progress(&mut self, phase: &str, done: u64, total: u64) -> Result<(), ObserverError> {
        self.console.progress(phase, done, total);
        Ok(())
    }

    fn stop_requested(&self) -> bool {
        self.stop.is_requested()
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
    /// Seconds and tokens of a training step.
    cost: Option<(f64, u64)>,
    metrics: &'a Metrics,
}

impl Serialize for MetricsLine<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", self.kind)?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("time", &self.time)?;
        if let Some((secs, tokens)) = self.cost {
            map.serialize_entry("secs", &secs)?;
            map.serialize_entry("tokens", &tokens)?;
        }
        for (name, value) in self.metrics {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
