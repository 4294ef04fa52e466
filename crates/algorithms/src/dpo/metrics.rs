//! What there is to see of preference training besides its losses.

use std::collections::BTreeMap;

use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::logps::PairLogps;
use super::loss::LossOutput;
use crate::{Collective, Metrics, Result};

/// Sums over the tokens of each completion, `[pairs]` for chosen and rejected, where [`DpoConfig::logit_metrics`] asks for
/// them.
///
/// [`DpoConfig::logit_metrics`]: super::DpoConfig::logit_metrics
#[derive(Debug)]
pub(super) struct LogitSums {
    /// Mean logits over the vocabulary.
    pub(super) logits: [Tensor; 2],
    pub(super) entropy: [Tensor; 2],
    /// How many chosen tokens had the largest logit.
    pub(super) correct: Tensor,
}

/// Values of all pairs since the last record. They stay on the device until then.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Per batch, `[columns, pairs]`.
    batches: Vec<Tensor>,
    sources: Vec<String>,
    referenced: bool,
}

/// [`Records`] as one process sends them to the others. Rows `[pairs, columns]` travel as `f64` bits because JSON cannot encode NaN.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MetricsMessage {
    rows: Array2<u64>,
    sources: Vec<String>,
    referenced: bool,
}

/// The columns of a pair.
struct Pair<'a>(&'a [f64]);

impl Pair<'_> {
    const COLUMNS: usize = 8;
    const WITH_LOGITS: usize = 13;

    fn margin(&self) -> f64 {
        self.0[0] - self.0[1]
    }

    fn per_token(&self, sum: usize, len: usize) -> f64 {
        self.0[sum] / self.0[len].max(1.0)
    }
}

impl Records {
    /// Adds a batch; `sources` has one tag per pair, empty for none.
    pub(super) fn add<'a>(
        &mut self,
        policy: &PairLogps,
        reference: Option<&PairLogps>,
        output: &LossOutput,
        logits: Option<&LogitSums>,
        sources: impl IntoIterator<Item = &'a str>,
    ) -> Result<()> {
        let none = || Tensor::f_zeros_like(&policy.chosen);
        let (chosen_reference, rejected_reference) = match reference {
            Some(reference) => (reference.chosen.shallow_clone(), reference.rejected.shallow_clone()),
            None => (none()?, none()?),
        };
        let mut columns = vec![
            output.chosen_rewards.shallow_clone(),
            output.rejected_rewards.shallow_clone(),
            policy.chosen.shallow_clone(),
            policy.rejected.shallow_clone(),
            policy.chosen_len.shallow_clone(),
            policy.rejected_len.shallow_clone(),
            chosen_reference,
            rejected_reference,
        ];
        if let Some(LogitSums { logits, entropy, correct }) = logits {
            columns.extend(logits.iter().chain(entropy).chain([correct]).map(Tensor::shallow_clone));
        }
        let columns: Vec<Tensor> =
            columns.iter().map(|c| Ok(c.f_detach()?.f_to_kind(Kind::Double)?)).collect::<Result<_>>()?;
        self.batches.push(Tensor::f_stack(&columns, 1)?);
        self.sources.extend(sources.into_iter().map(String::from));
        self.referenced = reference.is_some();
        Ok(())
    }

    /// The records since the last call.
    pub(super) fn message(&mut self) -> Result<MetricsMessage> {
        let Self { batches, sources, referenced } = std::mem::take(self);
        let rows = match batches.is_empty() {
            true => Array2::default((0, Pair::COLUMNS)),
            false => {
                let table = Tensor::f_cat(&batches, 0)?;
                let (pairs, columns) = table.size2()?;
                let values: Vec<f64> = Vec::try_from(table.f_view_([-1])?)?;
                let at = |(pair, column): (usize, usize)| values[pair * columns as usize + column].to_bits();
                Array2::from_shape_fn((pairs as usize, columns as usize), at)
            }
        };
        Ok(MetricsMessage { rows, sources, referenced })
    }

    /// Means since the last call, over the pairs of all ranks.
    pub(super) fn take(&mut self, collective: &Collective) -> Result<Metrics> {
        Ok(MetricsMessage::metrics(collective.gather(self.message()?)?))
    }
}

