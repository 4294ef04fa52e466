//! Stages take turns in blocks of optimizer steps.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What happens to a block when its stage runs out of batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Machine {
    /// The published code: the count of the block survives and can overshoot the next limit, and limits drift away from their stages.
    /// With files of real sizes the order is the same.
    #[default]
    Reference,
    /// The next stage begins a block of its own limit.
    Clean,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Index of the stage that trains.
    pub stage: usize,
    /// Which of the stage's batches of this epoch, from 0.
    pub batch: u64,
}

/// Where the alternation stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntervalState {
    epoch: u64,
    current: usize,
    slot: usize,
    count: u64,
    done: Vec<bool>,
    drawn: Vec<u64>,
}

/// The order of stages: an alternation of blocks in each epoch, which lasts until every stage has had all its batches once.
///
/// # Example
/// ```
/// use ruminate_algorithms::tinythinker::{Interval, Machine};
/// // Two stages with three and two batches, in blocks of two steps and one.
/// let mut interval = Interval::new(vec![2, 1], vec![3, 2], Machine::Reference)?;
/// let stages: Vec<usize> = interval.by_ref().take(5).map(|turn| turn.stage).collect();
/// assert_eq!(stages, [0, 0, 1, 0, 1]);
/// assert_eq!(interval.next().map(|turn| turn.epoch), Some(1));
/// # Ok::<(), ruminate_algorithms::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interval {
    limits: Vec<u64>,
    batches: Vec<u64>,
    machine: Machine,
    state: IntervalState,
}

impl Interval {
    /// Blocks of `limits` steps, and `batches` of each stage per epoch.
    ///
    /// # Errors
    /// When there is no stage, the numbers of both differ, or one is 0.
    pub fn new(limits: Vec<u64>, batches: Vec<u64>, machine: Machine) -> Result<Self> {
        if limits.is_empty() || limits.len() != batches.len() {
            let reason = format!("{} block lengths for {} stages", limits.len(), batches.len());
            return Err(Error::config("interval", reason));
        }
        if limits.contains(&0) || batches.contains(&0) {
            let reason = format!("block lengths {limits:?} and batches {batches:?} must be at least 1");
            return Err(Error::config("interval", reason));
        }
        let mut interval = Self { limits, batches, machine, state: IntervalState::default() };
        interval.begin(0);
        Ok(interval)
    }

    /// Lengths of the blocks.
    pub(super) fn limits(&self) -> &[u64] {
        &self.limits
    }

    /// The same machine from its beginning, with other blocks and batches.
    pub(super) fn with(&self, limits: Vec<u64>, batches: Vec<u64>) -> Result<Self> {
        Self::new(limits, batches, self.machine)
    }

    /// Steps of one round of blocks: how often the published code validates and saves.
    #[must_use]
    pub fn cycle_steps(&self) -> u64 {
        self.limits.iter().sum()
    }

    /// Steps of one epoch.
    #[must_use]
    pub fn epoch_steps(&self) -> u64 {
        self.batches.iter().sum()
    }

    /// Where the next step begins.
    #[must_use]
    pub fn state(&self) -> &IntervalState {
        &self.state
    }

    /// Goes on from a saved position.
    ///
    /// # Errors
    /// When it belongs to other stages or batches.
    pub fn resume(&mut self, state: IntervalState) -> Result<()> {
        let stages = self.limits.len();
        let fits = state.done.len() == stages
            && state.drawn.len() == stages
            && state.current < stages
            && state.slot < stages
            && state.drawn.iter().zip(&self.batches).all(|(drawn, batches)| drawn <= batches);
        if !fits {
            let reason = "its position among the stages is not one of these stages and data".to_string();
            return Err(Error::config("checkpoint", reason));
        }
        self.state = state;
        Ok(())
    }

    fn begin(&mut self, epoch: u64) {
        let stages = self.limits.len();
        let (done, drawn) = (vec![false; stages], vec![0; stages]);
        self.state = IntervalState { epoch, done, drawn, ..IntervalState::default() };
    }

    fn advance(&mut self) {
        let stages = self.limits.len();
        let state = &mut self.state;
        let next = (state.current + 1) % stages;
        let open = if state.done[next] { state.done.iter().position(|done| !done) } else { Some(next) };
        if let Some(open) = open {
            state.current = open;
            state.slot = (state.slot + 1) % stages;
        }
    }
}

impl Iterator for Interval {
    type Item = Turn;

    /// Never `None`.
    fn next(&mut self) -> Option<Turn> {
        loop {
            let stage = self.state.current;
            if self.state.drawn[stage] < self.batches[stage] {
                let turn = Turn { epoch: self.state.epoch, stage, batch: self.state.drawn[stage] };
                self.state.drawn[stage] += 1;
                self.state.count += 1;
                let limit = match self.machine {
                    Machine::Reference => self.limits[self.state.slot],
                    Machine::Clean => self.limits[stage],
                };
                if self.state.count == limit {
                    self.state.count = 0;
                    self.advance();
                }
                return Some(turn);
            }
            self.state.done[stage] = true;
            if self.state.done.iter().all(|done| *done) {
                self.begin(self.state.epoch + 1);
                continue;
            }
            if self.machine == Machine::Clean {
                self.state.count = 0;
            }
            self.advance();
        }
    }
}

