use std::path::{Path, PathBuf};

use anyhow::Context;
use ruminate_algorithms::{Error, KeptTexts, Result};

use super::Configuration;
use crate::cli::{FlagKeys, RunArgs};
use crate::config::ConfigError;
use crate::model::resolve_link;
use crate::output::Table;
use crate::worker::Worker;

/// Texts of an evaluation that is not over, in the folder of its results.
const TEXTS: &str = "texts.jsonl";

/// A command that judges a checkpoint: its flags and its configuration, which is that of the checkpoint's run unless `--config` names
/// another.
#[derive(Debug)]
pub struct Evaluation<C> {
    /// The flags, with the configuration's path.
    pub args: RunArgs,
    /// The configuration.
    pub config: C,
    /// The checkpoint's folder, where `best` and `last` are resolved.
    pub model: Option<PathBuf>,
}

impl<C: Configuration> Evaluation<C> {
    /// Checks the flags, finds the checkpoint, and loads the configuration.
    ///
    /// # Errors
    /// There is no such folder, a flag is given that has no use (`--resume`, `--dry-run`, `--precision`), or the configuration cannot be
    /// loaded.
    pub fn new(args: &RunArgs, model: Option<&Path>) -> std::result::Result<Self, ConfigError> {
        args.refuse(&["--resume", "--dry-run"])?;
        let model = model.map(checkpoint).transpose()?;
        let args = match &model {
            Some(model) => args.configured_as(model)?,
            None => args.clone(),
        };
        let config: C = args.load(FlagKeys { precision: &[], ..C::FLAGS })?;
        config.validate()?;
        Ok(Self { args, config, model })
    }
}

impl Worker {
    /// A model that all processes evaluate together. What it has written is kept in a folder, so that an evaluation that is stopped or killed
    /// goes on with it; the folder is created now, and not after hours of work. Without a folder, nothing is kept.
    ///
    /// # Errors
    /// The folder cannot be created, or its file not be read.
    pub fn evaluated<'m, M>(
        &self,
        model: &'m M,
        checkpoint: &Path,
        out: Option<&Path>,
    ) -> anyhow::Result<KeptTexts<'m, M>> {
        if let Some(out) = out.filter(|_| self.collective.is_main_process()) {
            std::fs::create_dir_all(out)
                .with_context(|| format!("cannot create {}; choose another --out", out.display()))?;
        }
        let file = out.map(|out| out.join(TEXTS));
        Ok(KeptTexts::across(model, checkpoint, file.as_deref(), &self.collective)?)
    }

    /// Does work that Ctrl-C may interrupt; `None` if it did.
    ///
    /// # Errors
    /// Those of the work.
    pub fn interruptible<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Option<T>> {
        match self.stop.interrupt().during(work) {
            Err(error) if is_interruption(&error) => Ok(None),
            result => result.map(Some),
        }
    }
}

/// True for the error of work that was interrupted, whichever crate it comes from and whatever was added to it.
fn is_interruption(error: &anyhow::Error) -> bool {
    let model = |cause: &&(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(ruminate_models::Error::Interrupted))
    };
    let algorithm =
        |cause: &&(dyn std::error::Error + 'static)| cause.downcast_ref().is_some_and(Error::is_interruption);
    error.chain().any(|cause| model(&cause) || algorithm(&cause))
}

/// The checkpoints of a run, the oldest first. `model` is the run's folder, its `checkpoints`, or one of them.
///
/// # Errors
/// There are none.
pub fn checkpoints_of(model: &Path) -> std::result::Result<Vec<PathBuf>, ConfigError> {
    let folders =
        [Some(model.join("checkpoints")), Some(model.into()), model.parent().map(Path::to_path_buf)];
    for folder in folders.into_iter().flatten() {
        let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut found: Vec<(u64, PathBuf)> =
            entries.filter_map(|entry| Some((step(&entry.path())?, entry.path()))).collect();
        if !found.is_empty() {
            found.sort();
            return Ok(found.into_iter().map(|(_, path)| path).collect());
        }
    }
    let reason = format!("--model: {} has no checkpoints such as checkpoints/step-100", model.display());
    Err(ConfigError::invalid(reason))
}

/// The folder of the checkpoint that `--model` names, where `best` and `last` are resolved.
///
/// # Errors
/// There is no such folder.
pub fn checkpoint(model: &Path) -> std::result::Result<PathBuf, ConfigError> {
    if !model.is_dir() {
        let reason = format!("--model: there is no checkpoint folder {}", model.display());
        return Err(ConfigError::invalid(reason));
    }
    Ok(resolve_link(model))
}

/// Turns the error of work that the user interrupted into `None`.
///
/// # Errors
/// All others.
pub fn uninterrupted<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if error.is_interruption() => Ok(None),
        result => result.map(Some),
    }
}

/// The table of files that a command has written.
#[must_use]
pub fn files_table(written: &[PathBuf]) -> Table {
    let mut files = Table::new(["written"]);
    for path in written {
        files.row([path.display().to_string()]);
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_work_is_told_by_whatever_error_says_so() {
        let worker = Worker::alone(crate::Verbosity::Quiet, crate::StopFlag::default());
        let interrupted = || ruminate_models::Error::Interrupted;
        for error in [
            anyhow::Error::from(interrupted()),
            anyhow::Error::from(interrupted()).context("writing"),
            Error::from(interrupted()).into(),
            anyhow::Error::from(Error::from(interrupted())).context("judging"),
        ] {
            assert!(worker.interruptible(|| Err::<(), _>(error)).unwrap().is_none());
        }
        let other = worker.interruptible(|| Err::<(), _>(anyhow::anyhow!("damaged"))).unwrap_err();
        assert_eq!(other.to_string(), "damaged");
        assert_eq!(worker.interruptible(|| Ok(3)).unwrap(), Some(3));
    }
}
