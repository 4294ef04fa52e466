//! Items in an order that is drawn anew for each epoch.

use ruminate_datasets::{Cursor, Order, Shard, TrainBatches};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Items in an order that is drawn anew for each epoch.
#[derive(Debug)]
pub struct Shuffled<T> {
    items: Vec<T>,
    batches: TrainBatches,
    seed: u64,
}

/// Where [`Shuffled`] stands.
#[derive(Serialize, Deserialize)]
struct Position {
    cursor: Cursor,
    #[serde(alias = "pairs")]
    items: usize,
}

impl<T: Clone> Shuffled<T> {
    /// Batches of `batch_size` items.
    ///
    /// # Errors
    /// When there are fewer items than a batch needs.
    pub fn new(items: Vec<T>, batch_size: usize, seed: u64) -> Result<Self> {
        let batches = TrainBatches::new(Order::reshuffled(items.len(), seed), batch_size, Shard::SINGLE)?;
        Ok(Self { items, batches, seed })
    }

    /// Begins again with one process's part of each batch.
    ///
    /// # Errors
    /// When there are fewer items than the batches of all processes need.
    pub fn shard(&mut self, shard: Shard) -> Result<()> {
        let order = Order::reshuffled(self.items.len(), self.seed);
        self.batches = TrainBatches::new(order, self.batches.batch_size(), shard)?;
        Ok(())
    }

    /// The next batch; it never ends.
    pub fn next_batch(&mut self) -> Vec<T> {
        let rows = self.batches.next().unwrap_or_default();
        rows.into_iter().map(|row| self.items[row].clone()).collect()
    }

    /// Position in the data.
    #[must_use]
    pub fn state(&self) -> serde_json::Value {
        serde_json::json!(Position { cursor: self.batches.cursor(), items: self.items.len() })
    }

    /// Continues from a position that [`state`](Self::state) returned.
    ///
    /// # Errors
    /// When the state belongs to other data.
    pub fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        let position: Position = serde_json::from_value(state)
            .map_err(|e| Error::config("checkpoint", format!("its data position cannot be read: {e}")))?;
        let (then, now) = (position.items, self.items.len());
        if then != now {
            let reason = format!("it was trained on {then} examples, but there are {now} now");
            return Err(Error::config("checkpoint", reason));
        }
        Ok(self.batches.resume(position.cursor)?)
    }
}
