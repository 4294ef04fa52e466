//! How large Stage I's micro-batches are.

use std::collections::BTreeMap;

use ruminate_datasets::Instances;

use super::Lengths;
use super::imitation::{Imitation, ImitationConfig, Phase};
use crate::Result;
use crate::plan::Pass;

/// Instances whose lengths are taken, evenly spread over the data.
const MEASURED: usize = 4096;

impl ImitationConfig {
    /// Micro-batches whose rows are all as long as they may be.
    #[must_use]
    pub fn longest_passes(&self, lengths: &Lengths) -> Vec<Pass> {
        let (question, statement, answer) = (
            lengths.max_question_len as f64,
            lengths.max_knowledge_len as f64,
            lengths.max_answer_len as f64,
        );
        self.shares()
            .into_iter()
            .map(|(phase, share)| {
                let (source, target) = match phase {
                    Phase::Qk => (question, statement),
                    Phase::Qa => (question, answer),
                    Phase::Qka | Phase::All => (question + statement, answer),
                };
                Pass { share, rows: self.batch_size, source: [source; 2], target: [target; 2] }
            })
            .collect()
    }

    /// The phases that occur, and their share of a cycle's steps. Where all losses are trained at once, each counts.
    fn shares(&self) -> Vec<(Phase, f64)> {
        let cycle = self.qk_and_qka_steps.max(1);
        if self.phase(0) == Phase::All {
            return vec![(Phase::Qk, 1.0), (Phase::Qa, 1.0), (Phase::Qka, 1.0)];
        }
        let last = self.phase(cycle - 1);
        if self.phase(0) == last {
            return vec![(last, 1.0)];
        }
        let first = self.qk_steps as f64 / cycle as f64;
        vec![(self.phase(0), first), (last, 1.0 - first)]
    }
}

impl Imitation {
    /// The micro-batches of training, with lengths measured on the data.
    ///
    /// # Errors
    /// When a text cannot be encoded.
    pub fn passes(&self) -> Result<Vec<Pass>> {
        let (config, train) = self.parts();
        let indices: Vec<usize> = (0..train.len()).step_by(train.len().div_ceil(MEASURED).max(1)).collect();
        let pass = |(phase, share)| -> Result<Pass> {
            let examples = self.examples(phase, train, &indices)?;
            let lengths = |length: &dyn Fn(usize) -> usize| {
                let all = || (0..examples.len()).map(length);
                [all().sum::<usize>() as f64 / examples.len().max(1) as f64, all().max().unwrap_or(0) as f64]
            };
            Ok(Pass {
                share,
                rows: config.batch_size,
                source: lengths(&|i| examples[i].prompt.len()),
                target: lengths(&|i| examples[i].target.len()),
            })
        };
        config.shares().into_iter().map(pass).collect()
    }

    /// Questions and instances of each training task.
    #[must_use]
    pub fn counts(&self) -> Vec<(String, usize, usize)> {
        count(self.parts().1)
    }
}

fn count(instances: &Instances) -> Vec<(String, usize, usize)> {
    let mut counts: BTreeMap<usize, (String, std::collections::BTreeSet<&str>, usize)> = BTreeMap::new();
    for (question, _) in instances.iter() {
        let entry = counts
            .entry(question.task_ix)
            .or_insert_with(|| (question.task.clone(), std::collections::BTreeSet::new(), 0));
        entry.1.insert(&question.question);
        entry.2 += 1;
    }
    counts.into_values().map(|(task, questions, instances)| (task, questions.len(), instances)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_a_cycle() {
        let shares = |qk_weight, qa_weight, qka_weight| {
            let config = ImitationConfig {
                qk_weight,
                qa_weight,
                qka_weight,
                qk_and_qka_steps: 100,
                qk_steps: 75,
                ..ImitationConfig::default()
            };
            config.shares()
        };
        assert_eq!(shares(1.0, 0.0, 1.0), [(Phase::Qk, 0.75), (Phase::Qka, 0.25)]);
        assert_eq!(shares(0.0, 1.0, 0.0), [(Phase::Qa, 1.0)]);
        assert_eq!(shares(1.0, 1.0, 1.0).len(), 3);
        let passes = ImitationConfig::default().longest_passes(&Lengths::default());
        assert_eq!((passes[0].source, passes[0].target), ([256.0; 2], [32.0; 2]));
        assert_eq!((passes[1].source, passes[1].target), ([288.0; 2], [2.0; 2]));
    }
}
