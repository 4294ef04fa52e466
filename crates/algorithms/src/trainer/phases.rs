//! Where the time of a run goes.

use std::time::Instant;

use crate::Metrics;

/// Seconds by phase, in the order in which the phases first occurred.
///
/// This is the time that the host spends in a phase. Timing waits for no device: on CUDA, work that was only handed over
/// counts for the phase that first needs its result, so the sum is right and the shares of neighbouring phases are not sharp.
///
/// ```
/// use ruminate_algorithms::Phases;
///
/// let mut phases = Phases::default();
/// let answer = phases.time("rollout", || 6 * 7);
/// phases.add("reward", 1.5);
/// assert_eq!(answer, 42);
/// assert!(phases.total() >= 1.5);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Phases {
    secs: Vec<(&'static str, f64)>,
}

impl Phases {
    /// Does some work as a part of a phase.
    pub fn time<T>(&mut self, phase: &'static str, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.add(phase, started.elapsed().as_secs_f64());
        result
    }

    /// Adds seconds to a phase.
    pub fn add(&mut self, phase: &'static str, secs: f64) {
        match self.secs.iter_mut().find(|(name, _)| *name == phase) {
            Some((_, sum)) => *sum += secs,
            None => self.secs.push((phase, secs)),
        }
    }

    /// Seconds of all phases.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.secs.iter().map(|(_, secs)| secs).sum()
    }

    /// Adds what another count found.
    pub(crate) fn merge(&mut self, other: Self) {
        other.secs.into_iter().for_each(|(phase, secs)| self.add(phase, secs));
    }

    /// The seconds as metrics `time/PHASE`; what follows is counted from here.
    pub fn take(&mut self) -> Metrics {
        self.secs.drain(..).map(|(phase, secs)| (format!("time/{phase}"), secs)).collect()
    }
}
