//! Proximal policy optimisation on prompts, with configured rewards.

use ruminate::algorithms::ppo::{self, Ppo, PpoData, Prompt};
use ruminate::algorithms::{Networks, Pass, Plan, TrainerConfig, Work};
use ruminate::datasets::rows::{DataFiles, PromptRow};
use ruminate::models::{ActorCritic, Model, ModelConfig, Tokenizer};
use ruminate::rewards::configured::{RewardConfig, WeightedRewards};
use ruminate::run::program::{Configuration, Job, Measured, Prepared, Training};
use ruminate::run::{ConfigError, FlagKeys, ModelSection};
use ruminate::tch::{self, Kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Length, Method, configure, held_out, lengths, measured};
use crate::chat::{ChatSection, Encoder};

/// Settings of `ruminate ppo`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PpoConfig {
    /// The command that wrote this configuration.
    pub(crate) command: Option<Method>,
    /// Seed of a new model's weights and of dropout.
    pub(crate) seed: u64,
    /// Passes over the prompts; 0 takes trainer.steps.
    pub(crate) epochs: f64,
    /// Predict values by a second copy of the model, and not by a head on the policy.
    pub(crate) separate_value_model: bool,
    /// The model to start from, which is the reference, too.
    pub(crate) model: ModelSection,
    /// Files of prompts.
    pub(crate) data: DataFiles,
    /// Chat templates.
    pub(crate) chat: ChatSection,
    /// Rollouts, advantages and losses.
    pub(crate) ppo: ppo::PpoConfig,
    /// The training loop.
    pub(crate) trainer: TrainerConfig,
    /// Rewards; a response is worth their weighted sum.
    pub(crate) reward: Vec<RewardConfig>,
}

impl Default for PpoConfig {
    fn default() -> Self {
        Self {
            command: None,
            seed: 1,
            epochs: 3.0,
            separate_value_model: false,
            model: ModelSection::default(),
            data: DataFiles::default(),
            chat: ChatSection::default(),
            ppo: ppo::PpoConfig::default(),
            trainer: TrainerConfig { lr: 3e-6, log_every: 1, eval_every: 0, ..TrainerConfig::default() },
            reward: vec![],
        }
    }
}

impl Configuration for PpoConfig {
    const FLAGS: FlagKeys = FlagKeys { seed: &["seed", "ppo.seed"], precision: &["trainer.precision"] };

    fn validate(&self) -> Result<(), ConfigError> {
        Length::validate(self.epochs, self.ppo.batch_size)?;
        self.ppo.validate().map_err(ConfigError::invalid)?;
        if self.ppo.rl_steps < self.ppo.cycle_steps {
            let reason = "ppo.rl_steps must equal ppo.cycle_steps: this command has no supervised steps";
            return Err(ConfigError::invalid(reason));
        }
        self.trainer.validate().map_err(ConfigError::invalid)?;
        self.model.validate("model")
    }
}

/// Prompts in token ids, and how many rows they come from.
pub(super) struct Prompts {
    pub(super) train: Vec<Prompt<PromptRow>>,
    pub(super) held_out: Vec<Prompt<PromptRow>>,
    pub(super) counts: Value,
}

impl Prompts {
    pub(super) fn read(
        data: &DataFiles,
        chat: &ChatSection,
        model: &ModelSection,
        tokenizer: &Tokenizer,
    ) -> anyhow::Result<Self> {
        let read = data.prompts()?;
        let encoder = Encoder::new(chat, tokenizer.clone(), &model.tokenizer_folder())?;
        let encode = |rows: Vec<PromptRow>| -> anyhow::Result<Vec<Prompt<PromptRow>>> {
            rows.into_iter().map(|row| encoder.prompt_of(row)).collect()
        };
        let (train, valid) = (encode(read.train)?, encode(read.valid)?);
        let held_out = held_out(&train, valid);
        let counts = json!({ "rows": read.counts });
        Ok(Self { train, held_out, counts })
    }
}

/// Rewards that are not there cannot be trained on.
pub(crate) fn rewards(configs: &[RewardConfig]) -> anyhow::Result<WeightedRewards> {
    if configs.is_empty() {
        let reason = "there is no reward; add one to the configuration, for example\n\n[[reward]]\nname = \"right\"\n\
                      kind = \"exact_match\"\n\n(docs/guide/rewards.md has all kinds, scripts among them)";
        return Err(ConfigError::invalid(reason).into());
    }
    Ok(WeightedRewards::new(configs)?)
}

