//! Phase 1: supervised training on all stages in turn.

use std::path::Path;

use ruminate_datasets::tinythinker::{Question, Record, Stage, StageRecords, Variant, questions_of};
use ruminate_models::{Example, Generate, Policy, Tokenizer};
use serde::{Deserialize, Serialize};

use super::batches::StageBatches;
use super::evaluation::{Accuracy, voted};
use super::generation::{Asked, Decoding, GenerationSettings, Response, Student};
use super::interval::{Interval, Machine, steps_in, supervised_limits};
use crate::observer::report_answers;
use crate::plan::{Pass, Work};
use crate::trainer::Evaluation;
use crate::{Collective, Curriculum, Error, Objective, Observer, Result, Schedule, TrainerConfig};

/// Responses shown as samples of each validation.
const SAMPLES: usize = 6;

/// Settings of the supervised phase; the defaults are the published ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AcquisitionConfig {
    /// The student's stages.
    pub variant: Variant,
    /// Passes over all records; 0 takes the trainer's `steps`.
    pub epochs: f64,
    /// Records of a process in an optimizer step, all of one stage. The trainer's `accumulate` divides them.
    pub batch_size: usize,
    /// Length of a block of recall or summarize steps. A block of analyze steps is as many times that as questions have options.
    pub interval: u64,
    /// What happens to a block when its stage runs out of records.
    pub machine: Machine,
    /// Share of the steps in which the rate rises; 0 takes the trainer's `warmup_steps`.
    pub warmup_ratio: f64,
    /// Seed of the order of the records.
    pub shuffle_seed: u64,
    /// How the student answers in validation, all greedily.
    pub generation: GenerationSettings,
}

impl Default for AcquisitionConfig {
    fn default() -> Self {
        Self {
            variant: Variant::default(),
            epochs: 10.0,
            batch_size: 64,
            interval: 100,
            machine: Machine::default(),
            warmup_ratio: 0.1,
            shuffle_seed: 42,
            generation: GenerationSettings::default(),
        }
    }
}

impl AcquisitionConfig {
    /// The published optimizer: AdamW without decay at 5e-4, a cosine after the warm-up, gradients clipped at norm 1. With `eval_every`
    /// 0, [`Acquisition::trainer`] validates once per round of blocks.
    #[must_use]
    pub fn trainer() -> TrainerConfig {
        TrainerConfig { lr: 5e-4, ..published_trainer() }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        if !(self.epochs >= 0.0 && self.epochs.is_finite()) {
            return Err(Error::config("epochs", format!("is {}, but must not be negative", self.epochs)));
        }
        if self.interval == 0 {
            return Err(Error::config("interval", "is 0, but must be at least 1"));
        }
        validate_warmup(self.warmup_ratio)?;
        self.generation.validate()
    }
}

/// What both phases have in common.
pub(super) fn published_trainer() -> TrainerConfig {
    TrainerConfig {
        // Where `epochs` is 0.
        steps: 50_001,
        schedule: Schedule::Cosine { cycles: 0.5 },
        max_grad_norm: 1.0,
        eval_every: 0,
        log_every: 10,
        ..TrainerConfig::default()
    }
}

pub(super) fn validate_warmup(ratio: f64) -> Result<()> {
    if !(0.0..1.0).contains(&ratio) {
        return Err(Error::config("warmup_ratio", format!("is {ratio}, but must be in [0, 1)")));
    }
    Ok(())
}

/// The trainer's settings with what follows from the data: steps, warm-up, and a validation per round of blocks.
pub(super) fn scheduled(trainer: &TrainerConfig, steps: u64, warmup_ratio: f64, cycle: u64) -> TrainerConfig {
    let mut trainer = TrainerConfig { steps, ..trainer.clone() };
    if warmup_ratio > 0.0 {
        trainer.warmup_steps = (steps as f64 * warmup_ratio).ceil() as u64;
    }
    if trainer.eval_every == 0 {
        trainer.eval_every = cycle;
    }
    trainer
}

