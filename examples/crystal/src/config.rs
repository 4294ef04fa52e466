//! The configuration file.

use std::path::PathBuf;

use anyhow::Context;
use ruminate::algorithms::TrainerConfig;
use ruminate::algorithms::crystal::{CrystalData, EvaluationConfig, ImitationConfig, Lengths, QuestionEncoder};
use ruminate::datasets::Compat;
use ruminate::models::{T5, T5Config, Tokenizer};
use ruminate::run::{ConfigError, FlagKeys};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// The keys that `--seed` and `--precision` stand for.
pub(crate) const FLAGS: FlagKeys =
    FlagKeys { seed: &["seed", "imitation.shuffle_seed", "evaluation.seed"], precision: &["trainer.precision"] };

/// Everything that a run depends on. `configs/large.toml` explains each key.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CrystalConfig {
    /// Seed of the parameters of a new model and of dropout.
    pub(crate) seed: u64,
    /// Known defects of the published code: kept or mended.
    pub(crate) compat: Compat,
    pub(crate) model: ModelConfig,
    pub(crate) lengths: Lengths,
    pub(crate) data: CrystalData,
    pub(crate) imitation: ImitationConfig,
    pub(crate) trainer: TrainerConfig,
    pub(crate) evaluation: EvaluationConfig,
}

/// Which model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ModelConfig {
    /// A Hugging Face folder to start from.
    pub(crate) pretrained: Option<PathBuf>,
    /// Or the `config.json` of a new model.
    pub(crate) config: Option<PathBuf>,
    /// `tokenizer.json` or its folder; by default that of the model's folder.
    pub(crate) tokenizer: Option<PathBuf>,
    /// Dropout rate in training. The reference trains without.
    pub(crate) dropout: f64,
}

impl CrystalConfig {
    /// Checks what can be checked before any file is read.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let check = || -> ruminate::algorithms::Result<()> {
            self.imitation.validate()?;
            self.trainer.validate()?;
            self.evaluation.validate()
        };
        check().map_err(ConfigError::invalid)?;
        if !(0.0..1.0).contains(&self.model.dropout) {
            let reason = format!("model.dropout is {}, but must be in [0, 1)", self.model.dropout);
            return Err(ConfigError::invalid(reason));
        }
        Ok(())
    }

    /// Loads the model to start from, or makes a new one, and the encoder that belongs to it.
    pub(crate) fn build(&self, device: Device) -> anyhow::Result<(T5, QuestionEncoder)> {
        let (t5, folder) = match (&self.model.pretrained, &self.model.config) {
            (Some(folder), None) => {
                let config = T5Config { dropout_rate: self.model.dropout, ..T5Config::open(folder)? };
                (T5::load_with(config, folder, Kind::Float, device)?, folder.clone())
            }
            (None, Some(path)) => {
                let config = T5Config { dropout_rate: self.model.dropout, ..T5Config::open(path)? };
                let t5 = T5::new(config, Kind::Float, device, self.seed as i64)?;
                (t5, path.parent().map(PathBuf::from).unwrap_or_default())
            }
            _ => {
                let reason = "name exactly one of model.pretrained (a Hugging Face folder to start from) and \
                              model.config (the config.json of a new model)";
                return Err(ConfigError::invalid(reason).into());
            }
        };
        tch::manual_seed(self.seed as i64);
        let tokenizer = self.model.tokenizer.clone().unwrap_or(folder);
        let tokenizer = Tokenizer::open(&tokenizer).context("model.tokenizer")?;
        let encoder = QuestionEncoder::new(tokenizer, t5.config(), self.lengths, self.compat)?;
        Ok((t5, encoder))
    }

    /// Loads a trained checkpoint, whose tokenizer lies beside it.
    pub(crate) fn open(&self, folder: &std::path::Path, device: Device) -> anyhow::Result<(T5, QuestionEncoder)> {
        let t5 = T5::load(folder, Kind::Float, device)?;
        let tokenizer = self.model.tokenizer.as_deref().unwrap_or(folder);
        let encoder = QuestionEncoder::new(Tokenizer::open(tokenizer)?, t5.config(), self.lengths, self.compat)?;
        Ok((t5, encoder))
    }
}
