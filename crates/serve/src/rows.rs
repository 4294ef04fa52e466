//! The answers of a batch while they are written.

use std::ops::ControlFlow;

use ruminate_models::{
    Alternative, Error as ModelError, Finish, GenerationConfig, Listener, Model, Policy, Result, SequenceId,
    TextStream, TokenId, Tokenizer, WrittenToken,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::engine::{Event, FinishReason, Job, Written};

/// A token with what is told about it.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) text: String,
    /// Characters of the text before it.
    pub(crate) offset: usize,
    /// None for the first token of a prompt, which nothing predicts.
    pub(crate) log_prob: Option<f32>,
    /// The most probable tokens at this place, best first.
    pub(crate) top: Vec<(String, f32)>,
}

/// Makes [`Token`]s one behind the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenTexts {
    /// Characters so far.
    offset: usize,
}

impl TokenTexts {
    pub(crate) fn next(
        &mut self,
        tokenizer: &Tokenizer,
        id: TokenId,
        log_prob: Option<f32>,
        alternatives: &[Alternative],
    ) -> Result<Token> {
        let text = token_text(tokenizer, id)?;
        let top = alternatives.iter().map(|one| Ok((token_text(tokenizer, one.id)?, one.log_prob)));
        let top = top.collect::<Result<_>>()?;
        let offset = self.offset;
        // Special tokens are not in the text.
        self.offset += if tokenizer.is_special(id) { 0 } else { text.chars().count() };
        Ok(Token { text, offset, log_prob, top })
    }
}

/// The text of one token, with the blank before it.
fn token_text(tokenizer: &Tokenizer, id: TokenId) -> Result<String> {
    let text = tokenizer.decode(&[id], false)?;
    // Decoding takes the blank from the first word.
    let blank = tokenizer.token(id).is_some_and(|token| token.starts_with('▁')) && !text.starts_with(' ');
    Ok(if blank { format!(" {text}") } else { text })
}

/// Listens to the rows of a batch, and sends what they write to those who wait for it.
pub(crate) struct Rows<'a> {
    tokenizer: &'a Tokenizer,
    stop_ids: &'a [TokenId],
    min_tokens: usize,
    samples: usize,
    rows: Vec<Row<'a>>,
    error: Option<ModelError>,
}

struct Row<'a> {
    events: &'a UnboundedSender<Event>,
    prompt: usize,
    sample: usize,
    max_tokens: usize,
    stream: bool,
    logprobs: Option<usize>,
    score_end: bool,
    text: TextStream<'a>,
    /// Tokens that were written.
    written: usize,
    texts: TokenTexts,
    /// Tokens whose text is not certain.
    held: Vec<Token>,
    /// Characters of certain text.
    certain: usize,
    /// The part that was not sent yet.
    piece: Piece,
    finish: Option<FinishReason>,
}

#[derive(Default)]
struct Piece {
    text: String,
    tokens: Vec<Token>,
    count: usize,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(model: &'a Model, defaults: &'a GenerationConfig, samples: usize) -> Result<Self> {
        let tokenizer = model.tokenizer().ok_or_else(|| ModelError::Tokenizer {
            reason: "the model has none, which a server needs".into(),
            source: None,
        })?;
        let stop_ids = match &defaults.stop_ids[..] {
            [] => model.end_token_ids(),
            ids => ids,
        };
        Ok(Self {
            tokenizer,
            stop_ids,
            min_tokens: defaults.min_new_tokens,
            samples,
            rows: vec![],
            error: None,
        })
    }

    /// Adds the rows of a job's prompt. False where nothing is to be written to it.
    pub(crate) fn add(&mut self, job: &'a Job, prompt: usize) -> Result<bool> {
        let settings = &job.settings;
        for sample in 0..settings.samples {
            let text = TextStream::new(self.tokenizer, &settings.stops).with_min_tokens(self.min_tokens);
            let mut row = Row {
                events: &job.events,
                prompt,
                sample,
                max_tokens: settings.max_tokens,
                stream: settings.stream,
                logprobs: settings.logprobs,
                score_end: settings.score_end,
                text,
                written: 0,
                texts: TokenTexts::default(),
                held: vec![],
                certain: 0,
                piece: Piece::default(),
                finish: None,
            };
            if settings.max_tokens == 0 {
                row.end(FinishReason::Length)?;
            } else {
                self.rows.push(row);
            }
        }
        Ok(settings.max_tokens > 0)
    }

