//! Proximal policy optimisation (arXiv 1707.06347) of a language model, with a value estimate, a penalty for leaving a
//! frozen reference policy, and supervised steps in between where a method has them.
//!
//! [`Ppo`] is an [`Algorithm`]: give it a policy, prompts and any [`Reward`], and run it with the
//! [`Trainer`](crate::Trainer). The arithmetic is in the pure functions of this module: [`token_rewards`],
//! [`Estimates`], [`policy_loss`], [`value_loss`].

mod config;
mod estimate;
mod evaluation;
mod kl;
mod loss;
mod records;
mod rollout;

use std::path::Path;

use ruminate_datasets::{Compat, Cursor, Order, Shard, TrainBatches};
use ruminate_models::{ActorCritic, Generate, Policy, Tokenizer, derive_seed};
use ruminate_rewards::{Normalization, Reward, Rewarded, Sample};
use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::sft::{objective_losses, objective_terms};
use crate::trainer::{Algorithm, Evaluation, Losses, Term};
use crate::{Collective, Error, Metrics, Objective, Observer, Phases, Result};

pub use config::{Phase, PpoConfig, RolloutConfig};
pub use estimate::{
    Estimates, Estimation, Grid, Mask, Moments, advantages, fill_padding, token_rewards, whiten,
};
use evaluation::judge;
pub(crate) use evaluation::{Assessed, assess};
pub use evaluation::{MeasuredRewards, summarize};
pub use kl::KlPenalty;
pub use loss::{Drift, clamp, drift, policy_loss, value_loss};
use records::{Records, RolloutStats, mean, row_sums, total_drift};
use rollout::{Pass, Rollout, Scored, example, mask};
pub use rollout::{Prompt, Response};
pub(crate) use rollout::{respond, text};

/// Prompts of a run.
#[derive(Debug, Clone)]
pub struct PpoData<Q> {
    /// What reinforced steps draw responses for. Shuffled once; every epoch has the same order, and its incomplete last
    /// batch is dropped.
    pub train: Vec<Prompt<Q>>,
    /// What supervised steps draw responses for; `None` goes on in `train`.
    pub supervised: Option<Vec<Prompt<Q>>>,
    /// What validation draws responses for, greedily.
    pub held_out: Vec<Prompt<Q>>,
}

/// What supervised steps train on, given the policy's own responses.
pub trait Supervision<Q> {
    /// The objectives of a batch.
    ///
    /// # Errors
    /// When an example cannot be made.
    fn objectives(&self, samples: &[Sample<'_, Q>]) -> Result<Vec<Objective>>;
}

/// PPO of a policy `P` on prompts about `Q` with the reward `R`. See the [module](self).
pub struct Ppo<P, Q, R> {
    config: PpoConfig,
    compat: Compat,
    model: ActorCritic<P>,
    reference: P,
    tokenizer: Tokenizer,
    reward: R,
    normalization: Normalization,
    supervision: Option<Box<dyn Supervision<Q>>>,
    data: PpoData<Q>,
    batches: TrainBatches,
    /// Where supervised steps have prompts of their own.
    supervised_batches: Option<TrainBatches>,
    kl_coef: f64,
    rollout: Option<Rollout>,
    /// Drift of the update that was made last.
    drift: Vec<Drift>,
    drift_tokens: u64,
    records: Records,
    phases: Phases,
    /// The processes that train this policy.
    collective: Collective,
}

impl<P, Q, R> std::fmt::Debug for Ppo<P, Q, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ppo")
            .field("config", &self.config)
            .field("kl_coef", &self.kl_coef)
            .finish_non_exhaustive()
    }
}

/// A micro-batch.
#[derive(Debug)]
pub enum Batch {
    /// Rows of the current rollout, and how many tokens they have.
    Reinforced {
        /// Indices of the responses.
        rows: Vec<usize>,
        /// Their real tokens.
        tokens: u64,
        /// Whether the policy is trained, or the value only.
        policy: bool,
    },
    /// Examples of a supervised step.
    Supervised(Vec<Objective>),
}

