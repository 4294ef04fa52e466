//! The commands that every binary has besides its own.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::exit::Outcome;
use crate::output::print_json;
use crate::rundir::RunDirError;
use crate::sync::SyncArgs;
use crate::{doctor, report};

/// Commands of every binary; flatten them into its own: `#[command(flatten)] Shared(SharedCommand)`.
#[derive(Debug, Clone, Subcommand)]
#[command(about = None::<&str>, long_about = None::<&str>)]
pub enum SharedCommand {
    /// Write the report of a run anew (report.html, from the files in its folder), or one that compares several runs
    ///
    /// For example: report runs/first runs/second --out runs/comparison
    Report(ReportArgs),
    /// Write runs in the form that MLflow reads, with their metrics, settings and reports
    ///
    /// For example: sync runs/sft, and then MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri mlruns
    Sync(SyncArgs),
    /// Check libtorch, devices, memory and disk, and print for each thing that is not right what mends it
    ///
    /// For example: doctor --out runs
    Doctor(DoctorArgs),
}

/// Which runs, and where to.
#[derive(Debug, Clone, Args)]
#[command(about = None::<&str>, long_about = None::<&str>)]
pub struct ReportArgs {
    /// Folders of runs. Of several, their curves, settings, results and texts are compared
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Folder for report.html. Default: that of the run; of several, runs/comparison
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the result as one line of JSON on stdout
    #[arg(long)]
    json: bool,
}

/// What to check.
#[derive(Debug, Clone, Args)]
#[command(about = None::<&str>, long_about = None::<&str>)]
pub struct DoctorArgs {
    /// Folder for runs: is it writable, and is there space
    #[arg(long, value_name = "DIR", default_value = "runs")]
    out: PathBuf,
    /// CPU threads that runs are to use. Default: libtorch's choice
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Print the findings as one line of JSON on stdout
    #[arg(long)]
    json: bool,
}

impl SharedCommand {
    /// Does what is asked and prints the result.
    ///
    /// # Errors
    /// There is no run to report on, or stdout cannot be written to. What the doctor finds is no error but
    /// [`Outcome::Failed`].
    pub fn run(&self) -> Result<Outcome, RunDirError> {
        let stdout = || RunDirError::io("write to", Path::new("stdout"));
        match self {
            Self::Sync(args) => args.run(),
            Self::Report(args) => {
                let path = match (args.runs.as_slice(), &args.out) {
                    ([run], None) => report::write(run)?,
                    ([run], Some(out)) => report::write_into(run, out)?,
                    (runs, out) => report::write_comparison(
                        runs,
                        out.as_deref().unwrap_or(Path::new("runs/comparison")),
                    )?,
                };
                if args.json {
                    print_json(&json!({ "report": path })).map_err(stdout())?;
                } else {
                    crate::output::print(&path.display().to_string()).map_err(stdout())?;
                }
                Ok(Outcome::Done)
            }
            Self::Doctor(args) => {
                if let Some(threads) = args.threads {
                    tch::set_num_threads(threads.into());
                }
                let findings = doctor::examine(&args.out);
                doctor::print(&findings, args.json).map_err(stdout())?;
                Ok(if findings.iter().any(doctor::Finding::is_problem) {
                    Outcome::Failed
                } else {
                    Outcome::Done
                })
            }
        }
    }
}
