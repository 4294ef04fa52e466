//! Preference optimisation as an algorithm of the trainer.

mod validation;

use std::path::Path;

use ruminate_models::checkpoint::{read_tensors, write_tensors};
use ruminate_models::{LogitStatistics, Policy, ScoreOptions, TokenId, Tokenizer};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::config::{DpoConfig, NllNorm, ReferenceSync};
use super::data::{Pair, PairSource};
use super::logps::{PairLogps, confidence};
use super::loss::{DpoState, OfAll, chosen_nll, preference_loss_among};
use super::metrics::{LogitSums, MetricsMessage, Records};
use crate::trainer::{Algorithm, Evaluation, Losses, Term};
use crate::{Collective, Error, Metrics, Observer, Result};
use validation::HeldOut;

const PREFERENCE: &str = "preference_loss";
const NLL: &str = "nll_loss";
/// Weights of a reference that follows the policy, beside a checkpoint's own.
const REFERENCE_WEIGHTS: &str = "reference.safetensors";

/// What the policy is held at.
#[derive(Debug)]
pub enum Reference<P> {
    /// A model, usually a copy of the policy as it was at first. It stays as it is, unless [`DpoConfig::sync`] moves it.
    Model(P),
    /// The pairs bring its log-probabilities along: see [`precompute`](super::precompute).
    Precomputed,
    /// None: log-probabilities take the place of ratios.
    None,
}

/// How the policy does at what the preferences are for, e.g. the accuracy of its answers.
pub trait PolicyEvaluation<P> {
    /// Gets the processes among which [`evaluate`](Self::evaluate) may divide its work; without them, each validates on everything.
    ///
    /// # Errors
    /// When the work cannot be divided.
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        let _ = collective;
        Ok(())
    }

    /// Validates the policy before step `step`; its score chooses the best checkpoint.
    ///
    /// # Errors
    /// When the model or the observer fails.
    fn evaluate(&mut self, policy: &P, step: u64, observer: &mut dyn Observer) -> Result<Evaluation>;
}

/// Preference optimisation of a policy `P` on pairs from `S`. Validation shows loss and metrics on held-out pairs, and what
/// [`evaluated_by`](Self::evaluated_by) adds; without that, the score is minus the loss.
///
/// Chosen and rejected completions share their prompt's pass through an encoder, and no logits are made beyond those of some rows
/// at a time.
pub struct Dpo<P, S> {
    config: DpoConfig,
    policy: P,
    reference: Reference<P>,
    source: S,
    held_out: Vec<Pair>,
    tokenizer: Tokenizer,
    evaluation: Option<Box<dyn PolicyEvaluation<P>>>,
    state: DpoState,
    records: Records,
    /// The processes that train this policy.
    collective: Collective,
}

