#![doc = include_str!("../README.md")]

pub mod compare;
pub mod crystal;
pub mod dpo;
pub mod file;
mod lenient;
pub mod mario;
pub mod models;
pub mod references;
pub mod rise;
pub mod runner;
pub mod tinythinker;

use std::path::Path;

/// Runs all cases of one kind. It gets the golden file, or for the topic `models` the folder.
pub type KindFn = fn(&Path) -> Result<Outcome, file::GoldenError>;

/// What became of the cases of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The cases that ran.
    pub cases: Vec<CaseResult>,
    /// The names of cases that the libraries do not support yet: neither passed nor failed.
    pub pending: Vec<String>,
}

impl Outcome {
    /// Records a case.
    pub fn case(&mut self, name: impl Into<String>, check: compare::Check) {
        let failure = check.err().map(|compare::Mismatch(text)| text);
        self.cases.push(CaseResult { name: name.into(), failure });
    }

    /// Records a case that the libraries do not support yet.
    pub fn pending(&mut self, name: impl Into<String>) {
        self.pending.push(name.into());
    }
}

/// What became of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseResult {
    /// The case.
    pub name: String,
    /// Why it failed, or nothing if it passed.
    pub failure: Option<String>,
}

/// A family of golden cases: a folder below a root.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    /// The folder's name.
    pub name: &'static str,
    /// Is each kind a folder of its own, rather than a JSON file?
    pub folders: bool,
    /// What runs a kind, or nothing if the kind is not known. It may look into the path.
    pub find: fn(kind: &str, path: &Path) -> Option<KindFn>,
}

/// All topics.
pub const TOPICS: [Topic; 6] = [
    Topic { name: "models", folders: true, find: models::find },
    Topic { name: "crystal", folders: false, find: crystal::find },
    Topic { name: "mario", folders: false, find: mario::find },
    Topic { name: "rise", folders: false, find: rise::find },
    Topic { name: "tinythinker", folders: false, find: tinythinker::find },
    Topic { name: "dpo", folders: false, find: dpo::find },
];
