//! The data pool: all samples so far, ranked by every reward.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::control::{Buckets, ControlConfig, RewardSpec, Ties};
use crate::{Error, Result};

/// The file of the data pool in a checkpoint: one [`Ranked`] sample per line.
pub const POOL: &str = "pool.jsonl";

/// A response that was judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolSample<T> {
    /// What it answers, as text.
    pub prompt: String,
    /// What was answered, as text. Samples with the same prompt and response share their buckets.
    pub response: String,
    /// One score for each reward; one that is missing, or no number, takes the sample out of the pool.
    pub scores: Vec<Option<f64>>,
    /// Whether the answer is right.
    pub correct: bool,
    /// Whatever is needed to train on it.
    pub item: T,
}

/// A sample with its place in the ranking of every reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranked<T> {
    /// The sample.
    pub sample: PoolSample<T>,
    /// Its bucket for each reward, 0 is the best; in product mode one bucket only.
    pub buckets: Vec<usize>,
}

/// All samples so far. Every round ranks them anew, so that a bucket is a quantile of the whole pool.
///
/// The order is that of the last reward's scores, best first; equal scores keep the order that they had, and new samples
/// come after old ones. Samples with the same prompt and response stay separate, but all take what the last of them in a
/// reward's ranking has. A sample that lacks a score, or has less than a threshold, leaves the pool for good.
///
/// # Example
/// ```
/// use ruminate_algorithms::quark::{ControlConfig, DataPool, PoolSample};
///
/// let sample = |response: &str, score| PoolSample {
///     prompt: "Why?".into(),
///     response: response.into(),
///     scores: vec![Some(score)],
///     correct: true,
///     item: (),
/// };
/// let mut pool = DataPool::new(ControlConfig::single("brevity", 2))?;
/// pool.add(vec![sample("a", 0.1), sample("b", 0.9), sample("c", 0.4), sample("d", 0.2)], 0)?;
/// let ranking: Vec<_> = pool.samples().iter().map(|s| (s.sample.response.as_str(), s.buckets[0])).collect();
/// assert_eq!(ranking, [("b", 0), ("c", 0), ("d", 1), ("a", 1)]);
/// # Ok::<(), ruminate_algorithms::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct DataPool<T> {
    config: ControlConfig,
    samples: Vec<Ranked<T>>,
}

/// Bucket and score in one ranking, for each pair of prompt and response.
type Places = Vec<Option<(usize, f64)>>;

