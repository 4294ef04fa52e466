use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args};
use ruminate_algorithms::Collective;
use ruminate_algorithms::trainer::Checkpoints;
use ruminate_torch::dist::World;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{self, ConfigError};
use crate::console::Verbosity;
use crate::exit::Outcome;
use crate::launch::{LaunchError, launch};
use crate::logger;
use crate::rundir::{RunDir, RunDirError};
use crate::signals::StopFlag;
use crate::worker::{Worker, WorkerError};

/// The flags that every binary shares; flatten them into its own: `#[command(flatten)] run: RunArgs`.
///
/// `--seed` and `--precision` belong to a run's configuration, so [`RunArgs::load`] writes them there. Device, threads
/// and verbosity may differ when a run is resumed and stay out of it.
#[derive(Debug, Clone, Args)]
#[command(about = None::<&str>, long_about = None::<&str>)]
pub struct RunArgs {
    /// Configuration file. Keys that it leaves out keep their default, which is the paper's value
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,

    /// Override one key of the configuration, e.g. --set trainer.lr=1e-5 or --set 'data.eval_tasks=["obqa","csqa"]'.
    /// Repeatable; the last one wins. An unknown key is an error that names the nearest known one
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,

    /// Folder for everything the run writes: config.toml, metrics.jsonl, samples.jsonl, checkpoints/. Created if
    /// missing; refused if it already holds a run, unless --resume is given
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Where to compute. auto takes the first CUDA device and falls back to the CPU
    #[arg(long, value_name = "auto|cpu|cuda[:N]", default_value = "auto")]
    pub device: DeviceArg,

    /// Precision of the computation, for each part of the configuration that has one. bf16 halves the memory of the
    /// activations and keeps about three significant digits
    #[arg(long, value_name = "f32|bf16", value_parser = ["f32", "bf16"])]
    pub precision: Option<String>,

    /// Seed of every random choice; becomes part of the configuration
    // TOML's integers end at i64::MAX.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub seed: Option<u64>,

    /// CPU threads that libtorch may use. Default: one per core. Results are reproducible for one number of threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,

    /// Train with N processes on this machine, each on its part of every batch: on CUDA, one for each device. Settings such as
    /// batch_size are those of one process
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub nproc: Option<u16>,

    /// How long a process waits for the others before it gives up: longer than a checkpoint or a validation takes
    #[arg(long, value_name = "SECS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub rank_timeout: u32,

    /// Continue the run in --out from its last checkpoint, with the configuration that is stored there
    #[arg(long, requires = "out")]
    pub resume: bool,

    /// With --resume: go on from this checkpoint, e.g. step-1000, and drop what came after it. That is for a last
    /// checkpoint that turns out to be damaged
    #[arg(long, value_name = "step-N", requires = "resume", value_parser = step)]
    pub resume_from: Option<u64>,

    /// Print what the run would do and need (data, parameters, memory, steps, disk, time), load no weights and write nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Print the result as one line of JSON on stdout; progress stays on stderr
    #[arg(long)]
    pub json: bool,

    /// Show nothing but the result and errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Show all metrics instead of the first few, and notes about files (-v), and samples too (-vv)
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The dotted keys under which a configuration keeps what has a flag of its own. A flag sets all of its keys.
#[derive(Debug, Clone, Copy)]
pub struct FlagKeys {
    /// Keys for `--seed`; default `seed`.
    pub seed: &'static [&'static str],
    /// Keys for `--precision`, e.g. `train.precision`; default none, which makes the flag an error.
    pub precision: &'static [&'static str],
}

impl Default for FlagKeys {
    fn default() -> Self {
        Self { seed: &["seed"], precision: &[] }
    }
}

impl RunArgs {
    /// The resolved configuration: the defaults of `T`, then `--config`, then `--set`, `--seed` and `--precision`.
    ///
    /// With `--resume` and without `--config`, the stored configuration takes the place of the defaults, so that
    /// `--out DIR --resume` is all it takes to go on.
    ///
    /// # Errors
    /// See [`config::load`].
    pub fn load<T: Serialize + DeserializeOwned>(&self, keys: FlagKeys) -> Result<T, ConfigError> {
        self.show_logs();
        let stored = self.out.as_deref().filter(|_| self.resumes()).and_then(RunDir::stored_config);
        config::load(self.config.as_deref().or(stored.as_deref()), &self.overrides(keys)?)
    }

