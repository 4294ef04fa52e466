//! Answers of a checkpoint.

use std::path::{Path, PathBuf};

use anyhow::Context;
use ruminate::algorithms::tinythinker::{Accuracy, Asked, Decoding, Response, Student, write_responses};
use ruminate::algorithms::trainer::verify;
use ruminate::algorithms::{Error, KeptTexts, Observer};
use ruminate::datasets::BadRows;
use ruminate::datasets::tinythinker::{Question, questions_of};
use ruminate::models::{Model, Tokenizer};
use ruminate::run::{
    ConfigError, ConsoleObserver, FlagKeys, Outcome, RunArgs, RunDirError, StopFlag, Table, print_json,
    print_tables, resolve_link,
};
use serde_json::json;
use tch::{Device, Kind};

use crate::config::{FLAGS, InferenceSection, Phase, TinyThinkerConfig};

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
    for (flag, given) in [("--resume", args.run.resume), ("--dry-run", args.run.dry_run)] {
        if given {
            return Err(ConfigError::UselessFlag { flag }.into());
        }
    }
    if !args.model.is_dir() {
        let reason = format!("--model: there is no checkpoint folder {}", args.model.display());
        return Err(ConfigError::invalid(reason).into());
    }
    let model = resolve_link(&args.model);
    let run = args.run.configured_as(&model)?;
    let mut config: TinyThinkerConfig = run.load(FlagKeys { precision: &[], ..FLAGS })?;
    if let Some(votes) = args.votes {
        (config.inference.decoding, config.inference.runs) = (Decoding::Random, votes.into());
    }
    config.validate()?;
    let out = run.out.as_deref().ok_or(RunDirError::NoFolder)?;
    let device = run.setup()?;
    let questions = questions(args, &config)?;
    let mut observer = ConsoleObserver::new(run.verbosity());
    std::fs::create_dir_all(out)
        .with_context(|| format!("cannot create {}; choose another --out", out.display()))?;
    let kept = out.join(TEXTS);
    let respond = || respond(&config, &model, (&questions, Some(&kept)), device, &mut observer);
    let responses = match StopFlag::on_ctrl_c()?.interrupt().during(respond) {
        Err(error) if error.downcast_ref().is_some_and(Error::is_interruption) => {
            return Ok(Outcome::Interrupted);
        }
        responses => responses?,
    };
    drop(observer);
    let written = write_responses(out, &published_name(&config, &model), &responses)?;
    let _ = std::fs::remove_file(&kept);
    print(&Accuracy::of(&responses), &written, run.json)?;
    Ok(Outcome::Done)
}

fn questions(args: &InferArgs, config: &TinyThinkerConfig) -> anyhow::Result<Vec<Question>> {
    if let Some(path) = &args.questions {
        return Ok(config.data.dataset.read(path, BadRows::Refuse)?.0);
    }
    let (folder, records) = config.data.read(config.variant())?;
    let path = folder.join(format!("{}.json", args.split));
    let records = if args.split == "valid" { &records.valid } else { &records.test };
    let questions = questions_of(records, &path)?;
    if questions.is_empty() {
        let reason = format!("{} has no questions; name some with --questions", path.display());
        return Err(ConfigError::invalid(reason).into());
    }
    Ok(questions)
}

/// The file of the student's answers while an evaluation is not complete.
const TEXTS: &str = "texts.jsonl";

/// What a checkpoint answers, with the decoding of the configuration. With a file, what it writes is kept there, so that answers that are
/// stopped go on with it.
pub(crate) fn respond(
    config: &TinyThinkerConfig,
    model: &Path,
    (questions, file): (&[Question], Option<&Path>),
    device: Device,
    observer: &mut dyn Observer,
) -> anyhow::Result<Vec<Vec<Response>>> {
    verify(model)?;
    let policy = Model::load(model, Kind::Float, device)?;
    let tokenizer = Tokenizer::open(model)?;
    let asked: Vec<Asked> = questions.iter().map(Asked::from).collect();
    let InferenceSection { decoding, runs, generation } = &config.inference;
    let variant = config.variant();
    Ok(match file {
        Some(file) => {
            let kept = KeptTexts::open(&policy, model, file)?;
            let student = Student { policy: &kept, tokenizer: &tokenizer, variant };
            student.respond(&asked, *decoding, *runs, generation, observer)?
        }
        None => {
            let student = Student { policy: &policy, tokenizer: &tokenizer, variant };
            student.respond(&asked, *decoding, *runs, generation, observer)?
        }
    })
}

/// Name of the file in the published layout.
fn published_name(config: &TinyThinkerConfig, model: &Path) -> String {
    let kind = if config.inference.decoding == Decoding::Greedy { "greedy" } else { "random" };
    // .../round-3/checkpoints/step-20
    let run = model.parent().and_then(Path::parent).and_then(Path::file_name).unwrap_or_default();
    let round = run.to_str().and_then(|name| name.strip_prefix("round-"));
    match (config.phase, round) {
        (Some(Phase::Reflect), Some(round)) => {
            format!("dpo_test_{}_{round}_{kind}.json", config.reflection.training.stages.name())
        }
        _ => format!("sft_test_{}_{kind}.json", config.variant().name()),
    }
}

fn print(accuracy: &Accuracy, written: &[PathBuf], as_json: bool) -> std::io::Result<()> {
    if as_json {
        return print_json(&json!({
            "system": "tinythinker", "questions": accuracy.questions, "accuracy": accuracy.voted,
            "interval": accuracy.interval, "runs": accuracy.runs, "unreadable": accuracy.unreadable,
            "files": written,
        }));
    }
    let number = |x: f64| format!("{x:.3}");
    let mut table = Table::new(["metric", "value", "95 % interval"]);
    let range = accuracy.interval.map(|i| format!("{} to {}", number(i.low), number(i.high)));
    let name = if accuracy.runs.len() > 1 { "accuracy by vote" } else { "accuracy" };
    table.row([name.to_string(), number(accuracy.voted), range.unwrap_or_default()]);
    if accuracy.runs.len() > 1 {
        let mean = accuracy.runs.iter().sum::<f64>() / accuracy.runs.len() as f64;
        table.row([format!("mean of {} runs", accuracy.runs.len()), number(mean), String::new()]);
    }
    table.row(["without a readable answer".into(), number(accuracy.unreadable), String::new()]);
    let mut files = Table::new(["written"]);
    for path in written {
        files.row([path.display().to_string()]);
    }
    print_tables(&[table, files])
}
