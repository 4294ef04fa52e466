//! Stage II.

use std::path::{Path, PathBuf};

use clap::Args;
use ruminate::algorithms::crystal::{
    Notice, ReinforcementData, ReinforcementModels, read_questions, reinforcement, reward_normalization,
};
use ruminate::algorithms::{Plan, TrainerConfig};
use ruminate::datasets::{Part, Split};
use ruminate::models::{Interrupt, Model, ModelConfig, VALUE_WEIGHTS};
use ruminate::run::program::{Fit, Job, Measured, Prepared, Training, train};
use ruminate::run::{ConfigError, ModelSection, Outcome, RunArgs, RunDir, resolve_link};
use serde_json::{Map, Value};

use crate::config::{CrystalConfig, labels};
use crate::imitate::{data_rows, show, with_settings};

#[derive(Args)]
pub(crate) struct ReinforceArgs {
    /// Checkpoint of Stage I to start from, e.g. runs/stage1/checkpoints/best; short for --set model.pretrained=DIR
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Leave out rows that are not questions, and tell how many, instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &ReinforceArgs) -> anyhow::Result<Outcome> {
    let mut run = with_settings(&args.run, args.skip_bad_rows);
    check_stage(&run, true)?;
    let model = args.model.as_deref().map(resolve_link);
    // What a run would cost can be told for a model that is not here yet, by the settings of the paper.
    let known = |model: &&Path| !run.dry_run || RunDir::config_of_model(model).is_some();
    if let Some(model) = model.as_deref().filter(known) {
        run = run.configured_as(model)?;
    }
    train(&Reinforce { model }, &run)
}

/// A run is resumed by the command that began it. Only checkpoints of Stage II predict values.
pub(crate) fn check_stage(run: &RunArgs, reinforced: bool) -> Result<(), ConfigError> {
    let last = run.out.as_deref().filter(|_| run.resumes()).map(|out| out.join("checkpoints/last"));
    match last {
        Some(last) if last.exists() && last.join(VALUE_WEIGHTS).exists() != reinforced => {
            let (stage, command) = if reinforced { ("I", "imitate") } else { ("II", "reinforce") };
            let reason = format!("--out is a run of Stage {stage}; resume it with `crystal {command}`");
            Err(ConfigError::invalid(reason))
        }
        _ => Ok(()),
    }
}

/// Reinforcement of the knowledge by the model's own confidence in its answers.
pub(crate) struct Reinforce {
    /// The checkpoint of Stage I, unless the configuration names it.
    pub(crate) model: Option<PathBuf>,
}

impl Training for Reinforce {
    type Config = CrystalConfig;

    fn labels(&self) -> Map<String, Value> {
        labels("reinforcement")
    }

    fn configure(&self, config: &mut CrystalConfig) -> anyhow::Result<()> {
        if let Some(model) = &self.model {
            (config.model.pretrained, config.model.config) = (Some(model.clone()), None);
        }
        stage_one(config)?;
        Ok(())
    }

    fn model<'c>(&self, config: &'c CrystalConfig) -> &'c ModelSection {
        &config.model
    }

    fn trainer<'c>(&self, config: &'c CrystalConfig) -> &'c TrainerConfig {
        &config.reinforcement.trainer
    }

    fn measure(&self, config: &CrystalConfig, model: &ModelConfig, _: usize) -> anyhow::Result<Measured> {
        let encoder = config.planned_encoder(model)?;
        let (data, _) = read_data(config)?;
        let plan = config.reinforcement.plan(model, &config.lengths, data.question_lengths(&encoder)?);
        Ok(Measured { plan, data: data_rows(data.counts()), problem: None })
    }

    fn longest(&self, config: &CrystalConfig, model: &ModelConfig) -> Plan {
        let longest = [config.lengths.max_question_len as f64; 2];
        config.reinforcement.plan(model, &config.lengths, longest)
    }

    fn prepare(&self, config: &mut CrystalConfig, job: &Job<'_>) -> anyhow::Result<Prepared> {
        let folder = stage_one(config)?;
        let device = job.worker.device;
        let (policy, encoder) = config.build(device)?;
        let copy = || Model::load(folder, policy.kind(), device);
        let value = config.reinforcement.separate_value_model.then(copy).transpose()?;
        let reference = copy()?;
        let (data, notices) = read_data(config)?;
        show(&notices, job.worker);
        let models = ReinforcementModels { policy, reference, value };
        let stage = reinforcement(&config.reinforcement, config.compat, &encoder, models, &data)?;
        let settings = config.reinforcement.clone();
        Ok(Prepared::fitted_by(move |trainer, dir, collective, observer| {
            // Processes wait for each other, so none of them may leave by itself.
            let alone = collective.size() == 1;
            let interrupt = if alone { observer.interrupt() } else { Interrupt::default() };
            let folder = dir.path().join("reward");
            let measure = || reward_normalization(&settings, &stage, &folder, collective, observer);
            let normalization = interrupt.during(measure)?;
            Box::new(stage.normalized_by(normalization)).fit(trainer, dir, collective, observer)
        }))
    }
}

/// The model that Stage II starts from.
fn stage_one(config: &CrystalConfig) -> Result<&Path, ConfigError> {
    let pretrained = config.model.pretrained.as_deref();
    pretrained.ok_or_else(|| ConfigError::invalid("name the checkpoint of Stage I with --model"))
}

fn read_data(config: &CrystalConfig) -> anyhow::Result<(ReinforcementData, Vec<Notice>)> {
    let (mut data, mut notices) = (ReinforcementData::default(), vec![]);
    let mut read = |split, part| -> anyhow::Result<_> {
        let read = read_questions(&config.data, split, part)?;
        notices.extend(read.notices);
        Ok(read.items)
    };
    if config.data.half_half {
        data.train = read(Split::Train, Part::SecondHalf)?;
        data.answers = Some(read(Split::Train, Part::FirstHalf)?);
    } else {
        data.train = read(Split::Train, Part::All)?;
    }
    data.dev = read(Split::Dev, Part::All)?;
    Ok((data, notices))
}
