//! Reward-weighted regression as an algorithm of the trainer.

use std::path::Path;

use ruminate_models::{Example, IGNORED, Policy, ScoreOptions, Tokenizer};
use ruminate_torch::dist::Sharding;
use tch::{Kind, Tensor};

use super::{RwrLoss, WeightedExample, rwr_loss};
use crate::dpo::PolicyEvaluation;
use crate::trainer::{Algorithm, Evaluation, Losses, Precision, Term, TrainerConfig};
use crate::{Collective, Error, Metrics, Observer, Result, Schedule, Shuffled};

/// Steps in which the rate rises: a share of all, rounded up. RISE's share is 0.04.
#[must_use]
pub fn warmup_steps(total: u64, share: f64) -> u64 {
    (total as f64 * share).ceil().max(0.0) as u64
}

/// The trainer's settings for `steps` updates as RISE was trained: AdamW without decay, rate 1e-5 on a cosine after a warm-up of 4 %,
/// gradients clipped at 1, 16 micro-batches an update, bfloat16, activation checkpointing, states and gradients divided among several
/// processes, a checkpoint every 100 updates of which 8 are kept.
#[must_use]
pub fn trainer_config(steps: u64) -> TrainerConfig {
    TrainerConfig {
        steps,
        lr: 1e-5,
        schedule: Schedule::Cosine { cycles: 0.5 },
        warmup_steps: warmup_steps(steps, 0.04),
        max_grad_norm: 1.0,
        accumulate: 16,
        save_every: 100,
        keep: 8,
        log_every: 50,
        eval_every: 1000,
        precision: Precision::Bf16,
        gradient_checkpointing: true,
        sharding: Sharding::Gradients,
        ..TrainerConfig::default()
    }
}

/// Reward-weighted regression of a policy. Each example counts alike, whatever its length: the loss of an update is the mean of weight
/// times loss over all its examples.
///
/// Validation shows the weighted and the plain loss of held-out examples, and what [`evaluated_by`](Self::evaluated_by) adds, whose
/// score then chooses the best checkpoint; without either, the newest is the best.
pub struct Rwr<P> {
    policy: P,
    data: Shuffled<WeightedExample>,
    held_out: Vec<WeightedExample>,
    tokenizer: Tokenizer,
    evaluation: Option<Box<dyn PolicyEvaluation<P>>>,
    /// Further files of a checkpoint, by name.
    files: Vec<(String, Vec<u8>)>,
    /// Sums of losses (a tensor, without waiting for the device) and weights since the last record, and how many they are.
    seen: Option<(Tensor, f64, usize)>,
    /// The processes that train this policy.
    collective: Collective,
}

impl<P> std::fmt::Debug for Rwr<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rwr").field("held_out", &self.held_out.len()).finish_non_exhaustive()
    }
}

impl<P: Policy> Rwr<P> {
    /// Joins the parts. `held_out` is what validation looks at; it may be empty.
    ///
    /// # Errors
    /// When a weight is not finite, or an example has no trained token.
    pub fn new(
        policy: P,
        examples: Vec<WeightedExample>,
        held_out: Vec<WeightedExample>,
        batch_size: usize,
        seed: u64,
        tokenizer: Tokenizer,
    ) -> Result<Self> {
        for (i, WeightedExample { example, trained, weight }) in examples.iter().chain(&held_out).enumerate()
        {
            if !weight.is_finite() {
                return Err(Error::config("weight", format!("of example {i} is {weight}")));
            }
            if trained.len() != example.target.len() {
                let (marks, tokens) = (trained.len(), example.target.len());
                let reason = format!(
                    "example {i} has {marks} marks in `trained` for the {tokens} tokens of its target"
                );
                return Err(Error::config("examples", reason));
            }
            if !example.target.iter().zip(trained).any(|(&id, &trained)| trained && id != IGNORED) {
                return Err(Error::config(
                    "examples",
                    format!("example {i} has no trained token; leave it out"),
                ));
            }
        }
        let data = Shuffled::new(examples, batch_size, seed)?;
        let (evaluation, files, seen, collective) = Default::default();
        Ok(Self { policy, data, held_out, tokenizer, evaluation, files, seen, collective })
    }

    /// Adds an evaluation, whose score then chooses the best checkpoint.
    #[must_use]
    pub fn evaluated_by(mut self, evaluation: impl PolicyEvaluation<P> + 'static) -> Self {
        self.evaluation = Some(Box::new(evaluation));
        self
    }

    /// Puts further files into each checkpoint, beside those of the model and of the tokenizer.
    #[must_use]
    pub fn with_files(mut self, files: Vec<(String, Vec<u8>)>) -> Self {
        self.files = files;
        self
    }

    /// The policy as it is now.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// Gives the policy back.
    pub fn into_policy(self) -> P {
        self.policy
    }

