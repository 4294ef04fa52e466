//! The losses of the steps between two records.

use std::collections::BTreeMap;

use tch::Tensor;

use super::Phases;
use crate::{Collective, Error, Metrics, Result};

/// Losses since the last record. They stay on the device until they are recorded, so that steps in between do not
/// wait for it.
#[derive(Default)]
pub(super) struct Log {
    sums: BTreeMap<String, Tensor>,
    /// Steps in which each name occurred; losses of alternating objectives occur in some.
    steps: BTreeMap<String, u64>,
    /// Of the current step's last update.
    update: BTreeMap<String, Tensor>,
    pub(super) phases: Phases,
    pub(super) tokens: u64,
}

impl Log {
    /// A step is recorded by its last update.
    pub(super) fn begin_update(&mut self) {
        self.update.clear();
    }

    /// Adds a micro-batch's share of an update's value.
    pub(super) fn add(&mut self, name: &str, value: &Tensor) -> Result<()> {
        add(&mut self.update, name, value)
    }

    pub(super) fn end_step(&mut self) -> Result<()> {
        for (name, value) in std::mem::take(&mut self.update) {
            add(&mut self.sums, &name, &value)?;
            *self.steps.entry(name).or_insert(0) += 1;
        }
        Ok(())
    }

    /// Means over the steps since the last record, over all ranks. All are finite.
    fn means(&self, step: u64, collective: &Collective) -> Result<Metrics> {
        let mut metrics = vec![];
        let values =
            self.sums.values().map(|sum| Ok(sum.f_double_value(&[])?)).collect::<Result<Vec<_>>>()?;
        for (name, value) in self.sums.keys().zip(collective.sum(&values)?) {
            let value = value / self.steps.get(name).copied().unwrap_or(1) as f64;
            if !value.is_finite() {
                return Err(Error::NotFinite { name: name.clone(), value, step });
            }
            metrics.push((format!("train/{name}"), value));
        }
        Ok(metrics)
    }

    /// Fails on NaN or infinite losses. Called before each checkpoint, so NaN weights are never saved.
    pub(super) fn check(&self, step: u64, collective: &Collective) -> Result<()> {
        self.means(step, collective).map(drop)
    }

    /// The means and the rate, for the record; what follows is counted from here. The whole loss comes first, where a
    /// progress line shows it.
    pub(super) fn take(
        &mut self,
        step: u64,
        lr: f64,
        loss_name: &str,
        collective: &Collective,
    ) -> Result<Metrics> {
        let mut metrics = self.means(step, collective)?;
        metrics.sort_by_key(|(name, _)| name.strip_prefix("train/") != Some(loss_name));
        metrics.push(("train/lr".into(), lr));
        metrics.extend(self.phases.take());
        self.sums.clear();
        self.steps.clear();
        Ok(metrics)
    }
}

fn add(sums: &mut BTreeMap<String, Tensor>, name: &str, value: &Tensor) -> Result<()> {
    let sum = match sums.get(name) {
        Some(sum) => sum.f_add(value)?,
        None => value.shallow_clone(),
    };
    sums.insert(name.to_string(), sum);
    Ok(())
}
