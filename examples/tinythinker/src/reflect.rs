//! Phase 2: rounds of sampling, pairing and preference training, one after the other.

use std::path::{Path, PathBuf};

use ruminate::algorithms::tinythinker::{PairSummary, Reflection, Round, Student};
use ruminate::algorithms::trainer::{Checkpoints, MANIFEST, verify};
use ruminate::algorithms::{Ending, Fitted, Trainer};
use ruminate::datasets::tinythinker::{Question, Run, questions_of, teacher_runs};
use ruminate::datasets::{BadRows, json};
use ruminate::models::{Model, Tokenizer};
use ruminate::run::{
    ConfigError, Outcome, ReportPage, RunArgs, RunDirError, Table, Worker, print_json, resolve_link,
};
use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::acquire::load;
use crate::config::{Phase, TinyThinkerConfig};

/// A round that is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Finished {
    /// From 1.
    pub(crate) round: u64,
    /// The checkpoint that the runs were sampled with, and that the round began with.
    pub(crate) start: PathBuf,
    /// The checkpoint that is taken further.
    pub(crate) best: PathBuf,
    /// Its step.
    pub(crate) step: u64,
    /// Share of right answers on the validation questions, before the round and with the best checkpoint.
    pub(crate) accuracy: [f64; 2],
    /// What became of the sampled runs.
    pub(crate) sampled: PairSummary,
    /// Pairs with a prompt that was cut.
    pub(crate) prompts_cut: usize,
    /// Stages that were not trained, because they had no pairs.
    pub(crate) without_pairs: Vec<String>,
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    for (flag, given) in [("--resume-from", args.resume_from.is_some()), ("--dry-run", args.dry_run)] {
        if given {
            return Err(ConfigError::UselessFlag { flag }.into());
        }
    }
    let mut config = load(args, Phase::Reflect)?;
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    config.reflection.start = config.reflection.start.as_deref().map(resolve_link);
    let material = Material::read(&config)?;
    let dir = args.open(&config)?;
    let rounds = reflect(&config, &material, dir.path(), &worker)?;
    let done = rounds.len() as u64 == config.reflection.iterations;
    if !worker.collective.is_main_process() {
        return Ok(if done { Outcome::Done } else { Outcome::Interrupted });
    }
    if args.json {
        print_json(&serde_json::json!({ "system": "tinythinker", "phase": "reflect", "rounds": rounds }))?;
    } else {
        table(&rounds).print()?;
    }
    Ok(if done { Outcome::Done } else { Outcome::Interrupted })
}

/// What all rounds share.
pub(crate) struct Material {
    /// What is sampled.
    questions: Vec<Question>,
    /// The teacher's runs on these questions.
    teacher: Vec<Run>,
    valid: Vec<Question>,
}

impl Material {
    pub(crate) fn read(config: &TinyThinkerConfig) -> anyhow::Result<Self> {
        let (folder, records) = config.data.read(config.variant())?;
        let questions = match &config.reflection.questions {
            Some(path) => config.data.dataset.read(path, BadRows::Refuse)?.0,
            None => questions_of(&records.recall_single, &folder.join("recall_single.json"))?,
        };
        if questions.is_empty() {
            let reason = format!(
                "there are no questions to reflect on: {} has none in recall_single.json, as records of a student that recalls and \
                 analyzes have; or name some with reflection.questions",
                folder.display()
            );
            return Err(ConfigError::invalid(reason).into());
        }
        let teacher = teacher_runs(&records.summarize, &questions, &folder.join("summarize.json"))?;
        let valid = questions_of(&records.valid, &folder.join("valid.json"))?;
        Ok(Self { questions, teacher, valid })
    }
}

/// Goes through the rounds, from the first that is not over; fewer than configured when the user asked to stop.
pub(crate) fn reflect(
    config: &TinyThinkerConfig,
    material: &Material,
    out: &Path,
    worker: &Worker,
) -> anyhow::Result<Vec<Finished>> {
    let Some(mut start) = config.reflection.start.clone() else {
        let reason = "name a checkpoint of `tinythinker acquire` with reflection.start, such as runs/acquire/checkpoints/best";
        return Err(ConfigError::invalid(reason).into());
    };
    let mut rounds: Vec<Finished> = vec![];
    for number in 1..=config.reflection.iterations {
        let folder = out.join(format!("round-{number}"));
        let summary = folder.join("round.json");
        let stored = || -> anyhow::Result<Option<Finished>> {
            Ok(if summary.is_file() { Some(json::read(&summary)?) } else { None })
        };
        let finished = match worker.collective.first(stored)? {
            Some(finished) => finished,
            None => {
                let mut config = config.clone();
                config.reflection.start = Some(start);
                let Some(finished) = round(&config, number, material, &folder, worker)? else { break };
                if worker.collective.is_main_process() {
                    json::write(&summary, &finished)?;
                }
                finished
            }
        };
        start = finished.best.clone();
        rounds.push(finished);
        if worker.collective.is_main_process() {
            write_report(out, &rounds)?;
        }
    }
    Ok(rounds)
}