impl<P, Q, R> Ppo<P, Q, R>
where
    P: Policy + Generate,
    R: Reward<P, Q>,
{
    /// Joins the parts. `reference` is the policy that is not to be left, usually a copy of the first one.
    ///
    /// # Errors
    /// When a setting is wrong, or there are fewer prompts than a batch needs.
    pub fn new(
        config: PpoConfig,
        model: ActorCritic<P>,
        reference: P,
        tokenizer: Tokenizer,
        reward: R,
        data: PpoData<Q>,
    ) -> Result<Self> {
        config.validate()?;
        let batches = |prompts: &[Prompt<Q>]| Self::train_batches(&config, prompts, Shard::SINGLE);
        let supervised_batches = data.supervised.as_deref().map(batches).transpose()?;
        if data.held_out.is_empty() {
            return Err(Error::config("data", "there is no prompt to validate with"));
        }
        Ok(Self {
            batches: batches(&data.train)?,
            supervised_batches,
            kl_coef: config.kl.initial(),
            compat: Compat::Corrected,
            normalization: Normalization::default(),
            supervision: None,
            rollout: None,
            drift: vec![],
            drift_tokens: 0,
            records: Records::default(),
            phases: Phases::default(),
            collective: Collective::default(),
            config,
            model,
            reference,
            tokenizer,
            reward,
            data,
        })
    }

    fn train_batches(config: &PpoConfig, prompts: &[Prompt<Q>], shard: Shard) -> Result<TrainBatches> {
        Ok(TrainBatches::new(Order::shuffled(prompts.len(), config.seed), config.batch_size, shard)?)
    }

    /// The order of the training prompts.
    fn order(&self) -> Order {
        Order::shuffled(self.data.train.len(), self.config.seed)
    }

    /// Whose arithmetic of whitening, padding and the place of rewards: the textbook's, unless Crystal's published
    /// code is asked for.
    #[must_use]
    pub fn compat(mut self, compat: Compat) -> Self {
        self.compat = compat;
        self
    }

    /// What the steps outside `rl_steps` train on.
    #[must_use]
    pub fn supervised_by(mut self, supervision: impl Supervision<Q> + 'static) -> Self {
        self.supervision = Some(Box::new(supervision));
        self
    }

    /// Rewards are scaled so before they are used; validation shows them as they are.
    #[must_use]
    pub fn normalized_by(mut self, normalization: Normalization) -> Self {
        self.normalization = normalization;
        self
    }

    /// The policy as it is now.
    pub fn policy(&self) -> &P {
        self.model.actor()
    }

    /// Policy and value as they are now.
    pub fn model(&self) -> &ActorCritic<P> {
        &self.model
    }

    /// Gives the policy back.
    pub fn into_policy(self) -> P {
        self.model.into_actor()
    }

    /// Responses to prompts, of which the `i`-th is number `number(i)` of all.
    fn respond(
        &self,
        prompts: &[&Prompt<Q>],
        number: impl Fn(usize) -> usize,
        greedy: bool,
        step: u64,
        progress: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<Response>> {
        let rollout = &self.config.rollout;
        let generation = rollout.generation(self.model.filler(), greedy);
        let seed = derive_seed(self.config.seed, &[step]);
        let seed = |i: usize| derive_seed(seed, &[number(i) as u64]);
        let actor = self.model.actor();
        let tokenizer = (&self.tokenizer, rollout.clean_up);
        respond(actor, tokenizer, prompts, &generation, rollout.batch_size, seed, progress)
    }

    /// Draws responses to this rank's part of a batch.
    fn draw(&self, prompts: &[&Prompt<Q>], step: u64) -> Result<Vec<Response>> {
        // The whole batch has these rows where it has them in one process.
        let first = self.collective.rank() * self.config.batch_size;
        self.respond(prompts, |i| first + i, false, step, |_| Ok(()))
    }

    fn judge(&self, prompts: &[&Prompt<Q>], responses: &[Response]) -> Result<Vec<Rewarded>> {
        judge(self.model.actor(), &self.reward, prompts, responses)
    }

    /// Draws responses, judges them, and estimates what each of their tokens has brought.
    fn roll_out(&mut self, step: u64, accumulate: usize) -> Result<()> {
        let rows = self.batches.next().unwrap_or_default();
        let prompts: Vec<&Prompt<Q>> = rows.iter().map(|&i| &self.data.train[i]).collect();
        let mut phases = Phases::default();
        let responses = phases.time("rollout", || self.draw(&prompts, step))?;
        let rewards = phases.time("reward", || self.judge(&prompts, &responses))?;
        let pad = self.model.filler();
        let mut judged: Vec<_> = prompts
            .iter()
            .zip(&responses)
            .zip(&rewards)
            .map(|((prompt, response), reward)| (example(prompt, response, pad), reward))
            .collect();
        if self.compat == Compat::Corrected {
            judged.retain(|(example, _)| example.target.iter().any(|&id| id != ruminate_models::IGNORED));
        }
        self.rollout = None;
        let collective = self.collective.clone();
        if judged.is_empty() && collective.size() == 1 {
            // Nothing but padding was drawn: there is nothing to learn from in this step.
            self.phases.merge(phases);
            return Ok(());
        }
        let raw: Vec<f64> = judged.iter().map(|(_, reward)| f64::from(reward.value)).collect();
        let normalized: Vec<f64> = raw.iter().map(|&reward| self.normalization.apply(reward)).collect();
        let examples: Vec<_> = judged.iter().map(|(example, _)| example.clone()).collect();
        let size = self.config.rollout.batch_size;
        let reference = phases.time("scoring", || Scored::log_probs(&self.reference, &examples, size))?;
        let learns = !self.model.has_dropout() && self.config.in_one_piece(examples.len(), accumulate);
        let mut scored = phases.time("scoring", || Scored::of_actor(&self.model, &examples, size, learns))?;
        let mask = mask(&examples);
        let kl = &scored.log_probs - &reference;
        let penalized = token_rewards(self.compat, &kl, &normalized, &mask, self.kl_coef)?;
        let of_all = |own| Ok(collective.gather(own)?.into_iter().fold(Moments::default(), |a, b| a + b));
        let how = self.config.estimation(self.compat);
        let estimates = Estimates::new(how, &penalized, &scored.values, &mask, of_all)?;
        self.records.rewarded(&rewards, &collective)?;
        if !examples.is_empty() {
            self.rollout = Some(Rollout::new(examples, &mut scored, &estimates, self.model.device())?);
        }
        let Scored { values, entropy, .. } = scored;
        let Estimates { returns, .. } = estimates;
        let stats = RolloutStats { raw, normalized, kl, penalized, entropy, values, returns, mask }
            .gathered(&collective)?;
        if !stats.raw.is_empty() {
            self.records.add_rollout(&stats, self.kl_coef);
            let kl = mean(row_sums(&stats.kl));
            self.kl_coef = self.config.kl.next(self.kl_coef, kl, stats.raw.len());
        }
        self.phases.merge(phases);
        Ok(())
    }

    /// The micro-batches of the `update`-th update on the current rollout.
    fn reinforced(&self, step: u64, update: usize, accumulate: usize) -> Option<Vec<Batch>> {
        let rollout = self.rollout.as_ref()?;
        let rows = rollout.examples.len();
        let size =
            if self.config.mini_batch_size == 0 { rows } else { self.config.mini_batch_size }.min(rows);
        let per_epoch = rows.div_ceil(size.max(1));
        if rows == 0 || update >= self.config.epochs * per_epoch {
            return None;
        }
        let (epoch, part) = (update / per_epoch, update % per_epoch);
        let order = match per_epoch {
            1 => (0..rows).collect(),
            _ => Order::shuffled(rows, derive_seed(self.config.seed, &[step, epoch as u64])).indices(0),
        };
        let chosen: Vec<usize> = order.into_iter().skip(part * size).take(size).collect();
        let tokens = |rows: &[usize]| {
            let real = |&row: &usize| {
                rollout.examples[row].target.iter().filter(|&&id| id != ruminate_models::IGNORED)
            };
            rows.iter().map(|row| real(row).count() as u64).sum()
        };
        let policy = step >= self.config.value_warmup_steps;
        let micro = chosen.len().div_ceil(accumulate.max(1));
        let batch = |rows: &[usize]| Batch::Reinforced { rows: rows.to_vec(), tokens: tokens(rows), policy };
        Some(chosen.chunks(micro).map(batch).collect())
    }

    /// The micro-batches of a supervised step.
    fn supervised(&mut self, step: u64, accumulate: usize) -> Result<Vec<Batch>> {
        let supervision = self.supervision.as_ref().ok_or_else(|| {
            Error::config(
                "rl_steps",
                "is less than cycle_steps, but nothing is there for the other steps to train on",
            )
        })?;
        let own = self.data.supervised.as_ref();
        let rows = self.supervised_batches.as_mut().unwrap_or(&mut self.batches).next().unwrap_or_default();
        let prompts: Vec<&Prompt<Q>> = rows.iter().map(|&i| &own.unwrap_or(&self.data.train)[i]).collect();
        let mut phases = Phases::default();
        let responses = phases.time("rollout", || self.draw(&prompts, step))?;
        let samples: Vec<_> = responses.iter().zip(&prompts).map(|(r, p)| r.sample(p)).collect();
        let micro = samples.len().div_ceil(accumulate.max(1)).max(1);
        let batches = samples
            .chunks(micro)
            .map(|samples| Ok(Batch::Supervised(supervision.objectives(samples)?)))
            .collect::<Result<_>>()?;
        if self.config.judge_supervised {
            let rewards = phases.time("reward", || self.judge(&prompts, &responses))?;
            self.records.rewarded(&rewards, &self.collective)?;
        }
        self.phases.merge(phases);
        Ok(batches)
    }

    /// Whether the policy has moved further from the old one than it may.
    fn too_far(&self) -> Result<bool> {
        if self.config.target_kl == 0.0 {
            return Ok(false);
        }
        let drift = total_drift(&self.drift, self.drift_tokens, &self.collective)?;
        Ok(drift.is_some_and(|[_, kl, tokens]| kl / tokens.max(1.0) > self.config.target_kl))
    }
}

/// Names of the losses in the records.
const POLICY: &str = "loss/policy";
const VALUE: &str = "loss/value";
const ENTROPY: &str = "loss/entropy";

impl<P, Q, R> Algorithm for Ppo<P, Q, R>
where
    P: Policy + Generate,
    R: Reward<P, Q>,
{
    type Batch = Batch;

    fn policy(&self) -> &dyn Policy {
        &self.model
    }

    fn policy_mut(&mut self) -> &mut dyn Policy {
        &mut self.model
    }

    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        let shard = collective.shard()?;
        self.batches = Self::train_batches(&self.config, &self.data.train, shard)?;
        let supervised = self.data.supervised.as_deref();
        self.supervised_batches =
            supervised.map(|prompts| Self::train_batches(&self.config, prompts, shard)).transpose()?;
        self.collective = collective.clone();
        Ok(())
    }

    fn loss_name(&self) -> &'static str {
        "loss/total"
    }

    fn phases(&mut self) -> Phases {
        std::mem::take(&mut self.phases)
    }

    fn phase_begins(&self, step: u64) -> bool {
        self.config.phase_begins(step)
    }

    fn batches(&mut self, step: u64, update: usize, accumulate: usize) -> Result<Option<Vec<Batch>>> {
        match (self.config.phase(step), update) {
            (Phase::Supervised, 0) => return self.supervised(step, accumulate).map(Some),
            (Phase::Supervised, _) => return Ok(None),
            (Phase::Reinforced, 0) => self.roll_out(step, accumulate)?,
            (Phase::Reinforced, _) => {
                if self.too_far()? {
                    self.records.add("early_stops", 1.0);
                    return Ok(None);
                }
            }
        }
        self.drift.clear();
        self.drift_tokens = 0;
        Ok(self.reinforced(step, update, accumulate))
    }

    fn terms(&self, batch: &Batch) -> Vec<Term> {
        match batch {
            Batch::Supervised(objectives) => objective_terms(objectives),
            Batch::Reinforced { tokens, policy, .. } => {
                let term = |name, weight| Term { name, weight, count: *tokens };
                let mut terms = vec![term(VALUE, self.config.value_coef)];
                if *policy {
                    terms.insert(0, term(POLICY, self.config.policy_coef));
                    if self.config.entropy_coef > 0.0 {
                        terms.push(term(ENTROPY, -self.config.entropy_coef));
                    }
                }
                terms
            }
        }
    }

    fn losses(&mut self, batch: &Batch) -> Result<Losses> {
        let (rows, policy) = match batch {
            Batch::Supervised(objectives) => return objective_losses(self.model.actor(), objectives),
            Batch::Reinforced { rows, policy, .. } => (rows, *policy),
        };
        let rollout = self.rollout.as_mut().ok_or_else(|| Error::config("rollout", "there is none"))?;
        let entropy = policy && self.config.entropy_coef > 0.0;
        // The pass is of all rows, in their order.
        let all = rows.iter().copied().eq(0..rollout.examples.len());
        let Pass { scores, values } = match rollout.pass.take().filter(|_| all) {
            Some(pass) => pass,
            None => {
                let examples: Vec<_> = rows.iter().map(|&row| rollout.examples[row].clone()).collect();
                Pass::new(&self.model, &examples, entropy)?
            }
        };
        let mask = &scores.labels.mask;
        let old = rollout.targets(rows, mask.size()[1])?;
        let range = self.config.clip_range;
        let value = value_loss(&values, &old.old_values, &old.returns, mask, self.config.value_clip_range)?;
        let mut sums = vec![value];
        if policy {
            let loss = policy_loss(&scores.log_probs, &old.old_log_probs, &old.advantages, mask, range)?;
            sums.insert(0, loss);
            if let Some(entropy) = scores.entropy.filter(|_| entropy) {
                sums.push(entropy.f_sum(None::<Kind>)?);
            }
        }
        let moved = drift(&scores.log_probs, &old.old_log_probs, mask, range)?;
        self.records.drifted(&moved, scores.labels.count)?;
        self.drift.push(moved);
        self.drift_tokens += scores.labels.count;
        Ok(Losses { sums, tokens: scores.tokens })
    }

    fn metrics(&mut self) -> Result<Metrics> {
        self.records.take(&self.collective)
    }

    fn distributions(&mut self) -> Vec<(String, Vec<f64>)> {
        self.records.take_distributions()
    }

    /// Draws a greedy response to every held-out prompt. The reward and its parts are averaged over all prompts
    /// (`weighted`) and over the averages of the tasks (`unweighted`), which also is the score.
    fn evaluate(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        self.validate(step, observer)
    }

    fn state(&self) -> serde_json::Value {
        let state = State {
            cursor: self.batches.cursor(),
            supervised_cursor: self.supervised_batches.as_ref().map(TrainBatches::cursor),
            prompts: self.data.train.len(),
            kl_coef: self.kl_coef,
            normalization: self.normalization,
        };
        serde_json::json!(state)
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        let state: State = serde_json::from_value(state)
            .map_err(|e| Error::config("checkpoint", format!("its data position cannot be read: {e}")))?;
        if state.prompts != self.data.train.len() {
            let (then, now) = (state.prompts, self.data.train.len());
            return Err(Error::config(
                "checkpoint",
                format!("it was trained on {then} prompts, but there are {now} now"),
            ));
        }
        self.batches.resume(state.cursor)?;
        if let (Some(batches), Some(cursor)) = (&mut self.supervised_batches, state.supervised_cursor) {
            batches.resume(cursor)?;
        }
        self.kl_coef = state.kl_coef;
        self.normalization = state.normalization;
        Ok(())
    }

    fn save_extras(&self, folder: &Path) -> Result<()> {
        Ok(self.tokenizer.save(folder)?)
    }
}

/// What survives a restart besides the parameters.
#[derive(Serialize, Deserialize)]
struct State {
    cursor: Cursor,
    supervised_cursor: Option<Cursor>,
    prompts: usize,
    kl_coef: f64,
    normalization: Normalization,
}
