//! Phase 2: rounds of sampling, pairing and preference training, one after the other.

use std::path::Path;

use ruminate::algorithms::tinythinker::{FinishedRound, ReflectionData, ReflectionRound};
use ruminate::run::program::{Configuration, Rounds};
use ruminate::run::{
    ConfigError, Outcome, ReportPage, RunArgs, RunDirError, Table, Worker, print_json, resolve_link,
};

use crate::config::{Phase, TinyThinkerConfig};

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    for (flag, given) in [("--resume-from", args.resume_from.is_some()), ("--dry-run", args.dry_run)] {
        if given {
            return Err(ConfigError::UselessFlag { flag }.into());
        }
    }
    let mut config = TinyThinkerConfig::load(args)?;
    config.enter(Phase::Reflect)?;
    config.reflection.start = Some(resolve_link(config.start()?));
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    let data = config.data.read_reflection(config.variant(), config.reflection.questions.as_deref())?;
    let dir = args.open(&config)?;
    let rounds = reflect(&config, &data, dir.path(), &worker)?;
    let done = rounds.len() as u64 == config.reflection.iterations;
    if worker.collective.is_main_process() {
        if args.json {
            let mut line = Phase::Reflect.labels();
            line.insert("rounds".into(), serde_json::to_value(&rounds)?);
            print_json(&line)?;
        } else {
            table(&rounds).print()?;
        }
    }
    Ok(if done { Outcome::Done } else { Outcome::Interrupted })
}

/// Goes through the rounds, from the first that is not over; fewer than configured when the user asked to stop.
pub(crate) fn reflect(
    config: &TinyThinkerConfig,
    data: &ReflectionData,
    out: &Path,
    worker: &Worker,
) -> anyhow::Result<Vec<FinishedRound>> {
    let round = |number: u64, folder: &Path, before: &[FinishedRound]| {
        let mut config = config.clone();
        config.reflection.start = before.last().map(|last| last.best.clone()).or(config.reflection.start);
        let (start, section) = (config.start()?, &config.reflection);
        let learner = config.learner(start, worker.device)?;
        tch::manual_seed(config.seed as i64);
        let dir = worker.open(folder, &config)?;
        let mut observer = worker.observer(&dir)?;
        let (collective, trainer) = (&worker.collective, &section.trainer);
        let round = ReflectionRound { number, start, folder, config: &section.training, trainer, collective };
        Ok(round.run(learner, data, observer.as_mut())?)
    };
    let rounds = Rounds { name: "round", count: config.reflection.iterations, out, worker };
    rounds.run(round, |finished| Ok(write_report(&rounds, finished)?))
}

/// The rounds side by side.
fn table(rounds: &[FinishedRound]) -> Table {
    let mut table = Table::new([
        "round",
        "right samples",
        "recall pairs",
        "analyze pairs",
        "accuracy before",
        "accuracy after",
        "step",
    ]);
    for FinishedRound { round, sampled, accuracy, step, .. } in rounds {
        let share = |share: f64| format!("{share:.3}");
        let [before, after] = accuracy.map(share);
        let [recall, analyze] = [sampled.recall, sampled.analyze].map(|counts| counts.pairs.to_string());
        table.row([
            round.to_string(),
            share(sampled.right),
            recall,
            analyze,
            before,
            after,
            step.to_string(),
        ]);
    }
    table
}

/// The page about all rounds.
fn write_report(rounds: &Rounds<'_>, finished: &[FinishedRound]) -> Result<(), RunDirError> {
    let mut page =
        ReportPage::new("Self-reflection", "Rounds of preference training on the student's own runs.");
    page.heading("Rounds")
        .note(
            "Each round samples runs with the best checkpoint of the one before. Right samples are the share of them with the right \
             answer; accuracies are those of greedy answers to the validation questions.",
        )
        .table(&table(finished));
    let name = |round: &FinishedRound| format!("round-{}", round.round);
    let runs: Vec<_> = finished.iter().map(|round| (name(round), rounds.folder(round.round))).collect();
    page.heading("Training").curves(&runs, &CURVES);
    let links: Vec<_> =
        finished.iter().map(|round| (format!("{}/report.html", name(round)), name(round))).collect();
    page.heading("Runs").links(&links);
    page.write(rounds.out).map(drop)
}

/// Curves of the training.
pub(crate) const CURVES: [(&str, &str); 5] = [
    ("eval/accuracy", "accuracy on the validation questions"),
    ("train/loss", "loss"),
    ("rewards/margins", "reward margin"),
    ("rewards/accuracies", "share of pairs in the right order"),
    ("train/nll_loss", "negative log-likelihood of the chosen"),
];
