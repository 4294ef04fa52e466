//! The whole loop: collect, convert, fine-tune, evaluate, and again with the new student.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ruminate::algorithms::Ending;
use ruminate::datasets::environments::Problem;
use ruminate::datasets::json;
use ruminate::datasets::rise::Log;
use ruminate::run::{
    ConfigError, ModelSection, Outcome, ReportPage, RunArgs, RunDirError, Table, Worker, print_json,
    resolve_link,
};
use serde::{Deserialize, Serialize};

use crate::collect::{collect, load, turns};
use crate::config::{Evaluating, EvaluationSection, Phase, Player, RiseConfig, Source, Start};
use crate::convert::{self, EXAMPLES, SUMMARY};
use crate::evaluate::{METRICS, evaluate};
use crate::finetune::fit;
use crate::plan;
use crate::players::warn;

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
    pub(crate) examples: usize,
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

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    let mut config = load(args, Phase::Iterate)?;
    for path in
        [&mut config.model.pretrained, &mut config.iteration.boosted, &mut config.collection.teacher_model]
    {
        *path = path.as_deref().map(resolve_link);
    }
    if args.dry_run {
        return plan::iterate(&config, args);
    }
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    config.chat.date = worker.collective.first(|| anyhow::Ok(config.chat.date))?;
    let material = Material::read(&config)?;
    let warnings = warn(&config, &worker)?;
    let dir = args.open(&config)?;
    let iterations = iterate(&config, &material, dir.path(), &worker)?;
    let done = iterations.finished.len() as u64 == config.iteration.iterations;
    if !worker.collective.is_main_process() {
        return Ok(if done { Outcome::Done } else { Outcome::Interrupted });
    }
    if args.json {
        print_json(&serde_json::json!({
            "system": "rise", "phase": "iterate", "start": iterations.start, "iterations": iterations.finished,
            "warnings": warnings,
        }))?;
    } else {
        table(&config, &iterations).print()?;
    }
    Ok(if done { Outcome::Done } else { Outcome::Interrupted })
}

/// What all iterations share.
pub(crate) struct Material {
    /// Problems to learn from.
    pub(crate) problems: Vec<Problem>,
    /// Problems to evaluate on.
    pub(crate) test: Vec<Problem>,
}

impl Material {
    pub(crate) fn read(config: &RiseConfig) -> anyhow::Result<Self> {
        let test = config.data.read(&config.evaluation.problems, config.evaluation.limit)?;
        Ok(Self { problems: config.data.training()?, test })
    }
}

/// Goes through the iterations, from the first that is not over; fewer than configured when the user asked to stop.
pub(crate) fn iterate(
    config: &RiseConfig,
    material: &Material,
    out: &Path,
    worker: &Worker,
) -> anyhow::Result<Iterations> {
    let mut student = first_student(config)?;
    let mut iterations = Iterations::default();
    // With the window of the first iteration, so that the numbers can be compared.
    match assess(config, &student, 2, material, &out.join("start"), worker)? {
        Some(metrics) => iterations.start = metrics,
        None => return Ok(iterations),
    }
    for number in 1..=config.iteration.iterations {
        let folder = out.join(format!("iteration-{number}"));
        let summary = folder.join("iteration.json");
        let stored = worker.collective.first(|| -> anyhow::Result<Option<Finished>> {
            Ok(if summary.is_file() { Some(json::read(&summary)?) } else { None })
        })?;
        let finished = match stored {
            Some(finished) => finished,
            None => {
                let Some(finished) = iteration(config, number, &student, material, out, worker)? else {
                    break;
                };
                if worker.collective.is_main_process() {
                    json::write(&summary, &finished)?;
                }
                finished
            }
        };
        student = finished.best.clone();
        iterations.finished.push(finished);
        if worker.collective.is_main_process() {
            write_report(config, out, &iterations)?;
        }
    }
    Ok(iterations)
}

/// The model that the first iteration collects with.
pub(crate) fn first_student(config: &RiseConfig) -> anyhow::Result<PathBuf> {
    let Some(base) = &config.model.pretrained else {
        let reason = "model.pretrained: name the checkpoint to start from, such as that of `rise finetune` on solutions";
        return Err(ConfigError::invalid(reason).into());
    };
    match (&config.iteration.boosted, config.iteration.start) {
        (Some(boosted), _) => Ok(boosted.clone()),
        (None, Start::Boosted) => {
            let reason = "iteration.boosted: name the checkpoint that iteration.start = \"boosted\" means";
            Err(ConfigError::invalid(reason).into())
        }
        (None, _) => Ok(base.clone()),
    }
}

