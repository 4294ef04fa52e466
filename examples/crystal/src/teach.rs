//! Silver knowledge by a teacher.

use std::path::{Path, PathBuf};

use clap::Args;
use ruminate::algorithms::crystal::read_columns;
use ruminate::datasets::knowledge::{FewShotPrompt, SilverItem, silver_file, statements};
use ruminate::datasets::teacher::{Plan, Request, Teacher, Usage};
use ruminate::datasets::{Split, json};
use ruminate::run::program::{Configuration, files_table};
use ruminate::run::{
    ConfigError, Outcome, RunArgs, RunDirError, StopFlag, Table, TeacherConsole, print_json, print_tables,
};
use serde_json::json;

use crate::config::CrystalConfig;
use crate::imitate::{tell, with_settings};

#[derive(Args)]
pub(crate) struct TeachArgs {
    /// Tasks to write about. Default: data.train_tasks
    #[arg(long, value_name = "TASK", num_args = 1..)]
    tasks: Vec<String>,
    /// Which questions
    #[arg(long, value_name = "SPLIT", num_args = 1.., default_values = ["train", "dev"])]
    splits: Vec<Split>,
    /// Leave out rows that are not questions, and tell how many, instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
    #[command(flatten)]
    run: RunArgs,
}

/// A file to be written.
struct Part {
    task: String,
    split: Split,
    items: Vec<SilverItem>,
    requests: Vec<Request>,
    answers: PathBuf,
}

pub(crate) fn run(args: &TeachArgs) -> anyhow::Result<Outcome> {
    let run = with_settings(&args.run, args.skip_bad_rows);
    run.refuse(&["--resume-from", "--nproc"])?;
    if run.out.is_none() && !run.dry_run {
        return Err(RunDirError::NoFolder.into());
    }
    let config = CrystalConfig::load(&run)?;
    let parts = parts(args, &config, run.out.as_deref().unwrap_or(Path::new(".")), run.quiet)?;
    if run.dry_run {
        return plan(&config, &parts, run.json);
    }
    let teacher = Teacher::new(config.teacher.clone())?;
    let dir = run.open(&config)?;
    let mut console = TeacherConsole::new(run.verbosity(), StopFlag::on_ctrl_c()?);
    if let Some(prices) = config.teaching.prices {
        console = console.with_prices(prices);
    }
    let (mut written, mut rows, mut open) = (vec![], vec![], 0);
    for Part { task, split, mut items, requests, answers } in parts {
        let outcome = teacher.ask(&requests, &answers, |_, _| Ok(()), &mut console)?;
        if outcome.stopped {
            return Ok(Outcome::Interrupted);
        }
        let missing = outcome.answers.iter().filter(|answer| answer.is_none()).count();
        open += missing;
        let mut count = 0;
        for (item, answer) in items.iter_mut().zip(outcome.answers.iter().flatten()) {
            item.knowledges = statements(answer);
            count += item.knowledges.len();
        }
        // A file with holes would be taken for a whole one.
        if missing == 0 {
            let path = silver_file(dir.path(), &config.data.engine, split, &task);
            json::write(&path, &items)?;
            written.push(path);
        }
        rows.push(json!({ "task": task, "split": split, "questions": items.len(), "statements": count, "missing": missing }));
    }
    if run.json {
        print_json(&json!({ "system": "crystal", "stage": "teach", "parts": rows, "files": written }))?;
    } else {
        let mut table = Table::new(["task", "split", "questions", "statements", "without an answer"]);
        for row in &rows {
            let cell = |key: &str| row[key].as_str().map_or_else(|| row[key].to_string(), str::to_owned);
            table.row(["task", "split", "questions", "statements", "missing"].map(cell));
        }
        print_tables(&[table, files_table(&written)])?;
    }
    if open > 0 {
        let reason = format!(
            "questions without an answer: {open}; their files are not written, and --resume asks again"
        );
        return Err(anyhow::anyhow!(reason));
    }
    Ok(Outcome::Done)
}

/// Reads the questions and the prompts.
fn parts(args: &TeachArgs, config: &CrystalConfig, out: &Path, quiet: bool) -> anyhow::Result<Vec<Part>> {
    let tasks = if args.tasks.is_empty() { &config.data.train_tasks } else { &args.tasks };
    let mut parts = vec![];
    for task in tasks {
        let template = &config.teaching.prompts;
        if !template.contains("{task}") {
            return Err(ConfigError::invalid(
                "teaching.prompts: needs {task}, such as data/prompts/{task}.txt",
            )
            .into());
        }
        let prompt = FewShotPrompt::open(Path::new(&template.replace("{task}", task)))?;
        for &split in &args.splits {
            let mut read = read_columns(&config.data, task, split)?;
            tell(&read.notices, quiet);
            if config.teaching.questions > 0 {
                read.items.truncate(config.teaching.questions);
            }
            let request =
                |(i, item)| prompt.request(&format!("{task}/{split}/{i}"), item, &config.teaching.sampling);
            let requests = read.items.iter().enumerate().map(request).collect();
            let answers = out.join(format!("answers.{split}.{task}.jsonl"));
            parts.push(Part { task: task.clone(), split, items: read.items, requests, answers });
        }
    }
    Ok(parts)
}

/// `--dry-run`: what the teacher would be asked.
fn plan(config: &CrystalConfig, parts: &[Part], as_json: bool) -> anyhow::Result<Outcome> {
    let mut table = Table::new(["task", "split", "answers that are there", "requests"]);
    let (mut all, mut usage) = (vec![], Usage::default());
    for part in parts {
        let Plan { stored, to_ask, usage: of, .. } =
            Teacher::plan(&config.teacher, &part.requests, &part.answers)?;
        usage += of;
        table.row([part.task.clone(), part.split.to_string(), stored.to_string(), to_ask.to_string()]);
        all.push(json!({ "task": part.task, "split": part.split, "stored": stored, "to_ask": to_ask }));
    }
    let cost = config.teaching.prices.map(|prices| usage.cost(prices));
    if as_json {
        print_json(&json!({
            "parts": all, "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens, "cost": cost,
        }))?;
        return Ok(Outcome::Done);
    }
    let mut tokens = Table::new(["tokens", ""]);
    tokens.row(["of prompts, about".to_owned(), usage.prompt_tokens.to_string()]);
    tokens.row(["of completions, at most".to_owned(), usage.completion_tokens.to_string()]);
    if let Some(cost) = cost {
        tokens.row(["cost, at most".to_owned(), format!("{cost:.2}")]);
    }
    print_tables(&[table, tokens])?;
    Ok(Outcome::Done)
}
