//! The decode loop: greedy choice and sampling.

use std::collections::BTreeSet;
use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ruminate_torch::Choice;
use ruminate_torch::kernels::Kernel;
use tch::{Device, Kind, Tensor};

use super::listener::{Chosen, Heard, Part, check_listening};
use super::portions::{Portion, portions};
use super::processor::choose;
use super::replay::Replayed;
use super::rules::{processors, stop_ids, token_table};
use super::stop_strings::StopStrings;
use super::{
    Beam, Decoder, Finish, Generated, GenerationConfig, History, Interrupt, Listener, MAX_TOKENS, Prefill,
    Processor, Started, Steps, Strategy, beam,
};
use crate::{Error, Result, TokenId};

/// On an accelerator, the steps between two looks at which rows have ended: looking waits for the device.
const STEPS_BETWEEN_CHECKS: usize = 8;

/// [`Generate::generate`](super::Generate::generate) for any decoder, heard by a listener where there is one.
pub(crate) fn generate<D: Decoder>(
    model: &D,
    prompts: &[Vec<TokenId>],
    config: &GenerationConfig,
    seeds: &[u64],
    listener: Option<&mut dyn Listener>,
) -> Result<Vec<Vec<Generated>>> {
    config.validate(model.vocab_size())?;
    if listener.is_some() {
        check_listening(config)?;
    }
    if prompts.is_empty() {
        return Ok(vec![]);
    }
    check_choice(model, config)?;
    check_seeds(prompts.len(), config, seeds)?;
    let limits = new_tokens(model, prompts, config)?;
    let most = limits.iter().copied().max().unwrap_or(config.max_new_tokens);
    let at_limit = matches!(config.strategy, Strategy::Beam(_)) || config.forced_eos_token_id.is_some();
    if at_limit && limits.iter().any(|&limit| limit < most) {
        return generate_by_limit(model, prompts, config, seeds, &limits, listener);
    }
    let config = &GenerationConfig { max_new_tokens: most, ..config.clone() };
    check_rows(prompts.len(), config)?;
    let mut results = vec![vec![]; prompts.len()];
    let mut listener = listener;
    for Portion { prompts: range, samples } in portions(model, prompts, config) {
        Interrupt::check()?;
        let part = GenerationConfig { samples_per_prompt: samples.len(), ..config.clone() };
        let seeds = seeds.get(range.clone()).unwrap_or_default();
        let mut heard = listener.as_deref_mut().map(|listener| Part {
            listener,
            prompts: range.clone().collect(),
            first_sample: samples.start,
        });
        let rows = Rows { prompts: &prompts[range.clone()], limits: &limits[range.clone()] };
        let uniform = uniform_numbers(&part, samples, seeds)?;
        let heard = heard.as_mut().map(|part| part as &mut dyn Listener);
        let written = tch::no_grad(|| write(model, rows, &part, uniform, heard))?;
        results[range].iter_mut().zip(written).for_each(|(all, more)| all.extend(more));
    }
    Ok(results)
}

/// How many tokens each prompt's rows get at most.
fn new_tokens(
    model: &impl Decoder,
    prompts: &[Vec<TokenId>],
    config: &GenerationConfig,
) -> Result<Vec<usize>> {
    let Some(max_length) = config.max_length else { return Ok(vec![config.max_new_tokens; prompts.len()]) };
    let limit = |(i, prompt): (usize, &Vec<TokenId>)| {
        let given = model.given_tokens(prompt) + config.prefix.len();
        match max_length.saturating_sub(given) {
            0 => {
                let reason = format!(
                    "the {given} tokens before the first new one of prompt {i} leave no room within max_length {max_length}"
                );
                Err(Error::invalid("generation", reason))
            }
            room => Ok(room.min(config.max_new_tokens)),
        }
    };
    prompts.iter().enumerate().map(limit).collect()
}

