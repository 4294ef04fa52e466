//! Reads the lines that a run has written so far. What cannot be read is passed over: a report must not fail because the
//! run is just writing a line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::distribution::Distribution;
use crate::observer::DISTRIBUTION;

/// Points of one metric.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Series {
    /// Steps and values, in the order of the file.
    pub(super) points: Vec<(f64, f64)>,
}

/// What `metrics.jsonl` says.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// By name; the phases' seconds are not among them.
    pub(super) series: BTreeMap<String, Series>,
    /// Validation metrics by step.
    pub(super) evaluations: BTreeMap<u64, BTreeMap<String, f64>>,
    /// Values behind metrics, by name and step.
    pub(super) distributions: BTreeMap<String, BTreeMap<u64, Distribution>>,
    /// Seconds by phase, over the whole run.
    pub(super) phases: BTreeMap<String, f64>,
    /// Steps taken, of how many.
    pub(super) steps: (u64, Option<u64>),
    /// Seconds since the start of the run.
    pub(super) time: f64,
    /// Seconds and tokens of training steps.
    pub(super) cost: (f64, f64),
    /// How the run ended, if it did.
    pub(super) ending: Option<String>,
}

/// Series for the speed, which is no metric of the trainer.
pub(super) const SPEED: &str = "train/tokens per second";

impl Records {
    pub(super) fn read(path: &Path) -> Self {
        let mut records = Self::default();
        for_lines(path, |line| records.add(line));
        records
    }

    fn add(&mut self, line: BTreeMap<String, Value>) {
        let number = |key: &str| line.get(key).and_then(Value::as_f64);
        let (Some(kind), Some(step)) = (line.get("kind").and_then(Value::as_str), number("step")) else {
            return;
        };
        self.time = number("time").unwrap_or(self.time);
        self.ending = None;
        match kind {
            "train" => {
                self.steps =
                    ((step as u64).saturating_add(1), number("total_steps").map(|total| total as u64));
                let (secs, tokens) = (number("secs").unwrap_or(0.0), number("tokens").unwrap_or(0.0));
                self.cost = (self.cost.0 + secs, self.cost.1 + tokens);
                if secs > 0.0 && tokens > 0.0 {
                    self.push(SPEED, step, tokens / secs);
                }
            }
            DISTRIBUTION => {
                let name = line.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
                let fields = Value::Object(line.into_iter().collect());
                if let Ok(distribution) = Distribution::deserialize(fields) {
                    self.distributions.entry(name).or_default().insert(step as u64, distribution);
                }
                return;
            }
            "end" => self.ending = line.get("ending").and_then(Value::as_str).map(str::to_owned),
            _ => {}
        }
        for (name, value) in &line {
            // The fixed fields have no group; null stands for what is no number.
            let (Some((group, rest)), Some(value)) = (name.split_once('/'), value.as_f64()) else { continue };
            if group == "time" {
                *self.phases.entry(rest.to_owned()).or_default() += value;
                continue;
            }
            if kind == "eval" {
                self.evaluations.entry(step as u64).or_default().insert(name.clone(), value);
            }
            self.push(name, step, value);
        }
    }

    fn push(&mut self, name: &str, step: f64, value: f64) {
        // Beyond this, not even the width of a chart can be computed.
        if value.abs() > 1e300 {
            return;
        }
        // Nor can the distance of two ticks be between values that have underflowed.
        let value = if value.abs() < 1e-300 { 0.0 } else { value };
        match self.series.get_mut(name) {
            Some(series) => series.points.push((step, value)),
            None => {
                self.series.insert(name.to_owned(), Series { points: vec![(step, value)] });
            }
        }
    }
}

/// Samples of the first and of the last step that has any.
#[derive(Debug, Default)]
pub(super) struct Samples {
    pub(super) first: (u64, Vec<Value>),
    pub(super) last: (u64, Vec<Value>),
}

impl Samples {
    pub(super) fn read(path: &Path) -> Self {
        let mut samples = Self::default();
        for_lines(path, |mut line| {
            let (Some(step), Some(sample)) =
                (line.get("step").and_then(Value::as_u64), line.remove("sample"))
            else {
                return;
            };
            if samples.last.0 != step {
                samples.last = (step, vec![]);
            }
            if samples.first.1.is_empty() || samples.first.0 == step {
                samples.first.0 = step;
                samples.first.1.push(sample.clone());
            }
            samples.last.1.push(sample);
        });
        samples
    }
}

pub(crate) fn for_lines(path: &Path, mut work: impl FnMut(BTreeMap<String, Value>)) {
    let Ok(file) = File::open(path) else { return };
    for line in BufReader::with_capacity(1 << 16, file).split(b'\n').map_while(Result::ok) {
        if let Ok(line) = serde_json::from_slice(&line) {
            work(line);
        }
    }
}
