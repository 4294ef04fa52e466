//! The configuration file.

use std::path::{Path, PathBuf};

use ruminate::algorithms::TrainerConfig;
use ruminate::algorithms::tinythinker::{
    AcquisitionConfig, InferenceConfig, Learner, ReflectionConfig, TinyThinkerData,
};
use ruminate::algorithms::trainer::verify;
use ruminate::datasets::teacher::{Prices, TeacherConfig};
use ruminate::datasets::tinythinker::{TeachingConfig, Variant};
use ruminate::models::{Model, Tokenizer};
use ruminate::run::program::{Configuration, enter};
use ruminate::run::{ConfigError, FlagKeys, ModelSection};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Device, Kind};

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Asks a teacher.
    Teach,
    /// Phase 1.
    Acquire,
    /// Phase 2.
    Reflect,
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

/// What the teacher is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TeachingSection {
    /// File with the instruction.
    pub(crate) instruction: PathBuf,
    /// File with the examples.
    pub(crate) few_shot: PathBuf,
    /// Prices of a million tokens, to show what it costs.
    pub(crate) prices: Option<Prices>,
    /// Only the first training questions; 0 for all.
    pub(crate) questions: usize,
    pub(crate) settings: TeachingConfig,
}

impl Default for TeachingSection {
    fn default() -> Self {
        Self {
            instruction: "datasets/request.json".into(),
            few_shot: "datasets/csqa/prompt/csqa_cot.json".into(),
            prices: None,
            questions: 0,
            settings: TeachingConfig::default(),
        }
    }
}

/// Phase 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AcquisitionSection {
    pub(crate) training: AcquisitionConfig,
    pub(crate) trainer: TrainerConfig,
}

impl Default for AcquisitionSection {
    fn default() -> Self {
        Self { training: AcquisitionConfig::default(), trainer: AcquisitionConfig::trainer() }
    }
}

/// Phase 2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ReflectionSection {
    /// Checkpoint of phase 1.
    pub(crate) start: Option<PathBuf>,
    /// Rounds.
    pub(crate) iterations: u64,
    /// Questions to reflect on instead of those of the records, in the form of the data set.
    pub(crate) questions: Option<PathBuf>,
    pub(crate) training: ReflectionConfig,
    pub(crate) trainer: TrainerConfig,
}

impl Default for ReflectionSection {
    fn default() -> Self {
        Self {
            start: None,
            iterations: 5,
            questions: None,
            training: ReflectionConfig::default(),
            trainer: ReflectionConfig::trainer(),
        }
    }
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
        let check = || -> ruminate::algorithms::Result<()> {
            self.acquisition.training.validate()?;
            self.acquisition.trainer.validate()?;
            self.reflection.training.validate()?;
            self.reflection.trainer.validate()?;
            self.inference.generation.validate()
        };
        check().map_err(ConfigError::invalid)?;
        for (key, value) in [
            ("reflection.iterations", self.reflection.iterations),
            ("inference.runs", self.inference.runs as u64),
        ] {
            if value == 0 {
                return Err(ConfigError::invalid(format!("{key} is 0, but must be at least 1")));
            }
        }
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

    /// The checkpoint that reflection begins with.
    pub(crate) fn start(&self) -> Result<&Path, ConfigError> {
        let reason = "name a checkpoint of `tinythinker acquire` with reflection.start, such as runs/acquire/checkpoints/best";
        self.reflection.start.as_deref().ok_or_else(|| ConfigError::invalid(reason))
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