/// Writes prompts of one limit at a time: beams are ranked and an end is forced at the limit, so it must be that of the whole batch.
fn generate_by_limit<D: Decoder>(
    model: &D,
    prompts: &[Vec<TokenId>],
    config: &GenerationConfig,
    seeds: &[u64],
    limits: &[usize],
    mut listener: Option<&mut dyn Listener>,
) -> Result<Vec<Vec<Generated>>> {
    let mut results = vec![vec![]; prompts.len()];
    for limit in limits.iter().copied().collect::<BTreeSet<_>>() {
        let of: Vec<usize> = (0..prompts.len()).filter(|&i| limits[i] == limit).collect();
        let config = GenerationConfig { max_new_tokens: limit, max_length: None, ..config.clone() };
        let prompts: Vec<Vec<TokenId>> = of.iter().map(|&i| prompts[i].clone()).collect();
        let seeds: Vec<u64> = of.iter().filter_map(|&i| seeds.get(i).copied()).collect();
        let mut heard =
            listener.as_deref_mut().map(|listener| Part { listener, prompts: of.clone(), first_sample: 0 });
        let heard = heard.as_mut().map(|part| part as &mut dyn Listener);
        let written = generate(model, &prompts, &config, &seeds, heard)?;
        of.into_iter().zip(written).for_each(|(i, written)| results[i] = written);
    }
    Ok(results)
}

/// Prompts that are continued at the same time, and the new tokens that the rows of each get at most.
#[derive(Clone, Copy)]
struct Rows<'a> {
    prompts: &'a [Vec<TokenId>],
    limits: &'a [usize],
}

/// Writes all rows at the same time, each up to its prompt's limit.
fn write<D: Decoder>(
    model: &D,
    Rows { prompts, limits }: Rows<'_>,
    config: &GenerationConfig,
    uniform: Option<Tensor>,
    listener: Option<&mut dyn Listener>,
) -> Result<Vec<Vec<Generated>>> {
    if let Strategy::Beam(settings) = &config.strategy {
        return beam::search(model, prompts, config, settings);
    }
    let GenerationConfig { prefix, samples_per_prompt, max_new_tokens: max_new, .. } = config;
    let (samples_per_prompt, max_new) = (*samples_per_prompt, *max_new);
    let started = model.prefill(Prefill { prompts, prefix, samples_per_prompt, max_new })?;
    let heard = listener.map(|listener| Heard::new(listener, prompts.len(), samples_per_prompt));
    if Kernel::Graphs.is_on() {
        let started = started.with(|steps| Replayed::new(steps, model.device()))?;
        return Loop { heard, ..Loop::new(model, limits, config, uniform, started)? }.run();
    }
    Loop { heard, ..Loop::new(model, limits, config, uniform, started)? }.run()
}

/// Refuses settings under which no token is left to choose.
fn check_choice(model: &impl Decoder, config: &GenerationConfig) -> Result<()> {
    let early = if config.min_new_tokens > 0 { stop_ids(model, config) } else { vec![] };
    let biased = config.sequence_bias.iter().filter(|sequence| sequence.bias == f64::NEG_INFINITY);
    let single = biased.filter_map(|sequence| match &sequence.ids[..] {
        [id] => Some(id),
        _ => None,
    });
    let barred: BTreeSet<&TokenId> = config.forbidden_ids.iter().chain(&early).chain(single).collect();
    if (barred.len() as i64) < model.vocab_size() {
        return Ok(());
    }
    let reason = "forbidden_ids, and the stop tokens before min_new_tokens, leave no token to choose";
    Err(Error::invalid("generation", reason))
}

