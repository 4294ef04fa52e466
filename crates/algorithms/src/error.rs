//! The crate's error type.

use std::path::{Path, PathBuf};

use crate::ObserverError;
use crate::trainer::Damage;

/// What can end a training or evaluation run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range.
    #[error("setting `{key}`: {reason}")]
    Config {
        /// The setting.
        key: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A loss is not a number any more.
    #[error(
        "the loss `{name}` became {value} at or before step {step}; a lower learning rate or gradient clipping \
         (`max_grad_norm`) usually mends this. The last checkpoint is from before"
    )]
    NotFinite {
        /// The loss.
        name: String,
        /// Its value.
        value: f64,
        /// The step at which it was noticed.
        step: u64,
    },
    /// Samples do not make a data pool.
    #[error("the data pool: {reason}")]
    Pool {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A checkpoint cannot be read or written.
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A checkpoint is not what was written.
    #[error("{} {damage}{}", folder.join(file).display(), way_out(intact.as_deref()))]
    Damaged {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The file, relative to it.
        file: String,
        /// What is wrong with the file.
        damage: Damage,
        /// The newest earlier checkpoint that is intact; see [`Checkpoints::rewind`](crate::trainer::Checkpoints::rewind).
        intact: Option<PathBuf>,
    },
    /// The disk is full, or a quota or limit is reached.
    #[error("there is no room for the checkpoint {}: it takes {}{}; then go on with `--resume`. The checkpoints before \
        it are intact", path.display(), bytes(*needed), what_to_free(*needed, *free))]
    NoRoom {
        /// The checkpoint.
        path: PathBuf,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are free on its disk, where the system tells.
        free: Option<u64>,
        /// What could not be written.
        source: Box<Error>,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Processes that train together do not agree.
    #[error("the ranks of this run do not fit together: {0}")]
    Ranks(String),
    /// The observer could not do its work.
    #[error("the run cannot be recorded")]
    Observer(#[source] ObserverError),
    /// Data could not be read.
    #[error(transparent)]
    Data(#[from] ruminate_datasets::Error),
    /// A chat template could not render a dialogue.
    #[error(transparent)]
    Chat(#[from] ruminate_datasets::chat::ChatError),
    /// A judgement of choices failed.
    #[error(transparent)]
    Choice(#[from] ruminate_rewards::ChoiceError),
    /// A reward failed.
    #[error(transparent)]
    Reward(#[from] ruminate_rewards::RewardError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ruminate_models::Error),
    /// The libtorch layer failed.
    #[error(transparent)]
    Torch(#[from] ruminate_torch::Error),
    /// libtorch failed.
    #[error(transparent)]
    Tch(tch::TchError),
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Tch(ruminate_torch::plain(error))
    }
}

impl Error {
    /// Whether a setting is at fault, rather than a file or a machine.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        use ruminate_datasets::Error as Data;
        matches!(self, Self::Config { .. } | Self::Data(Data::UnknownTask { .. } | Data::BadTemplate { .. }))
    }

    /// Whether somebody asked to stop while a model was writing or scoring, so that nothing is wrong.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        // A transparent error does not name its cause.
        let stopped = |error: &(dyn std::error::Error + 'static)| {
            use ruminate_models::Error::Interrupted;
            let own = matches!(error.downcast_ref(), Some(Self::Model(Interrupted)));
            let reward = error.downcast_ref::<Self>().and_then(|error| match error {
                Self::Reward(reward) => Some(reward),
                _ => None,
            });
            let behind = reward.or_else(|| error.downcast_ref());
            let models = matches!(behind, Some(ruminate_rewards::RewardError::Model(Interrupted)));
            own || models || matches!(error.downcast_ref(), Some(Interrupted))
        };
        std::iter::successors(Some(self as &(dyn std::error::Error + 'static)), |error| error.source())
            .any(stopped)
    }

    pub(crate) fn config(key: &str, reason: impl Into<String>) -> Self {
        Self::Config { key: key.to_string(), reason: reason.into() }
    }

    /// Refuses to be one of several processes.
    pub(crate) fn alone(processes: usize) -> Result<()> {
        if processes == 1 {
            return Ok(());
        }
        let reason =
            format!("is {processes}, but this kind of training runs in one process only so far; set it to 1");
        Err(Self::config("nproc", reason))
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

fn way_out(intact: Option<&Path>) -> String {
    let Some(path) = intact else {
        return "; no earlier checkpoint is intact: bring this one back from a backup, or start anew".into();
    };
    let step = path.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "; the newest earlier checkpoint that is intact is {}: train on from it with `--resume --resume-from {step}`, or \
         evaluate it with `--model`",
        path.display()
    )
}

fn what_to_free(needed: u64, free: Option<u64>) -> String {
    match free {
        Some(free) if free < needed => {
            format!(
                ", but {} are free on that disk. Free at least {} there",
                bytes(free),
                bytes(needed - free)
            )
        }
        Some(free) => format!(
            ". {} are free on that disk, so a quota or a limit on the size of files is in the way (`quota`, `ulimit -f`). \
             Raise it, or free as much",
            bytes(free)
        ),
        None => ". Free as much on that disk".into(),
    }
}

/// For people: three digits and a unit.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if n < 1000 {
        return format!("{n} bytes");
    }
    let mut value = n as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.5 {
        value /= 1e3;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
