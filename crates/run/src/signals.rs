use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ruminate_models::Interrupt;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

/// A request to stop once what is under way is done and saved; clones share it.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

/// The handler for Ctrl-C cannot be installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot install the handler for Ctrl-C")]
pub struct SignalError(#[from] std::io::Error);

impl StopFlag {
    /// A flag that Ctrl-C and SIGTERM raise. A second Ctrl-C ends the process at once, with exit code 130.
    ///
    /// A second SIGTERM does not: launchers and `timeout` send it to the process and to its group, which makes two of
    /// one request. Call this once, at the start of `main`; call it again and each flag is raised.
    ///
    /// # Errors
    /// The operating system refuses the handler.
    pub fn on_ctrl_c() -> Result<Self, SignalError> {
        let stop = Self::default();
        // Handlers run in the order of their registration: the first Ctrl-C passes the check, then raises the flag.
        flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&stop.0))?;
        for signal in [SIGINT, SIGTERM] {
            flag::register(signal, Arc::clone(&stop.0))?;
        }
        // A handler may not print; a thread may.
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            if signals.forever().next().is_some() {
                let _ = writeln!(
                    std::io::stderr(),
                    "\nfinishing and saving what is under way; press Ctrl-C again to quit at once"
                );
            }
        })?;
        Ok(stop)
    }

    /// A flag that each Ctrl-C raises anew, once [`take`](Self::take) has put it down, and that never ends the process: for programs that
    /// talk with somebody, where Ctrl-C stops an answer.
    ///
    /// # Errors
    /// The operating system refuses the handler.
    pub fn on_each_ctrl_c() -> Result<Self, SignalError> {
        let stop = Self::default();
        flag::register(SIGINT, Arc::clone(&stop.0))?;
        Ok(stop)
    }

    /// Puts the flag down, and tells whether it was raised.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }

    /// Asks to stop, as Ctrl-C does.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// The request that ends generation once somebody asks to stop.
    pub fn interrupt(&self) -> Interrupt {
        Arc::clone(&self.0).into()
    }

    /// Has anybody asked to stop?
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
