//! What responses are worth: a checkpoint's own, those of all checkpoints of a run, or some that were made elsewhere.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use ruminate::algorithms::Collective;
use ruminate::algorithms::mario::{Judged, Respondent, checkpoint_steps, judge_across, rewards_named};
use ruminate::algorithms::quark::Condition;
use ruminate::datasets::Split;
use ruminate::datasets::mario::{MarioDataset, MarioRow, ResponseFormat, read_gold, read_responses};
use ruminate::rewards::mario::{Interval, RewardName, RewardSet};
use ruminate::run::program::{Evaluation, files_table};
use ruminate::run::{
    ConfigError, Outcome, RunArgs, RunDirError, Table, Worker, print_json, print_tables, resolve_link,
};
use serde_json::{Map, Value, json};
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
    #[arg(long, value_name = "all|STEPS", requires = "model")]
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

/// Which checkpoints of a run.
#[derive(Debug, Clone)]
enum Steps {
    All,
    Some(Vec<u64>),
}

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let step = |step: &str| step.trim().parse().map_err(|_| "expected all, or steps such as 1000,2000".into());
        text.split(',').map(step).collect::<Result<_, String>>().map(Self::Some)
    }
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

/// A model that answers: where it is, what it is called, and what it is asked for.
struct Candidate {
    folder: PathBuf,
    name: Option<String>,
    condition: Option<Condition>,
}

/// Judged responses, and where they were written.
struct Evaluated {
    name: String,
    split: String,
    judged: Judged,
    responses: usize,
    skipped: usize,
    files: Vec<PathBuf>,
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
    let names = reward_names(args, &config)?;
    let candidates = candidates(args, &config, model)?;
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
    let mut gold = vec![];
    for split in &args.split {
        let of = if split == "dev" { Split::Dev } else { Split::Test };
        let file = args.gold.clone().unwrap_or_else(|| config.data.file(of));
        gold.push((split.as_str(), read_gold(&file, config.data.dataset)?, file));
    }
    let load = || Ok(config.rewards.load(&names, config.data.dataset, worker.device)?);
    let evaluated = match (&gold[..], &candidates[..]) {
        ([(split, rows, file)], []) => vec![given(args, &config, (split, rows, file), load, &worker, &out)?],
        _ => {
            let rewards = load()?;
            let answer = || own(args, &config, &candidates, &gold, &rewards, &worker, &out);
            let Some(evaluated) = worker.interruptible(answer)? else { return Ok(Outcome::Interrupted) };
            evaluated
        }
    };
    if worker.collective.is_main_process() {
        print(&evaluated, config.data.dataset, args.run.json)?;
    }
    Ok(Outcome::Done)
}

/// The rewards to judge by. Accuracy has columns of its own.
fn reward_names(args: &EvaluateArgs, config: &MarioConfig) -> anyhow::Result<Vec<RewardName>> {
    let names = if args.rewards.is_empty() { &config.evaluation.rewards } else { &args.rewards };
    let mut rewards = vec![];
    for name in names {
        match name.as_str() {
            "trained" => rewards.extend(trained_on(config)?),
            name => rewards.extend(rewards_named("evaluation.rewards", [name], config.data.dataset)?),
        }
    }
    if names.is_empty() {
        rewards = config.rewards.available();
    }
    rewards.retain(|reward| *reward != RewardName::Accuracy);
    // What is missing shows before anything is loaded.
    config.rewards.behind(&rewards)?;
    Ok(rewards)
}

