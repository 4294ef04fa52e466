//! What the decode loops need of a model.

use tch::{Device, Tensor};

use crate::layers::Decoding;
use crate::{Result, TokenId, Tokenizer};

/// A model that reads prompts and then takes one token after another.
pub(crate) trait Decoder {
    fn device(&self) -> Device;

    fn vocab_size(&self) -> i64;

    fn pad_token_id(&self) -> TokenId;

    /// The tokens that end a row where the caller names none.
    fn end_ids(&self) -> &[TokenId];

    /// Finds stop strings, where the model has one.
    fn tokenizer(&self) -> Option<&Tokenizer>;

    /// Tokens that stand before the first new one of a prompt's rows, without the prefix: the prompt, or the start token where an encoder reads it.
    fn given_tokens(&self, prompt: &[TokenId]) -> usize;

    /// Bytes that are held while `rows` rows of `prompts` prompts are written: the prompts have up to `longest` tokens, and each row gets
    /// `new` more.
    fn bytes_in_flight(&self, prompts: usize, longest: usize, rows: usize, new: usize) -> u64;

    /// Reads prompts, without gradients and dropout.
    fn prefill(&self, prefill: Prefill<'_>) -> Result<Started<Decoding<'_>>>;
}

/// Input of the pass before the first new token: the prompts, each once, and the prefix behind each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefill<'a> {
    pub(crate) prompts: &'a [Vec<TokenId>],
    pub(crate) prefix: &'a [TokenId],
    /// Consecutive rows of each prompt.
    pub(crate) samples_per_prompt: usize,
    /// New tokens that each row has room for. The last is never read.
    pub(crate) max_new: usize,
}

/// A decoder that has read its prompts.
#[derive(Debug)]
pub(crate) struct Started<S> {
    pub(crate) steps: S,
    /// Logits of the first new token `[rows, vocab]`, `f32`.
    pub(crate) logits: Tensor,
    /// The tokens that stand before it, `[rows, prompt_len]`.
    pub(crate) prompt: Tensor,
    /// How many at the front of each row are padding, `[rows, 1]`, where some are.
    pub(crate) padding: Option<Tensor>,
}

impl<S> Started<S> {
    /// With other steps.
    pub(super) fn with<T>(self, make: impl FnOnce(S) -> Result<T>) -> Result<Started<T>> {
        let Self { steps, logits, prompt, padding } = self;
        Ok(Started { steps: make(steps)?, logits, prompt, padding })
    }
}

/// Decoding in progress.
pub(crate) trait Steps {
    /// Reads one token of every row, `[rows, 1]`, and returns the logits of the next one `[rows, vocab]`, `f32`.
    fn next_logits(&mut self, tokens: &Tensor) -> Result<Tensor>;

    /// Replaces every row by the row of that index, which must belong to the same prompt: a beam goes on from the one that
    /// it extends.
    fn reorder(&mut self, rows: &Tensor) -> Result<()>;

    /// Keeps some rows and the prompts that they belong to.
    fn keep(&mut self, rows: &Tensor, prompts: &Tensor) -> Result<()>;
}
