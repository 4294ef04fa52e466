//! The common part of demos: for each seed, models are trained on a small world and compared on held-out questions; a table and a page
//! show what came of it.

mod comparison;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use ruminate_algorithms::Observer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

pub use comparison::{Comparison, Estimate};

use crate::config::{self, ConfigError};
use crate::console::Verbosity;
use crate::exit::Outcome;
use crate::observer::ConsoleObserver;
use crate::output::{Table, print_json};
use crate::signals::StopFlag;
use crate::worker::Worker;

/// The flags of a demo. A program sets its defaults of `--seeds` and `--out` where it lists the command:
/// `#[command(mut_arg("out", |arg| arg.default_value("runs/star-demo")))]`.
#[derive(Debug, Clone, Args)]
#[command(about = None::<&str>, long_about = None::<&str>)]
pub struct DemoArgs {
    /// Seeds; each trains all models
    // TOML's integers end at i64::MAX.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seeds: Vec<u64>,
    /// Folder of the bundled world
    #[arg(long, value_name = "DIR", default_value = "fixtures/world")]
    pub world: PathBuf,
    /// Folder for the runs; a second demo with the same settings goes on from what is there
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    pub out: PathBuf,
    /// Change a setting of the program's configs/world.toml (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// CPU threads (default: all cores)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Print the result as one line of JSON on stdout
    #[arg(long)]
    pub json: bool,
    /// Show nothing but the result
    #[arg(short, long)]
    pub quiet: bool,
}

/// A demo: what is trained with each seed, and what is shown of all seeds.
pub trait Demo {
    /// The results of one seed's models.
    type Seed;

    /// The program, as results name it.
    const SYSTEM: &'static str;

    /// A description of the table's numbers, shown above it.
    const RESULT: &'static str;

    /// Trains the models of one seed and lets them answer; `None` when the user asked to stop.
    ///
    /// # Errors
    /// Whatever fails.
    fn run_seed(&mut self, seed: u64, run: &DemoRun<'_>) -> anyhow::Result<Option<Self::Seed>>;

    /// Compares the seeds and writes the page.
    ///
    /// # Errors
    /// The page cannot be written.
    fn results(&self, seeds: &[Self::Seed], run: &DemoRun<'_>) -> anyhow::Result<DemoResults>;
}

/// The results that a demo shows in the end.
#[derive(Debug)]
pub struct DemoResults {
    /// For people.
    pub table: Table,
    /// For programs: `metrics` and what else there is.
    pub json: Map<String, Value>,
    /// The page.
    pub report: PathBuf,
}

/// A demo at work.
#[derive(Debug)]
pub struct DemoRun<'a> {
    /// Its flags.
    pub args: &'a DemoArgs,
    stop: StopFlag,
}

impl DemoRun<'_> {
    /// The demo's settings: those that it carries, and `--set`.
    ///
    /// # Errors
    /// See [`config::load_text`].
    pub fn config<C: Serialize + DeserializeOwned>(&self, text: &str) -> Result<C, ConfigError> {
        config::load_text("configs/world.toml", text, &self.args.sets)
    }

    /// A file of the world.
    #[must_use]
    pub fn world(&self, file: &str) -> PathBuf {
        self.args.world.join(file)
    }

    /// The folder of a run, `NAME-seed-SEED`.
    #[must_use]
    pub fn folder(&self, name: &str, seed: u64) -> PathBuf {
        self.args.out.join(run_name(name, seed))
    }

    /// Says what the progress below belongs to.
    pub fn announce(&self, name: &str, seed: u64) {
        self.say(&format!("{name}, seed {seed}: {}", self.folder(name, seed).display()));
    }

    /// The process that trains.
    #[must_use]
    pub fn worker(&self) -> Worker {
        Worker::alone(self.verbosity(), self.stop.clone())
    }

    /// Shows the progress of an evaluation.
    #[must_use]
    pub fn observer(&self) -> Box<dyn Observer> {
        Box::new(ConsoleObserver::new(self.verbosity()))
    }

    /// The curves of a run of each seed, for [`ReportPage::curves`](crate::ReportPage::curves).
    #[must_use]
    pub fn curves(&self, name: &str) -> Vec<(String, PathBuf)> {
        self.args.seeds.iter().map(|&seed| (format!("seed {seed}"), self.folder(name, seed))).collect()
    }

    /// Links to the reports of the runs of all seeds, for [`ReportPage::links`](crate::ReportPage::links).
    #[must_use]
    pub fn links(&self, names: &[&str]) -> Vec<(String, String)> {
        let runs =
            names.iter().flat_map(|name| self.args.seeds.iter().map(move |&seed| run_name(name, seed)));
        runs.map(|run| (format!("{run}/report.html"), run)).collect()
    }

    fn verbosity(&self) -> Verbosity {
        if self.args.quiet { Verbosity::Quiet } else { Verbosity::Normal }
    }

    #[expect(clippy::print_stderr, reason = "says which of the models the bars below belong to")]
    fn say(&self, text: &str) {
        if !self.args.quiet {
            eprintln!("{text}");
        }
    }
}

/// The name of a run's folder.
#[must_use]
pub fn run_name(name: &str, seed: u64) -> String {
    format!("{}-seed-{seed}", name.replace('_', "-"))
}

/// Runs a demo, from its flags to its result on stdout.
///
/// # Errors
/// The world is not there, or something fails.
pub fn run<D: Demo>(demo: &mut D, args: &DemoArgs) -> anyhow::Result<Outcome> {
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads.into());
    }
    if !args.world.is_dir() {
        return Err(missing(&args.world).into());
    }
    let started = Instant::now();
    let run = DemoRun { args, stop: StopFlag::on_ctrl_c()? };
    let mut seeds = vec![];
    for &seed in &args.seeds {
        match demo.run_seed(seed, &run)? {
            Some(result) => seeds.push(result),
            None => return Ok(Outcome::Interrupted),
        }
    }
    let DemoResults { table, json: results, report } = demo.results(&seeds, &run)?;
    if args.json {
        let mut line =
            Map::from_iter([("system".into(), json!(D::SYSTEM)), ("seeds".into(), json!(args.seeds))]);
        line.extend(results);
        line.insert("seconds".into(), json!(started.elapsed().as_secs_f64()));
        line.insert("report".into(), json!(report));
        print_json(&line)?;
        return Ok(Outcome::Done);
    }
    run.say(&format!("report: {}", report.display()));
    run.say(&format!("{}:", D::RESULT));
    table.print()?;
    Ok(Outcome::Done)
}

fn missing(world: &Path) -> ConfigError {
    ConfigError::invalid(format!(
        "the bundled world is not at {}; run the demo from the project's folder, or name it with --world",
        world.display()
    ))
}