impl PpoConfig {
    fn prompts(&self, tokenizer: &Tokenizer) -> anyhow::Result<Prompts> {
        Prompts::read(&self.data, &self.chat, &self.model, tokenizer)
    }

    fn length(&self, prompts: usize, processes: usize) -> Length {
        Length { epochs: self.epochs, batch_size: self.ppo.batch_size, examples: prompts, processes }
    }

    fn plan(&self, trainer: &TrainerConfig, model: &ModelConfig, batch: usize, prompt: [f64; 2]) -> Plan {
        let ppo = &self.ppo;
        let trained = 1 + usize::from(self.separate_value_model);
        let update = if ppo.mini_batch_size == 0 { batch } else { ppo.mini_batch_size.min(batch) };
        let target = [ppo.rollout.max_new_tokens as f64; 2];
        let pass = |work, times: f64, rows: usize, networks| Pass {
            work,
            times,
            networks,
            rows,
            source: prompt,
            target,
        };
        let forward = ppo.rollout.batch_size.min(batch);
        let batches = batch as f64 / forward.max(1) as f64;
        let updates = ppo.epochs as f64 * batch as f64 / update.max(1) as f64;
        let passes = [
            pass(Work::Forward, batches, forward, 1),
            pass(Work::Forward, batches, forward, trained + 1),
            pass(
                Work::Training,
                updates * trainer.accumulate as f64,
                update.div_ceil(trainer.accumulate.max(1)),
                trained,
            ),
        ];
        let networks = Networks { trained, value_head: true, frozen: 1, ..Networks::single(model) };
        Plan::new(trainer, networks, &passes, updates)
    }
}

/// The command.
pub(crate) struct Reinforce;

impl Training for Reinforce {
    type Config = PpoConfig;

    fn labels(&self) -> Map<String, Value> {
        Method::Ppo.labels()
    }

    fn configure(&self, config: &mut PpoConfig) -> anyhow::Result<()> {
        configure(&mut config.command, &mut config.model, Method::Ppo)
    }

    fn model<'c>(&self, config: &'c PpoConfig) -> &'c ModelSection {
        &config.model
    }

    fn trainer<'c>(&self, config: &'c PpoConfig) -> &'c TrainerConfig {
        &config.trainer
    }

    fn measure(&self, config: &PpoConfig, model: &ModelConfig, processes: usize) -> anyhow::Result<Measured> {
        let Prompts { train, .. } = config.prompts(&config.model.tokenizer(model)?)?;
        let length = config.length(train.len(), processes);
        let mut trainer = config.trainer.clone();
        length.fill_rollouts(&mut trainer);
        let plan =
            config.plan(&trainer, model, length.batch_size(), lengths(&train, |prompt| prompt.ids.len()));
        Ok(Measured { problem: rewards(&config.reward).err(), ..measured(plan, train.len()) })
    }

    fn longest(&self, config: &PpoConfig, model: &ModelConfig) -> Plan {
        config.plan(&config.trainer, model, config.ppo.batch_size, [0.0; 2])
    }

    fn prepare(&self, config: &mut PpoConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        let device = job.worker.device;
        let reward = rewards(&config.reward)?;
        let (policy, tokenizer) = config.model.open(config.seed, Kind::Float, device)?;
        let Prompts { train, held_out, counts } = config.prompts(&tokenizer)?;
        let length = config.length(train.len(), job.worker.collective.size());
        if !job.reuses_stored_config {
            length.fill_rollouts(&mut config.trainer);
        }
        let copy = || -> anyhow::Result<Model> { Ok(config.model.open(config.seed, Kind::Float, device)?.0) };
        let actor = match config.separate_value_model {
            true => ActorCritic::separate(policy, copy()?, config.seed)?,
            false => ActorCritic::shared(policy, config.seed)?,
        };
        let reference = copy()?;
        let settings = ppo::PpoConfig { batch_size: length.batch_size(), ..config.ppo.clone() };
        let data = PpoData { train, supervised: None, held_out };
        tch::manual_seed(config.seed as i64);
        let ppo =
            Ppo::new(settings, actor, reference, tokenizer.clone(), reward.with_tokenizer(tokenizer), data)?;
        Ok(Prepared::new(ppo).with_data(&counts)?)
    }
}
