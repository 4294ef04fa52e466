//! How good several turns are.

use std::path::{Path, PathBuf};

use ruminate::algorithms::rwr::Divided;
use ruminate::datasets::chat::OtherTemplate;
use ruminate::datasets::environments::{Benchmark, Compat, Problem};
use ruminate::datasets::json;
use ruminate::datasets::rise::Log;
use ruminate::rewards::rise::{Attempts, TurnMetric, turn_metrics};
use ruminate::run::{
    ConfigError, ModelSection, Outcome, RunArgs, RunDir, RunDirError, Table, Worker, print_json, resolve_link,
};
use serde_json::{Map, Value, json};

use crate::collect::play;
use crate::config::{DataConfig, Evaluating, FLAGS, Phase, RiseConfig};
use crate::plan;
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
    let mut config = load(args, model.as_deref())?;
    if let Some(path) = &args.log {
        let log = Log::read(path)?;
        check_judge(&mut config, args, &log, path)?;
        let metrics = metrics(&config, &log)?;
        if let Some(out) = &args.run.out {
            json::write(&out.join(METRICS), &report(log.episodes.len(), &metrics, &[]))?;
        }
        print(&metrics, log.episodes.len(), &[], path, args.run.json)?;
        return Ok(Outcome::Done);
    }
    config.evaluation.model = model.or(config.evaluation.model);
    config.phase = Some(Phase::Evaluate);
    if args.run.dry_run {
        return plan::evaluate(&config, &args.run);
    }
    if let Some(outcome) = args.run.launch()? {
        return Ok(outcome);
    }
    let worker = args.run.worker()?;
    config.chat.date = worker.collective.first(|| anyhow::Ok(config.chat.date))?;
    let problems = config.data.read(&config.evaluation.problems, config.evaluation.limit)?;
    let warnings = warn(&config, &worker)?;
    let dir = args.run.open(&config)?;
    let Some(metrics) = evaluate(&config, &problems, &dir, &worker)? else {
        return Ok(Outcome::Interrupted);
    };
    if !worker.collective.is_main_process() {
        return Ok(Outcome::Done);
    }
    let log = dir.path().join(config.evaluation.rollout(config.data.compat).file_name());
    print(&metrics, problems.len(), &warnings, &log, args.run.json)?;
    Ok(Outcome::Done)
}

/// Finds out who judged a log, where neither a flag nor a configuration tells, and refuses one whose rewards are another judge's.
fn check_judge(
    config: &mut RiseConfig,
    args: &EvaluateArgs,
    log: &Log,
    path: &Path,
) -> Result<(), ConfigError> {
    if log.episodes.is_empty() {
        // That is what will be said.
        return Ok(());
    }
    let configured = args.run.config.is_some() || args.stored_config().is_some();
    let told = |key: &str| configured || args.run.sets.iter().any(|set| set.trim_start().starts_with(key));
    let DataConfig { benchmark, compat, .. } = config.data;
    let benchmarks = if told("data.benchmark") { vec![benchmark] } else { log.benchmarks() };
    let compats = if told("data.compat") { vec![compat] } else { vec![Compat::Fixed, Compat::Reference] };
    let judges = |benchmarks: &[Benchmark], compats: &[Compat]| -> Vec<(Benchmark, Compat)> {
        let pairs = benchmarks.iter().flat_map(|&of| compats.iter().map(move |&with| (of, with)));
        pairs.filter(|(of, with)| log.agrees_with(&*of.environment(*with))).collect()
    };
    match judges(&benchmarks, &compats)[..] {
        [(of, with), ref others @ ..] if others.iter().all(|(other, _)| *other == of) => {
            (config.data.benchmark, config.data.compat) = (of, with);
            Ok(())
        }
        [] => {
            let others = judges(&log.benchmarks(), &[Compat::Fixed, Compat::Reference]);
            let tried = (benchmarks.first().copied().unwrap_or(benchmark), compats[0]);
            Err(ConfigError::invalid(other_judge(log, path, tried, others.first())))
        }
        _ => Err(ConfigError::invalid(format!(
            "{} may be of gsm8k or of math, and nothing tells which; say so with --set data.benchmark=gsm8k or =math",
            path.display()
        ))),
    }
}

/// The error for a log whose rewards are not those of the judge, with the flags that mend it.
fn other_judge(
    log: &Log,
    path: &Path,
    (benchmark, compat): (Benchmark, Compat),
    right: Option<&(Benchmark, Compat)>,
) -> String {
    let name = |compat| if compat == Compat::Fixed { "fixed" } else { "reference" };
    let path = path.display();
    let settles = match right {
        Some(&(of, with)) => format!("they are those of --set data.benchmark={of} --set data.compat={}", name(with)),
        None => "say who judged it with --set data.benchmark=gsm8k or =math, and --set data.compat=fixed or =reference".into(),
    };
    let rescored = log.rescore(&*benchmark.environment(compat), true);
    match rescored.rewards.first() {
        Some((task, turn, sample, stored, judged)) => format!(
            "{path}: {} of {} stored rewards are not those of data.benchmark = \"{benchmark}\", data.compat = \"{}\": attempt {sample} \
             of task {task} in turn {turn} has {stored}, but is worth {judged}; {settles}",
            rescored.rewards.len(),
            rescored.actions,
            name(compat)
        ),
        None => format!("{path}: its gold answers are neither those of gsm8k nor those of math; {settles}"),
    }
}

impl EvaluateArgs {
    /// The configuration of the run that a log lies in.
    fn stored_config(&self) -> Option<PathBuf> {
        RunDir::stored_config(self.log.as_deref()?.parent()?)
    }
}

/// The configuration: one that is named, that of the evaluation to go on with, or that of the model's or the log's run.
fn load(args: &EvaluateArgs, model: Option<&Path>) -> anyhow::Result<RiseConfig> {
    if args.run.out.is_none() && args.log.is_none() && !args.run.dry_run {
        return Err(RunDirError::NoFolder.into());
    }
    let mut run = match model {
        Some(model) => args.run.configured_as(model)?,
        None => args.run.clone(),
    };
    run.config = run.config.or_else(|| args.stored_config());
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
    let model = ModelSection::of_folder(section.model.as_deref().unwrap_or(Path::new("")));
    let local = Local::open(
        &model,
        (&config.chat, config.chat.template.as_str()),
        &section.generation,
        config.seed,
        worker.device,
    )?;
    let answerer = local.answerer();
    let rollout = section.rollout(config.data.compat);
    let answerers = vec![Divided::new(&answerer, &worker.collective); rollout.samples.len()];
    let how = (section.batch, section.setting.name());
    let Some(log) = play(config, problems, rollout, &answerers, how, dir, worker)? else { return Ok(None) };
    let metrics = metrics(config, &log)?;
    if worker.collective.is_main_process() {
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
