//! Text to token ids and back, with the tokenizer files of Hugging Face.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{AddedToken, PostProcessor, TruncationDirection};

use crate::files::{read_bytes, read_json, write_bytes, write_text};
use crate::{Error, Result, TokenId};

/// Which end of a text that is too long is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Truncate {
    /// Keep the beginning.
    #[default]
    End,
    /// Keep the end.
    Start,
}

/// What [`Tokenizer::encode_with_offsets`] returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedText {
    /// The ids.
    pub ids: Vec<TokenId>,
    /// The bytes of the text that each id stands for; empty for ids that the tokenizer has added.
    pub offsets: Vec<Range<usize>>,
}

/// Files beside `tokenizer.json` that belong to it: named tokens, and chat templates.
const COMPANIONS: [&str; 4] =
    ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"];

/// A `tokenizer.json`, used exactly as written, and the end token that `tokenizer_config.json` names beside it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end_token: Option<String>,
    /// Names and contents of the [`COMPANIONS`] that were there.
    companions: Arc<[(&'static str, Vec<u8>)]>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` from a model folder, or a file of any name. `tokenizer_config.json` beside it, or
    /// `special_tokens_map.json`, names the end token as `eos_token`.
    ///
    /// # Errors
    /// When a file cannot be read or is no tokenizer.
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let bytes = read_bytes(&file).map_err(|error| only_other_files(&file).unwrap_or(error))?;
        let mut inner = parse(&bytes).map_err(|source| Error::Tokenizer {
            reason: format!("{} is not a tokenizer file", file.display()),
            source: Some(source),
        })?;
        // Padding and truncation are arguments of the calls below; a setting stored in the file must not interfere.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(library("resetting truncation"))?;
        let mut companions = vec![];
        for name in COMPANIONS {
            let path = file.with_file_name(name);
            if path.is_file() {
                companions.push((name, std::fs::read(&path).map_err(Error::read(&path))?));
            }
        }
        Ok(Self { inner, end_token: end_token(&file)?, companions: companions.into() })
    }

    /// Writes `tokenizer.json` into a folder, and the files beside it that it was opened with: `tokenizer_config.json`,
    /// `special_tokens_map.json` and the chat template. Each is written under a temporary name first.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let text = self.inner.to_string(false).map_err(library("serializing"))?;
        write_text(&folder.join("tokenizer.json"), &text)?;
        for (name, content) in self.companions.iter() {
            write_bytes(&folder.join(name), content)?;
        }
        Ok(())
    }

    /// The token that ends a text: what transformers calls `eos_token`. A model may end its texts with others, too
    /// ([`Policy::end_token_ids`](crate::Policy::end_token_ids)); this one is what training puts behind a text that has none.
    #[must_use]
    pub fn end_token(&self) -> Option<(&str, TokenId)> {
        let token = self.end_token.as_deref()?;
        Some((token, self.token_id(token)?))
    }

    /// Names the end token of a tokenizer that came without `tokenizer_config.json`.
    ///
    /// # Errors
    /// When the vocabulary lacks it.
    pub fn set_end_token(&mut self, token: &str) -> Result<()> {
        if self.token_id(token).is_none() {
            let reason = format!("`{token}` cannot end texts: the vocabulary lacks it");
            return Err(Error::Tokenizer { reason, source: None });
        }
        self.end_token = Some(token.into());
        Ok(())
    }

    /// Whether a token is special: a marker that no text stands for.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        let added = self.inner.get_added_tokens_decoder();
        u32::try_from(id).is_ok_and(|id| added.get(&id).is_some_and(|token| token.special))
    }

    /// The ids of a text that a model is to write: with the end token behind it, which is not doubled, and no begin token in
    /// front.
    ///
    /// # Errors
    /// When neither the tokenizer adds an end token nor [`end_token`](Self::end_token) knows one, or the tokenizer library fails.
    pub fn encode_target(&self, text: &str) -> Result<Vec<TokenId>> {
        let (front, behind) = self.added_tokens()?;
        if behind > 0 {
            return Ok(self.encode(text)?.split_off(front));
        }
        let Some((_, end)) = self.end_token() else {
            let reason = "it names no end token, which a text to be written needs: put tokenizer_config.json with \
                          `eos_token` beside tokenizer.json, or call set_end_token";
            return Err(Error::Tokenizer { reason: reason.into(), source: None });
        };
        let mut ids = self.encode_plain(text)?;
        if ids.last() != Some(&end) {
            ids.push(end);
        }
        Ok(ids)
    }

    /// How many tokens it adds in front of a text, and behind it.
    ///
    /// # Errors
    /// When the tokenizer library fails.
    pub fn added_tokens(&self) -> Result<(usize, usize)> {
        let encoding = self.inner.encode("a", true).map_err(library("encoding"))?;
        let special = encoding.get_special_tokens_mask();
        let count = |mask: &mut dyn Iterator<Item = &u32>| mask.take_while(|&&special| special == 1).count();
        Ok((count(&mut special.iter()), count(&mut special.iter().rev())))
    }

    /// Entries, special tokens included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token, where the vocabulary has it.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token).map(TokenId::from)
    }

    /// The token of an id as the vocabulary writes it, where there is one.
    #[must_use]
    pub fn token(&self, id: TokenId) -> Option<String> {
        self.inner.id_to_token(u32::try_from(id).ok()?)
    }

    /// Adds tokens that are cut from a text wherever they stand in it, and returns their ids: those behind the largest one so
    /// far. They are not special, so that decoding shows them.
    ///
    /// # Errors
    /// When the tokenizer has one of them already, or two are the same.
    pub fn add_tokens(&mut self, tokens: &[String]) -> Result<Vec<TokenId>> {
        let mut seen = BTreeSet::new();
        let known = |token: &String| token.is_empty() || self.token_id(token).is_some();
        if let Some(token) = tokens.iter().find(|token| known(token) || !seen.insert(*token)) {
            let reason =
                format!("`{token}` cannot be added: it is empty, twice in the list, or there already");
            return Err(Error::Tokenizer { reason, source: None });
        }
        let added: Vec<_> = tokens.iter().map(|token| AddedToken::from(token.clone(), false)).collect();
        self.inner.add_tokens(added).map_err(library("adding tokens"))?;
        Ok(tokens.iter().filter_map(|token| self.token_id(token)).collect())
    }

    /// Refuses a tokenizer that can give ids for which the model has no embedding.
    ///
    /// # Errors
    /// When the largest id is not below `embeddings`.
    pub fn check_fits(&self, embeddings: i64) -> Result<()> {
        let largest = self.inner.get_vocab(true).into_values().max().unwrap_or(0);
        if i64::from(largest) < embeddings {
            return Ok(());
        }
        Err(Error::Tokenizer {
            reason: format!(
                "it gives ids up to {largest}, but the model has {embeddings} embeddings (vocab_size in config.json): \
                 use the tokenizer that belongs to the model, or a larger vocab_size for a new model"
            ),
            source: None,
        })
    }

    /// The ids of a text with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// When the tokenizer library fails.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>> {
        let encoding = self.inner.encode_fast(text, true).map_err(library("encoding"))?;
        Ok(ids(&encoding))
    }

    /// The ids of a text without special tokens.
    ///
    /// # Errors
    /// When the tokenizer library fails.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<TokenId>> {
        let encoding = self.inner.encode_fast(text, false).map_err(library("encoding"))?;
        Ok(ids(&encoding))
    }

    /// The ids of a text that already holds its markers, such as a rendered dialogue, with the bytes that each of them stands for.
    /// Markers in the text become their special tokens. Of what the tokenizer would add, only the tokens in front are there,
    /// and not those with which the text itself begins: a begin token is never doubled, and no end token closes an open text.
    ///
    /// # Errors
    /// When the tokenizer library fails.
    pub fn encode_with_offsets(&self, text: &str) -> Result<EncodedText> {
        let encode = |special| self.inner.encode(text, special).map_err(library("encoding"));
        let (plain, full) = (encode(false)?, encode(true)?);
        let written = ids(&plain);
        // What is added stands for no byte.
        let added = full.get_offsets().iter().take_while(|&&(start, end)| start == end).count();
        let mut front = if written.is_empty() { vec![] } else { ids(&full)[..added].to_vec() };
        // Blanks that some tokenizers cut from their offsets stood for none either: then nothing was added.
        if written.starts_with(&front) {
            front.clear();
        }
        let mut end_before = 0;
        let range = |&(start, end): &(usize, usize)| {
            let start = if start == end { start.min(end_before) } else { start };
            end_before = end.max(end_before);
            start..end
        };
        let offsets: Vec<_> = plain.get_offsets().iter().map(range).collect();
        let offsets = std::iter::repeat_n(0..0, front.len()).chain(offsets).collect();
        Ok(EncodedText { ids: [front, written].concat(), offsets })
    }

    /// The ids of a text in at most `max_tokens`, special tokens included: those are kept, the text is cut.
    ///
    /// # Errors
    /// When `max_tokens` leaves no room for the special tokens, or the tokenizer library fails.
    pub fn encode_truncated(&self, text: &str, max_tokens: usize, cut: Truncate) -> Result<Vec<TokenId>> {
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false));
        if max_tokens < added {
            let reason = format!("{max_tokens} tokens leave no room for {added} special tokens");
            return Err(Error::Tokenizer { reason, source: None });
        }
        let mut encoding = self.inner.encode_fast(text, false).map_err(library("encoding"))?;
        let direction = match cut {
            Truncate::End => TruncationDirection::Right,
            Truncate::Start => TruncationDirection::Left,
        };
        encoding.truncate(max_tokens - added, 0, direction);
        let encoding =
            self.inner.post_process(encoding, None, true).map_err(library("adding special tokens"))?;
        Ok(ids(&encoding))
    }

    /// The text of some ids. Ids outside the vocabulary, which a model with spare embeddings can produce, are left
    /// out.
    ///
    /// # Errors
    /// When the tokenizer library fails.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> Result<String> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.inner.decode(&ids, skip_special).map_err(library("decoding"))
    }

    /// The text of some ids without special tokens and without the blanks before punctuation, as transformers 4
    /// decodes by default ([`clean_up_spaces`]).
    ///
    /// # Errors
    /// When the tokenizer library fails.
    pub fn decode_clean(&self, ids: &[TokenId]) -> Result<String> {
        Ok(clean_up_spaces(&self.decode(ids, true)?))
    }

    /// The pieces into which a text is cut, special tokens included; what the vocabulary lacks shows as it stands in
    /// the text.
    ///
    /// # Errors
    /// When the tokenizer library fails.
    pub fn tokens(&self, text: &str) -> Result<Vec<String>> {
        let encoding = self.inner.encode(text, true).map_err(library("encoding"))?;
        Ok(encoding.get_tokens().to_vec())
    }
}

