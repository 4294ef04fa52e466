//! Pairs of token ids, where they come from, and their log-probabilities under the reference.

use std::path::Path;

use ruminate_datasets::chat::{ChatTemplate, Message};
use ruminate_datasets::{DialoguePreference, PreferenceExample};
use ruminate_models::{Policy, TokenId, Tokenizer, Truncate, by_length};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::train::score_pairs;
use crate::{Collective, Error, Result, Shuffled};

/// A preference in token ids. Trajectories of a model go in as they are; texts through [`encode_pairs`], and dialogues through
/// [`encode_dialogues`].
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// What is given, special tokens included.
    pub prompt: Vec<TokenId>,
    /// The better completion, end token included.
    pub chosen: Vec<TokenId>,
    /// The worse one, end token included.
    pub rejected: Vec<TokenId>,
    /// Factor on the pair's loss.
    pub weight: f32,
    /// Where the pair comes from; rewards are also recorded by source. Empty for nowhere in particular.
    pub source: String,
    /// Log-probabilities of both completions under the reference, where they were [precomputed](precompute).
    pub reference: Option<[f32; 2]>,
}

impl Pair {
    /// A pair of weight 1.
    #[must_use]
    pub fn new(prompt: Vec<TokenId>, chosen: Vec<TokenId>, rejected: Vec<TokenId>) -> Self {
        Self { prompt, chosen, rejected, weight: 1.0, source: String::new(), reference: None }
    }
}

/// What is cut off a prompt that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptCut {
    /// Its end.
    #[default]
    KeepStart,
    /// Its beginning, but for the begin token.
    KeepEnd,
    /// Its middle.
    KeepBoth {
        /// Tokens of the end that stay, the end token included.
        tail: usize,
    },
}

/// Largest lengths in tokens, special tokens included. The defaults are TinyThinker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PairLengths {
    /// Of a prompt.
    pub max_prompt: usize,
    /// Of a completion, whose end is cut off.
    pub max_target: usize,
    /// What is cut off a prompt.
    pub cut: PromptCut,
}

impl PairLengths {
    fn check(&self) -> Result<()> {
        let Self { max_prompt, max_target, cut } = *self;
        for (key, length) in [("max_prompt", max_prompt), ("max_target", max_target)] {
            if length == 0 {
                return Err(Error::config(key, "is 0, which leaves no token".to_string()));
            }
        }
        match cut {
            PromptCut::KeepBoth { tail } if tail >= max_prompt => Err(Error::config(
                "cut",
                format!("keeps {tail} tokens of the end, but max_prompt is {max_prompt}"),
            )),
            _ => Ok(()),
        }
    }
}

impl Default for PairLengths {
    fn default() -> Self {
        Self { max_prompt: 200, max_target: 200, cut: PromptCut::KeepStart }
    }
}

/// What was cut and left out by [`encode_pairs`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedCounts {
    /// Pairs whose prompt was cut.
    pub prompts_cut: usize,
    /// Pairs with a completion that was cut.
    pub completions_cut: usize,
    /// Pairs left out, because their completions have the same tokens.
    pub equal: usize,
    /// Pairs left out, because a part of them has no tokens.
    pub empty: usize,
    /// Pairs whose completions begin before the end of the prompt's own tokens, because tokens merge there or the chat template
    /// writes a prompt differently once an answer follows it.
    pub boundaries: usize,
}

impl EncodedCounts {
    /// Adds those of other pairs.
    pub fn add(&mut self, other: Self) {
        self.prompts_cut += other.prompts_cut;
        self.completions_cut += other.completions_cut;
        self.equal += other.equal;
        self.empty += other.empty;
        self.boundaries += other.boundaries;
    }
}

