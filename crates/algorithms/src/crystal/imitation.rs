//! Stage I: imitation of statements that a large model wrote, alternating with answering on their strength.

use std::collections::BTreeMap;

use ruminate_datasets::prompts::choice_slots;
use ruminate_datasets::question::check_capacity;
use ruminate_datasets::{Annotated, Cursor, Instances, Order, Question, Shard, TrainBatches};
use ruminate_models::{Example, Policy, ScoreChoices, TokenId};
use ruminate_rewards::choices::mean_nll_scores;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{QuestionEncoder, most_choices};
use crate::trainer::Evaluation;
use crate::{
    Collective, Curriculum, Error, Metrics, Objective, Observer, Result, Schedule, TrainerConfig, mean_loss,
};

/// Answer slots of a question in Stage I.
const CHOICE_CAPACITY: usize = 8;
/// Instances shown as samples of each validation.
const SAMPLES: usize = 6;

const QK: &str = "qk_loss";
const QA: &str = "qa_loss";
const QKA: &str = "qka_loss";

/// What the best checkpoint is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BestBy {
    /// Lowest validation loss, as in the reference.
    #[default]
    Loss,
    /// Highest accuracy with the silver statement; without knowledge where only answers are trained.
    Accuracy,
}

/// Settings of Stage I; the defaults are those of the published t5-large run (8 devices times 8 rows).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImitationConfig {
    /// Weight of the loss of writing a statement (QK).
    pub qk_weight: f64,
    /// Weight of the loss of answering directly (QA). Alone, it gives the direct-QA baseline.
    pub qa_weight: f64,
    /// Weight of the loss of answering with the silver statement (QKA).
    pub qka_weight: f64,
    /// Length of a cycle in steps.
    pub qk_and_qka_steps: u64,
    /// Steps at the beginning of each cycle that train QK; the others train QKA.
    pub qk_steps: u64,
    /// Instances per micro-batch.
    pub batch_size: usize,
    /// Instances per batch in validation.
    pub eval_batch_size: usize,
    /// Seed of the one shuffle of the training instances.
    pub shuffle_seed: u64,
    /// What the best checkpoint is chosen by.
    pub best_by: BestBy,
}

impl Default for ImitationConfig {
    fn default() -> Self {
        Self {
            qk_weight: 1.0,
            qa_weight: 0.0,
            qka_weight: 1.0,
            qk_and_qka_steps: 1000,
            qk_steps: 500,
            batch_size: 64,
            eval_batch_size: 64,
            shuffle_seed: 19_260_817,
            best_by: BestBy::Loss,
        }
    }
}

/// Which losses a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Qk,
    Qa,
    Qka,
    All,
}

impl ImitationConfig {
    /// The published optimizer: Adam at a constant 1e-5, without clipping. The code counts from 0 to 50 000 and takes both.
    #[must_use]
    pub fn trainer() -> TrainerConfig {
        TrainerConfig {
            steps: 50_001,
            lr: 1e-5,
            schedule: Schedule::Constant,
            max_grad_norm: 0.0,
            log_every: 50,
            eval_every: 1000,
            ..TrainerConfig::default()
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong. Weights under which some steps would train nothing are refused.
    pub fn validate(&self) -> Result<()> {
        let weights =
            [("qk_weight", self.qk_weight), ("qa_weight", self.qa_weight), ("qka_weight", self.qka_weight)];
        for (key, weight) in weights {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(Error::config(key, format!("is {weight}, but must not be negative")));
            }
        }
        let used = weights.map(|(_, weight)| weight > 0.0);
        match used {
            [false, false, false] => return Err(Error::config("qk_weight", "all three weights are 0")),
            [true, true, false] | [false, true, true] => {
                return Err(Error::config(
                    "qa_weight",
                    "with one other weight above 0, answering directly would never be trained (arXiv 2310.04921's \
                     code alternates QK and QKA); set it to 0, or give all three a weight",
                ));
            }
            _ => {}
        }
        for (key, value) in [("batch_size", self.batch_size), ("eval_batch_size", self.eval_batch_size)] {
            if value == 0 {
                return Err(Error::config(key, "is 0, but must be at least 1"));
            }
        }
        if used == [true, false, true] && !(1..self.qk_and_qka_steps).contains(&self.qk_steps) {
            let reason = format!(
                "is {}, but must lie between 1 and qk_and_qka_steps ({}), so that both losses have steps",
                self.qk_steps, self.qk_and_qka_steps
            );
            return Err(Error::config("qk_steps", reason));
        }
        Ok(())
    }

    /// Names of the losses that a step computes.
    pub fn losses_at(&self, step: u64) -> impl Iterator<Item = &'static str> {
        let phase = self.phase(step);
        self.losses().filter(move |(p, ..)| phase == Phase::All || *p == phase).map(|(_, name, _)| name)
    }