/// Removes the blanks that tokenizers leave before punctuation and contractions.
#[must_use]
pub fn clean_up_spaces(text: &str) -> String {
    const RULES: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    RULES.iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to))
}

/// The end token that the files beside a tokenizer name.
fn end_token(tokenizer: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct File {
        eos_token: Option<Named>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Named {
        Text(String),
        Added { content: String },
    }
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = tokenizer.with_file_name(name);
        if path.is_file()
            && let Some(Named::Text(token) | Named::Added { content: token }) =
                read_json::<File>(&path)?.eos_token
        {
            return Ok(Some(token));
        }
    }
    Ok(None)
}

/// For a folder with a tokenizer in other files only: which, and the command that makes `tokenizer.json` of them.
fn only_other_files(file: &Path) -> Option<Error> {
    const OTHERS: [&str; 6] = [
        "spiece.model",
        "tokenizer.model",
        "sentencepiece.bpe.model",
        "vocab.json",
        "vocab.txt",
        "tekken.json",
    ];
    if file.exists() {
        return None;
    }
    let folder = file.parent()?;
    let other = OTHERS.into_iter().find(|name| folder.join(name).is_file())?;
    let reason = format!(
        "is missing, and {other} is not read. Make it once, with the packages transformers, sentencepiece and protobuf: \
         python3 -c \"import sys, transformers as t; f = sys.argv[1]; \
         t.AutoTokenizer.from_pretrained(f).save_pretrained(f)\" {}",
        folder.display()
    );
    Some(Error::NotThere { path: file.to_path_buf(), reason })
}

