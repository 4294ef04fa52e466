//! Runs for trackers of experiments.

mod mlflow;

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::exit::Outcome;
use crate::output::{print, print_json};
use crate::rundir::{RunDir, RunDirError};

/// Which runs, and where to.
#[derive(Debug, Clone, Args)]
#[command(about = None::<&str>, long_about = None::<&str>)]
pub struct SyncArgs {
    /// Folders of runs
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Folder of MLflow's file store, made where it is missing
    #[arg(long, value_name = "DIR", default_value = "mlruns")]
    mlflow: PathBuf,
    /// Name of the experiment that the runs belong to
    #[arg(long, value_name = "NAME", default_value = "ruminate")]
    experiment: String,
    /// Print the result as one line of JSON on stdout
    #[arg(long)]
    json: bool,
}

impl SyncArgs {
    pub(crate) fn run(&self) -> Result<Outcome, RunDirError> {
        if let Some(run) = self.runs.iter().find(|run| RunDir::stored_config(run).is_none()) {
            return Err(RunDirError::NoRun(run.clone()));
        }
        let written = self
            .runs
            .iter()
            .map(|run| mlflow::write(run, &self.mlflow, &self.experiment))
            .collect::<Result<Vec<PathBuf>, _>>()?;
        let stdout = || RunDirError::io("write to", Path::new("stdout"));
        if self.json {
            print_json(&json!({ "mlflow": written })).map_err(stdout())?;
        } else {
            for folder in &written {
                print(&folder.display().to_string()).map_err(stdout())?;
            }
        }
        Ok(Outcome::Done)
    }
}
