//! Ending generation early.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

thread_local! {
    static CURRENT: RefCell<Interrupt> = RefCell::default();
}

/// A request to end generation. Once it is raised, models that write or score choices [`during`](Self::during) it return
/// [`Error::Interrupted`] before their next token. Clones share it; a signal handler or another thread may raise it.
///
/// # Example
/// ```
/// use ruminate_models::Interrupt;
///
/// let interrupt = Interrupt::default();
/// // Nobody has asked to stop, so the work is done.
/// assert_eq!(interrupt.during(|| 6 * 7), 42);
/// interrupt.raise();
/// assert!(interrupt.is_raised());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl From<Arc<AtomicBool>> for Interrupt {
    fn from(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }
}

impl Interrupt {
    /// Asks to stop.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody has asked to stop.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Does work whose generation, on this thread, ends once this is raised.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        /// Puts back what was there before, also when the work panics.
        struct Before(Interrupt);
        impl Drop for Before {
            fn drop(&mut self) {
                CURRENT.set(std::mem::take(&mut self.0));
            }
        }
        let _before = Before(CURRENT.replace(self.clone()));
        work()
    }

    /// Fails once the request under which this thread works is raised. For work that waits for something else than a model.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check() -> Result<()> {
        if CURRENT.with_borrow(Self::is_raised) { Err(Error::Interrupted) } else { Ok(()) }
    }
}
