//! Finds golden files, runs them, and reports.

use crate::compare::Mismatch;
use crate::{CaseResult, KindFn, Outcome, TOPICS, Topic};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The variable that names the roots, colon-separated.
pub const ROOTS_VARIABLE: &str = "RUMINATE_GOLDEN";

/// Where golden files are looked for when nobody says: the roots that [`ROOTS_VARIABLE`] names, else
/// `fixtures/golden` of this workspace, and `../shared/golden` and `../shared/golden-next` beside it, as far as they exist.
pub fn default_roots() -> Vec<PathBuf> {
    match std::env::var_os(ROOTS_VARIABLE) {
        Some(roots) if !roots.is_empty() => std::env::split_paths(&roots).collect(),
        _ => {
            let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
            // Resolved, so that the report shows the folder and not the way to it.
            let existing = |folder: &str| workspace.join(folder).canonicalize().ok();
            ["fixtures/golden", "../shared/golden", "../shared/golden-next"]
                .into_iter()
                .filter_map(existing)
                .collect()
        }
    }
}

/// What became of everything below the roots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The kinds that were found, by root and topic.
    pub kinds: Vec<KindReport>,
    /// What is wrong beyond single cases.
    pub problems: Vec<String>,
}

/// What became of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindReport {
    /// The root it lies below.
    pub root: PathBuf,
    /// Its topic.
    pub topic: String,
    /// Its name.
    pub kind: String,
    /// What its cases gave; nothing if the kind is not covered.
    pub outcome: Option<Outcome>,
}

/// Runs every known kind below the roots; with topics, only theirs, and then each of them must be known, must have
/// a case, and must have no kind that is not known.
pub fn run(roots: &[PathBuf], topics: &[String]) -> Report {
    let mut report = Report::default();
    for name in topics.iter().filter(|name| TOPICS.iter().all(|topic| topic.name != *name)) {
        let known: Vec<&str> = TOPICS.iter().map(|topic| topic.name).collect();
        report.problems.push(format!("unknown topic `{name}`; the topics are {}", known.join(", ")));
    }
    for root in roots {
        if !root.is_dir() {
            report
                .problems
                .push(format!("{} is no folder; check --root and {ROOTS_VARIABLE}", root.display()));
            continue;
        }
        let wanted = |topic: &&Topic| topics.is_empty() || topics.iter().any(|name| name == topic.name);
        for topic in TOPICS.iter().filter(wanted) {
            run_topic(root, topic, &mut report);
        }
        if topics.is_empty() {
            let unknown = list(root).into_iter().filter(|path| path.is_dir()).map(|path| name_of(&path));
            for name in unknown.filter(|name| TOPICS.iter().all(|topic| topic.name != name)) {
                report.kinds.push(KindReport {
                    root: root.clone(),
                    topic: name,
                    kind: "-".to_owned(),
                    outcome: None,
                });
            }
        }
    }
    for name in topics {
        let of_topic: Vec<&KindReport> = report.kinds.iter().filter(|kind| kind.topic == *name).collect();
        let mut problems: Vec<String> = (of_topic.iter().filter(|kind| kind.outcome.is_none()))
            .map(|kind| format!("topic {name}: kind `{}` is not known", kind.kind))
            .collect();
        if of_topic.iter().all(|kind| kind.cases().is_empty()) {
            problems.push(format!("topic {name}: no case ran below the roots"));
        }
        report.problems.append(&mut problems);
    }
    if report.kinds.iter().all(|kind| kind.cases().is_empty()) && topics.is_empty() {
        let roots: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
        report.problems.push(format!(
            "no case ran; looked below [{}]; name a folder of golden files with --root or {ROOTS_VARIABLE}",
            roots.join(", ")
        ));
    }
    report
}