impl<T: Clone> DataPool<T> {
    /// An empty pool.
    ///
    /// # Errors
    /// When the configuration is wrong.
    pub fn new(config: ControlConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config, samples: vec![] })
    }

    /// The samples, in their order.
    #[must_use]
    pub fn samples(&self) -> &[Ranked<T>] {
        &self.samples
    }

    /// How many samples there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Takes up the samples of [`samples`](Self::samples) as they were, e.g. from a file.
    ///
    /// # Errors
    /// When they have other rewards.
    pub fn restore(&mut self, samples: Vec<Ranked<T>>) -> Result<()> {
        let (rewards, rankings) = (self.config.rewards.len(), self.rankings());
        let fits = |s: &Ranked<T>| s.sample.scores.len() == rewards && s.buckets.len() == rankings;
        if let Some(i) = samples.iter().position(|sample| !fits(sample)) {
            let reason = format!("sample {i} belongs to other rewards than the {rewards} of this run");
            return Err(Error::Pool { reason });
        }
        self.samples = samples;
        Ok(())
    }

    /// Adds the samples that came before the update of step `step`, and ranks all anew.
    ///
    /// # Errors
    /// When a sample has not one score per reward, a score is none of the [`Values`](Buckets::Values) of its reward, or
    /// no sample is left; the pool stays as it was.
    pub fn add(&mut self, new: Vec<PoolSample<T>>, step: u64) -> Result<()> {
        let rewards = self.config.rewards.len();
        if let Some(i) = new.iter().position(|sample| sample.scores.len() != rewards) {
            let reason =
                format!("sample {i} has {} scores, but there are {rewards} rewards", new[i].scores.len());
            return Err(Error::Pool { reason });
        }
        let all: Vec<&PoolSample<T>> = self.samples.iter().map(|ranked| &ranked.sample).chain(&new).collect();
        let mut keys: HashMap<(&str, &str), usize> = HashMap::new();
        let mut key_of = vec![];
        for sample in &all {
            let next = keys.len();
            key_of.push(*keys.entry((&sample.prompt, &sample.response)).or_insert(next));
        }
        let mut places: Vec<Places> = vec![vec![None; keys.len()]; self.rankings()];
        let filters = self.config.stages.training(step, rewards);
        let mut order = vec![];
        for (ranking, places) in places.iter_mut().enumerate() {
            order = self.rank(&all, ranking, &filters);
            let buckets = self.buckets(&order, ranking)?;
            for (&(i, score), bucket) in order.iter().zip(buckets) {
                places[key_of[i]] = Some((bucket, score));
            }
        }
        if self.config.as_product {
            // Equal samples keep the buckets of their own positions there.
            let buckets = self.buckets(&order, 0)?;
            let ranked = |(&(i, _), bucket): (&(usize, f64), usize)| Ranked {
                sample: all[i].clone(),
                buckets: vec![bucket],
            };
            let samples: Vec<Ranked<T>> = order.iter().zip(buckets).map(ranked).collect();
            if samples.is_empty() {
                return Err(Error::Pool { reason: self.why_empty(&all, &filters) });
            }
            self.samples = samples;
            return Ok(());
        }
        let mut last = vec![0; keys.len()];
        order.iter().for_each(|&(i, _)| last[key_of[i]] = i);
        let ranked = order.iter().filter_map(|&(i, _)| {
            let key = key_of[i];
            let places: Vec<(usize, f64)> = places.iter().map(|places| places[key]).collect::<Option<_>>()?;
            let mut sample = all[last[key]].clone();
            sample.scores = places.iter().map(|&(_, score)| Some(score)).collect();
            Some(Ranked { sample, buckets: places.iter().map(|&(bucket, _)| bucket).collect() })
        });
        let samples: Vec<Ranked<T>> = ranked.collect();
        if samples.is_empty() {
            return Err(Error::Pool { reason: self.why_empty(&all, &filters) });
        }
        self.samples = samples;
        Ok(())
    }

    /// Writes [`POOL`] into a folder.
    ///
    /// # Errors
    /// When the folder is not writable or the disk is full.
    pub fn save(&self, folder: &Path) -> Result<()>
    where
        T: Serialize,
    {
        let path = folder.join(POOL);
        let io = |error| Error::io("write", &path)(error);
        let mut file = BufWriter::new(File::create(&path).map_err(io)?);
        for sample in &self.samples {
            serde_json::to_writer(&mut file, sample).map_err(|error| io(error.into()))?;
            file.write_all(b"\n").map_err(io)?;
        }
        file.flush().map_err(io)
    }

    /// Takes up what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// When the file cannot be read, a line is no sample, or the samples have other rewards.
    pub fn load(&mut self, folder: &Path) -> Result<()>
    where
        T: DeserializeOwned,
    {
        let path = folder.join(POOL);
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let parse = |(i, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| Error::Checkpoint {
                path: path.clone(),
                reason: format!("line {} is no sample: {error}", i + 1),
            })
        };
        let samples = text.lines().enumerate().map(parse).collect::<Result<Vec<Ranked<T>>>>()?;
        self.restore(samples).map_err(|error| Error::config("control.rewards", error.to_string()))
    }

    /// Rankings: one for each reward, or that of the product.
    fn rankings(&self) -> usize {
        if self.config.as_product { 1 } else { self.config.rewards.len() }
    }

    /// Indices and scores of the samples that take part in a ranking, best first.
    fn rank(&self, all: &[&PoolSample<T>], ranking: usize, filters: &Range<usize>) -> Vec<(usize, f64)> {
        let threshold = match self.config.rewards[ranking].option.threshold() {
            Some(threshold) if filters.contains(&ranking) && !self.config.as_product => threshold,
            _ => f64::NEG_INFINITY,
        };
        let score = |sample: &PoolSample<T>| {
            if self.config.as_product {
                return sample.scores.iter().map(number).product();
            }
            number(&sample.scores[ranking])
        };
        let scores = all.iter().enumerate().filter_map(|(i, sample)| Some((i, score(sample)?)));
        let mut order: Vec<(usize, f64)> = scores.filter(|&(_, score)| score >= threshold).collect();
        // Stable, so that equal scores keep the pool's order.
        order.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal));
        order
    }

    /// The buckets of a ranking, in its order.
    fn buckets(&self, order: &[(usize, f64)], ranking: usize) -> Result<Vec<usize>> {
        let RewardSpec { name, buckets, .. } = &self.config.rewards[ranking];
        let product = self.config.product();
        let buckets = if self.config.as_product { &product } else { buckets };
        let mut first = 0;
        let bucket = |(position, &(_, score)): (usize, &(usize, f64))| {
            Ok(match buckets {
                Buckets::Quantiles { count, ties } => {
                    if *ties == Ties::Split || position == 0 || order[position - 1].1 != score {
                        first = position;
                    }
                    quantile(first, order.len(), *count)
                }
                Buckets::Correctness => usize::from(score < 0.5),
                Buckets::Values(values) => {
                    values.iter().position(|&value| value == score).ok_or_else(|| Error::Pool {
                        reason: format!("reward `{name}` gave {score}, which is none of {values:?}"),
                    })?
                }
            })
        };
        order.iter().enumerate().map(bucket).collect()
    }

    fn why_empty(&self, all: &[&PoolSample<T>], filters: &Range<usize>) -> String {
        let left = |ranking: usize| {
            let name =
                if self.config.as_product { "the product" } else { &self.config.rewards[ranking].name };
            format!("{} for {name}", self.rank(all, ranking, filters).len())
        };
        let left: Vec<String> = (0..self.rankings()).map(left).collect();
        format!(
            "no sample is left: of {} there are scores that pass the threshold of {}; look at the responses, or lower \
             the thresholds",
            all.len(),
            left.join(", ")
        )
    }
}

/// A score that is a number.
fn number(score: &Option<f64>) -> Option<f64> {
    score.filter(|score| score.is_finite())
}

/// The bucket of a position: blocks of `len / count`, and the rest in the last.
fn quantile(position: usize, len: usize, count: usize) -> usize {
    position.checked_div(len / count).map_or(count - 1, |bucket| bucket.min(count - 1))
}
