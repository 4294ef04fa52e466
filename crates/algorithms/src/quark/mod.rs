//! Quark (arXiv 2205.13636): a language model learns from rewards by control tokens. Samples are ranked, each gets a token for
//! the quantile that it is in, and the model is trained to write them behind their tokens, without leaving a frozen
//! reference. Then it is asked for the best. With several rewards and a token for each this is MaRio
//! (multi-reward rationalization).
//!
//! [`Quark`] is an [`Algorithm`]: give it a policy, prompts and a [`Scorer`], and run it with the
//! [`Trainer`](crate::Trainer). Its parts stand on their own: [`DataPool`], [`ControlTokens`], [`StageSchedule`],
//! [`TokenTerms`] and [`quark_loss`].
//!
//! # Reference behaviour
//! The published code has an optional loss on the answer, which searches for its place in vain and scores another; it is
//! off there and not offered here.

mod config;
mod control;
mod evaluation;
mod loss;
mod pool;
mod rounds;
mod scorer;
mod stages;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use ruminate_datasets::{Cursor, Order, Shard, TrainBatches};
use ruminate_models::{Example, Generate, Labels, Policy, TokenId, Tokenizer, derive_seed};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::ppo::{KlPenalty, Prompt};
use crate::trainer::{Algorithm, Evaluation, Losses, Term};
use crate::{Collective, Error, Metrics, Observer, Phases, Result};
use evaluation::distributions;
pub(crate) use evaluation::{shown_sample, summarize};

pub use config::{ExpertConfig, Lengths, NewTokens, QuarkConfig, SamplingConfig, Source};
pub use control::{
    Buckets, CORRECT, Condition, ControlConfig, ControlTokens, RewardSpec, Ties, TrainOption, WRONG,
};
pub use loss::{Predictions, TokenTerms, quark_loss};
pub use pool::{DataPool, POOL, PoolSample, Ranked};
pub use rounds::{Admission, Expert, Tokens, admit, respond};
pub use scorer::{Judged, Scorer, Single};
pub use stages::{AddTo, StageSchedule};

const LM: &str = "loss/lm";
const KL: &str = "loss/kl";
const ENTROPY: &str = "loss/entropy";

/// What is trained on where control tokens stand before a response: the code has no loss of its own.
#[must_use]
pub fn labels(code: &[TokenId], response: &[TokenId]) -> Vec<TokenId> {
    [code, response].concat()
}

/// Prompts and expert data of a run. Prompts with the same text count as the same.
#[derive(Debug, Clone)]
pub struct QuarkData<Q> {
    /// What rounds draw responses for.
    pub train: Vec<Prompt<Q>>,
    /// Responses from elsewhere; may be empty.
    pub expert: Vec<Expert<Q>>,
    /// What validation writes responses for, greedily.
    pub held_out: Vec<Prompt<Q>>,
}

/// Quark of a policy `P` on prompts about `Q` with the rewards of `S`. See the [module](self).
pub struct Quark<P, Q, S> {
    config: QuarkConfig,
    policy: P,
    reference: P,
    tokenizer: Tokenizer,
    tokens: ControlTokens,
    scorer: S,
    data: QuarkData<Q>,
    kl_vocab: i64,
    pool: DataPool<Tokens>,
    /// Batches of the pool since the round before this step.
    loader: Option<TrainBatches>,
    round: u64,
    /// Rows of expert data in the order in which they come in.
    expert_order: Vec<usize>,
    expert_taken: usize,
    kl_coef: f64,
    entropy_coef: f64,
    /// Sums over the update that is being made.
    update: Tally,
    /// Sums since the last record.
    since: Tally,
    means: BTreeMap<String, (f64, usize)>,
    /// The scores behind the means of rewards.
    scores: BTreeMap<String, Vec<f64>>,
    phases: Phases,
    /// The processes that train this policy. Each has all of the pool.
    collective: Collective,
}

/// What a number of samples had in sum. It stays on the device until it is asked for.
#[derive(Debug, Default)]
struct Tally {
    /// Divergence and minus log-likelihood `[2]`.
    sums: Option<Tensor>,
    samples: usize,
}

