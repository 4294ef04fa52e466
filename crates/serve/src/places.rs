//! How many answers are under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Places for answers that are written or waited for.
#[derive(Debug)]
pub(crate) struct Places {
    taken: Arc<AtomicUsize>,
    count: usize,
}

impl Places {
    /// Takes places, unless more than `most` would be taken.
    pub(crate) fn take(taken: &Arc<AtomicUsize>, count: usize, most: usize) -> Option<Self> {
        let add = |before: usize| before.checked_add(count).filter(|&after| after <= most);
        taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).ok()?;
        Some(Self { taken: Arc::clone(taken), count })
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.count, Ordering::SeqCst);
    }
}