    /// These flags with the configuration of the run that `model` belongs to, where `--config` names none and no run is resumed.
    ///
    /// # Errors
    /// The model is not a run's, and its prompts, tokens and templates are not to be guessed.
    pub fn configured_as(&self, model: &Path) -> Result<Self, ConfigError> {
        if self.config.is_some() || self.resumes() {
            return Ok(self.clone());
        }
        match RunDir::config_of_model(model) {
            Some(config) => Ok(Self { config: Some(config), ..self.clone() }),
            None => {
                let reason = format!(
                    "--model: {} does not lie in the folder of a run, so nothing tells how it was trained; name a configuration with \
                     --config, such as the config.toml of its run",
                    model.display()
                );
                Err(ConfigError::invalid(reason))
            }
        }
    }

    /// Whether the run goes on where it was: with `--resume`, or when torchrun has started this process anew after a rank had
    /// failed (`--max-restarts`) and the run folder is there.
    pub fn resumes(&self) -> bool {
        let restarted = World::restarts().is_ok_and(|restarts| restarts > 0);
        self.resume || restarted && self.out.as_deref().and_then(RunDir::stored_config).is_some()
    }

    /// Refuses flags that a command has no use for.
    ///
    /// # Errors
    /// Names the flag that was given.
    pub fn refuse(&self, flags: &[&'static str]) -> Result<(), ConfigError> {
        let given = [
            ("--out", self.out.is_some()),
            ("--resume", self.resume),
            ("--resume-from", self.resume_from.is_some()),
            ("--dry-run", self.dry_run),
            ("--nproc", self.nproc.is_some_and(|nproc| nproc > 1)),
        ];
        match flags.iter().find(|flag| given.contains(&(**flag, true))) {
            Some(flag) => Err(ConfigError::UselessFlag { flag }),
            None => Ok(()),
        }
    }

    /// Creates the run folder, or opens it again with `--resume`, at the checkpoint of `--resume-from`.
    ///
    /// # Errors
    /// No `--out` was given, whatever [`RunDir::create`] and [`RunDir::resume`] refuse, and a checkpoint to go back to
    /// that is not there or damaged.
    pub fn open<T: Serialize>(&self, config: &T) -> Result<RunDir, RunDirError> {
        let out = self.out.as_deref().ok_or(RunDirError::NoFolder)?;
        if !self.is_main_process() {
            return Ok(RunDir::follow(out, self.resumes()));
        }
        if !self.resumes() {
            return RunDir::create(out, config);
        }
        let dir = RunDir::resume(out, config)?;
        if let Some(step) = self.resume_from {
            Checkpoints::open(&dir.checkpoints())
                .and_then(|checkpoints| checkpoints.rewind(step))
                .map_err(RunDirError::Rewind)?;
        }
        Ok(dir)
    }

    /// Applies `--threads` and returns the device to compute on: of several processes on one machine, each has its own CUDA
    /// device.
    ///
    /// # Errors
    /// `--device` names a device that is not there, or `--nproc` was given to a command that does not
    /// [`launch`](Self::launch).
    pub fn setup(&self) -> Result<tch::Device, DeviceError> {
        self.show_logs();
        ruminate_torch::keep_freed_memory();
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads.into());
        }
        match World::from_env() {
            Ok(Some(world)) => self.device.of_rank(world.local_rank).resolve(),
            _ if self.nproc.is_some_and(|nproc| nproc > 1) && !self.dry_run => Err(DeviceError::OneProcess),
            _ => self.device.resolve(),
        }
    }

    /// With `--nproc`, runs this command line in so many processes and returns when they have ended; `None` in each of them,
    /// and where one process is all. The first thing that a command does which can work in several.
    ///
    /// # Errors
    /// A process cannot be started or failed, or a launcher has started several already.
    pub fn launch(&self) -> Result<Option<Outcome>, LaunchError> {
        let nproc = self.nproc.map_or(1, usize::from);
        match World::from_env()? {
            Some(world) if nproc > 1 && nproc != world.size => {
                Err(LaunchError::Twice { nproc, size: world.size })
            }
            None if nproc > 1 => launch(nproc, self.threads).map(Some),
            _ => Ok(None),
        }
    }

    /// True in the process that writes files and shows results: the only one, or rank 0.
    fn is_main_process(&self) -> bool {
        !matches!(World::from_env(), Ok(Some(world)) if world.rank > 0)
    }

    /// How many processes work on this command: those that a launcher has started, or as many as `--nproc` says.
    pub fn processes(&self) -> usize {
        match World::from_env() {
            Ok(Some(world)) => world.size,
            _ => self.nproc.map_or(1, usize::from),
        }
    }

    /// True when resuming without `--config`: derived settings such as `steps` come from the run folder.
    pub fn reuses_stored_config(&self) -> bool {
        self.resumes() && self.config.is_none()
    }

    /// Device, seed and collective of this process, once it has joined the others. Call it after [`launch`](Self::launch).
    ///
    /// # Errors
    /// Those of [`setup`](Self::setup), [`Collective::from_env`] and [`StopFlag::on_ctrl_c`].
    pub fn worker(&self) -> Result<Worker, WorkerError> {
        let device = self.setup()?;
        let timeout = Duration::from_secs(self.rank_timeout.into());
        let collective = Collective::from_env(device, timeout).map_err(LaunchError::from)?;
        Ok(Worker { device, collective, verbosity: self.verbosity(), stop: StopFlag::on_ctrl_c()? })
    }

    /// Shows what the libraries log, once for all processes.
    fn show_logs(&self) {
        logger::install(if self.is_main_process() { self.verbosity() } else { Verbosity::Quiet });
    }

    /// How much `-q` and `-v` let through.
    pub fn verbosity(&self) -> Verbosity {
        match self.verbose {
            _ if self.quiet => Verbosity::Quiet,
            0 => Verbosity::Normal,
            1 => Verbosity::AllMetrics,
            _ => Verbosity::Samples,
        }
    }

    /// `--set` and the flags that are short for it; those come last, so that they win.
    fn overrides(&self, keys: FlagKeys) -> Result<Vec<String>, ConfigError> {
        let seed = self.seed.map(|seed| seed.to_string());
        let mut overrides = self.sets.clone();
        for (flag, value, keys) in
            [("--seed", seed, keys.seed), ("--precision", self.precision.clone(), keys.precision)]
        {
            let Some(value) = value else { continue };
            if keys.is_empty() {
                return Err(ConfigError::UselessFlag { flag });
            }
            overrides.extend(keys.iter().map(|key| format!("{key}={value}")));
        }
        Ok(overrides)
    }
}

