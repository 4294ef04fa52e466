//! How good several turns are.

use std::path::{Path, PathBuf};

use ruminate::algorithms::rwr::Divided;
use ruminate::datasets::chat::OtherTemplate;
use ruminate::datasets::environments::Problem;
use ruminate::datasets::json;
use ruminate::datasets::rise::Log;
use ruminate::rewards::rise::{Attempts, TurnMetric, turn_metrics};
use ruminate::run::{
    ConfigError, LlamaModelConfig, Outcome, RunArgs, RunDir, RunDirError, Table, Worker, print_json, settled,
};
use serde_json::{Map, Value, json};

use crate::collect::play;
use crate::config::{Evaluating, FLAGS, Phase, RiseConfig};
use crate::players::{Local, other_templates, warn};

/// The metrics, written last.
pub(crate) const METRICS: &str = "metrics.json";

#[derive(clap::Args)]
pub(crate) struct EvaluateArgs {
    /// Checkpoint folder, e.g. runs/finetune/checkpoints/best
    #[arg(long, value_name = "DIR", conflicts_with = "log")]
    model: Option<PathBuf>,
    /// A log instead, of this or the published program: nothing is asked, and --out is not needed
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Several turns without an oracle, the same up to the first right attempt, or several first attempts
    #[arg(long, value_enum)]
    setting: Option<Evaluating>,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<Outcome> {
    for (flag, given) in [("--dry-run", args.run.dry_run), ("--resume-from", args.run.resume_from.is_some())]
    {
        if given {
            return Err(ConfigError::UselessFlag { flag }.into());
        }
    }
    let model = args.model.as_deref().map(settled);
    if let Some(model) = model.as_deref().filter(|model| !model.is_dir()) {
        let reason = format!("--model: there is no checkpoint folder {}", model.display());
        return Err(ConfigError::invalid(reason).into());
    }
    let mut config = load(args, model.as_deref())?;
    if let Some(path) = &args.log {
        let log = Log::read(path)?;
        let metrics = metrics(&config, &log)?;
        if let Some(out) = &args.run.out {
            json::write(&out.join(METRICS), &report(log.episodes.len(), &metrics, &[]))?;
        }
        print(&metrics, log.episodes.len(), &[], path, args.run.json)?;
        return Ok(Outcome::Done);
    }
    config.evaluation.model = model.or(config.evaluation.model);
    config.phase = Some(Phase::Evaluate);
    if let Some(outcome) = args.run.launch()? {
        return Ok(outcome);
    }
    let worker = args.run.worker()?;
    config.chat.date = worker.peers.first(|| anyhow::Ok(config.chat.date))?;
    let problems = config.data.read(&config.evaluation.problems, config.evaluation.limit)?;
    let warnings = warn(&config, &worker)?;
    let dir = args.run.open(&config)?;
    let Some(metrics) = evaluate(&config, &problems, &dir, &worker)? else {
        return Ok(Outcome::Interrupted);
    };
    if !worker.peers.leads() {
        return Ok(Outcome::Done);
    }
    let log = dir.path().join(config.evaluation.rollout(config.data.compat).file_name());
    print(&metrics, problems.len(), &warnings, &log, args.run.json)?;
    Ok(Outcome::Done)
}

/// The configuration: one that is named, that of the evaluation to go on with, or that of the model's run.
fn load(args: &EvaluateArgs, model: Option<&Path>) -> anyhow::Result<RiseConfig> {
    if args.run.out.is_none() && args.log.is_none() {
        return Err(RunDirError::NoFolder.into());
    }
    let mut run = args.run.clone();
    if !run.resumes() {
        let folder = model.and_then(Path::parent).and_then(Path::parent);
        run.config = run.config.or(folder.and_then(RunDir::stored_config));
    }
    let mut config: RiseConfig = run.load(FLAGS)?;
    if let Some(setting) = args.setting {
        config.evaluation.setting = setting;
    }
    config.validate()?;
    config.fix_date(&args.run)?;
    if args.log.is_none() && model.is_none() && config.evaluation.model.is_none() {
        let reason =
            "name a checkpoint with --model, such as runs/finetune/checkpoints/best, or a log with --log";
        return Err(ConfigError::invalid(reason).into());
    }
    Ok(config)
}

/// Lets `evaluation.model` answer, and writes log and metrics; `None` when the user asked to stop.
pub(crate) fn evaluate(
    config: &RiseConfig,
    problems: &[Problem],
    dir: &RunDir,
    worker: &Worker,
) -> anyhow::Result<Option<Vec<TurnMetric>>> {
    let section = &config.evaluation;
    let model = LlamaModelConfig::of_folder(section.model.as_deref().unwrap_or(Path::new("")));
    let local = Local::open(
        &model,
        (&config.chat, config.chat.template.as_str()),
        &section.generation,
        config.seed,
        worker.device,
    )?;
    let answerer = local.answerer();
    let rollout = section.rollout(config.data.compat);
    let answerers = vec![Divided::new(&answerer, &worker.peers); rollout.samples.len()];
    let how = (section.batch, section.setting.name());
    let Some(log) = play(config, problems, rollout, &answerers, how, dir, worker)? else { return Ok(None) };
    let metrics = metrics(config, &log)?;
    if worker.peers.leads() {
        let report = report(log.episodes.len(), &metrics, &other_templates(config)?);
        json::write(&dir.path().join(METRICS), &report)?;
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
