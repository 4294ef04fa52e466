//! The whole loop: collect, convert, fine-tune, evaluate, and again with the new student.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ruminate::algorithms::rwr::{EvaluationConfig, Source};
use ruminate::algorithms::{Networks, Plan};
use ruminate::datasets::environments::Problem;
use ruminate::datasets::json;
use ruminate::datasets::rise::Log;
use ruminate::datasets::{Split, rise::EvaluationSetting};
use ruminate::run::program::{Rounds, Trained, fit_in};
use ruminate::run::{
    DataRow, DryRun, ModelSection, Outcome, PlanPart, PlannedShape, Player, ReportPage, RunArgs, Table,
    Worker, print_json, resolve_link,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{Phase, RiseConfig};
use crate::convert::{self, EXAMPLES, SUMMARY};
use crate::evaluate::{METRICS, evaluate};
use crate::finetune::Finetune;
use crate::{collect, evaluate};

/// Metrics by name, for each setting.
pub(crate) type Metrics = BTreeMap<String, BTreeMap<String, f64>>;

/// An iteration that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Finished {
    /// From 1.
    pub(crate) iteration: u64,
    /// The checkpoint that collected.
    pub(crate) student: PathBuf,
    /// The checkpoint that training started from.
    pub(crate) start: PathBuf,
    /// The checkpoint that came of it.
    pub(crate) best: PathBuf,
    /// Problems, and those of them that were solved in the end.
    pub(crate) problems: [usize; 2],
    /// Examples that were trained on, and their mean weight.
    pub(crate) examples: u64,
    pub(crate) mean_weight: f64,
    /// How good the new student is.
    pub(crate) metrics: Metrics,
}

/// The loop, as far as it has come.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(crate) struct Iterations {
    /// How good the first student is.
    pub(crate) start: Metrics,
    pub(crate) finished: Vec<Finished>,
}

/// Problems to learn from, and problems to evaluate on.
pub(crate) struct Problems {
    pub(crate) training: Vec<Problem>,
    pub(crate) test: Vec<Problem>,
}

impl Problems {
    pub(crate) fn read(config: &RiseConfig) -> anyhow::Result<Self> {
        let test = config.test_problems()?;
        Ok(Self { training: config.training_problems()?, test })
    }
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    let mut config = RiseConfig::of_run(args, Phase::Iterate)?;
    for path in
        [&mut config.model.pretrained, &mut config.iteration.boosted, &mut config.collection.teacher_model]
    {
        *path = path.as_deref().map(resolve_link);
    }
    if args.dry_run {
        return PlanPart::print("rise", plan(&config, args)?, args.json);
    }
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    let template = &config.chat.template;
    let own = [&config.model.pretrained, &config.iteration.boosted].into_iter().flatten();
    let mut players: Vec<Player> = own.map(|folder| Player::checkpoint(folder, template)).collect();
    if config.iteration.last != "student" {
        players.push(config.player(&config.iteration.last)?);
    }
    let warnings = config.share(&players, &worker)?;
    let problems = Problems::read(&config)?;
    let first = first_student(&config)?;
    collecting(&config, 1, &first)?.collecting()?.check()?;
    let dir = args.open(&config)?;
    let iterations = iterate(&config, &problems, dir.path(), &worker)?;
    let done = iterations.finished.len() as u64 == config.iteration.iterations;
    if worker.collective.is_main_process() && args.json {
        print_json(&serde_json::json!({
            "system": "rise", "phase": "iterate", "start": iterations.start, "iterations": iterations.finished,
            "warnings": warnings,
        }))?;
    } else if worker.collective.is_main_process() {
        table(&config, &iterations).print()?;
    }
    Ok(if done { Outcome::Done } else { Outcome::Interrupted })
}

/// Goes through the iterations, from the first that is not over; fewer than configured when the user asked to stop.
pub(crate) fn iterate(
    config: &RiseConfig,
    problems: &Problems,
    out: &Path,
    worker: &Worker,
) -> anyhow::Result<Iterations> {
    let first = first_student(config)?;
    // With the window of the first iteration, so that the numbers can be compared.
    let start = assess(config, &first, 2, &problems.test, &out.join("start"), worker)?;
    let Some(start) = start else { return Ok(Iterations::default()) };
    let rounds = Rounds { name: "iteration", count: config.iteration.iterations, out, worker };
    let iteration = |number, _: &Path, before: &[Finished]| {
        let student = before.last().map_or(&first, |last| &last.best);
        iteration(config, number, student, problems, &rounds)
    };
    let report = |finished: &[Finished]| {
        let iterations = Iterations { start: start.clone(), finished: finished.to_vec() };
        write_report(config, &iterations, &rounds)
    };
    let finished = rounds.run(iteration, report)?;
    Ok(Iterations { start, finished })
}