/// Token ids of preferences, as the model's family wants them.
///
/// The tokenizer tells the family: T5's puts an end token behind every text, and nothing in front. Then prompts and completions are
/// encoded alone, each with its end token, which stays when a text is cut.
///
/// # Reference behaviour
/// For all others, such as Llama's, prompt and completion are one text, as in TRL 1.16: a completion without the end token
/// ([`Tokenizer::end_token`]) gets it; the prompt is what the encoded prompt has in common with both encoded wholes, and each
/// completion is the rest. Tokens of the prompt that merge with those of a completion are thereby left out of the prompt, and
/// counted. What is cut off a completion is its end, the end token included.
///
/// # Errors
/// When a length leaves no room, a tokenizer of the second kind names no end token, or the tokenizer fails.
pub fn encode_pairs(
    tokenizer: &Tokenizer,
    examples: &[PreferenceExample],
    lengths: PairLengths,
) -> Result<EncodedPairs> {
    lengths.check()?;
    let mut encoded = EncodedPairs::default();
    if matches!(tokenizer.added_tokens()?, (0, 1..)) {
        for example in examples {
            let (prompt, cut) = alone(tokenizer, &example.prompt, lengths)?;
            let complete = |text: &str| -> Result<(Vec<TokenId>, bool)> {
                let ids = tokenizer.encode(text)?;
                if ids.len() <= lengths.max_target {
                    return Ok((ids, false));
                }
                Ok((tokenizer.encode_truncated(text, lengths.max_target, Truncate::End)?, true))
            };
            let completions = [complete(&example.chosen)?, complete(&example.rejected)?];
            encoded.push((prompt, cut), completions, example.weight, &example.source);
        }
        return Ok(encoded);
    }
    let Some((end, _)) = tokenizer.end_token() else {
        return Err(Error::config(
            "tokenizer",
            "names no end token, which completions get: put tokenizer_config.json with `eos_token` beside \
             tokenizer.json, or call Tokenizer::set_end_token",
        ));
    };
    for example in examples {
        let whole = |completion: &str| {
            let end = if completion.ends_with(end) { "" } else { end };
            tokenizer.encode(&format!("{}{completion}{end}", example.prompt))
        };
        let prompt = tokenizer.encode(&example.prompt)?;
        let wholes = [whole(&example.chosen)?, whole(&example.rejected)?];
        encoded.push_joined(tokenizer, prompt, wholes, (example.weight, &example.source), lengths)?;
    }
    Ok(encoded)
}

/// Token ids of preferences between dialogues, rendered by a chat template: the prompt as it asks for an answer, and the
/// completions as the dialogue goes on with them. End tokens are those that the template writes.
///
/// # Reference behaviour
/// As [`encode_pairs`] of models without an encoder, by TRL 1.16: the text of a checkpoint's own template is encoded with no other
/// tokens than it holds. Named templates leave the begin token to the tokenizer.
///
/// # Errors
/// When a length leaves no room, the template refuses a dialogue, or the tokenizer fails.
pub fn encode_dialogues(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    examples: &[DialoguePreference],
    lengths: PairLengths,
) -> Result<EncodedPairs> {
    lengths.check()?;
    let mut encoded = EncodedPairs::default();
    let encode = |messages: &[Message], ask: bool| -> Result<Vec<TokenId>> {
        let text = template.render(messages, ask)?;
        Ok(match template {
            ChatTemplate::Jinja(_) => tokenizer.encode_plain(&text)?,
            ChatTemplate::Named(_) => tokenizer.encode_with_offsets(&text)?.ids,
        })
    };
    for example in examples {
        let whole = |completion: &[Message]| encode(&[&example.prompt[..], completion].concat(), false);
        let prompt = encode(&example.prompt, true)?;
        let wholes = [whole(&example.chosen)?, whole(&example.rejected)?];
        encoded.push_joined(tokenizer, prompt, wholes, (example.weight, &example.source), lengths)?;
    }
    Ok(encoded)
}

/// A prompt that is encoded by itself, and whether it was cut.
fn alone(tokenizer: &Tokenizer, text: &str, lengths: PairLengths) -> Result<(Vec<TokenId>, bool)> {
    let PairLengths { max_prompt, cut, .. } = lengths;
    let prompt = tokenizer.encode(text)?;
    if prompt.len() <= max_prompt {
        return Ok((prompt, false));
    }
    let prompt = match cut {
        PromptCut::KeepStart => tokenizer.encode_truncated(text, max_prompt, Truncate::End)?,
        PromptCut::KeepEnd => tokenizer.encode_truncated(text, max_prompt, Truncate::Start)?,
        PromptCut::KeepBoth { tail } => both_ends(&prompt, max_prompt, tail),
    };
    Ok((prompt, true))
}

