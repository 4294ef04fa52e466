//! The decode loop of encoder-decoder models.

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::filter::draw;
use super::{Finish, Generate, Generated, GenerationConfig, Strategy, filter_logits, forbid};
use crate::{Error, Result, T5, TokenId};

/// On an accelerator, the steps between two looks at whether all rows have ended: looking waits for the device.
const STEPS_BETWEEN_CHECKS: usize = 8;

impl Generate for T5 {
    fn generate(
        &self,
        prompts: &[Vec<TokenId>],
        config: &GenerationConfig,
        seeds: &[u64],
    ) -> Result<Vec<Vec<Generated>>> {
        config.validate(self.config().vocab_size)?;
        if prompts.is_empty() {
            return Ok(vec![]);
        }
        tch::no_grad(|| Loop::new(self, prompts.len(), config, seeds)?.run(prompts))
    }
}

/// Everything that a decode step needs, allocated before the first one.
struct Loop<'a> {
    model: &'a T5,
    config: &'a GenerationConfig,
    rows: i64,
    stop_ids: Tensor,
    forbidden_ids: Option<Tensor>,
    /// Uniform numbers `[rows, max_new_tokens]` when sampling.
    uniform: Option<Tensor>,
    /// Start token and new tokens `[rows, 1 + max_new_tokens]`.
    tokens: Tensor,
    /// Of the chosen tokens `[rows, max_new_tokens]`.
    log_probs: Tensor,
    sampling_log_probs: Tensor,
    /// Rows that have ended `[rows, 1]`.
    finished: Tensor,
}

impl<'a> Loop<'a> {
    fn new(model: &'a T5, prompts: usize, config: &'a GenerationConfig, seeds: &[u64]) -> Result<Self> {
        let device = model.device();
        let rows = (prompts * config.samples_per_prompt) as i64;
        let time = config.max_new_tokens as i64;
        let uniform = match config.strategy {
            Strategy::Greedy => None,
            Strategy::Sample(_) if seeds.len() == prompts => {
                Some(uniform_numbers(seeds, config)?.f_view_([rows, time])?.f_to_device(device)?)
            }
            Strategy::Sample(_) => {
                let reason = format!("{} seeds for {prompts} prompts; sampling needs one each", seeds.len());
                return Err(Error::invalid("generation", reason));
            }
        };
        let ids = |ids: &[TokenId]| Ok::<_, Error>(Tensor::f_from_slice(ids)?.f_to_device(device)?);
        let eos = [model.config().eos_token_id];
        let stop_ids = if config.stop_ids.is_empty() { &eos[..] } else { &config.stop_ids };
        let early = if config.min_new_tokens > 0 { stop_ids } else { &[] };
        let barred: BTreeSet<&TokenId> = config.forbidden_ids.iter().chain(early).collect();
        if barred.len() as i64 >= model.config().vocab_size {
            let reason = "forbidden_ids, and the stop tokens before min_new_tokens, leave no token to choose";
            return Err(Error::invalid("generation", reason));
        }
        let stop_ids = ids(stop_ids)?;
        let forbidden_ids =
            if config.forbidden_ids.is_empty() { None } else { Some(ids(&config.forbidden_ids)?) };
        let start = model.config().decoder_start_token_id;
        Ok(Self {
            model,
            config,
            rows,
            stop_ids,
            forbidden_ids,
            uniform,
            tokens: Tensor::f_full([rows, 1 + time], start, (Kind::Int64, device))?,
            log_probs: Tensor::f_zeros([rows, time], (Kind::Float, device))?,
            sampling_log_probs: Tensor::f_zeros([rows, time], (Kind::Float, device))?,
            finished: Tensor::f_zeros([rows, 1], (Kind::Bool, device))?,
        })
    }

    fn run(mut self, prompts: &[Vec<TokenId>]) -> Result<Vec<Vec<Generated>>> {
        let encoded = self.model.encode_with(&self.model.batch(prompts)?, 0.0, None)?;
        let mut decoding =
            self.model.start_decoding(&encoded, self.rows, self.config.max_new_tokens as i64)?;
        for step in 0..self.config.max_new_tokens {
            let states = decoding.step(&self.tokens.f_narrow(1, step as i64, 1)?)?;
            self.choose(&self.model.logits(&states.f_squeeze_dim(1)?)?, step)?;
            if self.all_finished(step)? {
                break;
            }
        }
        self.collect()
    }

