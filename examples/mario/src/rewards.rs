//! Rewards by their names, with the models behind them.

use std::path::Path;

use ruminate::algorithms::quark::QuarkConfig;
use ruminate::algorithms::trainer::verify;
use ruminate::models::{Model, Tokenizer, Vera};
use ruminate::rewards::mario::{
    Accuracy, Consistency, ConsistencyMode, Diversity, LengthBetween, LengthMore, NumWords, OptionModel,
    Plausibility, RewardSet,
};
use ruminate::run::ConfigError;
use tch::{Device, Kind};

use crate::config::MarioConfig;

/// Diversity, and the rewards whose models are configured, in the paper's order.
pub(crate) fn available(config: &MarioConfig, device: Device) -> anyhow::Result<RewardSet> {
    let mut rewards = RewardSet::new();
    if config.rewards.i2o.is_some() {
        rewards = rewards.add(consistency(config, config.rewards.consistency, device)?);
    }
    if config.rewards.vera.is_some() {
        rewards = rewards.add(Plausibility::new(vera(config, device)?));
    }
    Ok(rewards.add(Diversity::Rationale))
}

/// A reward that can be trained on.
enum Named {
    Accuracy,
    Diversity(Diversity),
    Plausibility { with_question: bool },
    Consistency(ConsistencyMode),
    NumWords,
    LengthMore,
    LengthBetween(LengthBetween),
}

/// The rewards that the training is configured with, under the published code's names.
fn named(config: &MarioConfig, quark: &QuarkConfig) -> Result<Vec<Named>, ConfigError> {
    let of_dataset = format!("{}-rationale-quality-", config.data.dataset);
    let reward = |name: &str| {
        Ok(match name {
            "accuracy" => Named::Accuracy,
            "diversity" => Named::Diversity(Diversity::Rationale),
            "diversity-3-4" => Named::Diversity(Diversity::WholeResponse),
            "plausibility" => Named::Plausibility { with_question: false },
            "plausibility-w-qn" => Named::Plausibility { with_question: true },
            "num_words" => Named::NumWords,
            "length-more" => Named::LengthMore,
            _ => match (name.strip_prefix(&of_dataset), length_between(name)) {
                (Some("continuous"), _) => Named::Consistency(ConsistencyMode::Continuous),
                (Some("discrete"), _) => Named::Consistency(ConsistencyMode::Discrete),
                (_, Some(reward)) => Named::LengthBetween(reward),
                _ => return Err(unknown(name, &of_dataset)),
            },
        })
    };
    quark.control.rewards.iter().map(|configured| reward(&configured.name)).collect()
}

/// The rewards to train on, with their models.
pub(crate) fn trained_on(
    config: &MarioConfig,
    quark: &QuarkConfig,
    device: Device,
) -> anyhow::Result<RewardSet> {
    let mut rewards = RewardSet::new();
    for reward in named(config, quark)? {
        rewards = match reward {
            Named::Accuracy => rewards.add(Accuracy),
            Named::Diversity(diversity) => rewards.add(diversity),
            Named::Plausibility { with_question: false } => {
                rewards.add(Plausibility::new(vera(config, device)?))
            }
            Named::Plausibility { with_question: true } => {
                rewards.add(Plausibility::with_question(vera(config, device)?))
            }
            Named::Consistency(mode) => rewards.add(consistency(config, mode, device)?),
            Named::NumWords => rewards.add(NumWords),
            Named::LengthMore => rewards.add(LengthMore),
            Named::LengthBetween(reward) => rewards.add(reward),
        };
    }
    Ok(rewards)
}

/// The folders that [`trained_on`] loads, as often as it loads them, with the keys that name them.
pub(crate) fn folders<'a>(
    config: &'a MarioConfig,
    quark: &QuarkConfig,
) -> Result<Vec<(&'static str, &'a Path)>, ConfigError> {
    let mut folders = vec![];
    for reward in named(config, quark)? {
        match reward {
            Named::Plausibility { .. } => folders.push(("rewards.vera", verifier(config)?)),
            Named::Consistency(_) => {
                let (i2o, ir2o) = judges(config)?;
                folders.extend([("rewards.i2o", i2o), ("rewards.ir2o", ir2o)]);
            }
            _ => {}
        }
    }
    Ok(folders)
}

fn unknown(name: &str, of_dataset: &str) -> ConfigError {
    ConfigError::invalid(format!(
        "quark.training.control.rewards: there is no reward `{name}`; the rewards are {of_dataset}continuous, \
         {of_dataset}discrete, accuracy, plausibility, plausibility-w-qn, diversity, diversity-3-4, num_words, length-more \
         and length-min-L-max-M"
    ))
}

/// `length-min-2-max-5`.
fn length_between(name: &str) -> Option<LengthBetween> {
    let (min, max) = name.strip_prefix("length-min-")?.split_once("-max-")?;
    Some(LengthBetween { min: min.parse().ok()?, max: max.parse().ok()? })
}

/// The two models that consistency asks.
fn judges(config: &MarioConfig) -> Result<(&Path, &Path), ConfigError> {
    let (Some(i2o), Some(ir2o)) = (&config.rewards.i2o, &config.rewards.ir2o) else {
        let reason = "consistency needs two models: name checkpoints of `mario reward-model` with rewards.i2o and rewards.ir2o";
        return Err(ConfigError::invalid(reason));
    };
    Ok((i2o, ir2o))
}

fn consistency(
    config: &MarioConfig,
    mode: ConsistencyMode,
    device: Device,
) -> anyhow::Result<Consistency<Model>> {
    let dataset = config.data.dataset;
    let (i2o, ir2o) = judges(config)?;
    let load = |folder: &Path| -> anyhow::Result<OptionModel<Model>> {
        verify(folder)?;
        let model = Model::load(folder, Kind::Float, device)?;
        Ok(OptionModel::new(model, Tokenizer::open(folder)?, dataset)?)
    };
    Ok(Consistency::new(dataset, load(i2o)?, load(ir2o)?, mode))
}

/// The model that plausibility asks.
fn verifier(config: &MarioConfig) -> Result<&Path, ConfigError> {
    let reason = "plausibility needs a verifier: name the folder of Vera, or a checkpoint of `mario reward-model --mode vera`, \
                  with rewards.vera";
    config.rewards.vera.as_deref().ok_or_else(|| ConfigError::invalid(reason))
}

fn vera(config: &MarioConfig, device: Device) -> anyhow::Result<Vera> {
    Ok(Vera::load(verifier(config)?, Kind::Float, device)?)
}
