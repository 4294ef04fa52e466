//! Pairs of token ids, where they come from, and their log-probabilities under the reference.

use std::path::Path;

use ruminate_datasets::{PreferenceExample, Shard};
use ruminate_models::{Policy, TokenId, Tokenizer, Truncate, by_length};
use serde::{Deserialize, Serialize};

use super::train::score_pairs;
use crate::{Error, Peers, Result, Shuffled};

/// A preference in token ids. Trajectories of a model go in as they are; texts through [`encode_pairs`].
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptCut {
    /// Its end.
    #[default]
    KeepStart,
    /// Its beginning.
    KeepEnd,
    /// Its middle.
    KeepBoth {
        /// Tokens of the end that stay, the end token included.
        tail: usize,
    },
}

/// Largest lengths in tokens, special tokens included. The defaults are TinyThinker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PairLengths {
    /// Of a prompt.
    pub max_prompt: usize,
    /// Of a completion, whose end is cut off.
    pub max_target: usize,
    /// What is cut off a prompt.
    pub cut: PromptCut,
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
}

impl EncodedCounts {
    /// Adds those of other pairs.
    pub fn add(&mut self, other: Self) {
        self.prompts_cut += other.prompts_cut;
        self.completions_cut += other.completions_cut;
        self.equal += other.equal;
        self.empty += other.empty;
    }
}

/// Token ids of preferences: prompts and completions, each encoded alone, with the special tokens of the tokenizer.
///
/// # Errors
/// When a length leaves no room, or the tokenizer fails.
pub fn encode_pairs(
    tokenizer: &Tokenizer,
    examples: &[PreferenceExample],
    lengths: PairLengths,
) -> Result<(Vec<Pair>, EncodedCounts)> {
    let PairLengths { max_prompt, max_target, cut } = lengths;
    if let PromptCut::KeepBoth { tail } = cut
        && tail >= max_prompt
    {
        return Err(Error::config(
            "cut",
            format!("keeps {tail} tokens of the end, but max_prompt is {max_prompt}"),
        ));
    }
    let mut counts = EncodedCounts::default();
    let mut pairs = Vec::with_capacity(examples.len());
    for example in examples {
        let mut prompt = tokenizer.encode(&example.prompt)?;
        if prompt.len() > max_prompt {
            counts.prompts_cut += 1;
            prompt = match cut {
                PromptCut::KeepStart => {
                    tokenizer.encode_truncated(&example.prompt, max_prompt, Truncate::End)?
                }
                PromptCut::KeepEnd => {
                    tokenizer.encode_truncated(&example.prompt, max_prompt, Truncate::Start)?
                }
                PromptCut::KeepBoth { tail } => {
                    let (start, end) = (&prompt[..max_prompt - tail], &prompt[prompt.len() - tail..]);
                    [start, end].concat()
                }
            };
        }
        let complete = |text: &str| -> Result<(Vec<TokenId>, bool)> {
            let ids = tokenizer.encode(text)?;
            if ids.len() <= max_target {
                return Ok((ids, false));
            }
            Ok((tokenizer.encode_truncated(text, max_target, Truncate::End)?, true))
        };
        let ((chosen, first_cut), (rejected, second_cut)) =
            (complete(&example.chosen)?, complete(&example.rejected)?);
        counts.completions_cut += usize::from(first_cut || second_cut);
        if prompt.is_empty() || chosen.is_empty() || rejected.is_empty() {
            counts.empty += 1;
        } else if chosen == rejected {
            counts.equal += 1;
        } else {
            let (weight, source) = (example.weight, example.source.clone());
            pairs.push(Pair { weight, source, ..Pair::new(prompt, chosen, rejected) });
        }
    }
    Ok((pairs, counts))
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
    peers: &Peers,
) -> Result<bool> {
    let key = cache_key(reference, pairs, ld_alpha)?;
    let stored = peers.first(|| -> Result<_> {
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
            let bits = peers.map(pairs.len(), |mine| {
                let mut part: Vec<Pair> = mine.iter().map(|&i| pairs[i].clone()).collect();
                precompute(reference, &mut part, ld_alpha, batch_size)?;
                // No number survives JSON that is none.
                Ok(part.iter().filter_map(|pair| pair.reference).map(|of| of.map(f32::to_bits)).collect())
            })?;
            bits.into_iter().map(|of| of.map(f32::from_bits)).collect()
        }
    };
    for (pair, &value) in pairs.iter_mut().zip(&logps) {
        pair.reference = Some(value);
    }
    if !read && peers.leads() {
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
    /// Takes one of several equal parts of the data, as [`Curriculum::deal`](crate::Curriculum::deal) does.
    ///
    /// # Errors
    /// When the data cannot be divided, or has too few pairs.
    fn deal(&mut self, shard: Shard) -> Result<()> {
        Error::alone(shard.world())
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
    fn deal(&mut self, shard: Shard) -> Result<()> {
        Shuffled::deal(self, shard)
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
