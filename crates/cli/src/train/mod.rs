//! Commands that train.

pub(crate) mod dpo;
pub(crate) mod ppo;
pub(crate) mod quark;
pub(crate) mod rwr;
pub(crate) mod sft;
mod validation;

use std::path::PathBuf;

use clap::Args;
use ruminate::algorithms::{Plan, TrainerConfig};
use ruminate::datasets::Split;
use ruminate::run::program::{Measured, Training, enter, train};
use ruminate::run::{ConfigError, DataRow, ModelSection, Outcome, RunArgs, resolve_link};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A command that trains, as it stands in the configuration of its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Method {
    Sft,
    Dpo,
    Ppo,
    Rwr,
    Quark,
}

impl Method {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo => "dpo",
            Self::Ppo => "ppo",
            Self::Rwr => "rwr",
            Self::Quark => "quark",
        }
    }

    /// The fields that tell results of this command from others.
    fn labels(self) -> Map<String, Value> {
        Map::from_iter([("command".into(), self.name().into())])
    }

    fn enter(self, stored: &mut Option<Self>) -> Result<(), ConfigError> {
        enter(stored, self, |other| format!("ruminate {}", other.name()))
    }
}

/// The flags of a command that trains.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// Folder of the model to start from, with config.json, model.safetensors and tokenizer.json as Hugging Face has them, or a
    /// checkpoint; short for --set model.pretrained=DIR
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// File of training data, JSON lines or an array (with the feature `parquet`, Parquet); short for --set data.train. Repeat it to mix several
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// File of validation data; short for --set data.valid. Without one, a share of the training data is held out (data.valid_share)
    #[arg(long, value_name = "FILE")]
    valid: Vec<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

impl TrainArgs {
    /// Trains by a method.
    pub(crate) fn train<T: Training>(&self, command: &T) -> anyhow::Result<Outcome> {
        train(command, &self.run())
    }

    /// The common flags, with this command's own as settings in front, so that `--set` wins.
    fn run(&self) -> RunArgs {
        let model = self.model.as_deref().map(resolve_link);
        let mut sets: Vec<String> = vec![];
        sets.extend(model.map(|model| set("model.pretrained", &model.display().to_string())));
        for (key, files) in [("data.train", &self.data), ("data.valid", &self.valid)] {
            if !files.is_empty() {
                let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
                sets.push(set(key, &files));
            }
        }
        sets.extend(self.run.sets.clone());
        RunArgs { sets, ..self.run.clone() }
    }
}

/// An override of the configuration. JSON's strings and lists of strings are TOML's, too.
pub(crate) fn set(key: &str, value: &impl Serialize) -> String {
    format!("{key}={}", serde_json::json!(value))
}

/// The length of a training: passes over the data or steps, and how many examples at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length {
    pub(crate) epochs: f64,
    pub(crate) batch_size: usize,
    /// Examples of an epoch.
    pub(crate) examples: usize,
    pub(crate) processes: usize,
}

impl Length {
    /// Checks the settings.
    pub(crate) fn validate(epochs: f64, batch_size: usize) -> Result<(), ConfigError> {
        if !(epochs >= 0.0 && epochs.is_finite()) {
            return Err(ConfigError::invalid(format!("epochs is {epochs}, but must not be negative")));
        }
        if batch_size == 0 {
            return Err(ConfigError::invalid("batch_size is 0, but must be at least 1"));
        }
        Ok(())
    }

    /// The micro-batch, which is no larger than what there is for each process.
    pub(crate) fn batch_size(&self) -> usize {
        let most = self.largest_batch();
        if self.batch_size > most {
            log::warn!(
                "batch_size is {}, but there are {} examples: {most} at a time",
                self.batch_size,
                self.examples
            );
        }
        self.batch_size.min(most)
    }

    fn largest_batch(&self) -> usize {
        (self.examples / self.processes.max(1)).max(1)
    }

    /// Fills in the trainer's settings that depend on the data: the steps of so many epochs, and a validation after each epoch where the
    /// settings name none.
    pub(crate) fn fill(&self, trainer: &mut TrainerConfig) {
        self.fill_steps(trainer, trainer.accumulate.max(1));
    }

    /// Fills in the same settings where a step takes one batch of prompts, however many micro-batches its updates have.
    pub(crate) fn fill_rollouts(&self, trainer: &mut TrainerConfig) {
        self.fill_steps(trainer, 1);
    }

    fn fill_steps(&self, trainer: &mut TrainerConfig, batches: usize) {
        if self.epochs == 0.0 {
            return;
        }
        let rows = self.batch_size.min(self.largest_batch()) * self.processes.max(1);
        let epoch = self.examples as f64 / (rows * batches) as f64;
        trainer.steps = ((self.epochs * epoch).ceil() as u64).max(1);
        if trainer.eval_every == 0 {
            trainer.eval_every = (epoch.ceil() as u64).clamp(1, trainer.steps);
        }
    }
}

/// Makes a configuration that of a method, and its model the checkpoint that `best` or `last` names now.
pub(crate) fn configure(
    command: &mut Option<Method>,
    model: &mut ModelSection,
    method: Method,
) -> anyhow::Result<()> {
    method.enter(command)?;
    if model.pretrained.is_none() && model.config.is_none() {
        let reason = "name the model to start from with --model, a folder with config.json, model.safetensors and tokenizer.json";
        return Err(ConfigError::invalid(reason).into());
    }
    model.pretrained = model.pretrained.as_deref().map(resolve_link);
    Ok(())
}

/// A plan with the rows that it was measured on.
pub(crate) fn measured(plan: Plan, rows: usize) -> Measured {
    let data = DataRow { task: "train".into(), split: Split::Train, questions: rows, instances: rows };
    Measured { plan, data: vec![data], problem: None }
}

/// Rows to validate with: training rows where there are no others, as methods that validate on nothing would not know their best model.
pub(crate) fn held_out<T: Clone>(train: &[T], valid: Vec<T>) -> Vec<T> {
    const STAND_IN: usize = 64;
    if !valid.is_empty() {
        return valid;
    }
    log::warn!(
        "there are no validation rows (data.valid, data.valid_share); training rows are taken in their place"
    );
    train.iter().take(STAND_IN).cloned().collect()
}

/// Two lengths of rows in tokens: on average and the longest.
pub(crate) fn lengths<T>(rows: &[T], of: impl Fn(&T) -> usize) -> [f64; 2] {
    let all: Vec<usize> = rows.iter().map(of).collect();
    let mean = all.iter().sum::<usize>() as f64 / rows.len().max(1) as f64;
    [mean, all.into_iter().max().unwrap_or(0) as f64]
}
