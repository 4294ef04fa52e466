//! The common part of a program's commands: loading a configuration, `--dry-run`, several processes, resuming, fitting, and
//! printing. A command says what differs.
//!
//! [`train`] runs a command that trains; it is described by [`Training`]. [`Evaluation`] begins a command that judges a checkpoint.
//! [`Rounds`] repeats a step in numbered folders and goes on where it was.

mod evaluation;
mod fit;
mod rounds;

use std::path::Path;

use ruminate_algorithms::{Collective, Ending, Fitted, Networks, Observer, Pass, Plan, TrainerConfig};
use ruminate_datasets::Split;
use ruminate_models::ModelConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use evaluation::{Evaluation, checkpoint, checkpoints_of, files_table, uninterrupted};
pub use fit::Fit;
use fit::FitBy;
pub use rounds::Rounds;

use crate::cli::{FlagKeys, RunArgs};
use crate::config::ConfigError;
use crate::exit::Outcome;
use crate::model::{ModelSection, PlannedShape};
use crate::output::{Table, print_json};
use crate::plan::{DataRow, DryRun};
use crate::rundir::{RunDir, RunDirError};
use crate::worker::Worker;

/// The configuration file of a program: all its commands read the same one.
pub trait Configuration: Serialize + DeserializeOwned {
    /// The keys that `--seed` and `--precision` stand for.
    const FLAGS: FlagKeys;

    /// Checks what can be checked before any file is read.
    ///
    /// # Errors
    /// A value is out of its range, or two contradict each other.
    fn validate(&self) -> Result<(), ConfigError>;

    /// Resolves the configuration from the flags, and validates it.
    ///
    /// # Errors
    /// See [`RunArgs::load`] and [`validate`](Self::validate).
    fn load(args: &RunArgs) -> Result<Self, ConfigError> {
        let config: Self = args.load(Self::FLAGS)?;
        config.validate()?;
        Ok(config)
    }
}

/// Notes in the configuration what a run does, and refuses to continue a run of another command.
///
/// `stored` is the configuration's key for it, which the command writes; `name` is the command line of a value, such as `rise collect`.
///
/// # Errors
/// The configuration is that of another command.
pub fn enter<P: PartialEq>(
    stored: &mut Option<P>,
    phase: P,
    name: impl Fn(&P) -> String,
) -> Result<(), ConfigError> {
    if let Some(other) = stored.as_ref().filter(|other| **other != phase) {
        let reason = format!("this is the configuration of a run of `{}`", name(other));
        return Err(ConfigError::invalid(reason));
    }
    *stored = Some(phase);
    Ok(())
}

/// A command that trains a model into a run folder.
pub trait Training {
    /// The program's configuration.
    type Config: Configuration;

    /// The fields that tell results of this command from others, such as `{"system": "rise", "phase": "finetune"}`.
    fn labels(&self) -> Map<String, Value>;

    /// Makes a loaded configuration that of this command, before anything is read. Flags of the command's own become settings here.
    ///
    /// # Errors
    /// The configuration is another command's, or lacks something that this one needs.
    fn configure(&self, config: &mut Self::Config) -> anyhow::Result<()> {
        let _ = config;
        Ok(())
    }

    /// The section of the model to start from.
    fn model<'c>(&self, config: &'c Self::Config) -> &'c ModelSection;

    /// Settings of the trainer, once [`prepare`](Self::prepare) has derived what depends on the data.
    fn trainer<'c>(&self, config: &'c Self::Config) -> &'c TrainerConfig;

    /// Measures on the data what a run takes, without loading weights: for `--dry-run`.
    ///
    /// # Errors
    /// The data or the tokenizer cannot be used.
    fn measure(
        &self,
        config: &Self::Config,
        model: &ModelConfig,
        processes: usize,
    ) -> anyhow::Result<Measured>;

    /// The upper bound of a run's needs, for data that are not there. By default the model and the trainer's states alone.
    fn longest(&self, config: &Self::Config, model: &ModelConfig) -> Plan {
        Plan::new(self.trainer(config), Networks::single(model), &[], 1.0)
    }

    /// Loads model and data and joins them. Everything that can be wrong with them shows here, before the run folder is opened.
    ///
    /// # Errors
    /// Whatever is wrong with model or data.
    fn prepare(&self, config: &mut Self::Config, job: &Job<'_>) -> anyhow::Result<Prepared>;
}