/// One iteration; `None` when the user asked to stop.
fn iteration(
    config: &RiseConfig,
    number: u64,
    student: &Path,
    material: &Material,
    out: &Path,
    worker: &Worker,
) -> anyhow::Result<Option<Finished>> {
    let folder = |number: u64| out.join(format!("iteration-{number}"));
    let here = folder(number);
    let section = &config.iteration;
    let turns_before = usize::try_from(number)?;

    let mut collecting = RiseConfig { phase: Some(Phase::Collect), ..config.clone() };
    collecting.collection.student = Some(student.into());
    collecting.collection.models = [vec![Player::Student; turns_before], vec![section.last]].concat();
    collecting.collection.samples = [vec![1; turns_before], vec![section.last_samples]].concat();
    // Another one for each iteration, within what TOML can write.
    let seed = config.collection.seed.wrapping_add(number - 1);
    collecting.collection.seed = seed & i64::MAX.unsigned_abs();
    let dir = worker.open(&here.join("collect"), &collecting)?;
    let path = dir.path().join(collecting.rollout().file_name());
    let stored = worker.collective.first(|| -> anyhow::Result<_> {
        Ok(if path.is_file() { Some(Log::read(&path)?.episodes) } else { None })
    })?;
    let log = match stored {
        Some(episodes) => Log { episodes },
        None => match collect(&collecting, &material.problems, &dir, worker)? {
            Some(log) => log,
            None => return Ok(None),
        },
    };

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

    let start = match section.start {
        Start::Previous => student.to_path_buf(),
        Start::Boosted => section.boosted.clone().unwrap_or_default(),
        Start::Base => config.model.pretrained.clone().unwrap_or_default(),
    };
    let mut training = RiseConfig { phase: Some(Phase::Finetune), ..config.clone() };
    training.model = ModelSection::of_folder(&start);
    let first = if section.merge { 1 } else { number };
    training.finetune.examples = (first..=number).map(|i| folder(i).join("convert").join(EXAMPLES)).collect();
    training.finetune.source = Source::Examples;
    let finetune = here.join("finetune");
    let (fitted, counts) = fit(training, false, worker, |config| worker.open(&finetune, config))?;
    if fitted.ending == Ending::Stopped {
        return Ok(None);
    }

    let best = fitted.best.path;
    let Some(metrics) = assess(config, &best, turns_before + 1, material, &here.join("evaluate"), worker)?
    else {
        return Ok(None);
    };
    let solved = turns(&log).iter().map(|turn| turn.solved).sum();
    Ok(Some(Finished {
        iteration: number,
        student: student.into(),
        start,
        best,
        problems: [log.episodes.len(), solved],
        examples: counts.examples,
        mean_weight: counts.mean_weight,
        metrics,
    }))
}

/// Evaluates a model in all settings, each in a folder of its own; `None` when the user asked to stop.
fn assess(
    config: &RiseConfig,
    model: &Path,
    window: usize,
    material: &Material,
    folder: &Path,
    worker: &Worker,
) -> anyhow::Result<Option<Metrics>> {
    let mut all = Metrics::new();
    for &setting in &config.iteration.evaluate {
        let mut config = RiseConfig { phase: Some(Phase::Evaluate), ..config.clone() };
        config.evaluation.model = Some(model.into());
        config.evaluation.setting = setting;
        config.evaluation.context_window = window;
        let dir = worker.open(&folder.join(setting.name()), &config)?;
        let file = dir.path().join(METRICS);
        let there = worker.collective.first(|| anyhow::Ok(file.is_file()))?;
        if !there && evaluate(&config, &material.test, &dir, worker)?.is_none() {
            return Ok(None);
        }
        let report = worker.collective.first(|| anyhow::Ok(json::read::<serde_json::Value>(&file)?))?;
        all.insert(setting.name().into(), serde_json::from_value(report["metrics"].clone())?);
    }
    Ok(Some(all))
}

/// The iterations side by side.
fn table(config: &RiseConfig, iterations: &Iterations) -> Table {
    let EvaluationSection { turns, samples, .. } = config.evaluation;
    let shown: Vec<(&str, String)> = config
        .iteration
        .evaluate
        .iter()
        .flat_map(|setting| {
            let names = match setting {
                Evaluating::Sequential => vec![
                    "m1@t1".into(),
                    format!("acc@t{turns}"),
                    format!("m1@t{turns}"),
                    format!("p1@t{turns}"),
                    "improved_t1_to_last".into(),
                    "broken_t1_to_last".into(),
                ],
                Evaluating::Oracle => vec![format!("p1@t{turns}")],
                Evaluating::Parallel => vec![format!("m{samples}@t1"), format!("pass{samples}@t1")],
            };
            names.into_iter().map(|name| (setting.name(), name))
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
fn write_report(config: &RiseConfig, out: &Path, iterations: &Iterations) -> Result<PathBuf, RunDirError> {
    let mut page =
        ReportPage::new("RISE", "Iterations of trying again, and of learning from what attempts were worth.");
    page.heading("Iterations")
        .note(
            "Each iteration collects with the student of the one before and trains on what came of it. Solved problems are those with a \
             right attempt in the end, the last turn's included; metrics are those of the new student on the problems of the evaluation.",
        )
        .table(&table(config, iterations));
    let folder = |done: &Finished| format!("iteration-{}", done.iteration);
    let runs: Vec<_> = iterations
        .finished
        .iter()
        .map(|done| (folder(done), out.join(folder(done)).join("finetune")))
        .collect();
    page.heading("Training").curves(&runs, &CURVES);
    let links: Vec<_> = iterations
        .finished
        .iter()
        .flat_map(|done| {
            ["convert", "finetune"].map(|step| {
                (format!("{}/{step}/report.html", folder(done)), format!("{}: {step}", folder(done)))
            })
        })
        .collect();
    page.heading("Runs").links(&links);
    page.write(out)
}

/// Curves of the training.
pub(crate) const CURVES: [(&str, &str); 4] = [
    ("train/rwr_loss", "weighted loss"),
    ("nll", "negative log-likelihood"),
    ("eval/loss", "weighted loss of held-out examples"),
    ("eval/nll", "negative log-likelihood of held-out examples"),
];
