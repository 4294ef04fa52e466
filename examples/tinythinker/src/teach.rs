//! From a data set to the students' records.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ruminate::datasets::json;
use ruminate::datasets::teacher::{Answer, Exchange, Plan, Request, Teacher, match_answers, read_answers};
use ruminate::datasets::tinythinker::{
    Question, Reasoned, Splits, StageRecords, TaughtCounts, Teaching, read_few_shot, read_instruction,
    read_items, system_message,
};
use ruminate::run::program::Configuration;
use ruminate::run::{
    ConfigError, Outcome, RunArgs, RunDirError, StopFlag, Table, TeacherConsole, print_json, print_tables,
};
use serde_json::json;

use crate::config::{Phase, TinyThinkerConfig};

#[derive(clap::Args)]
pub(crate) struct TeachArgs {
    /// Answers that were collected before, one file per round, instead of a server: lines of `tinythinker teach`, or `[request,
    /// response]` as the published code writes them
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "items")]
    answers: Vec<PathBuf>,
    /// Ready-made items instead of a server
    #[arg(long, value_name = "FILE")]
    items: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &TeachArgs) -> anyhow::Result<Outcome> {
    if args.run.out.is_none() && !args.run.dry_run {
        return Err(RunDirError::NoFolder.into());
    }
    let mut config = TinyThinkerConfig::load(&args.run)?;
    config.enter(Phase::Teach)?;
    let (splits, skipped) = config.data.read_splits()?;
    note(&skipped);
    let count = if config.teaching.questions == 0 { usize::MAX } else { config.teaching.questions };
    let train = &splits.train[..splits.train.len().min(count)];
    if args.run.dry_run {
        return plan(&config, train, args);
    }
    if let Some(path) = &args.items {
        let items = read_items(path)?;
        let dir = args.run.open(&config)?;
        return finish(dir.path(), &config, &splits, &items, None, args.run.json);
    }
    let exchanges =
        args.answers.iter().map(|path| Ok(read_answers(path)?)).collect::<anyhow::Result<Vec<_>>>()?;
    let teacher = if exchanges.is_empty() { Some(Teacher::new(config.teacher.clone())?) } else { None };
    let system = system(&config, &exchanges)?;
    let dir = args.run.open(&config)?;
    let out = dir.path();
    let mut console = TeacherConsole::new(args.run.verbosity(), StopFlag::on_ctrl_c()?);
    if let Some(prices) = config.teaching.prices {
        console = console.with_prices(prices);
    }
    let mut teaching = Teaching::new(config.data.dataset, &system, train, config.teaching.settings.clone());
    let mut exchanges = args.answers.iter().zip(exchanges);
    loop {
        let requests = teaching.requests();
        if requests.is_empty() {
            break;
        }
        let answers = match &teacher {
            Some(teacher) => {
                let path = out.join(format!("answers_{}.jsonl", teaching.round()));
                let outcome = teacher.ask(&requests, &path, |_, _| Ok(()), &mut console)?;
                if outcome.stopped {
                    return Ok(Outcome::Interrupted);
                }
                outcome.answers
            }
            None => given(exchanges.next(), &requests)?,
        };
        teaching.take(&answers);
    }
    let (items, counts) = teaching.items();
    json::write(&out.join("items.json"), &items)?;
    let items = read_items(&out.join("items.json"))?;
    finish(out, &config, &splits, &items, Some(&counts), args.run.json)
}

/// The answers of a round that was collected before.
fn given(
    file: Option<(&PathBuf, Vec<Exchange>)>,
    requests: &[Request],
) -> anyhow::Result<Vec<Option<Answer>>> {
    Ok(match file {
        Some((path, exchanges)) => match_answers(path, exchanges, requests)?,
        None => vec![None; requests.len()],
    })
}

#[expect(clippy::print_stderr, reason = "what a user should know about the data goes to the terminal")]
fn note(skipped: &[ruminate::datasets::Error]) {
    for error in skipped {
        eprintln!("note: left out: {error}");
    }
}

