//! The configuration file.

use std::path::PathBuf;

use ruminate::algorithms::TrainerConfig;
use ruminate::algorithms::mario::{
    JudgingConfig, MarioData, OptionMode, OptionTrainingConfig, RationalesConfig, RewardModels, Unsupported,
    VerifierConfig, for_dataset, published_quark, published_quark_trainer,
};
use ruminate::algorithms::quark::{Lengths, QuarkConfig};
use ruminate::datasets::mario::{Target, TeachingConfig};
use ruminate::datasets::teacher::TeacherConfig;
use ruminate::run::program::Configuration;
use ruminate::run::{ConfigError, FlagKeys, ModelSection};
use serde::{Deserialize, Serialize};

/// What a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// The supervised stage.
    #[value(skip)]
    Sft,
    /// Labels from the question, for consistency
    I2o,
    /// Labels from question and rationale, for consistency
    Ir2o,
    /// The truth of statements, for plausibility
    Vera,
    /// Quark with several rewards.
    #[value(skip)]
    Quark,
}

impl Stage {
    pub(crate) const ALL: [Self; 5] = [Self::Sft, Self::I2o, Self::Ir2o, Self::Vera, Self::Quark];

    /// In configurations and in names of folders.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::I2o => "i2o",
            Self::Ir2o => "ir2o",
            Self::Vera => "vera",
            Self::Quark => "quark",
        }
    }

    /// The command line that begins such a run.
    pub(crate) fn command(self) -> String {
        match self {
            Self::Sft => "mario sft".into(),
            Self::Quark => "mario train".into(),
            mode => format!("mario reward-model --mode {}", mode.name()),
        }
    }
}

/// Everything that a run depends on. `configs/published.toml` explains each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MarioConfig {
    /// What the run trains; written by the command.
    pub(crate) stage: Option<Stage>,
    /// Seed of a new model's parameters and of dropout.
    pub(crate) seed: u64,
    pub(crate) data: MarioData,
    pub(crate) sft: Section<RationalesConfig>,
    pub(crate) i2o: Section<OptionTrainingConfig>,
    pub(crate) ir2o: Section<OptionTrainingConfig>,
    pub(crate) vera: Section<VerifierConfig>,
    pub(crate) quark: QuarkStage,
    pub(crate) rewards: RewardModels,
    pub(crate) evaluation: JudgingConfig,
    pub(crate) teaching: TeachingConfig,
    pub(crate) teacher: TeacherConfig,
    pub(crate) unsupported: Unsupported,
}

/// A model, what it is trained on, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Section<T> {
    pub(crate) model: ModelSection,
    pub(crate) training: T,
    pub(crate) trainer: TrainerConfig,
}

impl<T> Section<T> {
    fn new(training: T, trainer: TrainerConfig) -> Self {
        Self { model: ModelSection::default(), training, trainer }
    }
}

/// The training with several rewards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct QuarkStage {
    /// The frozen model that is not to be left, and that writes the first samples: a checkpoint of the supervised stage.
    pub(crate) reference: Option<PathBuf>,
    /// Where the policy starts.
    pub(crate) model: ModelSection,
    pub(crate) training: QuarkConfig,
    pub(crate) trainer: TrainerConfig,
}

impl Default for QuarkStage {
    fn default() -> Self {
        Self {
            reference: None,
            model: ModelSection::default(),
            training: published_quark(),
            trainer: published_quark_trainer(),
        }
    }
}

impl Default for MarioConfig {
    fn default() -> Self {
        let reward_model =
            |mode| Section::new(OptionTrainingConfig::published(mode), OptionTrainingConfig::trainer(mode));
        Self {
            stage: None,
            seed: 1,
            data: MarioData::default(),
            sft: Section::new(RationalesConfig::default(), RationalesConfig::trainer()),
            i2o: reward_model(OptionMode::I2o),
            ir2o: reward_model(OptionMode::Ir2o),
            vera: Section::new(VerifierConfig::default(), VerifierConfig::trainer()),
            quark: QuarkStage::default(),
            rewards: RewardModels::default(),
            evaluation: JudgingConfig::default(),
            teaching: TeachingConfig::default(),
            teacher: TeacherConfig::default(),
            unsupported: Unsupported::default(),
        }
    }
}

impl Configuration for MarioConfig {
    const FLAGS: FlagKeys = FlagKeys {
        seed: &[
            "seed",
            "sft.training.shuffle_seed",
            "i2o.training.shuffle_seed",
            "ir2o.training.shuffle_seed",
            "vera.training.shuffle_seed",
            "quark.training.seed",
            "evaluation.seed",
            "teaching.seed",
        ],
        precision: &[
            "sft.trainer.precision",
            "i2o.trainer.precision",
            "ir2o.trainer.precision",
            "vera.trainer.precision",
            "quark.trainer.precision",
        ],
    };

