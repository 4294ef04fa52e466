//! The models behind the consistency reward: question, with or without a rationale, in, label out.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ruminate_datasets::Order;
use ruminate_datasets::mario::{MarioDataset, MarioRow, i2o_input, ir2o_input, with_period};
use ruminate_models::{Example, Policy, ScoreChoices, TokenId, Tokenizer};
use ruminate_rewards::choices::argmax;
use ruminate_rewards::mario::{Summary, option_scores};
use serde::{Deserialize, Serialize};

use super::rows::{TrainingRows, at_least_one, replace_line};
use crate::observer::report_answers;
use crate::plan::Pass;
use crate::trainer::Evaluation;
use crate::{Collective, Curriculum, Error, Observer, Result, Schedule, TrainerConfig};

/// What such a model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptionMode {
    /// The question alone.
    I2o,
    /// The question and a rationale.
    Ir2o,
}

/// Settings of the training of such a model; the defaults are those of the published commands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptionTrainingConfig {
    /// Passes over the training rows; 0 takes the trainer's `steps`.
    pub epochs: u64,
    /// Rows per micro-batch.
    pub batch_size: usize,
    /// Questions per batch in validation.
    pub eval_batch_size: usize,
    /// Training questions that are kept for validation where rationales are needed and the development rows have none; 0 keeps none
    /// and validates on the development rows all the same, as the published code does.
    pub held_out_questions: usize,
    /// Seed of the order of the rows, and of the choice of questions that are held out.
    pub shuffle_seed: u64,
}

impl Default for OptionTrainingConfig {
    fn default() -> Self {
        Self { epochs: 10, batch_size: 4, eval_batch_size: 20, held_out_questions: 200, shuffle_seed: 1 }
    }
}

impl OptionTrainingConfig {
    /// The published settings of a mode: 10 epochs without rationales, 5 with.
    #[must_use]
    pub fn published(mode: OptionMode) -> Self {
        let epochs = if mode == OptionMode::I2o { 10 } else { 5 };
        Self { epochs, ..Self::default() }
    }

