//! Everything that is trained.

use ruminate::algorithms::mario::{
    Distillation, DistillationModels, OptionMode, OptionTraining, Rationales, RewardModels, VerifierTraining,
    for_dataset, quark_data, quark_passes, rewards_named,
};
use ruminate::algorithms::{Networks, Pass, Plan, Sft, TrainerConfig};
use ruminate::datasets::Split;
use ruminate::models::{Model, ModelConfig, Tokenizer};
use ruminate::rewards::mario::RewardName;
use ruminate::run::program::{Job, Measured, Prepared, Training, enter};
use ruminate::run::{ConfigError, DataRow, ModelSection, PlannedShape, resolve_link};
use serde_json::{Map, Value};
use tch::Kind;

use crate::config::{MarioConfig, Stage};

impl Stage {
    /// The mode of a reward model that chooses among labels.
    fn mode(self) -> Option<OptionMode> {
        match self {
            Self::I2o => Some(OptionMode::I2o),
            Self::Ir2o => Some(OptionMode::Ir2o),
            Self::Sft | Self::Vera | Self::Quark => None,
        }
    }
}

impl Training for Stage {
    type Config = MarioConfig;

    fn labels(&self) -> Map<String, Value> {
        Map::from_iter([("system".into(), "mario".into()), ("stage".into(), self.name().into())])
    }

    fn configure(&self, config: &mut MarioConfig) -> anyhow::Result<()> {
        Ok(enter(&mut config.stage, *self, |stage| stage.command())?)
    }

    fn model<'c>(&self, config: &'c MarioConfig) -> &'c ModelSection {
        config.section(*self).0
    }

    fn trainer<'c>(&self, config: &'c MarioConfig) -> &'c TrainerConfig {
        config.section(*self).1
    }

    fn measure(
        &self,
        config: &MarioConfig,
        model: &ModelConfig,
        processes: usize,
    ) -> anyhow::Result<Measured> {
        let tokenizer = config.section(*self).0.tokenizer(model)?;
        let mut trainer = config.section(*self).1.clone();
        let (rows, passes) = match (self, self.mode()) {
            (_, Some(mode)) => {
                let options = options(config, mode, &tokenizer)?;
                trainer.steps = options.steps(&trainer, processes);
                (options.rows(), options.passes(&trainer))
            }
            (Self::Vera, _) => {
                let statements = config.vera.training.read(Split::Train)?;
                (statements.len(), config.vera.training.passes(&trainer, &tokenizer, &statements)?)
            }
            (Self::Quark, _) => {
                let [train, dev] = [config.data.read(Split::Train)?, config.data.read(Split::Dev)?];
                let data = quark_data(&train, &dev, &tokenizer)?;
                (data.expert.len(), quark_passes(&config.quark.training, &trainer, &data))
            }
            _ => {
                let rationales = rationales(config, tokenizer)?;
                trainer.steps = rationales.steps(&trainer, processes);
                (rationales.rows(), rationales.passes(&trainer))
            }
        };
        let data = DataRow {
            task: config.data.dataset.to_string(),
            split: Split::Train,
            questions: rows,
            instances: rows,
        };
        let (others, problem) = self.others(config);
        let plan = self.plan(&trainer, model, &others, &passes);
        Ok(Measured { plan, data: vec![data], problem })
    }

    fn longest(&self, config: &MarioConfig, model: &ModelConfig) -> Plan {
        self.plan(config.section(*self).1, model, &self.others(config).0, &[])
    }

    fn prepare(&self, config: &mut MarioConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        let (device, processes) = (job.worker.device, job.worker.collective.size());
        match (self, self.mode()) {
            (_, Some(mode)) => {
                let (model, tokenizer) = config.section(*self).0.open(config.seed, Kind::Float, device)?;
                let options = options(config, mode, &tokenizer)?;
                let trainer = &mut config.options(mode).trainer;
                if !job.reuses_stored_config {
                    trainer.steps = options.steps(trainer, processes);
                }
                Ok(Prepared::new(Sft::new(
                    model,
                    options.log_to(job.out.join("op_scores_val.txt")),
                    tokenizer,
                )))
            }
            (Self::Vera, _) => {
                let training = &config.vera.training;
                let (encoder, tokenizer) = config.vera.model.open_encoder(config.seed, device)?;
                let [train, dev] = [training.read(Split::Train)?, training.read(Split::Dev)?];
                Ok(Prepared::new(VerifierTraining::new(training, encoder, tokenizer, &train, &dev)?))
            }
            (Self::Quark, _) => Ok(Prepared::new(distillation(config, job)?)),
            _ => {
                let (model, tokenizer) = config.sft.model.open(config.seed, Kind::Float, device)?;
                let rationales = rationales(config, tokenizer.clone())?;
                if !job.reuses_stored_config {
                    config.sft.trainer.steps = rationales.steps(&config.sft.trainer, processes);
                }
                let log = job.out.join("op_scores_val_greedy.txt");
                Ok(Prepared::new(Sft::new(model, rationales.log_to(log), tokenizer)))
            }
        }
    }
}