impl Tally {
    fn add(&mut self, sums: &Tensor, samples: usize) -> Result<()> {
        self.sums = Some(match &self.sums {
            Some(before) => before.f_add(sums)?,
            None => sums.shallow_clone(),
        });
        self.samples += samples;
        Ok(())
    }

    /// Means over the samples of all processes, and how many they are; `None` without any.
    fn take(&mut self, collective: &Collective) -> Result<Option<([f64; 2], usize)>> {
        let Self { sums, samples } = std::mem::take(self);
        let mut own = [0.0, 0.0, samples as f64];
        if let Some(sums) = sums {
            (own[0], own[1]) = (sums.f_double_value(&[0])?, sums.f_double_value(&[1])?);
        }
        let all = collective.sum(&own)?;
        Ok((all[2] > 0.0).then(|| ([all[0] / all[2], all[1] / all[2]], all[2] as usize)))
    }
}

impl<P, Q, S> std::fmt::Debug for Quark<P, Q, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quark")
            .field("config", &self.config)
            .field("round", &self.round)
            .finish_non_exhaustive()
    }
}

/// A micro-batch: some samples of the pool.
#[derive(Debug)]
pub struct Batch {
    rows: Vec<usize>,
    /// Tokens of their responses.
    tokens: u64,
    /// The part of their codes that is in use.
    active: Range<usize>,
}

impl Batch {
    /// Which samples of the pool.
    #[must_use]
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }
}