    /// The published optimizer of a mode: Adam at a constant 3e-5.
    #[must_use]
    pub fn trainer(mode: OptionMode) -> TrainerConfig {
        TrainerConfig {
            // Where `epochs` is 0.
            steps: 50_001,
            lr: 3e-5,
            schedule: Schedule::Constant,
            betas: [0.9, 0.99],
            max_grad_norm: 0.5,
            log_every: 50,
            eval_every: if mode == OptionMode::I2o { 1000 } else { 7000 },
            save_every: 1000,
            ..TrainerConfig::default()
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        at_least_one([("batch_size", self.batch_size), ("eval_batch_size", self.eval_batch_size)])
    }
}

/// The training of such a model as a [`Curriculum`]: train it with [`Sft`](crate::Sft). Validation takes the most probable
/// label; the best checkpoint has the highest accuracy, that of step 0 aside.
///
/// # Reference behaviour
/// The published code validates models that read rationales on development rows whose rationale is the word `dummy` (all
/// data sets but StrategyQA), which says nothing. Here, silver rows of some questions are held out of training for it.
#[derive(Debug)]
pub struct OptionTraining {
    config: OptionTrainingConfig,
    train: TrainingRows,
    /// Prompts and gold options.
    dev: Vec<(Vec<TokenId>, usize)>,
    options: Vec<Vec<TokenId>>,
    held_out: usize,
    log: Option<PathBuf>,
    collective: Collective,
}

impl OptionTraining {
    /// Encodes the rows. Inputs go in whole: nothing is cut.
    ///
    /// # Errors
    /// When a setting is wrong, there is no complete batch, nothing to validate on, a label that the data set does not have,
    /// or the tokenizer fails.
    pub fn new(
        mode: OptionMode,
        config: OptionTrainingConfig,
        tokenizer: &Tokenizer,
        dataset: MarioDataset,
        train: Vec<MarioRow>,
        dev: Vec<MarioRow>,
    ) -> Result<Self> {
        config.validate()?;
        let mute = mode == OptionMode::Ir2o
            && config.held_out_questions > 0
            && dev.iter().all(|row| row.rationale == "dummy");
        let (train, dev, held_out) = if mute {
            let (train, dev) = hold_out(train, config.held_out_questions, config.shuffle_seed);
            let rows = dev.len();
            (train, dev, rows)
        } else {
            (train, dev, 0)
        };
        if dev.is_empty() {
            return Err(Error::config("data", "there are no rows to validate on"));
        }
        let input = |row: &MarioRow| -> Result<Vec<TokenId>> {
            Ok(tokenizer.encode(&match mode {
                OptionMode::I2o => i2o_input(dataset, &row.question),
                OptionMode::Ir2o => ir2o_input(dataset, &row.question, &with_period(&row.rationale)),
            })?)
        };
        let labels = dataset.labels();
        let options =
            labels.iter().map(|label| Ok(tokenizer.encode_target(label)?)).collect::<Result<Vec<_>>>()?;
        let gold = |row: &MarioRow| {
            let unknown = || {
                Error::config("data", format!("the label {:?} is none of {}", row.answer, labels.join(", ")))
            };
            dataset.label_index(&row.answer).ok_or_else(unknown)
        };
        let example = |row: &MarioRow| -> Result<Example> {
            Ok(Example { prompt: input(row)?, target: options[gold(row)?].clone() })
        };
        let examples = train.iter().map(example).collect::<Result<_>>()?;
        let train = TrainingRows::new(examples, config.batch_size, config.shuffle_seed)?;
        let dev = dev.iter().map(|row| Ok((input(row)?, gold(row)?))).collect::<Result<_>>()?;
        Ok(Self { config, train, dev, options, held_out, log: None, collective: Collective::default() })
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

    /// Silver rows that are validated on instead of trained on.
    #[must_use]
    pub fn held_out(&self) -> usize {
        self.held_out
    }

    /// The micro-batches of a step, for a [`Plan`](crate::Plan).
    #[must_use]
    pub fn passes(&self, trainer: &TrainerConfig) -> Vec<Pass> {
        vec![self.train.pass(trainer)]
    }
}

/// Takes the rows of some questions out, but leaves at least half of the questions.
fn hold_out(rows: Vec<MarioRow>, questions: usize, seed: u64) -> (Vec<MarioRow>, Vec<MarioRow>) {
    let distinct: Vec<&str> =
        rows.iter().map(|row| row.question.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
    let chosen = Order::shuffled(distinct.len(), seed).indices(0);
    let chosen: BTreeSet<String> =
        chosen.iter().take(questions.min(distinct.len() / 2)).map(|&ix| distinct[ix].to_string()).collect();
    rows.into_iter().partition(|row| !chosen.contains(&row.question))
}

impl<P: Policy + ScoreChoices> Curriculum<P> for OptionTraining {
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.collective = collective.clone();
        self.train.shard(collective.shard()?)
    }

    fn next(&mut self, _: u64) -> Result<Vec<crate::Objective>> {
        Ok(self.train.next())
    }

    fn evaluate(&mut self, policy: &P, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        let correct = self.collective.map(self.dev.len(), |mine| {
            let mut correct = vec![];
            // Portions only make progress visible; batches of similar length are made inside.
            for portion in mine.chunks(10 * self.config.eval_batch_size) {
                let rows = || portion.iter().map(|&ix| &self.dev[ix]);
                let prompts: Vec<_> = rows().map(|(prompt, _)| prompt.clone()).collect();
                let scores = option_scores(policy, &prompts, &self.options, self.config.eval_batch_size)?;
                correct.extend(
                    scores
                        .outer_iter()
                        .zip(rows())
                        .map(|(scores, (_, gold))| argmax(&scores.to_vec()) == *gold),
                );
                observer
                    .progress("validation", correct.len() as u64, mine.len() as u64)
                    .map_err(Error::Observer)?;
            }
            Ok(correct)
        })?;
        let summary = Summary::of(&[], correct.iter().map(|&correct| (correct, &[][..])));
        if let Some(log) = self.log.as_ref().filter(|_| self.collective.is_main_process()) {
            replace_line(log, step, &summary.line(&format!("Step {step}"), None))?;
        }
        report_answers(observer, step, "eval/accuracy", 100.0, correct)?;
        Ok(Evaluation { metrics: vec![("eval/accuracy".into(), summary.accuracy)], score: summary.accuracy })
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
