//! The supervised stage: question in, rationale and answer out.

use std::path::PathBuf;

use ruminate_datasets::mario::{
    MarioRow, Target, i2o_target, label, label_sentence, num_sents, num_words, target,
};
use ruminate_models::{Example, Generate, GenerationConfig, Policy, TokenId, Tokenizer, by_length};
use ruminate_rewards::mario::Summary;
use serde::{Deserialize, Serialize};

use super::rows::{TrainingRows, at_least_one, replace_line};
use crate::observer::report_answers;
use crate::plan::Pass;
use crate::ppo::text;
use crate::trainer::Evaluation;
use crate::{Collective, Curriculum, Error, Metrics, Observer, Result, Schedule, TrainerConfig};

/// Responses shown as samples of each validation.
const SAMPLES: usize = 6;

/// Settings of the supervised stage; the defaults are those of the published command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RationalesConfig {
    /// What is learnt.
    pub target: Target,
    /// Passes over the training rows; 0 takes the trainer's `steps`.
    pub epochs: u64,
    /// Rows per micro-batch.
    pub batch_size: usize,
    /// Questions per batch in validation.
    pub eval_batch_size: usize,
    /// Longest sequence of the decoder in validation, in tokens, the start token included.
    pub max_length: usize,
    /// Tokens of the decoder's sequence before which none ends, the start token included.
    pub min_length: usize,
    /// Remove the blanks before punctuation and contractions from validation's responses; the published code does not.
    pub clean_up: bool,
    /// Seed of the order of the rows.
    pub shuffle_seed: u64,
}

impl Default for RationalesConfig {
    fn default() -> Self {
        Self {
            target: Target::RationaleThenAnswer,
            epochs: 25,
            batch_size: 4,
            eval_batch_size: 150,
            max_length: 256,
            min_length: 10,
            clean_up: false,
            shuffle_seed: 1,
        }
    }
}

impl RationalesConfig {
    /// The published optimizer: Adam at 3e-5 with 1000 steps of warm-up and a linear decay.
    #[must_use]
    pub fn trainer() -> TrainerConfig {
        TrainerConfig {
            // Where `epochs` is 0.
            steps: 50_001,
            lr: 3e-5,
            schedule: Schedule::Linear,
            warmup_steps: 1000,
            betas: [0.9, 0.99],
            max_grad_norm: 0.5,
            log_every: 50,
            eval_every: 1000,
            ..TrainerConfig::default()
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        at_least_one([("batch_size", self.batch_size), ("eval_batch_size", self.eval_batch_size)])?;
        if self.max_length < 2 || self.min_length > self.max_length {
            let reason = format!(
                "is {}, but must be at least 2 and min_length ({})",
                self.max_length, self.min_length
            );
            return Err(Error::config("max_length", reason));
        }
        Ok(())
    }
}

/// The supervised stage as a [`Curriculum`]: train it with [`Sft`](crate::Sft). Validation answers the development questions
/// greedily; the best checkpoint has the highest accuracy, that of step 0 aside.
#[derive(Debug)]
pub struct Rationales {
    config: RationalesConfig,
    tokenizer: Tokenizer,
    train: TrainingRows,
    dev: Vec<MarioRow>,
    log: Option<PathBuf>,
    collective: Collective,
}

impl Rationales {
    /// Encodes the rows. Questions go in whole: nothing is cut.
    ///
    /// # Errors
    /// When a setting is wrong, there is no complete batch, there are no development rows, or the tokenizer fails.
    pub fn new(
        config: RationalesConfig,
        tokenizer: Tokenizer,
        train: &[MarioRow],
        dev: Vec<MarioRow>,
    ) -> Result<Self> {
        config.validate()?;
        let written = |row: &MarioRow| match config.target {
            Target::RationaleThenAnswer => target(row),
            Target::AnswerOnly => i2o_target(row),
        };
        let example = |row: &MarioRow| -> Result<Example> {
            let (prompt, target) =
                (tokenizer.encode(&row.question)?, tokenizer.encode_target(&written(row))?);
            Ok(Example { prompt, target })
        };
        let examples = train.iter().map(example).collect::<Result<_>>()?;
        if dev.is_empty() {
            return Err(Error::config("data", "there are no development rows"));
        }
        let train = TrainingRows::new(examples, config.batch_size, config.shuffle_seed)?;
        Ok(Self { config, tokenizer, train, dev, log: None, collective: Collective::default() })
    }

    /// Writes the published code's line about each validation to a file. A run that is resumed replaces those of the steps that it
    /// repeats.
    #[must_use]
    pub fn log_to(self, path: PathBuf) -> Self {
        Self { log: Some(path), ..self }
    }

    /// Updates of the configured epochs with `processes` processes, if any epochs are configured.
    #[must_use]
    pub fn steps(&self, trainer: &TrainerConfig, processes: usize) -> u64 {
        match self.config.epochs {
            0 => trainer.steps,
            epochs => self.train.steps(epochs, trainer.accumulate, processes),
        }
    }

    /// Training rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.train.len()
    }

    /// The micro-batches of a step, for a [`Plan`](crate::Plan).
    #[must_use]
    pub fn passes(&self, trainer: &TrainerConfig) -> Vec<Pass> {
        vec![self.train.pass(trainer)]
    }

