//! Supervised fine-tuning: cross-entropy on given targets.

use std::path::Path;

use ruminate_models::{Example, IGNORED, Policy, Tokenizer};

use crate::trainer::{Algorithm, Evaluation, Losses, Term};
use crate::{Collective, Error, Observer, Result};

/// Examples of one kind, and the weight of their loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// Name of the loss in the metrics, e.g. `qk_loss`.
    pub name: &'static str,
    /// Multiplier of the mean loss.
    pub weight: f64,
    /// Prompts and targets.
    pub examples: Vec<Example>,
}

/// What is trained at which step. A plain data set always gives the same objective; staged methods switch between
/// several.
pub trait Curriculum<P> {
    /// Takes this process's part of the data ([`Collective::shard`]): from now on, [`next`](Self::next) gives that part of each batch.
    /// Called once, before training starts, when several processes train together. A curriculum that keeps the collective can divide
    /// [`evaluate`](Self::evaluate) with [`Collective::map`]; otherwise each process validates on everything.
    ///
    /// # Errors
    /// When the data cannot be divided, or has too few rows.
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        Error::alone(collective.size())
    }

    /// The objectives of the next micro-batch. With several, their weighted mean losses are added.
    ///
    /// # Errors
    /// When data cannot be read.
    fn next(&mut self, step: u64) -> Result<Vec<Objective>>;

    /// Validates the policy before step `step`.
    ///
    /// # Errors
    /// When the model or the observer fails.
    fn evaluate(&mut self, policy: &P, step: u64, observer: &mut dyn Observer) -> Result<Evaluation>;

    /// Whether the checkpoint before step `step` can be the best one; see [`Algorithm::competes_at`].
    fn competes_at(&self, step: u64) -> bool {
        let _ = step;
        true
    }

    /// Position in the data.
    fn state(&self) -> serde_json::Value;

    /// Continues from a position that [`state`](Self::state) returned.
    ///
    /// # Errors
    /// When the state belongs to other data.
    fn load_state(&mut self, state: serde_json::Value) -> Result<()>;
}

/// Supervised fine-tuning of a policy on a curriculum.
#[derive(Debug)]
pub struct Sft<P, C> {
    policy: P,
    curriculum: C,
    /// Written beside every checkpoint, so that it can be used on its own.
    tokenizer: Tokenizer,
}

impl<P: Policy, C: Curriculum<P>> Sft<P, C> {
    /// Joins the parts.
    pub fn new(policy: P, curriculum: C, tokenizer: Tokenizer) -> Self {
        Self { policy, curriculum, tokenizer }
    }

    /// The policy as it is now.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// Gives the policy back.
    pub fn into_policy(self) -> P {
        self.policy
    }
}

impl<P: Policy, C: Curriculum<P>> Algorithm for Sft<P, C> {
    type Batch = Vec<Objective>;

    fn policy(&self) -> &dyn Policy {
        &self.policy
    }

    fn policy_mut(&mut self) -> &mut dyn Policy {
        &mut self.policy
    }

    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.curriculum.distribute(collective)
    }

    fn batches(&mut self, step: u64, update: usize, accumulate: usize) -> Result<Option<Vec<Self::Batch>>> {
        if update > 0 {
            return Ok(None);
        }
        (0..accumulate).map(|_| self.curriculum.next(step)).collect::<Result<_>>().map(Some)
    }

    fn terms(&self, batch: &Self::Batch) -> Vec<Term> {
        objective_terms(batch)
    }

    fn losses(&mut self, batch: &Self::Batch) -> Result<Losses> {
        objective_losses(&self.policy, batch)
    }

    fn evaluate(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        self.curriculum.evaluate(&self.policy, step, observer)
    }

    fn competes_at(&self, step: u64) -> bool {
        self.curriculum.competes_at(step)
    }

    fn state(&self) -> serde_json::Value {
        self.curriculum.state()
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        self.curriculum.load_state(state)
    }

    fn save_extras(&self, folder: &Path) -> Result<()> {
        Ok(self.tokenizer.save(folder)?)
    }
}

/// One term per objective.
pub(crate) fn objective_terms(objectives: &[Objective]) -> Vec<Term> {
    let labelled = |e: &Example| e.target.iter().filter(|&&id| id != IGNORED).count() as u64;
    objectives
        .iter()
        .map(|o| Term { name: o.name, weight: o.weight, count: o.examples.iter().map(labelled).sum() })
        .collect()
}

/// Cross-entropies of the objectives.
pub(crate) fn objective_losses<P: Policy>(policy: &P, objectives: &[Objective]) -> Result<Losses> {
    let mut result = Losses { sums: vec![], tokens: 0 };
    for objective in objectives {
        let loss = policy.cross_entropy(&objective.examples)?;
        result.sums.push(loss.sum);
        result.tokens += loss.tokens;
    }
    Ok(result)
}

/// Mean cross-entropy of examples, without gradients.
///
/// # Errors
/// When the model fails.
pub fn mean_loss<P: Policy>(policy: &P, examples: &[Example]) -> Result<f64> {
    tch::no_grad(|| {
        let loss = policy.cross_entropy(examples)?;
        Ok(loss.sum.f_double_value(&[])? / loss.count as f64)
    })
}
