//! Batches of one stage at a time, in the order of an [`Interval`].

use std::collections::VecDeque;

use ruminate_datasets::{Order, Shard};
use ruminate_models::derive_seed;
use serde::{Deserialize, Serialize};

use super::{Interval, IntervalState, Machine};
use crate::{Error, Result};

/// Which rows a micro-batch has: all of one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StageRows {
    pub(super) stage: usize,
    pub(super) rows: Vec<usize>,
}

/// The rows of optimizer step after optimizer step. Each epoch has a new order of each stage's rows, and its last batch may be smaller.
#[derive(Debug)]
pub(super) struct StageBatches {
    interval: Interval,
    orders: Vec<Order>,
    /// The order of each stage's last epoch, and which epoch it was: files are long, and steps are many.
    drawn: Vec<Option<(u64, Vec<usize>)>>,
    batch_size: usize,
    accumulate: usize,
    /// Which part of each step is this process's.
    shard: Shard,
    /// The rest of the present step.
    pending: VecDeque<StageRows>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    interval: IntervalState,
    rows: Vec<usize>,
    /// Rows of a step; 0 where that was not written down yet.
    #[serde(default)]
    batch: usize,
}

impl StageBatches {
    /// `rows` of each stage, `batch_size` of them in each optimizer step of one process, which takes `accumulate` micro-batches.
    pub(super) fn new(
        rows: &[usize],
        limits: Vec<u64>,
        batch_size: usize,
        accumulate: usize,
        machine: Machine,
        seed: u64,
    ) -> Result<Self> {
        if batch_size == 0 || accumulate == 0 || accumulate > batch_size {
            let reason =
                format!("is {batch_size}, but must be at least 1 and hold {accumulate} micro-batches");
            return Err(Error::config("batch_size", reason));
        }
        let batches = batches_of(rows, batch_size);
        let order = |(stage, &rows)| Order::reshuffled(rows, derive_seed(seed, &[stage as u64]));
        let orders = rows.iter().enumerate().map(order).collect();
        let interval = Interval::new(limits, batches, machine)?;
        Ok(Self {
            interval,
            orders,
            drawn: vec![None; rows.len()],
            batch_size,
            accumulate,
            shard: Shard::SINGLE,
            pending: VecDeque::new(),
        })
    }

    /// Begins again with one process's part of each step.
    pub(super) fn shard(&mut self, limits: Vec<u64>, shard: Shard) -> Result<()> {
        let rows: Vec<usize> = self.orders.iter().map(Order::len).collect();
        self.interval = self.interval.with(limits, batches_of(&rows, self.batch_size * shard.world()))?;
        self.shard = shard;
        self.pending.clear();
        Ok(())
    }

    /// Steps of an epoch with so many processes.
    pub(super) fn epoch_steps(&self, processes: usize) -> u64 {
        let rows: Vec<usize> = self.orders.iter().map(Order::len).collect();
        batches_of(&rows, self.batch_size * processes.max(1)).iter().sum()
    }

    /// When stages take turns.
    pub(super) fn interval(&self) -> &Interval {
        &self.interval
    }

    /// The next micro-batch. A last batch of few rows may leave none for some.
    pub(super) fn next(&mut self) -> StageRows {
        if self.pending.is_empty()
            && let Some(turn) = self.interval.next()
        {
            let drawn = self.drawn[turn.stage].take().filter(|(epoch, _)| *epoch == turn.epoch);
            let (_, order) = self.drawn[turn.stage]
                .insert(drawn.unwrap_or_else(|| (turn.epoch, self.orders[turn.stage].indices(turn.epoch))));
            let (rank, world) = (self.shard.rank(), self.shard.world());
            let batch = order.chunks(self.batch_size * world).nth(turn.batch as usize).unwrap_or_default();
            let batch = &batch[rank * batch.len() / world..(rank + 1) * batch.len() / world];
            let mut parts = batch.chunks(batch.len().div_ceil(self.accumulate).max(1));
            self.pending.extend(
                (0..self.accumulate).map(|_| StageRows {
                    stage: turn.stage,
                    rows: parts.next().unwrap_or_default().to_vec(),
                }),
            );
        }
        self.pending.pop_front().unwrap_or(StageRows { stage: 0, rows: vec![] })
    }

    /// Where the next optimizer step begins.
    pub(super) fn state(&self) -> serde_json::Value {
        let rows = self.orders.iter().map(Order::len).collect();
        let batch = self.batch_size * self.shard.world();
        serde_json::json!(Position { interval: self.interval.state().clone(), rows, batch })
    }

