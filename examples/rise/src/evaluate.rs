//! How good several turns are.

use std::path::{Path, PathBuf};

use ruminate::datasets::chat::OtherTemplate;
use ruminate::datasets::environments::Problem;
use ruminate::datasets::json;
use ruminate::datasets::rise::{EvaluationSetting, Log};
use ruminate::rewards::rise::{Attempts, TurnMetric, turn_metrics};
use ruminate::run::program::Configuration;
use ruminate::run::{
    ConfigError, Outcome, PlanPart, Player, RunArgs, RunDir, RunDirError, Table, Worker, print_json,
    resolve_link,
};
use serde_json::{Map, Value, json};

use crate::config::{Phase, RiseConfig};

/// The metrics, written last.
pub(crate) const METRICS: &str = "metrics.json";

#[derive(clap::Args)]
pub(crate) struct EvaluateArgs {
    /// Checkpoint folder, e.g. runs/finetune/checkpoints/best
    #[arg(long, value_name = "DIR", conflicts_with = "log")]
    model: Option<PathBuf>,
    /// Instead of a checkpoint: somebody who takes turns, such as teacher, or a name of [players]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "log"])]
    player: Option<String>,
    /// A log instead, of this or the published program: nothing is asked, and --out is not needed
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// sequential: several turns without an oracle; oracle: the same up to the first right attempt; parallel: several first attempts
    #[arg(long)]
    setting: Option<EvaluationSetting>,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<Outcome> {
    let mut config = load(args)?;
    if let Some(path) = &args.log {
        return look_at(path, &mut config, args);
    }
    config.phase = Some(Phase::Evaluate);
    if args.run.dry_run {
        return PlanPart::print("rise", vec![plan(&config, "evaluate", &args.run)?], args.run.json);
    }
    if let Some(outcome) = args.run.launch()? {
        return Ok(outcome);
    }
    let worker = args.run.worker()?;
    let players: Vec<Player> = config.evaluating()?.players.into_iter().map(|(_, player)| player).collect();
    let warnings = config.share(&players, &worker)?;
    let problems = config.test_problems()?;
    config.evaluating()?.check()?;
    let dir = args.run.open(&config)?;
    let Some(metrics) = evaluate(&config, &problems, &dir, &worker)? else { return Ok(Outcome::Interrupted) };
    if worker.collective.is_main_process() {
        let log = dir.path().join(config.evaluation.rollout(config.data.compat).file_name());
        print(&metrics, problems.len(), &warnings, &log, args.run.json)?;
    }
    Ok(Outcome::Done)
}

/// The configuration: one that is named, that of the evaluation to go on with, or that of the model's or the log's run.
fn load(args: &EvaluateArgs) -> anyhow::Result<RiseConfig> {
    let nothing_to_plan = args.run.dry_run && args.log.is_some();
    for (flag, given) in [("--dry-run", nothing_to_plan), ("--resume-from", args.run.resume_from.is_some())] {
        if given {
            return Err(ConfigError::UselessFlag { flag }.into());
        }
    }
    let model = args.model.as_deref().map(resolve_link);
    if let Some(model) = model.as_deref().filter(|model| !model.is_dir()) {
        let reason = format!("--model: there is no checkpoint folder {}", model.display());
        return Err(ConfigError::invalid(reason).into());
    }
    if args.run.out.is_none() && args.log.is_none() && !args.run.dry_run {
        return Err(RunDirError::NoFolder.into());
    }
    let mut run = match &model {
        Some(model) => args.run.configured_as(model)?,
        None => args.run.clone(),
    };
    run.config = run.config.or_else(|| args.stored_config());
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
    config.fix_date(&args.run)?;
    Ok(config)
}

impl EvaluateArgs {
    /// The configuration of the run that a log lies in.
    fn stored_config(&self) -> Option<PathBuf> {
        RunDir::stored_config(self.log.as_deref()?.parent()?)
    }

