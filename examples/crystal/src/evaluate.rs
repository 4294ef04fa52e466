//! Evaluation of a checkpoint.

use std::path::{Path, PathBuf};

use clap::Args;
use ruminate::algorithms::crystal::{
    EvaluationConfig, EvaluationReport, KnowledgeSource, ReadItems, evaluate, evaluation_folder, read_eval,
    write_evaluation,
};
use ruminate::datasets::Split;
use ruminate::datasets::knowledge::DataForm;
use ruminate::run::program::{Evaluation, checkpoints_of, files_table};
use ruminate::run::{ConfigError, Outcome, RunArgs, Table, Worker, print_json, print_tables, resolve_link};
use serde_json::{Map, Value, json};

use crate::config::CrystalConfig;
use crate::imitate::{show, with_settings};

#[derive(Args)]
pub(crate) struct EvaluateArgs {
    /// Checkpoint folder, e.g. runs/my-run/checkpoints/best
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Evaluate every checkpoint of the run in --model, the oldest first; each has a folder of its own, RUN_ckp-STEP, beside those of
    /// the others or below --out
    #[arg(long, value_name = "all", value_parser = ["all"])]
    checkpoints: Option<String>,
    /// Which questions: train, dev or test
    #[arg(long, default_value = "dev")]
    split: Split,
    /// Skip the pass without knowledge
    #[arg(long)]
    no_baseline: bool,
    /// Leave out rows that are not questions, and tell how many, instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<Outcome> {
    let run = with_settings(&args.run, args.skip_bad_rows);
    let folders = match &args.checkpoints {
        Some(_) => checkpoints_of(&args.model)?,
        None => vec![args.model.clone()],
    };
    let first = folders.first().unwrap_or(&args.model);
    let mut evaluation = Evaluation::<CrystalConfig>::new(&run, Some(first))?;
    let form = DataForm::of(&evaluation.config.data.data_path);
    if form != DataForm::Questions {
        evaluation.config.evaluation.knowledge = KnowledgeSource::Given;
    }
    let outs =
        folders.iter().map(|folder| results_folder(folder, &run, args)).collect::<Result<Vec<_>, _>>()?;
    if let Some(outcome) = run.launch()? {
        return Ok(outcome);
    }
    let worker = run.worker()?;
    let mut done = vec![];
    for (folder, out) in folders.iter().zip(&outs) {
        let Some(evaluated) = evaluate_one(&evaluation.config, &resolve_link(folder), out, args, &worker)?
        else {
            return Ok(Outcome::Interrupted);
        };
        done.push((folder, evaluated));
    }
    if !worker.collective.is_main_process() {
        return Ok(Outcome::Done);
    }
    let name = |folder: &Path| {
        folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    match &done[..] {
        [(_, (report, written))] if args.checkpoints.is_none() => {
            if run.json {
                print_json(&summary(report, written))?;
            } else {
                print_tables(&tables(report, written))?;
            }
        }
        all if run.json => {
            let of = |(folder, (report, written)): &(&PathBuf, (EvaluationReport, Vec<PathBuf>))| {
                let mut line = summary(report, written);
                line["checkpoint"] = json!(name(folder));
                line
            };
            print_json(
                &json!({ "system": "crystal", "checkpoints": all.iter().map(of).collect::<Vec<_>>() }),
            )?;
        }
        all => {
            let mut table = Table::new(["checkpoint", "acc_weighted", "acc_unweighted", "without knowledge"]);
            for (folder, (report, _)) in all {
                let [weighted, unweighted, bare] =
                    [report.acc_weighted(), report.acc_unweighted(), report.acc_weighted_knowless()]
                        .map(Table::number);
                table.row([name(folder), weighted, unweighted, bare]);
            }
            let written: Vec<PathBuf> = all.iter().flat_map(|(_, (_, written))| written.clone()).collect();
            print_tables(&[table, files_table(&written)])?;
        }
    }
    Ok(Outcome::Done)
}

/// The folder of a checkpoint's results.
fn results_folder(checkpoint: &Path, run: &RunArgs, args: &EvaluateArgs) -> Result<PathBuf, ConfigError> {
    let unknown =
        || ConfigError::invalid("cannot tell the run from --model; name a folder for the results with --out");
    let default = evaluation_folder(checkpoint);
    match (&run.out, &args.checkpoints) {
        (Some(out), None) => Ok(out.clone()),
        (Some(out), Some(_)) => {
            let step = checkpoint.file_name().map(|name| name.to_string_lossy().replace("step-", "ckp-"));
            Ok(out.join(step.unwrap_or_default()))
        }
        (None, _) => default.ok_or_else(unknown),
    }
}

/// Evaluates a checkpoint and writes the files of its results; `None` when the user asked to stop.
fn evaluate_one(
    config: &CrystalConfig,
    folder: &Path,
    out: &Path,
    args: &EvaluateArgs,
    worker: &Worker,
) -> anyhow::Result<Option<(EvaluationReport, Vec<PathBuf>)>> {
    let (model, encoder) = config.open(folder, worker.device)?;
    let ReadItems { items: questions, notices } = read_eval(&config.data, args.split)?;
    show(&notices, worker);
    let given = (DataForm::of(&config.data.data_path) != DataForm::Questions)
        .then(|| file_name(&config.data.data_path));
    let model = worker.evaluated(&model, folder, Some(out))?;
    let mut observer = worker.console();
    let evaluated = worker.interruptible(|| {
        let report = evaluate(&model, &encoder, &questions, &config.evaluation, observer.as_mut())?;
        let bare = EvaluationConfig { knowledge: KnowledgeSource::None, ..config.evaluation.clone() };
        let baseline = || evaluate(&model, &encoder, &questions, &bare, observer.as_mut());
        Ok((report, (!args.no_baseline).then(baseline).transpose()?))
    })?;
    let Some((report, baseline)) = evaluated else { return Ok(None) };
    let mut written = vec![];
    if worker.collective.is_main_process() {
        if let Some(baseline) = &baseline {
            written.extend(write_evaluation(out, baseline, -1, given.as_deref())?);
        }
        written.extend(write_evaluation(out, &report, 0, given.as_deref())?);
        model.remove()?;
    }
    Ok(Some((report, written)))
}

fn file_name(path: &str) -> String {
    Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// For programs.
fn summary(report: &EvaluationReport, written: &[PathBuf]) -> Value {
    let ensembles: Map<String, Value> =
        report.ensembles.iter().map(|of| (of.ensemble.to_string(), json!(of.accuracy))).collect();
    json!({
        "system": "crystal", "acc_weighted": report.acc_weighted(), "acc_unweighted": report.acc_unweighted(),
        "acc_weighted_knowless": report.acc_weighted_knowless(), "ensembles": ensembles, "tasks": report.tasks,
        "files": written,
    })
}

/// For people.
fn tables(report: &EvaluationReport, written: &[PathBuf]) -> [Table; 3] {
    let mut table = Table::new(["task", "questions", "accuracy", "without knowledge"]);
    let mut row = |name: &str, questions: usize, accuracies: [f64; 2]| {
        let [with, without] = accuracies.map(Table::number);
        table.row([name.to_owned(), questions.to_string(), with, without]);
    };
    for task in &report.tasks {
        row(&task.task, task.questions, [task.accuracy, task.accuracy_knowless]);
    }
    let all = report.inference.len();
    row("acc_weighted", all, [report.acc_weighted(), report.acc_weighted_knowless()]);
    row("acc_unweighted", all, [report.acc_unweighted(), report.acc_unweighted_knowless()]);
    let mut ensembles = Table::new(["ensembling", "acc_weighted"]);
    for of in &report.ensembles {
        ensembles.row([of.ensemble.to_string(), Table::number(of.accuracy)]);
    }
    [table, ensembles, files_table(written)]
}
