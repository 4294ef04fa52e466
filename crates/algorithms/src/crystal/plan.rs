//! How large the batches of both stages are.

use std::collections::{BTreeMap, BTreeSet};

use ruminate_datasets::{Instances, Question};
use ruminate_models::ModelShape;

use super::imitation::{Imitation, ImitationConfig, Phase};
use super::{Lengths, QuestionEncoder, ReinforcementConfig, ReinforcementData};
use crate::plan::{Networks, Pass, Plan, Work};
use crate::{Result, TrainerConfig};

/// Instances whose lengths are taken, evenly spread over the data.
const MEASURED: usize = 4096;

impl ImitationConfig {
    /// Micro-batches of a step whose rows are all as long as they may be.
    #[must_use]
    pub fn longest_passes(&self, trainer: &TrainerConfig, lengths: &Lengths) -> Vec<Pass> {
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
                self.pass(trainer, share, [source; 2], [target; 2])
            })
            .collect()
    }

    fn pass(&self, trainer: &TrainerConfig, share: f64, source: [f64; 2], target: [f64; 2]) -> Pass {
        let times = share * trainer.accumulate as f64;
        Pass { work: Work::Training, times, networks: 1, rows: self.batch_size, source, target }
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
    /// The micro-batches of a step, with lengths measured on the data.
    ///
    /// # Errors
    /// When a text cannot be encoded.
    pub fn passes(&self, trainer: &TrainerConfig) -> Result<Vec<Pass>> {
        let (config, train) = self.parts();
        let indices: Vec<usize> = (0..train.len()).step_by(train.len().div_ceil(MEASURED).max(1)).collect();
        let pass = |(phase, share)| -> Result<Pass> {
            let examples = self.examples(phase, train, &indices)?;
            let lengths = |length: &dyn Fn(usize) -> usize| {
                let all = || (0..examples.len()).map(length);
                [all().sum::<usize>() as f64 / examples.len().max(1) as f64, all().max().unwrap_or(0) as f64]
            };
            let source = lengths(&|i| examples[i].prompt.len());
            Ok(config.pass(trainer, share, source, lengths(&|i| examples[i].target.len())))
        };
        config.shares().into_iter().map(pass).collect()
    }

    /// Questions and instances of each training task.
    #[must_use]
    pub fn counts(&self) -> Vec<TaskCount> {
        count(self.parts().1)
    }
}

impl ReinforcementConfig {
    /// What a run takes. `question` has the tokens of a question, on average and of the longest one; statements, which are
    /// not written yet, are taken to be as long as they may be.
    #[must_use]
    pub fn plan(&self, shape: &dyn ModelShape, lengths: &Lengths, question: [f64; 2]) -> Plan {
        let trained = 1 + usize::from(self.separate_value_model);
        let networks = Networks { trained, value_head: true, frozen: 1, ..Networks::single(shape) };
        let reinforced = self.ppo.rl_steps as f64 / self.ppo.cycle_steps.max(1) as f64;
        let updates = reinforced * self.updates() as f64 + (1.0 - reinforced);
        let one_pass = self.ppo.in_one_piece(self.ppo.batch_size, self.trainer.accumulate);
        let scoring = if one_pass && shape.dropout_rate() == 0.0 { 1 } else { trained + 1 };
        let passes = self.passes(lengths, question, trained, scoring);
        Plan::new(&self.trainer, networks, &passes, updates)
    }

    /// Updates of a reinforced step.
    fn updates(&self) -> usize {
        self.ppo.epochs * self.ppo.batch_size.div_ceil(self.update_rows())
    }

    /// Statements of an update.
    fn update_rows(&self) -> usize {
        let all = self.ppo.batch_size.max(1);
        if self.ppo.mini_batch_size == 0 { all } else { self.ppo.mini_batch_size.min(all) }
    }

    /// `critics` networks are trained, and `scoring` asked of the statements before.
    fn passes(&self, lengths: &Lengths, question: [f64; 2], critics: usize, scoring: usize) -> Vec<Pass> {
        let ppo = &self.ppo;
        let reinforced = ppo.rl_steps as f64 / ppo.cycle_steps.max(1) as f64;
        let statement = ppo.rollout.max_new_tokens.min(lengths.max_knowledge_len) as f64;
        let with_statement = question.map(|tokens| tokens + statement);
        // Each batch is cut into as many micro-batches as are to be accumulated.
        let pass = |work, share: f64, all: usize, networks, source, target: f64| {
            let rows = match work {
                Work::Training => all.div_ceil(self.trainer.accumulate.max(1)),
                Work::Forward => ppo.rollout.batch_size.min(all),
            };
            let times = share * all as f64 / rows.max(1) as f64;
            Pass { work, times, networks, rows, source, target: [target; 2] }
        };
        let (batch, answer) = (ppo.batch_size, lengths.max_answer_len as f64);
        let judged = if ppo.judge_supervised { 1.0 } else { reinforced };
        let epochs = reinforced * ppo.epochs as f64 * batch as f64 / self.update_rows() as f64;
        let mut passes = vec![
            // Statements are written, and their questions answered with them and without.
            pass(Work::Forward, 1.0, batch, 1, question, statement),
            pass(Work::Forward, judged, batch, 1, with_statement, 1.0),
            pass(Work::Forward, judged, batch, 1, question, 1.0),
            // Their tokens are scored by the reference and, where the first update does not do so, by the policy and what predicts
            // values.
            pass(Work::Forward, reinforced, batch, scoring, question, statement),
            pass(Work::Training, epochs, self.update_rows(), critics, question, statement),
        ];
        let answers = [(self.qa_coef, question), (self.qka_coef, with_statement)];
        let answers = answers.into_iter().filter(|(coef, _)| *coef > 0.0);
        passes.extend(
            answers.map(|(_, source)| pass(Work::Training, 1.0 - reinforced, batch, 1, source, answer)),
        );
        passes.retain(|pass| pass.times > 0.0);
        passes
    }
}