/// Refuses more tokens at once than can be counted.
fn check_rows(prompts: usize, config: &GenerationConfig) -> Result<()> {
    let rows_per_prompt = match config.strategy {
        Strategy::Beam(Beam { num_beams, .. }) => num_beams,
        _ => config.samples_per_prompt,
    };
    let rows = prompts.checked_mul(rows_per_prompt);
    if rows.and_then(|rows| rows.checked_mul(config.max_new_tokens)).is_some_and(|all| all <= MAX_TOKENS) {
        return Ok(());
    }
    let reason = format!("{prompts} prompts are too many at once for these settings; take fewer in one call");
    Err(Error::invalid("generation", reason))
}

/// Everything that a decode step needs, allocated before the first one. Rows are those of the prompts that have not
/// ended; `samples_per_prompt` consecutive rows belong to one prompt.
struct Loop<'a, S> {
    steps: S,
    config: &'a GenerationConfig,
    /// New tokens of each prompt's rows at most.
    limits: &'a [usize],
    device: Device,
    /// Logits of the next token `[rows, vocab]`.
    logits: Tensor,
    /// Tokens before the first new one.
    prompt_len: i64,
    /// Of them, those at the front of each row that are padding `[rows, 1]`.
    padding: Option<Tensor>,
    stop_ids: Tensor,
    stop_strings: Option<StopStrings<'a>>,
    heard: Option<Heard<'a>>,
    processors: Vec<Processor>,
    /// Uniform numbers `[rows, max_new_tokens]` when sampling.
    uniform: Option<Tensor>,
    /// Given and new tokens `[rows, given + max_new_tokens]`.
    tokens: Tensor,
    /// Of the chosen tokens `[rows, max_new_tokens]`.
    log_probs: Tensor,
    sampling_log_probs: Tensor,
    /// Rows that have ended `[rows, 1]`.
    finished: Tensor,
    /// The prompts whose rows are left.
    prompts: Vec<usize>,
    results: Vec<Vec<Generated>>,
}

impl<'a, S: Steps> Loop<'a, S> {
    fn new<D: Decoder>(
        model: &'a D,
        limits: &'a [usize],
        config: &'a GenerationConfig,
        uniform: Option<Tensor>,
        started: Started<S>,
    ) -> Result<Self> {
        let device = model.device();
        let Started { steps, logits, prompt, padding } = started;
        let (rows, prompt_len) = prompt.size2()?;
        let time = config.max_new_tokens as i64;
        let stop_ids = stop_ids(model, config);
        Ok(Self {
            steps,
            config,
            limits,
            device,
            logits,
            stop_strings: StopStrings::new(model.tokenizer(), config, &stop_ids, rows as usize)?,
            heard: None,
            processors: processors(config, &stop_ids, prompt_len),
            stop_ids: Tensor::f_from_slice(&stop_ids)?.f_to_device(device)?,
            uniform: uniform.map(|numbers| numbers.f_to_device(device)).transpose()?,
            tokens: token_table(&prompt, time)?,
            prompt_len,
            padding,
            log_probs: Tensor::f_zeros([rows, time], (Kind::Float, device))?,
            sampling_log_probs: Tensor::f_zeros([rows, time], (Kind::Float, device))?,
            finished: Tensor::f_zeros([rows, 1], (Kind::Bool, device))?,
            prompts: (0..limits.len()).collect(),
            results: vec![vec![]; limits.len()],
        })
    }

    fn run(mut self) -> Result<Vec<Vec<Generated>>> {
        for step in 0..self.config.max_new_tokens {
            Interrupt::check()?;
            self.choose(step)?;
            if step + 1 == self.config.max_new_tokens {
                break;
            }
            if self.drop_finished(step)? {
                return Ok(self.results);
            }
            let last = self.tokens.f_narrow(1, self.prompt_len + step as i64, 1)?;
            self.logits = self.steps.next_logits(&last)?;
        }
        let rest: Vec<usize> = (0..self.prompts.len()).collect();
        self.collect(&rest)?;
        Ok(self.results)
    }

