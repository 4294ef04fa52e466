//! What the libraries say besides errors, on stderr.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::console::Verbosity;

/// Shows what the libraries of this project log: warnings always, notes with `-v`, nothing with `-q`. A program with a logger of
/// its own keeps it.
pub(crate) fn install(verbosity: Verbosity) {
    static LOGGER: Logger = Logger;
    static OURS: AtomicBool = AtomicBool::new(false);
    if log::set_logger(&LOGGER).is_ok() {
        OURS.store(true, Ordering::Relaxed);
    }
    if OURS.load(Ordering::Relaxed) {
        log::set_max_level(level(verbosity));
    }
}

fn level(verbosity: Verbosity) -> LevelFilter {
    match verbosity {
        Verbosity::Quiet => LevelFilter::Off,
        Verbosity::Normal => LevelFilter::Warn,
        Verbosity::AllMetrics | Verbosity::Samples => LevelFilter::Info,
    }
}

struct Logger;

impl Log for Logger {
    /// Other libraries log for their own developers, some of them whole requests.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("ruminate")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // There is nobody to tell that stderr is closed.
            let _ = writeln!(std::io::stderr(), "{}", line(record.level(), &record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

fn line(level: Level, message: &str) -> String {
    match level {
        Level::Error | Level::Warn => format!("warning: {message}"),
        _ => format!("note: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_shown_from_v_on() {
        let shown = [Verbosity::Quiet, Verbosity::Normal, Verbosity::AllMetrics, Verbosity::Samples]
            .map(|verbosity| [Level::Warn, Level::Info].map(|message| message <= level(verbosity)));
        assert_eq!(shown, [[false, false], [true, false], [true, true], [true, true]]);
        assert_eq!(line(Level::Info, "ignored"), "note: ignored");
        let enabled = |target| Logger.enabled(&Metadata::builder().target(target).level(Level::Info).build());
        assert_eq!([enabled("ruminate_models::config"), enabled("ureq")], [true, false]);
    }
}
