//! The crate's error type.

use std::path::{Path, PathBuf};

use crate::ObserverError;

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
    /// A checkpoint cannot be read or written.
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
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
    /// The observer could not do its work.
    #[error("the run cannot be recorded")]
    Observer(#[source] ObserverError),
    /// Data could not be read.
    #[error(transparent)]
    Data(#[from] ruminate_datasets::Error),
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
    Tch(#[from] tch::TchError),
}

impl Error {
    /// Whether a setting is at fault, rather than a file or a machine.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        use ruminate_datasets::Error as Data;
        matches!(self, Self::Config { .. } | Self::Data(Data::UnknownTask { .. } | Data::BadTemplate { .. }))
    }

    pub(crate) fn config(key: &str, reason: impl Into<String>) -> Self {
        Self::Config { key: key.to_string(), reason: reason.into() }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
