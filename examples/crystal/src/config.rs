//! The configuration file.

use std::path::Path;

use anyhow::Context;
use ruminate::algorithms::TrainerConfig;
use ruminate::algorithms::crystal::{
    CrystalData, EvaluationConfig, ImitationConfig, Lengths, QuestionEncoder, ReinforcementConfig,
};
use ruminate::algorithms::trainer::verify;
use ruminate::datasets::Compat;
use ruminate::datasets::knowledge::published_sampling;
use ruminate::datasets::teacher::{Endpoint, Prices, Sampling, TeacherConfig};
use ruminate::models::{Model, ModelConfig, Tokenizer};
use ruminate::run::program::Configuration;
use ruminate::run::{ConfigError, FlagKeys, ModelSection};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Device, Kind};

/// Everything that a run depends on. `configs/large.toml` explains each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CrystalConfig {
    /// Seed of the parameters of a new model and of dropout.
    pub(crate) seed: u64,
    /// Known defects of the published code: kept or mended.
    pub(crate) compat: Compat,
    pub(crate) model: ModelSection,
    pub(crate) lengths: Lengths,
    pub(crate) data: CrystalData,
    pub(crate) imitation: ImitationConfig,
    /// Of the imitation.
    pub(crate) trainer: TrainerConfig,
    pub(crate) reinforcement: ReinforcementConfig,
    pub(crate) evaluation: EvaluationConfig,
    pub(crate) teacher: TeacherConfig,
    pub(crate) teaching: TeachingSection,
}

/// Settings of the teacher of silver knowledge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TeachingSection {
    /// Files of few-shot prompts, a template with `{task}`.
    pub(crate) prompts: String,
    /// How statements are drawn.
    pub(crate) sampling: Sampling,
    /// Only the first questions of each file; 0 for all.
    pub(crate) questions: usize,
    /// Prices of a million tokens, to show what it costs.
    pub(crate) prices: Option<Prices>,
}

impl Default for TeachingSection {
    fn default() -> Self {
        let prompts = "data/prompts/{task}.txt".into();
        Self { prompts, sampling: published_sampling(), questions: 0, prices: None }
    }
}

impl Default for CrystalConfig {
    fn default() -> Self {
        let imitation = ImitationConfig::default();
        Self {
            // The reference has one seed for the order of the data and all else.
            seed: imitation.shuffle_seed,
            compat: Compat::default(),
            model: ModelSection::default(),
            lengths: Lengths::default(),
            data: CrystalData::default(),
            imitation,
            trainer: ImitationConfig::trainer(),
            reinforcement: ReinforcementConfig::default(),
            evaluation: EvaluationConfig::default(),
            teacher: TeacherConfig {
                // The nearest to the published davinci that is still served.
                model: "davinci-002".into(),
                endpoint: Endpoint::Completions,
                ..TeacherConfig::default()
            },
            teaching: TeachingSection::default(),
        }
    }
}

/// The fields that tell results of this program.
pub(crate) fn labels(stage: &str) -> Map<String, Value> {
    Map::from_iter([("system".into(), "crystal".into()), ("stage".into(), stage.into())])
}

impl Configuration for CrystalConfig {
    const FLAGS: FlagKeys = FlagKeys {
        seed: &["seed", "imitation.shuffle_seed", "reinforcement.ppo.seed", "evaluation.seed"],
        precision: &["trainer.precision", "reinforcement.trainer.precision"],
    };

    fn validate(&self) -> Result<(), ConfigError> {
        let check = || -> ruminate::algorithms::Result<()> {
            self.imitation.validate()?;
            self.trainer.validate()?;
            self.reinforcement.validate()?;
            self.evaluation.validate()
        };
        check().map_err(ConfigError::invalid)?;
        self.model.validate("model")
    }
}

impl CrystalConfig {
    /// Loads the model to start from, or makes a new one, and the encoder that belongs to it.
    pub(crate) fn build(&self, device: Device) -> anyhow::Result<(Model, QuestionEncoder)> {
        let (model, tokenizer) = self.model.open(self.seed, Kind::Float, device)?;
        let encoder = self.encoder(tokenizer, model.config(), &self.model.tokenizer_path())?;
        Ok((model, encoder))
    }

