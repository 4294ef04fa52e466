//! Preference optimisation: DPO and its family.

use ruminate::algorithms::dpo::{
    self, Dpo, EncodedPairs, Pair, PairLengths, Reference, ShuffledPairs, encode_dialogues, encode_pairs,
    precompute,
};
use ruminate::algorithms::{Networks, Pass, Plan, TrainerConfig, Work};
use ruminate::datasets::rows::{DataFiles, PreferenceRows};
use ruminate::models::{Model, ModelConfig, Tokenizer};
use ruminate::rewards::configured::RewardConfig;
use ruminate::run::program::{Configuration, Job, Measured, Prepared, Training};
use ruminate::run::{ConfigError, FlagKeys, ModelSection};
use ruminate::tch::{self, Kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::validation::{ByRewards, ValidationSection};
use super::{Length, Method, configure, held_out, lengths, measured};
use crate::chat::{ChatSection, Encoder};

/// Settings of `ruminate dpo`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DpoConfig {
    /// The command that wrote this configuration.
    pub(crate) command: Option<Method>,
    /// Seed of the order of the pairs, of dropout, and of a new model's weights.
    pub(crate) seed: u64,
    /// Passes over the training data; 0 takes trainer.steps.
    pub(crate) epochs: f64,
    /// Pairs of a micro-batch.
    pub(crate) batch_size: usize,
    /// The model to start from, which is the reference, too.
    pub(crate) model: ModelSection,
    /// Files of pairs.
    pub(crate) data: DataFiles,
    /// Chat templates.
    pub(crate) chat: ChatSection,
    /// Most tokens of prompts and completions.
    pub(crate) lengths: PairLengths,
    /// Compute the reference's log-probabilities once, before training: the reference then takes no memory in training.
    pub(crate) precompute_reference: bool,
    /// The loss.
    pub(crate) dpo: dpo::DpoConfig,
    /// The training loop.
    pub(crate) trainer: TrainerConfig,
    /// Prompts that validation answers.
    pub(crate) validation: ValidationSection,
    /// Rewards that judge the answers of validation.
    pub(crate) reward: Vec<RewardConfig>,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self {
            command: None,
            seed: 1,
            epochs: 3.0,
            batch_size: 8,
            model: ModelSection::default(),
            data: DataFiles::default(),
            chat: ChatSection::default(),
            lengths: PairLengths { max_prompt: 512, max_target: 512, ..PairLengths::default() },
            precompute_reference: false,
            dpo: dpo::DpoConfig::default(),
            trainer: TrainerConfig { lr: 1e-6, eval_every: 0, ..TrainerConfig::default() },
            validation: ValidationSection::default(),
            reward: vec![],
        }
    }
}

impl Configuration for DpoConfig {
    const FLAGS: FlagKeys = FlagKeys { seed: &["seed"], precision: &["trainer.precision"] };

    fn validate(&self) -> Result<(), ConfigError> {
        Length::validate(self.epochs, self.batch_size)?;
        self.dpo.validate().map_err(ConfigError::invalid)?;
        if self.precompute_reference && (self.dpo.sync.is_some() || self.dpo.reference_free()) {
            let reason =
                "precompute_reference does not go with dpo.sync, nor with losses without a reference";
            return Err(ConfigError::invalid(reason));
        }
        self.trainer.validate().map_err(ConfigError::invalid)?;
        self.validation.validate(&self.reward)?;
        self.model.validate("model")
    }
}

/// Encoded pairs, and how many rows they come from.
struct Rows {
    train: Vec<Pair>,
    valid: Vec<Pair>,
    counts: Value,
}

impl DpoConfig {
    fn rows(&self, tokenizer: &Tokenizer) -> anyhow::Result<Rows> {
        let read = self.data.preferences()?;
        let encoder = self.encoder(tokenizer)?;
        let encode = |rows: PreferenceRows| -> anyhow::Result<EncodedPairs> {
            let dialogues = match rows {
                PreferenceRows::Texts(pairs) if !encoder.wraps() => {
                    return Ok(encode_pairs(tokenizer, &pairs, self.lengths)?);
                }
                PreferenceRows::Texts(pairs) => pairs.into_iter().map(|pair| encoder.wrapped(pair)).collect(),
                PreferenceRows::Dialogues(pairs) => {
                    pairs.into_iter().map(|pair| encoder.preference(pair)).collect::<Vec<_>>()
                }
            };
            Ok(encode_dialogues(tokenizer, encoder.template()?, &dialogues, self.lengths)?)
        };
        let (train, valid) = (encode(read.train)?, encode(read.valid)?);
        let mut counts = train.counts;
        counts.add(valid.counts);
        let counts = json!({ "rows": read.counts, "encoded": counts });
        let valid = held_out(&train.pairs, valid.pairs);
        Ok(Rows { train: train.pairs, valid, counts })
    }

