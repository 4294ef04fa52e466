use std::path::{Path, PathBuf};

use ruminate_datasets::json;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::report::Page as ReportPage;
use crate::rundir::RunDirError;
use crate::worker::Worker;

/// A sequence of runs, each of which starts from what came of the one before: rounds of sampling and training, iterations of
/// self-improvement. Each has a folder of its own, `OUT/round-N`, in which `round.json` is written last. A sequence that was stopped or
/// killed goes on with the first round that lacks it.
///
/// With several processes, all of them call [`run`](Self::run), and rank 0 reads and writes the files.
#[derive(Debug)]
pub struct Rounds<'a> {
    /// The name of one: `round`, `iteration`.
    pub name: &'static str,
    /// How many.
    pub count: u64,
    /// The folder of all.
    pub out: &'a Path,
    /// This process.
    pub worker: &'a Worker,
}

impl Rounds<'_> {
    /// The folder of a round; they are counted from 1.
    #[must_use]
    pub fn folder(&self, number: u64) -> PathBuf {
        self.out.join(format!("{}-{number}", self.name))
    }

    /// Completes a page about the first `count` rounds with their curves and links to their reports, and writes it.
    ///
    /// # Errors
    /// The page cannot be written.
    pub fn write_report(
        &self,
        page: &mut ReportPage,
        count: usize,
        metrics: &[(&str, &str)],
    ) -> Result<PathBuf, RunDirError> {
        let name = |number| format!("{}-{number}", self.name);
        let rounds = 1..=count as u64;
        let runs: Vec<_> = rounds.clone().map(|number| (name(number), self.folder(number))).collect();
        let links: Vec<_> =
            rounds.map(|number| (format!("{}/report.html", name(number)), name(number))).collect();
        page.heading("Training").curves(&runs, metrics);
        page.heading("Runs").links(&links);
        page.write(self.out)
    }

    /// Goes through the rounds. `round` gets the number of a round, its folder, and the rounds before; it returns `None` when the user asked
    /// to stop. `report` is called by rank 0 after each of them. Fewer than `count` rounds are returned when the user asked to stop.
    ///
    /// # Errors
    /// Those of `round` and `report`; also when a summary cannot be read or written.
    pub fn run<T: Serialize + DeserializeOwned>(
        &self,
        mut round: impl FnMut(u64, &Path, &[T]) -> anyhow::Result<Option<T>>,
        mut report: impl FnMut(&[T]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<T>> {
        let collective = &self.worker.collective;
        let mut finished: Vec<T> = vec![];
        for number in 1..=self.count {
            let folder = self.folder(number);
            let summary = folder.join(format!("{}.json", self.name));
            let stored = collective.first(|| -> anyhow::Result<Option<T>> {
                Ok(if summary.is_file() { Some(json::read(&summary)?) } else { None })
            })?;
            let this = match stored {
                Some(stored) => stored,
                None => {
                    let Some(this) = round(number, &folder, &finished)? else { break };
                    if collective.is_main_process() {
                        json::write(&summary, &this)?;
                    }
                    this
                }
            };
            finished.push(this);
            if collective.is_main_process() {
                report(&finished)?;
            }
        }
        Ok(finished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Verbosity;
    use crate::signals::StopFlag;

    #[test]
    fn rounds_go_on_after_the_last_that_is_complete() {
        let place = tempfile::tempdir().unwrap();
        let worker = Worker::alone(Verbosity::Quiet, StopFlag::default());
        let rounds = |count| Rounds { name: "round", count, out: place.path(), worker: &worker };
        let mut ran = vec![];
        let mut reported = vec![];
        let mut run = |count, stop_at| {
            let round = |number: u64, folder: &Path, before: &[u64]| {
                if number == stop_at {
                    return Ok(None);
                }
                assert_eq!(folder, place.path().join(format!("round-{number}")));
                std::fs::create_dir_all(folder)?;
                ran.push(number);
                Ok(Some(number * 10 + before.len() as u64))
            };
            let report = |finished: &[u64]| {
                reported.push(finished.len());
                Ok(())
            };
            rounds(count).run(round, report).unwrap()
        };
        assert_eq!(run(3, 3), [10, 21]);
        assert_eq!(run(3, 0), [10, 21, 32]);
        assert_eq!(run(3, 1), [10, 21, 32]);
        assert_eq!(ran, [1, 2, 3]);
        assert_eq!(reported, [1, 2, 1, 2, 3, 1, 2, 3]);
        // A summary that another program wrote is an error with its path.
        std::fs::write(place.path().join("round-2/round.json"), "[]").unwrap();
        let error = rounds(3).run(|_, _, _: &[u64]| Ok(None), |_| Ok(())).unwrap_err();
        assert!(format!("{error:#}").contains("round.json"), "{error:#}");
    }
}