    /// Chooses the next token of every row.
    fn choose(&mut self, step: usize) -> Result<()> {
        let (at, written) = (step as i64, self.prompt_len + step as i64);
        let history = self.tokens.f_narrow(1, 0, written)?;
        let history = History { tokens: &history, padding: self.padding.as_ref() };
        let mut allowed = self.logits.shallow_clone();
        for processor in &self.processors {
            allowed = processor.run(&allowed, history)?;
        }
        let draws = match (&self.config.strategy, &self.uniform) {
            (Strategy::Sample(sampling), Some(uniform)) => Some((sampling, uniform.f_narrow(1, at, 1)?)),
            _ => None,
        };
        let draws = draws.as_ref().map(|(sampling, uniform)| (*sampling, uniform));
        let choice = choose(&self.logits, &allowed, draws)?;
        let Choice { tokens: token, log_probs, sampling_log_probs } = &choice;
        self.log_probs.f_narrow(1, at, 1)?.f_copy_(log_probs)?;
        if draws.is_some() {
            self.sampling_log_probs.f_narrow(1, at, 1)?.f_copy_(sampling_log_probs)?;
        }
        // What ended rows go on to produce is cut off when they are collected.
        self.tokens.f_narrow(1, written, 1)?.f_copy_(token)?;
        let stopped = Tensor::f_isin(token, &self.stop_ids, false, false)?;
        self.finished = self.finished.f_logical_or(&stopped)?;
        if let Some(strings) = &mut self.stop_strings {
            // Text is made on the host, so this waits for the device.
            let ended = strings.push(&Vec::try_from(token.f_view_([-1])?)?)?;
            let ended = Tensor::f_from_slice(&ended)?.f_to_device(self.device)?.f_unsqueeze(1)?;
            self.finished = self.finished.f_logical_or(&ended)?;
        }
        if let Some(heard) = &mut self.heard {
            let (finished, stop_strings) = (&self.finished, self.stop_strings.as_ref());
            let chosen = Chosen { logits: &self.logits, choice: &choice, finished, stop_strings };
            if let Some(finished) = heard.tell(step, |prompt| self.limits[prompt], &chosen)? {
                self.finished = finished;
            }
        }
        Ok(())
    }

    /// Takes prompts whose samples have all ended out of the batch, once that makes it a quarter smaller; true when
    /// none is left.
    fn drop_finished(&mut self, step: usize) -> Result<bool> {
        // A listener has waited already.
        let waits = self.device != Device::Cpu && self.heard.is_none();
        if waits && !(step + 1).is_multiple_of(STEPS_BETWEEN_CHECKS) {
            return Ok(false);
        }
        let samples = self.config.samples_per_prompt;
        let finished: Vec<bool> = Vec::try_from(self.finished.f_view_([-1])?)?;
        let ended = |&i: &usize| {
            step + 1 >= self.limits[self.prompts[i]]
                || finished[i * samples..(i + 1) * samples].iter().all(|&done| done)
        };
        let (done, left): (Vec<usize>, Vec<usize>) = (0..self.prompts.len()).partition(ended);
        if !left.is_empty() && done.len() * 4 < self.prompts.len() {
            return Ok(false);
        }
        self.collect(&done)?;
        if left.is_empty() {
            return Ok(true);
        }
        let rows: Vec<i64> =
            left.iter().flat_map(|i| i * samples..(i + 1) * samples).map(|row| row as i64).collect();
        if let Some(strings) = &mut self.stop_strings {
            strings.keep(&rows);
        }
        if let Some(heard) = &mut self.heard {
            heard.keep(&rows);
        }
        let rows = Tensor::f_from_slice(&rows)?.f_to_device(self.device)?;
        let sources: Vec<i64> = left.iter().map(|&i| i as i64).collect();
        self.steps.keep(&rows, &Tensor::f_from_slice(&sources)?.f_to_device(self.device)?)?;
        let take = |table: &Tensor| table.f_index_select(0, &rows);
        self.uniform = self.uniform.as_ref().map(take).transpose()?;
        self.padding = self.padding.as_ref().map(take).transpose()?;
        self.tokens = take(&self.tokens)?;
        self.log_probs = take(&self.log_probs)?;
        self.sampling_log_probs = take(&self.sampling_log_probs)?;
        self.finished = take(&self.finished)?;
        self.prompts = left.into_iter().map(|i| self.prompts[i]).collect();
        Ok(false)
    }