impl ReinforcementData {
    /// Tokens of a training question: on average, and of the longest one.
    ///
    /// # Errors
    /// When a question cannot be encoded.
    pub fn question_lengths(&self, encoder: &QuestionEncoder) -> Result<[f64; 2]> {
        let all: Vec<&Question> = self.train.iter().chain(self.answers.iter().flatten()).collect();
        let measured = all.iter().step_by(all.len().div_ceil(MEASURED).max(1));
        let lengths: Vec<usize> =
            measured.map(|q| Ok(encoder.question(&q.question)?.len())).collect::<Result<_>>()?;
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len().max(1) as f64;
        Ok([mean, lengths.iter().max().copied().unwrap_or(0) as f64])
    }

    /// Questions of each training task; each is an instance.
    #[must_use]
    pub fn counts(&self) -> Vec<TaskCount> {
        let mut counts: BTreeMap<usize, TaskCount> = BTreeMap::new();
        for question in self.train.iter().chain(self.answers.iter().flatten()) {
            let count = counts.entry(question.task_ix).or_insert_with(|| TaskCount::none(&question.task));
            count.questions += 1;
            count.instances += 1;
        }
        counts.into_values().collect()
    }
}

/// Questions and training instances of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskCount {
    /// The task.
    pub task: String,
    /// Different questions.
    pub questions: usize,
    /// Training instances, of which a question may have several.
    pub instances: usize,
}

impl TaskCount {
    fn none(task: &str) -> Self {
        Self { task: task.into(), questions: 0, instances: 0 }
    }
}

fn count(instances: &Instances) -> Vec<TaskCount> {
    let mut counts: BTreeMap<usize, (BTreeSet<&str>, TaskCount)> = BTreeMap::new();
    for (question, _) in instances.iter() {
        let (questions, count) = counts
            .entry(question.task_ix)
            .or_insert_with(|| (BTreeSet::new(), TaskCount::none(&question.task)));
        questions.insert(&question.question);
        count.instances += 1;
    }
    let count = |(questions, count): (BTreeSet<&str>, _)| TaskCount { questions: questions.len(), ..count };
    counts.into_values().map(count).collect()
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;
    use ruminate_models::ModelShape;

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
        let trainer = TrainerConfig { accumulate: 2, ..TrainerConfig::default() };
        let passes = ImitationConfig::default().longest_passes(&trainer, &Lengths::default());
        assert_eq!((passes[0].times, passes[0].rows), (1.0, 64));
        assert_eq!((passes[0].source, passes[0].target), ([256.0; 2], [32.0; 2]));
        assert_eq!((passes[1].source, passes[1].target), ([288.0; 2], [2.0; 2]));
    }

    /// The published run on t5-large: 64 statements a step, four passes over them in half of the steps.
    #[test]
    fn stage_two_is_reckoned_by_hand() {
        let published = ruminate_models::T5Config::published("t5-large").unwrap();
        let large = ruminate_models::T5Config { dropout_rate: 0.0, ..published.clone() };
        let flops =
            |source, target| large.forward_flops(ruminate_models::BatchShape { rows: 64.0, source, target });
        let near = |a: f64, b: f64| assert_abs_diff_eq!(a / b, 1.0, epsilon = 1e-12);
        let config = ReinforcementConfig::default();
        let plan = |config: &ReinforcementConfig| config.plan(&large, &Lengths::default(), [100.0, 256.0]);
        let whole = plan(&config);
        assert_eq!((whole.updates_per_step, whole.rows_per_step), (2.5, 2.5 * 64.0));
        let (written, scored) = (flops(100.0, 32.0), flops(132.0, 1.0) + flops(100.0, 1.0));
        near(whole.forward_flops_per_step, written + scored + 0.5 * written);
        let training = 3.0 * (0.5 * 4.0 * written + 0.5 * flops(132.0, 2.0));
        near(whole.flops_per_step, whole.forward_flops_per_step + training);

        // With dropout, the policy scores before the first update.
        let dropping = config.plan(&published, &Lengths::default(), [100.0, 256.0]);
        near(dropping.flops_per_step, whole.flops_per_step + 0.5 * written);

        // Smaller updates and micro-batches change how many there are and what lies in memory; the policy scores by itself then.
        let mut cut = config.clone();
        (cut.ppo.mini_batch_size, cut.trainer.accumulate) = (16, 4);
        let cut = plan(&cut);
        assert_eq!(cut.updates_per_step, 0.5 * 16.0 + 0.5);
        near(cut.flops_per_step, dropping.flops_per_step);
        // The answer steps have the larger micro-batches then, but shorter targets.
        assert!(cut.memory.activations < whole.memory.activations / 3);
        // A network for the values is trained and asked, too.
        let separate = plan(&ReinforcementConfig { separate_value_model: true, ..config.clone() });
        near(separate.forward_flops_per_step, whole.forward_flops_per_step);
        near(separate.flops_per_step, whole.flops_per_step + 3.0 * 0.5 * 4.0 * written);
        assert_eq!(separate.parameters, 2 * large.parameter_count() + 1025);

        let mut only = config;
        (only.ppo.rl_steps, only.ppo.judge_supervised) = (0, false);
        let only = plan(&only);
        near(only.flops_per_step, written + 3.0 * flops(132.0, 2.0));
        assert_eq!(only.updates_per_step, 1.0);
    }
}
