//! From a data set to the students' records.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ruminate::datasets::teacher::{RequestForm, Teacher, read_answers, write_requests};
use ruminate::datasets::tinythinker::{Exchanged, Reasoned, Splits, TaughtCounts, Teaching, read_items};
use ruminate::run::program::Configuration;
use ruminate::run::{
    Outcome, RunArgs, StopFlag, Table, TeacherConsole, print_result, print_tables, print_teacher_plan,
};
use serde_json::{Map, json};

use crate::config::{Phase, TinyThinkerConfig};

/// The settings that name the texts of a request.
const TEXTS: &str = "teaching.instruction, teaching.few_shot";

#[derive(clap::Args)]
pub(crate) struct TeachArgs {
    /// Answers that were collected before, one file per round, instead of a server: lines of `tinythinker teach`, `[request,
    /// response]` as the published code writes them, or the output of OpenAI's batch interface
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["items", "dry_run"])]
    answers: Vec<PathBuf>,
    /// Ready-made items instead of a server
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    items: Option<PathBuf>,
    /// Write the requests of the round that are open to a file for another sender, instead of asking a server
    #[arg(long, value_name = "FILE", conflicts_with_all = ["answers", "items", "dry_run"])]
    export: Option<PathBuf>,
    /// Form of the exported requests: OpenAI's batch interface, or bare bodies for the published sender
    #[arg(long, value_name = "FORM", default_value = "batch", value_parser = ["batch", "bodies"])]
    form: String,
    /// Take another sender's answers to exported requests, in any of the forms of --answers
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["answers", "items", "dry_run"])]
    import: Vec<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &TeachArgs) -> anyhow::Result<Outcome> {
    let TeachArgs { answers, items, run, .. } = args;
    run.refuse(&["--resume-from", "--nproc"])?;
    let mut config = TinyThinkerConfig::load(run)?;
    config.enter(Phase::Teach)?;
    let (splits, skipped) = config.data.read_splits()?;
    note(skipped.iter().map(|error| format!("left out: {error}")));
    let (section, source) = (&config.teaching, config.data.dataset);
    let others = args.export.is_some() || !args.import.is_empty();
    if run.dry_run {
        let teaching = section.teaching(source, &splits.train, &[]).context(TEXTS)?;
        let file = teaching.answer_path(run.out.as_deref().unwrap_or(Path::new(".")));
        let plan = Teacher::plan(&config.teacher, &teaching.requests(), &file)?;
        print_teacher_plan(&plan, section.prices, "first round", run.json)?;
        return Ok(Outcome::Done);
    }
    if let Some(path) = items {
        let items = read_items(path)?;
        let dir = run.open(&config)?;
        return finish(dir.path(), &config, &splits, &items, None, run.json);
    }
    let read = |path: &PathBuf| -> anyhow::Result<_> { Ok((path.clone(), read_answers(path)?)) };
    let files = answers.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let teacher = (files.is_empty() && !others).then(|| Teacher::new(config.teacher.clone())).transpose()?;
    let mut teaching = section.teaching(source, &splits.train, &files).context(TEXTS)?;
    let dir = run.open(&config)?;
    if others {
        if !exchange(args, &config, &mut teaching, dir.path())? {
            return Ok(Outcome::Done);
        }
    } else if let Some(teacher) = teacher {
        let mut console = TeacherConsole::new(run.verbosity(), StopFlag::on_ctrl_c()?);
        if let Some(prices) = section.prices {
            console = console.with_prices(prices);
        }
        if !teaching.ask(&teacher, dir.path(), &mut console)? {
            return Ok(Outcome::Interrupted);
        }
    } else {
        teaching.take_files(files)?;
    }
    let (items, counts) = teaching.write_items(dir.path())?;
    finish(dir.path(), &config, &splits, &items, Some(&counts), run.json)
}

#[expect(clippy::print_stderr, reason = "what a user should know about the data goes to the terminal")]
fn note(notes: impl Iterator<Item = String>) {
    notes.for_each(|note| eprintln!("note: {note}"));
}

/// Takes another sender's answers and writes what is still to be asked. Returns true when all rounds are answered.
fn exchange(
    args: &TeachArgs,
    config: &TinyThinkerConfig,
    teaching: &mut Teaching<'_>,
    out: &Path,
) -> anyhow::Result<bool> {
    let Exchanged { open, imported } = teaching.exchange(out, &config.teacher.model, &args.import)?;
    if let Some(taken) = &imported {
        let failed = taken.failed.iter().map(|(id, reason)| format!("`{id}` failed: {reason}"));
        let missing = taken.missing.iter().map(|id| format!("`{id}` has no answer in these files"));
        note(failed.chain(missing).take(10));
    }
    if open.is_empty() {
        return Ok(true);
    }
    if let Some(path) = &args.export {
        let form = if args.form == "batch" { RequestForm::Batch } else { RequestForm::Bodies };
        write_requests(path, &config.teacher, &open, form)?;
    }
    let fields = json!({
        "round": teaching.round(), "open": open.len(), "exported": args.export, "imported": imported,
    });
    print_result(Phase::Teach.labels(), &fields, args.run.json)?;
    Ok(false)
}

/// Writes the records, and says how many there are.
fn finish(
    out: &Path,
    config: &TinyThinkerConfig,
    splits: &Splits,
    items: &[Reasoned],
    counts: Option<&TaughtCounts>,
    as_json: bool,
) -> anyhow::Result<Outcome> {
    let records = config.data.write_taught(out, splits, items, counts)?;
    if as_json {
        let sizes: Map<_, _> = records.iter().map(|(of, counts)| (of.name().into(), json!(counts))).collect();
        let fields =
            json!({ "items": items.len(), "counts": counts, "records": sizes, "folder": out.join("sft") });
        print_result(Phase::Teach.labels(), &fields, true)?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(["variant", "recall", "analyze", "summarize", "valid", "test"]);
    for (variant, counts) in &records {
        table.row([variant.name().to_string()].into_iter().chain(counts.map(|rows| rows.to_string())));
    }
    let questions: BTreeSet<String> = items.iter().map(|item| item.question.block()).collect();
    let mut summary =
        Table::new(["items", "questions", "without items", "candidates in order", "rejected", "relabelled"]);
    let of = |counts: &TaughtCounts| {
        [counts.without_items, counts.accepted, counts.rejected, counts.relabelled].map(|n| n.to_string())
    };
    let sizes = [items.len(), questions.len()].map(|count| count.to_string());
    summary.row(sizes.into_iter().chain(counts.map_or_else(Default::default, of)));
    print_tables(&[summary, table])?;
    Ok(Outcome::Done)
}
