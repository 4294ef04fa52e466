//! Examples in batches, and the line that is written about each validation.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use ruminate_datasets::{Cursor, Order, Shard, TrainBatches};
use ruminate_models::Example;
use serde::Deserialize;

use crate::plan::{Pass, Work};
use crate::{Error, Objective, Result, TrainerConfig};

/// Examples in an order that is new in each epoch; the incomplete last batch of an epoch is dropped.
#[derive(Debug)]
pub(super) struct TrainingRows {
    examples: Vec<Example>,
    batches: TrainBatches,
    batch_size: usize,
    seed: u64,
}

impl TrainingRows {
    pub(super) fn new(examples: Vec<Example>, batch_size: usize, seed: u64) -> Result<Self> {
        let order = Order::reshuffled(examples.len(), seed);
        let batches = TrainBatches::new(order, batch_size, Shard::SINGLE)?;
        Ok(Self { examples, batches, batch_size, seed })
    }

    /// Begins again with one process's part of each batch.
    pub(super) fn shard(&mut self, shard: Shard) -> Result<()> {
        let order = Order::reshuffled(self.examples.len(), self.seed);
        self.batches = TrainBatches::new(order, self.batch_size, shard)?;
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.examples.len()
    }

    /// The next micro-batch: the mean cross-entropy of all target tokens.
    pub(super) fn next(&mut self) -> Vec<Objective> {
        let indices = self.batches.next().unwrap_or_default();
        let examples = indices.into_iter().filter_map(|ix| self.examples.get(ix).cloned()).collect();
        vec![Objective { name: "lm_loss", weight: 1.0, examples }]
    }

    /// Updates of `processes` processes in that many passes over the rows.
    pub(super) fn steps(&self, epochs: u64, accumulate: usize, processes: usize) -> u64 {
        let batches = self.examples.len() / (self.batch_size * processes.max(1));
        (epochs * batches as u64 / accumulate.max(1) as u64).max(1)
    }

    /// The micro-batches of a step, for a plan.
    pub(super) fn pass(&self, trainer: &TrainerConfig) -> Pass {
        let source = mean_and_longest(self.examples.iter().map(|example| example.prompt.len()));
        let target = mean_and_longest(self.examples.iter().map(|example| example.target.len()));
        let times = trainer.accumulate as f64;
        Pass { work: Work::Training, times, networks: 1, rows: self.batch_size, source, target }
    }

    pub(super) fn state(&self) -> serde_json::Value {
        serde_json::json!({ "cursor": self.batches.cursor(), "rows": self.len() })
    }

    pub(super) fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        #[derive(Deserialize)]
        struct State {
            cursor: Cursor,
            rows: usize,
        }
        let State { cursor, rows } = serde_json::from_value(state)
            .map_err(|e| Error::config("checkpoint", format!("its data position cannot be read: {e}")))?;
        if rows != self.len() {
            let reason = format!("it was trained on {rows} rows, but the data now has {}", self.len());
            return Err(Error::config("checkpoint", reason));
        }
        Ok(self.batches.resume(cursor)?)
    }
}

/// Mean and maximum of some lengths, for a plan.
pub(super) fn mean_and_longest(lengths: impl Iterator<Item = usize> + Clone) -> [f64; 2] {
    let (sum, count) = lengths.clone().fold((0, 0), |(sum, count), length| (sum + length, count + 1));
    [sum as f64 / f64::from(count.max(1)), lengths.max().unwrap_or(0) as f64]
}

/// Appends a line to a result file, and makes its folder.
pub(super) fn append(path: &Path, line: &str) -> Result<()> {
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
    };
    write().map_err(|source| Error::Io { action: "write", path: path.into(), source })
}

/// Appends the line of a step to a result file. Lines of this and of later steps, which a run has written that was resumed
/// from before, are replaced.
pub(super) fn replace_line(path: &Path, step: u64, line: &str) -> Result<()> {
    let step_of = |line: &str| line.strip_prefix("Step ")?.split(' ').next()?.parse::<u64>().ok();
    rewrite(path, |line| step_of(line).is_none_or(|s| s < step), line)
}

/// Keeps some lines of a result file and appends another, in one step.
fn rewrite(path: &Path, keep: impl Fn(&str) -> bool, line: &str) -> Result<()> {
    let before = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(Error::io("read", path)(source)),
    };
    // A line without its end was cut off by whatever ended the run.
    let whole = before.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let text: String = whole.filter(|line| keep(line)).chain([line]).collect();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    ruminate_files::write_atomically(path, |file| file.write_all(text.as_bytes()))
        .map_err(Error::io("write", path))
}

/// Appends a line that begins with `label` to a result file, and removes those that begin with it already.
pub(super) fn replace_labelled(path: &Path, label: &str, line: &str) -> Result<()> {
    rewrite(path, |other| !other.starts_with(label), line)
}

/// Refuses zero.
pub(super) fn at_least_one<const N: usize>(settings: [(&str, usize); N]) -> Result<()> {
    match settings.into_iter().find(|(_, value)| *value == 0) {
        Some((key, _)) => Err(Error::config(key, "is 0, but must be at least 1")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_replaces_itself_and_what_came_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reward/scores.txt");
        for step in [0, 10, 20, 10] {
            replace_line(&path, step, &format!("Step {step} - x\n")).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "Step 0 - x\nStep 10 - x\n");
        std::fs::write(&path, "Step 0 - x\nStep 1").unwrap();
        replace_line(&path, 10, "Step 10 - x\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "Step 0 - x\nStep 10 - x\n");
        replace_labelled(&path, "Step 0 - ", "Step 0 - y\n").unwrap();
        replace_labelled(&path, "Step 1 - ", "Step 1 - y\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "Step 10 - x\nStep 0 - y\nStep 1 - y\n");
    }
}