    /// What the model writes about the development questions.
    fn responses<P: Generate>(&self, policy: &P, observer: &mut dyn Observer) -> Result<Vec<String>> {
        let prompts: Vec<&str> = self.dev.iter().map(|row| row.question.as_str()).collect();
        let RationalesConfig { max_length, min_length, eval_batch_size, clean_up, .. } = self.config;
        let greedy = Greedy { max_length, min_length, batch_size: eval_batch_size, clean_up };
        self.collective.map(prompts.len(), |mine| {
            let prompts: Vec<&str> = mine.iter().map(|&ix| prompts[ix]).collect();
            greedy.texts(policy, &self.tokenizer, &prompts, ("validation", observer))
        })
    }
}

/// How a model answers whole texts, greedily.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greedy {
    /// Longest sequence of the decoder in tokens, the start token included.
    pub max_length: usize,
    /// Tokens of the decoder's sequence before which none ends, the start token included.
    pub min_length: usize,
    /// Prompts in a batch.
    pub batch_size: usize,
    /// Remove the blanks before punctuation and contractions.
    pub clean_up: bool,
}

impl Greedy {
    /// Generates texts for prompts, which go in whole. The observer is told the progress under a name.
    ///
    /// # Errors
    /// When the tokenizer, the model or the observer fails.
    pub fn texts<M: Generate>(
        self,
        model: &M,
        tokenizer: &Tokenizer,
        prompts: &[&str],
        (what, observer): (&'static str, &mut dyn Observer),
    ) -> Result<Vec<String>> {
        let generation = GenerationConfig {
            // The start token is one of the sequence's.
            max_new_tokens: self.max_length - 1,
            min_new_tokens: self.min_length.saturating_sub(1),
            ..GenerationConfig::default()
        };
        let prompts: Vec<Vec<TokenId>> =
            prompts.iter().map(|prompt| Ok(tokenizer.encode(prompt)?)).collect::<Result<_>>()?;
        let rows: Vec<&[TokenId]> = prompts.iter().map(Vec::as_slice).collect();
        let (mut done, total) = (0, prompts.len() as u64);
        by_length(&rows, self.batch_size, |batch| {
            let rows: Vec<_> = batch.iter().map(|&ix| prompts[ix].clone()).collect();
            let written = model.generate(&rows, &generation, &[])?;
            done += batch.len() as u64;
            observer.progress(what, done, total).map_err(Error::Observer)?;
            let response = |samples: Vec<_>| {
                let first: Option<&ruminate_models::Generated> = samples.first();
                let ids = first.map(|sample| sample.ids.as_slice()).unwrap_or_default();
                text(tokenizer, ids, self.clean_up)
            };
            written.into_iter().map(response).collect::<Result<_>>()
        })
    }
}

/// The label of a response under a target: the two have different markers.
fn stated(config: &RationalesConfig, response: &str) -> String {
    match config.target {
        Target::RationaleThenAnswer => label(response),
        Target::AnswerOnly => {
            response.split("The answer is").nth(1).unwrap_or("").trim().trim_matches('.').to_lowercase()
        }
    }
}

impl<P: Policy + Generate> Curriculum<P> for Rationales {
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.collective = collective.clone();
        self.train.shard(collective.shard()?)
    }

    fn next(&mut self, _: u64) -> Result<Vec<crate::Objective>> {
        Ok(self.train.next())
    }

    fn evaluate(&mut self, policy: &P, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        let responses = self.responses(policy, observer)?;
        let rows = self.dev.iter().zip(&responses).map(|(row, response)| {
            let correct = stated(&self.config, response) == label(&label_sentence(row));
            (correct, [Some(num_sents(response) as f64), Some(num_words(response) as f64)])
        });
        let rows: Vec<_> = rows.collect();
        let names = ["num_sents", "num_words"].map(String::from);
        let summary = Summary::of(&names, rows.iter().map(|(correct, counts)| (*correct, &counts[..])));
        if let Some(log) = self.log.as_ref().filter(|_| self.collective.is_main_process()) {
            replace_line(log, step, &summary.line(&format!("Step {step}"), None))?;
        }
        let mut metrics: Metrics = vec![("eval/accuracy".into(), summary.accuracy)];
        metrics.extend(
            summary.scores.iter().filter_map(|(name, score)| Some((format!("eval/{name}"), (*score)?))),
        );
        report_answers(observer, step, "eval/accuracy", 100.0, rows.iter().map(|(correct, _)| *correct))?;
        // Spread over the data.
        let shown = self.dev.len().min(SAMPLES);
        let samples: Vec<_> = (0..shown)
            .map(|number| number * self.dev.len() / shown)
            .map(|ix| {
                serde_json::json!({
                    "step": step, "question": self.dev[ix].question, "answer": self.dev[ix].answer,
                    "response": responses[ix], "correct": rows[ix].0,
                })
            })
            .collect();
        observer.samples(step, &samples).map_err(Error::Observer)?;
        Ok(Evaluation { metrics, score: summary.accuracy })
    }

    /// An untrained model is not chosen.
    fn competes_at(&self, step: u64) -> bool {
        step > 0
    }

    fn state(&self) -> serde_json::Value {
        self.train.state()
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        self.train.load_state(state)
    }
}
