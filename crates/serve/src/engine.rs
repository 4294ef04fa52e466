//! The thread of the model: takes jobs, and writes those that go together in one batch.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ruminate_models::{Error as ModelError, GenerationConfig, Interrupt, Model, Strategy, TokenId};
use tokio::sync::mpsc::UnboundedSender;

use crate::error::ApiError;
use crate::request::Settings;
use crate::rows::{Rows, Token};
use crate::scores::score_prompts;

/// News of a job for the one who waits for it.
#[derive(Debug)]
pub(crate) enum Event {
    /// The tokens of a prompt with their log-probabilities. Comes before everything that is written to it.
    Prompt { prompt: usize, tokens: Vec<Token> },
    /// More of an answer.
    Written(Written),
    /// Nothing more will come.
    Failed(ApiError),
}

/// A piece of an answer, or all of it.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) prompt: usize,
    pub(crate) sample: usize,
    pub(crate) text: String,
    /// The tokens of the text, where log-probabilities are wanted.
    pub(crate) tokens: Vec<Token>,
    /// Tokens that the model wrote for it, those without text included.
    pub(crate) count: usize,
    /// Why the answer ended, if it did.
    pub(crate) finish: Option<FinishReason>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FinishReason {
    Stop,
    Length,
}

impl FinishReason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Work for the model. Whoever drops the receiver of the events ends it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompts: Vec<Vec<TokenId>>,
    pub(crate) seeds: Vec<u64>,
    pub(crate) settings: Settings,
    pub(crate) events: UnboundedSender<Event>,
}

impl Job {
    pub(crate) fn is_wanted(&self) -> bool {
        !self.events.is_closed()
    }

    /// Jobs with the same of this can share a batch.
    fn batch_key(&self, forces_end: bool) -> (Strategy, usize, usize) {
        let Settings { strategy, samples, max_tokens, .. } = &self.settings;
        // Every row of a batch takes memory for the longest answer, so limits that are far apart go separately. Where the model's
        // folder forces a token at the limit, the limit must be the batch's.
        let limit = match *max_tokens {
            tokens if forces_end => tokens,
            tokens => (1..).map(|power| 16 << (2 * power)).find(|&most| tokens <= most).unwrap_or(tokens),
        };
        (*strategy, *samples, limit)
    }
}

/// The model with what it needs to carry out jobs.
#[derive(Debug)]
pub(crate) struct Engine<'a> {
    pub(crate) model: &'a Model,
    /// The defaults of the model's folder.
    pub(crate) defaults: GenerationConfig,
    pub(crate) gather: Duration,
    /// Ends what is under way.
    pub(crate) abort: Interrupt,
}

impl Engine<'_> {
    /// Carries out jobs until nobody can send any.
    pub(crate) fn run(&self, jobs: &Receiver<Job>) {
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                match jobs.recv() {
                    Ok(job) => waiting.push_back(job),
                    Err(_) => return,
                }
            }
            let until = Instant::now() + self.gather;
            while let Ok(job) = jobs.recv_timeout(until.saturating_duration_since(Instant::now())) {
                waiting.push_back(job);
            }
            waiting.extend(jobs.try_iter());
            waiting.retain(Job::is_wanted);
            if self.abort.is_raised() {
                for job in waiting.drain(..) {
                    let _ = job.events.send(Event::Failed(ApiError::closing()));
                }
                continue;
            }
            let forces_end = self.defaults.forced_eos_token_id.is_some();
            let Some(key) = waiting.front().map(|job: &Job| job.batch_key(forces_end)) else { continue };
            let (batch, rest): (VecDeque<Job>, _) =
                waiting.into_iter().partition(|job| job.batch_key(forces_end) == key);
            waiting = rest;
            self.write(batch.into());
        }
    }

    /// Carries out jobs in one batch.
    fn write(&self, jobs: Vec<Job>) {
        let written = self.abort.during(|| {
            score_prompts(self.model, &jobs)?;
            self.continue_prompts(&jobs)
        });
        if let Err(error) = written {
            let error = match error {
                ModelError::Interrupted => ApiError::closing(),
                error => ApiError::internal(&error),
            };
            for job in &jobs {
                // Those that are done do not listen any more.
                let _ = job.events.send(Event::Failed(error.clone()));
            }
        }
    }

    fn continue_prompts(&self, jobs: &[Job]) -> ruminate_models::Result<()> {
        let Some(settings) = jobs.first().map(|job| &job.settings) else { return Ok(()) };
        let mut rows = Rows::new(self.model, &self.defaults, settings.samples)?;
        let (mut prompts, mut seeds) = (vec![], vec![]);
        for job in jobs {
            for (i, prompt) in job.prompts.iter().enumerate() {
                if rows.add(job, i)? {
                    prompts.push(prompt.clone());
                    seeds.push(job.seeds[i]);
                }
            }
        }
        if prompts.is_empty() {
            return Ok(());
        }
        let config = GenerationConfig {
            strategy: settings.strategy,
            samples_per_prompt: settings.samples,
            max_new_tokens: rows.max_tokens(),
            max_length: None,
            // Rows look for their own.
            stop_strings: vec![],
            ..self.defaults.clone()
        };
        self.model.generate_with_listener(&prompts, &config, &seeds, &mut rows)?;
        rows.error().map_or(Ok(()), Err)
    }
}
