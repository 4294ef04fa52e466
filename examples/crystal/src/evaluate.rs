//! Evaluation of a checkpoint.

use std::path::{Path, PathBuf};

use clap::Args;
use ruminate::algorithms::crystal::{
    EvaluationConfig, EvaluationReport, KnowledgeSource, ReadItems, evaluate, evaluation_folder, read_eval,
    write_evaluation,
};
use ruminate::datasets::Split;
use ruminate::datasets::knowledge::DataForm;
use ruminate::run::program::{Evaluation, files_table};
use ruminate::run::{ConfigError, Outcome, RunArgs, Table, print_json, print_tables};
use serde_json::{Map, Value, json};

use crate::config::CrystalConfig;
use crate::imitate::{show, with_settings};

#[derive(Args)]
pub(crate) struct EvaluateArgs {
    /// Checkpoint folder, e.g. runs/my-run/checkpoints/best
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
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
    let mut evaluation = Evaluation::<CrystalConfig>::new(&run, Some(&args.model))?;
    let config = &mut evaluation.config;
    let form = DataForm::of(&config.data.data_path);
    if form != DataForm::Questions {
        config.evaluation.knowledge = KnowledgeSource::Given;
    }
    let unknown =
        || ConfigError::invalid("cannot tell the run from --model; name a folder for the results with --out");
    let out = run.out.clone().or_else(|| evaluation_folder(&args.model)).ok_or_else(unknown)?;
    if let Some(outcome) = run.launch()? {
        return Ok(outcome);
    }
    let worker = run.worker()?;
    let folder = evaluation.model.as_deref().unwrap_or(&args.model);
    let (model, encoder) = config.open(folder, worker.device)?;
    let ReadItems { items: questions, notices } = read_eval(&config.data, args.split)?;
    show(&notices, &worker);
    let given = (form != DataForm::Questions).then(|| file_name(&config.data.data_path));
    let model = worker.evaluated(&model, folder, Some(&out))?;
    let mut observer = worker.console();
    let evaluated = worker.interruptible(|| {
        let report = evaluate(&model, &encoder, &questions, &config.evaluation, observer.as_mut())?;
        let bare = EvaluationConfig { knowledge: KnowledgeSource::None, ..config.evaluation.clone() };
        let baseline = || evaluate(&model, &encoder, &questions, &bare, observer.as_mut());
        Ok((report, (!args.no_baseline).then(baseline).transpose()?))
    })?;
    drop(observer);
    let Some((report, baseline)) = evaluated else { return Ok(Outcome::Interrupted) };
    if !worker.collective.is_main_process() {
        return Ok(Outcome::Done);
    }
    let mut written = vec![];
    if let Some(baseline) = &baseline {
        written.extend(write_evaluation(&out, baseline, -1, given.as_deref())?);
    }
    written.extend(write_evaluation(&out, &report, 0, given.as_deref())?);
    model.remove()?;
    if run.json {
        print_json(&summary(&report, &written))?;
    } else {
        print_tables(&tables(&report, &written))?;
    }
    Ok(Outcome::Done)
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
