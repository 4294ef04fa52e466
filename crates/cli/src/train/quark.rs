//! Quark on prompts, with configured rewards.

use ruminate::algorithms::quark::{
    self, ControlConfig, ControlTokens, Judged, Quark, QuarkData, SamplingConfig, Scorer,
};
use ruminate::algorithms::{Networks, Pass, Plan, TrainerConfig, Work};
use ruminate::datasets::rows::{DataFiles, PromptRow};
use ruminate::models::{ModelConfig, ScoreChoices};
use ruminate::rewards::configured::{PolicyRewards, RewardConfig};
use ruminate::rewards::{Reward, RewardError, Rewarded, Sample, check_rewards};
use ruminate::run::program::{Configuration, Job, Measured, Prepared, Training};
use ruminate::run::{ConfigError, FlagKeys, ModelSection};
use ruminate::tch::{self, Kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ppo::{Prompts, rewards};
use super::{Method, configure, lengths, measured};
use crate::chat::ChatSection;

/// The name of the weighted sum of all rewards.
const SUM: &str = "reward";

/// Settings of `ruminate quark`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct QuarkConfig {
    /// The command that wrote this configuration.
    pub(crate) command: Option<Method>,
    /// Seed of a new model's weights and of dropout.
    pub(crate) seed: u64,
    /// The model to start from, which is the reference, too.
    pub(crate) model: ModelSection,
    /// Files of prompts.
    pub(crate) data: DataFiles,
    /// Chat templates.
    pub(crate) chat: ChatSection,
    /// Control tokens, sampling and losses. Without quark.control.rewards, the weighted sum of the rewards has five quantiles.
    pub(crate) quark: quark::QuarkConfig,
    /// The training loop.
    pub(crate) trainer: TrainerConfig,
    /// Rewards of the responses.
    pub(crate) reward: Vec<RewardConfig>,
}

impl Default for QuarkConfig {
    fn default() -> Self {
        Self {
            command: None,
            seed: 1,
            model: ModelSection::default(),
            data: DataFiles::default(),
            chat: ChatSection::default(),
            quark: quark::QuarkConfig {
                control: ControlConfig::single(SUM, 5),
                batch_size: 32,
                sample_interval: 100,
                sampling: SamplingConfig { passes: 4, ..SamplingConfig::default() },
                ..quark::QuarkConfig::default()
            },
            trainer: TrainerConfig { lr: 1e-5, eval_every: 100, ..TrainerConfig::default() },
            reward: vec![],
        }
    }
}

impl Configuration for QuarkConfig {
    const FLAGS: FlagKeys = FlagKeys { seed: &["seed", "quark.seed"], precision: &["trainer.precision"] };

    fn validate(&self) -> Result<(), ConfigError> {
        self.quark.validate().map_err(ConfigError::invalid)?;
        let known = |name: &str| name == SUM || self.reward.iter().any(|reward| reward.name == name);
        if let Some(unknown) = self.quark.control.rewards.iter().find(|control| !known(&control.name)) {
            let reason = format!(
                "quark.control.rewards names `{}`, which is neither `{SUM}` (the weighted sum) nor the name of a [[reward]]",
                unknown.name
            );
            return Err(ConfigError::invalid(reason));
        }
        self.trainer.validate().map_err(ConfigError::invalid)?;
        self.model.validate("model")
    }
}

/// The rewards that control tokens tell.
struct Scores {
    rewards: PolicyRewards,
    names: Vec<String>,
}

impl<P: ScoreChoices + ?Sized> Scorer<P, PromptRow> for Scores {
    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn judge(&self, policy: &P, samples: &[Sample<'_, PromptRow>]) -> Result<Vec<Judged>, RewardError> {
        let rewarded = self.rewards.rewards(policy, samples)?;
        check_rewards(samples, &rewarded)?;
        let scores = |of: &Rewarded| {
            let score = |name: &String| {
                if name == SUM {
                    return Some(f64::from(of.value));
                }
                of.parts.iter().find(|(part, _)| part == name).map(|(_, value)| f64::from(*value))
            };
            self.names.iter().map(score).collect::<Vec<_>>().into()
        };
        Ok(rewarded.iter().map(scores).collect())
    }
}

impl QuarkConfig {
    fn plan(&self, model: &ModelConfig, prompts: usize, prompt: [f64; 2]) -> Plan {
        let quark = &self.quark;
        let target = [quark.sampling.lengths.max_length as f64; 2];
        let pass = |work, times, rows| Pass { work, times, networks: 1, rows, source: prompt, target };
        let accumulate = self.trainer.accumulate as f64;
        let rows = quark.batch_size.div_ceil(self.trainer.accumulate.max(1));
        let batches = prompts.div_ceil(quark.sampling.batch_size.max(1)) as u64 * quark.sampling.passes;
        let passes = [
            pass(Work::Training, accumulate, rows),
            pass(Work::Forward, accumulate, rows),
            pass(
                Work::Forward,
                batches as f64 / quark.sample_interval.max(1) as f64,
                quark.sampling.batch_size,
            ),
        ];
        Plan::new(&self.trainer, Networks { frozen: 1, ..Networks::single(model) }, &passes, 1.0)
    }
}

/// The command.
pub(crate) struct Unlearn;

impl Training for Unlearn {
    type Config = QuarkConfig;

    fn labels(&self) -> Map<String, Value> {
        Method::Quark.labels()
    }

    fn configure(&self, config: &mut QuarkConfig) -> anyhow::Result<()> {
        configure(&mut config.command, &mut config.model, Method::Quark)
    }

    fn model<'c>(&self, config: &'c QuarkConfig) -> &'c ModelSection {
        &config.model
    }

    fn trainer<'c>(&self, config: &'c QuarkConfig) -> &'c TrainerConfig {
        &config.trainer
    }

    fn measure(&self, config: &QuarkConfig, model: &ModelConfig, _: usize) -> anyhow::Result<Measured> {
        let tokenizer = config.model.tokenizer(model)?;
        let Prompts { train, .. } = Prompts::read(&config.data, &config.chat, &config.model, &tokenizer)?;
        let plan = config.plan(model, train.len(), lengths(&train, |prompt| prompt.ids.len()));
        Ok(Measured { problem: rewards(&config.reward).err(), ..measured(plan, train.len()) })
    }

    fn longest(&self, config: &QuarkConfig, model: &ModelConfig) -> Plan {
        config.plan(model, 0, [0.0; 2])
    }

    fn prepare(&self, config: &mut QuarkConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        let device = job.worker.device;
        let control = &config.quark.control;
        let names = control.rewards.iter().map(|reward| reward.name.clone()).collect();
        let rewards = rewards(&config.reward)?;
        let (mut policy, mut tokenizer) = config.model.open(config.seed, Kind::Float, device)?;
        let (reference, _) = config.model.open(config.seed, Kind::Float, device)?;
        let Prompts { train, held_out, counts } =
            Prompts::read(&config.data, &config.chat, &config.model, &tokenizer)?;
        let tokens = ControlTokens::add_to(&mut tokenizer, control)?;
        policy.add_tokens(tokens.id_range(), config.seed)?;
        let scorer = Scores { rewards: rewards.with_tokenizer(tokenizer.clone()), names };
        tch::manual_seed(config.seed as i64);
        let data = QuarkData { train, expert: vec![], held_out };
        let quark = Quark::new(config.quark.clone(), policy, reference, tokenizer, scorer, data)?;
        Ok(Prepared::new(quark).with_data(&counts)?)
    }
}