/// Where a training takes place.
#[derive(Debug)]
pub struct Job<'a> {
    /// This process.
    pub worker: &'a Worker,
    /// The run folder, which is not open yet.
    pub out: &'a Path,
    /// Keep settings that are derived from the data, such as `steps`: the run is resumed with its own configuration.
    pub reuses_stored_config: bool,
}

/// An algorithm that is ready to be fitted, and what there is to tell about its data.
pub struct Prepared {
    /// The algorithm.
    pub algorithm: Box<dyn Fit>,
    /// Counts of what was read: written to `data.json` and part of the result.
    pub data: Option<Value>,
    /// Further fields of the result.
    pub result: Map<String, Value>,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("data", &self.data)
            .field("result", &self.result)
            .finish_non_exhaustive()
    }
}

impl Prepared {
    /// An algorithm without further facts.
    pub fn new(algorithm: impl Fit + 'static) -> Self {
        Self { algorithm: Box::new(algorithm), data: None, result: Map::new() }
    }

    /// Something that is fitted by a closure, because there is work to be done in the run folder before the first step.
    pub fn fitted_by<F>(fit: F) -> Self
    where
        F: FnOnce(
                &TrainerConfig,
                &RunDir,
                &Collective,
                &mut dyn Observer,
            ) -> ruminate_algorithms::Result<Fitted>
            + 'static,
    {
        Self::new(FitBy(fit))
    }

    /// Adds counts of what was read.
    ///
    /// # Errors
    /// Never for counts: they are JSON.
    pub fn with_data(mut self, counts: &impl Serialize) -> serde_json::Result<Self> {
        self.data = Some(serde_json::to_value(counts)?);
        Ok(self)
    }
}

/// The needs of a run, measured on its data.
#[derive(Debug)]
pub struct Measured {
    /// Steps, memory and operations.
    pub plan: Plan,
    /// The training data.
    pub data: Vec<DataRow>,
    /// Why the run would not start nevertheless.
    pub problem: Option<anyhow::Error>,
}

impl Measured {
    /// The plan of one network that is trained on so many rows of a task.
    #[must_use]
    pub fn on_rows(
        trainer: &TrainerConfig,
        model: &ModelConfig,
        passes: &[Pass],
        task: impl Into<String>,
        rows: usize,
    ) -> Self {
        let plan = Plan::new(trainer, Networks::single(model), passes, 1.0);
        let data = DataRow { task: task.into(), split: Split::Train, questions: rows, instances: rows };
        Self { plan, data: vec![data], problem: None }
    }
}

/// The outcome of a training.
#[derive(Debug)]
pub struct Trained {
    /// Its end and its checkpoints.
    pub fitted: Fitted,
    /// Counts of what was read.
    pub data: Option<Value>,
    /// Further fields of the result.
    result: Map<String, Value>,
}

impl Trained {
    /// True if the training reached its end.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.fitted.ending == Ending::Finished
    }
}

/// Runs a command that trains, from its flags to its result on stdout.
///
/// # Errors
/// Whatever is wrong with flags, configuration, model, data or run folder, and what fails in training.
pub fn train<T: Training>(command: &T, args: &RunArgs) -> anyhow::Result<Outcome> {
    if args.out.is_none() && !args.dry_run {
        return Err(RunDirError::NoFolder.into());
    }
    let mut config = T::Config::load(args)?;
    command.configure(&mut config)?;
    if args.dry_run {
        return dry_run(command, &config, args);
    }
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    let out = args.out.as_deref().ok_or(RunDirError::NoFolder)?;
    let job = Job { worker: &worker, out, reuses_stored_config: args.reuses_stored_config() };
    let Some(trained) = fit(command, config, &job, |config| args.open(config))? else {
        return Ok(Outcome::Interrupted);
    };
    if worker.collective.is_main_process() {
        print(command, &trained, args.json)?;
    }
    Ok(trained.fitted.ending.into())
}

