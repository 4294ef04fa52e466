//! Evaluation of responses: a checkpoint's own, those of all checkpoints of a run, or some that were made elsewhere.

use std::path::{Path, PathBuf};

use anyhow::Context;
use ruminate::algorithms::mario::{Candidate, Evaluated, Evaluator, Respondent, Steps};
use ruminate::algorithms::quark::Condition;
use ruminate::datasets::Split;
use ruminate::datasets::mario::{MarioDataset, MarioRow, ResponseFormat, read_gold};
use ruminate::rewards::mario::Interval;
use ruminate::run::program::{Evaluation, files_table};
use ruminate::run::{
    ConfigError, Outcome, RunArgs, RunDirError, Table, Worker, print_json, print_tables, resolve_link,
};
use serde_json::json;
use tch::Device;

use crate::config::{MarioConfig, Stage};
use crate::train::trained_on;

#[derive(clap::Args)]
pub(crate) struct EvaluateArgs {
    /// File with responses
    #[arg(long, value_name = "FILE", required_unless_present_any = ["gold_data", "model"])]
    responses: Option<PathBuf>,
    /// Judge the gold rows themselves
    #[arg(long, conflicts_with = "responses")]
    gold_data: bool,
    /// Checkpoint that answers the gold rows' questions, greedily, with the configuration of its run unless --config names another;
    /// with --checkpoints, the folder of a run
    #[arg(long, value_name = "DIR", conflicts_with_all = ["responses", "gold_data", "format"])]
    model: Option<PathBuf>,
    /// Which checkpoints of the run answer: all, or steps such as 1000,2000. Step 0 of a run with rewards is its reference
    #[arg(long, value_name = "all|STEPS", requires = "model", conflicts_with_all = ["responses", "gold_data"])]
    checkpoints: Option<Steps>,
    /// What its control tokens ask for. Default: the best, if it has control tokens
    #[arg(long, requires = "model")]
    condition: Option<Asked>,
    /// Splits of the configuration's gold rows, e.g. dev,test
    #[arg(long, value_delimiter = ',', default_value = "test", value_parser = ["dev", "test"])]
    split: Vec<String>,
    /// Rewards by name, e.g. diversity,plausibility-w-qn; short for --set evaluation.rewards=[...]. `trained` stands for those that the
    /// policy learns from. Default: diversity, and those whose models are named
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    rewards: Vec<String>,
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
    // The last checkpoint tells the configuration of a run.
    let last = args.checkpoints.as_ref().and(args.model.as_ref()).map(|run| run.join("checkpoints/last"));
    let model = last.as_deref().or(args.model.as_deref());
    let Evaluation { mut config, model, .. } = Evaluation::<MarioConfig>::new(&args.run, model)?;
    if model.is_some() {
        config.check_writer()?;
    }
    config.data.dataset = args.dataset.unwrap_or(config.data.dataset);
    let named = if args.rewards.is_empty() { &config.evaluation.rewards } else { &args.rewards };
    let trained = if named.iter().any(|name| name == "trained") { trained_on(&config)? } else { vec![] };
    let names = config.rewards.chosen(named, &trained, config.data.dataset)?;
    let condition = args.condition.map(Condition::from);
    let candidates = match (&args.checkpoints, &args.model) {
        (Some(steps), Some(run)) => {
            let reference = config.quark.reference.as_deref().filter(|_| config.stage == Some(Stage::Quark));
            steps.candidates(run, reference, condition)?
        }
        _ => model.into_iter().map(|folder| Candidate { folder, name: None, condition }).collect(),
    };
    let default = args.model.as_ref().filter(|_| last.is_some()).map(|run| run.join("reward"));
    let out = args.run.out.clone().or(default).ok_or(RunDirError::NoFolder)?;
    if args.split.len() > 1 && (candidates.is_empty() || args.gold.is_some()) {
        let reason = "--split: gold rows of --gold, and responses from elsewhere, belong to one split";
        return Err(ConfigError::invalid(reason).into());
    }
    if let Some(outcome) = args.run.launch()? {
        return Ok(outcome);
    }
    let worker = args.run.worker()?;
    let (mut gold, mut gold_file) = (vec![], PathBuf::new());
    for split in &args.split {
        let of = if split == "dev" { Split::Dev } else { Split::Test };
        gold_file = args.gold.clone().unwrap_or_else(|| config.data.file(of));
        gold.push((split.clone(), read_gold(&gold_file, config.data.dataset)?));
    }
    let name = name(args, &gold_file)?;
    let rewards = config.rewards.load(&names, config.data.dataset, worker.device)?;
    let evaluator = Evaluator {
        rewards: &rewards,
        config: &config.evaluation,
        dataset: config.data.dataset,
        collective: &worker.collective,
        out: &out,
    };
    let evaluated = match &gold[..] {
        [one] if candidates.is_empty() => {
            let format = if args.gold_data { ResponseFormat::GoldData } else { args.format };
            let file = args.responses.as_deref().unwrap_or(&gold_file);
            vec![evaluator.given((file, format), &name, one)?]
        }
        _ => {
            let replace = args.checkpoints.is_some();
            let answer = || own(&config, &candidates, (&evaluator, replace), &gold, &worker);
            let Some(evaluated) = worker.interruptible(answer)? else { return Ok(Outcome::Interrupted) };
            evaluated
        }
    };
    if worker.collective.is_main_process() {
        print(&evaluated, config.data.dataset, args.run.json)?;
    }
    Ok(Outcome::Done)
}