/// The name of a checkpoint, or its number alone.
fn step(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix("step-").unwrap_or(text);
    number.parse().map_err(|_| "expected the name of a checkpoint, such as step-1000".to_owned())
}

/// The value of `--device`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceArg {
    /// The first CUDA device, or the CPU where there is none.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this index.
    Cuda(usize),
}

/// A device that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not the name of a device.
    #[error("`{0}` is not a device; expected auto, cpu, cuda or cuda:N")]
    Unknown(String),
    /// Several processes were asked for where only one can work.
    #[error("--nproc: this command works in one process only; leave it out")]
    OneProcess,
    /// CUDA was asked for and libtorch sees none.
    #[error(
        "--device cuda:{0}: libtorch finds no CUDA device; check that it was built with CUDA and that `nvidia-smi` lists \
         a GPU, or use --device cpu"
    )]
    NoCuda(usize),
    /// A CUDA device beyond the last one was asked for.
    #[error("--device cuda:{index}: there is no such device; the last one is cuda:{}", count - 1)]
    NoSuchDevice {
        /// Index that was asked for.
        index: usize,
        /// Number of devices, at least 1.
        count: usize,
    },
}

impl FromStr for DeviceArg {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl DeviceArg {
    /// The device to compute on.
    ///
    /// # Errors
    /// A CUDA device was asked for that libtorch does not see.
    pub fn resolve(self) -> Result<tch::Device, DeviceError> {
        let count =
            if self != Self::Cpu && tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
        self.resolve_among(usize::try_from(count).unwrap_or(0))
    }

    /// The device of one of several processes of this machine: the devices from this one on are dealt to them.
    fn of_rank(self, local_rank: usize) -> Self {
        match self {
            Self::Cpu => Self::Cpu,
            Self::Cuda(first) => Self::Cuda(first + local_rank),
            Self::Auto if tch::Cuda::is_available() => Self::Cuda(local_rank),
            Self::Auto => Self::Auto,
        }
    }