/// The system message; that of the answers where there are some, because the order of its examples was drawn.
fn system(config: &TinyThinkerConfig, exchanges: &[Vec<Exchange>]) -> anyhow::Result<String> {
    let first = exchanges.iter().flatten().next();
    if let Some(message) = first.and_then(|exchange| exchange.messages.first()) {
        return Ok(message.content.clone());
    }
    let section = &config.teaching;
    let instruction = read_instruction(&section.instruction).context("teaching.instruction")?;
    let examples = read_few_shot(&section.few_shot, section.settings.seed).context("teaching.few_shot")?;
    Ok(system_message(&instruction, &examples))
}

/// `--dry-run`: what the first round takes.
fn plan(config: &TinyThinkerConfig, train: &[Question], args: &TeachArgs) -> anyhow::Result<Outcome> {
    if !args.answers.is_empty() || args.items.is_some() {
        return Err(ConfigError::UselessFlag { flag: "--dry-run" }.into());
    }
    let system = system(config, &[])?;
    let teaching = Teaching::new(config.data.dataset, &system, train, config.teaching.settings.clone());
    let file = args.run.out.as_deref().unwrap_or(Path::new(".")).join("answers_0.jsonl");
    let Plan { stored, to_ask, usage, .. } = Teacher::plan(&config.teacher, &teaching.requests(), &file)?;
    let cost = config.teaching.prices.map(|prices| usage.cost(prices));
    if args.run.json {
        print_json(&json!({
            "stored": stored, "to_ask": to_ask, "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens, "cost": cost,
        }))?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(["first round", ""]);
    table.row(["answers that are there".to_string(), stored.to_string()]);
    table.row(["requests".to_string(), to_ask.to_string()]);
    table.row(["prompt tokens, about".to_string(), usage.prompt_tokens.to_string()]);
    table.row(["completion tokens, at most".to_string(), usage.completion_tokens.to_string()]);
    if let Some(cost) = cost {
        table.row(["cost, at most".to_string(), format!("{cost:.2}")]);
    }
    table.print()?;
    Ok(Outcome::Done)
}

/// Writes the manifest of the parts and the records, and says how many there are.
fn finish(
    out: &Path,
    config: &TinyThinkerConfig,
    splits: &Splits,
    items: &[Reasoned],
    counts: Option<&TaughtCounts>,
    as_json: bool,
) -> anyhow::Result<Outcome> {
    json::write(&out.join("splits.json"), &splits.ids())?;
    if let Some(counts) = counts {
        json::write(&out.join("teaching.json"), counts)?;
    }
    if items.is_empty() {
        let reason =
            format!("no candidate of the teacher was in order; see {}", out.join("teaching.json").display());
        return Err(ConfigError::invalid(reason).into());
    }
    let mut table = Table::new(["variant", "recall", "analyze", "summarize", "valid", "test"]);
    let mut sizes = serde_json::Map::new();
    let order = config.data.analysis_order;
    for (variant, counts) in StageRecords::write_variants(&out.join("sft"), items, splits, order)? {
        let name = variant.name().to_string();
        table.row([name.clone()].into_iter().chain(counts.map(|rows| rows.to_string())));
        sizes.insert(name, json!(counts));
    }
    if as_json {
        print_json(&json!({
            "system": "tinythinker", "phase": "teach", "items": items.len(), "counts": counts, "records": sizes,
            "folder": out.join("sft"),
        }))?;
        return Ok(Outcome::Done);
    }
    let questions: BTreeSet<String> = items.iter().map(|item| item.question.block()).collect();
    let mut summary =
        Table::new(["items", "questions", "without items", "candidates in order", "rejected", "relabelled"]);
    let count =
        |of: fn(&TaughtCounts) -> usize| counts.map_or(String::new(), |counts| of(counts).to_string());
    summary.row([
        items.len().to_string(),
        questions.len().to_string(),
        count(|counts| counts.without_items),
        count(|counts| counts.accepted),
        count(|counts| counts.rejected),
        count(|counts| counts.relabelled),
    ]);
    print_tables(&[summary, table])?;
    Ok(Outcome::Done)
}
