//! The supervised stage and the reward models.

use std::path::{Path, PathBuf};

use ruminate::algorithms::mario::{OptionMode, OptionTraining, Rationales};
use ruminate::algorithms::{Curriculum, Fitted, Networks, Pass, Plan, Sft, Trainer, TrainerConfig};
use ruminate::datasets::Split;
use ruminate::models::{T5, T5Config, Tokenizer};
use ruminate::run::{DryRun, Outcome, RunArgs, RunDirError, RunObserver, StopFlag, Table, print_json};
use serde_json::json;

use crate::config::{FLAGS, MarioConfig, ModelConfig, Stage, Training};

/// What is trained, and how much of it.
struct Lesson<C> {
    curriculum: C,
    /// Rows to train on.
    rows: usize,
    steps: u64,
    passes: Vec<Pass>,
}

pub(crate) fn sft(args: &RunArgs) -> anyhow::Result<Outcome> {
    let config = load(args, Stage::Sft)?;
    let Training { model, training, trainer } = config.sft.clone();
    train(
        config,
        args,
        &model,
        |config| &mut config.sft.trainer,
        |config, tokenizer| {
            let (train, dev) = (config.data.read(Split::Train)?, config.data.read(Split::Dev)?);
            let rationales = Rationales::new(training, tokenizer, &train, dev)?;
            Ok(Lesson {
                rows: rationales.rows(),
                steps: rationales.steps(&trainer),
                passes: rationales.passes(&trainer),
                curriculum: rationales.log_to(log(args, "op_scores_val_greedy.txt")),
            })
        },
    )
}

pub(crate) fn reward_model(args: &RunArgs, mode: OptionMode) -> anyhow::Result<Outcome> {
    let config = load(args, mode.into())?;
    let Training { model, training, trainer } = config.option_training(mode).clone();
    train(
        config,
        args,
        &model,
        |config| &mut config.option_training_mut(mode).trainer,
        |config, tokenizer| {
            let (train, dev) = (config.data.read(Split::Train)?, config.data.read(Split::Dev)?);
            let options = OptionTraining::new(mode, training, &tokenizer, config.data.dataset, train, dev)?;
            Ok(Lesson {
                rows: options.rows(),
                steps: options.steps(&trainer),
                passes: options.passes(&trainer),
                curriculum: options.log_to(log(args, "op_scores_val.txt")),
            })
        },
    )
}

/// Where the published code's lines about validations go.
fn log(args: &RunArgs, name: &str) -> PathBuf {
    args.out.as_deref().unwrap_or(Path::new("")).join(name)
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

/// Trains to the end, or goes on where the run folder's last checkpoint stands.
fn train<C: Curriculum<T5>>(
    mut config: MarioConfig,
    args: &RunArgs,
    model: &ModelConfig,
    trainer: impl Fn(&mut MarioConfig) -> &mut TrainerConfig,
    lesson: impl FnOnce(&MarioConfig, Tokenizer) -> anyhow::Result<Lesson<C>>,
) -> anyhow::Result<Outcome> {
    if args.dry_run {
        let (shape, missing) = model.planned()?;
        let measured = model.tokenizer(&shape).and_then(|tokenizer| lesson(&config, tokenizer));
        return plan(&mut config, args, &shape, missing, trainer, measured);
    }
    let device = args.setup()?;
    let stop = StopFlag::on_ctrl_c()?;
    // Everything that can be wrong with the data or the model shows before the run folder is touched.
    let t5 = model.build(config.seed, device)?;
    let tokenizer = model.tokenizer(t5.config())?;
    let lesson = lesson(&config, tokenizer.clone())?;
    trainer(&mut config).steps = lesson.steps;
    let settings = trainer(&mut config).clone();
    let dir = args.open(&config)?;
    let mut observer = RunObserver::new(&dir, args.verbosity(), stop)?;
    let mut sft = Sft::new(t5, lesson.curriculum, tokenizer);
    let fitted = Trainer::new(settings, &dir.checkpoints())?.fit(&mut sft, &mut observer)?;
    drop(observer);
    print_fitted(&fitted, config.stage, args.json)?;
    Ok(fitted.ending.into())
}

/// Prints what a run would take, without loading weights or writing anything.
fn plan<C: Curriculum<T5>>(
    config: &mut MarioConfig,
    args: &RunArgs,
    shape: &T5Config,
    missing: Option<anyhow::Error>,
    trainer: impl Fn(&mut MarioConfig) -> &mut TrainerConfig,
    measured: anyhow::Result<Lesson<C>>,
) -> anyhow::Result<Outcome> {
    let device = args.setup()?;
    let name = config.data.dataset.to_string();
    let settings = trainer(config);
    let (passes, data, problem) = match measured {
        Ok(lesson) => {
            settings.steps = lesson.steps;
            (lesson.passes, vec![(name, "train".into(), lesson.rows, lesson.rows)], missing)
        }
        Err(error) => (vec![], vec![], Some(missing.unwrap_or(error))),
    };
    let plan = Plan::new(settings, Networks::single(shape), &passes, 1.0);
    let problems = problem.iter().map(|error| format!("{error:#}")).collect();
    DryRun { plan, data, problems, device, out: args.out.as_deref() }.print(args.json)?;
    problem.map_or(Ok(Outcome::Done), Err)
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