/// Name of a stage's loss.
fn loss_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Recall => "recall_loss",
        Stage::Analyze => "analyze_loss",
        Stage::Summarize => "summarize_loss",
    }
}

/// The supervised phase as a [`Curriculum`]: train it with [`Sft`](crate::Sft). Validation lets the student go through all its stages
/// greedily; the best checkpoint has the highest accuracy, the earliest of equals.
#[derive(Debug)]
pub struct Acquisition {
    config: AcquisitionConfig,
    stages: Vec<(Stage, Vec<Example>)>,
    batches: StageBatches,
    validation: StagedValidation,
}

impl Acquisition {
    /// Encodes the records, which were read from `folder`; nothing is cut. A step takes `accumulate` micro-batches.
    ///
    /// # Errors
    /// When a setting is wrong, a stage of the variant has no records, there is nothing to validate with, a record is damaged, or the
    /// tokenizer fails.
    pub fn new(
        config: AcquisitionConfig,
        tokenizer: Tokenizer,
        records: &StageRecords,
        folder: &Path,
        accumulate: usize,
    ) -> Result<Self> {
        config.validate()?;
        let variant = config.variant;
        let valid = questions_of(&records.valid, &folder.join("valid.json"))?;
        let example = |record: &Record| -> Result<Example> {
            let target = tokenizer.encode_target(record.target().unwrap_or_default())?;
            Ok(Example { prompt: tokenizer.encode(&record.input)?, target })
        };
        let mut stages = vec![];
        for (stage, there, records) in [
            (Stage::Recall, variant.recalls(), &records.recall),
            (Stage::Analyze, variant.analyzes(), &records.analyze),
            (Stage::Summarize, true, &records.summarize),
        ] {
            if !there {
                continue;
            }
            if records.is_empty() {
                let name = stage.name();
                let reason = format!(
                    "{} has no records in {name}.json, which a student of variant `{}` needs",
                    folder.display(),
                    variant.name()
                );
                return Err(Error::config("records", reason));
            }
            stages.push((stage, records.iter().map(example).collect::<Result<Vec<_>>>()?));
        }
        let rows: Vec<usize> = stages.iter().map(|(_, examples)| examples.len()).collect();
        let limits =
            supervised_limits(variant.recalls(), variant.analyzes(), config.interval, options(&valid));
        let batches = StageBatches::new(
            &rows,
            limits,
            config.batch_size,
            accumulate,
            config.machine,
            config.shuffle_seed,
        )?;
        let validation = StagedValidation::new(tokenizer, variant, &valid, config.generation.clone())?;
        Ok(Self { config, stages, batches, validation })
    }

    /// The settings of a trainer of `processes` processes with what follows from the data: steps, warm-up and, where `eval_every` is 0,
    /// a validation per round of blocks.
    #[must_use]
    pub fn trainer(&self, trainer: &TrainerConfig, processes: usize) -> TrainerConfig {
        let steps = match self.config.epochs {
            0.0 => trainer.steps,
            epochs => steps_in(epochs, self.batches.epoch_steps(processes)),
        };
        scheduled(trainer, steps, self.config.warmup_ratio, self.interval().cycle_steps())
    }

    /// When stages take turns.
    #[must_use]
    pub fn interval(&self) -> &Interval {
        self.batches.interval()
    }

    /// Records of all stages.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.stages.iter().map(|(_, examples)| examples.len()).sum()
    }

    /// The micro-batches of a step, for a [`Plan`](crate::Plan): on average over the stages.
    #[must_use]
    pub fn passes(&self, trainer: &TrainerConfig) -> Vec<Pass> {
        let steps = |rows: usize| rows.div_ceil(self.config.batch_size) as f64;
        let all: f64 = self.stages.iter().map(|(_, examples)| steps(examples.len())).sum();
        let pass = |(_, examples): &(Stage, Vec<Example>)| Pass {
            work: Work::Training,
            times: trainer.accumulate as f64 * steps(examples.len()) / all,
            networks: 1,
            rows: self.config.batch_size.div_ceil(trainer.accumulate),
            source: mean_and_longest(examples.iter().map(|example| example.prompt.len())),
            target: mean_and_longest(examples.iter().map(|example| example.target.len())),
        };
        self.stages.iter().map(pass).collect()
    }
}