    fn encoder(&self, tokenizer: &Tokenizer) -> anyhow::Result<Encoder> {
        Encoder::new(&self.chat, tokenizer.clone(), &self.model.tokenizer_folder())
    }

    fn evaluation(&self, tokenizer: &Tokenizer) -> anyhow::Result<Option<ByRewards>> {
        self.validation.evaluation(&self.reward, &self.data.columns, &self.encoder(tokenizer)?)
    }

    fn length(&self, examples: usize, processes: usize) -> Length {
        Length { epochs: self.epochs, batch_size: self.batch_size, examples, processes }
    }

    /// Models of which the reference is one, and what a step does with a batch of pairs.
    fn plan(
        &self,
        trainer: &TrainerConfig,
        model: &ModelConfig,
        rows: usize,
        source: [f64; 2],
        target: [f64; 2],
    ) -> Plan {
        let frozen = usize::from(!self.precompute_reference && !self.dpo.reference_free());
        let pass = |work| Pass {
            work,
            times: trainer.accumulate as f64,
            networks: 1,
            rows: 2 * rows,
            source,
            target,
        };
        let passes = [Some(pass(Work::Training)), (frozen > 0).then(|| pass(Work::Forward))];
        let passes: Vec<Pass> = passes.into_iter().flatten().collect();
        Plan::new(trainer, Networks { frozen, ..Networks::single(model) }, &passes, 1.0)
    }
}

/// The command.
pub(crate) struct Prefer;

impl Training for Prefer {
    type Config = DpoConfig;

    fn labels(&self) -> Map<String, Value> {
        Method::Dpo.labels()
    }

    fn configure(&self, config: &mut DpoConfig) -> anyhow::Result<()> {
        configure(&mut config.command, &mut config.model, Method::Dpo)
    }

    fn model<'c>(&self, config: &'c DpoConfig) -> &'c ModelSection {
        &config.model
    }

    fn trainer<'c>(&self, config: &'c DpoConfig) -> &'c TrainerConfig {
        &config.trainer
    }

    fn measure(&self, config: &DpoConfig, model: &ModelConfig, processes: usize) -> anyhow::Result<Measured> {
        let tokenizer = config.model.tokenizer(model)?;
        let Rows { train, .. } = config.rows(&tokenizer)?;
        let length = config.length(train.len(), processes);
        let mut trainer = config.trainer.clone();
        length.fill(&mut trainer);
        let source = lengths(&train, |of| of.prompt.len());
        let target = lengths(&train, |of| of.chosen.len().max(of.rejected.len()));
        let plan = config.plan(&trainer, model, length.batch_size(), source, target);
        Ok(Measured { problem: config.evaluation(&tokenizer).err(), ..measured(plan, train.len()) })
    }

    fn longest(&self, config: &DpoConfig, model: &ModelConfig) -> Plan {
        let longest = |tokens: usize| [tokens as f64; 2];
        let PairLengths { max_prompt, max_target, .. } = config.lengths;
        config.plan(&config.trainer, model, config.batch_size, longest(max_prompt), longest(max_target))
    }

    fn prepare(&self, config: &mut DpoConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        let device = job.worker.device;
        let (model, tokenizer) = config.model.open(config.seed, Kind::Float, device)?;
        let Rows { mut train, mut valid, counts } = config.rows(&tokenizer)?;
        let length = config.length(train.len(), job.worker.collective.size());
        if !job.reuses_stored_config {
            length.fill(&mut config.trainer);
        }
        let reference = if config.dpo.reference_free() {
            Reference::None
        } else if config.precompute_reference {
            for pairs in [&mut train, &mut valid] {
                precompute(&model, pairs, config.dpo.ld_alpha, config.batch_size)?;
            }
            Reference::Precomputed
        } else {
            let (copy, _) = config.model.open(config.seed, Kind::Float, device)?;
            Reference::<Model>::Model(copy)
        };
        tch::manual_seed(config.seed as i64);
        let source = ShuffledPairs::new(train, length.batch_size(), config.seed)?;
        let evaluation = config.evaluation(&tokenizer)?;
        let mut dpo = Dpo::new(config.dpo.clone(), model, reference, source, valid, tokenizer)?;
        if let Some(evaluation) = evaluation {
            dpo = dpo.evaluated_by(evaluation);
        }
        Ok(Prepared::new(dpo).with_data(&counts)?)
    }
}