/// Block lengths of supervised training: `interval` steps, and for analyses as many times that as a question has options. In the order
/// recall, analyze, summarize, without stages that the student lacks.
#[must_use]
pub fn supervised_limits(recalls: bool, analyzes: bool, interval: u64, num_options: u64) -> Vec<u64> {
    let stages = [(recalls, interval), (analyzes, interval.saturating_mul(num_options)), (true, interval)];
    stages.into_iter().filter(|(there, _)| *there).map(|(_, limit)| limit).collect()
}

/// Block lengths of preference training on recall and analyze pairs, in batches of `batch`; either may be left out.
///
/// # Errors
/// When there are no pairs or no batch.
pub fn preference_limits(recall: Option<u64>, analyze: Option<u64>, batch: u64) -> Result<Vec<u64>> {
    if batch == 0 {
        return Err(Error::config("batch_size", "is 0, but must be at least 1"));
    }
    if recall == Some(0) || analyze == Some(0) || (recall.is_none() && analyze.is_none()) {
        return Err(Error::config("pairs", "are none for a stage that is to be trained; sample more runs"));
    }
    let own = |pairs: u64| pairs / batch + 1;
    Ok(match (recall, analyze) {
        (Some(recall), Some(analyze)) => {
            vec![own(recall), (analyze / recall + 1).saturating_mul(own(recall))]
        }
        (one, other) => one.or(other).into_iter().map(own).collect(),
    })
}

/// Optimizer steps of a number of epochs, rounded up.
#[must_use]
pub fn steps_in(epochs: f64, epoch_steps: u64) -> u64 {
    (epochs * epoch_steps as f64).ceil().max(0.0) as u64
}

/// Steps in which the rate rises: a tenth of all, rounded up.
#[must_use]
pub fn warmup_steps(total: u64) -> u64 {
    (total as f64 * 0.1).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_batch_once() {
        for machine in [Machine::Reference, Machine::Clean] {
            for (limits, batches) in
                [(vec![3, 15, 3], vec![10, 25, 10]), (vec![4, 1], vec![1, 9]), (vec![5], vec![3])]
            {
                let mut interval = Interval::new(limits, batches.clone(), machine).unwrap();
                for epoch in 0..3 {
                    let steps = interval.epoch_steps() as usize;
                    let mut turns: Vec<_> =
                        interval.by_ref().take(steps).map(|t| (t.epoch, t.stage, t.batch)).collect();
                    turns.sort_unstable();
                    let all = batches.iter().enumerate();
                    let expected: Vec<_> =
                        all.flat_map(|(stage, &n)| (0..n).map(move |i| (epoch, stage, i))).collect();
                    assert_eq!(turns, expected);
                }
            }
        }
    }

    #[test]
    fn a_clean_block_begins_anew() {
        let stages = |machine| {
            let interval = Interval::new(vec![3, 3], vec![4, 9], machine).unwrap();
            interval.take(13).map(|turn| turn.stage).collect::<Vec<_>>()
        };
        assert_eq!(stages(Machine::Clean), [0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_position_resumes() {
        let mut straight = Interval::new(vec![3, 15, 3], vec![10, 25, 10], Machine::Reference).unwrap();
        for _ in 0..100 {
            let mut resumed = Interval::new(vec![3, 15, 3], vec![10, 25, 10], Machine::Reference).unwrap();
            let saved = serde_json::to_string(straight.state()).unwrap();
            resumed.resume(serde_json::from_str(&saved).unwrap()).unwrap();
            assert_eq!(resumed.next(), straight.next());
        }
        let other = Interval::new(vec![3, 3], vec![1, 1], Machine::Reference).unwrap();
        assert!(straight.resume(other.state().clone()).is_err());
    }

    #[test]
    fn what_cannot_be_scheduled_is_refused() {
        assert!(Interval::new(vec![], vec![], Machine::Clean).is_err());
        assert!(Interval::new(vec![1], vec![1, 2], Machine::Clean).is_err());
        assert!(Interval::new(vec![1, 1], vec![1, 0], Machine::Clean).is_err());
        assert!(preference_limits(Some(0), Some(3), 4).is_err());
        assert!(preference_limits(Some(3), Some(3), 0).is_err());
        assert!(preference_limits(None, None, 4).is_err());
        assert_eq!(preference_limits(Some(9), None, 4).unwrap(), [3]);
        assert_eq!(supervised_limits(true, true, 100, 5), [100, 500, 100]);
        assert_eq!(supervised_limits(false, true, 2, 5), [10, 2]);
    }
}
