//! Listeners: who is told tokens while they are written, and may end sequences.

use std::ops::ControlFlow;

use ruminate_torch::Choice;
use tch::{Kind, Tensor};

use super::stop_strings::StopStrings;
use super::{Finish, GenerationConfig, Strategy};
use crate::{Error, Result, TokenId};

/// The name of one sequence of a call: its prompt, and which of the prompt's samples it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId {
    /// Index of the prompt in the call.
    pub prompt: usize,
    /// Index of the sample, below `samples_per_prompt`.
    pub sample: usize,
}

/// A token that could have been chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alternative {
    /// The token.
    pub id: TokenId,
    /// Its log-probability under the raw model: full softmax, temperature 1.
    pub log_prob: f32,
}

/// A token that was just chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WrittenToken<'a> {
    /// The sequence that it belongs to.
    pub sequence: SequenceId,
    /// The token.
    pub id: TokenId,
    /// Its log-probability under the raw model: full softmax, temperature 1.
    pub log_prob: f32,
    /// The most probable tokens at this position, best first, as many as [`Listener::alternatives`] asks for.
    pub alternatives: &'a [Alternative],
}

/// Follows sequences while they are written, and may end single ones.
///
/// Each step waits for the device, so an accelerator is somewhat slower with a listener than without.
pub trait Listener {
    /// Number of [`alternatives`](WrittenToken::alternatives) that each token is told with.
    fn alternatives(&self) -> usize {
        0
    }

    /// Takes the next token of a sequence. `Break` ends the sequence behind it, with [`Finish::Cancelled`] unless it ends there anyway.
    fn token(&mut self, token: WrittenToken<'_>) -> ControlFlow<()>;

    /// Is told once for each sequence that it has ended. The result of the call holds it, too, but comes when all have ended.
    fn ended(&mut self, sequence: SequenceId, finish: Finish) {
        let _ = (sequence, finish);
    }
}

/// Refuses settings whose sequences are not written from front to back.
pub(super) fn check_listening(config: &GenerationConfig) -> Result<()> {
    match config.strategy {
        Strategy::Beam(_) => {
            let reason = "beam search chooses its sequences at the end, so there is nothing to listen to; \
                          use greedy or sampling";
            Err(Error::invalid("generation", reason))
        }
        _ => Ok(()),
    }
}

/// A listener to some of the prompts and samples of a call.
pub(super) struct Part<'a> {
    pub(super) listener: &'a mut dyn Listener,
    /// The index of each prompt in the whole call.
    pub(super) prompts: Vec<usize>,
    pub(super) first_sample: usize,
}

impl Part<'_> {
    fn whole(&self, SequenceId { prompt, sample }: SequenceId) -> SequenceId {
        SequenceId { prompt: self.prompts[prompt], sample: self.first_sample + sample }
    }
}

impl Listener for Part<'_> {
    fn alternatives(&self) -> usize {
        self.listener.alternatives()
    }

    fn token(&mut self, token: WrittenToken<'_>) -> ControlFlow<()> {
        let sequence = self.whole(token.sequence);
        self.listener.token(WrittenToken { sequence, ..token })
    }

    fn ended(&mut self, sequence: SequenceId, finish: Finish) {
        let sequence = self.whole(sequence);
        self.listener.ended(sequence, finish);
    }
}

/// A listener with the rows that it follows.
pub(super) struct Heard<'a> {
    listener: &'a mut dyn Listener,
    rows: Vec<Row>,
}

#[derive(Clone, Copy)]
struct Row {
    sequence: SequenceId,
    ended: bool,
    /// Length at which the listener has ended it.
    cancelled: Option<usize>,
}

/// A step's choice, on the device.
pub(super) struct Chosen<'a> {
    /// Logits that the model gave `[rows, vocab]`.
    pub(super) logits: &'a Tensor,
    pub(super) choice: &'a Choice,
    /// Rows that have ended `[rows, 1]`.
    pub(super) finished: &'a Tensor,
    pub(super) stop_strings: Option<&'a StopStrings<'a>>,
}

