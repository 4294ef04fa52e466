//! Rounds: new samples are written and judged, and the pool is ranked anew.

use std::collections::BTreeMap;

use ruminate_datasets::Order;
use ruminate_models::{Generate, Policy, TokenId, Tokenizer, derive_seed};
use ruminate_rewards::RewardError;
use serde::{Deserialize, Serialize};

use super::evaluation::{scores, total};
use super::{Buckets, Condition, ControlTokens, Judged, PoolSample, Quark, QuarkConfig, Scorer, Source};
use crate::ppo::{Prompt, Response, respond as respond_to};
use crate::{Collective, Error, Phases, Result};

/// A response that somebody else wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Expert<Q> {
    /// What it answers.
    pub prompt: Prompt<Q>,
    /// The response, end token included.
    pub ids: Vec<TokenId>,
    /// The response as text.
    pub text: String,
}

impl<Q> Expert<Q> {
    /// A response given as text.
    ///
    /// # Errors
    /// When the tokenizer fails, or names no end token.
    pub fn new(prompt: Prompt<Q>, text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        Ok(Self { prompt, ids: tokenizer.encode_target(text)?, text: text.into() })
    }
}

/// What a sample of the pool is trained with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// What the model is given.
    pub prompt: Vec<TokenId>,
    /// What it should answer, end token included.
    pub response: Vec<TokenId>,
}

/// What decides whether a response comes into the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// Whether there is an answer in it.
    pub valid: bool,
    /// Whether the answer is right.
    pub correct: bool,
}

impl Admission {
    /// Experts are always right.
    pub const EXPERT: Self = Self { valid: true, correct: true };
}

/// Whether a response comes into the pool.
#[must_use]
pub fn admit(response: Admission, only_correct: bool) -> bool {
    response.valid && (response.correct || !only_correct)
}

/// Writes a greedy response to every prompt, as [`Quark::respond`] does, with a model that was trained before. `tokens` are the
/// control tokens of its tokenizer, and what to ask for; a model that has none writes without.
///
/// # Errors
/// When the model fails.
pub fn respond<P: Policy + Generate, Q>(
    config: &QuarkConfig,
    model: &P,
    tokenizer: &Tokenizer,
    tokens: Option<(&ControlTokens, Condition)>,
    prompts: &[&Prompt<Q>],
    step: u64,
    progress: impl FnMut(u64) -> Result<()>,
) -> Result<Vec<Response>> {
    let collective = &Collective::default();
    let writer = |known| Writer { config, model, tokenizer, known, collective };
    match tokens {
        Some((tokens, condition)) => {
            writer(tokens.id_range().start).respond(tokens, prompts, condition, step, progress)
        }
        None => {
            let known = i64::try_from(tokenizer.vocab_size()).unwrap_or(i64::MAX);
            writer(known).write(prompts, &vec![vec![]; prompts.len()], true, 0, progress)
        }
    }
}

/// A model that writes.
struct Writer<'a, P> {
    config: &'a QuarkConfig,
    model: &'a P,
    tokenizer: &'a Tokenizer,
    /// Tokens that may be written: control tokens come last in the vocabulary, and what lies behind them has no token.
    known: TokenId,
    /// They divide the prompts.
    collective: &'a Collective,
}