fn first_student(config: &RiseConfig) -> anyhow::Result<PathBuf> {
    Ok(config.iteration.first_student(config.model.pretrained.as_deref())?)
}

/// The configuration of an iteration's collection.
fn collecting(config: &RiseConfig, number: u64, student: &Path) -> anyhow::Result<RiseConfig> {
    let collection = config.iteration.collection(number, &config.collection, student)?;
    Ok(RiseConfig { phase: Some(Phase::Collect), collection, ..config.clone() })
}

/// One iteration; `None` when the user asked to stop.
fn iteration(
    config: &RiseConfig,
    number: u64,
    student: &Path,
    problems: &Problems,
    rounds: &Rounds<'_>,
) -> anyhow::Result<Option<Finished>> {
    let (here, worker) = (rounds.folder(number), rounds.worker);

    let collecting = collecting(config, number, student)?;
    let rollout = collecting.collecting()?;
    let dir = worker.open(&here.join("collect"), &collecting)?;
    let path = dir.path().join(rollout.config.file_name());
    let stored = worker.collective.first(|| -> anyhow::Result<_> {
        Ok(if path.is_file() { Some(Log::read(&path)?.episodes) } else { None })
    })?;
    let log = match stored {
        Some(episodes) => Some(Log { episodes }),
        None => rollout.play(&problems.training, &dir, worker)?,
    };
    let Some(log) = log else { return Ok(None) };

    let mut converting = RiseConfig { phase: Some(Phase::Convert), ..config.clone() };
    converting.conversion.logs = vec![path];
    let dir = worker.open(&here.join("convert"), &converting)?;
    // The others read the examples when they are there.
    worker.collective.first(|| -> anyhow::Result<()> {
        if !dir.path().join(SUMMARY).is_file() {
            convert::write(&converting, &log, &dir)?;
        }
        Ok(())
    })?;

    let base = config.model.pretrained.as_deref().unwrap_or(student);
    let start = config.iteration.start(base, student);
    let mut training = RiseConfig { phase: Some(Phase::Finetune), ..config.clone() };
    training.model = ModelSection::of_folder(start);
    let first = if config.iteration.merge { 1 } else { number };
    let examples = (first..=number).map(|i| rounds.folder(i).join("convert").join(EXAMPLES));
    (training.finetune.examples, training.finetune.source) = (examples.collect(), Source::Examples);
    let trained = fit_in(&Finetune(None), training, &here.join("finetune"), worker)?;
    let Some(Trained { fitted, data, .. }) = trained.filter(Trained::is_finished) else { return Ok(None) };

    let best = fitted.best.path;
    let window = collecting.collection.models.len();
    let metrics = assess(config, &best, window, &problems.test, &here.join("evaluate"), worker)?;
    let counted = |key: &str| data.as_ref().map_or(&Value::Null, |counts| &counts[key]);
    Ok(metrics.map(|metrics| Finished {
        iteration: number,
        student: student.into(),
        start: start.into(),
        best,
        problems: [log.episodes.len(), log.turns().iter().map(|turn| turn.solved).sum()],
        examples: counted("examples").as_u64().unwrap_or(0),
        mean_weight: counted("mean_weight").as_f64().unwrap_or(0.0),
        metrics,
    }))
}

/// The configuration of an evaluation.
pub(crate) fn evaluating(
    config: &RiseConfig,
    model: &Path,
    setting: EvaluationSetting,
    context_window: usize,
) -> RiseConfig {
    let model = Some(model.into());
    let evaluation =
        EvaluationConfig { model, player: None, setting, context_window, ..config.evaluation.clone() };
    RiseConfig { phase: Some(Phase::Evaluate), evaluation, ..config.clone() }
}

/// Evaluates a model in all settings, each in a folder of its own; `None` when the user asked to stop.
fn assess(
    config: &RiseConfig,
    model: &Path,
    window: usize,
    problems: &[Problem],
    folder: &Path,
    worker: &Worker,
) -> anyhow::Result<Option<Metrics>> {
    let mut all = Metrics::new();
    for &setting in &config.iteration.evaluate {
        let config = evaluating(config, model, setting, window);
        let dir = worker.open(&folder.join(setting.name()), &config)?;
        let file = dir.path().join(METRICS);
        let there = worker.collective.first(|| anyhow::Ok(file.is_file()))?;
        if !there && evaluate(&config, problems, &dir, worker)?.is_none() {
            return Ok(None);
        }
        let report = worker.collective.first(|| anyhow::Ok(json::read::<Value>(&file)?))?;
        all.insert(setting.name().into(), serde_json::from_value(report["metrics"].clone())?);
    }
    Ok(Some(all))
}