fn both_ends(prompt: &[TokenId], max: usize, tail: usize) -> Vec<TokenId> {
    [&prompt[..max - tail], &prompt[prompt.len() - tail..]].concat()
}

/// Pairs in token ids: the result of [`encode_pairs`] and [`encode_dialogues`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EncodedPairs {
    /// The pairs that can be trained on.
    pub pairs: Vec<Pair>,
    /// Counts of pairs that were cut or left out.
    pub counts: EncodedCounts,
}

impl EncodedPairs {
    /// Adds a pair of which each part says whether it was cut.
    fn push(
        &mut self,
        (prompt, prompt_cut): (Vec<TokenId>, bool),
        [(chosen, chosen_cut), (rejected, rejected_cut)]: [(Vec<TokenId>, bool); 2],
        weight: f32,
        source: &str,
    ) {
        self.counts.prompts_cut += usize::from(prompt_cut);
        self.counts.completions_cut += usize::from(chosen_cut || rejected_cut);
        if prompt.is_empty() || chosen.is_empty() || rejected.is_empty() {
            self.counts.empty += 1;
        } else if chosen == rejected {
            self.counts.equal += 1;
        } else {
            self.pairs.push(Pair { weight, source: source.into(), ..Pair::new(prompt, chosen, rejected) });
        }
    }

    /// Adds a pair whose prompt was encoded alone and with each completion behind it.
    fn push_joined(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: Vec<TokenId>,
        wholes: [Vec<TokenId>; 2],
        (weight, source): (f32, &str),
        lengths: PairLengths,
    ) -> Result<()> {
        let common = |whole: &[TokenId]| prompt.iter().zip(whole).take_while(|(a, b)| a == b).count();
        let length = common(&wholes[0]).min(common(&wholes[1]));
        self.counts.boundaries += usize::from(length < prompt.len());
        let PairLengths { max_prompt, max_target, cut } = lengths;
        let completion = |whole: &[TokenId]| {
            let ids = &whole[length..];
            (ids[..ids.len().min(max_target)].to_vec(), ids.len() > max_target)
        };
        let completions = wholes.each_ref().map(|whole| completion(whole));
        let prompt = &prompt[..length];
        let kept = match cut {
            _ if prompt.len() <= max_prompt => prompt.to_vec(),
            PromptCut::KeepStart => prompt[..max_prompt].to_vec(),
            // The begin token stays.
            PromptCut::KeepEnd => {
                let (front, _) = tokenizer.added_tokens()?;
                let begins = tokenizer.encode("")?;
                let front = if prompt.starts_with(&begins[..front.min(begins.len())]) { front } else { 0 };
                let front = front.min(max_prompt);
                [&prompt[..front], &prompt[prompt.len() - (max_prompt - front)..]].concat()
            }
            PromptCut::KeepBoth { tail } => both_ends(prompt, max_prompt, tail),
        };
        let prompt_cut = kept.len() < prompt.len();
        self.push((kept, prompt_cut), completions, weight, source);
        Ok(())
    }
}

/// Fills in the log-probabilities under a reference, which is not needed any more then. Pairs of similar length go through the model
/// together, `batch_size` at a time; the values depend on nothing else in the batch. `ld_alpha` is that of the
/// [configuration](super::DpoConfig::ld_alpha).
///
/// # Errors
/// When the model fails.
pub fn precompute<P: Policy>(
    reference: &P,
    pairs: &mut [Pair],
    ld_alpha: f64,
    batch_size: usize,
) -> Result<()> {
    let prompts: Vec<&[TokenId]> = pairs.iter().map(|pair| pair.prompt.as_slice()).collect();
    let values = tch::no_grad(|| {
        by_length(&prompts, batch_size, |rows| {
            let batch: Vec<&Pair> = rows.iter().map(|&row| &pairs[row]).collect();
            let logps = score_pairs(reference, &batch, ld_alpha, false)?.logps;
            let (chosen, rejected) =
                (Vec::<f32>::try_from(&logps.chosen)?, Vec::<f32>::try_from(&logps.rejected)?);
            Ok::<_, Error>(chosen.into_iter().zip(rejected).map(|(c, r)| [c, r]).collect())
        })
    })?;
    for (pair, value) in pairs.iter_mut().zip(values) {
        pair.reference = Some(value);
    }
    Ok(())
}

