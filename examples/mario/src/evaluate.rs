//! Responses that were made elsewhere.

use std::path::{Path, PathBuf};

use anyhow::Context;
use ruminate::algorithms::mario::{Asking, Judged, answers, for_dataset, judge};
use ruminate::algorithms::quark::{Condition, ControlTokens, StageSchedule};
use ruminate::algorithms::trainer::{TrainerState, verify};
use ruminate::algorithms::{Error, KeptTexts, Observer};
use ruminate::datasets::Split;
use ruminate::datasets::mario::{MarioDataset, MarioRow, ResponseFormat, read_gold, read_responses};
use ruminate::models::{Model, Tokenizer};
use ruminate::rewards::mario::Interval;
use ruminate::run::{
    ConfigError, ConsoleObserver, FlagKeys, Outcome, RunArgs, RunDirError, StopFlag, Table, print_json,
    print_tables, resolve_link,
};
use serde_json::json;

use crate::config::{FLAGS, MarioConfig};
use crate::rewards;
use tch::{Device, Kind};

#[derive(clap::Args)]
pub(crate) struct EvaluateArgs {
    /// File with responses
    #[arg(long, value_name = "FILE", required_unless_present_any = ["gold_data", "model"])]
    responses: Option<PathBuf>,
    /// Judge the gold rows themselves
    #[arg(long, conflicts_with = "responses")]
    gold_data: bool,
    /// Checkpoint that answers the gold rows' questions, greedily, with the configuration of its run unless --config names another
    #[arg(long, value_name = "DIR", conflicts_with_all = ["responses", "gold_data", "format"])]
    model: Option<PathBuf>,
    /// What its control tokens ask for. Default: the best, if it has control tokens
    #[arg(long, requires = "model")]
    condition: Option<Asked>,
    /// Split of the configuration's gold rows
    #[arg(long, default_value = "test", value_parser = ["dev", "test"])]
    split: String,
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

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Asked {
    /// The best of every reward
    Best,
    /// The worst of every reward
    Worst,
    /// Any, drawn for each response
    Random,
}

impl From<Asked> for Condition {
    fn from(asked: Asked) -> Self {
        match asked {
            Asked::Best => Self::Best,
            Asked::Worst => Self::Worst,
            Asked::Random => Self::Random,
        }
    }
}

pub(crate) fn run(args: &EvaluateArgs) -> anyhow::Result<Outcome> {
    for (flag, given) in [("--resume", args.run.resume), ("--dry-run", args.run.dry_run)] {
        if given {
            return Err(ConfigError::UselessFlag { flag }.into());
        }
    }
    let model = args.model.as_deref().map(resolve_link);
    if let Some(model) = model.as_deref().filter(|model| !model.is_dir()) {
        let reason = format!("--model: there is no checkpoint folder {}", model.display());
        return Err(ConfigError::invalid(reason).into());
    }
    let run = model.as_deref().map_or_else(|| Ok(args.run.clone()), |model| args.run.configured_as(model))?;
    let mut config: MarioConfig = run.load(FlagKeys { precision: &[], ..FLAGS })?;
    config.validate()?;
    if model.is_some() {
        config.check_writer()?;
    }
    config.data.dataset = args.dataset.unwrap_or(config.data.dataset);
    let dataset = config.data.dataset;
    let out = run.out.as_deref().ok_or(RunDirError::NoFolder)?;
    let device = run.setup()?;
    let split = if args.split == "dev" { Split::Dev } else { Split::Test };
    let gold_file = args.gold.clone().unwrap_or_else(|| config.data.file(split));
    let gold = read_gold(&gold_file, dataset)?;
    if let Some(folder) = &model {
        let condition = args.condition.map(Condition::from);
        let verbosity = run.verbosity();
        let mut observer = ConsoleObserver::new(verbosity);
        let kept = out.join(TEXTS);
        std::fs::create_dir_all(out)
            .with_context(|| format!("cannot create {}; choose another --out", out.display()))?;
        let answer = || own(&config, folder, condition, (&gold, Some(&kept)), device, &mut observer);
        let own = match StopFlag::on_ctrl_c()?.interrupt().during(answer) {
            Err(error) if error.downcast_ref().is_some_and(Error::is_interruption) => {
                return Ok(Outcome::Interrupted);
            }
            own => own?,
        };
        let name = if split == Split::Dev { "val" } else { "test" };
        let written = own.judged.write_own(out, name, own.condition, &own.checkpoint)?;
        let _ = std::fs::remove_file(&kept);
        print(&own.judged, (gold.len(), 0), &own.checkpoint, dataset, &written, args.run.json)?;
        return Ok(Outcome::Done);
    }
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
    print(&judged, (given.responses.len(), given.skipped), &name, dataset, &written, args.run.json)?;
    Ok(Outcome::Done)
}

/// Responses of an evaluation that is not over.
const TEXTS: &str = "texts.jsonl";

/// A checkpoint's own responses.
pub(crate) struct Own {
    pub(crate) judged: Judged,
    pub(crate) condition: Option<Condition>,
    /// Its step, or the name of its folder.
    pub(crate) checkpoint: String,
}

/// Lets a checkpoint answer the questions of some rows, and judges the responses. A model without control tokens writes
/// without them; one that has others than those of the configuration is refused. With a file, responses are kept there, so that an
/// evaluation that is stopped goes on with them.
pub(crate) fn own(
    config: &MarioConfig,
    folder: &Path,
    condition: Option<Condition>,
    (rows, file): (&[MarioRow], Option<&Path>),
    device: Device,
    observer: &mut dyn Observer,
) -> anyhow::Result<Own> {
    let folder = resolve_link(folder);
    verify(&folder)?;
    let model = Model::load(&folder, Kind::Float, device)?;
    let tokenizer = Tokenizer::open(&folder)?;
    let dataset = config.data.dataset;
    let quark = for_dataset(config.writing(), dataset);
    let controlled = ControlTokens::of_model(&tokenizer, &quark.control).with_context(|| {
        format!(
            "{} was not trained with this configuration; name that of its run with --config",
            folder.display()
        )
    })?;
    let condition = condition.or(controlled.map(|_| Condition::Best));
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let checkpoint = name.strip_prefix("step-").unwrap_or(&name).to_string();
    let step = match checkpoint
        .parse()
        .ok()
        .or_else(|| TrainerState::of_model(&folder).map(|state| state.step))
    {
        Some(step) => step,
        // All tokens are in use.
        None if condition.is_none() || quark.control.stages == StageSchedule::Classic => u64::MAX,
        None => {
            let reason = format!(
                "--model: the control tokens of {} were added step by step, and nothing tells its step; call the folder step-N",
                folder.display()
            );
            return Err(ConfigError::invalid(reason).into());
        }
    };
    let asking = Asking { condition, step, dataset };
    let responses = match file {
        Some(file) => {
            let model = KeptTexts::open(&model, &folder, file)?;
            answers(&quark, &model, &tokenizer, asking, rows, observer)?
        }
        None => answers(&quark, &model, &tokenizer, asking, rows, observer)?,
    };
    let judged = judge(&responses, &rewards::available(config, device)?, &config.evaluation)?;
    Ok(Own { judged, condition, checkpoint })
}

fn print(
    judged: &Judged,
    (responses, skipped): (usize, usize),
    name: &str,
    dataset: MarioDataset,
    written: &[PathBuf],
    as_json: bool,
) -> std::io::Result<()> {
    let questions = judged.questions.len();
    let columns = || judged.summary.scores.iter().zip(&judged.intervals);
    if as_json {
        let scores: serde_json::Map<String, serde_json::Value> = columns()
            .map(|((name, mean), interval)| (name.clone(), json!({ "mean": mean, "interval": interval })))
            .collect();
        let correlations: serde_json::Map<String, serde_json::Value> =
            judged.table.rewards.iter().cloned().zip(judged.correlations.iter().map(|&c| json!(c))).collect();
        return print_json(&json!({
            "system": "mario", "name": name, "dataset": dataset, "responses": responses, "skipped": skipped,
            "questions": questions, "accuracy": { "mean": judged.summary.accuracy, "interval": judged.accuracy_interval },
            "scores": scores, "correlation_with_accuracy": correlations,
            "normalised_average": judged.normalised, "files": written,
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
    if let Some(average) = judged.normalised {
        row("normalised average", Some(average.mean), average.interval);
    }
    let mut counts = Table::new(["responses", "questions", "left out"]);
    counts.row([responses.to_string(), questions.to_string(), skipped.to_string()]);
    let mut files = Table::new(["written"]);
    for path in written {
        files.row([path.display().to_string()]);
    }
    print_tables(&[table, counts, files])
}