impl<P, S> std::fmt::Debug for Dpo<P, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dpo")
            .field("config", &self.config)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<P: Policy, S: PairSource> Dpo<P, S> {
    /// Joins the parts. `held_out` is what validation looks at; it may be empty where [`evaluated_by`](Self::evaluated_by) adds
    /// something else to look at.
    ///
    /// # Errors
    /// When a setting is wrong, or settings and reference contradict each other.
    pub fn new(
        config: DpoConfig,
        policy: P,
        reference: Reference<P>,
        source: S,
        held_out: Vec<Pair>,
        tokenizer: Tokenizer,
    ) -> Result<Self> {
        config.validate()?;
        let refuse = |reason: &str| Err(Error::config("reference", reason));
        if config.reference_free() && !matches!(reference, Reference::None) {
            return refuse("is given, but the losses have no place for one");
        }
        if config.sync.is_some() && !matches!(reference, Reference::Model(_)) {
            return refuse("must be a model, so that it can follow the policy (`sync`)");
        }
        let (state, records, evaluation, collective) = Default::default();
        Ok(Self {
            config,
            policy,
            reference,
            source,
            held_out,
            tokenizer,
            evaluation,
            state,
            records,
            collective,
        })
    }

    /// Adds an evaluation, whose score then chooses the best checkpoint.
    #[must_use]
    pub fn evaluated_by(mut self, evaluation: impl PolicyEvaluation<P> + 'static) -> Self {
        self.evaluation = Some(Box::new(evaluation));
        self
    }

    fn check_validation(&self) -> Result<()> {
        if self.held_out.is_empty() && self.evaluation.is_none() {
            return Err(Error::config("held_out", "there is no pair to validate with"));
        }
        Ok(())
    }

    /// The policy as it is now.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// Gives the policy back.
    pub fn into_policy(self) -> P {
        self.policy
    }

    /// Log-probabilities of the pairs under the reference.
    fn reference_logps(&self, pairs: &[&Pair], lengths: &PairLogps) -> Result<Option<PairLogps>> {
        match &self.reference {
            Reference::None => Ok(None),
            Reference::Model(model) => {
                let scored = tch::no_grad(|| score_pairs(model, pairs, self.config.ld_alpha, false))?;
                Ok(Some(scored.logps))
            }
            Reference::Precomputed => {
                let values: Option<Vec<[f32; 2]>> = pairs.iter().map(|pair| pair.reference).collect();
                let values = values.ok_or_else(|| {
                    Error::config("reference", "is to be precomputed, but a pair lacks its log-probabilities")
                })?;
                let column = |side: usize| -> Result<Tensor> {
                    let column: Vec<f32> = values.iter().map(|value| value[side]).collect();
                    Ok(Tensor::f_from_slice(&column)?.f_to_device(self.policy.device())?)
                };
                let same = |len: &Tensor| len.shallow_clone();
                let (chosen_len, rejected_len) = (same(&lengths.chosen_len), same(&lengths.rejected_len));
                Ok(Some(PairLogps::new(column(0)?, column(1)?, chosen_len, rejected_len)?))
            }
        }
    }

    /// Sums of the preference losses and of the chosen's negative log-likelihoods.
    fn forward(
        &self,
        pairs: &[&Pair],
        state: &mut DpoState,
        records: &mut Records,
        of_all: OfAll<'_>,
    ) -> Result<Forward> {
        let config = &self.config;
        let statistics = config.wpo || config.logit_metrics;
        let scored = score_pairs(&self.policy, pairs, config.ld_alpha, statistics)?;
        let reference = self.reference_logps(pairs, &scored.logps)?;
        let output = preference_loss_among(&scored.logps, reference.as_ref(), config, state, of_all)?;
        let weights: Vec<f32> = pairs.iter().map(|pair| pair.weight).collect();
        let mut losses = output.losses.shallow_clone();
        if weights.iter().any(|&weight| weight != 1.0) {
            if config.terms.iter().any(|term| term.loss.sorts()) {
                let reason = "sorts pairs into ranks, so pairs cannot have weights other than 1";
                return Err(Error::config("terms", reason));
            }
            losses = losses.f_mul(&Tensor::f_from_slice(&weights)?.f_to_device(self.policy.device())?)?;
        }
        if let (true, Some(confidence)) = (config.wpo, &scored.confidence) {
            losses = losses.f_mul(confidence)?;
        }
        let logits = scored.logits.filter(|_| config.logit_metrics);
        let sources = pairs.iter().map(|pair| pair.source.as_str());
        records.add(&scored.logps, reference.as_ref(), &output, logits.as_ref(), sources)?;
        let preference = losses.f_sum(None::<Kind>)?;
        let mut tokens = scored.tokens;
        let nll = match (config.nll_weight() > 0.0, config.rpo_padding_compat, config.nll_norm) {
            (false, ..) => None,
            (true, true, _) => {
                let (sum, extra) = self.padded_nll(pairs)?;
                tokens += extra;
                Some(sum)
            }
            (true, false, NllNorm::Token) => Some(scored.chosen_sum.f_neg()?),
            (true, false, NllNorm::Sequence) => {
                let whole = PairLogps::new(
                    scored.chosen_sums,
                    scored.logps.rejected.f_detach()?,
                    scored.logps.chosen_len.shallow_clone(),
                    scored.logps.rejected_len.shallow_clone(),
                )?;
                Some(chosen_nll(&whole)?.f_sum(None::<Kind>)?)
            }
        };
        Ok(Forward { preference, nll, tokens })
    }

    /// The defect of [`DpoConfig::rpo_padding_compat`]: the chosen half is filled up to the longest completion of the batch, and the
    /// filling is to be predicted as well.
    fn padded_nll(&self, pairs: &[&Pair]) -> Result<(Tensor, u64)> {
        let width = width(pairs);
        let pad = self.policy.pad_token_id();
        let prompts: Vec<&[TokenId]> = pairs.iter().map(|pair| pair.prompt.as_slice()).collect();
        let targets: Vec<Vec<TokenId>> = pairs
            .iter()
            .map(|pair| pair.chosen.iter().copied().chain(std::iter::repeat(pad)).take(width).collect())
            .collect();
        let targets: Vec<&[TokenId]> = targets.iter().map(Vec::as_slice).collect();
        let scores = self.policy.score_alternatives(&prompts, &targets, ScoreOptions::default())?;
        Ok((scores.log_probs.f_sum(None::<Kind>)?.f_neg()?, scores.tokens))
    }

    fn nll_count(&self, pairs: &[&Pair]) -> u64 {
        if self.config.rpo_padding_compat {
            return (pairs.len() * width(pairs)) as u64;
        }
        match self.config.nll_norm {
            NllNorm::Token => pairs.iter().map(|pair| pair.chosen.len() as u64).sum(),
            NllNorm::Sequence => pairs.len() as u64,
        }
    }

    /// Moves the reference towards the policy.
    fn follow(&self, ReferenceSync { alpha, .. }: ReferenceSync) -> Result<()> {
        let Reference::Model(model) = &self.reference else { return Ok(()) };
        tch::no_grad(|| {
            for ((_, ours), (_, policy)) in model.parameters().iter().zip(self.policy.parameters().iter()) {
                let moved = ours.f_mul_scalar(1.0 - alpha)?.f_add(&policy.f_mul_scalar(alpha)?)?;
                ours.shallow_clone().f_copy_(&moved)?;
            }
            Ok(())
        })
    }
}

