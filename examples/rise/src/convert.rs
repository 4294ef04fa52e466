//! From episodes to training examples.

use std::path::PathBuf;

use ruminate::datasets::json;
use ruminate::datasets::rise::{Conversion, Log, convert};
use ruminate::run::{ConfigError, Outcome, ReportPage, RunArgs, RunDir, Table, print_json, print_tables};
use serde_json::json;

use crate::config::{Phase, RiseConfig};

/// The examples, in the published layout.
pub(crate) const EXAMPLES: &str = "examples.json";
/// What became of the episodes; written last.
pub(crate) const SUMMARY: &str = "conversion.json";

#[derive(clap::Args)]
pub(crate) struct ConvertArgs {
    /// Logs of `rise collect` or of the published program, instead of conversion.logs
    #[arg(long, value_name = "FILE", num_args = 1..)]
    log: Vec<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &ConvertArgs) -> anyhow::Result<Outcome> {
    if args.run.dry_run {
        return Err(ConfigError::UselessFlag { flag: "--dry-run" }.into());
    }
    let mut config = RiseConfig::of_run(&args.run, Phase::Convert)?;
    if !args.log.is_empty() {
        config.conversion.logs.clone_from(&args.log);
    }
    let log = read(&config.conversion.logs)?;
    let dir = args.run.open(&config)?;
    let conversion = write(&config, &log, &dir)?;
    if args.run.json {
        print_json(&json!({
            "system": "rise", "phase": "convert", "examples": conversion.examples.len(), "counts": conversion,
            "file": dir.path().join(EXAMPLES),
        }))?;
    } else {
        print_tables(&tables(&conversion))?;
    }
    Ok(Outcome::Done)
}

/// The episodes of several logs, one after the other.
fn read(paths: &[PathBuf]) -> anyhow::Result<Log> {
    if paths.is_empty() {
        let reason = "name the log of `rise collect` with --log, such as runs/collect/2_turns.json";
        return Err(ConfigError::invalid(reason).into());
    }
    let mut log = Log::default();
    for path in paths {
        log.episodes.extend(Log::read(path)?.episodes);
    }
    Ok(log)
}

/// Writes the examples of a log, and what became of its episodes.
pub(crate) fn write(config: &RiseConfig, log: &Log, dir: &RunDir) -> anyhow::Result<Conversion> {
    let conversion = convert(log, &*config.data.environment(), &config.conversion.settings);
    json::write(&dir.path().join(EXAMPLES), &conversion.examples)?;
    let mut page = ReportPage::new("Conversion", "From episodes to weighted training examples.");
    for (title, table) in ["Episodes", "Weights"].into_iter().zip(tables(&conversion)) {
        page.heading(title).table(&table);
    }
    page.write(dir.path())?;
    json::write(&dir.path().join(SUMMARY), &conversion)?;
    Ok(conversion)
}

fn tables(conversion: &Conversion) -> [Table; 2] {
    let mut counts = Table::new(["", ""]);
    for (name, count) in conversion.counts() {
        counts.row([name.to_owned(), count.to_string()]);
    }
    counts.row(["mean weight".to_owned(), Table::number(conversion.mean_weight)]);
    let effective = format!("{:.1}", conversion.effective_examples);
    counts.row(["examples of equal weight that are worth as much".to_owned(), effective]);
    let mut weights = Table::new(["reward", "weight", "examples"]);
    for count in &conversion.weights {
        weights.row([count.reward.to_string(), Table::number(count.weight), count.examples.to_string()]);
    }
    [counts, weights]
}