fn run_topic(root: &Path, topic: &Topic, report: &mut Report) {
    for path in list(&root.join(topic.name)) {
        let kind = if topic.folders {
            let has_json = list(&path).iter().any(|file| file.extension().is_some_and(|e| e == "json"));
            (path.is_dir() && has_json).then(|| name_of(&path))
        } else {
            path.extension()
                .filter(|e| *e == "json")
                .and(path.file_stem())
                .map(|s| s.to_string_lossy().into_owned())
        };
        let Some(kind) = kind else { continue };
        let outcome = topic.find(&path).map(|run| run_kind(run, &path));
        report.kinds.push(KindReport { root: root.into(), topic: topic.name.to_owned(), kind, outcome });
    }
}

/// Whatever goes wrong with a file, panics included, is a failed case of its own.
fn run_kind(run: KindFn, path: &Path) -> Outcome {
    let failure = match std::panic::catch_unwind(|| run(path)) {
        Ok(Ok(outcome)) if outcome.cases.is_empty() && outcome.pending.is_empty() => {
            format!("{} holds no case", path.display())
        }
        Ok(Ok(outcome)) => return outcome,
        Ok(Err(error)) => Mismatch::from(error).0,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text =
                text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("for no stated reason");
            format!("{}: panicked: {text}", path.display())
        }
    };
    let case = CaseResult { name: name_of(path), failure: Some(failure) };
    Outcome { cases: vec![case], pending: Vec::new() }
}

/// The entries of a folder by name; none if it cannot be read.
fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl KindReport {
    /// The cases that ran.
    pub fn cases(&self) -> &[CaseResult] {
        self.outcome.as_ref().map_or(&[], |outcome| &outcome.cases)
    }

    /// The names of the cases that the libraries do not support yet.
    pub fn pending(&self) -> &[String] {
        self.outcome.as_ref().map_or(&[], |outcome| &outcome.pending)
    }

    /// The cases that failed, with the reason.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.cases().iter().filter_map(|case| Some((case.name.as_str(), case.failure.as_deref()?)))
    }
}

impl Report {
    /// Did every case pass, and was there nothing else wrong?
    pub fn passed(&self) -> bool {
        self.problems.is_empty() && self.kinds.iter().all(|kind| kind.failures().next().is_none())
    }

    /// Writes the table: a line for each kind, with a line below it for each case that failed.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let width = |of: fn(&KindReport) -> &str, head: &str| {
            self.kinds.iter().map(|kind| of(kind).chars().count()).chain([head.len()]).max().unwrap_or(0)
        };
        let (t, k) = (width(|kind| &kind.topic, "topic"), width(|kind| &kind.kind, "kind"));
        let mut root: Option<&Path> = None;
        for kind in &self.kinds {
            if root != Some(&kind.root) {
                root = Some(&kind.root);
                writeln!(out, "{}", kind.root.display())?;
                writeln!(out, "{:t$}  {:k$}  cases  passed  pending", "topic", "kind")?;
            }
            let (topic, name) = (&kind.topic, &kind.kind);
            if kind.outcome.is_none() {
                writeln!(out, "{topic:t$}  {name:k$}  not covered")?;
                continue;
            }
            let (cases, pending) = (kind.cases().len(), kind.pending().len());
            let passed = cases - kind.failures().count();
            writeln!(out, "{topic:t$}  {name:k$}  {cases:5}  {passed:6}  {pending:7}")?;
            for (case, reason) in kind.failures() {
                writeln!(out, "  FAILED {case}: {}", reason.replace('\n', " "))?;
            }
            if pending > 0 {
                writeln!(out, "  pending: {}", kind.pending().join(", "))?;
            }
        }
        let cases: usize = self.kinds.iter().map(|kind| kind.cases().len()).sum();
        let failed: usize = self.kinds.iter().map(|kind| kind.failures().count()).sum();
        let pending: usize = self.kinds.iter().map(|kind| kind.pending().len()).sum();
        let uncovered = self.kinds.iter().filter(|kind| kind.outcome.is_none()).count();
        writeln!(
            out,
            "{} of {cases} cases passed, {failed} failed, {pending} pending; {uncovered} kinds not covered",
            cases - failed
        )?;
        self.problems.iter().try_for_each(|problem| writeln!(out, "PROBLEM {problem}"))
    }
}