    /// Loads a trained checkpoint with the tokenizer that lies beside it, or else the one that is set.
    pub(crate) fn open(&self, folder: &Path, device: Device) -> anyhow::Result<(Model, QuestionEncoder)> {
        verify(folder)?;
        let model = Model::load(folder, Kind::Float, device)?;
        if let Some(own) = model.tokenizer() {
            let encoder = self.encoder(own.clone(), model.config(), folder)?;
            return Ok((model, encoder));
        }
        let path = self.model.tokenizer.as_deref().unwrap_or(folder);
        let tokenizer =
            Tokenizer::open(path).with_context(|| format!("cannot use the tokenizer {}", path.display()))?;
        let encoder = self.encoder(tokenizer, model.config(), path)?;
        Ok((model, encoder))
    }

    /// The encoder of a model that need not be there yet.
    pub(crate) fn planned_encoder(&self, model: &ModelConfig) -> anyhow::Result<QuestionEncoder> {
        self.encoder(self.model.tokenizer(model)?, model, &self.model.tokenizer_path())
    }

    /// Joins a tokenizer, which came from `path`, with the model that it is for.
    pub(crate) fn encoder(
        &self,
        tokenizer: Tokenizer,
        config: &ModelConfig,
        path: &Path,
    ) -> anyhow::Result<QuestionEncoder> {
        QuestionEncoder::new(tokenizer, config, self.lengths, self.compat)
            .with_context(|| format!("cannot use the tokenizer {}", path.display()))
    }
}

#[cfg(test)]
#[path = "../../suggested.rs"]
mod suggested;

#[cfg(test)]
mod tests {
    use ruminate::algorithms::Precision;
    use ruminate::run::config;

    use super::*;

    const LARGE: &str = include_str!("../configs/large.toml");

    fn large() -> CrystalConfig {
        config::load_text("configs/large.toml", LARGE, &[]).unwrap()
    }

    #[test]
    fn the_published_settings_are_the_defaults() {
        let mut config = large();
        config.validate().unwrap();
        // Which model is the user's choice, and f32 works on every machine.
        config.model.pretrained = None;
        for trainer in [&mut config.trainer, &mut config.reinforcement.trainer] {
            assert_eq!(std::mem::take(&mut trainer.precision), Precision::Bf16);
        }
        assert_eq!(config, CrystalConfig::default());
    }

    #[test]
    fn the_larger_model_has_the_same_precision_in_both_stages() {
        let text = include_str!("../configs/3b.toml");
        let config: CrystalConfig = config::load_text("configs/3b.toml", text, &[]).unwrap();
        config.validate().unwrap();
        for trainer in [&config.trainer, &config.reinforcement.trainer] {
            assert_eq!((trainer.precision, trainer.accumulate), (Precision::Bf16, 4));
        }
    }

    #[test]
    fn what_the_pages_suggest_is_taken() {
        let pages = [include_str!("../README.md"), include_str!("../../../docs/papers/crystal.md")];
        assert!(suggested::all_are_taken(&pages, CrystalConfig::validate) >= 15);
    }

    #[test]
    fn the_reference_has_every_quirk_switched_on() {
        let text = include_str!("../configs/reference.toml");
        let mut config: CrystalConfig = config::load_text("configs/reference.toml", text, &[]).unwrap();
        config.validate().unwrap();
        assert_eq!(config.compat, Compat::Reference);
        assert!(config.data.skip_bad_rows && config.evaluation.pad_given);
        assert!(!config.reinforcement.ppo.rollout.forbid_pad && !config.evaluation.forbid_pad);
        assert_eq!((config.trainer.keep, config.reinforcement.trainer.keep), (1, 1));
        // All else is as published.
        (config.data.skip_bad_rows, config.evaluation.pad_given) = (false, false);
        (config.reinforcement.ppo.rollout.forbid_pad, config.evaluation.forbid_pad) = (true, true);
        (config.trainer.keep, config.reinforcement.trainer.keep) = (2, 2);
        assert_eq!(config, large());
    }

    #[test]
    fn the_published_settings_name_and_explain_every_key() {
        assert_eq!(config::unexplained_keys(LARGE, &CrystalConfig::default()), [""; 0]);
    }
}