/// Sums over pairs or tokens, with gradients.
struct Forward {
    preference: Tensor,
    nll: Option<Tensor>,
    tokens: u64,
}

/// Longest completion of a batch.
fn width(pairs: &[&Pair]) -> usize {
    pairs.iter().map(|pair| pair.chosen.len().max(pair.rejected.len())).max().unwrap_or(0)
}

/// A batch of pairs under a model.
pub(super) struct Scored {
    pub(super) logps: PairLogps,
    /// Log-probabilities of the chosen completions in full, whatever `ld_alpha`, `[pairs]`.
    chosen_sums: Tensor,
    /// Their sum.
    chosen_sum: Tensor,
    confidence: Option<Tensor>,
    logits: Option<LogitSums>,
    tokens: u64,
}

/// Scores pairs. Both completions share their prompt's pass through an encoder.
pub(super) fn score_pairs<P: Policy>(
    policy: &P,
    pairs: &[&Pair],
    ld_alpha: f64,
    statistics: bool,
) -> Result<Scored> {
    let prompts: Vec<&[TokenId]> = pairs.iter().map(|pair| pair.prompt.as_slice()).collect();
    let targets: Vec<&[TokenId]> =
        pairs.iter().flat_map(|pair| [pair.chosen.as_slice(), pair.rejected.as_slice()]).collect();
    let want = ScoreOptions { states: statistics, ..ScoreOptions::default() };
    let scores = policy.score_alternatives(&prompts, &targets, want)?;
    // Rows alternate between chosen and rejected.
    let sides = |rows: &Tensor| -> Result<[Tensor; 2]> {
        let rows = rows.f_view_([pairs.len() as i64, 2, -1])?;
        Ok([rows.f_select(1, 0)?, rows.f_select(1, 1)?])
    };
    let [chosen, rejected] = sides(&scores.log_probs)?;
    let masks = sides(&scores.labels.mask)?;
    let logps = PairLogps::from_tokens([&chosen, &rejected], [&masks[0], &masks[1]], ld_alpha)?;
    let chosen_sums = chosen.f_sum_dim_intlist(1i64, false, None::<Kind>)?;
    let (mut of_logits, mut certainty) = (None, None);
    if let Some(states) = &scores.states {
        let statistics = LogitStatistics::of(policy, states, &scores.labels)?;
        let sums = |rows: &Tensor| -> Result<[Tensor; 2]> {
            let [chosen, rejected] = sides(rows)?;
            let sum = |rows: Tensor| rows.f_sum_dim_intlist(1i64, false, None::<Kind>);
            Ok([sum(chosen)?, sum(rejected)?])
        };
        let [correct, _] = sums(&statistics.correct)?;
        let (logits, entropy) = (sums(&statistics.mean_logit)?, sums(&statistics.entropy)?);
        of_logits = Some(LogitSums { logits, entropy, correct });
        let rows = confidence(&scores.log_probs, &statistics.collision, &scores.labels.mask)?;
        let rows = rows.f_view_([pairs.len() as i64, 2])?;
        certainty = Some(rows.f_select(1, 0)?.f_mul(&rows.f_select(1, 1)?)?);
    }
    Ok(Scored {
        chosen_sum: chosen_sums.f_sum(None::<Kind>)?,
        chosen_sums,
        logps,
        confidence: certainty,
        logits: of_logits,
        tokens: scores.tokens,
    })
}

impl<P: Policy, S: PairSource> Algorithm for Dpo<P, S> {
    type Batch = Vec<Pair>;

    fn policy(&self) -> &dyn Policy {
        &self.policy
    }

