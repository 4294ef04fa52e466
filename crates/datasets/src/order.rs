//! The order in which instances are seen, how it is dealt to ranks, and where a run stands in it.

use crate::{Error, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// An order of `0..len` for each epoch, the same on every machine.
///
/// # Example
/// ```
/// use ruminate_datasets::Order;
///
/// let order = Order::shuffled(1000, 1);
/// assert_eq!(order.indices(0), order.indices(7));
/// let order = Order::reshuffled(1000, 1);
/// assert_ne!(order.indices(0), order.indices(7));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    len: usize,
    shuffle: Shuffle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shuffle {
    Never,
    Once { seed: u64 },
    EveryEpoch { seed: u64 },
}

impl Order {
    /// As the data comes.
    pub fn sequential(len: usize) -> Self {
        Self { len, shuffle: Shuffle::Never }
    }

    /// Shuffled once; every epoch has the same order, as in Crystal.
    pub fn shuffled(len: usize, seed: u64) -> Self {
        Self { len, shuffle: Shuffle::Once { seed } }
    }

    /// Shuffled anew for every epoch; the first one is that of [`Order::shuffled`].
    pub fn reshuffled(len: usize, seed: u64) -> Self {
        Self { len, shuffle: Shuffle::EveryEpoch { seed } }
    }

    /// How many instances there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The order of an epoch.
    pub fn indices(&self, epoch: u64) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..self.len).collect();
        let (seed, stream) = match self.shuffle {
            Shuffle::Never => return indices,
            Shuffle::Once { seed } => (seed, 0),
            Shuffle::EveryEpoch { seed } => (seed, epoch),
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        indices.shuffle(&mut rng);
        indices
    }
}

/// Which of several processes this one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    rank: usize,
    world: usize,
}

impl Shard {
    /// The only process.
    pub const SINGLE: Self = Self { rank: 0, world: 1 };

    /// Process `rank` of `world`.
    ///
    /// # Errors
    /// [`Error::BadShard`] if there is no such process.
    pub fn new(rank: usize, world: usize) -> Result<Self> {
        if rank < world { Ok(Self { rank, world }) } else { Err(Error::BadShard { rank, world }) }
    }

    /// This process, counted from 0.
    pub fn rank(self) -> usize {
        self.rank
    }

    /// All processes.
    pub fn world(self) -> usize {
        self.world
    }
}

/// How far a run has come: enough to go on exactly where it stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// Instances of this epoch that all ranks together have seen.
    pub position: usize,
}

/// The training batches of one rank, without end: contiguous batches of the order are dealt to the ranks in turn,
/// what does not fill a step of all ranks is dropped, and then the next epoch begins.
///
/// # Example
/// ```
/// use ruminate_datasets::{Order, Shard, TrainBatches};
///
/// let mut batches = TrainBatches::new(Order::sequential(9), 2, Shard::new(1, 2)?)?;
/// assert_eq!(batches.next(), Some(vec![2, 3]));
/// let cursor = batches.cursor();
/// assert_eq!(batches.next(), Some(vec![6, 7]));
/// assert_eq!(batches.next(), Some(vec![2, 3]));
/// batches.resume(cursor)?;
/// assert_eq!(batches.next(), Some(vec![6, 7]));
/// # Ok::<(), ruminate_datasets::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TrainBatches {
    order: Order,
    batch_size: usize,
    shard: Shard,
    cursor: Cursor,
    // The order of the cursor's epoch.
    indices: Vec<usize>,
}

impl TrainBatches {
    /// The batches from the beginning on.
    ///
    /// # Errors
    /// [`Error::NoBatches`] for an empty order or batch, [`Error::NoCompleteBatch`] if one step needs more instances
    /// than there are.
    pub fn new(order: Order, batch_size: usize, shard: Shard) -> Result<Self> {
        let len = order.len();
        if batch_size == 0 || len == 0 {
            return Err(Error::NoBatches { len, batch_size });
        }
        if batch_size.checked_mul(shard.world).is_none_or(|step| step > len) {
            return Err(Error::NoCompleteBatch { len, batch_size, world: shard.world });
        }
        let indices = order.indices(0);
        Ok(Self { order, batch_size, shard, cursor: Cursor::default(), indices })
    }

    /// Instances of a batch.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Steps of one epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.order.len() / self.per_step()
    }

    /// Where the next batch begins; save it, and give it to [`TrainBatches::resume`].
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes on from a saved position.
    ///
    /// # Errors
    /// [`Error::BadCursor`] if it does not lie in the data.
    pub fn resume(&mut self, cursor: Cursor) -> Result<()> {
        if cursor.position > self.order.len() {
            return Err(Error::BadCursor { position: cursor.position, len: self.order.len() });
        }
        self.indices = self.order.indices(cursor.epoch);
        self.cursor = cursor;
        Ok(())
    }

    fn per_step(&self) -> usize {
        self.batch_size * self.shard.world
    }
}

