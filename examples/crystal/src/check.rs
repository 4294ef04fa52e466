//! The data files, before anything is trained on them.

use clap::Args;
use ruminate::algorithms::crystal::{DataFile, check_files};
use ruminate::run::program::Configuration;
use ruminate::run::{Outcome, RunArgs, Table, print_json, print_tables};
use serde_json::json;

use crate::config::CrystalConfig;

#[derive(Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<Outcome> {
    args.run.refuse(&["--resume", "--resume-from", "--dry-run", "--nproc"])?;
    let config = CrystalConfig::load(&args.run)?;
    let files = check_files(&config.data)?;
    let problems = files.iter().filter(|file| file.problem.is_some()).count();
    if args.run.json {
        print_json(&json!({ "system": "crystal", "files": files, "problems": problems }))?;
    } else {
        print_tables(&tables(&files))?;
    }
    Ok(if problems > 0 { Outcome::Failed } else { Outcome::Done })
}

fn tables(files: &[DataFile]) -> Vec<Table> {
    let mut table = Table::new(["task", "split", "file", "rows", "bad rows", "statements", ""]);
    let mut problems = Table::new(["problem", "file"]);
    for file in files {
        let state = if file.problem.is_some() { "cannot be used" } else { "ok" };
        let counts = [file.rows, file.bad_rows, file.statements].map(|count| count.to_string());
        let names = [file.task.clone(), file.split.to_string(), file.kind.to_owned()];
        table.row([&names[..], &counts[..], &[state.to_owned()]].concat());
        if let Some(problem) = &file.problem {
            problems.row([problem.clone(), file.path.display().to_string()]);
        }
    }
    let any = files.iter().any(|file| file.problem.is_some());
    if any { vec![table, problems] } else { vec![table] }
}