    fn loss(&self, batch: &[WeightedExample]) -> Result<(RwrLoss, u64)> {
        let examples: Vec<Example> = batch.iter().map(|weighted| weighted.example.clone()).collect();
        let weights: Vec<f32> = batch.iter().map(|weighted| weighted.weight).collect();
        let scores = self.policy.score(&examples, ScoreOptions::default())?;
        let weights = Tensor::f_from_slice(&weights)?.f_to_device(self.policy.device())?;
        let labels = &scores.labels.mask;
        let (rows, time) = labels.size2()?;
        let trained: Vec<f32> = batch
            .iter()
            .flat_map(|weighted| {
                let marks = weighted.trained.iter().map(|&trained| f32::from(u8::from(trained)));
                marks.chain(std::iter::repeat(0.0)).take(time as usize)
            })
            .collect();
        let trained = Tensor::f_from_slice(&trained)?.f_to_device(self.policy.device())?;
        let mask = labels.f_mul(&trained.f_view_([rows, time])?)?;
        Ok((rwr_loss(&scores.log_probs, &mask, &weights)?, scores.tokens))
    }

    /// Sums of weighted and of plain losses of the held-out examples.
    fn validate(&self, observer: &mut dyn Observer) -> Result<[f64; 2]> {
        let batches: Vec<&[WeightedExample]> = self.held_out.chunks(16).collect();
        let sums = self.collective.map(batches.len(), |mine| {
            let total: usize = mine.iter().map(|&i| batches[i].len()).sum();
            let mut done = 0;
            let mut sums = vec![];
            for &i in mine {
                let (loss, _) = tch::no_grad(|| self.loss(batches[i]))?;
                let plain = loss.nll.f_sum(Kind::Float)?.f_double_value(&[])?;
                // Bits survive the journey even where they are no number.
                sums.push([loss.loss.sum.f_double_value(&[])?, plain].map(f64::to_bits));
                done += batches[i].len();
                observer.progress("validation", done as u64, total as u64).map_err(Error::Observer)?;
            }
            Ok(sums)
        })?;
        let sum = |part: usize| sums.iter().map(|of| f64::from_bits(of[part])).sum();
        Ok([sum(0), sum(1)])
    }
}

impl<P: Policy> Algorithm for Rwr<P> {
    type Batch = Vec<WeightedExample>;

    fn policy(&self) -> &dyn Policy {
        &self.policy
    }

    fn policy_mut(&mut self) -> &mut dyn Policy {
        &mut self.policy
    }

    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.collective = collective.clone();
        self.data.shard(collective.shard()?)?;
        if let Some(evaluation) = &mut self.evaluation {
            evaluation.distribute(collective)?;
        }
        Ok(())
    }

    fn batches(&mut self, _: u64, update: usize, accumulate: usize) -> Result<Option<Vec<Self::Batch>>> {
        Ok((update == 0).then(|| (0..accumulate).map(|_| self.data.next_batch()).collect()))
    }

    fn terms(&self, batch: &Self::Batch) -> Vec<Term> {
        vec![Term { name: "rwr_loss", weight: 1.0, count: batch.len() as u64 }]
    }

    fn losses(&mut self, batch: &Self::Batch) -> Result<Losses> {
        let (loss, tokens) = self.loss(batch)?;
        let nll = loss.nll.f_detach()?.f_sum(Kind::Float)?;
        let weight: f64 = batch.iter().map(|weighted| f64::from(weighted.weight)).sum();
        self.seen = Some(match self.seen.take() {
            None => (nll, weight, batch.len()),
            Some((sum, weights, count)) => (sum.f_add(&nll)?, weights + weight, count + batch.len()),
        });
        Ok(Losses { sums: vec![loss.loss.sum], tokens })
    }

    fn metrics(&mut self) -> Result<Metrics> {
        let own = match self.seen.take() {
            Some((nll, weight, count)) => [nll.f_double_value(&[])?, weight, count as f64],
            None => [0.0; 3],
        };
        let sums = self.collective.sum(&own)?;
        if sums[2] == 0.0 {
            return Ok(vec![]);
        }
        Ok(vec![("nll".into(), sums[0] / sums[2]), ("weight".into(), sums[1] / sums[2])])
    }

    fn evaluate(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        let mut metrics: Metrics = vec![];
        let mut score = step as f64;
        if !self.held_out.is_empty() {
            let [weighted, plain] = self.validate(observer)?;
            let total = self.held_out.len() as f64;
            metrics.extend([("eval/loss".into(), weighted / total), ("eval/nll".into(), plain / total)]);
            score = -weighted / total;
        }
        if let Some(evaluation) = &mut self.evaluation {
            let found = evaluation.evaluate(&self.policy, step, observer)?;
            metrics.extend(found.metrics);
            score = found.score;
        }
        Ok(Evaluation { metrics, score })
    }

    fn state(&self) -> serde_json::Value {
        self.data.state()
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        self.data.load_state(state)
    }

    fn save_extras(&self, folder: &Path) -> Result<()> {
        self.tokenizer.save(folder)?;
        for (name, content) in &self.files {
            let path = folder.join(name);
            std::fs::write(&path, content).map_err(Error::io("write", &path))?;
        }
        Ok(())
    }
}