    /// Brings the rows of some prompts to the host and cuts them behind their stop tokens, or at their limits.
    fn collect(&mut self, prompts: &[usize]) -> Result<()> {
        let tokens = self.tokens.f_narrow(1, self.prompt_len, self.config.max_new_tokens as i64)?;
        let tokens: Vec<Vec<TokenId>> = Vec::try_from(tokens)?;
        let log_probs: Vec<Vec<f32>> = Vec::try_from(&self.log_probs)?;
        let sampling: Vec<Vec<f32>> = match self.uniform {
            Some(_) => Vec::try_from(&self.sampling_log_probs)?,
            None => log_probs.clone(),
        };
        let stop_ids: Vec<TokenId> = Vec::try_from(&self.stop_ids)?;
        let samples = self.config.samples_per_prompt;
        for &i in prompts {
            let limit = self.limits[self.prompts[i]];
            let rows = (i * samples..(i + 1) * samples).map(|row| {
                let tokens = &tokens[row][..limit];
                let stop = tokens.iter().position(|id| stop_ids.contains(id)).map(|at| at + 1);
                let string = self.stop_strings.as_ref().and_then(|strings| strings.length(row));
                let string = string.filter(|&length| length <= limit);
                let cancelled = self.heard.as_ref().and_then(|heard| heard.length(row));
                let (length, finish) = match (cancelled, string, stop) {
                    (Some(length), _, _) => (length, Finish::Cancelled),
                    (None, Some(length), _) => (length, Finish::StopString),
                    (None, None, Some(length)) => (length, Finish::Stop),
                    (None, None, None) => (limit, Finish::Length),
                };
                Generated {
                    ids: tokens[..length].to_vec(),
                    log_probs: log_probs[row][..length].to_vec(),
                    sampling_log_probs: sampling[row][..length].to_vec(),
                    finish,
                    score: None,
                }
            });
            self.results[self.prompts[i]] = rows.collect();
        }
        Ok(())
    }
}

/// Refuses another number of seeds than one for each prompt, when sampling.
fn check_seeds(prompts: usize, config: &GenerationConfig, seeds: &[u64]) -> Result<()> {
    if matches!(config.strategy, Strategy::Sample(_)) && seeds.len() != prompts {
        let reason = format!("{} seeds for {prompts} prompts; sampling needs one each", seeds.len());
        return Err(Error::invalid("generation", reason));
    }
    Ok(())
}

/// When sampling, uniform numbers in `[0, 1)` for some samples of every prompt and each step, `[rows, max_new_tokens]`. Each sample
/// has a stream of its own, so that its numbers depend on its prompt's seed alone.
fn uniform_numbers(
    config: &GenerationConfig,
    samples: Range<usize>,
    seeds: &[u64],
) -> Result<Option<Tensor>> {
    if !matches!(config.strategy, Strategy::Sample(_)) {
        return Ok(None);
    }
    let rows = seeds.len() * samples.len();
    let mut numbers = Vec::with_capacity(rows * config.max_new_tokens);
    for &seed in seeds {
        for sample in samples.clone() {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(sample as u64);
            numbers.extend((0..config.max_new_tokens).map(|_| {
                // 23 bits, so that the product with a total stays below the total after rounding.
                (rng.random::<u32>() >> 9) as f32 / (1u32 << 23) as f32
            }));
        }
    }
    let numbers = Tensor::f_from_slice(&numbers)?;
    Ok(Some(numbers.f_view_([rows as i64, config.max_new_tokens as i64])?))
}