    /// Whether a setting of this log's judge was told, by a configuration or by `--set`.
    fn tells(&self, key: &str) -> bool {
        let configured = self.run.config.is_some() || self.stored_config().is_some();
        configured || self.run.sets.iter().any(|set| set.trim_start().starts_with(key))
    }
}

/// The metrics of a log, which is judged by whoever has judged it.
fn look_at(path: &Path, config: &mut RiseConfig, args: &EvaluateArgs) -> anyhow::Result<Outcome> {
    let log = Log::read(path)?;
    if !log.episodes.is_empty() {
        let benchmark = args.tells("data.benchmark").then_some(config.data.benchmark);
        let compat = args.tells("data.compat").then_some(config.data.compat);
        let judge = log.judge(path, benchmark, compat).map_err(ConfigError::invalid)?;
        (config.data.benchmark, config.data.compat) = judge;
    }
    let metrics = metrics(config, &log)?;
    if let Some(out) = &args.run.out {
        json::write(&out.join(METRICS), &report(log.episodes.len(), &metrics, &[]))?;
    }
    print(&metrics, log.episodes.len(), &[], path, args.run.json)?;
    Ok(Outcome::Done)
}

/// What an evaluation takes.
pub(crate) fn plan(config: &RiseConfig, name: &str, args: &RunArgs) -> anyhow::Result<PlanPart> {
    let benchmark = config.data.benchmark.to_string();
    config.evaluating()?.plan(name, config.test_problems(), &benchmark, args.setup()?)
}

/// Lets the model answer, and writes log and metrics; `None` when the user asked to stop.
pub(crate) fn evaluate(
    config: &RiseConfig,
    problems: &[Problem],
    dir: &RunDir,
    worker: &Worker,
) -> anyhow::Result<Option<Vec<TurnMetric>>> {
    let rollout = config.evaluating()?;
    let Some(log) = rollout.play(problems, dir, worker)? else { return Ok(None) };
    let metrics = metrics(config, &log)?;
    if worker.collective.is_main_process() {
        let others = Player::other_templates(rollout.players.iter().map(|(_, player)| player))?;
        json::write(&dir.path().join(METRICS), &report(log.episodes.len(), &metrics, &others))?;
    }
    Ok(Some(metrics))
}

/// The metrics of a log, this program's or another's.
fn metrics(config: &RiseConfig, log: &Log) -> anyhow::Result<Vec<TurnMetric>> {
    if log.episodes.is_empty() {
        return Err(ConfigError::invalid("the log has no episodes").into());
    }
    let attempts = Attempts::of_log(log, &*config.data.environment());
    Ok(turn_metrics(&attempts, config.evaluation.metrics))
}

/// Metrics by name.
fn report(problems: usize, metrics: &[TurnMetric], warnings: &[OtherTemplate]) -> Value {
    let values: Map<String, Value> = metrics.iter().map(|m| (m.name.clone(), json!(m.value))).collect();
    let intervals: Map<String, Value> = metrics.iter().map(|m| (m.name.clone(), json!(m.interval))).collect();
    json!({ "problems": problems, "metrics": values, "intervals": intervals, "warnings": warnings })
}

fn print(
    metrics: &[TurnMetric],
    problems: usize,
    warnings: &[OtherTemplate],
    log: &Path,
    as_json: bool,
) -> std::io::Result<()> {
    if as_json {
        let mut result = report(problems, metrics, warnings);
        result["system"] = json!("rise");
        result["phase"] = json!("evaluate");
        result["log"] = json!(log);
        return print_json(&result);
    }
    let mut table = Table::new(["metric", "value", "95 % interval"]);
    for metric in metrics {
        let interval = metric.interval.map(|i| format!("{:.3} to {:.3}", i.low, i.high));
        table.row([metric.name.clone(), format!("{:.3}", metric.value), interval.unwrap_or_default()]);
    }
    table.print()
}