/// The parts of a tokenizer file that number tokens.
#[derive(Deserialize)]
struct Ids {
    #[serde(default)]
    added_tokens: Value,
    #[serde(default)]
    model: Value,
}

/// Reads a tokenizer file. The library panics on some that are damaged: on JSON that ends early, which is refused
/// here first, and on a broken character map. And it takes time and memory for every number up to the largest id.
fn parse(bytes: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let text = std::str::from_utf8(bytes)?;
    let Ids { added_tokens, model } = serde_json::from_str(text)?;
    let added = added_tokens.as_array().into_iter().flatten().map(|token| &token["id"]);
    let vocabulary = model["vocab"].as_object().into_iter().flat_map(serde_json::Map::values);
    let largest = added.chain(vocabulary).filter_map(Value::as_u64).max().unwrap_or(0);
    // A vocabulary may have gaps, but every id that is in use takes some bytes of the file.
    if largest > bytes.len().max(1 << 20) as u64 {
        return Err(format!("a token has the id {largest}, far beyond the tokens of the file").into());
    }
    std::panic::catch_unwind(|| text.parse())
        .unwrap_or_else(|_| Err("the tokenizer library cannot read it".into()))
}

fn ids(encoding: &tokenizers::Encoding) -> Vec<TokenId> {
    encoding.get_ids().iter().map(|&id| TokenId::from(id)).collect()
}

fn library(what: &'static str) -> impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> Error {
    move |source| Error::Tokenizer { reason: format!("{what} failed"), source: Some(source) }
}

#[cfg(test)]
mod tests {
    use super::clean_up_spaces;

    #[test]
    fn blanks_before_punctuation_are_removed() {
        assert_eq!(
            clean_up_spaces("It 's , they say , cold . Is n't it ? I 'm sure they 've won !"),
            "It's, they say, cold. Isn't it? I'm sure they've won!"
        );
        assert_eq!(clean_up_spaces("we 're here"), "we're here");
        assert_eq!(clean_up_spaces("rock ' roll"), "rock'roll");
        assert_eq!(clean_up_spaces("a  b ; c"), "a  b ; c", "other blanks stay");
    }
}
