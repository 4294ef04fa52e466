//! Why a teacher could not be asked.

use std::path::PathBuf;

use super::KeySource;

/// Every error of the teacher. None of them holds the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TeacherError {
    /// A setting that cannot be used.
    #[error("teacher.{field}: {reason}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// There is no key where it should be.
    #[error("the teacher's key is missing: {}, or set teacher.key = \"none\" for a server that needs no key", .0.remedy())]
    MissingKey(KeySource),
    /// The server does not accept the key.
    #[error("the teacher's server refuses the key (status {status}): {}; the server says: {message}", .key.remedy())]
    Unauthorized {
        /// 401 or 403.
        status: u16,
        /// Where the key comes from.
        key: KeySource,
        /// What the server said.
        message: String,
    },
    /// The server cannot serve any request of this kind.
    #[error(
        "the teacher's server refuses {url} (status {status}): {message}; check teacher.base_url, teacher.model and the account"
    )]
    Refused {
        /// The status.
        status: u16,
        /// The address that was asked.
        url: String,
        /// What the server said.
        message: String,
    },
    /// Request after request failed.
    #[error(
        "{failures} requests in a row failed, the last one, `{id}`, so: {reason}; mend it and start again, the answers so far are kept"
    )]
    GaveUp {
        /// How many.
        failures: usize,
        /// The last request.
        id: String,
        /// Why it failed.
        reason: String,
    },
    /// Two requests have the same id.
    #[error("two requests have the id `{0}`; each needs an id of its own")]
    DuplicateId(String),
    /// The file has two answers to one request.
    #[error("{}: line {line}: a second answer to `{id}`; remove one of them", .path.display())]
    SecondAnswer {
        /// The file.
        path: PathBuf,
        /// The line of the second one, counted from 1.
        line: usize,
        /// The request.
        id: String,
    },
    /// The file has the answer to a request that is not among those that were asked.
    #[error("{}: line {line}: nobody asked {}; are these the answers of another round?", .path.display(),
        .id.as_ref().map_or_else(|| "a request with these messages".into(), |id| format!("`{id}`")))]
    NotAsked {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The request, where the line names it.
        id: Option<String>,
    },
    /// The file has the answer to another request under the same id.
    #[error(
        "{}: line {line}: `{id}` was asked with another {field} than now; write to a new file, or give the request a new id", .path.display()
    )]
    RequestChanged {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The request.
        id: String,
        /// What differs: `model`, `messages` or `sampling`.
        field: &'static str,
    },
    /// A thread could not be started.
    #[error("cannot start {0} threads; lower teacher.concurrency")]
    Threads(usize, #[source] std::io::Error),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] crate::Error),
}
