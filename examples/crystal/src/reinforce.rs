//! Stage II as a command.

use std::path::{Path, PathBuf};

use ruminate::algorithms::crystal::{
    Notice, Reinforcement, ReinforcementData, ReinforcementModels, read_questions, reinforcement,
    reward_normalization,
};
use ruminate::algorithms::{Collective, Fitted, Observer, Trainer};
use ruminate::datasets::{Part, Split};
use ruminate::models::{Interrupt, Model, VALUE_WEIGHTS};
use ruminate::run::{ConfigError, Outcome, RunArgs, RunDir, RunDirError, resolve_link};
use tch::Device;

use crate::config::{CrystalConfig, FLAGS};
use crate::plan;

#[derive(clap::Args)]
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
    let mut run = crate::with_settings(&args.run, args.skip_bad_rows);
    if run.out.is_none() && !run.dry_run {
        return Err(RunDirError::NoFolder.into());
    }
    check_stage(&run, true)?;
    let model = args.model.as_deref().map(resolve_link);
    // What a run would cost can be told for a model that is not here yet, by the settings of the paper.
    if let Some(model) =
        model.as_deref().filter(|model| !run.dry_run || RunDir::config_of_model(model).is_some())
    {
        run = run.configured_as(model)?;
    }
    let mut config: CrystalConfig = run.load(FLAGS)?;
    if let Some(model) = &model {
        (config.model.pretrained, config.model.config) = (Some(model.clone()), None);
    }
    config.validate()?;
    if run.dry_run {
        return plan::reinforcement(&config, &run);
    }
    if let Some(outcome) = run.launch()? {
        return Ok(outcome);
    }
    let worker = run.worker()?;
    // Everything that can be wrong with the data or the model shows before the run folder is touched.
    let (stage, notices) = prepare(&config, worker.device)?;
    let dir = run.open(&config)?;
    crate::show(&notices, run.quiet || !worker.collective.is_main_process());
    let mut observer = worker.observer(&dir)?;
    let reinforced = reinforce(&config, stage, &worker.collective, &dir, observer.as_mut())?;
    drop(observer);
    let Some((fitted, _)) = reinforced else { return Ok(Outcome::Interrupted) };
    if worker.collective.is_main_process() {
        crate::print_fitted(&fitted, "reinforcement", run.json)?;
    }
    Ok(fitted.ending.into())
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

/// The model that Stage II starts from.
pub(crate) fn stage_one(config: &CrystalConfig) -> Result<&Path, ConfigError> {
    let pretrained = config.model.pretrained.as_deref();
    pretrained.ok_or_else(|| ConfigError::invalid("name the checkpoint of Stage I with --model"))
}

pub(crate) fn read_data(config: &CrystalConfig) -> anyhow::Result<(ReinforcementData, Vec<Notice>)> {
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

/// Reads model and data, and joins them.
pub(crate) fn prepare(
    config: &CrystalConfig,
    device: Device,
) -> anyhow::Result<(Reinforcement<Model>, Vec<Notice>)> {
    let folder = stage_one(config)?;
    let (policy, encoder) = config.build(device)?;
    let copy = || Model::load(folder, policy.kind(), device);
    let value = config.reinforcement.separate_value_model.then(copy).transpose()?;
    let reference = copy()?;
    let (data, notices) = read_data(config)?;
    let models = ReinforcementModels { policy, reference, value };
    let stage = reinforcement(&config.reinforcement, config.compat, &encoder, models, &data)?;
    Ok((stage, notices))
}

/// Trains to the end, or goes on where the run folder's last checkpoint stands. `None` when the user asked to stop while the scale of the
/// rewards was measured.
pub(crate) fn reinforce(
    config: &CrystalConfig,
    stage: Reinforcement<Model>,
    collective: &Collective,
    dir: &RunDir,
    observer: &mut dyn Observer,
) -> anyhow::Result<Option<(Fitted, Reinforcement<Model>)>> {
    let settings = &config.reinforcement;
    // Processes wait for each other, so none of them may leave by itself.
    let interrupt = if collective.size() == 1 { observer.interrupt() } else { Interrupt::default() };
    let folder = dir.path().join("reward");
    let measured = interrupt.during(|| reward_normalization(settings, &stage, &folder, collective, observer));
    let normalization = match measured {
        Err(error) if error.is_interruption() => return Ok(None),
        measured => measured?,
    };
    let mut stage = stage.normalized_by(normalization);
    let trainer = Trainer::across(settings.trainer.clone(), &dir.checkpoints(), collective)?;
    let fitted = trainer.fit(&mut stage, observer)?;
    Ok(Some((fitted, stage)))
}