    /// Phases, names and weights of the losses that have a weight.
    fn losses(&self) -> impl Iterator<Item = (Phase, &'static str, f64)> + use<> {
        [(Phase::Qk, QK, self.qk_weight), (Phase::Qa, QA, self.qa_weight), (Phase::Qka, QKA, self.qka_weight)]
            .into_iter()
            .filter(|&(_, _, weight)| weight > 0.0)
    }

    pub(super) fn phase(&self, step: u64) -> Phase {
        match (self.qk_weight > 0.0, self.qa_weight > 0.0, self.qka_weight > 0.0) {
            (true, true, true) => Phase::All,
            (false, true, false) => Phase::Qa,
            (true, false, false) => Phase::Qk,
            (false, false, true) => Phase::Qka,
            _ if step % self.qk_and_qka_steps < self.qk_steps => Phase::Qk,
            _ => Phase::Qka,
        }
    }

    fn with_knowledge(&self) -> bool {
        self.qk_weight > 0.0 || self.qka_weight > 0.0
    }
}

/// Stage I as a [`Curriculum`]: train it with [`Sft`](crate::Sft).
///
/// All instances of all tasks are shuffled once; every epoch has that order, and its incomplete last batch is
/// dropped. Micro-batches of one step follow each other in that order.
#[derive(Debug)]
pub struct Imitation {
    config: ImitationConfig,
    encoder: QuestionEncoder,
    train: Instances,
    dev: Instances,
    tasks: Vec<String>,
    batches: TrainBatches,
    collective: Collective,
}

impl Imitation {
    /// Stage I on silver knowledge: each training question counts once per statement, each validation question once.
    ///
    /// # Errors
    /// When a setting is wrong, there is no complete batch, or a question has more than 8 choices.
    pub fn new(
        config: ImitationConfig,
        encoder: QuestionEncoder,
        train: Vec<Annotated>,
        dev: Vec<Annotated>,
        tasks: Vec<String>,
    ) -> Result<Self> {
        config.validate()?;
        check_capacity(train.iter().chain(&dev).map(|item| &item.question), CHOICE_CAPACITY)?;
        encoder.check_letters(most_choices(train.iter().chain(&dev)))?;
        let (train, dev) = (Instances::new(train), Instances::new(dev));
        let order = Order::shuffled(train.len(), config.shuffle_seed);
        let batches = TrainBatches::new(order, config.batch_size, Shard::SINGLE)?;
        if dev.is_empty() {
            return Err(Error::config("data", "no validation question has a statement; check the dev files"));
        }
        Ok(Self { config, encoder, train, dev, tasks, batches, collective: Collective::default() })
    }

    /// Training instances: pairs of a question and a statement.
    #[must_use]
    pub fn instances(&self) -> usize {
        self.train.len()
    }

    fn example(&self, phase: Phase, question: &Question, statement: &str) -> Result<Example> {
        let q = self.encoder.question(&question.question)?;
        let answer = || self.encoder.label(&question.answer);
        let prompts = &self.encoder.prompts;
        Ok(match phase {
            Phase::Qk => Example { prompt: prompts.qk(&q), target: self.encoder.statement(statement)? },
            Phase::Qa => Example { prompt: prompts.qa(&q), target: answer()? },
            Phase::Qka | Phase::All => {
                Example { prompt: prompts.qka(&q, &self.encoder.statement(statement)?), target: answer()? }
            }
        })
    }

    pub(super) fn parts(&self) -> (&ImitationConfig, &Instances) {
        (&self.config, &self.train)
    }

    pub(super) fn examples(&self, phase: Phase, of: &Instances, indices: &[usize]) -> Result<Vec<Example>> {
        indices
            .iter()
            .filter_map(|&ix| of.get(ix))
            .map(|(question, statement)| self.example(phase, question, statement))
            .collect()
    }

    fn validate<P: Policy + ScoreChoices>(&self, policy: &P, indices: &[usize]) -> Result<Validated> {
        let losses = self
            .config
            .losses()
            .map(|(phase, ..)| Ok(mean_loss(policy, &self.examples(phase, &self.dev, indices)?)?.to_bits()));
        let losses = losses.collect::<Result<_>>()?;
        let predictions = |phase| -> Result<Vec<i64>> {
            let examples = self.examples(phase, &self.dev, indices)?;
            let prompts: Vec<Vec<TokenId>> = examples.into_iter().map(|e| e.prompt).collect();
            self.predictions(policy, &prompts, indices)
        };
        let knowless = predictions(Phase::Qa)?;
        let knowful = if self.config.with_knowledge() { predictions(Phase::Qka)? } else { vec![] };
        Ok(Validated { losses, knowless, knowful })
    }