impl<P, Q, S> Quark<P, Q, S>
where
    P: Policy + Generate,
    S: Scorer<P, Q>,
{
    /// Joins the parts. The tokenizer has the control tokens ([`ControlTokens::add_to`]) and the policy rows for them
    /// ([`T5::add_tokens`](ruminate_models::T5::add_tokens)). `reference` is the model that is not to be left, and that
    /// writes the first samples; it needs no control tokens.
    ///
    /// # Errors
    /// When a setting is wrong, the parts do not fit together, or there is no prompt.
    pub fn new(
        config: QuarkConfig,
        policy: P,
        reference: P,
        tokenizer: Tokenizer,
        scorer: S,
        data: QuarkData<Q>,
    ) -> Result<Self> {
        config.validate()?;
        let tokens = ControlTokens::find_in(&tokenizer, &config.control)?;
        let names: Vec<&str> = config.control.rewards.iter().map(|reward| reward.name.as_str()).collect();
        if scorer.names() != names {
            let reason = format!("are {names:?}, but those that score are {:?}", scorer.names());
            return Err(Error::config("control.rewards", reason));
        }
        if data.held_out.is_empty() {
            return Err(Error::config("data", "there is no prompt to validate with"));
        }
        let few = config.sampling.drop_last && data.train.len() < config.sampling.batch_size;
        if few && !data.train.is_empty() {
            let (prompts, batch) = (data.train.len(), config.sampling.batch_size);
            let reason = format!(
                "leaves out all of {prompts} prompts, which do not fill a batch of {batch}; set it to false"
            );
            return Err(Error::config("sampling.drop_last", reason));
        }
        let kl_vocab = check_vocabularies(&config, &tokens, &policy, &reference)?;
        let order = Order::shuffled(data.expert.len(), derive_seed(config.seed, &[]));
        let mut expert_order = order.indices(0);
        if !config.expert.repeats {
            // The first row of each prompt, wherever the order has it.
            let mut prompts = BTreeSet::new();
            let first: Vec<bool> =
                data.expert.iter().map(|row| prompts.insert(row.prompt.text.as_str())).collect();
            expert_order.retain(|&i| first[i]);
        }
        Ok(Self {
            kl_vocab,
            pool: DataPool::new(config.control.clone())?,
            loader: None,
            round: 0,
            expert_order,
            expert_taken: 0,
            kl_coef: config.kl.initial(),
            entropy_coef: config.entropy.initial(),
            update: Tally::default(),
            since: Tally::default(),
            means: BTreeMap::new(),
            scores: BTreeMap::new(),
            phases: Phases::default(),
            collective: Collective::default(),
            config,
            policy,
            reference,
            tokenizer,
            tokens,
            scorer,
            data,
        })
    }

    /// The policy as it is now.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// The model that is not to be left.
    pub fn reference(&self) -> &P {
        &self.reference
    }

    /// Gives the policy back.
    pub fn into_policy(self) -> P {
        self.policy
    }

    /// The control tokens.
    pub fn tokens(&self) -> &ControlTokens {
        &self.tokens
    }

    /// What judges responses.
    pub fn scorer(&self) -> &S {
        &self.scorer
    }

    /// The settings.
    pub fn config(&self) -> &QuarkConfig {
        &self.config
    }

    /// The prompts and expert data.
    pub fn data(&self) -> &QuarkData<Q> {
        &self.data
    }

    /// All samples so far.
    pub fn pool(&self) -> &DataPool<Tokens> {
        &self.pool
    }

    /// The processes that train this policy.
    pub(crate) fn collective(&self) -> &Collective {
        &self.collective
    }

    /// Batches of all processes from the pool, in an order of this round: reshuffled in every pass, without what does not fill a
    /// batch.
    fn loader(&self) -> Result<TrainBatches> {
        // Sampling's seeds have one part more, the pass.
        let order = Order::reshuffled(self.pool.len(), derive_seed(self.config.seed, &[self.round]));
        let batch_size = self.config.batch_size.saturating_mul(self.collective.size()).min(self.pool.len());
        Ok(TrainBatches::new(order, batch_size, Shard::SINGLE)?)
    }

    /// Adds to a mean that is recorded.
    fn note(&mut self, name: &str, sum: f64, count: usize) {
        let entry = self.means.entry(name.into()).or_insert((0.0, 0));
        entry.0 += sum;
        entry.1 += count;
    }

    /// The rows' states at the positions of their responses, behind codes of `code` tokens.
    fn predictions(policy: &P, examples: &[Example], labels: &Labels, code: i64) -> Result<Predictions> {
        let states =
            policy.states(examples)?.ok_or_else(|| Error::config("policy", "it returned no states"))?;
        let time = labels.ids.size()[1];
        let states = states.f_narrow(1, code, time)?.f_flatten(0, 1)?.f_index_select(0, &labels.positions)?;
        Predictions::of(policy, states)
    }

    /// An adaptive coefficient follows what the last update has shown.
    fn adapt(&mut self) -> Result<()> {
        let adaptive = |rule| matches!(rule, KlPenalty::Adaptive { .. });
        // Taking waits for the device, and for other processes.
        if (adaptive(self.config.kl) || adaptive(self.config.entropy))
            && let Some(([kl, nll], samples)) = self.update.take(&self.collective)?
        {
            self.kl_coef = self.config.kl.next(self.kl_coef, kl, samples);
            self.entropy_coef = self.config.entropy.next_bonus(self.entropy_coef, nll, samples);
        }
        Ok(())
    }

    /// Whether the divergence is needed.
    fn has_kl(&self) -> bool {
        self.config.kl != KlPenalty::Fixed { coef: 0.0 }
    }

    fn has_entropy(&self) -> bool {
        self.config.entropy != KlPenalty::Fixed { coef: 0.0 }
    }
}

/// The entries that the divergence is over.
fn check_vocabularies<P: Policy>(
    config: &QuarkConfig,
    tokens: &ControlTokens,
    policy: &P,
    reference: &P,
) -> Result<i64> {
    let rows = |model: &P| {
        let output = model.output_projection();
        output.map(|(weight, _)| weight.size()[0]).ok_or_else(|| {
            Error::config("policy", "has no output matrix (Policy::output_projection), which Quark needs")
        })
    };
    let (ids, rows, known) = (tokens.id_range(), rows(policy)?, rows(reference)?);
    if rows < ids.end {
        let reason = format!(
            "need rows up to {} in the policy, which has {rows}; Model::add_tokens adds them",
            ids.end
        );
        return Err(Error::config("control.rewards", reason));
    }
    let most = ids.start.min(known);
    let wanted = config.kl_vocab.map_or(most, |wanted| i64::try_from(wanted).unwrap_or(i64::MAX));
    if wanted > most {
        let reason = format!("is {wanted}, but reference and policy have only {most} tokens in common");
        return Err(Error::config("kl_vocab", reason));
    }
    Ok(wanted)
}

