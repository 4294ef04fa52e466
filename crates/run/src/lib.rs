#![doc = include_str!("../README.md")]

mod cli;
pub mod config;
mod console;
mod exit;
mod jsonl;
mod observer;
mod output;
mod rundir;
mod signals;
mod tensorboard;

#[cfg(test)]
mod process_tests;

pub use cli::{DeviceArg, DeviceError, FlagKeys, RunArgs};
pub use config::ConfigError;
pub use console::Verbosity;
pub use exit::{Outcome, exit_code};
pub use observer::{ConsoleObserver, RunObserver};
pub use output::{Table, print_json, print_tables};
pub use rundir::{Difference, RunDir, RunDirError};
pub use signals::{SignalError, StopFlag};
