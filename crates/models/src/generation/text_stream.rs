//! Token ids to text while they come.

use std::ops::Range;

use crate::{Result, TokenId, Tokenizer};

/// Turns ids into text as they come. The pieces, put together, are what [`Tokenizer::decode`] without special tokens makes of all
/// ids, up to the first stop string.
///
/// A piece never ends within a character, and what may be the beginning of a stop string is held back until it is known not to be one.
///
/// # Example
/// ```no_run
/// use ruminate_models::{TextStream, Tokenizer};
///
/// let tokenizer = Tokenizer::open("model".as_ref())?;
/// let mut text = TextStream::new(&tokenizer, &["\n\n".to_string()]);
/// let mut shown = String::new();
/// for id in tokenizer.encode_plain("One line.\n\nAnother.")? {
///     shown += &text.push(id)?;
///     if text.is_stopped() {
///         break;
///     }
/// }
/// shown += &text.finish()?;
/// assert_eq!(shown, "One line.");
/// # Ok::<(), ruminate_models::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: Vec<String>,
    /// Tokens before which no stop string counts.
    min_tokens: usize,
    pushed: usize,
    /// Ids whose text is not settled, behind those of `before`: a few ids before them, because text depends on what stands in front.
    ids: Vec<TokenId>,
    before: usize,
    /// Bytes of the text of the ids `..before`.
    before_len: usize,
    /// True if the last token with a text is a byte, which reads differently with the bytes that follow.
    ends_with_byte: bool,
    /// Settled text that is not given out, and the end of what was: as much as a stop string may begin in.
    text: String,
    /// Bytes of `text` that were given out.
    given: usize,
    /// Bytes of `text` and of the certain text behind it in which stop strings were looked for.
    searched: usize,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    /// A stream that ends at the first of some strings; empty ones are ignored.
    #[must_use]
    pub fn new(tokenizer: &'a Tokenizer, stop_strings: &[String]) -> Self {
        Self {
            tokenizer,
            stops: stop_strings.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
            min_tokens: 0,
            pushed: 0,
            ids: vec![],
            before: 0,
            before_len: 0,
            ends_with_byte: false,
            text: String::new(),
            given: 0,
            searched: 0,
            stopped: false,
        }
    }

    /// Lets stop strings count only where they are complete with this token or a later one, as
    /// [`min_new_tokens`](crate::GenerationConfig::min_new_tokens) does.
    #[must_use]
    pub fn with_min_tokens(self, min_tokens: usize) -> Self {
        Self { min_tokens, ..self }
    }

    /// True once a stop string was found. Nothing comes after it.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Takes the next id and returns the text that is now certain, often none.
    ///
    /// # Errors
    /// When the tokenizer library fails.
    pub fn push(&mut self, id: TokenId) -> Result<String> {
        if self.stopped {
            return Ok(String::new());
        }
        self.pushed += 1;
        self.ids.push(id);
        if let Some(token) = self.tokenizer.token(id) {
            // Special tokens have no text.
            self.ends_with_byte = is_byte(&token) || (self.ends_with_byte && self.tokenizer.is_special(id));
        }
        let unsettled = self.unsettled()?;
        let certain = if self.ends_with_byte { 0 } else { unsettled.trim_end_matches('\u{fffd}').len() };
        if self.find(&unsettled, certain) {
            return Ok(self.give(self.text.len()));
        }
        if certain < unsettled.len() || unsettled.is_empty() {
            return Ok(String::new());
        }
        // The ids behind `before` are now those that give the next ones their place.
        self.text.push_str(&unsettled);
        self.ids.drain(..self.before);
        self.before = self.ids.len();
        self.before_len = self.tokenizer.decode(&self.ids, true)?.len();
        let held = self.stops.iter().map(|stop| beginning(&self.text[self.given..], stop)).max().unwrap_or(0);
        Ok(self.give(self.text.len() - held))
    }

    /// Returns the rest of the text, up to a stop string in it.
    ///
    /// # Errors
    /// When the tokenizer library fails.
    pub fn finish(&mut self) -> Result<String> {
        if !self.stopped {
            let unsettled = self.unsettled()?;
            self.text.push_str(&unsettled);
            self.ids.clear();
            (self.before, self.before_len) = (0, 0);
        }
        Ok(self.give(self.text.len()))
    }

    /// The text of the ids behind `before`.
    fn unsettled(&self) -> Result<String> {
        let mut text = self.tokenizer.decode(&self.ids, true)?;
        // A decoder that looks ahead may have changed what was given out; what was said stays said.
        let mut at = self.before_len.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        Ok(text.split_off(at))
    }

    /// Looks for a stop string that ends in new text, of which some bytes are certain. Cuts the text before the first, and tells whether
    /// there is one.
    fn find(&mut self, unsettled: &str, certain: usize) -> bool {
        if self.stops.is_empty() {
            return false;
        }
        let whole = [self.text.as_str(), unsettled].concat();
        let searched = std::mem::replace(&mut self.searched, self.text.len() + certain);
        if self.pushed < self.min_tokens {
            return false;
        }
        let matches = self.stops.iter().filter_map(|stop| match_behind(&whole, stop, searched));
        let Some(first) = matches.map(|found| found.start).min() else { return false };
        // What was given out before `min_tokens` stays.
        self.text = whole[..first.max(self.given)].to_string();
        self.stopped = true;
        true
    }

    /// Gives out text up to a byte of `text`, and forgets what is not needed any more.
    fn give(&mut self, to: usize) -> String {
        let piece = self.text[self.given..to].to_string();
        self.given = to;
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut needless = to.saturating_sub(longest);
        while !self.text.is_char_boundary(needless) {
            needless -= 1;
        }
        self.text.drain(..needless);
        self.given -= needless;
        self.searched = self.searched.saturating_sub(needless);
        piece
    }
}

/// The first match of a string that ends behind `searched`.
fn match_behind(text: &str, stop: &str, searched: usize) -> Option<Range<usize>> {
    let mut from = (searched + 1).saturating_sub(stop.len()).min(text.len());
    while !text.is_char_boundary(from) {
        from -= 1;
    }
    let mut matches = text[from..].match_indices(stop).map(|(at, _)| from + at..from + at + stop.len());
    matches.find(|found| found.end > searched)
}

/// Bytes at the end of a text with which a stop string begins.
fn beginning(text: &str, stop: &str) -> usize {
    let lengths = stop.char_indices().map(|(at, _)| at).filter(|&length| length > 0);
    lengths.filter(|&length| text.ends_with(&stop[..length])).max().unwrap_or(0)
}

/// True if a token is a byte, as tokenizers with byte fallback write it.
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}