impl Iterator for TrainBatches {
    type Item = Vec<usize>;

    /// Never `None`.
    fn next(&mut self) -> Option<Vec<usize>> {
        if self.cursor.position + self.per_step() > self.indices.len() {
            self.cursor = Cursor { epoch: self.cursor.epoch + 1, position: 0 };
            self.indices = self.order.indices(self.cursor.epoch);
        }
        let start = self.cursor.position + self.shard.rank * self.batch_size;
        self.cursor.position += self.per_step();
        Some(self.indices[start..start + self.batch_size].to_vec())
    }
}

/// The evaluation batches of one rank: dealt like training batches, but the end is filled up from the beginning, so
/// that every rank has equally many full batches. [`merge`] puts the results together.
///
/// # Errors
/// [`Error::NoBatches`] for no instances or an empty batch.
pub fn evaluation_batches(len: usize, batch_size: usize, shard: Shard) -> Result<Vec<Vec<usize>>> {
    if batch_size == 0 || len == 0 {
        return Err(Error::NoBatches { len, batch_size });
    }
    let per_step = batch_size * shard.world;
    let batch = |step: usize| {
        let start = step * per_step + shard.rank * batch_size;
        (start..start + batch_size).map(|ix| ix % len).collect()
    };
    Ok((0..len.div_ceil(per_step)).map(batch).collect())
}

/// Puts the results of all ranks (`[rank][batch][instance]`) back into the order of the `len` instances and drops
/// what was evaluated twice.
pub fn merge<T>(ranks: Vec<Vec<Vec<T>>>, len: usize) -> Vec<T> {
    let mut ranks: Vec<_> = ranks.into_iter().map(Vec::into_iter).collect();
    let mut merged = Vec::with_capacity(len);
    loop {
        let before = merged.len();
        merged.extend(ranks.iter_mut().filter_map(Iterator::next).flatten());
        if merged.len() == before || merged.len() >= len {
            merged.truncate(len);
            return merged;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shuffle_stays_the_same_across_versions() {
        // A new version of rand that shuffles in another way would change every run; this is where it shows.
        assert_eq!(Order::shuffled(10, 1).indices(0), [3, 8, 5, 2, 7, 9, 6, 0, 4, 1]);
        assert_eq!(Order::reshuffled(10, 1).indices(3), [2, 6, 5, 1, 0, 9, 3, 7, 4, 8]);
    }

    #[test]
    fn evaluation_wraps_and_merges() {
        let ranks: Vec<_> =
            (0..3).map(|r| evaluation_batches(7, 2, Shard::new(r, 3).unwrap()).unwrap()).collect();
        assert_eq!(ranks[0], [[0, 1], [6, 0]]);
        assert_eq!(ranks[2], [[4, 5], [3, 4]]);
        assert_eq!(merge(ranks, 7), [0, 1, 2, 3, 4, 5, 6]);
        // More room than instances.
        assert_eq!(evaluation_batches(2, 5, Shard::SINGLE).unwrap(), [[0, 1, 0, 1, 0]]);
        assert_eq!(merge(vec![vec![vec!['a']], vec![]], 5), ['a']);
    }

    #[test]
    fn impossible_requests_are_errors() {
        assert!(matches!(Shard::new(2, 2), Err(Error::BadShard { .. })));
        assert!(matches!(Shard::new(0, 0), Err(Error::BadShard { .. })));
        let new = |len, size| TrainBatches::new(Order::sequential(len), size, Shard::SINGLE);
        assert!(matches!(new(3, 4), Err(Error::NoCompleteBatch { .. })));
        assert!(matches!(new(0, 4), Err(Error::NoBatches { .. })));
        assert!(matches!(new(3, 0), Err(Error::NoBatches { .. })));
        assert!(evaluation_batches(3, 0, Shard::SINGLE).is_err());
        let mut batches = new(4, 2).unwrap();
        assert!(matches!(batches.resume(Cursor { epoch: 0, position: 5 }), Err(Error::BadCursor { .. })));
        // The end of an epoch is a fine place to stop at.
        batches.resume(Cursor { epoch: 0, position: 4 }).unwrap();
        assert_eq!(batches.next(), Some(vec![0, 1]));
        assert_eq!(batches.cursor(), Cursor { epoch: 1, position: 2 });
    }
}