impl<P, Q, S> Algorithm for Quark<P, Q, S>
where
    P: Policy + Generate,
    S: Scorer<P, Q>,
{
    type Batch = Batch;

    fn policy(&self) -> &dyn Policy {
        &self.policy
    }

    fn policy_mut(&mut self) -> &mut dyn Policy {
        &mut self.policy
    }

    fn distribute(&mut self, collective: &Collective) -> Result<()> {
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
        self.config.round_begins(step)
    }

    fn batches(&mut self, step: u64, update: usize, accumulate: usize) -> Result<Option<Vec<Batch>>> {
        if update > 0 {
            self.adapt()?;
            return Ok(None);
        }
        if self.config.round_begins(step) {
            self.round(step)?;
        }
        let rows = self.loader.as_mut().and_then(Iterator::next).ok_or_else(|| Error::Pool {
            reason: format!("there is none at step {step}; was the checkpoint made by another algorithm?"),
        })?;
        // The batch of one process is cut into equal parts, of which there may be more than rows.
        let (rank, size) = (self.collective.rank(), self.collective.size());
        let rows = &rows[rank * rows.len() / size..(rank + 1) * rows.len() / size];
        self.update = Tally::default();
        let active = self.config.control.stages.training(step, self.tokens.code_len());
        let tokens = |rows: &[usize]| {
            let response = |&row: &usize| self.pool.samples()[row].sample.item.response.len() as u64;
            rows.iter().map(response).sum()
        };
        let batch =
            |rows: &[usize]| Batch { rows: rows.to_vec(), tokens: tokens(rows), active: active.clone() };
        Ok(Some(rows.chunks(rows.len().div_ceil(accumulate.max(1)).max(1)).map(batch).collect()))
    }

    fn terms(&self, batch: &Batch) -> Vec<Term> {
        let term = |name, weight| Term { name, weight, count: batch.tokens };
        let mut terms = vec![term(LM, 1.0)];
        if self.has_kl() {
            terms.push(term(KL, self.kl_coef));
        }
        if self.has_entropy() {
            terms.push(term(ENTROPY, -self.entropy_coef));
        }
        terms
    }

    fn losses(&mut self, batch: &Batch) -> Result<Losses> {
        self.policy.set_training(self.config.dropout);
        let mut with_code = vec![];
        let mut without = vec![];
        for &row in &batch.rows {
            let Ranked { sample, buckets } = &self.pool.samples()[row];
            let code = self.tokens.code(buckets, sample.correct)?;
            let Tokens { prompt, response } = &sample.item;
            with_code.push(Example {
                prompt: prompt.clone(),
                target: labels(&code[batch.active.clone()], response),
            });
            without.push(Example { prompt: prompt.clone(), target: response.clone() });
        }
        let targets: Vec<&[TokenId]> = without.iter().map(|example| example.target.as_slice()).collect();
        let labels = Labels::new(&targets, self.policy.device())?;
        let policy = Self::predictions(&self.policy, &with_code, &labels, batch.active.len() as i64)?;
        let reference = match self.has_kl() {
            true => Some(tch::no_grad(|| Self::predictions(&self.reference, &without, &labels, 0))?),
            false => None,
        };
        let terms = TokenTerms::chunked(&policy, reference.as_ref(), &labels.targets, self.kl_vocab)?;
        let sum = |values: &Tensor| values.f_sum(Kind::Float);
        let mut sums = vec![sum(&terms.lm)?];
        let kl = sum(&terms.kl)?;
        let tally = Tensor::f_stack(&[kl.f_detach()?, sums[0].f_detach()?], 0)?;
        if self.has_kl() {
            sums.push(kl);
        }
        if self.has_entropy() {
            sums.push(sum(&terms.entropy)?);
        }
        self.since.add(&tally, batch.rows.len())?;
        self.update.add(&tally, batch.rows.len())?;
        let tokens = with_code.iter().map(|e| (e.prompt.len() + e.target.len()) as u64).sum();
        Ok(Losses { sums, tokens })
    }

    fn metrics(&mut self) -> Result<Metrics> {
        let mut metrics: Metrics = vec![];
        if let Some(([kl, nll], _)) = self.since.take(&self.collective)? {
            if self.has_kl() {
                metrics.push(("train/objective/kl".into(), kl));
            }
            metrics.push(("train/objective/entropy".into(), nll));
        }
        metrics.push(("train/kl_coef".into(), self.kl_coef));
        metrics.push(("train/entropy_coef".into(), self.entropy_coef));
        metrics.push(("train/pool/samples".into(), self.pool.len() as f64));
        let means = std::mem::take(&mut self.means).into_iter().filter(|(_, (_, count))| *count > 0);
        metrics.extend(means.map(|(name, (sum, count))| (format!("train/{name}"), sum / count as f64)));
        Ok(metrics)
    }

    fn distributions(&mut self) -> Vec<(String, Vec<f64>)> {
        std::mem::take(&mut self.scores).into_iter().collect()
    }

    /// Writes a greedy response to every held-out prompt, asking for the best; before step 0 the reference does it,
    /// without control tokens. Every reward is averaged over the responses that have it.
    fn evaluate(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        let prompts: Vec<&Prompt<Q>> = self.data.held_out.iter().collect();
        let total = prompts.len() as u64;
        let progress = |done| observer.progress("validation", done, total).map_err(Error::Observer);
        let responses = match step {
            0 => self.respond_as_reference(&prompts, progress)?,
            _ => self.respond(&prompts, Condition::Best, step, progress)?,
        };
        let judged = self.judge(&prompts, &responses)?;
        let evaluation = summarize(&self.config, &judged)?;
        for (name, values) in distributions(&self.config, &judged) {
            observer.distribution(step, &name, &values).map_err(Error::Observer)?;
        }
        let shown = (0..prompts.len()).step_by(self.config.eval_batch_size);
        let names = self.config.control.rewards.iter().map(|reward| reward.name.as_str());
        let samples: Vec<_> =
            shown.map(|i| shown_sample(step, prompts[i], &responses[i], &judged[i], names.clone())).collect();
        observer.samples(step, &samples).map_err(Error::Observer)?;
        Ok(evaluation)
    }

    /// At step 0 it was the reference that answered, and the policy has only just got its control tokens.
    fn competes_at(&self, step: u64) -> bool {
        step > 0
    }

    fn state(&self) -> serde_json::Value {
        let state = State {
            round: self.round,
            cursor: self.loader.as_ref().map(TrainBatches::cursor),
            prompts: self.data.train.len(),
            experts: self.expert_order.len(),
            expert_taken: self.expert_taken,
            kl_coef: self.kl_coef,
            entropy_coef: self.entropy_coef,
        };
        serde_json::json!(state)
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        let state: State = serde_json::from_value(state)
            .map_err(|e| Error::config("checkpoint", format!("its data position cannot be read: {e}")))?;
        let (then, now) = ((state.prompts, state.experts), (self.data.train.len(), self.expert_order.len()));
        if then != now || state.expert_taken > state.experts {
            let reason = format!(
                "it was trained on {} prompts and {} expert rows, but there are {} and {} now",
                then.0, then.1, now.0, now.1
            );
            return Err(Error::config("checkpoint", reason));
        }
        self.round = state.round;
        self.expert_taken = state.expert_taken;
        self.kl_coef = state.kl_coef;
        self.entropy_coef = state.entropy_coef;
        self.loader = match state.cursor {
            Some(cursor) => {
                let mut loader = self.loader()?;
                loader.resume(cursor)?;
                Some(loader)
            }
            None => None,
        };
        Ok(())
    }

    fn save_extras(&self, folder: &Path) -> Result<()> {
        self.tokenizer.save(folder)?;
        self.pool.save(folder)
    }

    fn load_extras(&mut self, folder: &Path) -> Result<()> {
        self.pool.load(folder)
    }
}

/// What survives a restart besides parameters and pool.
#[derive(Serialize, Deserialize)]
struct State {
    round: u64,
    cursor: Option<Cursor>,
    prompts: usize,
    experts: usize,
    expert_taken: usize,
    kl_coef: f64,
    entropy_coef: f64,
}
