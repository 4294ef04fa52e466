//! Weighted fine-tuning.

use ruminate::algorithms::rwr::{Rwr, RwrData, Source};
use ruminate::algorithms::{Networks, Plan, TrainerConfig};
use ruminate::datasets::Split;
use ruminate::datasets::chat::TrainedOn;
use ruminate::datasets::rise::solutions;
use ruminate::models::{ModelConfig, Tokenizer};
use ruminate::run::program::{Job, Measured, Prepared, Training, train};
use ruminate::run::{DataRow, ModelSection, Outcome, Player, RunArgs, resolve_link};
use serde_json::{Map, Value, json};
use tch::Kind;

use crate::config::{Phase, RiseArgs, RiseConfig};

pub(crate) fn run(args: &RiseArgs) -> anyhow::Result<Outcome> {
    let args = args.run();
    train(&Finetune(Some(&args)), &args)
}

/// Training on weighted examples: a command with its flags, or a part of a larger one, which has warned already.
pub(crate) struct Finetune<'a>(pub(crate) Option<&'a RunArgs>);

impl Training for Finetune<'_> {
    type Config = RiseConfig;

    fn labels(&self) -> Map<String, Value> {
        Map::from_iter([("system".into(), "rise".into()), ("phase".into(), "finetune".into())])
    }

    fn configure(&self, config: &mut RiseConfig) -> anyhow::Result<()> {
        if let Some(args) = self.0 {
            config.begin(Phase::Finetune, args)?;
        }
        config.model.pretrained = config.model.pretrained.as_deref().map(resolve_link);
        Ok(())
    }

    fn model<'c>(&self, config: &'c RiseConfig) -> &'c ModelSection {
        &config.model
    }

    fn trainer<'c>(&self, config: &'c RiseConfig) -> &'c TrainerConfig {
        &config.finetune.trainer
    }

    fn measure(
        &self,
        config: &RiseConfig,
        model: &ModelConfig,
        processes: usize,
    ) -> anyhow::Result<Measured> {
        let section = &config.finetune;
        let data = data(config, model, &config.model.tokenizer(model)?)?;
        let trainer = data.trainer(&section.training, &section.trainer, processes);
        let passes = data.passes(&section.training, &trainer);
        let (questions, instances) = (data.counts.texts, data.counts.examples);
        let row =
            DataRow { task: config.data.benchmark.to_string(), split: Split::Train, questions, instances };
        let plan = Plan::new(&trainer, Networks::single(model), &passes, 1.0);
        Ok(Measured { plan, data: vec![row], problem: None })
    }

    fn longest(&self, config: &RiseConfig, model: &ModelConfig) -> Plan {
        config.finetune.longest_plan(model)
    }

    /// A run that goes on keeps the number of its steps, which may have been another with as many processes as now.
    fn prepare(&self, config: &mut RiseConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        config.chat.date = job.worker.collective.first(|| anyhow::Ok(config.chat.date))?;
        let base = Player::Local { model: config.model.clone(), template: config.chat.template.clone() };
        let warnings = Player::warn(self.0.map(|_| &base), job.worker)?;
        let shape = config.model.shape()?;
        let data = data(config, &shape, &config.model.tokenizer(&shape)?)?;
        let (model, tokenizer) = config.model.open(config.seed, Kind::Float, job.worker.device)?;
        let section = &mut config.finetune;
        let training = &section.training;
        if !job.reuses_stored_config {
            section.trainer = data.trainer(training, &section.trainer, job.worker.collective.size());
        }
        let RwrData { examples, held_out, counts } = data;
        let template = TrainedOn { template: config.chat.template.clone() }.file();
        let rwr = Rwr::new(model, examples, held_out, training.batch_size, training.shuffle_seed, tokenizer)?;
        let mut prepared = Prepared::new(rwr.with_files(vec![template])).with_data(&counts)?;
        prepared.result.insert("warnings".into(), json!(warnings));
        Ok(prepared)
    }
}

/// The examples in token ids.
fn data(config: &RiseConfig, shape: &ModelConfig, tokenizer: &Tokenizer) -> anyhow::Result<RwrData> {
    let section = &config.finetune;
    section.check_context(shape.context_length())?;
    let examples = match section.source {
        Source::Solutions => solutions(&config.training_problems()?, &*config.data.environment()),
        Source::Examples => section.read()?,
    };
    let folder = config.model.tokenizer_folder();
    let how = (&config.data, &config.chat);
    Ok(section.encode(&examples, how, &folder, tokenizer)?)
}