/// The mean of lengths, and the largest.
pub(super) fn mean_and_longest(lengths: impl Iterator<Item = usize>) -> [f64; 2] {
    let (count, sum, longest) = lengths
        .fold((0, 0, 0), |(count, sum, longest), length| (count + 1, sum + length, longest.max(length)));
    [sum as f64 / f64::from(count.max(1)), longest as f64]
}

/// The largest number of options.
fn options(questions: &[Question]) -> u64 {
    questions.iter().map(|question| question.options.len() as u64).max().unwrap_or(1)
}

impl<P: Policy + Generate> Curriculum<P> for Acquisition {
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.validation.distribute(collective);
        self.batches.shard(self.interval().limits().to_vec(), collective.shard()?)
    }

    fn next(&mut self, _: u64) -> Result<Vec<Objective>> {
        let batch = self.batches.next();
        let (stage, examples) = &self.stages[batch.stage];
        let examples: Vec<Example> = batch.rows.iter().map(|&row| examples[row].clone()).collect();
        let objective = Objective { name: loss_name(*stage), weight: 1.0, examples };
        Ok(if objective.examples.is_empty() { vec![] } else { vec![objective] })
    }

    fn evaluate(&mut self, policy: &P, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        self.validation.evaluate(policy, step, observer)
    }

    fn state(&self) -> serde_json::Value {
        self.batches.state()
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        self.batches.load_state(state)
    }
}

/// Validation by answering questions, greedily in all stages.
#[derive(Debug)]
pub(super) struct StagedValidation {
    tokenizer: Tokenizer,
    variant: Variant,
    asked: Vec<Asked>,
    generation: GenerationSettings,
    /// They divide the questions.
    collective: Collective,
}

impl StagedValidation {
    pub(super) fn new(
        tokenizer: Tokenizer,
        variant: Variant,
        questions: &[Question],
        generation: GenerationSettings,
    ) -> Result<Self> {
        if questions.is_empty() {
            return Err(Error::config("valid", "there is no question to validate with"));
        }
        let asked = questions.iter().map(Asked::from).collect();
        Ok(Self { tokenizer, variant, asked, generation, collective: Collective::default() })
    }

    pub(super) fn distribute(&mut self, collective: &Collective) {
        self.collective = collective.clone();
    }

    pub(super) fn evaluate<P: Generate>(
        &self,
        policy: &P,
        step: u64,
        observer: &mut dyn Observer,
    ) -> Result<Evaluation> {
        let student = Student { policy, tokenizer: &self.tokenizer, variant: self.variant };
        let responses = student.respond_among(
            &self.collective,
            &self.asked,
            (Decoding::Greedy, 1),
            &self.generation,
            observer,
        )?;
        let accuracy = Accuracy::of(&responses);
        report_answers(observer, step, "eval/accuracy", 1.0, responses.iter().map(|of| voted(of)))?;
        // Spread over the data.
        let shown = self.asked.len().min(SAMPLES);
        let samples: Vec<_> = (0..shown)
            .filter_map(|number| {
                let responses: &Vec<Response> = &responses[number * self.asked.len() / shown];
                let line = responses.first()?.line(1);
                let question = responses.first()?.run.draft.block();
                Some(serde_json::json!({
                    "step": step, "question": question, "answer": line.gold, "recall": line.recall,
                    "analyses": line.analyses, "summarize": line.summarize, "correct": line.correct,
                }))
            })
            .collect();
        observer.samples(step, &samples).map_err(Error::Observer)?;
        Ok(Evaluation { metrics: accuracy.metrics(), score: accuracy.voted })
    }
}