    /// Predictions by the length-normalised score of the labels (section 5.4 of the method's description).
    fn predictions<P: ScoreChoices>(
        &self,
        policy: &P,
        prompts: &[Vec<TokenId>],
        indices: &[usize],
    ) -> Result<Vec<i64>> {
        let labels = indices
            .iter()
            .filter_map(|&ix| self.dev.get(ix))
            .map(|(question, _)| self.encoder.labels(&question.choices))
            .collect::<Result<Vec<_>>>()?;
        let capacity = labels.iter().map(Vec::len).max().unwrap_or(1);
        let log_probs = tch::no_grad(|| policy.choice_log_probs(prompts, &labels))?;
        let length = log_probs.size()[2];
        let mut slots = vec![];
        for labels in &labels {
            let padded = choice_slots(labels, capacity, length as usize, self.encoder.eos, self.encoder.pad)?;
            slots.extend(padded.into_iter().flatten());
        }
        let slots = Tensor::f_from_slice(&slots)?.f_view_([labels.len() as i64, capacity as i64, length])?;
        let slots = slots.f_to_device(log_probs.device())?;
        let scores = mean_nll_scores(&log_probs, &slots, self.encoder.eos, self.encoder.pad)?;
        Ok(Vec::try_from(scores.f_argmax(1, false)?)?)
    }
}

/// What validation finds in a batch.
#[derive(Debug, Serialize, Deserialize)]
struct Validated {
    /// The mean of each loss that has a weight, in bits: no number survives JSON that is none.
    losses: Vec<u64>,
    /// Choices without knowledge and with it.
    knowless: Vec<i64>,
    knowful: Vec<i64>,
}

impl<P: Policy + ScoreChoices> Curriculum<P> for Imitation {
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.collective = collective.clone();
        let order = Order::shuffled(self.train.len(), self.config.shuffle_seed);
        self.batches = TrainBatches::new(order, self.config.batch_size, collective.shard()?)?;
        Ok(())
    }

    fn next(&mut self, step: u64) -> Result<Vec<Objective>> {
        let indices = self.batches.next().unwrap_or_default();
        let phase = self.config.phase(step);
        let objective = |(phase, name, weight)| {
            Ok(Objective { name, weight, examples: self.examples(phase, &self.train, &indices)? })
        };
        self.config.losses().filter(|(p, _, _)| phase == Phase::All || *p == phase).map(objective).collect()
    }

    fn evaluate(&mut self, policy: &P, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        let losses: Vec<_> = self.config.losses().collect();
        let all: Vec<usize> = (0..self.dev.len()).collect();
        let batches: Vec<&[usize]> = all.chunks(self.config.eval_batch_size).collect();
        let validated = self.collective.map(batches.len(), |mine| {
            let mut validated = vec![];
            for (done, &i) in mine.iter().enumerate() {
                validated.push(self.validate(policy, batches[i])?);
                observer
                    .progress("validation", done as u64 + 1, mine.len() as u64)
                    .map_err(Error::Observer)?;
            }
            Ok(validated)
        })?;
        let (mut knowless, mut knowful) = (vec![], vec![]);
        for batch in &validated {
            knowless.extend_from_slice(&batch.knowless);
            knowful.extend_from_slice(&batch.knowful);
        }
        let mut metrics: Metrics = vec![];
        let mut loss = 0.0;
        for (i, (_, name, weight)) in losses.iter().enumerate() {
            let sum: f64 = validated.iter().map(|batch| f64::from_bits(batch.losses[i])).sum();
            let mean = sum / batches.len() as f64;
            loss += weight * mean;
            metrics.push((format!("eval/{name}"), mean));
        }
        metrics.insert(0, ("eval/loss".into(), loss));
        let without = Accuracy::of(&self.dev, &knowless, self.tasks.len());
        metrics.push(("eval/acc_weighted".into(), without.weighted));
        metrics.push(("eval/acc_unweighted".into(), without.unweighted));
        let mut accuracy = without.unweighted;
        if self.config.with_knowledge() {
            accuracy = Accuracy::of(&self.dev, &knowful, self.tasks.len()).unweighted;
            metrics.push(("eval/acc_knowful_unweighted".into(), accuracy));
        }
        for (task, value) in self.tasks.iter().zip(&without.per_task) {
            metrics.extend(value.map(|value| (format!("eval/acc/{task}"), value)));
        }
        for (name, values) in correctness(&self.dev, &knowless, &self.tasks) {
            observer.distribution(step, &name, &values).map_err(Error::Observer)?;
        }
        // Spread over the data, so that several tasks have one.
        let shown = self.dev.len().min(SAMPLES);
        let samples: Vec<_> = (0..shown)
            .filter_map(|number| {
                let ix = number * self.dev.len() / shown;
                let (question, statement) = self.dev.get(ix)?;
                let predicted =
                    |p: &[i64]| p.get(ix).and_then(|&p| question.choices.get(p as usize)).cloned();
                Some(serde_json::json!({
                    "step": step, "task": question.task, "question": question.question,
                    "statement": statement, "answer": question.answer,
                    "predicted_without": predicted(&knowless), "predicted_with": predicted(&knowful),
                }))
            })
            .collect();
        observer.samples(step, &samples).map_err(Error::Observer)?;
        let score = match self.config.best_by {
            BestBy::Loss => -loss,
            BestBy::Accuracy => accuracy,
        };
        Ok(Evaluation { metrics, score })
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({ "cursor": self.batches.cursor(), "instances": self.train.len() })
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        #[derive(Deserialize)]
        struct State {
            cursor: Cursor,
            instances: usize,
        }
        let State { cursor, instances } = serde_json::from_value(state)
            .map_err(|e| Error::config("checkpoint", format!("its data position cannot be read: {e}")))?;
        if instances != self.train.len() {
            let reason =
                format!("it was trained on {instances} instances, but the data now has {}", self.train.len());
            return Err(Error::config("checkpoint", reason));
        }
        Ok(self.batches.resume(cursor)?)
    }
}

