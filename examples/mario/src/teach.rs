//! Silver rationales of a teacher, or the answers of a local model to the same prompts.

use std::path::{Path, PathBuf};

use clap::Args;
use ruminate::algorithms::mario::Greedy;
use ruminate::datasets::mario::{
    FewShotTeaching, LocalAnswers, Silver, TeacherRow, TeachingCounts, completions, kept_rows, read_teacher,
    write_raw,
};
use ruminate::datasets::teacher::{Answer, Teacher, match_answers, read_answers};
use ruminate::datasets::{Split, json as files};
use ruminate::models::{Model, Tokenizer};
use ruminate::run::program::{Configuration, files_table};
use ruminate::run::{
    ConfigError, Outcome, RunArgs, StopFlag, Table, TeacherConsole, print_json, print_tables,
    print_teacher_plan,
};
use serde_json::json;
use tch::Kind;

use crate::config::MarioConfig;

#[derive(Args)]
pub(crate) struct TeachArgs {
    /// Which questions: train, dev or test. Responses to those of training become the silver data
    #[arg(long, default_value = "train")]
    split: Split,
    /// Answers that were collected before, instead of a server: lines of `mario teach`, or `[request, response]`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["responses", "model"])]
    answers: Option<PathBuf>,
    /// Responses that were parsed before, such as train_gpt3_responses.jsonl: nobody is asked, and what is right is kept
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    responses: Option<PathBuf>,
    /// Hugging Face folder of a model that answers here, such as flan-t5-large, instead of a server
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What to call the teacher in the names of files. Default: teaching.name, or the name of the model's folder
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    run: RunArgs,
}

/// Responses as rows, and how many requests have none.
struct Taught {
    rows: Vec<TeacherRow>,
    failed: usize,
}

pub(crate) fn run(args: &TeachArgs) -> anyhow::Result<Outcome> {
    args.run.refuse(&["--resume-from"])?;
    if args.model.is_none() {
        args.run.refuse(&["--nproc"])?;
    }
    let mut config = MarioConfig::load(&args.run)?;
    let folder =
        args.model.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    config.teaching.name = args.name.clone().or(folder).unwrap_or(config.teaching.name);
    config.teaching.validate().map_err(ConfigError::invalid)?;
    let dataset = config.data.dataset;
    if let Some(file) = &args.responses {
        refuse_dry_run(args)?;
        let rows = read_teacher(file, dataset)?;
        let dir = args.run.open(&config)?;
        return finish(args, &config, &Taught { rows, failed: 0 }, dir.path());
    }
    let teaching = FewShotTeaching::read(&config.teaching, dataset, args.split, args.model.is_some())?;
    if let Some(model) = &args.model {
        refuse_dry_run(args)?;
        return local(args, &config, &teaching, model);
    }
    let requests = teaching.requests(&config.teaching);
    let stored = format!("answers_{}.jsonl", args.split);
    if args.run.dry_run {
        let file = args.run.out.as_deref().unwrap_or(Path::new(".")).join(stored);
        let plan = Teacher::plan(&config.teacher, &requests, &file)?;
        print_teacher_plan(&plan, config.teaching.prices, "teacher", args.run.json)?;
        return Ok(Outcome::Done);
    }
    let given = args.answers.as_ref().map(|file| match_answers(file, read_answers(file)?, &requests));
    let given = given.transpose()?;
    let teacher = if given.is_none() { Some(Teacher::new(config.teacher.clone())?) } else { None };
    let dir = args.run.open(&config)?;
    let answers = match (given, teacher) {
        (None, Some(teacher)) => {
            let mut console = TeacherConsole::new(args.run.verbosity(), StopFlag::on_ctrl_c()?);
            if let Some(prices) = config.teaching.prices {
                console = console.with_prices(prices);
            }
            let check = |_: &_, answer: &Answer| teaching.check(answer.text());
            let outcome = teacher.ask(&requests, &dir.path().join(stored), check, &mut console)?;
            if outcome.stopped {
                return Ok(Outcome::Interrupted);
            }
            outcome.answers
        }
        (given, _) => given.unwrap_or_default(),
    };
    let failed = answers.iter().filter(|answer| answer.is_none()).count();
    let rows = teaching.rows(&completions(&answers), config.teaching.leading);
    finish(args, &config, &Taught { rows, failed }, dir.path())
}

fn refuse_dry_run(args: &TeachArgs) -> Result<(), ConfigError> {
    if args.run.dry_run { Err(ConfigError::UselessFlag { flag: "--dry-run" }) } else { Ok(()) }
}

/// Lets a model answer here. What it writes is kept until all is done, so that it goes on after an interruption.
fn local(
    args: &TeachArgs,
    config: &MarioConfig,
    teaching: &FewShotTeaching,
    folder: &Path,
) -> anyhow::Result<Outcome> {
    if let Some(outcome) = args.run.launch()? {
        return Ok(outcome);
    }
    let worker = args.run.worker()?;
    let (model, tokenizer) = (Model::load(folder, Kind::Float, worker.device)?, Tokenizer::open(folder)?);
    let dir = args.run.open(config)?;
    let kept = worker.evaluated(&model, folder, Some(dir.path()))?;
    let LocalAnswers { max_length, min_length, batch_size } = config.teaching.local;
    let greedy = Greedy { max_length, min_length, batch_size, clean_up: false };
    let prompts = teaching.prompts();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let mut observer = worker.console();
    let texts = worker
        .interruptible(|| Ok(greedy.texts(&kept, &tokenizer, &prompts, ("writing", observer.as_mut()))?))?;
    let Some(texts) = texts else { return Ok(Outcome::Interrupted) };
    if !worker.collective.is_main_process() {
        return Ok(Outcome::Done);
    }
    let texts: Vec<Option<String>> = texts.into_iter().map(Some).collect();
    let rows = teaching.rows(&texts, config.teaching.leading);
    let outcome = finish(args, config, &Taught { rows, failed: 0 }, dir.path())?;
    kept.remove()?;
    Ok(outcome)
}

/// Writes the responses, and of training questions what is right, and says how many there are.
fn finish(args: &TeachArgs, config: &MarioConfig, taught: &Taught, out: &Path) -> anyhow::Result<Outcome> {
    let Taught { rows, failed } = taught;
    let (dataset, teaching) = (config.data.dataset, &config.teaching);
    let mut written = vec![];
    if args.responses.is_none() {
        let name = format!("{}_{}_responses.jsonl", args.split, teaching.name);
        let file = out.join(dataset.name()).join(&teaching.name).join(name);
        files::write_lines(&file, rows)?;
        written.push(file);
    }
    let counts = TeachingCounts::of(rows);
    let mut silver = Silver::default();
    if args.split == Split::Train {
        silver = kept_rows(teaching, dataset, rows)?;
        written.extend(write_raw(out, teaching, dataset, &silver)?);
    }
    if args.run.json {
        print_json(&json!({
            "system": "mario", "dataset": dataset.name(), "split": args.split.to_string(), "counts": counts, "failed": failed,
            "kept": { "train": silver.train.len(), "dev": silver.dev.len() }, "files": written,
        }))?;
        return Ok(Outcome::Done);
    }
    let mut table =
        Table::new(["questions", "responses", "failed", "with a label", "right", "accuracy", "kept"]);
    let TeachingCounts { rows, questions, with_label, correct, accuracy } = counts;
    let numbers = [questions, rows, *failed, with_label, correct].map(|count| count.to_string());
    table.row(numbers.into_iter().chain([format!("{accuracy:.2}"), silver.train.len().to_string()]));
    print_tables(&[table, files_table(&written)])?;
    Ok(Outcome::Done)
}