    fn validate(&self) -> Result<(), ConfigError> {
        let check = || -> ruminate::algorithms::Result<()> {
            self.sft.training.validate()?;
            self.i2o.training.validate()?;
            self.ir2o.training.validate()?;
            self.vera.training.validate()?;
            for_dataset(self.quark.training.clone(), self.data.dataset).validate()?;
            Stage::ALL.iter().try_for_each(|&stage| self.section(stage).1.validate())?;
            self.rewards.validate()?;
            self.unsupported.validate()?;
            self.evaluation.validate()
        };
        check().map_err(ConfigError::invalid)?;
        self.teaching.validate().map_err(ConfigError::invalid)?;
        Stage::ALL
            .iter()
            .try_for_each(|&stage| self.section(stage).0.validate(&format!("{}.model", stage.name())))
    }
}

impl MarioConfig {
    /// The model that a stage starts from, and its trainer.
    pub(crate) fn section(&self, stage: Stage) -> (&ModelSection, &TrainerConfig) {
        match stage {
            Stage::Sft => (&self.sft.model, &self.sft.trainer),
            Stage::I2o => (&self.i2o.model, &self.i2o.trainer),
            Stage::Ir2o => (&self.ir2o.model, &self.ir2o.trainer),
            Stage::Vera => (&self.vera.model, &self.vera.trainer),
            Stage::Quark => (&self.quark.model, &self.quark.trainer),
        }
    }

    /// The settings of a reward model that chooses among labels.
    pub(crate) fn options(&mut self, mode: OptionMode) -> &mut Section<OptionTrainingConfig> {
        match mode {
            OptionMode::I2o => &mut self.i2o,
            OptionMode::Ir2o => &mut self.ir2o,
        }
    }

    /// Refuses runs whose models write no rationale before an answer.
    pub(crate) fn check_writer(&self) -> Result<(), ConfigError> {
        let what = match self.stage {
            Some(Stage::I2o | Stage::Ir2o | Stage::Vera) => {
                "a model behind a reward, which writes no rationales"
            }
            Some(Stage::Sft) if self.sft.training.target == Target::AnswerOnly => {
                "trained to write answers without rationales (sft.training.target)"
            }
            _ => return Ok(()),
        };
        let reason = format!(
            "--model: by its run's configuration, the model is {what}; name one of `mario sft` or `mario train`"
        );
        Err(ConfigError::invalid(reason))
    }

    /// How a trained model writes: that of the supervised stage as its own validation let it.
    pub(crate) fn writing(&self) -> QuarkConfig {
        let mut quark = for_dataset(self.quark.training.clone(), self.data.dataset);
        if self.stage == Some(Stage::Sft) {
            let RationalesConfig { max_length, min_length, eval_batch_size, clean_up, .. } =
                self.sft.training;
            quark.eval_lengths = Lengths { max_length, min_length };
            (quark.eval_batch_size, quark.clean_up) = (eval_batch_size, clean_up);
        }
        quark
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
        let mut config: MarioConfig = config::load_text("configs/published.toml", PUBLISHED, &[]).unwrap();
        config.validate().unwrap();
        // Which model is the user's choice.
        for model in [
            &mut config.sft.model,
            &mut config.i2o.model,
            &mut config.ir2o.model,
            &mut config.vera.model,
            &mut config.quark.model,
        ] {
            assert!(model.pretrained.take().is_some());
        }
        assert_eq!(config, MarioConfig::default());
    }

    #[test]
    fn what_the_pages_suggest_is_taken() {
        let pages = [include_str!("../README.md"), include_str!("../../../docs/papers/mario.md")];
        assert!(suggested::all_are_taken(&pages, MarioConfig::validate) >= 3);
    }

    #[test]
    fn the_reference_has_every_quirk_switched_on() {
        let text = include_str!("../configs/reference.toml");
        let mut config: MarioConfig = config::load_text("configs/reference.toml", text, &[]).unwrap();
        config.validate().unwrap();
        let mut published: MarioConfig = config::load_text("configs/published.toml", PUBLISHED, &[]).unwrap();
        let quark = &config.quark.training;
        assert!(quark.retokenize && quark.sampling.drop_last && quark.kl_vocab == Some(32_000));
        assert_eq!(config.ir2o.training.held_out_questions, 0);
        // All else is as published.
        config.ir2o.training.held_out_questions = 200;
        published.vera.model.pretrained = None;
        let trainers = [&mut config.sft.trainer, &mut config.i2o.trainer, &mut config.ir2o.trainer];
        for trainer in trainers.into_iter().chain([&mut config.quark.trainer]) {
            assert!(trainer.keep > 10_000);
            trainer.keep = 2;
        }
        assert_eq!(config, published);
    }

    #[test]
    fn the_published_settings_name_and_explain_every_key() {
        assert_eq!(config::unexplained_keys(PUBLISHED, &MarioConfig::default()), [""; 0]);
    }
}
