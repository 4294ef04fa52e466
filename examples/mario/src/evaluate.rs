//! Responses that were made elsewhere.

use std::path::PathBuf;

use ruminate::algorithms::mario::{Judged, judge};
use ruminate::datasets::Split;
use ruminate::datasets::mario::{MarioDataset, ResponseFormat, Responses, read_gold, read_responses};
use ruminate::rewards::mario::Interval;
use ruminate::run::{ConfigError, FlagKeys, Outcome, RunArgs, RunDirError, Table, print_json, print_tables};
use serde_json::json;

use crate::config::{FLAGS, MarioConfig};
use crate::rewards;

#[derive(clap::Args)]
pub(crate) struct EvaluateArgs {
    /// File with responses
    #[arg(long, value_name = "FILE", required_unless_present = "gold_data")]
    responses: Option<PathBuf>,
    /// Judge the gold rows themselves
    #[arg(long, conflicts_with = "responses")]
    gold_data: bool,
    /// Format of the file: jsonl (GPT-3, Flan-T5), llama_json, quark_json, csv or json
    #[arg(long, default_value = "jsonl")]
    format: ResponseFormat,
    /// Gold rows. Default: the test rows of the configuration
    #[arg(long, value_name = "FILE")]
    gold: Option<PathBuf>,
    /// Data set. Default: that of the configuration
    #[arg(long)]
    dataset: Option<MarioDataset>,
    /// What to call the responses in the result files. Default: the name of the file
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<Outcome> {
    for (flag, given) in [("--resume", args.run.resume), ("--dry-run", args.run.dry_run)] {
        if given {
            return Err(ConfigError::UselessFlag { flag }.into());
        }
    }
    let mut config: MarioConfig = args.run.load(FlagKeys { precision: &[], ..FLAGS })?;
    config.validate()?;
    config.data.dataset = args.dataset.unwrap_or(config.data.dataset);
    let dataset = config.data.dataset;
    let out = args.run.out.as_deref().ok_or(RunDirError::NoFolder)?;
    let device = args.run.setup()?;
    let gold_file = args.gold.clone().unwrap_or_else(|| config.data.file(Split::Test));
    let gold = read_gold(&gold_file, dataset)?;
    let format = if args.gold_data { ResponseFormat::GoldData } else { args.format };
    let file = args.responses.as_deref().unwrap_or(&gold_file);
    let given = read_responses(file, format, dataset, &gold)?;
    let stem = || file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = args.name.clone().or_else(stem).unwrap_or_default();
    if name.contains(['/', '\\']) || name.is_empty() {
        return Err(
            ConfigError::invalid("--name becomes a part of a file name; give one without slashes").into()
        );
    }
    let rewards = rewards::available(&config, device)?;
    let judged = judge(&given.responses, &rewards, &config.evaluation)?;
    let written = judged.write(out, &name)?;
    print(&judged, &given, &name, dataset, &written, args.run.json)?;
    Ok(Outcome::Done)
}

fn print(
    judged: &Judged,
    given: &Responses,
    name: &str,
    dataset: MarioDataset,
    written: &[PathBuf],
    as_json: bool,
) -> std::io::Result<()> {
    let (responses, questions) = (given.responses.len(), judged.questions.len());
    let columns = || judged.summary.scores.iter().zip(&judged.intervals);
    if as_json {
        let scores: serde_json::Map<String, serde_json::Value> = columns()
            .map(|((name, mean), interval)| (name.clone(), json!({ "mean": mean, "interval": interval })))
            .collect();
        let correlations: serde_json::Map<String, serde_json::Value> =
            judged.table.rewards.iter().cloned().zip(judged.correlations.iter().map(|&c| json!(c))).collect();
        return print_json(&json!({
            "system": "mario", "name": name, "dataset": dataset, "responses": responses, "skipped": given.skipped,
            "questions": questions, "accuracy": { "mean": judged.summary.accuracy, "interval": judged.accuracy_interval },
            "scores": scores, "correlation_with_accuracy": correlations,
            "normalised_average":
                judged.normalised.map(|(mean, interval)| json!({ "mean": mean, "interval": interval })),
            "files": written,
        }));
    }
    let mut table = Table::new(["metric", "mean", "95 % interval"]);
    let mut row = |name: &str, mean: Option<f64>, interval: Option<Interval>| {
        let number = |x: f64| format!("{x:.3}");
        let range = interval.map_or(String::new(), |i| format!("{} to {}", number(i.low), number(i.high)));
        table.row([name.to_string(), mean.map_or("none".into(), number), range]);
    };
    row("accuracy", Some(judged.summary.accuracy), judged.accuracy_interval);
    columns().for_each(|((name, mean), interval)| row(name, *mean, *interval));
    if let Some((mean, interval)) = judged.normalised {
        row("normalised average", Some(mean), interval);
    }
    let mut counts = Table::new(["responses", "questions", "left out"]);
    counts.row([responses.to_string(), questions.to_string(), given.skipped.to_string()]);
    let mut files = Table::new(["written"]);
    for path in written {
        files.row([path.display().to_string()]);
    }
    print_tables(&[table, counts, files])
}
