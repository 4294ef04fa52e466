//! Scores of answer choices.

use tch::Tensor;

use crate::policy::{check_targets, label_scores};
use crate::{Error, Labels, Result, T5, TokenId};

/// A model that judges given answers.
pub trait ScoreChoices {
    /// Log-probabilities of every token of every choice, `[batch, choices, time]` `f32`, 0 where a choice or a
    /// label ends earlier. Each question's prompt goes through the model once; all its choices share the result.
    ///
    /// # Errors
    /// When a question has no choice, a choice is empty, or an id is outside the vocabulary.
    fn choice_log_probs(&self, prompts: &[Vec<TokenId>], choices: &[Vec<Vec<TokenId>>]) -> Result<Tensor>;

    /// Raw logits, `f32`, of some tokens at the first position of the answer: one list per question.
    ///
    /// # Errors
    /// When a question has no token, or an id is outside the vocabulary.
    fn first_token_logits(&self, prompts: &[Vec<TokenId>], tokens: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>>;
}

impl ScoreChoices for T5 {
    fn choice_log_probs(&self, prompts: &[Vec<TokenId>], choices: &[Vec<Vec<TokenId>>]) -> Result<Tensor> {
        let capacity = check(prompts, choices)?;
        for (i, question) in choices.iter().enumerate() {
            // The log-probability of nothing is 0, which would beat every real choice.
            if let Some(j) = question.iter().position(Vec::is_empty) {
                return Err(Error::invalid("choices", format!("choice {j} of question {i} has no token")));
            }
        }
        let unused: Vec<TokenId> = vec![];
        let targets: Vec<&[TokenId]> = choices
            .iter()
            .flat_map(|question| {
                let slots = question.iter().chain(std::iter::repeat(&unused));
                slots.take(capacity).map(Vec::as_slice)
            })
            .collect();
        check_targets(self.config().vocab_size, &targets)?;
        let labels = Labels::new(&targets, self.device())?;
        let encoded = self.encode(&self.batch(prompts)?)?;
        let states = self.decode(&encoded, &self.shift_right(&labels.ids)?)?;
        let (log_probs, _) = label_scores(&states, self.output_projection(), &labels, false)?;
        Ok(log_probs.f_view_([prompts.len() as i64, capacity as i64, -1])?)
    }

    fn first_token_logits(&self, prompts: &[Vec<TokenId>], tokens: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>> {
        let capacity = check(prompts, tokens)?;
        let rows: Vec<&[TokenId]> = tokens.iter().map(Vec::as_slice).collect();
        check_targets(self.config().vocab_size, &rows)?;
        // Shorter rows are filled with any valid id; the fill is cut off again below.
        let ids: Vec<TokenId> =
            tokens.iter().flat_map(|row| (0..capacity).map(|i| row.get(i).copied().unwrap_or(0))).collect();
        let batch = prompts.len() as i64;
        let ids =
            Tensor::f_from_slice(&ids)?.f_view_([batch, capacity as i64])?.f_to_device(self.device())?;
        let start = self.config().decoder_start_token_id;
        let start = Tensor::f_full([batch, 1], start, (tch::Kind::Int64, self.device()))?;
        let states = self.decode(&self.encode(&self.batch(prompts)?)?, &start)?.f_squeeze_dim(1)?;
        let mut logits: Vec<Vec<f32>> = Vec::try_from(self.logits_of(&states, &ids)?)?;
        logits.iter_mut().zip(tokens).for_each(|(row, tokens)| row.truncate(tokens.len()));
        Ok(logits)
    }
}

/// The largest number of choices.
fn check<T>(prompts: &[Vec<TokenId>], choices: &[Vec<T>]) -> Result<usize> {
    if prompts.len() != choices.len() {
        let reason = format!("{} prompts, but choices for {}", prompts.len(), choices.len());
        return Err(Error::invalid("choices", reason));
    }
    match choices.iter().position(Vec::is_empty) {
        Some(i) => Err(Error::invalid("choices", format!("question {i} has none"))),
        None => choices.iter().map(Vec::len).max().ok_or_else(|| Error::invalid("choices", "no question")),
    }
}