    /// Chooses the next token of every row from logits `[rows, vocab]`.
    fn choose(&mut self, logits: &Tensor, step: usize) -> Result<()> {
        let at = step as i64;
        let mut allowed = logits.shallow_clone();
        if step < self.config.min_new_tokens {
            allowed = forbid(&allowed, &self.stop_ids)?;
        }
        if let Some(ids) = &self.forbidden_ids {
            allowed = forbid(&allowed, ids)?;
        }
        let log_prob = |logits: &Tensor, token: &Tensor| {
            logits.f_gather(1, token, false)?.f_sub(&logits.f_logsumexp([1].as_slice(), true)?)
        };
        let token = match (&self.config.strategy, &self.uniform) {
            (Strategy::Sample(sampling), Some(uniform)) => {
                let filtered = filter_logits(&allowed, sampling)?;
                let token = draw(&filtered, &uniform.f_narrow(1, at, 1)?)?;
                self.sampling_log_probs.f_narrow(1, at, 1)?.f_copy_(&log_prob(&filtered, &token)?)?;
                token
            }
            _ => allowed.f_argmax(1, true)?,
        };
        self.log_probs.f_narrow(1, at, 1)?.f_copy_(&log_prob(logits, &token)?)?;
        // What ended rows go on to produce is cut off when the rows are collected.
        self.tokens.f_narrow(1, at + 1, 1)?.f_copy_(&token)?;
        let stopped = Tensor::f_isin(&token, &self.stop_ids, false, false)?;
        self.finished = self.finished.f_logical_or(&stopped)?;
        Ok(())
    }

    fn all_finished(&self, step: usize) -> Result<bool> {
        let waits = self.model.device() != Device::Cpu;
        if waits && !(step + 1).is_multiple_of(STEPS_BETWEEN_CHECKS) {
            return Ok(false);
        }
        Ok(bool::try_from(self.finished.f_all()?)?)
    }

    /// One transfer to the host at the end, and the rows cut behind their stop tokens.
    fn collect(self) -> Result<Vec<Vec<Generated>>> {
        let tokens: Vec<Vec<TokenId>> =
            Vec::try_from(self.tokens.f_narrow(1, 1, self.config.max_new_tokens as i64)?)?;
        let log_probs: Vec<Vec<f32>> = Vec::try_from(&self.log_probs)?;
        let sampling: Vec<Vec<f32>> = match self.uniform {
            Some(_) => Vec::try_from(&self.sampling_log_probs)?,
            None => log_probs.clone(),
        };
        let stop_ids: Vec<TokenId> = Vec::try_from(&self.stop_ids)?;
        let rows = tokens.into_iter().zip(log_probs).zip(sampling).map(|((mut ids, mut raw), mut drawn)| {
            let stop = ids.iter().position(|id| stop_ids.contains(id));
            let length = stop.map_or(ids.len(), |at| at + 1);
            ids.truncate(length);
            raw.truncate(length);
            drawn.truncate(length);
            let finish = if stop.is_some() { Finish::Stop } else { Finish::Length };
            Generated { ids, log_probs: raw, sampling_log_probs: drawn, finish }
        });
        let rows: Vec<Generated> = rows.collect();
        Ok(rows.chunks(self.config.samples_per_prompt).map(<[Generated]>::to_vec).collect())
    }
}

/// Uniform numbers in `[0, 1)` for every prompt, sample and step. Each sample has a stream of its own, so that its
/// numbers depend on its prompt's seed alone.
fn uniform_numbers(seeds: &[u64], config: &GenerationConfig) -> Result<Tensor> {
    let mut numbers = Vec::with_capacity(seeds.len() * config.samples_per_prompt * config.max_new_tokens);
    for &seed in seeds {
        for sample in 0..config.samples_per_prompt {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(sample as u64);
            numbers.extend((0..config.max_new_tokens).map(|_| {
                // 23 bits, so that the product with a total stays below the total after rounding.
                (rng.random::<u32>() >> 9) as f32 / (1u32 << 23) as f32
            }));
        }
    }
    Ok(Tensor::f_from_slice(&numbers)?)
}
