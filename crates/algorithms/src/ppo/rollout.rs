//! Responses, and what the policy, the value and the reference said of them when they were drawn.

use ruminate_models::{
    ActorCritic, Example, Generate, GenerationConfig, IGNORED, Policy, ScoreOptions, TokenId, TokenScores,
    Tokenizer, by_length,
};
use ruminate_rewards::Sample;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Estimates, Grid, Mask};
use crate::{Error, Result};

/// Something to respond to.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt<Q> {
    /// What the policy is given.
    pub ids: Vec<TokenId>,
    /// What records show of it.
    pub text: String,
    /// The task it belongs to, for statistics; may be empty.
    pub task: String,
    /// What the reward needs to know of it.
    pub item: Q,
}

/// A response to a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The tokens that were drawn, end token included.
    pub ids: Vec<TokenId>,
    /// The same as text.
    pub text: String,
}

impl Response {
    pub(crate) fn sample<'a, Q>(&'a self, prompt: &'a Prompt<Q>) -> Sample<'a, Q> {
        Sample { task: &prompt.task, item: &prompt.item, response: &self.ids, text: &self.text }
    }
}

/// The text of written tokens without special ones: as it stands, or without the blanks before punctuation and at both ends.
pub(crate) fn text(tokenizer: &Tokenizer, ids: &[TokenId], clean_up: bool) -> Result<String> {
    Ok(if clean_up {
        tokenizer.decode_clean(ids)?.trim().to_string()
    } else {
        tokenizer.decode(ids, true)?
    })
}

/// Writes one response to every prompt. The response to prompt `i` depends on the prompt, the policy and `seed(i)` alone.
pub(crate) fn respond<P: Generate, Q>(
    policy: &P,
    (tokenizer, clean_up): (&Tokenizer, bool),
    prompts: &[&Prompt<Q>],
    generation: &GenerationConfig,
    batch_size: usize,
    seed: impl Fn(usize) -> u64,
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Result<Vec<Response>> {
    let ids: Vec<&[TokenId]> = prompts.iter().map(|prompt| prompt.ids.as_slice()).collect();
    let mut done = 0;
    by_length(&ids, batch_size, |batch| {
        let rows: Vec<Vec<TokenId>> = batch.iter().map(|&i| ids[i].to_vec()).collect();
        let seeds: Vec<u64> = batch.iter().map(|&i| seed(i)).collect();
        let written = policy.generate(&rows, generation, &seeds)?;
        done += batch.len() as u64;
        progress(done)?;
        let response =
            |ids: Vec<TokenId>| Ok::<_, Error>(Response { text: text(tokenizer, &ids, clean_up)?, ids });
        written.into_iter().flatten().map(|generated| response(generated.ids)).collect()
    })
}

/// What training on a response needs. Padding that was drawn as a token is no part of the response.
pub(super) fn example<Q>(prompt: &Prompt<Q>, response: &Response, pad: Option<TokenId>) -> Example {
    let target = response.ids.iter().map(|&id| if Some(id) == pad { IGNORED } else { id }).collect();
    Example { prompt: prompt.ids.clone(), target }
}

/// Scores of responses, padded to the longest, 0 at padding.
#[derive(Debug, Default)]
pub(super) struct Scored {
    pub(super) log_probs: Grid,
    pub(super) values: Grid,
    pub(super) entropy: Grid,
    /// The pass over all responses, with its graph, where the first update is to learn from it.
    pub(super) pass: Option<Pass>,
}

/// What the policy says of some responses.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) scores: TokenScores,
    pub(super) values: Tensor,
}

impl Pass {
    pub(super) fn new<P: Policy>(
        model: &ActorCritic<P>,
        examples: &[Example],
        entropy: bool,
    ) -> Result<Self> {
        let (scores, values) =
            model.score_with_values(examples, ScoreOptions { entropy, ..ScoreOptions::default() })?;
        Ok(Self { scores, values })
    }

    /// Log-probabilities, values and entropies.
    fn tensors(&self) -> Result<[Tensor; 3]> {
        let TokenScores { log_probs, entropy, .. } = &self.scores;
        let entropy = match entropy {
            Some(entropy) => entropy.f_detach()?,
            None => log_probs.f_zeros_like()?,
        };
        Ok([log_probs.f_detach()?, self.values.f_detach()?, entropy])
    }
}

impl Scored {
    /// Asks the policy, with values and entropies, some rows at a time, or all at once where the first update `learns` from it.
    pub(super) fn of_actor<P: Policy>(
        model: &ActorCritic<P>,
        examples: &[Example],
        batch_size: usize,
        learns: bool,
    ) -> Result<Self> {
        let mut pass = None;
        let [log_probs, values, entropy] = if learns {
            let all = pass.insert(Pass::new(model, examples, true)?).tensors()?;
            let mut grids = grids(examples);
            store(&mut grids, &(0..examples.len()).collect::<Vec<_>>(), all)?;
            grids
        } else {
            scored(examples, batch_size, |rows| Pass::new(model, rows, true)?.tensors())?
        };
        Ok(Self { log_probs, values, entropy, pass })
    }

