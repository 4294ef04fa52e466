//! Phase 1.

use ruminate::algorithms::tinythinker::Acquisition;
use ruminate::algorithms::{Sft, TrainerConfig};
use ruminate::models::{ModelConfig, Tokenizer};
use ruminate::run::ModelSection;
use ruminate::run::program::{Job, Measured, Prepared, Training};
use serde_json::{Map, Value};

use crate::config::{Phase, TinyThinkerConfig};

/// Supervised training on all stages in turn.
pub(crate) struct Acquire;

impl Training for Acquire {
    type Config = TinyThinkerConfig;

    fn labels(&self) -> Map<String, Value> {
        Phase::Acquire.labels()
    }

    fn configure(&self, config: &mut TinyThinkerConfig) -> anyhow::Result<()> {
        Ok(config.enter(Phase::Acquire)?)
    }

    fn model<'c>(&self, config: &'c TinyThinkerConfig) -> &'c ModelSection {
        &config.model
    }

    fn trainer<'c>(&self, config: &'c TinyThinkerConfig) -> &'c TrainerConfig {
        &config.acquisition.trainer
    }

    fn measure(
        &self,
        config: &TinyThinkerConfig,
        model: &ModelConfig,
        processes: usize,
    ) -> anyhow::Result<Measured> {
        let acquisition = acquisition(config, config.model.tokenizer(model)?)?;
        let trainer = acquisition.trainer(&config.acquisition.trainer, processes);
        let (passes, task) = (acquisition.passes(&trainer), config.data.dataset.name());
        Ok(Measured::on_rows(&trainer, model, &passes, task, acquisition.rows()))
    }

    /// A run that goes on keeps the number of its steps.
    fn prepare(&self, config: &mut TinyThinkerConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        let (model, tokenizer) = config.model.open(config.seed, tch::Kind::Float, job.worker.device)?;
        let acquisition = acquisition(config, tokenizer.clone())?;
        if !job.reuses_stored_config {
            let trainer = &mut config.acquisition.trainer;
            *trainer = acquisition.trainer(trainer, job.worker.collective.size());
        }
        Ok(Prepared::new(Sft::new(model, acquisition, tokenizer)))
    }
}

fn acquisition(config: &TinyThinkerConfig, tokenizer: Tokenizer) -> anyhow::Result<Acquisition> {
    let (folder, records) = config.data.read_records(config.variant())?;
    let training = config.acquisition.training.clone();
    Ok(Acquisition::new(training, tokenizer, &records, &folder, config.acquisition.trainer.accumulate)?)
}
