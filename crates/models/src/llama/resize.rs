//! Room for new tokens.

use std::ops::Range;

use super::{Llama, LlamaConfig};
use crate::resize::resized;
use crate::{Result, TokenId};

impl Llama {
    /// Makes the embedding end with the tokens `ids`, as [`T5::add_tokens`](crate::T5::add_tokens) does: rows before them stay,
    /// and rows behind them, which no token uses, go. An output matrix of its own is treated alike. The same seed gives the same
    /// rows.
    ///
    /// The model has new parameters afterwards; an optimizer that knows the old ones does not train it.
    ///
    /// # Errors
    /// When there are no ids, rows before them would be missing, or a begin, end or padding token would lose its row.
    pub fn add_tokens(&mut self, ids: Range<TokenId>, seed: u64) -> Result<()> {
        let matrices = [Some(&self.embed_tokens), self.lm_head.as_ref()];
        let [embed_tokens, lm_head] = resized(matrices, self.config.vocab_size, &ids, seed)?;
        let config = LlamaConfig { vocab_size: ids.end, ..self.config.clone() };
        config.check()?;
        if let Some(embedding) = embed_tokens {
            self.parameters.replace("model.embed_tokens.weight", &embedding);
            self.embed_tokens = embedding;
        }
        if let Some(head) = lm_head {
            self.parameters.replace("lm_head.weight", &head);
            self.lm_head = Some(head);
        }
        self.config = config;
        Ok(())
    }
}