impl<'a> Heard<'a> {
    pub(super) fn new(listener: &'a mut dyn Listener, prompts: usize, samples: usize) -> Self {
        let sequences =
            (0..prompts).flat_map(|prompt| (0..samples).map(move |sample| SequenceId { prompt, sample }));
        let rows = sequences.map(|sequence| Row { sequence, ended: false, cancelled: None }).collect();
        Self { listener, rows }
    }

    /// Tells the tokens of a step to the listener. Returns the rows that it ends, as `finished` with them, where it ends some.
    pub(super) fn tell(
        &mut self,
        step: usize,
        limits: impl Fn(usize) -> usize,
        chosen: &Chosen<'_>,
    ) -> Result<Option<Tensor>> {
        let Chosen { logits, choice, finished, stop_strings } = chosen;
        let tokens: Vec<TokenId> = Vec::try_from(choice.tokens.f_view_([-1])?)?;
        let log_probs: Vec<f32> = Vec::try_from(choice.log_probs.f_view_([-1])?)?;
        let mut done: Vec<bool> = Vec::try_from(finished.f_view_([-1])?)?;
        let alternatives = most_probable(logits, self.listener.alternatives())?;
        let mut cancelled = false;
        for (i, row) in self.rows.iter_mut().enumerate().filter(|(_, row)| !row.ended) {
            let mut best: Vec<Alternative> = alternatives.get(i).cloned().unwrap_or_default();
            // One token has one number.
            best.iter_mut().filter(|one| one.id == tokens[i]).for_each(|one| one.log_prob = log_probs[i]);
            let token = WrittenToken {
                sequence: row.sequence,
                id: tokens[i],
                log_prob: log_probs[i],
                alternatives: &best,
            };
            let flow = self.listener.token(token);
            let finish = match stop_strings.and_then(|strings| strings.length(i)) {
                Some(_) => Finish::StopString,
                None if done[i] => Finish::Stop,
                None if step + 1 >= limits(row.sequence.prompt) => Finish::Length,
                None if flow.is_break() => {
                    row.cancelled = Some(step + 1);
                    done[i] = true;
                    cancelled = true;
                    Finish::Cancelled
                }
                None => continue,
            };
            row.ended = true;
            self.listener.ended(row.sequence, finish);
        }
        if !cancelled {
            return Ok(None);
        }
        let done = Tensor::f_from_slice(&done)?.f_unsqueeze(1)?;
        Ok(Some(done.f_to_device(finished.device())?))
    }

    /// Keeps some rows.
    pub(super) fn keep(&mut self, rows: &[i64]) {
        self.rows = rows.iter().map(|&row| self.rows[row as usize]).collect();
    }

    /// Tokens of a row up to the one behind which the listener ended it.
    pub(super) fn length(&self, row: usize) -> Option<usize> {
        self.rows[row].cancelled
    }
}

/// The `count` most probable tokens of every row, best first; nothing where none are asked for.
fn most_probable(logits: &Tensor, count: usize) -> Result<Vec<Vec<Alternative>>> {
    let count = (count as i64).min(logits.size().last().copied().unwrap_or(0));
    if count == 0 {
        return Ok(vec![]);
    }
    let (largest, ids) = logits.f_topk(count, -1, true, true)?;
    let log_probs = largest.f_sub(&logits.f_logsumexp(-1i64, true)?)?.f_to_kind(Kind::Float)?;
    let (ids, log_probs): (Vec<Vec<TokenId>>, Vec<Vec<f32>>) =
        (Vec::try_from(ids)?, Vec::try_from(log_probs)?);
    let row = |(ids, log_probs): (Vec<TokenId>, Vec<f32>)| {
        ids.into_iter().zip(log_probs).map(|(id, log_prob)| Alternative { id, log_prob }).collect()
    };
    Ok(ids.into_iter().zip(log_probs).map(row).collect())
}
