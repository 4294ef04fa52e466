//! The configuration file.

use std::path::Path;

use ruminate::algorithms::tinythinker::{
    AcquisitionSection, InferenceConfig, Learner, ReflectionSection, TinyThinkerData,
};
use ruminate::algorithms::trainer::verify;
use ruminate::datasets::teacher::TeacherConfig;
use ruminate::datasets::tinythinker::{TeachingSection, Variant};
use ruminate::models::{Model, Tokenizer};
use ruminate::run::program::{Configuration, enter};
use ruminate::run::{ConfigError, FlagKeys, ModelSection};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Device, Kind};

/// The command of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Teach,
    Acquire,
    Reflect,
    Pairs,
    Dpo,
}

impl Phase {
    /// The command, as it is written.
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// The fields that tell results of this program.
    pub(crate) fn labels(self) -> Map<String, Value> {
        Map::from_iter([("system".into(), "tinythinker".into()), ("phase".into(), self.name().into())])
    }
}

/// Everything that a run depends on. `configs/published.toml` explains each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TinyThinkerConfig {
    /// What the run does; written by the command.
    pub(crate) phase: Option<Phase>,
    /// Seed of a new model's parameters and of dropout.
    pub(crate) seed: u64,
    pub(crate) data: TinyThinkerData,
    pub(crate) teacher: TeacherConfig,
    pub(crate) teaching: TeachingSection,
    pub(crate) model: ModelSection,
    pub(crate) acquisition: AcquisitionSection,
    pub(crate) reflection: ReflectionSection,
    pub(crate) inference: InferenceConfig,
}

impl Default for TinyThinkerConfig {
    fn default() -> Self {
        Self {
            phase: None,
            seed: 42,
            data: TinyThinkerData::default(),
            teacher: TeacherConfig::default(),
            teaching: TeachingSection::default(),
            // That of the published models' configurations.
            model: ModelSection { dropout: 0.1, ..ModelSection::default() },
            acquisition: AcquisitionSection::default(),
            reflection: ReflectionSection::default(),
            inference: InferenceConfig::default(),
        }
    }
}

impl Configuration for TinyThinkerConfig {
    const FLAGS: FlagKeys = FlagKeys {
        seed: &[
            "seed",
            "data.split_seed",
            "teaching.settings.seed",
            "acquisition.training.shuffle_seed",
            "reflection.training.shuffle_seed",
            "reflection.training.pairs.seed",
            "reflection.training.generation.seed",
            "inference.generation.seed",
        ],
        precision: &["acquisition.trainer.precision", "reflection.trainer.precision"],
    };

    fn validate(&self) -> Result<(), ConfigError> {
        let phases = self.acquisition.validate().and_then(|()| self.reflection.validate());
        phases.and_then(|()| self.inference.validate()).map_err(ConfigError::invalid)?;
        self.model.validate("model")
    }
}

impl TinyThinkerConfig {
    /// Says what the run does, and refuses to go on with a run that does something else.
    pub(crate) fn enter(&mut self, phase: Phase) -> Result<(), ConfigError> {
        enter(&mut self.phase, phase, |phase| format!("tinythinker {}", phase.name()))
    }

    pub(crate) fn variant(&self) -> Variant {
        self.acquisition.training.variant
    }

    /// The student of a checkpoint.
    pub(crate) fn learner(&self, folder: &Path, device: Device) -> anyhow::Result<Learner<Model>> {
        verify(folder)?;
        let policy = Model::load(folder, Kind::Float, device)?;
        Ok(Learner { policy, tokenizer: Tokenizer::open(folder)?, variant: self.variant() })
    }
}

#[cfg(test)]
#[path = "../../suggested.rs"]
mod suggested;

#[cfg(test)]
mod tests {
    use ruminate::run::config;

    use super::*;

    const PUBLISHED: &str = include_str!("../configs/published.toml");

    #[test]
    fn the_published_settings_are_the_defaults() {
        let mut config: TinyThinkerConfig =
            config::load_text("configs/published.toml", PUBLISHED, &[]).unwrap();
        config.validate().unwrap();
        // Which model is the user's choice.
        assert!(config.model.pretrained.take().is_some());
        assert_eq!(config, TinyThinkerConfig::default());
    }

    #[test]
    fn what_the_pages_suggest_is_taken() {
        let pages = [include_str!("../README.md"), include_str!("../../../docs/papers/tinythinker.md")];
        assert!(suggested::all_are_taken(&pages, TinyThinkerConfig::validate) >= 3);
    }

    #[test]
    fn the_reference_has_every_quirk_switched_on() {
        let text = include_str!("../configs/reference.toml");
        let config: TinyThinkerConfig = config::load_text("configs/reference.toml", text, &[]).unwrap();
        config.validate().unwrap();
        let published: TinyThinkerConfig =
            config::load_text("configs/published.toml", PUBLISHED, &[]).unwrap();
        // Written without the quirks, it is what is published.
        let quirks = [
            "data.analysis_order=by_label",
            "teacher.attempts=6",
            "acquisition.trainer.keep=2",
            "reflection.training.distinct_prompts=true",
            "reflection.training.keep_if_worse=false",
            "reflection.training.pairs.drop_equal=true",
            "reflection.training.lengths.cut={keep_both={tail=16}}",
            "reflection.training.dpo.rpo_padding_compat=false",
            "reflection.training.dpo.dropout=false",
            "reflection.trainer.keep=2",
        ];
        let load = |sets: &[String]| -> TinyThinkerConfig {
            config::load_text("configs/reference.toml", text, sets).unwrap()
        };
        let without: Vec<String> = quirks.map(String::from).into();
        assert_eq!(load(&without), published);
        for i in 0..without.len() {
            let others = [&without[..i], &without[i + 1..]].concat();
            assert!(load(&others) != published, "{} is not switched on", quirks[i]);
        }
    }

    #[test]
    fn the_published_settings_name_and_explain_every_key() {
        assert_eq!(config::unexplained_keys(PUBLISHED, &TinyThinkerConfig::default()), [""; 0]);
    }
}