/// What [`precompute_cached`] keeps.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cache {
    key: String,
    logps: Vec<[f32; 2]>,
}

/// As [`precompute`], but once: the values are kept in a file, and read from it as long as pairs, weights and `ld_alpha` are the
/// same. Tells whether they were read. Processes divide the pairs, and rank 0 keeps the file.
///
/// # Errors
/// When the model fails, or the file cannot be written. A file that cannot be read is made anew.
pub fn precompute_cached<P: Policy>(
    reference: &P,
    pairs: &mut [Pair],
    ld_alpha: f64,
    batch_size: usize,
    file: &Path,
    collective: &Collective,
) -> Result<bool> {
    let key = cache_key(reference, pairs, ld_alpha)?;
    let stored = collective.first(|| -> Result<_> {
        let cache = ruminate_datasets::json::read::<Cache>(file).ok().filter(|cache| {
            let finite = cache.logps.iter().flatten().all(|value| value.is_finite());
            finite && cache.key == key && cache.logps.len() == pairs.len()
        });
        Ok(cache.map(|cache| cache.logps))
    })?;
    let read = stored.is_some();
    let logps = match stored {
        Some(logps) => logps,
        None => {
            let bits = collective.map(pairs.len(), |mine| {
                let mut part: Vec<Pair> = mine.iter().map(|&i| pairs[i].clone()).collect();
                precompute(reference, &mut part, ld_alpha, batch_size)?;
                // As bits, because JSON cannot encode NaN.
                Ok(part.iter().filter_map(|pair| pair.reference).map(|of| of.map(f32::to_bits)).collect())
            })?;
            bits.into_iter().map(|of| of.map(f32::from_bits)).collect()
        }
    };
    for (pair, &value) in pairs.iter_mut().zip(&logps) {
        pair.reference = Some(value);
    }
    if !read && collective.is_main_process() {
        ruminate_datasets::json::write(file, &Cache { key, logps })?;
    }
    Ok(read)
}

/// Changes with whatever the log-probabilities depend on.
fn cache_key<P: Policy>(reference: &P, pairs: &[Pair], ld_alpha: f64) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(env!("CARGO_PKG_VERSION").as_bytes()).update(&ld_alpha.to_le_bytes());
    for pair in pairs {
        for ids in [&pair.prompt, &pair.chosen, &pair.rejected] {
            hasher.update(&(ids.len() as u64).to_le_bytes());
            for id in ids {
                hasher.update(&id.to_le_bytes());
            }
        }
    }
    for (name, tensor) in reference.parameters().iter() {
        hasher.update(name.as_bytes());
        let flat =
            tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_to_kind(tch::Kind::Float)?.f_reshape([-1])?;
        for value in Vec::<f32>::try_from(flat)? {
            hasher.update(&value.to_le_bytes());
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Where pairs come from, in which order.
pub trait PairSource {
    /// Takes this process's part of the data, as [`Curriculum::distribute`](crate::Curriculum::distribute) does.
    ///
    /// # Errors
    /// When the data cannot be divided, or has too few pairs.
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        Error::alone(collective.size())
    }

    /// The pairs of the next micro-batch of step `step`.
    ///
    /// # Errors
    /// When data cannot be read.
    fn next(&mut self, step: u64) -> Result<Vec<Pair>>;

    /// Position in the data.
    fn state(&self) -> serde_json::Value;

    /// Continues from a position that [`state`](Self::state) returned.
    ///
    /// # Errors
    /// When the state belongs to other data.
    fn load_state(&mut self, state: serde_json::Value) -> Result<()>;
}

/// Pairs in an order that is drawn anew for each epoch.
pub type ShuffledPairs = Shuffled<Pair>;

impl PairSource for ShuffledPairs {
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.shard(collective.shard()?)
    }

    fn next(&mut self, _: u64) -> Result<Vec<Pair>> {
        Ok(self.next_batch())
    }

    fn state(&self) -> serde_json::Value {
        Shuffled::state(self)
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        Shuffled::load_state(self, state)
    }
}