    /// Asks a policy for log-probabilities only.
    pub(super) fn log_probs<P: Policy>(policy: &P, examples: &[Example], batch_size: usize) -> Result<Grid> {
        let [log_probs] = scored(examples, batch_size, |rows| {
            Ok([policy.score(rows, ScoreOptions::default())?.log_probs])
        })?;
        Ok(log_probs)
    }
}

/// Runs `work` on batches of similar prompts, without gradients, and brings its `[rows, time]` tensors to the host.
fn scored<const N: usize>(
    examples: &[Example],
    batch_size: usize,
    mut work: impl FnMut(&[Example]) -> Result<[Tensor; N]>,
) -> Result<[Grid; N]> {
    let mut grids = grids(examples);
    let prompts: Vec<&[TokenId]> = examples.iter().map(|e| e.prompt.as_slice()).collect();
    by_length(&prompts, batch_size, |batch| {
        let rows: Vec<Example> = batch.iter().map(|&i| examples[i].clone()).collect();
        store(&mut grids, batch, tch::no_grad(|| work(&rows))?).map(|()| vec![(); batch.len()])
    })?;
    Ok(grids)
}

/// Zeros for all tokens, as wide as the widest row.
fn grids<const N: usize>(examples: &[Example]) -> [Grid; N] {
    std::array::from_fn(|_| Grid::zeros((examples.len(), width(examples))))
}

/// Copies the rows of `[rows, time]` tensors into these rows of the grids.
fn store<const N: usize>(grids: &mut [Grid; N], rows: &[usize], tensors: [Tensor; N]) -> Result<()> {
    for (grid, tensor) in grids.iter_mut().zip(tensors) {
        let values: Vec<Vec<f64>> = Vec::try_from(tensor.f_to_kind(Kind::Double)?)?;
        for (&row, values) in rows.iter().zip(values) {
            grid.row_mut(row).iter_mut().zip(values).for_each(|(to, from)| *to = from);
        }
    }
    Ok(())
}

fn width(examples: &[Example]) -> usize {
    examples.iter().map(|e| e.target.len()).max().unwrap_or(0)
}

/// Which tokens of the responses are real.
pub(super) fn mask(examples: &[Example]) -> Mask {
    let real = |(row, t): (usize, usize)| examples[row].target.get(t).is_some_and(|&id| id != IGNORED);
    Mask::from_shape_fn((examples.len(), width(examples)), real)
}

/// Drawn responses and what they are worth: what the passes of one step learn from.
#[derive(Debug)]
pub(super) struct Rollout {
    pub(super) examples: Vec<Example>,
    /// The pass that scored all of them, if the first update is to learn from it.
    pub(super) pass: Option<Pass>,
    old_log_probs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
}

/// The part of a [`Rollout`] that belongs to some rows, `[rows, time]` `f32` on the policy's device.
#[derive(Debug)]
pub(super) struct Targets {
    pub(super) old_log_probs: Tensor,
    pub(super) old_values: Tensor,
    pub(super) advantages: Tensor,
    pub(super) returns: Tensor,
}

impl Rollout {
    pub(super) fn new(
        examples: Vec<Example>,
        scored: &mut Scored,
        estimates: &Estimates,
        device: Device,
    ) -> Result<Self> {
        Ok(Self {
            examples,
            pass: scored.pass.take(),
            old_log_probs: tensor(&scored.log_probs, device)?,
            old_values: tensor(&scored.values, device)?,
            advantages: tensor(&estimates.whitened_advantages, device)?,
            returns: tensor(&estimates.returns, device)?,
        })
    }

    /// Of rows whose longest response has `time` tokens.
    pub(super) fn targets(&self, rows: &[usize], time: i64) -> Result<Targets> {
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let rows = Tensor::f_from_slice(&rows)?.f_to_device(self.returns.device())?;
        let take = |table: &Tensor| table.f_index_select(0, &rows)?.f_narrow(1, 0, time);
        Ok(Targets {
            old_log_probs: take(&self.old_log_probs)?,
            old_values: take(&self.old_values)?,
            advantages: take(&self.advantages)?,
            returns: take(&self.returns)?,
        })
    }
}

fn tensor(grid: &Grid, device: Device) -> Result<Tensor> {
    Ok(Tensor::try_from(grid.mapv(|x| x as f32))?.f_to_device(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_before_punctuation_go_only_where_the_paper_removes_them() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pairs/byte_level");
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let written = " The word 'swastika' , he said .";
        let ids = tokenizer.encode_plain(written).unwrap();
        assert_eq!(text(&tokenizer, &ids, false).unwrap(), written);
        assert_eq!(text(&tokenizer, &ids, true).unwrap(), "The word'swastika', he said.");
    }
}
