//! Strings that end a row, wherever tokens begin and end.

use crate::{Error, Result, TokenId, Tokenizer};

use super::GenerationConfig;

/// Watches the text of every row while it is written.
pub(super) struct StopStrings<'a> {
    tokenizer: &'a Tokenizer,
    config: &'a GenerationConfig,
    stop_ids: Vec<TokenId>,
    rows: Vec<Row>,
}

#[derive(Clone, Default)]
struct Row {
    ids: Vec<TokenId>,
    /// Stop strings in the text so far.
    found: usize,
    /// Nothing after this counts.
    ended: bool,
    /// Length at which a stop string was complete.
    length: Option<usize>,
}

impl<'a> StopStrings<'a> {
    /// `None` where none are given.
    ///
    /// # Errors
    /// When some are given and there is no tokenizer.
    pub(super) fn new(
        tokenizer: Option<&'a Tokenizer>,
        config: &'a GenerationConfig,
        stop_ids: &[TokenId],
        rows: usize,
    ) -> Result<Option<Self>> {
        if config.stop_strings.is_empty() {
            return Ok(None);
        }
        let tokenizer = tokenizer.ok_or_else(|| {
            let reason = "stop_strings need the model's tokenizer; hand it over with set_tokenizer";
            Error::invalid("generation", reason)
        })?;
        Ok(Some(Self { tokenizer, config, stop_ids: stop_ids.to_vec(), rows: vec![Row::default(); rows] }))
    }

    /// Takes the next token of every row, and tells which rows a stop string has ended.
    pub(super) fn push(&mut self, tokens: &[TokenId]) -> Result<Vec<bool>> {
        let Self { tokenizer, config, stop_ids, rows } = self;
        for (row, &token) in rows.iter_mut().zip(tokens).filter(|(row, _)| !row.ended) {
            row.ids.push(token);
            let text = tokenizer.decode(&row.ids, true)?;
            let found = config.stop_strings.iter().map(|stop| text.matches(stop.as_str()).count()).sum();
            if stop_ids.contains(&token) {
                row.ended = true;
            } else if found > row.found && row.ids.len() >= config.min_new_tokens {
                row.ended = true;
                row.length = Some(row.ids.len());
            }
            row.found = found;
        }
        Ok(rows.iter().map(|row| row.length.is_some()).collect())
    }

    /// Keeps some rows.
    pub(super) fn keep(&mut self, rows: &[i64]) {
        self.rows = rows.iter().map(|&row| std::mem::take(&mut self.rows[row as usize])).collect();
    }

    /// Tokens of a row up to the one that completed a stop string.
    pub(super) fn length(&self, row: usize) -> Option<usize> {
        self.rows[row].length
    }
}
