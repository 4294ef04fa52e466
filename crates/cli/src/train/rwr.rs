//! Reward-weighted regression: fine-tuning on rated completions.

use ruminate::algorithms::rwr::{Rwr, WeightedExample, Weighting};
use ruminate::algorithms::{Networks, Pass, Plan, TrainerConfig, Work, encode_supervised};
use ruminate::datasets::SupervisedExample;
use ruminate::datasets::rows::{DataFiles, WeightedRow};
use ruminate::models::{ModelConfig, Tokenizer};
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

/// Settings of `ruminate rwr`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RwrConfig {
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
    /// An example of reward r weighs exp(r / temperature).
    pub(crate) temperature: f64,
    /// The use of these weights.
    pub(crate) weighting: Weighting,
    /// The model to start from.
    pub(crate) model: ModelSection,
    /// Files of examples with rewards.
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

impl Default for RwrConfig {
    fn default() -> Self {
        Self {
            command: None,
            seed: 1,
            epochs: 3.0,
            batch_size: 8,
            max_length: 1024,
            temperature: 1.0,
            weighting: Weighting::Normalized,
            model: ModelSection::default(),
            data: DataFiles::default(),
            chat: ChatSection::default(),
            trainer: TrainerConfig { lr: 1e-5, eval_every: 0, ..TrainerConfig::default() },
            validation: ValidationSection::default(),
            reward: vec![],
        }
    }
}

impl Configuration for RwrConfig {
    const FLAGS: FlagKeys = FlagKeys { seed: &["seed"], precision: &["trainer.precision"] };

    fn validate(&self) -> Result<(), ConfigError> {
        Length::validate(self.epochs, self.batch_size)?;
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            let reason = format!("temperature is {}, but must be above 0", self.temperature);
            return Err(ConfigError::invalid(reason));
        }
        self.trainer.validate().map_err(ConfigError::invalid)?;
        self.validation.validate(&self.reward)?;
        self.model.validate("model")
    }
}

/// Encoded examples, and how many rows they come from.
struct Rows {
    train: Vec<WeightedExample>,
    valid: Vec<WeightedExample>,
    counts: Value,
}

impl RwrConfig {
    fn rows(&self, tokenizer: &Tokenizer) -> anyhow::Result<Rows> {
        let read = self.data.weighted()?;
        let encoder = self.encoder(tokenizer)?;
        let template = encoder.template.as_ref();
        let encode = |rows: Vec<WeightedRow>| -> anyhow::Result<Vec<WeightedExample>> {
            let weights: Vec<f64> = rows.iter().map(|row| (row.reward / self.temperature).exp()).collect();
            let prompts: Vec<String> = rows.iter().map(|row| prompt_of(&row.example)).collect();
            let weights = self.weighting.apply(&weights, &prompts)?;
            let examples = rows.into_iter().map(|row| encoder.example(row.example)).zip(weights);
            let mut encoded = vec![];
            for (row, weight) in examples {
                let targets = encode_supervised(tokenizer, template, &[row], self.max_length)?;
                encoded.extend(targets.into_iter().map(|of| WeightedExample::new(of, weight as f32)));
            }
            Ok(encoded)
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

/// Text that is the same for two examples of one prompt.
fn prompt_of(example: &SupervisedExample) -> String {
    match example {
        SupervisedExample::Completion { prompt, .. } => prompt.clone(),
        SupervisedExample::Answer { prompt, .. } => json!(prompt).to_string(),
        SupervisedExample::Dialogue { messages } => {
            json!(&messages[..messages.len().saturating_sub(1)]).to_string()
        }
    }
}

/// The command.
pub(crate) struct Regress;

impl Training for Regress {
    type Config = RwrConfig;

    fn labels(&self) -> Map<String, Value> {
        Method::Rwr.labels()
    }

    fn configure(&self, config: &mut RwrConfig) -> anyhow::Result<()> {
        configure(&mut config.command, &mut config.model, Method::Rwr)
    }

    fn model<'c>(&self, config: &'c RwrConfig) -> &'c ModelSection {
        &config.model
    }

    fn trainer<'c>(&self, config: &'c RwrConfig) -> &'c TrainerConfig {
        &config.trainer
    }

    fn measure(&self, config: &RwrConfig, model: &ModelConfig, processes: usize) -> anyhow::Result<Measured> {
        let tokenizer = config.model.tokenizer(model)?;
        let Rows { train, .. } = config.rows(&tokenizer)?;
        let length = config.length(train.len(), processes);
        let mut trainer = config.trainer.clone();
        length.fill(&mut trainer);
        let source = lengths(&train, |of| of.example.prompt.len());
        let target = lengths(&train, |of| of.example.target.len());
        let pass = config.pass(source, target, length.batch_size());
        let plan = Plan::new(&trainer, Networks::single(model), &[pass], 1.0);
        Ok(Measured { problem: config.evaluation(&tokenizer).err(), ..measured(plan, train.len()) })
    }

    fn longest(&self, config: &RwrConfig, model: &ModelConfig) -> Plan {
        let half = [config.max_length as f64 / 2.0; 2];
        let pass = config.pass(half, half, config.batch_size);
        Plan::new(&config.trainer, Networks::single(model), &[pass], 1.0)
    }

    fn prepare(&self, config: &mut RwrConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        let (model, tokenizer) = config.model.open(config.seed, Kind::Float, job.worker.device)?;
        let Rows { train, valid, counts } = config.rows(&tokenizer)?;
        let length = config.length(train.len(), job.worker.collective.size());
        if !job.reuses_stored_config {
            length.fill(&mut config.trainer);
        }
        let evaluation = config.evaluation(&tokenizer)?;
        let mut rwr = Rwr::new(model, train, valid, length.batch_size(), config.seed, tokenizer)?;
        if let Some(evaluation) = evaluation {
            rwr = rwr.evaluated_by(evaluation);
        }
        Ok(Prepared::new(rwr).with_data(&counts)?)
    }
}