/// One round; `None` when the user asked to stop.
fn round(
    config: &TinyThinkerConfig,
    number: u64,
    material: &Material,
    folder: &Path,
    worker: &Worker,
) -> anyhow::Result<Option<Finished>> {
    let section = &config.reflection;
    let start = section.start.clone().unwrap_or_default();
    verify(&start)?;
    let policy = Model::load(&start, Kind::Float, worker.device)?;
    let tokenizer = Tokenizer::open(&start)?;
    tch::manual_seed(config.seed as i64);
    let dir = worker.open(folder, config)?;
    let mut observer = worker.observer(&dir)?;
    let (collective, observer) = (&worker.collective, observer.as_mut());
    let variant = config.variant();
    let model = identity(&start)?;
    let round = Round { number, model: &model, folder, collective };
    let student = Student { policy: &policy, tokenizer: &tokenizer, variant };
    let Material { questions, teacher, valid } = material;
    let Some(pairs) = student.make_pairs(questions, teacher, &section.training, &round, observer)? else {
        return Ok(None);
    };
    let training = section.training.clone();
    let accumulate = section.trainer.accumulate;
    let reflection = Reflection::new(training, &tokenizer, &pairs.recall, &pairs.analyze, accumulate)?;
    let trainer = reflection.trainer(&section.trainer, collective.size())?;
    let prompts_cut = reflection.counts.prompts_cut;
    let without_pairs: Vec<String> = reflection.without_pairs.iter().map(|s| s.name().to_string()).collect();
    let cache = folder.join("reference_logps.json");
    let mut dpo = reflection.start(policy, tokenizer, variant, valid, &cache, collective)?;
    let Fitted { ending, best, .. } =
        Trainer::across(trainer, &dir.checkpoints(), collective)?.fit(&mut dpo, observer)?;
    if ending == Ending::Stopped {
        return Ok(None);
    }
    let before = collective.first(|| -> anyhow::Result<_> {
        let state = Checkpoints::open(&dir.checkpoints())?.last_state()?;
        Ok(state.and_then(|state| state.scores.get(&0).copied()))
    })?;
    let before = before.unwrap_or(f64::NAN);
    let sampled = pairs.summary;
    Ok(Some(Finished {
        round: number,
        start,
        best: best.path,
        step: best.step,
        accuracy: [before, best.score],
        sampled,
        prompts_cut,
        without_pairs,
    }))
}

/// What tells a checkpoint from others: its manifest, which has hashes of all files, or else its folder.
fn identity(folder: &Path) -> std::io::Result<String> {
    match std::fs::read_to_string(folder.join(MANIFEST)) {
        Ok(manifest) => Ok(manifest),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(folder.display().to_string()),
        Err(error) => Err(error),
    }
}

/// The rounds side by side.
fn table(rounds: &[Finished]) -> Table {
    let columns = [
        "round",
        "right samples",
        "recall pairs",
        "analyze pairs",
        "accuracy before",
        "accuracy after",
        "step",
    ];
    let mut table = Table::new(columns);
    for round in rounds {
        let share = |share: f64| format!("{share:.3}");
        table.row([
            round.round.to_string(),
            share(round.sampled.right),
            round.sampled.recall.pairs.to_string(),
            round.sampled.analyze.pairs.to_string(),
            share(round.accuracy[0]),
            share(round.accuracy[1]),
            round.step.to_string(),
        ]);
    }
    table
}

/// The page about all rounds.
fn write_report(out: &Path, rounds: &[Finished]) -> Result<PathBuf, RunDirError> {
    let mut page =
        ReportPage::new("Self-reflection", "Rounds of preference training on the student's own runs.");
    page.heading("Rounds")
        .note(
            "Each round samples runs with the best checkpoint of the one before. Right samples are the share of them with the right \
             answer; accuracies are those of greedy answers to the validation questions.",
        )
        .table(&table(rounds));
    let folder = |round: &Finished| format!("round-{}", round.round);
    let runs: Vec<_> = rounds.iter().map(|round| (folder(round), out.join(folder(round)))).collect();
    page.heading("Training").curves(&runs, &CURVES);
    let links: Vec<_> =
        rounds.iter().map(|round| (format!("{}/report.html", folder(round)), folder(round))).collect();
    page.heading("Runs").links(&links);
    page.write(out)
}

/// Curves of the training.
pub(crate) const CURVES: [(&str, &str); 5] = [
    ("eval/accuracy", "accuracy on the validation questions"),
    ("train/loss", "loss"),
    ("rewards/margins", "reward margin"),
    ("rewards/accuracies", "share of pairs in the right order"),
    ("train/nll_loss", "negative log-likelihood of the chosen"),
];