    pub(super) fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        let Position { interval, rows, batch } = serde_json::from_value(state)
            .map_err(|e| Error::config("checkpoint", format!("its data position cannot be read: {e}")))?;
        let now: Vec<usize> = self.orders.iter().map(Order::len).collect();
        if rows != now {
            let reason =
                format!("it was trained on {rows:?} rows of its stages, but the data now has {now:?}");
            return Err(Error::config("checkpoint", reason));
        }
        let step = self.batch_size * self.shard.world();
        if batch != 0 && batch != step {
            let reason = format!(
                "it was trained in steps of {batch} rows, which {} processes of batch_size = {} do not make; go on with as many as \
                 before",
                self.shard.world(),
                self.batch_size
            );
            return Err(Error::config("checkpoint", reason));
        }
        self.pending.clear();
        self.interval.resume(interval)
    }
}

/// Batches of each stage in an epoch.
fn batches_of(rows: &[usize], batch: usize) -> Vec<u64> {
    rows.iter().map(|rows| rows.div_ceil(batch) as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_rank(batch_size: usize, accumulate: usize, shard: Shard) -> StageBatches {
        let mut batches =
            StageBatches::new(&[10, 7], vec![2, 1], batch_size, accumulate, Machine::Reference, 1).unwrap();
        batches.shard(vec![2, 1], shard).unwrap();
        batches
    }

    fn batches(accumulate: usize) -> StageBatches {
        of_rank(4, accumulate, Shard::SINGLE)
    }

    #[test]
    fn an_epoch_has_every_row_once_whatever_the_micro_batches() {
        let epoch = |accumulate: usize, epoch: usize| {
            let mut batches = batches(accumulate);
            let steps = batches.interval().epoch_steps() as usize;
            let mut rows: Vec<(usize, usize)> = vec![];
            for i in 0..(epoch + 1) * steps * accumulate {
                let part = batches.next();
                if i >= epoch * steps * accumulate {
                    rows.extend(part.rows.iter().map(|&row| (part.stage, row)));
                }
            }
            rows
        };
        for of in 0..2 {
            let whole = epoch(1, of);
            assert_eq!(epoch(3, of), whole);
            let mut sorted = whole.clone();
            sorted.sort_unstable();
            let all = (0..10).map(|row| (0, row)).chain((0..7).map(|row| (1, row)));
            assert!(sorted.into_iter().eq(all));
        }
        assert_ne!(epoch(1, 0), epoch(1, 1));
    }

    #[test]
    fn several_processes_share_the_steps_of_one() {
        for world in [2, 3, 4] {
            let mut whole = of_rank(12, 1, Shard::SINGLE);
            let dealt = |rank| of_rank(12 / world, 2, Shard::new(rank, world).unwrap());
            let mut ranks: Vec<StageBatches> = (0..world).map(dealt).collect();
            for _ in 0..9 {
                let step = whole.next();
                // Micro-batches of one rank follow each other.
                let parts: Vec<StageRows> =
                    ranks.iter_mut().flat_map(|rank| [(); 2].map(|()| rank.next())).collect();
                assert!(parts.iter().all(|part| part.stage == step.stage));
                assert_eq!(parts.iter().flat_map(|part| part.rows.clone()).collect::<Vec<_>>(), step.rows);
            }
            // The position is that of all, and of steps of this size.
            let mut other = of_rank(12, 3, Shard::SINGLE);
            other.load_state(ranks[world - 1].state()).unwrap();
            assert_eq!(other.state(), whole.state());
            let error = of_rank(12 / world, 1, Shard::SINGLE).load_state(whole.state()).unwrap_err();
            assert!(error.to_string().contains("steps of 12 rows"), "{error}");
        }
    }

    #[test]
    fn a_position_resumes_and_belongs_to_its_data() {
        let mut straight = batches(2);
        for _ in 0..20 {
            let mut resumed = batches(2);
            resumed.load_state(straight.state()).unwrap();
            for _ in 0..2 {
                assert_eq!(resumed.next(), straight.next());
            }
        }
        let mut other = StageBatches::new(&[10, 8], vec![2, 1], 4, 1, Machine::Reference, 1).unwrap();
        let error = other.load_state(straight.state()).unwrap_err().to_string();
        assert!(error.contains("[10, 7]") && error.contains("[10, 8]"), "{error}");
        assert!(StageBatches::new(&[3], vec![1], 2, 3, Machine::Clean, 1).is_err());
    }
}
