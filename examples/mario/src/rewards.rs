//! Rewards by their names, with the models behind them.

use std::path::Path;

use ruminate::algorithms::quark::QuarkConfig;
use ruminate::algorithms::trainer::verify;
use ruminate::models::{T5, Tokenizer, Vera};
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

/// The rewards that the training is configured with, under the published code's names.
pub(crate) fn trained_on(
    config: &MarioConfig,
    quark: &QuarkConfig,
    device: Device,
) -> anyhow::Result<RewardSet> {
    let of_dataset = format!("{}-rationale-quality-", config.data.dataset);
    let mut rewards = RewardSet::new();
    for reward in &quark.control.rewards {
        let name = reward.name.as_str();
        rewards = match name {
            "accuracy" => rewards.add(Accuracy),
            "diversity" => rewards.add(Diversity::Rationale),
            "diversity-3-4" => rewards.add(Diversity::WholeResponse),
            "plausibility" => rewards.add(Plausibility::new(vera(config, device)?)),
            "plausibility-w-qn" => rewards.add(Plausibility::with_question(vera(config, device)?)),
            "num_words" => rewards.add(NumWords),
            "length-more" => rewards.add(LengthMore),
            _ => match (name.strip_prefix(&of_dataset), length_between(name)) {
                (Some("continuous"), _) => {
                    rewards.add(consistency(config, ConsistencyMode::Continuous, device)?)
                }
                (Some("discrete"), _) => rewards.add(consistency(config, ConsistencyMode::Discrete, device)?),
                (_, Some(reward)) => rewards.add(reward),
                _ => return Err(unknown(name, &of_dataset).into()),
            },
        };
    }
    Ok(rewards)
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

fn consistency(
    config: &MarioConfig,
    mode: ConsistencyMode,
    device: Device,
) -> anyhow::Result<Consistency<T5>> {
    let dataset = config.data.dataset;
    let (Some(i2o), Some(ir2o)) = (&config.rewards.i2o, &config.rewards.ir2o) else {
        let reason = "consistency needs two models: name checkpoints of `mario reward-model` with rewards.i2o and rewards.ir2o";
        return Err(ConfigError::invalid(reason).into());
    };
    let load = |folder: &Path| -> anyhow::Result<OptionModel<T5>> {
        verify(folder)?;
        let t5 = T5::load(folder, Kind::Float, device)?;
        Ok(OptionModel::new(t5, Tokenizer::open(folder)?, dataset)?)
    };
    Ok(Consistency::new(dataset, load(i2o)?, load(ir2o)?, mode))
}

fn vera(config: &MarioConfig, device: Device) -> anyhow::Result<Vera> {
    let reason = "plausibility needs a verifier: name the folder of Vera, or a checkpoint of `mario reward-model --mode vera`, \
                  with rewards.vera";
    let folder = config.rewards.vera.as_ref().ok_or_else(|| ConfigError::invalid(reason))?;
    Ok(Vera::load(folder, Kind::Float, device)?)
}
