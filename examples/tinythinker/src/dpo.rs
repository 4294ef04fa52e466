//! Preference training on pair files that are there.

use std::path::PathBuf;

use ruminate::algorithms::TrainerConfig;
use ruminate::datasets::Split;
use ruminate::models::ModelConfig;
use ruminate::run::program::{Job, Measured, Prepared, Training};
use ruminate::run::{ModelSection, RunArgs, resolve_link};
use serde_json::{Map, Value};

use crate::config::{Phase, TinyThinkerConfig};

#[derive(clap::Args)]
pub(crate) struct DpoArgs {
    /// Checkpoint to train, e.g. runs/acquire/checkpoints/best; short for --set reflection.start=DIR
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder with recall_dpo.json and analyze_dpo.json, as `tinythinker pairs` and the published code write them; short for --set
    /// reflection.pairs=DIR
    #[arg(long, value_name = "DIR")]
    pairs: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

impl Training for DpoArgs {
    type Config = TinyThinkerConfig;

    fn labels(&self) -> Map<String, Value> {
        Phase::Dpo.labels()
    }

    fn configure(&self, config: &mut TinyThinkerConfig) -> anyhow::Result<()> {
        let section = &mut config.reflection;
        section.start = self.model.clone().or(section.start.take());
        section.pairs = self.pairs.clone().or(section.pairs.take());
        config.enter(Phase::Dpo)?;
        let start = resolve_link(config.reflection.start()?);
        // For --dry-run.
        config.model = ModelSection { dropout: config.model.dropout, ..ModelSection::of_folder(&start) };
        config.reflection.start = Some(start);
        Ok(())
    }

    fn model<'c>(&self, config: &'c TinyThinkerConfig) -> &'c ModelSection {
        &config.model
    }

    fn trainer<'c>(&self, config: &'c TinyThinkerConfig) -> &'c TrainerConfig {
        &config.reflection.trainer
    }

    fn measure(
        &self,
        config: &TinyThinkerConfig,
        model: &ModelConfig,
        processes: usize,
    ) -> anyhow::Result<Measured> {
        let (reflection, _) = config.reflection.on_pair_files(&config.model.tokenizer(model)?)?;
        let trainer = reflection.trainer(&config.reflection.trainer, processes)?;
        let (passes, task) = (reflection.passes(&trainer), config.data.dataset.name());
        Ok(Measured::on_rows(&trainer, model, &passes, task, reflection.pairs()))
    }

    fn prepare(&self, config: &mut TinyThinkerConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        let learner = config.learner(config.reflection.start()?, job.worker.device)?;
        let (reflection, counts) = config.reflection.on_pair_files(&learner.tokenizer)?;
        let valid = config.data.read_recorded(config.variant(), Split::Dev)?;
        tch::manual_seed(config.seed as i64);
        let prepared = Prepared::fitted_by(move |trainer, dir, collective, observer| {
            reflection.fit(learner, &valid, trainer, dir.path(), collective, observer)
        });
        Ok(prepared.with_data(&counts)?)
    }
}
