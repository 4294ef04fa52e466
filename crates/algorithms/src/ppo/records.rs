//! What a run tells of its rollouts and updates.

use std::collections::BTreeMap;

use ndarray::Array2;
use ruminate_rewards::{Rewarded, Statistics};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Drift, Grid, Mask, Moments};
use crate::{Collective, Metrics, Result};

/// A rollout as it is recorded: one entry for each response.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RolloutStats {
    pub(super) raw: Vec<f64>,
    pub(super) normalized: Vec<f64>,
    pub(super) kl: Grid,
    pub(super) penalized: Grid,
    pub(super) entropy: Grid,
    pub(super) values: Grid,
    pub(super) returns: Grid,
    pub(super) mask: Mask,
}

impl RolloutStats {
    /// Adds the responses of all other ranks.
    pub(super) fn gathered(self, collective: &Collective) -> Result<Self> {
        let all = collective.gather(self)?;
        Ok(Self {
            raw: all.iter().flat_map(|of| of.raw.iter().copied()).collect(),
            normalized: all.iter().flat_map(|of| of.normalized.iter().copied()).collect(),
            kl: stack(&all, |of| &of.kl),
            penalized: stack(&all, |of| &of.penalized),
            entropy: stack(&all, |of| &of.entropy),
            values: stack(&all, |of| &of.values),
            returns: stack(&all, |of| &of.returns),
            mask: stack(&all, |of| &of.mask),
        })
    }
}

/// The rows of all ranks, one behind the other; short ones are padded.
fn stack<T: Copy + Default>(all: &[RolloutStats], of: impl Fn(&RolloutStats) -> &Array2<T>) -> Array2<T> {
    let parts: Vec<_> = all.iter().map(of).collect();
    let width = parts.iter().map(|part| part.ncols()).max().unwrap_or(0);
    let mut stacked = Array2::default((parts.iter().map(|part| part.nrows()).sum(), width));
    for (mut to, from) in stacked.rows_mut().into_iter().zip(parts.iter().flat_map(|part| part.rows())) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }
    stacked
}

/// Sums since the last record. What the device counts stays there until it is asked for.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Sum and number of occurrences.
    means: BTreeMap<String, (f64, f64)>,
    drift: Option<Drift>,
    drift_tokens: u64,
    /// The reward of each response.
    rewards: Vec<f64>,
}

impl Records {
    pub(super) fn add(&mut self, name: impl Into<String>, value: f64) {
        let entry = self.means.entry(name.into()).or_insert((0.0, 0.0));
        entry.0 += value;
        entry.1 += 1.0;
    }

    /// Means of the parts of a batch's rewards, over all ranks.
    pub(super) fn rewarded(&mut self, rewards: &[Rewarded], collective: &Collective) -> Result<()> {
        let named = |r: &Rewarded| r.parts.iter().map(|(name, value)| (name.to_string(), *value)).collect();
        let own: Vec<Vec<(String, f32)>> = rewards.iter().map(named).collect();
        let parts = collective.gather(own)?.concat();
        for (i, (name, _)) in parts.iter().take(1).flat_map(|parts| parts.iter().enumerate()) {
            let values = parts.iter().filter_map(|parts| parts.get(i)).map(|(_, value)| f64::from(*value));
            self.add(name.as_str(), mean(values));
        }
        Ok(())
    }

    pub(super) fn add_rollout(&mut self, stats: &RolloutStats, kl_coef: f64) {
        let raw = Statistics::of(stats.raw.iter().copied());
        self.rewards.extend(&stats.raw);
        self.add("reward/raw", raw.mean);
        self.add("reward/spread", raw.std);
        self.add("reward/normalized", mean(stats.normalized.iter().copied()));
        self.add("reward/penalized", mean(row_sums(&stats.penalized)));
        self.add("reward/KL", mean(row_sums(&stats.kl)));
        self.add("kl_coef", kl_coef);
        self.add("entropy", Moments::of(&stats.entropy, &stats.mask).mean());
        let lengths =
            stats.mask.rows().into_iter().map(|row| row.iter().filter(|&&real| real).count() as f64);
        self.add("response_tokens", mean(lengths));
        let unexplained = &stats.returns - &stats.values;
        let variance = Moments::of(&stats.returns, &stats.mask).variance();
        // Without variance there is nothing to explain.
        if variance > 0.0 {
            self.add(
                "explained_variance",
                1.0 - Moments::of(&unexplained, &stats.mask).variance() / variance,
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

    /// Means since the last call, over all ranks.
    pub(super) fn take(&mut self, collective: &Collective) -> Result<Metrics> {
        let means = std::mem::take(&mut self.means);
        let (drift, drift_tokens) = (self.drift.take(), std::mem::take(&mut self.drift_tokens));
        // These are those of all ranks already.
        let mut metrics: Metrics =
            means.into_iter().map(|(name, (sum, n))| (format!("train/{name}"), sum / n)).collect();
        if let Some([clipped, kl, tokens]) = total_drift(drift.as_slice(), drift_tokens, collective)? {
            metrics.push(("train/clip_fraction".into(), clipped / tokens.max(1.0)));
            metrics.push(("train/approx_kl".into(), kl / tokens.max(1.0)));
        }
        Ok(metrics)
    }

    /// Values behind the means since the last call.
    pub(super) fn take_distributions(&mut self) -> Vec<(String, Vec<f64>)> {
        match std::mem::take(&mut self.rewards) {
            rewards if rewards.is_empty() => vec![],
            rewards => vec![("train/reward/raw".into(), rewards)],
        }
    }
}

/// Sums of clipped tokens and of divergence, and the tokens, over all ranks; `None` when nothing has drifted on any.
pub(super) fn total_drift(drift: &[Drift], tokens: u64, collective: &Collective) -> Result<Option<[f64; 3]>> {
    let mut sums = [0.0, 0.0, tokens as f64];
    for drift in drift {
        sums[0] += drift.clipped.f_double_value(&[])?;
        sums[1] += drift.kl.f_double_value(&[])?;
    }
    let all = collective.gather((!drift.is_empty()).then_some(sums))?;
    Ok(all.into_iter().flatten().reduce(|a, b| std::array::from_fn(|i| a[i] + b[i])))
}

pub(super) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, n), x| (sum + x, n + 1));
    sum / count.max(1) as f64
}

pub(super) fn row_sums(grid: &Grid) -> impl Iterator<Item = f64> + Clone + '_ {
    grid.rows().into_iter().map(|row| row.iter().sum())
}
