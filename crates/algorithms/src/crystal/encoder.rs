//! Questions, statements and labels as token ids.

use ruminate_datasets::prompts::{ANSWER_SEPARATOR, KNOWLEDGE_SEPARATOR};
use ruminate_datasets::question::letters;
use ruminate_datasets::{Compat, Prompts};
use ruminate_models::{ModelConfig, ModelShape, NetworkConfig, TokenId, Tokenizer, Truncate};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Largest lengths in tokens, all including the end token. Longer texts lose their end, but keep the end token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lengths {
    /// Question with its choices.
    pub max_question_len: usize,
    /// One statement.
    pub max_knowledge_len: usize,
    /// Answer label; 2 is a letter and the end token, as in the published runs.
    pub max_answer_len: usize,
}

impl Default for Lengths {
    fn default() -> Self {
        Self { max_question_len: 256, max_knowledge_len: 32, max_answer_len: 2 }
    }
}

/// Encodes texts and assembles the three prompts on ids.
#[derive(Debug, Clone)]
pub struct QuestionEncoder {
    tokenizer: Tokenizer,
    lengths: Lengths,
    /// QK, QA and QKA prompts.
    pub prompts: Prompts,
    /// Fills up rows.
    pub pad: TokenId,
    /// Ends every encoded text.
    pub eos: TokenId,
    /// Whether the model reads prompts in an encoder, as the published one does.
    has_encoder: bool,
}

impl QuestionEncoder {
    /// Joins a tokenizer with the model that it is for. Prompts of a model without an encoder are not ended, and follow
    /// [`Compat::Corrected`].
    ///
    /// # Errors
    /// When the tokenizer gives ids that the model has no embedding for or does not end texts with an end token of the model, or a
    /// length leaves no room for a token.
    pub fn new(tokenizer: Tokenizer, config: &ModelConfig, lengths: Lengths, compat: Compat) -> Result<Self> {
        tokenizer.check_fits(config.vocab_size())?;
        for (key, value) in [
            ("max_question_len", lengths.max_question_len),
            ("max_knowledge_len", lengths.max_knowledge_len),
            ("max_answer_len", lengths.max_answer_len),
        ] {
            if value < 2 {
                return Err(Error::config(key, format!("is {value}, but a token and the end token need 2")));
            }
        }
        let (ends, has_encoder) = (config.eos_token_ids(), config.has_encoder());
        // Of several end tokens, texts end with the one that the tokenizer puts behind them, or names.
        let ended =
            if has_encoder { tokenizer.encode(KNOWLEDGE_SEPARATOR)? } else { tokenizer.encode_target("")? };
        let Some(eos) = ended.last().copied().filter(|last| ends.contains(last)) else {
            let reason = format!(
                "the tokenizer ends a text as {ended:?}, which ends with none of the model's end tokens {ends:?} (eos_token_id); \
                 use the tokenizer that belongs to the model"
            );
            return Err(Error::config("tokenizer", reason));
        };
        let prompts = match has_encoder {
            true => Prompts::new(ended, tokenizer.encode(ANSWER_SEPARATOR)?, eos, compat)?,
            false => Prompts::open_ended(
                tokenizer.encode_plain(KNOWLEDGE_SEPARATOR)?,
                tokenizer.encode_plain(ANSWER_SEPARATOR)?,
                eos,
            ),
        };
        Ok(Self { lengths, prompts, pad: config.pad_token_id(), eos, has_encoder, tokenizer })
    }

    /// Refuses a tokenizer that does not tell the letters of `choices` choices apart by their first token: they would
    /// all score the same.
    ///
    /// # Errors
    /// When two letters begin alike, or one is empty.
    pub fn check_letters(&self, choices: usize) -> Result<()> {
        let first = self.first_tokens(&letters(choices))?;
        let distinct: std::collections::BTreeSet<_> = first.iter().collect();
        if distinct.len() == choices && !first.contains(&self.eos) {
            return Ok(());
        }
        let reason = format!(
            "the letters of {choices} choices begin with the tokens {first:?}, which do not tell them apart; some \
             answers would always score the same"
        );
        Err(Error::config("tokenizer", reason))
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The lengths.
    #[must_use]
    pub fn lengths(&self) -> Lengths {
        self.lengths
    }

    /// A question with its choices.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn question(&self, text: &str) -> Result<Vec<TokenId>> {
        let most = self.lengths.max_question_len;
        if self.has_encoder {
            return Ok(self.tokenizer.encode_truncated(text, most, Truncate::End)?);
        }
        let mut ids = self.tokenizer.encode_truncated(text, most - 1, Truncate::End)?;
        ids.retain(|id| *id != self.eos);
        ids.push(self.eos);
        Ok(ids)
    }

    /// A statement.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn statement(&self, text: &str) -> Result<Vec<TokenId>> {
        self.target(text, self.lengths.max_knowledge_len)
    }

    /// An answer label.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn label(&self, text: &str) -> Result<Vec<TokenId>> {
        self.target(text, self.lengths.max_answer_len)
    }

    /// A text that the model is to write, in at most so many tokens, the end token included.
    fn target(&self, text: &str, most: usize) -> Result<Vec<TokenId>> {
        if self.has_encoder {
            return Ok(self.tokenizer.encode_truncated(text, most, Truncate::End)?);
        }
        let mut ids = self.tokenizer.encode_plain(text)?;
        ids.truncate(most - 1);
        ids.push(self.eos);
        Ok(ids)
    }

    /// All labels of a question.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn labels(&self, choices: &[String]) -> Result<Vec<Vec<TokenId>>> {
        choices.iter().map(|choice| self.label(choice)).collect()
    }

    /// The first token of each label of a question; the end token where a label is empty.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn first_tokens(&self, choices: &[String]) -> Result<Vec<TokenId>> {
        let first = |label: Vec<TokenId>| label.first().copied().unwrap_or(self.eos);
        Ok(self.labels(choices)?.into_iter().map(first).collect())
    }

    /// The text of a statement that a model wrote.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn statement_text(&self, ids: &[TokenId]) -> Result<String> {
        Ok(self.tokenizer.decode_clean(ids)?.trim().to_string())
    }
}
