//! The bundled world: do several rewards make better rationales?

mod page;
mod results;

use std::path::{Path, PathBuf};
use std::time::Instant;

use ruminate::algorithms::quark::Condition;
use ruminate::algorithms::{Ending, Observer};
use ruminate::datasets::Split;
use ruminate::run::{ConfigError, ConsoleObserver, Outcome, StopFlag, Verbosity, Worker, config, print_json};
use serde_json::json;
use tch::Device;

use crate::config::{MarioConfig, Stage};
use crate::evaluate::own;
use crate::train::fit;
use results::{Results, SeedResult};

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Seeds; each trains a policy. The models behind the rewards are trained once
    // TOML's integers end at i64::MAX.
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seeds: Vec<u64>,
    /// Folder of the bundled world
    #[arg(long, value_name = "DIR", default_value = "fixtures/world")]
    world: PathBuf,
    /// Folder for the runs; a second demo with the same settings goes on from what is there
    #[arg(long, value_name = "DIR", default_value = "runs/mario-demo")]
    out: PathBuf,
    /// Change a setting of examples/mario/configs/world.toml (repeatable)
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

/// What is compared: the supervised model, and the one that has learnt from rewards, asked for the best and for the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Sft,
    Mario,
    Worst,
}

impl Model {
    const ALL: [Self; 3] = [Self::Sft, Self::Mario, Self::Worst];

    /// In tables and in JSON.
    fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Mario => "mario",
            Self::Worst => "worst",
        }
    }

    fn condition(self) -> Option<Condition> {
        match self {
            Self::Sft => None,
            Self::Mario => Some(Condition::Best),
            Self::Worst => Some(Condition::Worst),
        }
    }
}

/// The models behind the rewards. Plausibility and consistency are judged by these.
#[derive(Default)]
struct Judges {
    vera: PathBuf,
    i2o: PathBuf,
    ir2o: PathBuf,
}

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
    let Some(results) = train_and_compare(args, &stop)? else { return Ok(Outcome::Interrupted) };
    let report = page::write(args, &results)?;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        print_json(&json!({
            "system": "mario", "seeds": args.seeds, "metrics": results.metrics(), "intervals": results.intervals(),
            "gain": results.gains(), "seconds": seconds, "report": report,
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
fn train_and_compare(args: &DemoArgs, stop: &StopFlag) -> anyhow::Result<Option<Results>> {
    let Some(&seed) = args.seeds.first() else { return Ok(Some(Results::default())) };
    let mut judges = Judges::default();
    for (stage, folder) in
        [(Stage::Vera, &mut judges.vera), (Stage::I2o, &mut judges.i2o), (Stage::Ir2o, &mut judges.ir2o)]
    {
        let Some(trained) = train(args, configuration(args, seed)?, stage, stop)? else { return Ok(None) };
        *folder = trained;
    }
    let mut results = Results::default();
    for &seed in &args.seeds {
        let mut config = configuration(args, seed)?;
        let Some(sft) = train(args, config.clone(), Stage::Sft, stop)? else { return Ok(None) };
        (config.rewards.vera, config.rewards.i2o) = (Some(judges.vera.clone()), Some(judges.i2o.clone()));
        config.rewards.ir2o = Some(judges.ir2o.clone());
        config.quark.model.config = None;
        (config.quark.model.pretrained, config.quark.reference) = (Some(sft.clone()), Some(sft.clone()));
        config.data.path = below(args, "mario/{dataset}/kept/{split}.jsonl");
        let Some(mario) = train(args, config.clone(), Stage::Quark, stop)? else { return Ok(None) };
        results.seeds.push(compare(args, &config, &sft, &mario)?);
    }
    Ok(Some(results))
}

/// The checkpoint of a stage: the last one. The training with rewards goes on losing facts of people whom it does not ask
/// about, so it is stopped where the development questions say so.
fn train(
    args: &DemoArgs,
    mut config: MarioConfig,
    stage: Stage,
    stop: &StopFlag,
) -> anyhow::Result<Option<PathBuf>> {
    let out = args.out.join(run_name(stage, config.seed));
    config.enter(stage)?;
    if !args.quiet {
        heading(&format!("{}, seed {}: {}", stage.name(), config.seed, out.display()));
    }
    let worker = Worker::alone(verbosity(args), stop.clone());
    let fitted = fit(&mut config, stage, false, &worker, &out, |config| worker.open(&out, config))?;
    let checkpoint = if stage == Stage::Quark { fitted.best.path } else { fitted.last };
    Ok((fitted.ending == Ending::Finished).then_some(checkpoint))
}

/// What the models write about the held-out questions, and what it is worth.
fn compare(args: &DemoArgs, config: &MarioConfig, sft: &Path, mario: &Path) -> anyhow::Result<SeedResult> {
    let rows = config.data.read(Split::Test)?;
    let mut observer = ConsoleObserver::new(verbosity(args));
    let observer: &mut dyn Observer = &mut observer;
    let mut judge = |model: Model| -> anyhow::Result<_> {
        let folder = if model == Model::Sft { sft } else { mario };
        Ok(own(config, folder, model.condition(), (&rows, None), Device::Cpu, observer)?.judged)
    };
    let judged = Model::ALL.into_iter().map(&mut judge).collect::<anyhow::Result<_>>()?;
    Ok(SeedResult { seed: config.seed, judged })
}

fn run_name(stage: Stage, seed: u64) -> String {
    format!("{}-seed-{seed}", stage.name())
}

/// The world's settings with the paths and the seed.
fn configuration(args: &DemoArgs, seed: u64) -> anyhow::Result<MarioConfig> {
    let mut config: MarioConfig = config::load_text("configs/world.toml", WORLD, &args.sets)?;
    config.seed = seed;
    config.sft.training.shuffle_seed = seed;
    config.i2o.training.shuffle_seed = seed;
    config.ir2o.training.shuffle_seed = seed;
    config.vera.training.shuffle_seed = seed;
    config.quark.training.seed = seed;
    config.evaluation.seed = seed;
    config.data.path = below(args, "mario/{dataset}/raw/{split}.jsonl");
    config.vera.training.path = below(args, "mario/statements/{split}.jsonl");
    config.validate()?;
    Ok(config)
}

fn below(args: &DemoArgs, path: &str) -> String {
    args.world.join(path).display().to_string()
}

fn verbosity(args: &DemoArgs) -> Verbosity {
    if args.quiet { Verbosity::Quiet } else { Verbosity::Normal }
}

#[expect(clippy::print_stderr, reason = "says which of the models the bars below belong to")]
fn heading(text: &str) {
    eprintln!("{text}");
}
