//! Training on rationales.

use std::path::PathBuf;

use ruminate::algorithms::{
    Networks, Pass, Plan, Sft, SupervisedData, TrainerConfig, Work, encode_supervised,
};
use ruminate::datasets::Split;
use ruminate::models::{Example, ModelConfig, Tokenizer};
use ruminate::run::program::{Job, Measured, Prepared, Training, enter};
use ruminate::run::{DataRow, ModelSection};
use serde_json::{Map, Value, json};
use tch::Kind;

use crate::config::{DataSection, Phase, StarConfig};

/// Fine-tuning on the rows of `data.train`, or on those that an iteration has kept.
pub(crate) struct Finetune {
    pub(crate) kept: Option<PathBuf>,
}

impl Finetune {
    fn examples(&self, config: &StarConfig, tokenizer: &Tokenizer) -> anyhow::Result<Vec<Example>> {
        let rows = DataSection::read(self.kept.as_ref().unwrap_or(&config.data.train))?;
        // In iterations, a rationale that a hint has led to is learnt without it.
        let hints = config.finetune.hints && self.kept.is_none();
        let with = |hint| rows.iter().map(move |row| config.data.example(row, hint));
        let texts: Vec<_> = with(false).chain(with(true).take(if hints { rows.len() } else { 0 })).collect();
        Ok(encode_supervised(tokenizer, None, &texts, config.finetune.max_length)?)
    }

    fn pass(config: &StarConfig, source: [f64; 2], target: [f64; 2]) -> Pass {
        let (times, rows) = (config.trainer.accumulate as f64, config.finetune.batch_size);
        Pass { work: Work::Training, times, networks: 1, rows, source, target }
    }
}

impl Training for Finetune {
    type Config = StarConfig;

    fn labels(&self) -> Map<String, Value> {
        Map::from_iter([("system".into(), "star".into()), ("phase".into(), "finetune".into())])
    }

    fn configure(&self, config: &mut StarConfig) -> anyhow::Result<()> {
        Ok(enter(&mut config.phase, Phase::Finetune, |_| "star iterate".into())?)
    }

    fn model<'c>(&self, config: &'c StarConfig) -> &'c ModelSection {
        &config.model
    }

    fn trainer<'c>(&self, config: &'c StarConfig) -> &'c TrainerConfig {
        &config.trainer
    }

    fn measure(&self, config: &StarConfig, model: &ModelConfig, _: usize) -> anyhow::Result<Measured> {
        let examples = self.examples(config, &config.model.tokenizer(model)?)?;
        let lengths = |of: fn(&Example) -> usize| {
            let lengths = examples.iter().map(of);
            let mean = lengths.clone().sum::<usize>() as f64 / examples.len().max(1) as f64;
            [mean, lengths.max().unwrap_or(0) as f64]
        };
        let pass = Self::pass(config, lengths(|of| of.prompt.len()), lengths(|of| of.target.len()));
        let plan = Plan::new(&config.trainer, Networks::single(model), &[pass], 1.0);
        let instances = examples.len();
        let task = config.data.train.display().to_string();
        let data = vec![DataRow { task, split: Split::Train, questions: instances, instances }];
        Ok(Measured { plan, data, problem: None })
    }

    fn longest(&self, config: &StarConfig, model: &ModelConfig) -> Plan {
        let half = [config.finetune.max_length as f64 / 2.0; 2];
        Plan::new(&config.trainer, Networks::single(model), &[Self::pass(config, half, half)], 1.0)
    }

    fn prepare(&self, config: &mut StarConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        let (model, tokenizer) = config.model.open(config.seed, Kind::Float, job.worker.device)?;
        let examples = self.examples(config, &tokenizer)?;
        let counts = json!({ "examples": examples.len() });
        let data =
            SupervisedData::new(examples, vec![], config.finetune.batch_size, config.finetune.shuffle_seed)?;
        Ok(Prepared::new(Sft::new(model, data, tokenizer)).with_data(&counts)?)
    }
}
