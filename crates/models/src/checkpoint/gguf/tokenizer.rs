//! From the vocabulary of a GGUF file to `tokenizer.json` and `tokenizer_config.json`.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::reader::Gguf;
use crate::files::{write_json, write_text};
use crate::{Error, Result, TokenId};

/// The vocabulary, in the order of ids.
const TOKENS: &str = "tokenizer.ggml.tokens";
/// How text is cut into words before merges.
const PRE: &str = "tokenizer.ggml.pre";
/// The template of dialogues, in Jinja.
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// ggml's type of a token that no text stands for.
const CONTROL: i128 = 3;
/// Its type of a token that is cut out of a text before anything else.
const USER_DEFINED: i128 = 4;

/// Bytes of the longest token: the search for merges takes the square of it.
const LONGEST_TOKEN: usize = 4096;

/// The words of GPT-2 are cut by `ByteLevel` itself. These expressions are those of the models' own files.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Tokens that have a role.
#[derive(Debug)]
pub(super) struct SpecialTokens<'a> {
    pub(super) bos: Option<TokenId>,
    pub(super) eos: Option<TokenId>,
    pub(super) pad: Option<TokenId>,
    unknown: Option<TokenId>,
    /// All tokens that end a text: `eos`, and those that end a turn or a message.
    pub(super) ends: Vec<TokenId>,
    tokens: Vec<&'a str>,
}

impl<'a> SpecialTokens<'a> {
    /// Reads the vocabulary and the ids of its special tokens.
    pub(super) fn read(gguf: &Gguf<'a>) -> Result<Self> {
        let tokens = gguf.texts(TOKENS)?.ok_or_else(|| {
            gguf.refuse(TOKENS, "is missing: a file without a tokenizer is of no use here. Make it with one")
        })?;
        if let Some(long) = tokens.iter().position(|token| token.len() > LONGEST_TOKEN) {
            let reason = format!("element {long} is longer than {LONGEST_TOKEN} bytes");
            return Err(gguf.refuse(TOKENS, reason));
        }
        let id = |name: &str| -> Result<Option<TokenId>> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match gguf.integer(&key)? {
                // What llama.cpp writes for none in some files.
                None | Some(-1 | 0xFFFF_FFFF) => Ok(None),
                Some(id) if usize::try_from(id).is_ok_and(|id| id < tokens.len()) => Ok(Some(id)),
                Some(id) => {
                    let reason = format!("is {id}, outside the vocabulary of {}", tokens.len());
                    Err(gguf.refuse(&key, reason))
                }
            }
        };
        let eos = id("eos")?;
        let mut ends = vec![];
        for end in [eos, id("eot")?, id("eom")?].into_iter().flatten() {
            if !ends.contains(&end) {
                ends.push(end);
            }
        }
        let (bos, pad, unknown) = (id("bos")?, id("padding")?, id("unknown")?);
        Ok(Self { bos, eos, pad, unknown, ends, tokens })
    }

    fn text(&self, id: Option<TokenId>) -> Option<&'a str> {
        id.and_then(|id| self.tokens.get(usize::try_from(id).ok()?).copied())
    }
}

/// Writes `tokenizer.json` and `tokenizer_config.json`.
pub(super) fn write(
    gguf: &Gguf<'_>,
    special: &SpecialTokens<'_>,
    context_length: i64,
    folder: &Path,
) -> Result<()> {
    let parts = parts(gguf, special)?;
    let (adds_bos, adds_eos) = (
        gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(parts.adds_bos) && special.bos.is_some(),
        gguf.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false) && special.eos.is_some(),
    );
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(gguf, special)?,
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor(
            special.bos.filter(|_| adds_bos).zip(special.text(special.bos)),
            special.eos.filter(|_| adds_eos).zip(special.text(special.eos)),
        ),
        "decoder": parts.decoder,
        "model": parts.model,
    });
    let path = folder.join("tokenizer.json");
    let text = serde_json::to_string(&json).map_err(|source| Error::Json { path: path.clone(), source })?;
    write_text(&path, &text)?;

    let mut config = json!({
        "add_bos_token": adds_bos,
        "add_eos_token": adds_eos,
        "clean_up_tokenization_spaces": false,
        "model_max_length": context_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    for (key, id) in [
        ("bos_token", special.bos),
        ("eos_token", special.eos),
        ("pad_token", special.pad),
        ("unk_token", special.unknown),
    ] {
        config[key] = json!(special.text(id));
    }
    if let Some(template) = gguf.text(CHAT_TEMPLATE)? {
        config["chat_template"] = json!(template);
    }
    write_json(&folder.join("tokenizer_config.json"), &config)
}

/// The parts of a `tokenizer.json` that depend on the kind of tokenizer.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// Whether texts begin with `bos` in a file that does not say so.
    adds_bos: bool,
}