impl Stage {
    fn plan(
        self,
        trainer: &TrainerConfig,
        model: &ModelConfig,
        others: &[ModelConfig],
        passes: &[Pass],
    ) -> Plan {
        let frozen = usize::from(self == Self::Quark);
        Plan::new(trainer, Networks { frozen, others, ..Networks::single(model) }, passes, 1.0)
    }

    /// The shapes of the models behind the rewards, and why the run would not start with them. Their work is not counted.
    fn others(self, config: &MarioConfig) -> (Vec<ModelConfig>, Option<anyhow::Error>) {
        if self != Self::Quark {
            return (vec![], None);
        }
        let models = trained_on(config).and_then(|rewards| config.rewards.behind(&rewards));
        let models = match models {
            Ok(models) => models,
            Err(error) => return (vec![], Some(error.into())),
        };
        let (mut shapes, mut problem) = (vec![], None);
        for (key, model) in models {
            let missing = match ModelSection::of_folder(&model.folder).planned() {
                Ok(PlannedShape { shape, missing }) => {
                    // On a device of its own, it takes no memory from the policy.
                    shapes.extend(model.device.is_none().then_some(shape));
                    missing
                }
                Err(error) => Some(error),
            };
            let context = || format!("cannot use the model of rewards.{key}");
            problem = problem.or(missing.map(|error| anyhow::Error::from(error).context(context())));
        }
        (shapes, problem)
    }
}

/// The rewards that Quark learns from.
pub(crate) fn trained_on(config: &MarioConfig) -> ruminate::algorithms::Result<Vec<RewardName>> {
    let names = config.quark.training.control.rewards.iter().map(|reward| reward.name.as_str());
    rewards_named("quark.training.control.rewards", names, config.data.dataset)
}

/// The supervised stage.
fn rationales(config: &MarioConfig, tokenizer: Tokenizer) -> anyhow::Result<Rationales> {
    let [train, dev] = [config.data.read(Split::Train)?, config.data.read(Split::Dev)?];
    Ok(Rationales::new(config.sft.training.clone(), tokenizer, &train, dev)?)
}

/// A reward model that chooses among labels.
fn options(config: &MarioConfig, mode: OptionMode, tokenizer: &Tokenizer) -> anyhow::Result<OptionTraining> {
    let [train, dev] = [config.data.read(Split::Train)?, config.data.read(Split::Dev)?];
    let training = match mode {
        OptionMode::I2o => &config.i2o.training,
        OptionMode::Ir2o => &config.ir2o.training,
    };
    Ok(OptionTraining::new(mode, training.clone(), tokenizer, config.data.dataset, train, dev)?)
}

/// Quark with several rewards.
fn distillation(config: &mut MarioConfig, job: &Job<'_>) -> anyhow::Result<Distillation<Model>> {
    let device = job.worker.device;
    let Some(reference) = config.quark.reference.as_deref().map(resolve_link) else {
        let reason = "name a checkpoint of `mario sft` with quark.reference: the policy is not to leave it";
        return Err(ConfigError::invalid(reason).into());
    };
    config.quark.reference = Some(reference.clone());
    config.quark.model.pretrained = config.quark.model.pretrained.as_deref().map(resolve_link);
    let RewardModels { vera, i2o, ir2o, .. } = &mut config.rewards;
    [vera, i2o, ir2o].into_iter().flatten().for_each(|model| model.folder = resolve_link(&model.folder));
    let quark = for_dataset(config.quark.training.clone(), config.data.dataset);
    let rows = [Split::Train, Split::Dev, Split::Test];
    let [train, dev, test] = rows.map(|split| config.data.read(split));
    let rows = [train?, dev?, test?];
    let (policy, tokenizer) = config.quark.model.open(config.seed, Kind::Float, device)?;
    let reference = Model::load(&reference, Kind::Float, device)?;
    let rewards = config.rewards.load(&trained_on(config)?, config.data.dataset, device)?;
    let models = DistillationModels { policy, tokenizer, reference, rewards };
    Ok(Distillation::assemble(quark, models, &rows, job.out.join("reward"))?)
}
