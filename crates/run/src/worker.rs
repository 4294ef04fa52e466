use std::path::Path;

use ruminate_algorithms::{Collective, Observer};
use ruminate_models::Interrupt;
use serde::Serialize;
use tch::Device;

use crate::cli::DeviceError;
use crate::console::Verbosity;
use crate::launch::LaunchError;
use crate::observer::{ConsoleObserver, RunObserver};
use crate::rundir::{RunDir, RunDirError};
use crate::signals::{SignalError, StopFlag};

/// What a process works with: the only one of a command, or one of several. Rank 0 writes run folders and shows progress; the others
/// read what it wrote, and pass on requests to stop.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Where it computes.
    pub device: Device,
    /// The processes that work together.
    pub collective: Collective,
    /// How much it shows.
    pub verbosity: Verbosity,
    /// Whether it was asked to stop.
    pub stop: StopFlag,
}

/// A process cannot begin its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The others are not there.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It cannot be asked to stop.
    #[error(transparent)]
    Signal(#[from] SignalError),
}

impl WorkerError {
    /// Does another command line mend it?
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            Self::Device(_) => true,
            Self::Launch(error) => error.is_usage(),
            Self::Signal(_) => false,
        }
    }
}

impl Worker {
    /// The only process, on the CPU.
    #[must_use]
    pub fn alone(verbosity: Verbosity, stop: StopFlag) -> Self {
        Self { device: Device::Cpu, collective: Collective::default(), verbosity, stop }
    }

    /// True if this process tells the user things: it leads, and `--quiet` was not given.
    #[must_use]
    pub fn shows(&self) -> bool {
        self.collective.is_main_process() && self.verbosity != Verbosity::Quiet
    }

    /// Begins a run in a folder, or goes on with the one that is there.
    ///
    /// # Errors
    /// Whatever [`RunDir::create`] and [`RunDir::resume`] refuse.
    pub fn open<T: Serialize>(&self, folder: &Path, config: &T) -> Result<RunDir, RunDirError> {
        if !self.collective.is_main_process() {
            return Ok(RunDir::follow(folder, false));
        }
        match RunDir::stored_config(folder) {
            Some(_) => RunDir::resume(folder, config),
            None => RunDir::create(folder, config),
        }
    }

    /// Shows the progress of work that has no run folder.
    #[must_use]
    pub fn console(&self) -> Box<dyn Observer> {
        if self.collective.is_main_process() {
            Box::new(ConsoleObserver::new(self.verbosity))
        } else {
            Box::new(Follower(self.stop.clone()))
        }
    }

    /// The observer of a run.
    ///
    /// # Errors
    /// The files cannot be created.
    pub fn observer(&self, dir: &RunDir) -> Result<Box<dyn Observer>, RunDirError> {
        let stop = self.stop.clone();
        if self.collective.is_main_process() {
            Ok(Box::new(RunObserver::new(dir, self.device, self.verbosity, stop)?))
        } else {
            Ok(Box::new(Follower(stop)))
        }
    }
}

/// The observer of a process that does not lead.
struct Follower(StopFlag);

impl Observer for Follower {
    fn stop_requested(&self) -> bool {
        self.0.is_requested()
    }

    fn interrupt(&self) -> Interrupt {
        self.0.interrupt()
    }
}
