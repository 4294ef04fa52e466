//! The rewards of a run, and the files that they leave.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use ruminate_datasets::mario::is_valid;
use ruminate_rewards::mario::{Accuracy, MarioItem, Response, RewardSet, TextReward};
use ruminate_rewards::{RewardError, Sample};
use serde_json::json;

use crate::quark::{Judged, Scorer};
use crate::{Error, Result};

/// Rewards of texts as a [`Scorer`]: a response is valid when it states an answer, and right when that is the gold label.
#[derive(Debug)]
pub struct TextScorer {
    rewards: RewardSet,
    log: RefCell<Log>,
}

/// Where scores are written, for whom, and which files have been begun.
#[derive(Debug, Default)]
struct Log {
    folder: Option<PathBuf>,
    tag: String,
    begun: BTreeSet<PathBuf>,
    /// A scorer may only fail for a reward's reasons, so this waits until it is asked for.
    failed: Option<Error>,
}

impl TextScorer {
    /// Scores by a set of rewards.
    #[must_use]
    pub fn new(rewards: RewardSet) -> Self {
        Self { rewards, log: RefCell::default() }
    }

    /// Writes all scores into a folder too, as the published code does: for each reward but accuracy,
    /// `perspective_{reward}_{tag}.json` has a line for each score, and `reward_{reward}_{tag}.json` the texts as well.
    #[must_use]
    pub fn log_to(self, folder: PathBuf) -> Self {
        self.log.borrow_mut().folder = Some(folder);
        self
    }

    /// The rewards.
    #[must_use]
    pub fn rewards(&self) -> &RewardSet {
        &self.rewards
    }

    /// Begins new files. A restarted run could begin here, so nothing is remembered from before.
    pub(super) fn begin(&self, tag: String) {
        self.rewards.forget();
        let mut log = self.log.borrow_mut();
        log.tag = tag;
        log.begun.clear();
    }

    /// Tells whether files could be written.
    pub(super) fn finish(&self) -> Result<()> {
        self.log.borrow_mut().failed.take().map_or(Ok(()), Err)
    }
}

impl<P: ?Sized> Scorer<P, MarioItem> for TextScorer {
    fn names(&self) -> Vec<String> {
        self.rewards.names()
    }

    fn judge(
        &self,
        _: &P,
        samples: &[Sample<'_, MarioItem>],
    ) -> std::result::Result<Vec<Judged>, RewardError> {
        let responses: Vec<Response<'_>> = samples
            .iter()
            .map(|s| Response { question: &s.item.question, gold: &s.item.gold, text: s.text })
            .collect();
        let scores = self.rewards.scores(&responses)?;
        let correct = Accuracy.scores(&responses)?;
        let judged = |(i, response): (usize, &Response<'_>)| Judged {
            scores: scores.row(i).iter().copied().map(Some).collect(),
            valid: is_valid(response.text),
            correct: correct[i] > 0.5,
        };
        Ok(responses.iter().enumerate().map(judged).collect())
    }

    fn record(&self, samples: &[Sample<'_, MarioItem>], judged: &[Judged]) {
        self.log.borrow_mut().write(&self.rewards.names(), samples, judged);
    }
}

impl Log {
    fn write(&mut self, names: &[String], samples: &[Sample<'_, MarioItem>], judged: &[Judged]) {
        let Some(folder) = self.folder.clone() else { return };
        for (i, name) in names.iter().enumerate().filter(|(_, name)| *name != "accuracy") {
            let (mut bare, mut full) = (String::new(), String::new());
            for (sample, judged) in samples.iter().zip(judged) {
                let score = json!(judged.scores[i]);
                let text = json!(sample.text);
                // Writing to a string cannot fail.
                let _ = writeln!(bare, "{{\"score\": {score}}}");
                let _ = writeln!(
                    full,
                    "{{\"prompt\": {}, \"generations\": [{{\"text\": {text}, \"score\": {score}}}]}}",
                    json!(sample.item.question)
                );
            }
            for (kind, lines) in [("perspective", bare), ("reward", full)] {
                let path = folder.join(format!("{kind}_{name}_{}.json", self.tag));
                if let Err(error) = self.append(path, &lines) {
                    self.failed.get_or_insert(error);
                }
            }
        }
    }

    /// A file that was begun earlier, e.g. before a run was killed, is replaced.
    fn append(&mut self, path: PathBuf, lines: &str) -> Result<()> {
        if self.begun.insert(path.clone()) && path.exists() {
            std::fs::remove_file(&path).map_err(Error::io("replace", &path))?;
        }
        super::rows::append(&path, lines)
    }
}
