//! Room for new tokens.

use std::ops::Range;

use super::T5;
use crate::resize::resized;
use crate::{Result, TokenId};

impl T5 {
    /// Makes the embedding end with the tokens `ids`, as a tokenizer numbers the ones that it was given last. Their rows
    /// are drawn from a normal distribution with the mean and spread of the old embedding's columns; rows before them
    /// stay, and rows behind them, which no token uses, go: the embedding may become smaller. An output matrix of its own
    /// is treated alike. The same seed gives the same rows.
    ///
    /// The model has new parameters afterwards; an optimizer that knows the old ones does not train it.
    ///
    /// # Errors
    /// When there are no ids, or rows before them would be missing.
    pub fn add_tokens(&mut self, ids: Range<TokenId>, seed: u64) -> Result<()> {
        let matrices = [Some(&self.shared), self.lm_head.as_ref()];
        let [shared, lm_head] = resized(matrices, self.config.vocab_size, &ids, seed)?;
        if let Some(shared) = shared {
            self.parameters.replace("shared.weight", &shared);
            self.shared = shared;
        }
        if let Some(head) = lm_head {
            self.parameters.replace("lm_head.weight", &head);
            self.lm_head = Some(head);
        }
        self.config.vocab_size = ids.end;
        Ok(())
    }
}
