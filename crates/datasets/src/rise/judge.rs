//! Who judged a log.

use std::path::{Path, PathBuf};

use super::Log;
use crate::environments::{Benchmark, Compat};

/// Why nobody can say how a log's attempts are to be judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// The stored rewards are another judge's.
    #[error("{}: {reason}; {settles}", .path.display())]
    Other {
        /// The log.
        path: PathBuf,
        /// Where the rewards differ.
        reason: String,
        /// The settings with which they agree.
        settles: String,
    },
    /// Both benchmarks give the stored rewards.
    #[error(
        "{} may be of gsm8k or of math, and nothing tells which; say so with --set data.benchmark=gsm8k or =math",
        .path.display()
    )]
    Both {
        /// The log.
        path: PathBuf,
    },
}

impl Log {
    /// The benchmark and the mode with which judging all attempts again gives the stored rewards. What is not known is found out: the
    /// benchmark by the gold answers, the mode by the rewards. `path` names the log in errors.
    ///
    /// # Errors
    /// There is none, or there are two benchmarks.
    pub fn judge(
        &self,
        path: &Path,
        benchmark: Option<Benchmark>,
        compat: Option<Compat>,
    ) -> Result<(Benchmark, Compat), JudgeError> {
        const MODES: [Compat; 2] = [Compat::Fixed, Compat::Reference];
        let benchmarks = benchmark.map_or_else(|| self.benchmarks(), |one| vec![one]);
        let modes = compat.map_or(MODES.to_vec(), |one| vec![one]);
        match self.judges(&benchmarks, &modes)[..] {
            [(of, with), ref others @ ..] if others.iter().all(|(other, _)| *other == of) => Ok((of, with)),
            [] => {
                let tried = (benchmarks.first().or(benchmark.as_ref()).copied(), modes[0]);
                let right = self.judges(&self.benchmarks(), &MODES);
                let (reason, path) = (self.disagreement(tried), path.into());
                let settles = match right.first() {
                    Some(&(of, with)) => {
                        format!("they are those of --set data.benchmark={of} --set data.compat={}", name(with))
                    }
                    None => "say who judged it with --set data.benchmark=gsm8k or =math, and --set data.compat=fixed or \
                             =reference"
                        .into(),
                };
                Err(JudgeError::Other { path, reason, settles })
            }
            _ => Err(JudgeError::Both { path: path.into() }),
        }
    }

    fn judges(&self, benchmarks: &[Benchmark], modes: &[Compat]) -> Vec<(Benchmark, Compat)> {
        let pairs = benchmarks.iter().flat_map(|&of| modes.iter().map(move |&with| (of, with)));
        pairs.filter(|(of, with)| self.agrees_with(&*of.environment(*with))).collect()
    }

    /// The first reward that a judge would not give.
    fn disagreement(&self, (benchmark, compat): (Option<Benchmark>, Compat)) -> String {
        let rescored = benchmark.map(|of| (of, self.rescore(&*of.environment(compat), true)));
        let first =
            rescored.as_ref().and_then(|(of, rescored)| Some((of, rescored, rescored.rewards.first()?)));
        match first {
            Some((of, rescored, (task, turn, sample, stored, judged))) => format!(
                "{} of {} stored rewards are not those of data.benchmark = \"{of}\", data.compat = \"{}\": attempt {sample} of \
                 task {task} in turn {turn} has {stored}, but is worth {judged}",
                rescored.rewards.len(),
                rescored.actions,
                name(compat)
            ),
            None => "its gold answers are neither those of gsm8k nor those of math".into(),
        }
    }
}

fn name(compat: Compat) -> &'static str {
    if compat == Compat::Fixed { "fixed" } else { "reference" }
}