    fn policy_mut(&mut self) -> &mut dyn Policy {
        &mut self.policy
    }

    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.collective = collective.clone();
        self.source.distribute(collective)?;
        if let Some(evaluation) = &mut self.evaluation {
            evaluation.distribute(collective)?;
        }
        Ok(())
    }

    fn batches(&mut self, step: u64, update: usize, accumulate: usize) -> Result<Option<Vec<Self::Batch>>> {
        if update > 0 {
            return Ok(None);
        }
        self.check_validation()?;
        if let Some(sync) = self.config.sync.filter(|sync| step > 0 && step.is_multiple_of(sync.every)) {
            self.follow(sync)?;
        }
        let batches = (0..accumulate).map(|_| self.source.next(step)).collect::<Result<Vec<_>>>()?;
        // A running mean is one of all ranks, so they go through as many micro-batches.
        let kept = |batch: &Vec<Pair>| !batch.is_empty() || self.running_means() > 0;
        Ok(Some(batches.into_iter().filter(kept).collect()))
    }

    fn terms(&self, batch: &Self::Batch) -> Vec<Term> {
        if batch.is_empty() {
            return vec![];
        }
        let mut terms = vec![Term { name: PREFERENCE, weight: 1.0, count: batch.len() as u64 }];
        let weight = self.config.nll_weight();
        if weight > 0.0 {
            let pairs: Vec<&Pair> = batch.iter().collect();
            terms.push(Term { name: NLL, weight, count: self.nll_count(&pairs) });
        }
        terms
    }

    fn losses(&mut self, batch: &Self::Batch) -> Result<Losses> {
        // The trainer has switched training mode on.
        self.policy.set_training(self.config.dropout);
        let pairs: Vec<&Pair> = batch.iter().collect();
        let (mut state, mut records) = (self.state, std::mem::take(&mut self.records));
        let collective = self.collective.clone();
        let of_all = |own: [f64; 3]| {
            let sums = collective.sum(&own)?;
            Ok(std::array::from_fn(|i| sums[i]))
        };
        if pairs.is_empty() {
            for _ in 0..self.running_means() {
                self.state.add(of_all([0.0; 3])?);
            }
            return Ok(Losses { sums: vec![], tokens: 0 });
        }
        let forward = self.forward(&pairs, &mut state, &mut records, &of_all);
        self.records = records;
        let forward = forward?;
        self.state = state;
        let sums = std::iter::once(forward.preference).chain(forward.nll).collect();
        Ok(Losses { sums, tokens: forward.tokens })
    }

    fn metrics(&mut self) -> Result<Metrics> {
        self.records.take(&self.collective)
    }

    fn evaluate(&mut self, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        self.check_validation()?;
        let total = self.held_out.len();
        let (HeldOut { preference, mut nll, tokens }, messages) = self.validate(observer)?;
        let mut metrics: Metrics = vec![];
        let mut loss = preference / total.max(1) as f64;
        if tokens > 0 {
            nll /= tokens as f64;
            metrics.extend([("eval/preference_loss".into(), loss), ("eval/nll_loss".into(), nll)]);
            loss += self.config.nll_weight() * nll;
        }
        if total > 0 {
            metrics.insert(0, ("eval/loss".into(), loss));
        }
        let pairwise = MetricsMessage::metrics(messages).into_iter();
        metrics.extend(pairwise.map(|(name, value)| (format!("eval/{name}"), value)));
        let mut score = -loss;
        if let Some(evaluation) = &mut self.evaluation {
            let found = evaluation.evaluate(&self.policy, step, observer)?;
            metrics.extend(found.metrics);
            score = found.score;
        }
        Ok(Evaluation { metrics, score })
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!(Position { source: self.source.state(), dpo: self.state })
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        let Position { source, dpo } = serde_json::from_value(state)
            .map_err(|e| Error::config("checkpoint", format!("its position cannot be read: {e}")))?;
        self.state = dpo;
        self.source.load_state(source)
    }

    fn save_extras(&self, folder: &Path) -> Result<()> {
        if let (Some(_), Reference::Model(model)) = (self.config.sync, &self.reference) {
            write_tensors(&folder.join(REFERENCE_WEIGHTS), model.parameters().iter())?;
        }
        Ok(self.tokenizer.save(folder)?)
    }

    fn load_extras(&mut self, folder: &Path) -> Result<()> {
        let (Some(_), Reference::Model(model)) = (self.config.sync, &self.reference) else { return Ok(()) };
        let path = folder.join(REFERENCE_WEIGHTS);
        let tensors = read_tensors(&path, Device::Cpu)?;
        let wrong = |name: &str| Error::Checkpoint {
            path: path.clone(),
            reason: format!("`{name}` is missing or has another shape; it belongs to another model"),
        };
        for (name, ours) in model.parameters().iter() {
            let saved =
                tensors.get(name).filter(|saved| saved.size() == ours.size()).ok_or_else(|| wrong(name))?;
            tch::no_grad(|| ours.shallow_clone().f_copy_(saved))?;
        }
        Ok(())
    }
}

/// What survives a restart besides the parameters.
#[derive(Serialize, Deserialize)]
struct Position {
    source: serde_json::Value,
    dpo: DpoState,
}