impl<P: Policy + Generate> Writer<'_, P> {
    fn respond<Q>(
        &self,
        tokens: &ControlTokens,
        prompts: &[&Prompt<Q>],
        condition: Condition,
        step: u64,
        progress: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<Response>> {
        let active = self.config.control.stages.sampling(step, tokens.code_len());
        let code = |i: usize| {
            let code = tokens.condition(condition, derive_seed(self.config.seed, &[i as u64]));
            code[active.clone()].to_vec()
        };
        let codes: Vec<Vec<TokenId>> = (0..prompts.len()).map(code).collect();
        self.write(prompts, &codes, true, 0, progress)
    }

    /// Writes a response to every prompt behind its code.
    fn write<Q>(
        &self,
        prompts: &[&Prompt<Q>],
        codes: &[Vec<TokenId>],
        greedy: bool,
        seed: u64,
        mut progress: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<Response>> {
        let Self { config, model, tokenizer, known, collective } = *self;
        let vocab = model.output_projection().map_or(0, |(weight, _)| weight.size()[0]);
        let forbidden: Vec<TokenId> = model.filler().into_iter().chain(known..vocab).collect();
        let batch_size = if greedy { config.eval_batch_size } else { config.sampling.batch_size };
        collective.map(prompts.len(), |mine| {
            let mut groups: BTreeMap<&[TokenId], Vec<usize>> = BTreeMap::new();
            for &i in mine {
                groups.entry(&codes[i]).or_default().push(i);
            }
            // A part of the prompts stands for all.
            let (total, part) = (prompts.len() as u64, mine.len() as u64);
            let mut responses: Vec<(usize, Response)> = vec![];
            for (code, rows) in groups {
                let generation = config.generation(code, forbidden.clone(), greedy)?;
                let prompts: Vec<&Prompt<Q>> = rows.iter().map(|&i| prompts[i]).collect();
                let before = responses.len() as u64;
                let progress = |done| progress((before + done) * total / part);
                let seed = |row: usize| derive_seed(seed, &[rows[row] as u64]);
                let written = respond_to(
                    model,
                    (tokenizer, config.clean_up),
                    &prompts,
                    &generation,
                    batch_size,
                    seed,
                    progress,
                )?;
                responses.extend(rows.into_iter().zip(written));
            }
            responses.sort_by_key(|(i, _)| *i);
            Ok(responses.into_iter().map(|(_, response)| response).collect())
        })
    }
}

impl<P, Q, S> Quark<P, Q, S>
where
    P: Policy + Generate,
    S: Scorer<P, Q>,
{
    /// Writes a greedy response to every prompt, given the tokens that are in use before step `step`. The response to
    /// prompt `i` has, if it is random, the code of `derive_seed(seed, [i])`.
    ///
    /// # Errors
    /// When the model fails.
    pub fn respond(
        &self,
        prompts: &[&Prompt<Q>],
        condition: Condition,
        step: u64,
        progress: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<Response>> {
        self.writer(&self.policy).respond(&self.tokens, prompts, condition, step, progress)
    }

    /// Judges responses to prompts. Several processes do so together.
    ///
    /// # Errors
    /// When a reward fails.
    pub fn judge(&self, prompts: &[&Prompt<Q>], responses: &[Response]) -> Result<Vec<Judged>> {
        let judged = self.collective.map(responses.len(), |mine| {
            let samples: Vec<_> = mine.iter().map(|&i| responses[i].sample(prompts[i])).collect();
            let judged = tch::no_grad(|| self.scorer.judge(&self.policy, &samples))?;
            if judged.len() != samples.len() {
                return Err(RewardError::Count { samples: samples.len(), rewards: judged.len() }.into());
            }
            Ok(judged)
        })?;
        let rewards = self.config.control.rewards.len();
        if let Some(i) = judged.iter().position(|judged| judged.scores.len() != rewards) {
            let scores = judged[i].scores.len();
            let reason = format!("sample {i} has {scores} scores, but there are {rewards} rewards");
            return Err(Error::Pool { reason });
        }
        if self.collective.is_main_process() {
            let samples: Vec<_> = responses.iter().zip(prompts).map(|(r, p)| r.sample(p)).collect();
            self.scorer.record(&samples, &judged);
        }
        Ok(judged)
    }

    /// Greedy responses of the reference, without control tokens.
    ///
    /// # Errors
    /// When the model fails.
    pub fn respond_as_reference(
        &self,
        prompts: &[&Prompt<Q>],
        progress: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<Response>> {
        self.writer(&self.reference).write(prompts, &vec![vec![]; prompts.len()], true, 0, progress)
    }

    fn writer<'a>(&'a self, model: &'a P) -> Writer<'a, P> {
        let (config, tokenizer, collective) = (&self.config, &self.tokenizer, &self.collective);
        Writer { config, model, tokenizer, known: self.tokens.id_range().start, collective }
    }

    /// New samples, and a new ranking of all.
    pub(super) fn round(&mut self, step: u64) -> Result<()> {
        let mut phases = Phases::default();
        let mut new = vec![];
        if let Some(source) = self.config.samples_from(step) {
            for pass in 0..self.config.sampling.passes {
                new.extend(self.sampled(step, pass, source, &mut phases)?);
            }
        }
        let written = new.len();
        new.retain(|sample| sample.1);
        self.note("pool/valid", new.len() as f64, written);
        let mut new: Vec<PoolSample<Tokens>> = new.into_iter().map(|(sample, _)| sample).collect();
        new.extend(self.experts(&mut phases)?);
        let expert = self.data.expert.len();
        if new.is_empty() && self.pool.is_empty() {
            let reason = format!(
                "there is nothing to train on at step {step}: {written} responses were written, none of which may be \
                 trained on, and there are {expert} rows of expert data; look at what counts as valid, \
                 `sample_at_start`, `start_sampling_at` and `sampling.drop_last`"
            );
            return Err(Error::Pool { reason });
        }
        phases.time("ranking", || self.pool.add(new, step))?;
        self.round = step;
        self.loader = Some(self.loader()?);
        self.phases.merge(phases);
        Ok(())
    }

    /// The responses of a pass, and whether each comes into the pool.
    fn sampled(
        &mut self,
        step: u64,
        pass: u64,
        source: Source,
        phases: &mut Phases,
    ) -> Result<Vec<(PoolSample<Tokens>, bool)>> {
        let seed = derive_seed(self.config.seed, &[step, pass]);
        let mut order = Order::shuffled(self.data.train.len(), seed).indices(0);
        if self.config.sampling.drop_last {
            order.truncate(order.len() - order.len() % self.config.sampling.batch_size);
        }
        let prompts: Vec<&Prompt<Q>> = order.iter().map(|&i| &self.data.train[i]).collect();
        let code = match source {
            Source::Reference => vec![],
            Source::Policy => {
                let active = self.config.control.stages.sampling(step, self.tokens.code_len());
                self.tokens.condition(Condition::Best, 0)[active].to_vec()
            }
        };
        let model = if source == Source::Reference { &self.reference } else { &self.policy };
        let codes = vec![code; prompts.len()];
        let responses =
            phases.time("rollout", || self.writer(model).write(&prompts, &codes, false, seed, |_| Ok(())))?;
        let judged = phases.time("reward", || self.judge(&prompts, &responses))?;
        let ends = model.end_token_ids();
        // Where writing was cut off, the tokenizer says which of several it is.
        let end = self.tokenizer.end_token().map(|(_, id)| id).filter(|id| ends.contains(id));
        let end = end.or(ends.first().copied());
        let mut samples = vec![];
        for ((prompt, response), judged) in prompts.iter().zip(responses).zip(&judged) {
            let tokens = if self.config.retokenize {
                self.tokenizer.encode_target(&response.text)?
            } else {
                ended(response.ids, ends, end)
            };
            let Judged { scores, valid, correct } = judged.clone();
            let sample = pool_sample(prompt, response.text, tokens, scores, correct);
            samples.push((sample, admit(Admission { valid, correct }, self.config.only_correct)));
        }
        self.note_judged(&judged);
        Ok(samples)
    }

    /// The expert rows of a round. They count as right.
    fn experts(&mut self, phases: &mut Phases) -> Result<Vec<PoolSample<Tokens>>> {
        let config = self.config.expert;
        let order = &self.expert_order[self.expert_taken..];
        let count = if config.all_at_first { None } else { config.per_round };
        let rows = order[..count.unwrap_or(order.len()).min(order.len())].to_vec();
        if rows.is_empty() {
            return Ok(vec![]);
        }
        let prompts: Vec<&Prompt<Q>> = rows.iter().map(|&i| &self.data.expert[i].prompt).collect();
        let response = |&i: &usize| {
            let Expert { ids, text, .. } = &self.data.expert[i];
            Response { ids: ids.clone(), text: text.clone() }
        };
        let responses: Vec<Response> = rows.iter().map(response).collect();
        let judged = phases.time("reward", || self.judge(&prompts, &responses))?;
        let right = |(reward, score): (&super::RewardSpec, &Option<f64>)| match reward.buckets {
            Buckets::Correctness => Some(1.0),
            _ => *score,
        };
        let samples = prompts.iter().zip(responses).zip(judged).map(|((prompt, response), judged)| {
            let scores = self.config.control.rewards.iter().zip(&judged.scores).map(right).collect();
            pool_sample(prompt, response.text, response.ids, scores, true)
        });
        let samples = samples.collect();
        self.expert_taken += rows.len();
        Ok(samples)
    }

    /// Means of the scores of newly written responses.
    fn note_judged(&mut self, judged: &[Judged]) {
        let names: Vec<String> =
            self.config.control.rewards.iter().map(|reward| reward.name.clone()).collect();
        for (i, name) in names.iter().enumerate() {
            let (sum, count) = total(judged, i);
            self.note(&format!("reward/{name}"), sum, count);
            self.scores.entry(format!("train/reward/{name}")).or_default().extend(scores(judged, i));
        }
    }
}

fn pool_sample<Q>(
    prompt: &Prompt<Q>,
    text: String,
    response: Vec<TokenId>,
    scores: Vec<Option<f64>>,
    correct: bool,
) -> PoolSample<Tokens> {
    let item = Tokens { prompt: prompt.ids.clone(), response };
    PoolSample { prompt: prompt.text.clone(), response: text, scores, correct, item }
}

/// With one of the end tokens at its end; a response that was cut off gets `end`.
fn ended(mut ids: Vec<TokenId>, ends: &[TokenId], end: Option<TokenId>) -> Vec<TokenId> {
    if !ids.last().is_some_and(|last| ends.contains(last)) {
        ids.extend(end);
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::ended;

    #[test]
    fn a_response_ends_with_any_end_token() {
        assert_eq!(ended(vec![5, 8], &[7, 8], Some(7)), [5, 8], "the second of them");
        assert_eq!(ended(vec![5, 7], &[7, 8], Some(8)), [5, 7]);
        assert_eq!(ended(vec![5], &[7, 8], Some(8)), [5, 8], "the one that the tokenizer names");
        assert_eq!(ended(vec![5], &[], None), [5]);
    }
}
