//! What a caller sees while the teacher works.

use std::ops::ControlFlow;
use std::time::Duration;

use super::{Outcome, Usage};

/// How far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// All requests.
    pub requests: usize,
    /// Those whose answers were in the file at the start.
    pub stored: usize,
    /// Those answered since.
    pub answered: usize,
    /// Those given up.
    pub failed: usize,
    /// Attempts that failed and were repeated.
    pub retries: usize,
    /// Answers that were not valid, or had no content.
    pub invalid: usize,
    /// Tokens since the start.
    pub usage: Usage,
    /// Time since the start.
    pub elapsed: Duration,
}

impl Progress {
    /// Requests that are neither answered nor given up.
    #[must_use]
    pub fn open(&self) -> usize {
        self.requests.saturating_sub(self.stored + self.answered + self.failed)
    }

    /// Time that the open requests will take at the pace so far; nothing before the first one is done.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        let done = self.answered + self.failed;
        (done > 0).then(|| self.elapsed.mul_f64(self.open() as f64 / done as f64))
    }
}

/// What asking would take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Requests to be sent.
    pub to_ask: usize,
    /// Requests whose answers are in the file.
    pub stored: usize,
    /// Tokens: prompts by estimate, completions at most as many as the requests allow.
    pub usage: Usage,
}

/// Watches the teacher. All calls come from the thread that asks.
pub trait TeacherObserver {
    /// Comes after each event and several times a second. `Break` stops: what is under way is awaited and stored, nothing more is sent.
    fn progress(&mut self, _progress: &Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A request is sent again after the wait, for this reason.
    fn again(&mut self, _id: &str, _reason: &str, _wait: Duration) {}

    /// A request is given up for this reason.
    fn failed(&mut self, _id: &str, _reason: &str) {}

    /// All is answered, given up or stopped, and stored. Does not come where asking ends in an error.
    fn ended(&mut self, _outcome: &Outcome) {}
}

impl TeacherObserver for crate::NullObserver {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_goes_by_what_was_done_since_the_start() {
        let elapsed = Duration::from_secs(10);
        let progress = Progress { requests: 100, stored: 40, elapsed, ..Progress::default() };
        assert_eq!((progress.open(), progress.time_left()), (60, None));
        let progress = Progress { answered: 15, failed: 5, ..progress };
        assert_eq!((progress.open(), progress.time_left()), (40, Some(Duration::from_secs(20))));
    }
}
