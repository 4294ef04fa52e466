//! Damaged and hostile files: whatever a file holds, its reader returns a value or an error that names the place. It does
//! not panic, does not hang and does not take memory for what a file merely claims.
//!
//! Every test starts from files that are right and changes them at random, from a fixed seed, so that a failure comes
//! again. `RUMINATE_FUZZ_INPUTS` sets how many files each target gets, `RUMINATE_FUZZ_SEED` begins elsewhere.

mod checkpoints;
mod configurations;
mod datasets;
mod gguf;
mod models;
mod mutate;

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use mutate::Mutator;

/// An error of any reader.
type Boxed = Box<dyn Error>;

/// Damages files for one reader.
struct Fuzz<'a> {
    /// The file to write, e.g. `config.json`.
    file: &'a str,
    /// Files in the right form.
    seeds: Vec<Vec<u8>>,
    /// How many to try, unless the environment says otherwise.
    inputs: u64,
    /// An error names one of these places; the file itself by default.
    places: &'a [&'a str],
}

impl<'a> Fuzz<'a> {
    fn new(file: &'a str, seeds: Vec<Vec<u8>>, inputs: u64) -> Self {
        Self { file, seeds, inputs, places: &[] }
    }

    /// Writes one damaged file after the other into `folder` and lets `read` have it. The file that a reader did not
    /// survive stays in the folder that the message names.
    fn run(self, folder: tempfile::TempDir, read: impl Fn(&Path) -> Result<(), Boxed>) {
        const SLOW: Duration = Duration::from_secs(20);
        const LARGE: u64 = 1 << 30;
        let variable = |name: &str| {
            let value = std::env::var(name).ok()?;
            Some(value.parse::<u64>().unwrap_or_else(|e| panic!("{name}={value}: {e}")))
        };
        let first = variable("RUMINATE_FUZZ_SEED").unwrap_or(0);
        let inputs = variable("RUMINATE_FUZZ_INPUTS").unwrap_or(self.inputs);
        let path = folder.path().join(self.file);
        // What was right before is right now, or the rest proves nothing.
        for seed in &self.seeds {
            std::fs::write(&path, seed).unwrap();
            read(&path).unwrap_or_else(|e| panic!("a file that is right was refused: {}", chain(&*e)));
        }
        let before = peak();
        let mut refused = 0;
        for seed in first..first + inputs {
            std::fs::write(&path, Mutator::new(seed).mutate(&self.seeds)).unwrap();
            let started = Instant::now();
            let problem = match catch_unwind(AssertUnwindSafe(|| read(&path))) {
                Err(_) => Some("a panic".into()),
                Ok(Ok(())) => None,
                Ok(Err(error)) => {
                    refused += 1;
                    let message = chain(&*error);
                    let named = |place: &&str| message.contains(place);
                    let somewhere = named(&self.file) || self.places.iter().any(named);
                    (!somewhere).then(|| format!("an error that names no place: {message}"))
                }
            };
            let slow = (started.elapsed() > SLOW).then(|| format!("{:?} for one file", started.elapsed()));
            let grown = peak().saturating_sub(before);
            let large = (grown > LARGE).then(|| format!("{grown} bytes of memory"));
            if let Some(problem) = problem.or(slow).or(large) {
                let kept = folder.keep();
                panic!("RUMINATE_FUZZ_SEED={seed} gives {problem}; see {} in {}", self.file, kept.display());
            }
        }
        assert!(refused > inputs / 10, "only {refused} of {inputs} files were refused: is anything checked?");
    }
}

fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The most memory that this process has ever asked for, touched or not, where the system tells.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// A file of the bundled world.
fn world(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/world").join(path)
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ruminate-fuzz-").tempdir().unwrap()
}
