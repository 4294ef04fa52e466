//! Log-probabilities of prompts.

use ruminate_models::{Alternative, Example, Interrupt, Model, Policy, Result, TokenId};
use tch::{Kind, Tensor};

use crate::engine::{Event, Job};
use crate::rows::{Token, TokenTexts};

/// Tokens that are read at a time, padding included.
const TOKENS_AT_ONCE: usize = 8192;
/// Logits that are held at a time.
const LOGITS_AT_ONCE: i64 = 10 << 20;

/// The log-probability of a token, and the most probable tokens in its place.
#[derive(Clone)]
struct Score {
    log_prob: f32,
    top: Vec<Alternative>,
}

/// Sends the tokens of each prompt of some jobs with their log-probabilities and alternatives. Prompts of about the same length share a
/// pass, whoever asks for them.
pub(crate) fn score_prompts(model: &Model, jobs: &[Job]) -> Result<()> {
    let Some(tokenizer) = model.tokenizer() else { return Ok(()) };
    let scored = jobs.iter().filter(|job| job.settings.score_prompts);
    let mut all: Vec<(&Job, usize)> =
        scored.flat_map(|job| (0..job.prompts.len()).map(move |prompt| (job, prompt))).collect();
    all.sort_by_key(|&(job, prompt)| job.prompts[prompt].len());
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        let fits = |&end: &usize| {
            let (job, longest) = rest[end - 1];
            end == 1 || end * job.prompts[longest].len() <= TOKENS_AT_ONCE
        };
        let end = (1..=rest.len()).take_while(fits).last().unwrap_or(1);
        let (batch, later) = rest.split_at(end);
        rest = later;
        let batch: Vec<(&Job, usize)> = batch.iter().copied().filter(|(job, _)| job.is_wanted()).collect();
        let prompts: Vec<&[TokenId]> =
            batch.iter().map(|&(job, prompt)| job.prompts[prompt].as_slice()).collect();
        let count = batch.iter().filter_map(|(job, _)| job.settings.logprobs).max().unwrap_or(0);
        for (&(job, prompt), scores) in batch.iter().zip(tch::no_grad(|| score(model, &prompts, count))?) {
            let count = job.settings.logprobs.unwrap_or(0);
            let mut texts = TokenTexts::default();
            let mut tokens: Vec<Token> = vec![];
            let (first, others) = job.prompts[prompt].split_at(1);
            tokens.push(texts.next(tokenizer, first[0], None, &[])?);
            for (&id, Score { log_prob, top }) in others.iter().zip(scores) {
                let top = &top[..count.min(top.len())];
                tokens.push(texts.next(tokenizer, id, Some(log_prob), top)?);
            }
            let _ = job.events.send(Event::Prompt { prompt, tokens });
        }
    }
    Ok(())
}

/// The scores of each prompt's tokens but the first, with `count` alternatives.
fn score(model: &Model, prompts: &[&[TokenId]], count: usize) -> Result<Vec<Vec<Score>>> {
    let mut all = vec![vec![]; prompts.len()];
    let scored: Vec<usize> = (0..prompts.len()).filter(|&i| prompts[i].len() > 1).collect();
    let example = |&i: &usize| Example { prompt: prompts[i][..1].to_vec(), target: prompts[i][1..].to_vec() };
    let examples: Vec<Example> = scored.iter().map(example).collect();
    if examples.is_empty() {
        return Ok(all);
    }
    let Some(states) = model.states(&examples)? else { return Ok(all) };
    for (row, (&i, example)) in scored.iter().zip(&examples).enumerate() {
        let states = states.f_get(row as i64)?.f_narrow(0, 0, example.target.len() as i64)?;
        let targets = Tensor::f_from_slice(&example.target)?.f_to_device(states.device())?.f_unsqueeze(1)?;
        let vocab = model.output_projection().map_or(1, |(weight, _)| weight.size()[0]).max(1);
        let at_once = (LOGITS_AT_ONCE / vocab).max(1);
        for (states, targets) in states.f_split(at_once, 0)?.iter().zip(targets.f_split(at_once, 0)?) {
            Interrupt::check()?;
            let log_probs = model.logits(states)?.f_log_softmax(-1, Kind::Float)?;
            let chosen: Vec<f32> = Vec::try_from(log_probs.f_gather(1, &targets, false)?.f_view_([-1])?)?;
            let top = match (count as i64).min(vocab) {
                0 => vec![vec![]; chosen.len()],
                count => most_probable(&log_probs, count)?,
            };
            all[i].extend(chosen.into_iter().zip(top).map(|(log_prob, top)| Score { log_prob, top }));
        }
    }
    Ok(all)
}

/// The `count` most probable tokens of every row, best first.
fn most_probable(log_probs: &Tensor, count: i64) -> Result<Vec<Vec<Alternative>>> {
    let (values, ids) = log_probs.f_topk(count, -1, true, true)?;
    let (values, ids): (Vec<Vec<f32>>, Vec<Vec<TokenId>>) = (Vec::try_from(values)?, Vec::try_from(ids)?);
    let row = |(ids, values): (Vec<TokenId>, Vec<f32>)| {
        ids.into_iter().zip(values).map(|(id, log_prob)| Alternative { id, log_prob }).collect()
    };
    Ok(ids.into_iter().zip(values).map(row).collect())
}
