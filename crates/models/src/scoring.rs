//! Scores of answer choices.

use tch::{Device, Tensor};

use crate::{Error, Result, TokenId};

/// A model that judges given answers.
pub trait ScoreChoices {
    /// Log-probabilities of every token of every choice, `[batch, choices, time]` `f32`, 0 where a choice or a
    /// label ends earlier. Each question's prompt goes through the model once; all its choices share the result.
    ///
    /// # Errors
    /// When a question has no choice, a choice is empty, an id is outside the vocabulary, or an [`Interrupt`](crate::Interrupt) is raised.
    fn choice_log_probs(&self, prompts: &[Vec<TokenId>], choices: &[Vec<Vec<TokenId>>]) -> Result<Tensor>;

    /// Raw logits, `f32`, of some tokens at the first position of the answer: one list per question.
    ///
    /// # Errors
    /// When a question has no token, or an id is outside the vocabulary.
    fn first_token_logits(&self, prompts: &[Vec<TokenId>], tokens: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>>;
}

/// The choices of all questions, `capacity` for each, of which those that it lacks are empty.
pub(crate) fn padded_targets<'a>(
    choices: &'a [Vec<Vec<TokenId>>],
    capacity: usize,
) -> Result<Vec<&'a [TokenId]>> {
    for (i, question) in choices.iter().enumerate() {
        // The log-probability of nothing is 0, which would beat every real choice.
        if let Some(j) = question.iter().position(Vec::is_empty) {
            return Err(Error::invalid("choices", format!("choice {j} of question {i} has no token")));
        }
    }
    let unused: &[TokenId] = &[];
    let slots = |question: &'a Vec<Vec<TokenId>>| {
        let all = question.iter().map(Vec::as_slice).chain(std::iter::repeat(unused));
        all.take(capacity)
    };
    Ok(choices.iter().flat_map(slots).collect())
}

/// Rows of ids `[rows, capacity]`, the shorter ones filled up with any valid id.
pub(crate) fn padded_tokens(rows: &[Vec<TokenId>], capacity: usize, device: Device) -> Result<Tensor> {
    let id = |row: &Vec<TokenId>, i: usize| row.get(i).copied().unwrap_or(0);
    let ids: Vec<TokenId> = rows.iter().flat_map(|row| (0..capacity).map(|i| id(row, i))).collect();
    let shape = [rows.len() as i64, capacity as i64];
    Ok(Tensor::f_from_slice(&ids)?.f_view_(shape)?.f_to_device(device)?)
}

/// The largest number of choices.
pub(crate) fn check_choices<T>(prompts: &[Vec<TokenId>], choices: &[Vec<T>]) -> Result<usize> {
    if prompts.len() != choices.len() {
        let reason = format!("{} prompts, but choices for {}", prompts.len(), choices.len());
        return Err(Error::invalid("choices", reason));
    }
    match choices.iter().position(Vec::is_empty) {
        Some(i) => Err(Error::invalid("choices", format!("question {i} has none"))),
        None => choices.iter().map(Vec::len).max().ok_or_else(|| Error::invalid("choices", "no question")),
    }
}