/// A checkpoint that answers as it was trained to.
pub(crate) fn respondent(
    config: &MarioConfig,
    folder: &Path,
    condition: Option<Condition>,
    device: Device,
) -> anyhow::Result<Respondent> {
    let folder = resolve_link(folder);
    let context = || {
        let folder = folder.display();
        format!("{folder} cannot answer with this configuration; name that of its run with --config")
    };
    Respondent::open(&folder, config.writing(), config.data.dataset, condition, device).with_context(context)
}

/// Lets checkpoints answer, and judges them one after another. What they write is kept, so that an evaluation that is stopped goes on.
fn own(
    config: &MarioConfig,
    candidates: &[Candidate],
    (evaluator, replace): (&Evaluator<'_>, bool),
    gold: &[(String, Vec<MarioRow>)],
    worker: &Worker,
) -> anyhow::Result<Vec<Evaluated>> {
    let mut observer = worker.console();
    let mut evaluated = vec![];
    for (i, Candidate { folder, name, condition }) in candidates.iter().enumerate() {
        let respondent = respondent(config, folder, *condition, worker.device)?;
        let name = name.as_ref().unwrap_or(&respondent.name);
        let kept = worker.evaluated(&respondent.model, &respondent.folder, Some(evaluator.out))?;
        evaluated.extend(evaluator.own((&respondent, &kept), name, gold, replace, observer.as_mut())?);
        if i + 1 == candidates.len() {
            kept.remove()?;
        }
    }
    Ok(evaluated)
}

/// The name of responses that were made elsewhere.
fn name(args: &EvaluateArgs, gold: &Path) -> Result<String, ConfigError> {
    let file = args.responses.as_deref().unwrap_or(gold);
    let stem = || file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = args.name.clone().or_else(stem).unwrap_or_default();
    if name.contains(['/', '\\']) || name.is_empty() {
        let reason = "--name becomes a part of a file name; give one without slashes";
        return Err(ConfigError::invalid(reason));
    }
    Ok(name)
}

/// One evaluation in full, or a line of each of several.
fn print(evaluated: &[Evaluated], dataset: MarioDataset, as_json: bool) -> std::io::Result<()> {
    match (evaluated, as_json) {
        ([one], true) => print_json(&one.summary(dataset)),
        ([one], false) => print_tables(&tables(one)),
        (all, true) => {
            let line = |one: &Evaluated| {
                let mut line = one.summary(dataset);
                line.insert("split".into(), json!(one.split));
                line
            };
            let results: Vec<_> = all.iter().map(line).collect();
            print_json(&json!({ "system": "mario", "dataset": dataset.name(), "results": results }))
        }
        (all, false) => {
            let rewards = all.first().map_or(&[][..], |one| &one.judged.table.rewards);
            let columns = ["checkpoint", "split", "accuracy"].into_iter();
            let mut table = Table::new(columns.chain(rewards.iter().map(String::as_str)));
            for Evaluated { name, split, judged, .. } in all {
                let scores = judged.summary.scores.iter().take(rewards.len()).map(|(_, mean)| shown(*mean));
                table.row(
                    [name.clone(), split.clone(), shown(Some(judged.summary.accuracy))]
                        .into_iter()
                        .chain(scores),
                );
            }
            let mut files: Vec<PathBuf> = all.iter().flat_map(|one| one.files.clone()).collect();
            files.sort();
            files.dedup();
            print_tables(&[table, files_table(&files)])
        }
    }
}

fn shown(number: Option<f64>) -> String {
    number.map_or("none".into(), |number| format!("{number:.3}"))
}

/// For people.
fn tables(one: &Evaluated) -> [Table; 3] {
    let judged = &one.judged;
    let mut table = Table::new(["metric", "mean", "95 % interval"]);
    let mut row = |name: &str, mean: Option<f64>, interval: Option<Interval>| {
        let range = interval.map_or(String::new(), |i| format!("{:.3} to {:.3}", i.low, i.high));
        table.row([name.to_string(), shown(mean), range]);
    };
    row("accuracy", Some(judged.summary.accuracy), judged.accuracy_interval);
    let scored = judged.summary.scores.iter().zip(&judged.intervals);
    scored.for_each(|((name, mean), interval)| row(name, *mean, *interval));
    if let Some(average) = judged.normalised {
        row("normalised average", Some(average.mean), average.interval);
    }
    let mut counts = Table::new(["responses", "questions", "left out"]);
    counts.row([one.responses, judged.questions.len(), one.skipped].map(|count| count.to_string()));
    [table, counts, files_table(&one.files)]
}
