//! Answers of a checkpoint.

use std::path::PathBuf;

use ruminate::algorithms::tinythinker::{Accuracy, Decoding, Student, published_name, write_responses};
use ruminate::datasets::tinythinker::{Question, questions_of};
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
    let questions = questions(args, &config)?;
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
    let reflected = (config.phase == Some(Phase::Reflect)).then_some(config.reflection.training.stages);
    let published = published_name(config.variant(), reflected, &folder, config.inference.decoding);
    let written = write_responses(out, &published, &responses)?;
    kept.remove()?;
    print(&Accuracy::of(&responses), &written, run.json)?;
    Ok(Outcome::Done)
}

fn questions(args: &InferArgs, config: &TinyThinkerConfig) -> anyhow::Result<Vec<Question>> {
    if let Some(path) = &args.questions {
        return Ok(config.data.read_questions(path)?);
    }
    let (folder, records) = config.data.read_records(config.variant())?;
    let path = folder.join(format!("{}.json", args.split));
    let questions = questions_of(if args.split == "valid" { &records.valid } else { &records.test }, &path)?;
    if questions.is_empty() {
        let reason = format!("{} has no questions; name some with --questions", path.display());
        return Err(ConfigError::invalid(reason).into());
    }
    Ok(questions)
}

fn print(accuracy: &Accuracy, written: &[PathBuf], as_json: bool) -> std::io::Result<()> {
    let Accuracy { questions, runs, voted, interval, unreadable } = accuracy;
    if as_json {
        return print_json(&json!({
            "system": "tinythinker", "questions": questions, "accuracy": voted, "interval": interval, "runs": runs,
            "unreadable": unreadable, "files": written,
        }));
    }
    let number = |x: f64| format!("{x:.3}");
    let mut table = Table::new(["metric", "value", "95 % interval"]);
    let range = interval.map(|i| format!("{} to {}", number(i.low), number(i.high))).unwrap_or_default();
    if runs.len() > 1 {
        table.row(["accuracy by vote".into(), number(*voted), range]);
        let mean = runs.iter().sum::<f64>() / runs.len() as f64;
        table.row([format!("mean of {} runs", runs.len()), number(mean), String::new()]);
    } else {
        table.row(["accuracy".into(), number(*voted), range]);
    }
    table.row(["without a readable answer".into(), number(*unreadable), String::new()]);
    print_tables(&[table, files_table(written)])
}
