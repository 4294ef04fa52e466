//! How good several turns are.

use std::path::{Path, PathBuf};

use ruminate::datasets::rise::{EvaluationSetting, Log};
use ruminate::run::program::{Configuration, checkpoint};
use ruminate::run::{ConfigError, Outcome, PlanPart, RunArgs, RunDir, RunDirError, TurnReport, print_json};

use crate::config::{Phase, RiseArgs, RiseConfig};

#[derive(clap::Args)]
pub(crate) struct EvaluateArgs {
    /// Checkpoint folder, e.g. runs/finetune/checkpoints/best
    #[arg(long, value_name = "DIR", conflicts_with = "log")]
    model: Option<PathBuf>,
    /// Instead of a checkpoint: somebody who takes turns, such as teacher, or a name of the section players
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "log"])]
    player: Option<String>,
    /// A log instead, of this or the published program: nothing is asked, and --out is not needed
    #[arg(long, value_name = "FILE", conflicts_with = "template")]
    log: Option<PathBuf>,
    /// sequential: several turns, and nobody says which attempt is right; oracle: several turns, up to the first right attempt; parallel:
    /// several first attempts
    #[arg(long, value_name = "sequential|oracle|parallel")]
    setting: Option<EvaluationSetting>,
    #[command(flatten)]
    rise: RiseArgs,
}

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<Outcome> {
    let (run, mut config) = load(args)?;
    if let Some(path) = &args.log {
        return print(&look_at(path, &mut config, &run)?, path, run.json);
    }
    config.phase = Some(Phase::Evaluate);
    if run.dry_run {
        return PlanPart::print("rise", vec![plan(&config, "evaluate", &run)?], run.json);
    }
    if let Some(outcome) = run.launch()? {
        return Ok(outcome);
    }
    let worker = config.worker(&run)?;
    let problems = config.test_problems()?;
    let rollout = config.evaluating()?;
    rollout.ready(&worker)?;
    let dir = run.open(&config)?;
    let report = rollout.evaluate(&problems, config.evaluation.metrics, &dir, &worker)?;
    let Some(report) = report else { return Ok(Outcome::Interrupted) };
    if !worker.collective.is_main_process() {
        return Ok(Outcome::Done);
    }
    print(&report, &dir.path().join(rollout.config.file_name()), run.json)
}

/// The flags, and the configuration: one that is named, that of the evaluation to go on with, or that of the model's or the log's run.
fn load(args: &EvaluateArgs) -> anyhow::Result<(RunArgs, RiseConfig)> {
    let mut run = args.rise.run();
    let nothing_to_plan = run.dry_run && args.log.is_some();
    for (flag, given) in [("--dry-run", nothing_to_plan), ("--resume-from", run.resume_from.is_some())] {
        if given {
            return Err(ConfigError::UselessFlag { flag }.into());
        }
    }
    let model = args.model.as_deref().map(checkpoint).transpose()?;
    if run.out.is_none() && args.log.is_none() && !run.dry_run {
        return Err(RunDirError::NoFolder.into());
    }
    if let Some(model) = &model {
        run = run.configured_as(model)?;
    }
    let beside = args.log.as_deref().and_then(Path::parent).and_then(RunDir::stored_config);
    run.config = run.config.or(beside);
    let mut config = RiseConfig::load(&run)?;
    let section = &mut config.evaluation;
    section.setting = args.setting.unwrap_or(section.setting);
    section.player = args.player.clone().or(section.player.take().filter(|_| model.is_none()));
    section.model = model.or(section.model.take());
    if args.log.is_none() && section.model.is_none() && section.player.is_none() {
        let reason = "name a checkpoint with --model, such as runs/finetune/checkpoints/best, a log with --log, or a --player";
        return Err(ConfigError::invalid(reason).into());
    }
    config.validate()?;
    config.resolve_players();
    config.fix_date(&run)?;
    Ok((run, config))
}

/// The metrics of a log, which is judged by whoever has judged it: told by a configuration or flags, or found out.
fn look_at(path: &Path, config: &mut RiseConfig, run: &RunArgs) -> anyhow::Result<TurnReport> {
    let log = Log::read(path)?;
    if !log.episodes.is_empty() {
        let told = |key| run.config.is_some() || run.sets.iter().any(|set| set.trim_start().starts_with(key));
        let benchmark = told("data.benchmark").then_some(config.data.benchmark);
        let compat = told("data.compat").then_some(config.data.compat);
        let judge = log.judge(path, benchmark, compat).map_err(ConfigError::invalid)?;
        (config.data.benchmark, config.data.compat) = judge;
    }
    let report = TurnReport::of(&log, &*config.data.environment(), config.evaluation.metrics)?;
    if let Some(out) = &run.out {
        report.write(out)?;
    }
    Ok(report)
}

/// The plan of an evaluation.
pub(crate) fn plan(config: &RiseConfig, name: &str, args: &RunArgs) -> anyhow::Result<PlanPart> {
    let benchmark = config.data.benchmark.to_string();
    config.evaluating()?.plan(name, config.test_problems(), &benchmark, args.setup()?)
}

fn print(report: &TurnReport, log: &Path, as_json: bool) -> anyhow::Result<Outcome> {
    if as_json {
        let mut result = report.json();
        for (key, value) in [("system", "rise"), ("phase", "evaluate"), ("log", &log.display().to_string())] {
            result[key] = value.into();
        }
        print_json(&result)?;
    } else {
        report.table().print()?;
    }
    Ok(Outcome::Done)
}
