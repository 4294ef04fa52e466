//! Who is asked next, and when.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So much may pass in a minute. It may be overdrawn once, so that a large request passes too; then it has to fill up again.
#[derive(Debug)]
pub(super) struct Bucket {
    per_sec: f64,
    capacity: f64,
    level: f64,
    seen: Instant,
}

impl Bucket {
    /// Holds a second's worth; without limit for 0.
    pub(super) fn new(per_minute: f64, now: Instant) -> Option<Self> {
        let per_sec = per_minute / 60.0;
        let capacity = per_sec.max(1.0);
        (per_minute > 0.0).then_some(Self { per_sec, capacity, level: capacity, seen: now })
    }

    fn ready_at(&mut self, now: Instant) -> Instant {
        let filled = now.saturating_duration_since(self.seen).as_secs_f64() * self.per_sec;
        self.level = (self.level + filled).min(self.capacity);
        self.seen = now;
        // A whole unit must be there, so that a second's worth of requests is not one more.
        if self.level >= 1.0 - 1e-9 {
            return now;
        }
        now + Duration::from_secs_f64(((1.0 - self.level) / self.per_sec).min(3600.0))
    }

    fn take(&mut self, cost: f64) {
        self.level -= cost;
    }
}

/// A job, and the tokens that it may take.
#[derive(Debug)]
struct Waiting<J> {
    due: Instant,
    order: usize,
    tokens: u64,
    job: J,
}

impl<J> PartialEq for Waiting<J> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<J> Eq for Waiting<J> {}

impl<J> PartialOrd for Waiting<J> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<J> Ord for Waiting<J> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

#[derive(Debug)]
struct State<J> {
    fresh: VecDeque<(u64, J)>,
    again: BinaryHeap<Reverse<Waiting<J>>>,
    pushed: usize,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    /// Nothing is sent before.
    hold: Instant,
    stopped: bool,
}

/// Jobs of several threads, handed out at the allowed rate. Those that are asked again go before new ones, once they are due.
#[derive(Debug)]
pub(super) struct Queue<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

impl<J> Queue<J> {
    pub(super) fn new(
        jobs: impl Iterator<Item = (u64, J)>,
        requests_per_minute: f64,
        tokens_per_minute: f64,
    ) -> Self {
        let now = Instant::now();
        let state = State {
            fresh: jobs.collect(),
            again: BinaryHeap::new(),
            pushed: 0,
            requests: Bucket::new(requests_per_minute, now),
            tokens: Bucket::new(tokens_per_minute, now),
            hold: now,
            stopped: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// A job to be done again after a wait.
    pub(super) fn push(&self, job: J, tokens: u64, wait: Duration) {
        let mut state = self.lock();
        state.pushed += 1;
        let order = state.pushed;
        state.again.push(Reverse(Waiting { due: Instant::now() + wait, order, tokens, job }));
        self.changed.notify_one();
    }

    /// Lets everybody wait: the server has asked for it.
    pub(super) fn hold(&self, wait: Duration) {
        let mut state = self.lock();
        state.hold = state.hold.max(Instant::now() + wait);
    }

    /// No more jobs are handed out.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits for a job; nothing once it has stopped.
    pub(super) fn next(&self) -> Option<J> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let now = Instant::now();
            let due = state.again.peek().map(|Reverse(waiting)| waiting.due);
            let repeated = due.is_some_and(|due| due <= now);
            let due = if repeated || !state.fresh.is_empty() { Some(now) } else { due };
            let Some(due) = due else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let State { requests, tokens, hold, .. } = &mut *state;
            let at = [requests, tokens]
                .into_iter()
                .flatten()
                .map(|bucket| bucket.ready_at(now))
                .fold(due.max(*hold), Instant::max);
            if at > now {
                let (locked, _) =
                    self.changed.wait_timeout(state, at - now).unwrap_or_else(PoisonError::into_inner);
                state = locked;
                continue;
            }
            let next = if repeated {
                state.again.pop().map(|Reverse(waiting)| (waiting.tokens, waiting.job))
            } else {
                state.fresh.pop_front()
            };
            if let Some((cost, job)) = next {
                if let Some(bucket) = &mut state.requests {
                    bucket.take(1.0);
                }
                if let Some(bucket) = &mut state.tokens {
                    bucket.take(cost as f64);
                }
                return Some(job);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops a queue when it is dropped, so that no thread waits for one that has panicked.
#[derive(Debug)]
pub(super) struct StopOnDrop<'a, J>(pub(super) &'a Queue<J>);

impl<J> Drop for StopOnDrop<'_, J> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_its_rate_pass_and_no_more() {
        let start = Instant::now();
        for (per_minute, cost) in [(600.0, 1.0), (6000.0, 250.0), (30.0, 1.0)] {
            let mut bucket = Bucket::new(per_minute, start).unwrap();
            let mut now = start;
            let count = 1000;
            for _ in 0..count {
                now = bucket.ready_at(now);
                bucket.ready_at(now);
                bucket.take(cost);
            }
            let minutes = (now - start).as_secs_f64() / 60.0;
            let rate = f64::from(count) * cost / minutes;
            assert!((rate / per_minute - 1.0).abs() < 0.02, "{rate} instead of {per_minute}");
        }
        assert!(Bucket::new(0.0, start).is_none());
    }

    #[test]
    fn what_is_due_goes_before_what_is_new_and_nothing_after_a_stop() {
        let queue = Queue::new([(1, "new"), (1, "newer")].into_iter(), 0.0, 0.0);
        queue.push("again", 1, Duration::ZERO);
        queue.push("later", 1, Duration::from_millis(50));
        assert_eq!([queue.next(), queue.next(), queue.next()], [Some("again"), Some("new"), Some("newer")]);
        let start = Instant::now();
        assert_eq!(queue.next(), Some("later"));
        assert!(start.elapsed() > Duration::from_millis(20));
        queue.push("never", 1, Duration::ZERO);
        queue.stop();
        assert_eq!(queue.next(), None);
    }
}
