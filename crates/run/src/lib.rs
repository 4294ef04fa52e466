#![doc = include_str!("../README.md")]

mod cli;
pub mod config;
mod console;
pub mod demo;
mod distribution;
mod doctor;
mod exit;
mod host;
mod hyperparameters;
mod jsonl;
mod launch;
mod logger;
mod model;
mod observer;
mod output;
mod plan;
mod players;
pub mod program;
mod provenance;
mod report;
mod rollout;
mod rundir;
mod shared;
mod signals;
mod sync;
mod teacher;
mod tensorboard;
mod worker;

#[cfg(test)]
mod captured;
#[cfg(test)]
mod process_tests;

pub use cli::{DeviceArg, DeviceError, FlagKeys, RunArgs};
pub use config::ConfigError;
pub use console::Verbosity;
pub use exit::{Outcome, exit_code};
pub use launch::LaunchError;
pub use model::{ModelError, ModelSection, PlannedShape, resolve_link};
pub use observer::{ConsoleObserver, RunObserver};
pub use output::{Table, print_json, print_result, print_tables, print_text};
pub use plan::{DataRow, DryRun, PlanPart, ShownPlan, decoding_memory, writing};
pub use players::{Player, Rollout, tell};
pub use report::{
    FinishedIteration, Iterations, Page as ReportPage, SettingMetrics, TurnReport, conversion_tables,
    turns_table, write as write_report, write_comparison, write_conversion,
};
pub use rollout::RolloutConsole;
pub use rundir::{Difference, RunDir, RunDirError};
pub use shared::SharedCommand;
pub use signals::{SignalError, StopFlag};
pub use teacher::{TeacherConsole, print_teacher_plan};
pub use worker::{Worker, WorkerError};
