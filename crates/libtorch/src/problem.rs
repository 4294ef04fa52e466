//! Errors that say what to do about them.

use std::fmt;
use std::path::Path;

/// Something that is not right, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The fault, in one line.
    pub what: String,
    /// The remedy: a command, or a sentence.
    pub fix: String,
}

impl Problem {
    /// A problem and its remedy.
    pub fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }

    /// A file operation that failed.
    pub(crate) fn io(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(
            format!("{doing} {}: {error}", path.display()),
            "check the folder's permissions and the disk, or set RUMINATE_CACHE to another folder",
        )
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Problem {}
