//! Helpers shared by greedy choice, sampling and beam search.

use tch::{Kind, Tensor};

use super::{Decoder, GenerationConfig, Processor};
use crate::{Result, TokenId};

/// The token ids that end a row.
pub(super) fn stop_ids(model: &impl Decoder, config: &GenerationConfig) -> Vec<TokenId> {
    if config.stop_ids.is_empty() { model.end_ids().to_vec() } else { config.stop_ids.clone() }
}

/// The processors that run before temperature, top-k and top-p, in the order of transformers; `prompt_len` tokens stand before
/// the first new one.
pub(super) fn processors(config: &GenerationConfig, stop_ids: &[TokenId], prompt_len: i64) -> Vec<Processor> {
    let mut processors = vec![];
    if !config.sequence_bias.is_empty() {
        processors.push(Processor::SequenceBias(config.sequence_bias.clone()));
    }
    if config.repetition_penalty != 1.0 {
        processors.push(Processor::RepetitionPenalty(config.repetition_penalty));
    }
    if config.no_repeat_ngram_size > 0 {
        processors.push(Processor::NoRepeatNgram(config.no_repeat_ngram_size));
    }
    if config.min_new_tokens > 0 {
        let length = (prompt_len as usize).saturating_add(config.min_new_tokens);
        processors.push(Processor::SuppressUntil { length, ids: stop_ids.to_vec() });
    }
    if let Some(id) = config.forced_eos_token_id {
        let length = (prompt_len as usize).saturating_add(config.max_new_tokens - 1);
        processors.push(Processor::ForceAt { length, id });
    }
    if !config.forbidden_ids.is_empty() {
        processors.push(Processor::Suppress(config.forbidden_ids.clone()));
    }
    processors
}

/// The prompt's tokens `[rows, prompt_len]` with room for `time` new ones.
pub(super) fn token_table(prompt: &Tensor, time: i64) -> Result<Tensor> {
    let room = Tensor::f_zeros([prompt.size()[0], time], (Kind::Int64, prompt.device()))?;
    Ok(Tensor::f_cat(&[prompt, &room], 1)?)
}