    /// The longest answer's limit.
    pub(crate) fn max_tokens(&self) -> usize {
        self.rows.iter().map(|row| row.max_tokens).max().unwrap_or(0)
    }

    /// The error that ended the writing of rows, if one did.
    pub(crate) fn error(self) -> Option<ModelError> {
        self.error
    }

    fn index(&self, SequenceId { prompt, sample }: SequenceId) -> usize {
        prompt * self.samples + sample
    }
}

impl Listener for Rows<'_> {
    fn alternatives(&self) -> usize {
        self.rows.iter().filter_map(|row| row.logprobs).max().unwrap_or(0)
    }

    fn token(&mut self, token: WrittenToken<'_>) -> ControlFlow<()> {
        let index = self.index(token.sequence);
        let (row, stops) = (&mut self.rows[index], self.stop_ids.contains(&token.id));
        if self.error.is_some() || row.events.is_closed() {
            return ControlFlow::Break(());
        }
        row.token(self.tokenizer, token, stops).unwrap_or_else(|error| {
            self.error = Some(error);
            ControlFlow::Break(())
        })
    }

    fn ended(&mut self, sequence: SequenceId, finish: Finish) {
        let index = self.index(sequence);
        let row = &mut self.rows[index];
        let reason = match (row.finish, finish) {
            (Some(reason), _) => reason,
            (None, Finish::Stop | Finish::StopString) => FinishReason::Stop,
            (None, Finish::Length) => FinishReason::Length,
            // Nobody waits for it, or an error tells.
            (None, _) => return,
        };
        if let Err(error) = row.end(reason) {
            self.error = Some(error);
        }
    }
}

impl Row<'_> {
    /// Takes a token; the row ends behind it where its text or its length says so.
    fn token(
        &mut self,
        tokenizer: &Tokenizer,
        token: WrittenToken<'_>,
        is_stop: bool,
    ) -> Result<ControlFlow<()>> {
        self.written += 1;
        self.piece.count += 1;
        if let Some(count) = self.logprobs.filter(|_| !is_stop || self.score_end) {
            let alternatives = &token.alternatives[..count.min(token.alternatives.len())];
            self.held.push(self.texts.next(tokenizer, token.id, Some(token.log_prob), alternatives)?);
        }
        if is_stop {
            return Ok(ControlFlow::Continue(()));
        }
        let text = self.text.push(token.id)?;
        self.add(&text);
        if self.text.is_stopped() {
            self.finish = Some(FinishReason::Stop);
        } else if self.written >= self.max_tokens {
            self.finish = Some(FinishReason::Length);
        } else {
            if self.stream && !self.piece.text.is_empty() {
                self.send(None);
            }
            return Ok(ControlFlow::Continue(()));
        }
        Ok(ControlFlow::Break(()))
    }

    /// Adds certain text, and the tokens that begin in it.
    fn add(&mut self, text: &str) {
        self.certain += text.chars().count();
        self.piece.text.push_str(text);
        let begun = self.held.iter().take_while(|token| token.offset < self.certain).count();
        self.piece.tokens.extend(self.held.drain(..begun));
    }

    fn end(&mut self, reason: FinishReason) -> Result<()> {
        let rest = self.text.finish()?;
        self.add(&rest);
        // Behind a stop string there are the tokens that it was made of.
        if !self.text.is_stopped() {
            self.piece.tokens.append(&mut self.held);
        }
        self.send(Some(reason));
        Ok(())
    }

    fn send(&mut self, finish: Option<FinishReason>) {
        let Piece { text, tokens, count } = std::mem::take(&mut self.piece);
        let (prompt, sample) = (self.prompt, self.sample);
        // Whoever has hung up is found out with the next token.
        let _ = self.events.send(Event::Written(Written { prompt, sample, text, tokens, count, finish }));
    }
}
