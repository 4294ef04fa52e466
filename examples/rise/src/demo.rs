//! The bundled world: does a model learn to do better when it tries again?

mod page;
mod results;

use std::path::PathBuf;
use std::time::Instant;

use ruminate::algorithms::Ending;
use ruminate::algorithms::rwr::Weighting;
use ruminate::datasets::rise::Log;
use ruminate::rewards::rise::Attempts;
use ruminate::run::{ConfigError, ModelSection, Outcome, StopFlag, Verbosity, Worker, config, print_json};
use serde_json::json;

use crate::config::{Evaluating, Phase, RiseConfig};
use crate::convert::EXAMPLES;
use crate::evaluate::evaluate;
use crate::finetune::fit;
use crate::iterate::{Material, iterate};
use results::{Results, SeedResult};

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Seeds; each trains all models
    // TOML's integers end at i64::MAX.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seeds: Vec<u64>,
    /// Folder of the bundled world
    #[arg(long, value_name = "DIR", default_value = "fixtures/world")]
    world: PathBuf,
    /// Folder for the runs; a second demo with the same settings goes on from what is there
    #[arg(long, value_name = "DIR", default_value = "runs/rise-demo")]
    out: PathBuf,
    /// Change a setting of examples/rise/configs/world.toml (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// CPU threads (default: all cores)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print the result as one line of JSON on stdout
    #[arg(long)]
    json: bool,
    /// Show nothing but the result
    #[arg(short, long)]
    quiet: bool,
}

/// The settings that are the same for all models.
const WORLD: &str = include_str!("../configs/world.toml");
/// Steps and rate of the first student's training, on solutions and on second attempts of which most slip again: it has the form then, and
/// some of the sums.
const BOOST: (u64, f64) = (480, 2e-3);

pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<Outcome> {
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads.into());
    }
    if !args.world.is_dir() {
        let reason = format!(
            "the bundled world is not at {}; run the demo from the project's folder, or name it with --world",
            args.world.display()
        );
        return Err(ConfigError::invalid(reason).into());
    }
    let started = Instant::now();
    let stop = StopFlag::on_ctrl_c()?;
    let mut results = Results::default();
    for &seed in &args.seeds {
        match train_and_compare(args, seed, &stop)? {
            Some(result) => results.seeds.push(result),
            None => return Ok(Outcome::Interrupted),
        }
    }
    let report = page::write(args, &results)?;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        print_json(&json!({
            "system": "rise", "seeds": args.seeds, "metrics": results.metrics(), "intervals": results.intervals(),
            "by_seed": results.by_seed(), "gains": results.gains(), "next_attempts": results.next_attempts(),
            "seconds": seconds, "report": report,
        }))?;
        return Ok(Outcome::Done);
    }
    if !args.quiet {
        heading(&format!("report: {}", report.display()));
        heading(&format!("{}:", page::RESULT));
    }
    page::table(&results).print()?;
    Ok(Outcome::Done)
}

/// `None` when the user asked to stop.
fn train_and_compare(args: &DemoArgs, seed: u64, stop: &StopFlag) -> anyhow::Result<Option<SeedResult>> {
    let mut config = configuration(args, seed)?;
    let mut boost = config.clone();
    boost.finetune.examples = vec![args.world.join("rise/boost.json")];
    boost.finetune.training.weighting = Weighting::None;
    boost.finetune.training.epochs = 0.0;
    (boost.finetune.trainer.steps, boost.finetune.trainer.lr) = BOOST;
    let Some(start) = finetune(args, "boost", &boost, stop)? else { return Ok(None) };
    config.model = ModelSection::of_folder(&start);
    let material = Material::read(&config)?;
    let out = args.out.join(run_name("iterate", seed));
    announce(args, "iterate", seed);
    let worker = Worker::alone(verbosity(args), stop.clone());
    let iterations = iterate(&config, &material, &out, &worker)?;
    let Some(last) = iterations.finished.last() else { return Ok(None) };
    // The same examples, all of weight 1.
    let mut unweighted = config.clone();
    unweighted.finetune.training.weighting = Weighting::None;
    unweighted.finetune.examples = vec![out.join("iteration-1/convert").join(EXAMPLES)];
    let Some(plain) = finetune(args, "unweighted", &unweighted, stop)? else { return Ok(None) };
    let folder = args.out.join(run_name("unweighted-evaluate", seed));
    let mut evaluating = RiseConfig { phase: Some(Phase::Evaluate), ..config.clone() };
    evaluating.evaluation.model = Some(plain);
    (evaluating.evaluation.setting, evaluating.evaluation.context_window) = (Evaluating::Sequential, 2);
    let dir = worker.open(&folder, &evaluating)?;
    if evaluate(&evaluating, &material.test, &dir, &worker)?.is_none() {
        return Ok(None);
    }
    let logs = [out.join("start/sequential"), out.join("iteration-1/evaluate/sequential"), folder];
    let name = evaluating.evaluation.rollout(config.data.compat).file_name();
    let mut attempts = vec![];
    for log in logs {
        attempts.push(Attempts::of_log(&Log::read(&log.join(&name))?, &*config.data.environment()));
    }
    Ok(Some(SeedResult { seed, attempts, solved: last.problems, examples: last.examples }))
}

/// Trains a model; its last checkpoint.
fn finetune(
    args: &DemoArgs,
    name: &str,
    config: &RiseConfig,
    stop: &StopFlag,
) -> anyhow::Result<Option<PathBuf>> {
    announce(args, name, config.seed);
    let worker = Worker::alone(verbosity(args), stop.clone());
    let config = RiseConfig { phase: Some(Phase::Finetune), ..config.clone() };
    let out = args.out.join(run_name(name, config.seed));
    let (fitted, _) = fit(config, false, &worker, |config| worker.open(&out, config))?;
    Ok((fitted.ending == Ending::Finished).then_some(fitted.last))
}

fn announce(args: &DemoArgs, name: &str, seed: u64) {
    if !args.quiet {
        heading(&format!("{name}, seed {seed}: {}", args.out.join(run_name(name, seed)).display()));
    }
}

fn run_name(name: &str, seed: u64) -> String {
    format!("{name}-seed-{seed}")
}

/// The world's settings with paths and seed.
fn configuration(args: &DemoArgs, seed: u64) -> anyhow::Result<RiseConfig> {
    let mut config: RiseConfig = config::load_text("configs/world.toml", WORLD, &args.sets)?;
    config.seed = seed;
    config.collection.seed = seed;
    config.conversion.settings.seed = seed;
    config.finetune.training.shuffle_seed = seed;
    config.evaluation.seed = seed;
    config.data.problems = args.world.join("rise/train.jsonl");
    config.evaluation.problems = args.world.join("rise/test.jsonl");
    config.model.config = Some(args.world.join("rise/llama/config.json"));
    config.validate()?;
    Ok(config)
}

fn verbosity(args: &DemoArgs) -> Verbosity {
    if args.quiet { Verbosity::Quiet } else { Verbosity::Normal }
}

#[expect(clippy::print_stderr, reason = "says which of the models the bars below belong to")]
fn heading(text: &str) {
    eprintln!("{text}");
}
