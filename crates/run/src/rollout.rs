use std::ops::ControlFlow;
use std::time::Instant;

use indicatif::FormattedDuration;
use ruminate_algorithms::Collective;
use ruminate_datasets::environments::is_success;
use ruminate_datasets::rise::{Episode, RolloutObserver};

use crate::console::{Console, Verbosity};
use crate::signals::StopFlag;
use crate::worker::Worker;

/// Shows on stderr how far a rollout is, with the time left and the share of problems solved so far, and ends it when a [`StopFlag`] is
/// raised: the problems under way are finished, and all that is finished is kept.
#[derive(Debug)]
pub struct RolloutConsole {
    console: Console,
    stop: StopFlag,
    collective: Collective,
    unit: &'static str,
    started: Instant,
    /// Episodes of this process, and those of them that ended with a right attempt.
    played: usize,
    solved: usize,
}

impl RolloutConsole {
    /// `unit` is what the bar counts, e.g. `problems`.
    #[must_use]
    pub fn new(unit: &'static str, verbosity: Verbosity, stop: StopFlag) -> Self {
        Self {
            console: Console::stderr(verbosity),
            stop,
            collective: Collective::default(),
            unit,
            started: Instant::now(),
            played: 0,
            solved: 0,
        }
    }

    /// For a rollout of several processes: rank 0 shows, and all end when one of them was asked to.
    #[must_use]
    pub fn of(worker: &Worker, unit: &'static str) -> Self {
        let verbosity = if worker.collective.is_main_process() { worker.verbosity } else { Verbosity::Quiet };
        Self { collective: worker.collective.clone(), ..Self::new(unit, verbosity, worker.stop.clone()) }
    }
}

impl RolloutObserver for RolloutConsole {
    fn finished(&mut self, episode: &Episode, done: usize, all: usize) -> ControlFlow<()> {
        self.played += 1;
        self.solved += usize::from(episode.max_reward.is_some_and(is_success));
        // Episodes that were there before took none of this time.
        let left = self.started.elapsed().mul_f64(all.saturating_sub(done) as f64 / self.played as f64);
        let solved = 100.0 * self.solved as f64 / self.played as f64;
        let status = format!("{} left  {solved:.0} % solved", FormattedDuration(left));
        self.console.work(self.unit, done as u64, all as u64, &status);
        // One that cannot be asked is gone, and whoever asks for it next says so.
        let stop = self.collective.any(self.stop.is_requested()).unwrap_or(true);
        if stop && done < all { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn blocked(&mut self, row: usize, turn: usize, reason: &str) {
        self.console.line(&format!("row {row}, turn {}: no answer: {reason}", turn + 1));
    }
}
