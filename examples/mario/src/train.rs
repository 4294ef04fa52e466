//! Everything that is trained.

use std::path::Path;

use ruminate::algorithms::mario::{
    Distillation, OptionMode, OptionTraining, Rationales, TextScorer, VerifierTraining, for_dataset, prompt,
    quark_data,
};
use ruminate::algorithms::quark::{ControlTokens, Quark};
use ruminate::algorithms::{Fitted, Observer, Sft, Trainer, TrainerConfig};
use ruminate::datasets::Split;
use ruminate::models::{Model, Tokenizer};
use ruminate::run::{
    ConfigError, Outcome, RunArgs, RunDir, RunDirError, Table, Worker, print_json, resolve_link,
};
use serde_json::json;
use tch::{Device, Kind};

use crate::config::{FLAGS, MarioConfig, Stage, Training};
use crate::{plan, rewards};

/// Trains to the end, or goes on where the run folder's last checkpoint stands.
pub(crate) fn run(args: &RunArgs, stage: Stage) -> anyhow::Result<Outcome> {
    let mut config = load(args, stage)?;
    if args.dry_run {
        return plan::run(&mut config, args, stage);
    }
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    let out = args.out.as_deref().ok_or(RunDirError::NoFolder)?;
    let fitted =
        fit(&mut config, stage, args.reuses_stored_config(), &worker, out, |config| args.open(config))?;
    if worker.collective.is_main_process() {
        print_fitted(&fitted, config.stage, args.json)?;
    }
    Ok(fitted.ending.into())
}

fn load(args: &RunArgs, stage: Stage) -> anyhow::Result<MarioConfig> {
    if args.out.is_none() && !args.dry_run {
        return Err(RunDirError::NoFolder.into());
    }
    let mut config: MarioConfig = args.load(FLAGS)?;
    config.validate()?;
    config.enter(stage)?;
    Ok(config)
}

/// What trains an algorithm.
type Fit<'a> = dyn FnMut(&Trainer, &mut dyn Observer) -> ruminate::algorithms::Result<Fitted> + 'a;

/// Trains a stage; result files go below `out`. Everything that can be wrong with the data or the models shows before the run
/// folder is opened. A run that goes on keeps the number of its steps, which may have been another with as many processes as now.
pub(crate) fn fit(
    config: &mut MarioConfig,
    stage: Stage,
    reuses_stored_config: bool,
    worker: &Worker,
    out: &Path,
    open: impl FnOnce(&MarioConfig) -> Result<RunDir, RunDirError>,
) -> anyhow::Result<Fitted> {
    let (seed, device, processes) = (config.seed, worker.device, worker.collective.size());
    let finish = |algorithm: &mut Fit<'_>, config: &MarioConfig, trainer: &TrainerConfig| {
        let dir = open(config)?;
        let mut observer = worker.observer(&dir)?;
        let trainer = Trainer::across(trainer.clone(), &dir.checkpoints(), &worker.collective)?;
        Ok(algorithm(&trainer, observer.as_mut())?)
    };
    match stage {
        Stage::Sft => {
            let (t5, tokenizer) = config.sft.model.open(seed, Kind::Float, device)?;
            let rationales = rationales(config, tokenizer.clone())?;
            if !reuses_stored_config {
                config.sft.trainer.steps = rationales.steps(&config.sft.trainer, processes);
            }
            let mut sft = Sft::new(t5, rationales.log_to(out.join("op_scores_val_greedy.txt")), tokenizer);
            finish(&mut |trainer, observer| trainer.fit(&mut sft, observer), config, &config.sft.trainer)
        }
        Stage::I2o | Stage::Ir2o => {
            let mode = if stage == Stage::I2o { OptionMode::I2o } else { OptionMode::Ir2o };
            let (t5, tokenizer) = config.option_training(mode).model.open(seed, Kind::Float, device)?;
            let options = options(config, mode, &tokenizer)?;
            let trainer = &mut config.option_training_mut(mode).trainer;
            if !reuses_stored_config {
                trainer.steps = options.steps(trainer, processes);
            }
            let trainer = trainer.clone();
            let mut sft = Sft::new(t5, options.log_to(out.join("op_scores_val.txt")), tokenizer);
            finish(&mut |trainer, observer| trainer.fit(&mut sft, observer), config, &trainer)
        }
        Stage::Vera => {
            let Training { model, training, trainer } = &config.vera;
            let (encoder, tokenizer) = model.open_encoder(seed, device)?;
            let (train, dev) = (training.read(Split::Train)?, training.read(Split::Dev)?);
            let mut verifier = VerifierTraining::new(training, encoder, tokenizer, &train, &dev)?;
            finish(&mut |trainer, observer| trainer.fit(&mut verifier, observer), config, trainer)
        }
        Stage::Quark => {
            let mut distillation = distillation(config, device, out)?;
            finish(
                &mut |trainer, observer| trainer.fit(&mut distillation, observer),
                config,
                &config.quark.trainer,
            )
        }
    }
}