/// Accuracies of predictions, in `[0, 1]`.
struct Accuracy {
    /// Mean over instances.
    weighted: f64,
    /// Mean over tasks of their accuracies.
    unweighted: f64,
    per_task: Vec<Option<f64>>,
}

impl Accuracy {
    fn of(instances: &Instances, predictions: &[i64], tasks: usize) -> Self {
        let mut counts = vec![(0u64, 0u64); tasks];
        for ((question, _), &prediction) in instances.iter().zip(predictions) {
            if let Some((right, all)) = counts.get_mut(question.task_ix) {
                *right += u64::from(prediction == question.answer_ix as i64);
                *all += 1;
            }
        }
        let per_task: Vec<Option<f64>> =
            counts.iter().map(|&(right, all)| (all > 0).then(|| right as f64 / all as f64)).collect();
        let present: Vec<f64> = per_task.iter().copied().flatten().collect();
        let (right, all) = counts.iter().fold((0, 0), |sum, c| (sum.0 + c.0, sum.1 + c.1));
        Self {
            weighted: right as f64 / all.max(1) as f64,
            unweighted: present.iter().sum::<f64>() / present.len().max(1) as f64,
            per_task,
        }
    }
}

/// Whether each question was answered right, under the names of the accuracies.
fn correctness(instances: &Instances, predictions: &[i64], tasks: &[String]) -> BTreeMap<String, Vec<f64>> {
    let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for ((question, _), &prediction) in instances.iter().zip(predictions) {
        let right = f64::from(u8::from(prediction == question.answer_ix as i64));
        values.entry("eval/acc_weighted".into()).or_default().push(right);
        if let Some(task) = tasks.get(question.task_ix) {
            values.entry(format!("eval/acc/{task}")).or_default().push(right);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(weights: [f64; 3], steps: &[u64]) -> Vec<Phase> {
        let [qk_weight, qa_weight, qka_weight] = weights;
        let config = ImitationConfig { qk_weight, qa_weight, qka_weight, ..ImitationConfig::default() };
        config.validate().unwrap();
        steps.iter().map(|&step| config.phase(step)).collect()
    }

    #[test]
    fn published_blocks_alternate() {
        use Phase::{All, Qa, Qk, Qka};
        let edges = [0, 499, 500, 999, 1000, 1499, 1500, 50_000];
        assert_eq!(phases([1.0, 0.0, 1.0], &edges), [Qk, Qk, Qka, Qka, Qk, Qk, Qka, Qk]);
        assert_eq!(phases([0.0, 1.0, 0.0], &edges), [Qa; 8]);
        assert_eq!(phases([0.5, 0.5, 2.0], &edges), [All; 8]);
        assert_eq!(phases([1.0, 0.0, 0.0], &edges), [Qk; 8]);
        assert_eq!(phases([0.0, 0.0, 1.0], &edges), [Qka; 8]);
    }
}
