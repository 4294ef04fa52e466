//! The bundled world: do stages help, and does reflection?

mod page;
mod results;

use std::path::{Path, PathBuf};
use std::time::Instant;

use ruminate::algorithms::tinythinker::{Asked, Decoding, Response, Student};
use ruminate::algorithms::{Ending, NullObserver, Observer};
use ruminate::datasets::BadRows;
use ruminate::datasets::tinythinker::{Question, Splits, StageRecords, Variant, read_items};
use ruminate::models::{self, Tokenizer};
use ruminate::run::{ConfigError, ConsoleObserver, Outcome, StopFlag, Verbosity, Worker, config, print_json};
use serde_json::json;
use tch::{Device, Kind};

use crate::acquire::fit;
use crate::config::{Phase, TinyThinkerConfig};
use crate::infer::respond;
use crate::reflect::{Finished, Material, reflect};
use results::{Model, Results, SeedResult};

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Seeds; each trains all students
    // TOML's integers end at i64::MAX.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seeds: Vec<u64>,
    /// Folder of the bundled world
    #[arg(long, value_name = "DIR", default_value = "fixtures/world")]
    world: PathBuf,
    /// Folder for the runs; a second demo with the same settings goes on from what is there
    #[arg(long, value_name = "DIR", default_value = "runs/tinythinker-demo")]
    out: PathBuf,
    /// Change a setting of examples/tinythinker/configs/world.toml (repeatable)
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
/// A student that only answers has shorter epochs, and gets more of them.
const SUMMARIZE_EPOCHS: f64 = 3.0;

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
    let test = write_records(args)?;
    let mut results = Results::default();
    for &seed in &args.seeds {
        match train_and_compare(args, seed, &test, &stop)? {
            Some(result) => results.seeds.push(result),
            None => return Ok(Outcome::Interrupted),
        }
    }
    let report = page::write(args, &results)?;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        print_json(&json!({
            "system": "tinythinker", "seeds": args.seeds, "metrics": results.metrics(), "intervals": results.intervals(),
            "by_seed": results.by_seed(), "right_samples": results.right_samples(), "margins": results.margins(),
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

/// Writes the records that the students learn from, and returns the test questions.
fn write_records(args: &DemoArgs) -> anyhow::Result<Vec<Question>> {
    let config = configuration(args, 1, Variant::default())?;
    let data = &config.data;
    let (splits, _) = Splits::read(data.dataset, &data.original, 0, 1, BadRows::Refuse)?;
    let items = read_items(&data.original.join("items.json"))?;
    for variant in [Variant::RecallAnalyzeSummarize, Variant::Summarize] {
        let records = StageRecords::new(variant, &items, &splits.valid, &splits.test, data.analysis_order);
        records.write(&data.records.join(variant.name()))?;
    }
    Ok(splits.test)
}

/// `None` when the user asked to stop.
fn train_and_compare(
    args: &DemoArgs,
    seed: u64,
    test: &[Question],
    stop: &StopFlag,
) -> anyhow::Result<Option<SeedResult>> {
    let mut config = configuration(args, seed, Variant::Summarize)?;
    config.acquisition.training.epochs *= SUMMARIZE_EPOCHS;
    let Some(direct) = acquire(args, Model::SummarizeOnly, &config, stop)? else { return Ok(None) };
    let mut observer = ConsoleObserver::new(verbosity(args));
    let mut greedy = |config: &TinyThinkerConfig, model: &Path| {
        respond(config, model, (test, None), Device::Cpu, &mut observer as &mut dyn Observer)
    };
    let summarize_only = greedy(&config, &direct)?;
    let mut config = configuration(args, seed, Variant::default())?;
    let Some(start) = acquire(args, Model::Staged, &config, stop)? else { return Ok(None) };
    let staged = greedy(&config, &start)?;
    config.phase = Some(Phase::Reflect);
    config.reflection.start = Some(start);
    announce(args, Model::Reflected, seed);
    let material = Material::read(&config)?;
    let out = folder(args, Model::Reflected, seed);
    let worker = Worker::alone(verbosity(args), stop.clone());
    let rounds = reflect(&config, &material, &out, &worker)?;
    let Some(last) = rounds.last().filter(|last| last.round == config.reflection.iterations) else {
        return Ok(None);
    };
    let reflected = greedy(&config, &last.best)?;
    let after = right_samples(&config, &last.best)?;
    let margins = rounds.iter().map(|round| results::margins(&out, round)).collect::<anyhow::Result<_>>()?;
    let right = rounds.iter().map(|round: &Finished| round.sampled.right).chain([after]).collect();
    let responses = [summarize_only, staged, reflected];
    Ok(Some(SeedResult { seed, responses: responses.map(first), right, margins, rounds }))
}

/// One response to each question.
fn first(responses: Vec<Vec<Response>>) -> Vec<Response> {
    responses.into_iter().filter_map(|of| of.into_iter().next()).collect()
}

/// The share of right answers among runs sampled as a further round would.
fn right_samples(config: &TinyThinkerConfig, model: &Path) -> anyhow::Result<f64> {
    let policy = models::Model::load(model, Kind::Float, Device::Cpu)?;
    let tokenizer = Tokenizer::open(model)?;
    let student = Student { policy: &policy, tokenizer: &tokenizer, variant: config.variant() };
    let path = config.reflection.questions.clone().unwrap_or_default();
    let (questions, _) = config.data.dataset.read(&path, BadRows::Refuse)?;
    let asked: Vec<Asked> = questions.iter().map(Asked::from).collect();
    let training = &config.reflection.training;
    let runs = training.generation_times;
    let responses =
        student.respond(&asked, Decoding::RecallPass, runs, &training.generation, &mut NullObserver)?;
    let right = responses.iter().flatten().filter(|response| response.right()).count();
    Ok(right as f64 / (asked.len() * runs).max(1) as f64)
}

/// Phase 1; the best checkpoint.
fn acquire(
    args: &DemoArgs,
    model: Model,
    config: &TinyThinkerConfig,
    stop: &StopFlag,
) -> anyhow::Result<Option<PathBuf>> {
    let out = folder(args, model, config.seed);
    announce(args, model, config.seed);
    let worker = Worker::alone(verbosity(args), stop.clone());
    let mut config = config.clone();
    config.phase = Some(Phase::Acquire);
    let fitted = fit(config, false, &worker, |config| worker.open(&out, config))?;
    Ok((fitted.ending == Ending::Finished).then_some(fitted.best.path))
}

fn announce(args: &DemoArgs, model: Model, seed: u64) {
    if !args.quiet {
        heading(&format!("{}, seed {seed}: {}", model.name(), folder(args, model, seed).display()));
    }
}

fn folder(args: &DemoArgs, model: Model, seed: u64) -> PathBuf {
    args.out.join(run_name(model, seed))
}

fn run_name(model: Model, seed: u64) -> String {
    format!("{}-seed-{seed}", model.name().replace('_', "-"))
}

/// The world's settings with paths, variant and seed.
fn configuration(args: &DemoArgs, seed: u64, variant: Variant) -> anyhow::Result<TinyThinkerConfig> {
    let mut config: TinyThinkerConfig = config::load_text("configs/world.toml", WORLD, &args.sets)?;
    config.seed = seed;
    config.acquisition.training.shuffle_seed = seed;
    config.acquisition.training.variant = variant;
    config.reflection.training.shuffle_seed = seed;
    config.reflection.training.pairs.seed = seed;
    config.reflection.training.generation.seed = seed;
    config.data.original = args.world.join("tinythinker");
    config.data.records = args.out.join("records");
    config.reflection.questions = Some(args.world.join("tinythinker/reflect.jsonl"));
    config.model.config = Some(args.world.join("tinythinker/t5/config.json"));
    config.model.tokenizer = Some(args.world.join("tinythinker/t5"));
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