/// The supervised stage.
pub(crate) fn rationales(config: &MarioConfig, tokenizer: Tokenizer) -> anyhow::Result<Rationales> {
    let (train, dev) = (config.data.read(Split::Train)?, config.data.read(Split::Dev)?);
    Ok(Rationales::new(config.sft.training.clone(), tokenizer, &train, dev)?)
}

/// A reward model that chooses among labels.
pub(crate) fn options(
    config: &MarioConfig,
    mode: OptionMode,
    tokenizer: &Tokenizer,
) -> anyhow::Result<OptionTraining> {
    let (train, dev) = (config.data.read(Split::Train)?, config.data.read(Split::Dev)?);
    let training = config.option_training(mode).training.clone();
    Ok(OptionTraining::new(mode, training, tokenizer, config.data.dataset, train, dev)?)
}

/// Quark with several rewards.
fn distillation(config: &mut MarioConfig, device: Device, out: &Path) -> anyhow::Result<Distillation<Model>> {
    let Some(reference) = config.quark.reference.as_deref().map(resolve_link) else {
        let reason = "name a checkpoint of `mario sft` with quark.reference: the policy is not to leave it";
        return Err(ConfigError::invalid(reason).into());
    };
    config.quark.reference = Some(reference.clone());
    let MarioConfig { quark, rewards, .. } = config;
    for model in [&mut quark.model.pretrained, &mut rewards.i2o, &mut rewards.ir2o, &mut rewards.vera] {
        *model = model.as_deref().map(resolve_link);
    }
    let quark = for_dataset(config.quark.training.clone(), config.data.dataset);
    let read = |split| config.data.read(split);
    let (train, dev, test) = (read(Split::Train)?, read(Split::Dev)?, read(Split::Test)?);
    let (mut policy, mut tokenizer) = config.quark.model.open(config.seed, Kind::Float, device)?;
    let reference = Model::load(&reference, Kind::Float, device)?;
    let rewards = rewards::trained_on(config, &quark, device)?;
    let data = quark_data(&train, &dev, &tokenizer)?;
    let test = test.iter().map(|row| prompt(row, &tokenizer)).collect::<Result<_, _>>()?;
    let tokens = ControlTokens::add_to(&mut tokenizer, &quark.control)?;
    policy.add_tokens(tokens.id_range(), quark.seed)?;
    let folder = out.join("reward");
    let scorer = TextScorer::new(rewards).log_to(folder.clone());
    let quark = Quark::new(quark, policy, reference, tokenizer, scorer, data)?;
    Ok(Distillation::new(quark, test, folder))
}

/// Says where the checkpoints of a run are.
fn print_fitted(fitted: &Fitted, stage: Option<Stage>, as_json: bool) -> std::io::Result<()> {
    if as_json {
        return print_json(&json!({
            "system": "mario", "stage": stage, "steps": fitted.steps, "last": fitted.last,
            "best": fitted.best,
        }));
    }
    let mut table = Table::new(["checkpoint", "step", "folder"]);
    table.row(["last", &fitted.steps.to_string(), &fitted.last.display().to_string()]);
    table.row(["best", &fitted.best.step.to_string(), &fitted.best.path.display().to_string()]);
    table.print()
}
