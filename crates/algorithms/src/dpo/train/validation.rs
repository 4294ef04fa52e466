//! Losses and metrics of the held-out pairs.

use ruminate_models::Policy;

use super::super::config::PreferenceLoss;
use super::super::metrics::{MetricsMessage, Records};
use super::{Dpo, Pair, PairSource};
use crate::{Collective, Error, Observer, Result};

/// Held-out pairs in a batch.
const EVAL_BATCH: usize = 32;

/// Sums over the held-out pairs, and how many tokens the likelihood counts.
pub(super) struct HeldOut {
    pub(super) preference: f64,
    pub(super) nll: f64,
    pub(super) tokens: u64,
}

impl<P: Policy, S: PairSource> Dpo<P, S> {
    /// Terms with a running mean of rewards.
    pub(super) fn running_means(&self) -> usize {
        let terms = self.config.terms.iter().filter(|term| term.weight != 0.0);
        terms.filter(|term| matches!(term.loss, PreferenceLoss::BcoPair { shift: true })).count()
    }

    /// Sums over the held-out pairs, and their records. They are divided among the ranks, unless a running mean goes through them.
    pub(super) fn validate(&self, observer: &mut dyn Observer) -> Result<(HeldOut, Vec<MetricsMessage>)> {
        let batches: Vec<Vec<&Pair>> =
            self.held_out.chunks(EVAL_BATCH).map(|batch| batch.iter().collect()).collect();
        let alone = Collective::default();
        let collective = if self.running_means() > 0 { &alone } else { &self.collective };
        let parts = collective.map(batches.len(), |mine| {
            let total: usize = mine.iter().map(|&i| batches[i].len()).sum();
            // The running mean belongs to training.
            let (mut state, mut done) = (self.state, 0);
            let mut parts = vec![];
            for &i in mine {
                let mut records = Records::default();
                let forward =
                    tch::no_grad(|| self.forward(&batches[i], &mut state, &mut records, &|own| Ok(own)))?;
                let nll = forward.nll.map(|sum| sum.f_double_value(&[])).transpose()?;
                let sums = [forward.preference.f_double_value(&[])?, nll.unwrap_or_default()];
                parts.push((sums.map(f64::to_bits), records.message()?));
                done += batches[i].len();
                observer.progress("validation", done as u64, total as u64).map_err(Error::Observer)?;
            }
            Ok(parts)
        })?;
        let sum = |part: usize| parts.iter().map(|(sums, _)| f64::from_bits(sums[part])).sum();
        let nll = self.config.nll_weight() > 0.0;
        let tokens = if nll { batches.iter().map(|batch| self.nll_count(batch)).sum() } else { 0 };
        let sums = HeldOut { preference: sum(0), nll: sum(1), tokens };
        Ok((sums, parts.into_iter().map(|(_, message)| message).collect()))
    }
}