impl MetricsMessage {
    /// Means over the pairs of all messages.
    pub(super) fn metrics(all: Vec<Self>) -> Metrics {
        let referenced = all.iter().any(|message| message.referenced);
        let rows: Vec<Vec<f64>> = all
            .iter()
            .flat_map(|message| message.rows.outer_iter())
            .map(|row| row.iter().map(|&bits| f64::from_bits(bits)).collect())
            .collect();
        let sources: Vec<&String> = all.iter().flat_map(|message| &message.sources).collect();
        if rows.is_empty() {
            return vec![];
        }
        let pairs: Vec<Pair<'_>> = rows.iter().map(|row| Pair(row)).collect();
        let mean = |of: &dyn Fn(&Pair<'_>) -> f64| pairs.iter().map(of).sum::<f64>() / pairs.len() as f64;
        let share = |holds: bool| f64::from(u8::from(holds));
        let mut metrics: Metrics = vec![];
        let mut put = |name: &str, value: f64| metrics.push((name.into(), value));
        put("rewards/chosen", mean(&|p| p.0[0]));
        put("rewards/rejected", mean(&|p| p.0[1]));
        put("rewards/margins", mean(&|p| p.margin()));
        put("rewards/accuracies", mean(&|p| share(p.margin() > 0.0)));
        let mut margins: Vec<f64> = pairs.iter().map(|p| p.margin()).collect();
        margins.sort_by(f64::total_cmp);
        for (name, part) in [("rewards/margins_p10", 0.1), ("rewards/margins_p90", 0.9)] {
            put(name, margins[((margins.len() - 1) as f64 * part).round() as usize]);
        }
        put("logps/chosen", mean(&|p| p.0[2]));
        put("logps/rejected", mean(&|p| p.0[3]));
        put("logps_tok/chosen", mean(&|p| p.per_token(2, 4)));
        put("logps_tok/rejected", mean(&|p| p.per_token(3, 5)));
        put("lengths/chosen", mean(&|p| p.0[4]));
        put("lengths/rejected", mean(&|p| p.0[5]));
        if referenced {
            put("kl/chosen", mean(&|p| (p.0[2] - p.0[6]) / p.0[4].max(1.0)));
            put("kl/rejected", mean(&|p| (p.0[3] - p.0[7]) / p.0[5].max(1.0)));
            put("logps/chosen_fell", mean(&|p| share(p.0[2] < p.0[6])));
        }
        if pairs.iter().all(|p| p.0.len() == Pair::WITH_LOGITS) {
            let total = |columns: &[usize]| -> f64 {
                columns.iter().map(|&c| pairs.iter().map(|p| p.0[c]).sum::<f64>()).sum()
            };
            put("logits/chosen", total(&[8]) / total(&[4]).max(1.0));
            put("logits/rejected", total(&[9]) / total(&[5]).max(1.0));
            put("entropy", total(&[10, 11]) / total(&[4, 5]).max(1.0));
            put("mean_token_accuracy", total(&[12]) / total(&[4]).max(1.0));
        } else {
            debug_assert!(pairs.iter().all(|p| p.0.len() == Pair::COLUMNS));
        }
        let mut by_source: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (pair, source) in pairs.iter().zip(sources).filter(|(_, source)| !source.is_empty()) {
            by_source.entry(source).or_default().push(pair.margin());
        }
        for (source, margins) in by_source {
            let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / margins.len() as f64;
            put(&format!("rewards/margins/{source}"), mean(&mut margins.iter().copied()));
            let right = &mut margins.iter().map(|&margin| share(margin > 0.0));
            put(&format!("rewards/accuracies/{source}"), mean(right));
        }
        metrics
    }
}

/// The metrics of one batch, averaged over its pairs: `rewards/{chosen,rejected,margins,accuracies}`, with the margins' 10th
/// and 90th percentiles, `logps/*` (sums), `logps_tok/*` and `kl/*` (per token), `lengths/*`, and `logps/chosen_fell`, the share
/// of pairs whose chosen completion is less likely than under the reference.
///
/// # Errors
/// When the device fails.
pub fn preference_metrics(
    policy: &PairLogps,
    reference: Option<&PairLogps>,
    output: &LossOutput,
) -> Result<Metrics> {
    let mut records = Records::default();
    records.add(policy, reference, output, None, [])?;
    Ok(MetricsMessage::metrics(vec![records.message()?]))
}