fn parts(gguf: &Gguf<'_>, special: &SpecialTokens<'_>) -> Result<Parts> {
    const MODEL: &str = "tokenizer.ggml.model";
    match gguf.text(MODEL)? {
        Some("gpt2") => byte_level(gguf, special),
        Some("llama") => sentencepiece(gguf, special),
        Some(other) => {
            let reason = format!(
                "`{other}` is not implemented; known are `gpt2` (BPE of bytes) and `llama` (SentencePiece)"
            );
            Err(gguf.refuse(MODEL, reason))
        }
        None => Err(gguf.refuse(MODEL, "is missing")),
    }
}

/// BPE on bytes, each written as a letter.
fn byte_level(gguf: &Gguf<'_>, special: &SpecialTokens<'_>) -> Result<Parts> {
    let byte_level = |cuts_words: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cuts_words});
    let sequence = |first: Value, cuts_words: bool| json!({"type": "Sequence", "pretokenizers": [first, byte_level(cuts_words)]});
    let split = |regex: &str| {
        let split =
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        sequence(split, false)
    };
    let pre = gguf.text(PRE)?.unwrap_or("default");
    // Whether a word that is a token stays whole even if no merges lead to it.
    let (pre_tokenizer, whole_words, adds_bos) = match pre {
        "default" | "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" => {
            (byte_level(true), false, false)
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            (sequence(json!({"type": "Digits", "individual_digits": true}), true), false, false)
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
            (split(LLAMA3), true, true)
        }
        "dbrx" | "smaug-bpe" => (split(LLAMA3), false, false),
        "tekken" => (split(TEKKEN), true, true),
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" => (split(QWEN2), false, false),
        other => {
            let reason = format!(
                "`{other}` is not implemented: how this tokenizer cuts text into words is not known here, and a guess would \
                 give wrong ids without a word. Known are those of GPT-2, SmolLM, StarCoder, Llama 3, Mistral (tekken) and \
                 Qwen 2 and 3"
            );
            return Err(gguf.refuse(PRE, reason));
        }
    };
    let merges = merges(gguf)?.ok_or_else(|| {
        gguf.refuse(MERGES, "is missing, which a tokenizer of the model `gpt2` cannot be without")
    })?;
    Ok(Parts {
        normalizer: if pre == "qwen2" { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer,
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: model(special, &merges, None, whole_words),
        adds_bos,
    })
}

/// BPE of SentencePiece: what the vocabulary lacks becomes bytes.
fn sentencepiece(gguf: &Gguf<'_>, special: &SpecialTokens<'_>) -> Result<Parts> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let space_first = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let merges = match merges(gguf)? {
        Some(merges) => merges,
        None => {
            let scores = gguf
                .floats(SCORES, special.tokens.len())?
                .ok_or_else(|| gguf.refuse(SCORES, "is missing, and so are merges"))?;
            merges_of_scores(&special.tokens, &scores)
        }
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space_first {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer: Value::Null,
        pre_tokenizer: json!({
            "type": "Metaspace",
            "replacement": "\u{2581}",
            "prepend_scheme": if space_first { "first" } else { "never" },
            "split": false,
        }),
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: model(special, &merges, Some(special.text(special.unknown)), false),
        adds_bos: true,
    })
}

/// The key of merges that the file lists.
const MERGES: &str = "tokenizer.ggml.merges";

/// The merges that the file lists.
fn merges<'a>(gguf: &Gguf<'a>) -> Result<Option<Vec<(&'a str, &'a str)>>> {
    let Some(lines) = gguf.texts(MERGES)? else { return Ok(None) };
    let pairs = lines.iter().enumerate().map(|(i, line)| {
        // A part may be a space itself.
        let cut = line.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(at, _)| at);
        let pair = cut.map(|at| (&line[..at], &line[at + 1..])).filter(|(_, right)| !right.is_empty());
        pair.ok_or_else(|| {
            gguf.refuse(MERGES, format!("element {i} is not two parts with a space between them"))
        })
    });
    pairs.collect::<Result<_>>().map(Some)
}

