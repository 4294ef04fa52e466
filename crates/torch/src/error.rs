//! The crate's error type.

/// What can go wrong in libtorch, or on the way there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A function of the C++ shim failed.
    #[error("libtorch refused `{op}`: {message}")]
    Libtorch {
        /// The shim's function.
        op: &'static str,
        /// libtorch's own words.
        message: String,
    },
    /// A call through `tch` failed.
    #[error(transparent)]
    Tch(tch::TchError),
    /// A saved optimizer or generator state does not fit.
    #[error("state tensor `{name}`: {reason}")]
    State {
        /// The tensor's name in the state.
        name: String,
        /// What does not fit.
        reason: String,
    },
    /// Several processes could not do something together.
    #[error("rank {rank} of {size}: {op} failed after {:.1} s: {message}", secs)]
    Collective {
        /// This process.
        rank: usize,
        /// All processes.
        size: usize,
        /// What they were to do.
        op: &'static str,
        /// For how long this process had waited.
        secs: f64,
        /// What happened, and where to look.
        message: String,
    },
    /// A launcher's variables do not describe a group of processes.
    #[error("environment variable {variable}: {reason}")]
    World {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Tch(plain(error))
    }
}

/// An error of libtorch without the stack trace that it carries.
#[must_use]
pub fn plain(error: tch::TchError) -> tch::TchError {
    match error {
        tch::TchError::Torch(message) => tch::TchError::Torch(without_trace(&message).into()),
        other => other,
    }
}

/// libtorch's words up to the place in its sources and the trace behind it.
pub(crate) fn without_trace(message: &str) -> &str {
    let ends = ["\nException raised from ", " (function operator", "\nframe #0"];
    let end = ends.iter().filter_map(|end| message.find(end)).min();
    message[..end.unwrap_or(message.len())].trim_end()
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
