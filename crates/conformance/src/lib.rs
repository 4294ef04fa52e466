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
    /// Whether a vector is a folder rather than a JSON file.
    pub folders: bool,
    /// The kinds that are covered, and what runs each.
    pub kinds: &'static [(&'static str, KindFn)],
}

impl Topic {
    /// The kind of a vector: the file's name without its ending; a folder may name it in its `cases.json`.
    pub fn kind_of(&self, path: &Path) -> String {
        if self.folders {
            return models::kind_of(path);
        }
        path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The function that runs a vector; [`None`] if its kind is not known.
    pub fn find(&self, path: &Path) -> Option<KindFn> {
        let kind = self.kind_of(path);
        self.kinds.iter().find(|(name, _)| *name == kind).map(|&(_, run)| run)
    }
}

/// All topics.
pub const TOPICS: [Topic; 6] = [
    Topic { name: "models", folders: true, kinds: models::KINDS },
    Topic { name: "crystal", folders: false, kinds: crystal::KINDS },
    Topic { name: "mario", folders: false, kinds: mario::KINDS },
    Topic { name: "rise", folders: false, kinds: rise::KINDS },
    Topic { name: "tinythinker", folders: false, kinds: tinythinker::KINDS },
    Topic { name: "dpo", folders: false, kinds: dpo::KINDS },
];
