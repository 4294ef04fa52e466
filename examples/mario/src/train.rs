//! Everything that is trained.

use std::path::Path;

use ruminate::algorithms::mario::{
    Distillation, OptionMode, OptionTraining, Rationales, TextScorer, VerifierTraining, for_dataset, prompt,
    quark_data,
};
use ruminate::algorithms::quark::{ControlTokens, Quark};
use ruminate::algorithms::{Fitted, Sft, Trainer, TrainerConfig};
use ruminate::datasets::Split;
use ruminate::models::{T5, Tokenizer};
use ruminate::run::{
    ConfigError, Outcome, RunArgs, RunDir, RunDirError, RunObserver, StopFlag, Table, print_json, settled,
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
    let device = args.setup()?;
    let stop = StopFlag::on_ctrl_c()?;
    let out = args.out.as_deref().ok_or(RunDirError::NoFolder)?;
    let open = |config: &MarioConfig| {
        let dir = args.open(config)?;
        let observer = RunObserver::new(&dir, args.verbosity(), stop)?;
        Ok((dir, observer))
    };
    let fitted = fit(&mut config, stage, device, out, open)?;
    print_fitted(&fitted, config.stage, args.json)?;
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

/// Trains a stage; result files go below `out`. Everything that can be wrong with the data or the models shows before the run
/// folder is opened.
pub(crate) fn fit(
    config: &mut MarioConfig,
    stage: Stage,
    device: Device,
    out: &Path,
    open: impl FnOnce(&MarioConfig) -> Result<(RunDir, RunObserver), RunDirError>,
) -> anyhow::Result<Fitted> {
    let seed = config.seed;
    let finish =
        |algorithm: &mut dyn FnMut(&Trainer, &mut RunObserver) -> ruminate::algorithms::Result<Fitted>,
         config: &MarioConfig,
         trainer: &TrainerConfig| {
            let (dir, mut observer) = open(config)?;
            Ok(algorithm(&Trainer::new(trainer.clone(), &dir.checkpoints())?, &mut observer)?)
        };
    match stage {
        Stage::Sft => {
            let (t5, tokenizer) = config.sft.model.open(seed, device)?;
            let rationales = rationales(config, tokenizer.clone())?;
            config.sft.trainer.steps = rationales.steps(&config.sft.trainer);
            let mut sft = Sft::new(t5, rationales.log_to(out.join("op_scores_val_greedy.txt")), tokenizer);
            finish(&mut |trainer, observer| trainer.fit(&mut sft, observer), config, &config.sft.trainer)
        }
        Stage::I2o | Stage::Ir2o => {
            let mode = if stage == Stage::I2o { OptionMode::I2o } else { OptionMode::Ir2o };
            let (t5, tokenizer) = config.option_training(mode).model.open(seed, device)?;
            let options = options(config, mode, &tokenizer)?;
            let trainer = &mut config.option_training_mut(mode).trainer;
            trainer.steps = options.steps(trainer);
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
fn distillation(config: &mut MarioConfig, device: Device, out: &Path) -> anyhow::Result<Distillation<T5>> {
    let Some(reference) = config.quark.reference.as_deref().map(settled) else {
        let reason = "name a checkpoint of `mario sft` with quark.reference: the policy is not to leave it";
        return Err(ConfigError::invalid(reason).into());
    };
    config.quark.reference = Some(reference.clone());
    let MarioConfig { quark, rewards, .. } = config;
    for model in [&mut quark.model.pretrained, &mut rewards.i2o, &mut rewards.ir2o, &mut rewards.vera] {
        *model = model.as_deref().map(settled);
    }
    let quark = for_dataset(config.quark.training.clone(), config.data.dataset);
    let read = |split| config.data.read(split);
    let (train, dev, test) = (read(Split::Train)?, read(Split::Dev)?, read(Split::Test)?);
    let (mut policy, mut tokenizer) = config.quark.model.open(config.seed, device)?;
    let reference = T5::load(&reference, Kind::Float, device)?;
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
    let (step, score, path) = &fitted.best;
    if as_json {
        return print_json(&json!({
            "system": "mario", "stage": stage, "steps": fitted.steps, "last": fitted.last,
            "best": { "step": step, "score": score, "path": path },
        }));
    }
    let mut table = Table::new(["checkpoint", "step", "folder"]);
    table.row(["last", &fitted.steps.to_string(), &fitted.last.display().to_string()]);
    table.row(["best", &step.to_string(), &path.display().to_string()]);
    table.print()
}