/// Trains into a run folder that `open` opens; `None` when the user asked to stop before the first step. For parts of a larger command,
/// such as a round; [`train`] is the whole command.
///
/// # Errors
/// Whatever is wrong with model, data or run folder, and what fails in training.
pub fn fit<T: Training>(
    command: &T,
    mut config: T::Config,
    job: &Job<'_>,
    open: impl FnOnce(&T::Config) -> Result<RunDir, RunDirError>,
) -> anyhow::Result<Option<Trained>> {
    let Job { worker, .. } = job;
    let Prepared { algorithm, data, result } = command.prepare(&mut config, job)?;
    let dir = open(&config)?;
    let mut observer = worker.observer(&dir)?;
    if let Some(data) = data.as_ref().filter(|_| worker.collective.is_main_process()) {
        dir.write("data.json", format!("{data:#}\n").as_bytes())?;
    }
    let fitted = algorithm.fit(command.trainer(&config), &dir, &worker.collective, observer.as_mut());
    Ok(uninterrupted(fitted)?.map(|fitted| Trained { fitted, data, result }))
}

/// Trains into a folder, or goes on with the run that is there.
///
/// # Errors
/// Those of [`fit()`].
pub fn fit_in<T: Training>(
    command: &T,
    config: T::Config,
    out: &Path,
    worker: &Worker,
) -> anyhow::Result<Option<Trained>> {
    let job = Job { worker, out, reuses_stored_config: false };
    fit(command, config, &job, |config| worker.open(out, config))
}

/// Prints what a run would take. What would keep it from starting is printed below the plan, and makes the command fail as the run would.
fn dry_run<T: Training>(command: &T, config: &T::Config, args: &RunArgs) -> anyhow::Result<Outcome> {
    let PlannedShape { shape, missing } = command.model(config).planned()?;
    let missing = missing.map(anyhow::Error::from);
    let (plan, data, problem) = match command.measure(config, &shape, args.processes()) {
        Ok(Measured { plan, data, problem }) => (plan, data, missing.or(problem)),
        Err(error) => (command.longest(config, &shape), vec![], Some(missing.unwrap_or(error))),
    };
    let device = args.setup()?;
    let problems = problem.iter().map(|error| format!("{error:#}")).collect();
    DryRun { plan: plan.across(args.processes()), data, problems, device, out: args.out.as_deref() }
        .print(args.json)?;
    problem.map_or(Ok(Outcome::Done), Err)
}

/// Says where the checkpoints of a run are.
fn print<T: Training>(command: &T, trained: &Trained, as_json: bool) -> std::io::Result<()> {
    let Trained { fitted: Fitted { steps, last, best, .. }, data, result } = trained;
    if as_json {
        let mut line = command.labels();
        line.insert("steps".into(), serde_json::json!(steps));
        line.insert("last".into(), serde_json::json!(last));
        line.insert("best".into(), serde_json::json!(best));
        line.extend(data.clone().map(|data| ("data".to_owned(), data)));
        line.extend(result.clone());
        return print_json(&line);
    }
    let mut table = Table::new(["checkpoint", "step", "folder"]);
    table.row(["last", &steps.to_string(), &last.display().to_string()]);
    table.row(["best", &best.step.to_string(), &best.path.display().to_string()]);
    table.print()
}

/// The commands of a program that stand in the tables of a Markdown page, between backquotes, in words: for tests that a page shows what the
/// program takes.
///
/// ```
/// use ruminate_run::program::commands_in_tables;
///
/// let page = "Run `star demo`.\n\n| theirs | ours |\n| --- | --- |\n| `python star.py` | `star iterate --out runs/star` |\n";
/// assert_eq!(commands_in_tables(page, "star"), [["star", "iterate", "--out", "runs/star"]]);
/// ```
#[must_use]
pub fn commands_in_tables(page: &str, program: &str) -> Vec<Vec<String>> {
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let spans = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let words = |span: &str| span.split_whitespace().map(|word| word.trim_matches('\'').to_owned()).collect();
    spans.filter(|span| span.split_whitespace().next() == Some(program)).map(words).collect()
}
