//! Supervised fine-tuning.

use ruminate::algorithms::{
    Networks, Pass, Plan, Sft, SupervisedData, TrainerConfig, Work, encode_supervised,
};
use ruminate::datasets::SupervisedExample;
use ruminate::datasets::rows::DataFiles;
use ruminate::models::{Example, ModelConfig, Tokenizer};
use ruminate::rewards::configured::RewardConfig;
use ruminate::run::program::{Configuration, Job, Measured, Prepared, Training};
use ruminate::run::{ConfigError, FlagKeys, ModelSection};
use ruminate::tch::Kind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::validation::{ByRewards, ValidationSection};
use super::{Length, Method, configure, lengths, measured};
use crate::chat::{ChatSection, Encoder};

/// Settings of `ruminate sft`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SftConfig {
    /// The command that wrote this configuration.
    pub(crate) command: Option<Method>,
    /// Seed of the order of the examples, of dropout, and of a new model's weights.
    pub(crate) seed: u64,
    /// Passes over the training data; 0 takes trainer.steps.
    pub(crate) epochs: f64,
    /// Examples of a micro-batch.
    pub(crate) batch_size: usize,
    /// Most tokens of an example; what is longer is cut.
    pub(crate) max_length: usize,
    /// The model to start from.
    pub(crate) model: ModelSection,
    /// Files of examples.
    pub(crate) data: DataFiles,
    /// Chat templates.
    pub(crate) chat: ChatSection,
    /// The training loop.
    pub(crate) trainer: TrainerConfig,
    /// Prompts that validation answers.
    pub(crate) validation: ValidationSection,
    /// Rewards that judge the answers of validation.
    pub(crate) reward: Vec<RewardConfig>,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            command: None,
            seed: 1,
            epochs: 3.0,
            batch_size: 8,
            max_length: 1024,
            model: ModelSection::default(),
            data: DataFiles::default(),
            chat: ChatSection::default(),
            trainer: TrainerConfig { lr: 2e-5, eval_every: 0, ..TrainerConfig::default() },
            validation: ValidationSection::default(),
            reward: vec![],
        }
    }
}

impl Configuration for SftConfig {
    const FLAGS: FlagKeys = FlagKeys { seed: &["seed"], precision: &["trainer.precision"] };

    fn validate(&self) -> Result<(), ConfigError> {
        Length::validate(self.epochs, self.batch_size)?;
        self.trainer.validate().map_err(ConfigError::invalid)?;
        self.validation.validate(&self.reward)?;
        self.model.validate("model")
    }
}

/// Encoded examples, and how many rows they come from.
struct Rows {
    train: Vec<Example>,
    valid: Vec<Example>,
    counts: Value,
}

impl SftConfig {
    fn rows(&self, tokenizer: &Tokenizer) -> anyhow::Result<Rows> {
        let read = self.data.supervised()?;
        let encoder = self.encoder(tokenizer)?;
        let encode = |rows: Vec<SupervisedExample>| -> anyhow::Result<Vec<Example>> {
            let rows: Vec<SupervisedExample> = rows.into_iter().map(|row| encoder.example(row)).collect();
            Ok(encode_supervised(tokenizer, encoder.template.as_ref(), &rows, self.max_length)?)
        };
        let counts = json!({ "rows": read.counts });
        Ok(Rows { train: encode(read.train)?, valid: encode(read.valid)?, counts })
    }

    fn encoder(&self, tokenizer: &Tokenizer) -> anyhow::Result<Encoder> {
        Encoder::new(&self.chat, tokenizer.clone(), &self.model.tokenizer_folder())
    }

    fn evaluation(&self, tokenizer: &Tokenizer) -> anyhow::Result<Option<ByRewards>> {
        self.validation.evaluation(&self.reward, &self.data.columns, &self.encoder(tokenizer)?)
    }

    fn length(&self, examples: usize, processes: usize) -> Length {
        Length { epochs: self.epochs, batch_size: self.batch_size, examples, processes }
    }

    fn pass(&self, source: [f64; 2], target: [f64; 2], rows: usize) -> Pass {
        let times = self.trainer.accumulate as f64;
        Pass { work: Work::Training, times, networks: 1, rows, source, target }
    }
}

/// The command.
pub(crate) struct Finetune;

impl Training for Finetune {
    type Config = SftConfig;

    fn labels(&self) -> Map<String, Value> {
        Method::Sft.labels()
    }

    fn configure(&self, config: &mut SftConfig) -> anyhow::Result<()> {
        configure(&mut config.command, &mut config.model, Method::Sft)
    }

    fn model<'c>(&self, config: &'c SftConfig) -> &'c ModelSection {
        &config.model
    }

    fn trainer<'c>(&self, config: &'c SftConfig) -> &'c TrainerConfig {
        &config.trainer
    }

    fn measure(&self, config: &SftConfig, model: &ModelConfig, processes: usize) -> anyhow::Result<Measured> {
        let tokenizer = config.model.tokenizer(model)?;
        let Rows { train, .. } = config.rows(&tokenizer)?;
        let length = config.length(train.len(), processes);
        let mut trainer = config.trainer.clone();
        length.fill(&mut trainer);
        let (source, target) = (lengths(&train, |of| of.prompt.len()), lengths(&train, |of| of.target.len()));
        let pass = config.pass(source, target, length.batch_size());
        let plan = Plan::new(&trainer, Networks::single(model), &[pass], 1.0);
        Ok(Measured { problem: config.evaluation(&tokenizer).err(), ..measured(plan, train.len()) })
    }

    fn longest(&self, config: &SftConfig, model: &ModelConfig) -> Plan {
        let half = [config.max_length as f64 / 2.0; 2];
        let pass = config.pass(half, half, config.batch_size);
        Plan::new(&config.trainer, Networks::single(model), &[pass], 1.0)
    }

    fn prepare(&self, config: &mut SftConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        let (model, tokenizer) = config.model.open(config.seed, Kind::Float, job.worker.device)?;
        let Rows { train, valid, counts } = config.rows(&tokenizer)?;
        let length = config.length(train.len(), job.worker.collective.size());
        if !job.reuses_stored_config {
            length.fill(&mut config.trainer);
        }
        let evaluation = config.evaluation(&tokenizer)?;
        let mut data = SupervisedData::new(train, valid, length.batch_size(), config.seed)?;
        if let Some(evaluation) = evaluation {
            data = data.evaluated_by(evaluation);
        }
        Ok(Prepared::new(Sft::new(model, data, tokenizer)).with_data(&counts)?)
    }
}