/// The merges that SentencePiece does: any two tokens whose union is one, unions of high scores first.
fn merges_of_scores<'a>(tokens: &[&'a str], scores: &[f64]) -> Vec<(&'a str, &'a str)> {
    // Of tokens that are there twice, the last one counts.
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, &token)| (token, id)).collect();
    let mut merges = vec![];
    for (id, &token) in tokens.iter().enumerate() {
        if ids.get(token) != Some(&id) {
            continue;
        }
        let first = merges.len();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&a), Some(&b)) = (ids.get(left), ids.get(right)) {
                merges.push((left, right, scores[id], (a, b)));
            }
        }
        merges[first..].sort_by_key(|&(.., ids)| ids);
    }
    // As transformers sorts them: longer parts first where scores are equal.
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        b.2.partial_cmp(&a.2)
            .unwrap_or(Ordering::Equal)
            .then_with(|| length(b.0).cmp(&length(a.0)))
            .then_with(|| length(b.1).cmp(&length(a.1)))
    });
    merges.into_iter().map(|(left, right, ..)| (left, right)).collect()
}

/// `model` of a `tokenizer.json`. The unknown token is that of a tokenizer that falls back to bytes.
fn model(
    special: &SpecialTokens<'_>,
    merges: &[(&str, &str)],
    unknown: Option<Option<&str>>,
    whole_words: bool,
) -> Value {
    let vocab: Map<String, Value> =
        special.tokens.iter().enumerate().map(|(id, token)| ((*token).to_string(), json!(id))).collect();
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown.flatten(),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": unknown.is_some(),
        "byte_fallback": unknown.is_some(),
        "ignore_merges": whole_words,
        "vocab": vocab,
        "merges": merges,
    })
}

/// Tokens that are cut out of a text before it is cut into words.
fn added_tokens(gguf: &Gguf<'_>, special: &SpecialTokens<'_>) -> Result<Vec<Value>> {
    let types = gguf.integers("tokenizer.ggml.token_type", special.tokens.len())?.unwrap_or_default();
    let kinds = types.iter().enumerate().filter(|(_, kind)| matches!(**kind, CONTROL | USER_DEFINED));
    // By text: of tokens that are there twice, the last one counts.
    let mut added: BTreeMap<&str, (usize, bool)> =
        kinds.map(|(id, &kind)| (special.tokens[id], (id, kind == CONTROL))).collect();
    let named = [special.bos, special.eos, special.pad, special.unknown];
    for id in named.into_iter().chain(special.ends.iter().map(|&id| Some(id))).flatten() {
        if let (Some(text), Ok(id)) = (special.text(Some(id)), usize::try_from(id)) {
            added.insert(text, (id, true));
        }
    }
    let mut added: Vec<_> = added.into_iter().filter(|(text, _)| !text.is_empty()).collect();
    added.sort_by_key(|&(_, (id, _))| id);
    let token = |(text, (id, special)): (&str, (usize, bool))| {
        json!({
            "id": id,
            "content": text,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": special,
        })
    };
    Ok(added.into_iter().map(token).collect())
}

/// Adds the tokens in front of a text and behind it, where there are any.
fn post_processor(front: Option<(TokenId, &str)>, behind: Option<(TokenId, &str)>) -> Value {
    if front.is_none() && behind.is_none() {
        return Value::Null;
    }
    let token =
        |(_, text): (TokenId, &str), part: usize| json!({"SpecialToken": {"id": text, "type_id": part}});
    let sequence = |name: &str, part: usize| {
        let text = json!({"Sequence": {"id": name, "type_id": part}});
        let parts = [front.map(|t| token(t, part)), Some(text), behind.map(|t| token(t, part))];
        parts.into_iter().flatten().collect::<Vec<_>>()
    };
    let mut specials = Map::new();
    for (id, text) in [front, behind].into_iter().flatten() {
        specials.insert(text.to_string(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    json!({
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": ([sequence("A", 0), sequence("B", 1)].concat()),
        "special_tokens": specials,
    })
}
