//! Answers of a checkpoint.

use std::path::PathBuf;

use ruminate::algorithms::tinythinker::{Accuracy, Decoding, Student, published_name, write_responses};
use ruminate::datasets::Split;
use ruminate::run::program::{Evaluation, files_table};
use ruminate::run::{ConfigError, Outcome, RunArgs, RunDirError, Table, print_json, print_tables};
use serde_json::json;

use crate::config::{Phase, TinyThinkerConfig};

#[derive(clap::Args)]
pub(crate) struct InferArgs {
    /// Checkpoint folder, e.g. runs/acquire/checkpoints/best
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Which questions of the records: valid or test
    #[arg(long, default_value = "test", value_parser = ["valid", "test"])]
    split: String,
    /// Questions from a file instead, in the form of the data set
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,
    /// Sample that many runs of each question, and let them vote
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    votes: Option<u16>,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &InferArgs) -> anyhow::Result<Outcome> {
    let Evaluation { args: run, mut config, model } =
        Evaluation::<TinyThinkerConfig>::new(&args.run, Some(&args.model))?;
    let folder = model.unwrap_or_else(|| args.model.clone());
    if let Some(votes) = args.votes {
        (config.inference.decoding, config.inference.runs) = (Decoding::Random, votes.into());
    }
    let out = run.out.as_deref().ok_or(RunDirError::NoFolder)?;
    if let Some(outcome) = run.launch()? {
        return Ok(outcome);
    }
    let worker = run.worker()?;
    let split = if args.split == "valid" { Split::Dev } else { Split::Test };
    let questions = match &args.questions {
        Some(path) => config.data.read_questions(path)?,
        None => config.data.read_recorded(config.variant(), split)?,
    };
    if questions.is_empty() {
        let reason = format!("the records in {} have none", config.data.records.display());
        return Err(
            ConfigError::invalid(format!("no questions: {reason}; name some with --questions")).into()
        );
    }
    let learner = config.learner(&folder, worker.device)?;
    let kept = worker.evaluated(&learner.policy, &folder, Some(out))?;
    let student = Student { policy: &kept, tokenizer: &learner.tokenizer, variant: learner.variant };
    let mut observer = worker.console();
    let answered =
        worker.interruptible(|| Ok(student.infer(&questions, &config.inference, observer.as_mut())?))?;
    drop(observer);
    let Some(responses) = answered else { return Ok(Outcome::Interrupted) };
    if !worker.collective.is_main_process() {
        return Ok(Outcome::Done);
    }
    let reflected = matches!(config.phase, Some(Phase::Reflect | Phase::Dpo));
    let reflected = reflected.then_some(config.reflection.training.stages);
    let published = published_name(config.variant(), reflected, &folder, config.inference.decoding);
    let written = write_responses(out, &published, &responses)?;
    kept.remove()?;
    let accuracy = Accuracy::of(&responses);
    if run.json {
        let Accuracy { questions, runs, voted, interval, unreadable } = accuracy;
        print_json(&json!({
            "system": "tinythinker", "questions": questions, "accuracy": voted, "interval": interval, "runs": runs,
            "unreadable": unreadable, "files": written,
        }))?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(["metric", "value", "95 % interval"]);
    for row in accuracy.rows() {
        table.row(row);
    }
    print_tables(&[table, files_table(&written)])?;
    Ok(Outcome::Done)
}
