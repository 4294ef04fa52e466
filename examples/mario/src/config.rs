//! The configuration file.

use std::path::PathBuf;

use ruminate::algorithms::TrainerConfig;
use ruminate::algorithms::mario::{
    JudgingConfig, MarioData, OptionMode, OptionTrainingConfig, RationalesConfig, VerifierConfig,
    for_dataset, published_quark, published_quark_trainer,
};
use ruminate::algorithms::quark::{Lengths, QuarkConfig};
use ruminate::datasets::mario::Target;
use ruminate::run::{ConfigError, FlagKeys, ModelSection};
use serde::{Deserialize, Serialize};

/// The keys that `--seed` and `--precision` stand for.
pub(crate) const FLAGS: FlagKeys = FlagKeys {
    seed: &[
        "seed",
        "sft.training.shuffle_seed",
        "i2o.training.shuffle_seed",
        "ir2o.training.shuffle_seed",
        "vera.training.shuffle_seed",
        "quark.training.seed",
        "evaluation.seed",
    ],
    precision: &[
        "sft.trainer.precision",
        "i2o.trainer.precision",
        "ir2o.trainer.precision",
        "vera.trainer.precision",
        "quark.trainer.precision",
    ],
};

/// What a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// The supervised stage.
    Sft,
    /// The reward model without rationales.
    I2o,
    /// The reward model with rationales.
    Ir2o,
    /// The verifier.
    Vera,
    /// Quark with several rewards.
    Quark,
}

impl Stage {
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

    /// What begins such a run.
    fn command(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::I2o => "reward-model --mode i2o",
            Self::Ir2o => "reward-model --mode ir2o",
            Self::Vera => "reward-model --mode vera",
            Self::Quark => "train",
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
    pub(crate) sft: Training<RationalesConfig>,
    pub(crate) i2o: Training<OptionTrainingConfig>,
    pub(crate) ir2o: Training<OptionTrainingConfig>,
    pub(crate) vera: Training<VerifierConfig>,
    pub(crate) quark: QuarkStage,
    pub(crate) rewards: RewardModels,
    pub(crate) evaluation: JudgingConfig,
}

/// A model, what it is trained on, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Training<T> {
    pub(crate) model: ModelSection,
    pub(crate) training: T,
    pub(crate) trainer: TrainerConfig,
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

/// The models behind the rewards. In evaluations, rewards without their model are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RewardModels {
    /// Folder of Vera, for plausibility.
    pub(crate) vera: Option<PathBuf>,
    /// Checkpoint of the model without rationales, for consistency.
    pub(crate) i2o: Option<PathBuf>,
    /// Checkpoint of the model with rationales, for consistency.
    pub(crate) ir2o: Option<PathBuf>,
    /// How the two become a reward.
    pub(crate) consistency: ruminate::rewards::mario::ConsistencyMode,
}

impl Default for MarioConfig {
    fn default() -> Self {
        let reward_model = |mode| Training {
            model: ModelSection::default(),
            training: OptionTrainingConfig::published(mode),
            trainer: OptionTrainingConfig::trainer(mode),
        };
        Self {
            stage: None,
            seed: 1,
            data: MarioData::default(),
            sft: Training {
                model: ModelSection::default(),
                training: RationalesConfig::default(),
                trainer: RationalesConfig::trainer(),
            },
            i2o: reward_model(OptionMode::I2o),
            ir2o: reward_model(OptionMode::Ir2o),
            vera: Training {
                model: ModelSection::default(),
                training: VerifierConfig::default(),
                trainer: VerifierConfig::trainer(),
            },
            quark: QuarkStage::default(),
            rewards: RewardModels::default(),
            evaluation: JudgingConfig::default(),
        }
    }
}

impl MarioConfig {
    /// Checks what can be checked before any file is read.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let check = || -> ruminate::algorithms::Result<()> {
            self.sft.training.validate()?;
            self.i2o.training.validate()?;
            self.ir2o.training.validate()?;
            self.vera.training.validate()?;
            for_dataset(self.quark.training.clone(), self.data.dataset).validate()?;
            let trainers = [&self.sft.trainer, &self.i2o.trainer, &self.ir2o.trainer];
            trainers.into_iter().try_for_each(TrainerConfig::validate)?;
            [&self.vera.trainer, &self.quark.trainer].into_iter().try_for_each(TrainerConfig::validate)?;
            self.evaluation.validate()
        };
        check().map_err(ConfigError::invalid)?;
        for (stage, model) in [
            ("sft", &self.sft.model),
            ("i2o", &self.i2o.model),
            ("ir2o", &self.ir2o.model),
            ("vera", &self.vera.model),
            ("quark", &self.quark.model),
        ] {
            model.validate(&format!("{stage}.model"))?;
        }
        if self.rewards.i2o.is_some() != self.rewards.ir2o.is_some() {
            let reason =
                "consistency compares two models: name both rewards.i2o and rewards.ir2o, or neither";
            return Err(ConfigError::invalid(reason));
        }
        Ok(())
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
        let mut quark = self.quark.training.clone();
        if self.stage == Some(Stage::Sft) {
            let RationalesConfig { max_length, min_length, eval_batch_size, clean_up, .. } =
                self.sft.training;
            quark.eval_lengths = Lengths { max_length, min_length };
            (quark.eval_batch_size, quark.clean_up) = (eval_batch_size, clean_up);
        }
        quark
    }

    pub(crate) fn option_training(&self, mode: OptionMode) -> &Training<OptionTrainingConfig> {
        match mode {
            OptionMode::I2o => &self.i2o,
            OptionMode::Ir2o => &self.ir2o,
        }
    }

    pub(crate) fn option_training_mut(&mut self, mode: OptionMode) -> &mut Training<OptionTrainingConfig> {
        match mode {
            OptionMode::I2o => &mut self.i2o,
            OptionMode::Ir2o => &mut self.ir2o,
        }
    }

    /// Says what the run trains, and refuses to go on with a run of another stage.
    pub(crate) fn enter(&mut self, stage: Stage) -> Result<(), ConfigError> {
        match self.stage.replace(stage) {
            Some(other) if other != stage => {
                let command = other.command();
                Err(ConfigError::invalid(format!("this is the configuration of a run of `mario {command}`")))
            }
            _ => Ok(()),
        }
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
        let mut section = String::new();
        let mut explained = std::collections::BTreeSet::new();
        let mut above = "";
        for line in PUBLISHED.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = format!("{name}.");
            } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ")
                && !key.contains(' ')
            {
                assert!(above.starts_with("# "), "{section}{key} is not explained");
                explained.insert(format!("{section}{key}"));
            }
            above = line;
        }
        let defaults = config::to_toml(&MarioConfig::default()).unwrap();
        let mut keys = 0;
        let mut table = String::new();
        for line in defaults.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                table = format!("{name}.");
            } else if let Some((key, _)) = line.split_once(" = ") {
                assert!(
                    explained.contains(&format!("{table}{key}")),
                    "configs/published.toml lacks {table}{key}"
                );
                keys += 1;
            }
        }
        assert!(keys > 120, "{keys}");
    }
}
