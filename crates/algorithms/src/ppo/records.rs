//! What a run tells of its rollouts and updates.

use std::collections::BTreeMap;

use ruminate_rewards::{Rewarded, Statistics};
use tch::Tensor;

use super::rollout::Scored;
use super::{Drift, Grid, Mask, Moments, mean, row_sums};
use crate::{Metrics, Result};

/// A rollout as it is recorded.
pub(super) struct Rolled<'a> {
    pub(super) raw: &'a [f64],
    pub(super) normalized: &'a [f64],
    pub(super) kl: &'a Grid,
    pub(super) penalized: &'a Grid,
    pub(super) scored: &'a Scored,
    pub(super) returns: &'a Grid,
    pub(super) mask: &'a Mask,
    pub(super) kl_coef: f64,
}

/// Sums since the last record. What the device counts stays there until it is asked for.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Sum and number of occurrences.
    means: BTreeMap<String, (f64, f64)>,
    drift: Option<Drift>,
    drift_tokens: u64,
}

impl Records {
    pub(super) fn add(&mut self, name: impl Into<String>, value: f64) {
        let entry = self.means.entry(name.into()).or_insert((0.0, 0.0));
        entry.0 += value;
        entry.1 += 1.0;
    }

    /// Means of the parts of a batch's rewards.
    pub(super) fn rewarded(&mut self, rewards: &[Rewarded]) {
        for (i, (name, _)) in rewards.iter().take(1).flat_map(|r| r.parts.iter().enumerate()) {
            let values = rewards.iter().filter_map(|r| r.parts.get(i)).map(|(_, value)| f64::from(*value));
            self.add(*name, mean(values));
        }
    }

    pub(super) fn rolled_out(&mut self, rolled: &Rolled<'_>) {
        let raw = Statistics::of(rolled.raw.iter().copied());
        self.add("reward/raw", raw.mean);
        self.add("reward/spread", raw.std);
        self.add("reward/normalized", mean(rolled.normalized.iter().copied()));
        self.add("reward/penalized", mean(row_sums(rolled.penalized)));
        self.add("reward/KL", mean(row_sums(rolled.kl)));
        self.add("kl_coef", rolled.kl_coef);
        self.add("entropy", Moments::of(&rolled.scored.entropy, rolled.mask).mean());
        let lengths = rolled.mask.iter().map(|row| row.iter().filter(|&&real| real).count() as f64);
        self.add("response_tokens", mean(lengths));
        let unexplained: Grid = rolled
            .returns
            .iter()
            .zip(&rolled.scored.values)
            .map(|(returns, values)| returns.iter().zip(values).map(|(r, v)| r - v).collect())
            .collect();
        let variance = Moments::of(rolled.returns, rolled.mask).variance();
        // Without variance there is nothing to explain.
        if variance > 0.0 {
            self.add(
                "explained_variance",
                1.0 - Moments::of(&unexplained, rolled.mask).variance() / variance,
            );
        }
    }

    pub(super) fn drifted(&mut self, drift: &Drift, tokens: u64) -> Result<()> {
        let add = |sum: Option<&Tensor>, x: &Tensor| sum.map_or(Ok(x.shallow_clone()), |sum| sum.f_add(x));
        let sums = self.drift.as_ref();
        self.drift = Some(Drift {
            clipped: add(sums.map(|d| &d.clipped), &drift.clipped)?,
            kl: add(sums.map(|d| &d.kl), &drift.kl)?,
        });
        self.drift_tokens += tokens;
        Ok(())
    }

    /// Means since the last call.
    pub(super) fn take(&mut self) -> Result<Metrics> {
        let Self { means, drift, drift_tokens } = std::mem::take(self);
        let mut metrics: Metrics =
            means.into_iter().map(|(name, (sum, n))| (format!("train/{name}"), sum / n)).collect();
        if let Some(drift) = drift {
            for (name, sum) in [("clip_fraction", drift.clipped), ("approx_kl", drift.kl)] {
                metrics
                    .push((format!("train/{name}"), sum.f_double_value(&[])? / drift_tokens.max(1) as f64));
            }
        }
        Ok(metrics)
    }
}
