//! Phase 2: rounds of sampling, pairing and preference training, one after the other; and the pairs of one round alone.

use std::path::{Path, PathBuf};

use ruminate::algorithms::tinythinker::{FinishedRound, ReflectionData, ReflectionSection};
use ruminate::run::program::{Configuration, Rounds};
use ruminate::run::{Outcome, ReportPage, RunArgs, Table, Worker, print_result, resolve_link};
use serde_json::json;

use crate::config::{Phase, TinyThinkerConfig};

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<Outcome> {
    with_samples(
        args,
        Phase::Reflect,
        |_| (),
        |config, data, out, worker| {
            let rounds = reflect(config, data, out, worker)?;
            if worker.collective.is_main_process() {
                if args.json {
                    print_result(Phase::Reflect.labels(), &json!({ "rounds": rounds }), true)?;
                } else {
                    table(&rounds).print()?;
                }
            }
            let done = rounds.len() as u64 == config.reflection.iterations;
            Ok(if done { Outcome::Done } else { Outcome::Interrupted })
        },
    )
}

#[derive(clap::Args)]
pub(crate) struct PairsArgs {
    /// Checkpoint that samples the runs, e.g. runs/acquire/checkpoints/best; short for --set reflection.start=DIR
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Number of the round, each of which has samples of its own; short for --set reflection.round=N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    round: Option<u64>,
    #[command(flatten)]
    run: RunArgs,
}

/// The pairs of one round, without training.
pub(crate) fn pairs(args: &PairsArgs) -> anyhow::Result<Outcome> {
    let flags = |section: &mut ReflectionSection| {
        section.start = args.model.clone().or(section.start.take());
        section.round = args.round.or(section.round);
    };
    with_samples(&args.run, Phase::Pairs, flags, |config, data, out, worker| {
        let section = &config.reflection;
        let round = section.round(section.round.unwrap_or(1), out, &worker.collective)?;
        let learner = config.learner(round.start, worker.device)?;
        let mut observer = worker.console();
        let made = round.pairs(&learner.student(), data, observer.as_mut())?;
        drop(observer);
        let Some(made) = made else { return Ok(Outcome::Interrupted) };
        if worker.collective.is_main_process() {
            let fields = json!({ "round": round.number, "folder": out, "sampled": made.summary });
            print_result(Phase::Pairs.labels(), &fields, args.run.json)?;
        }
        Ok(Outcome::Done)
    })
}

/// Does work that samples runs, with the configuration and the flags of a command, on the data of all rounds, in the run folder.
fn with_samples(
    args: &RunArgs,
    phase: Phase,
    flags: impl FnOnce(&mut ReflectionSection),
    work: impl FnOnce(&TinyThinkerConfig, &ReflectionData, &Path, &Worker) -> anyhow::Result<Outcome>,
) -> anyhow::Result<Outcome> {
    args.refuse(&["--resume-from", "--dry-run"])?;
    let mut config = TinyThinkerConfig::load(args)?;
    flags(&mut config.reflection);
    config.enter(phase)?;
    config.reflection.start = Some(resolve_link(config.reflection.start()?));
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    let data = config.data.read_reflection(config.variant(), config.reflection.questions.as_deref())?;
    let dir = args.open(&config)?;
    work(&config, &data, dir.path(), &worker)
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
        let round = config.reflection.round(number, folder, &worker.collective)?;
        let learner = config.learner(round.start, worker.device)?;
        tch::manual_seed(config.seed as i64);
        let dir = worker.open(folder, &config)?;
        let mut observer = worker.observer(&dir)?;
        Ok(round.run(learner, data, observer.as_mut())?)
    };
    let rounds = Rounds { name: "round", count: config.reflection.iterations, out, worker };
    rounds.run(round, |finished| {
        let mut page =
            ReportPage::new("Self-reflection", "Rounds of preference training on the student's own runs.");
        page.heading("Rounds").note(ABOUT).table(&table(finished));
        Ok(rounds.write_report(&mut page, finished.len(), &FinishedRound::CURVES).map(drop)?)
    })
}

/// The rounds side by side.
fn table(rounds: &[FinishedRound]) -> Table {
    let mut table = Table::new(FinishedRound::COLUMNS);
    for round in rounds {
        table.row(round.cells());
    }
    table
}

/// The page's text about the table.
const ABOUT: &str = "Each round samples runs with the best checkpoint of the one before. Right samples are the share of them with the right answer; \
     accuracies are those of greedy answers to the validation questions.";