/// The models that answer, in the order of their steps.
fn candidates(
    args: &EvaluateArgs,
    config: &MarioConfig,
    model: Option<PathBuf>,
) -> anyhow::Result<Vec<Candidate>> {
    let condition = args.condition.map(Condition::from);
    let (Some(steps), Some(run)) = (&args.checkpoints, &args.model) else {
        return Ok(model.into_iter().map(|folder| Candidate { folder, name: None, condition }).collect());
    };
    let mut there = checkpoint_steps(run)?;
    let reference = config.quark.reference.as_ref().filter(|_| config.stage == Some(Stage::Quark));
    if reference.is_some() && !there.contains(&0) {
        there.insert(0, 0);
    }
    let chosen = match steps {
        Steps::All => &there,
        Steps::Some(steps) => steps,
    };
    let candidate = |&step: &u64| {
        if !there.contains(&step) {
            let known: Vec<String> = there.iter().map(u64::to_string).collect();
            let reason = format!("--checkpoints: there is no step {step}; the run has {}", known.join(", "));
            return Err(ConfigError::invalid(reason).into());
        }
        let (folder, condition) = match reference.filter(|_| step == 0) {
            // It has no control tokens.
            Some(reference) => (resolve_link(reference), None),
            None => (run.join(format!("checkpoints/step-{step}")), condition),
        };
        Ok(Candidate { folder, name: Some(step.to_string()), condition })
    };
    chosen.iter().map(candidate).collect()
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
    args: &EvaluateArgs,
    config: &MarioConfig,
    candidates: &[Candidate],
    gold: &[(&str, Vec<MarioRow>, PathBuf)],
    rewards: &RewardSet,
    worker: &Worker,
    out: &Path,
) -> anyhow::Result<Vec<Evaluated>> {
    let mut observer = worker.console();
    let mut evaluated = vec![];
    for (i, Candidate { folder, name, condition }) in candidates.iter().enumerate() {
        let respondent = respondent(config, folder, *condition, worker.device)?;
        let name = name.as_ref().unwrap_or(&respondent.name);
        let kept = worker.evaluated(&respondent.model, &respondent.folder, Some(out))?;
        for (split, rows, _) in gold {
            let responses = respondent.answers(&kept, rows, observer.as_mut())?;
            let judged = judge_across(&responses, rewards, &config.evaluation, &worker.collective)?;
            let of = if *split == "dev" { "val" } else { "test" };
            let condition = respondent.condition();
            let files = on_main(&worker.collective, || match args.checkpoints {
                Some(_) => judged.replace_own(out, of, condition, name),
                None => judged.write_own(out, of, condition, name),
            })?;
            let (name, split) = (name.clone(), (*split).to_owned());
            evaluated.push(Evaluated { name, split, judged, responses: rows.len(), skipped: 0, files });
        }
        if i + 1 == candidates.len() {
            kept.remove()?;
        }
    }
    Ok(evaluated)
}

/// Judges responses that were made elsewhere.
fn given(
    args: &EvaluateArgs,
    config: &MarioConfig,
    (split, gold, file): (&str, &[MarioRow], &Path),
    rewards: impl FnOnce() -> anyhow::Result<RewardSet>,
    worker: &Worker,
    out: &Path,
) -> anyhow::Result<Evaluated> {
    let format = if args.gold_data { ResponseFormat::GoldData } else { args.format };
    let file = args.responses.as_deref().unwrap_or(file);
    let given = read_responses(file, format, config.data.dataset, gold)?;
    let stem = || file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = args.name.clone().or_else(stem).unwrap_or_default();
    if name.contains(['/', '\\']) || name.is_empty() {
        let reason = "--name becomes a part of a file name; give one without slashes";
        return Err(ConfigError::invalid(reason).into());
    }
    let judged = judge_across(&given.responses, &rewards()?, &config.evaluation, &worker.collective)?;
    let files = on_main(&worker.collective, || judged.write(out, &name))?;
    let (responses, skipped) = (given.responses.len(), given.skipped);
    Ok(Evaluated { name, split: split.into(), judged, responses, skipped, files })
}

/// Rank 0 writes.
fn on_main(
    collective: &Collective,
    write: impl FnOnce() -> ruminate::algorithms::Result<Vec<PathBuf>>,
) -> ruminate::algorithms::Result<Vec<PathBuf>> {
    if collective.is_main_process() { write() } else { Ok(vec![]) }
}

/// One evaluation in full, or a line of each of several.
fn print(evaluated: &[Evaluated], dataset: MarioDataset, as_json: bool) -> std::io::Result<()> {
    match (evaluated, as_json) {
        ([one], true) => print_json(&summary(one, dataset)),
        ([one], false) => print_tables(&tables(one)),
        (all, true) => {
            let line = |one: &Evaluated| {
                let mut line = summary(one, dataset);
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
                table.row([name.clone(), split.clone(), shown(Some(judged.summary.accuracy))].into_iter().chain(scores));
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

/// For programs.
fn summary(one: &Evaluated, dataset: MarioDataset) -> Map<String, Value> {
    let judged = &one.judged;
    let scored = judged.summary.scores.iter().zip(&judged.intervals);
    let scores: Map<String, Value> = scored
        .map(|((name, mean), interval)| (name.clone(), json!({ "mean": mean, "interval": interval })))
        .collect();
    let correlated = judged.table.rewards.iter().zip(&judged.correlations);
    let correlations: Map<String, Value> = correlated.map(|(name, &c)| (name.clone(), json!(c))).collect();
    let accuracy = json!({ "mean": judged.summary.accuracy, "interval": judged.accuracy_interval });
    let fields = [
        ("system", json!("mario")),
        ("name", json!(one.name)),
        ("dataset", json!(dataset.name())),
        ("responses", json!(one.responses)),
        ("skipped", json!(one.skipped)),
        ("questions", json!(judged.questions.len())),
        ("accuracy", accuracy),
        ("scores", scores.into()),
        ("correlation_with_accuracy", correlations.into()),
        ("normalised_average", json!(judged.normalised)),
        ("files", json!(one.files)),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
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