    fn resolve_among(self, count: usize) -> Result<tch::Device, DeviceError> {
        match self {
            Self::Cpu => Ok(tch::Device::Cpu),
            Self::Auto if count == 0 => Ok(tch::Device::Cpu),
            Self::Auto => Ok(tch::Device::Cuda(0)),
            Self::Cuda(index) if count == 0 => Err(DeviceError::NoCuda(index)),
            Self::Cuda(index) if index >= count => Err(DeviceError::NoSuchDevice { index, count }),
            Self::Cuda(index) => Ok(tch::Device::Cuda(index)),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use ruminate_algorithms::Precision;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        seed: u64,
        precision: Precision,
        lr: f64,
    }

    impl Default for Config {
        fn default() -> Self {
            Self { seed: 0, precision: Precision::F32, lr: 1e-5 }
        }
    }

    const KEYS: FlagKeys = FlagKeys { seed: &["seed"], precision: &["precision"] };

    fn args(line: &str) -> RunArgs {
        Cli::try_parse_from(["test"].into_iter().chain(line.split_whitespace())).unwrap().run
    }

    #[test]
    fn the_definition_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    /// A flattened type's documentation is for programmers, and must not become the help text of the binary.
    #[test]
    fn the_help_of_the_binary_is_its_own() {
        /// Trains a reasoner.
        #[derive(Debug, Parser)]
        struct Documented {
            #[command(flatten)]
            _run: RunArgs,
        }
        #[derive(Debug, Parser)]
        enum Subcommands {
            /// Trains a policy.
            Train(RunArgs),
        }
        use clap::CommandFactory;
        let about = |command: &clap::Command| {
            (command.get_about().map(ToString::to_string), command.get_long_about().map(ToString::to_string))
        };
        assert_eq!(about(&Cli::command()), (None, None));
        assert_eq!(about(&Documented::command()), (Some("Trains a reasoner".into()), None));
        let train = Subcommands::command().find_subcommand("train").cloned().unwrap();
        assert_eq!(about(&train), (Some("Trains a policy".into()), None));
    }

    #[test]
    fn seed_and_precision_are_part_of_the_configuration() {
        let config: Config = args("--seed 7 --precision bf16 --set lr=1e-4 --set seed=3").load(KEYS).unwrap();
        assert_eq!(config, Config { seed: 7, precision: Precision::Bf16, lr: 1e-4 });

        let message = args("--precision f32").load::<Config>(FlagKeys::default()).unwrap_err().to_string();
        assert_eq!(message, "--precision has no effect on this command; leave it out");
    }

    #[test]
    fn resume_starts_from_the_stored_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().display();
        let start = args(&format!("--out {out} --seed 7 --set lr=1e-4"));
        let config: Config = start.load(KEYS).unwrap();
        drop(start.open(&config).unwrap());

        for flags in ["", "--seed 7", "--set lr=1e-4"] {
            let resume = args(&format!("--out {out} --resume {flags}"));
            let resumed: Config = resume.load(KEYS).unwrap();
            assert_eq!(resumed, config);
            assert!(resume.open(&resumed).unwrap().is_resumed());
        }

        let changed = args(&format!("--out {out} --resume --seed 8"));
        let message = changed.open(&changed.load::<Config>(KEYS).unwrap()).unwrap_err().to_string();
        assert!(message.ends_with("\n  seed: stored 7, now 8"), "{message}");
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in [
            "-q -v",
            "--resume",
            "--out o --resume-from step-3",
            "--out o --resume --resume-from best",
            "--threads 0",
            "--nproc 0",
            "--rank-timeout 0",
            "--device tpu",
            "--device cuda:x",
            "--seed -1",
            "--precision f16",
        ] {
            let error = Cli::try_parse_from(["test"].into_iter().chain(line.split_whitespace())).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        assert!(matches!(args("").open(&Config::default()), Err(RunDirError::NoFolder)));
    }

    #[test]
    fn verbosity_counts() {
        let levels = ["-q", "", "-v", "-vv", "-vvv"].map(|line| args(line).verbosity());
        use Verbosity::{AllMetrics, Normal, Quiet, Samples};
        assert_eq!(levels, [Quiet, Normal, AllMetrics, Samples, Samples]);
    }

    #[test]
    fn devices_resolve_to_what_is_there() {
        let device = |text: &str, count| text.parse::<DeviceArg>()?.resolve_among(count);
        assert_eq!(device("auto", 0), Ok(tch::Device::Cpu));
        assert_eq!(device("auto", 2), Ok(tch::Device::Cuda(0)));
        assert_eq!(device("cpu", 2), Ok(tch::Device::Cpu));
        assert_eq!(device("cuda:1", 2), Ok(tch::Device::Cuda(1)));
        assert_eq!(device("cuda", 0), Err(DeviceError::NoCuda(0)));
        let message = device("cuda:2", 2).unwrap_err().to_string();
        assert_eq!(message, "--device cuda:2: there is no such device; the last one is cuda:1");
    }

    #[test]
    fn setup_applies_the_threads() {
        assert_eq!(args("--device cpu --threads 1").setup(), Ok(tch::Device::Cpu));
        assert_eq!(tch::get_num_threads(), 1);
    }
}