/// The plan of the last of the iterations, which takes most, and of all evaluations of one model.
fn plan(config: &RiseConfig, args: &RunArgs) -> anyhow::Result<Vec<PlanPart>> {
    let student = first_student(config)?;
    let collecting = collecting(config, config.iteration.iterations, &student)?;
    let mut parts = vec![collect::plan(&collecting, args)?];
    let PlannedShape { shape, missing } = config.model.planned()?;
    let mut finetune = config.finetune.clone();
    let asked = config.training_problems().map_or(0, |problems| problems.len());
    // Every attempt ends an example, at most.
    let examples = asked * collecting.collection.models.len();
    finetune.trainer.steps = finetune.training.steps(examples, &finetune.trainer, args.processes());
    let plan = Plan::new(&finetune.trainer, Networks::single(&shape), &finetune.longest_passes(), 1.0);
    let problem = missing.map(anyhow::Error::from);
    let problems = problem.iter().map(|error| format!("{error:#}")).collect();
    let task = config.data.benchmark.to_string();
    let data = vec![DataRow { task, split: Split::Train, questions: asked, instances: examples }];
    let plan = plan.across(args.processes());
    let shown = DryRun { plan, data, problems, device: args.setup()?, out: args.out.as_deref() }.shown();
    parts.push(PlanPart { name: "finetune".into(), shown, problem });
    for &setting in &config.iteration.evaluate {
        let config = evaluating(config, &student, setting, config.evaluation.context_window);
        parts.push(evaluate::plan(&config, setting.name(), args)?);
    }
    Ok(parts)
}

/// The iterations side by side.
fn table(config: &RiseConfig, iterations: &Iterations) -> Table {
    let EvaluationConfig { turns, samples, .. } = config.evaluation;
    let settings = config.iteration.evaluate.iter();
    let shown: Vec<(&str, String)> = settings
        .flat_map(|setting| {
            setting.headline(turns, samples).into_iter().map(|metric| (setting.name(), metric))
        })
        .collect();
    let columns = shown.iter().map(|(setting, name)| match *setting {
        "sequential" => name.replace("_t1_to_last", ""),
        setting => format!("{name}, {setting}"),
    });
    let header = ["model", "problems", "solved", "examples", "mean weight"].map(String::from);
    let mut table = Table::new(header.into_iter().chain(columns));
    let values = |metrics: &Metrics| -> Vec<String> {
        let value = |(setting, name): &(&str, String)| metrics.get(*setting)?.get(name).copied();
        shown
            .iter()
            .map(|column| value(column).map_or(String::new(), |value| format!("{value:.3}")))
            .collect()
    };
    let mut start = vec![String::new(); 5];
    start[0] = "start".into();
    table.row([start, values(&iterations.start)].concat());
    for done in &iterations.finished {
        let [problems, solved] = done.problems.map(|count| count.to_string());
        let name = format!("iteration {}", done.iteration);
        let row = vec![name, problems, solved, done.examples.to_string(), Table::number(done.mean_weight)];
        table.row([row, values(&done.metrics)].concat());
    }
    table
}

/// The page about all iterations.
fn write_report(config: &RiseConfig, iterations: &Iterations, rounds: &Rounds<'_>) -> anyhow::Result<()> {
    let mut page =
        ReportPage::new("RISE", "Iterations of trying again, and of learning from what attempts were worth.");
    page.heading("Iterations")
        .note(
            "Each iteration collects with the student of the one before and trains on what came of it. Solved problems are those with a \
             right attempt in the end, the last turn's included; metrics are those of the new student on the problems of the evaluation.",
        )
        .table(&table(config, iterations));
    let names: Vec<String> =
        iterations.finished.iter().map(|done| format!("iteration-{}", done.iteration)).collect();
    let run = |name: &String| (name.clone(), rounds.out.join(name).join("finetune"));
    page.heading("Training").curves(&names.iter().map(run).collect::<Vec<_>>(), &CURVES);
    let links = names.iter().flat_map(|name| {
        ["convert", "finetune"].map(|step| (format!("{name}/{step}/report.html"), format!("{name}: {step}")))
    });
    page.heading("Runs").links(&links.collect::<Vec<_>>());
    page.write(rounds.out)?;
    Ok(())
}

/// Curves of the training.
pub(crate) const CURVES: [(&str, &str); 4] = [
    ("train/rwr_loss", "weighted loss"),
    ("nll", "negative log-likelihood"),
    ("eval/loss", "weighted loss of held-out examples"),
    ("eval/nll", "negative log-likelihood of held-out examples"),
];
