//! Phase 1.

use ruminate::algorithms::tinythinker::Acquisition;
use ruminate::algorithms::{Fitted, Networks, Plan, Sft, Trainer};
use ruminate::datasets::Split;
use ruminate::models::Tokenizer;
use ruminate::run::{
    DataRow, DryRun, Outcome, PlannedShape, RunArgs, RunDir, RunDirError, Table, Worker, print_json,
};
use serde_json::json;

use crate::config::{FLAGS, Phase, TinyThinkerConfig};

/// Trains to the end, or goes on where the run folder's last checkpoint stands.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    let config = load(args, Phase::Acquire)?;
    if args.dry_run {
        return plan(config, args);
    }
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    let fitted = fit(config, args.reuses_stored_config(), &worker, |config| args.open(config))?;
    if worker.collective.is_main_process() {
        print_fitted(&fitted, args.json)?;
    }
    Ok(fitted.ending.into())
}

/// The configuration of a run that writes to a folder.
pub(crate) fn load(args: &RunArgs, phase: Phase) -> anyhow::Result<TinyThinkerConfig> {
    if args.out.is_none() && !args.dry_run {
        return Err(RunDirError::NoFolder.into());
    }
    let mut config: TinyThinkerConfig = args.load(FLAGS)?;
    config.validate()?;
    config.enter(phase)?;
    Ok(config)
}

/// Trains a student. Everything that can be wrong with data or model shows before the run folder is opened. A run that goes on keeps
/// the number of its steps.
pub(crate) fn fit(
    mut config: TinyThinkerConfig,
    reuses_stored_config: bool,
    worker: &Worker,
    open: impl FnOnce(&TinyThinkerConfig) -> Result<RunDir, RunDirError>,
) -> anyhow::Result<Fitted> {
    let (t5, tokenizer) = config.model.open(config.seed, tch::Kind::Float, worker.device)?;
    let acquisition = acquisition(&config, tokenizer.clone())?;
    if !reuses_stored_config {
        config.acquisition.trainer =
            acquisition.trainer(&config.acquisition.trainer, worker.collective.size());
    }
    let mut sft = Sft::new(t5, acquisition, tokenizer);
    let dir = open(&config)?;
    let mut observer = worker.observer(&dir)?;
    let trainer = Trainer::across(config.acquisition.trainer, &dir.checkpoints(), &worker.collective)?;
    Ok(trainer.fit(&mut sft, observer.as_mut())?)
}

fn acquisition(config: &TinyThinkerConfig, tokenizer: Tokenizer) -> anyhow::Result<Acquisition> {
    let (folder, records) = config.data.read(config.variant())?;
    let training = config.acquisition.training.clone();
    Ok(Acquisition::new(training, tokenizer, &records, &folder, config.acquisition.trainer.accumulate)?)
}

/// `--dry-run`: prints what a run would take, without loading weights or writing anything.
fn plan(config: TinyThinkerConfig, args: &RunArgs) -> anyhow::Result<Outcome> {
    let PlannedShape { shape, missing } = config.model.planned()?;
    let missing = missing.map(anyhow::Error::from);
    let tokenizer = config.model.tokenizer(&shape);
    let measured = tokenizer.map_err(Into::into).and_then(|tokenizer| acquisition(&config, tokenizer));
    let device = args.setup()?;
    let mut trainer = config.acquisition.trainer.clone();
    let (passes, data, problem) = match measured {
        Ok(acquisition) => {
            trainer = acquisition.trainer(&trainer, args.processes());
            let name = format!("{:?}", config.data.dataset).to_lowercase();
            let rows = acquisition.rows();
            let data = DataRow { task: name, split: Split::Train, questions: rows, instances: rows };
            (acquisition.passes(&trainer), vec![data], missing)
        }
        Err(error) => (vec![], vec![], Some(missing.unwrap_or(error))),
    };
    let plan = Plan::new(&trainer, Networks::single(&shape), &passes, 1.0);
    let problems = problem.iter().map(|error| format!("{error:#}")).collect();
    DryRun { plan: plan.across(args.processes()), data, problems, device, out: args.out.as_deref() }
        .print(args.json)?;
    problem.map_or(Ok(Outcome::Done), Err)
}

/// Says where the checkpoints of a run are.
fn print_fitted(fitted: &Fitted, as_json: bool) -> std::io::Result<()> {
    if as_json {
        return print_json(&json!({
            "system": "tinythinker", "phase": "acquire", "steps": fitted.steps, "last": fitted.last,
            "best": fitted.best,
        }));
    }
    let mut table = Table::new(["checkpoint", "step", "folder"]);
    table.row(["last", &fitted.steps.to_string(), &fitted.last.display().to_string()]);
    table.row(["best", &fitted.best.step.to_string(), &fitted.best.path.display().to_string()]);
    table.print()
}
