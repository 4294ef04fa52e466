//! TinyThinker: a T5 that recalls knowledge, analyzes each option and then answers, and that learns from its own right and
//! wrong answers.

mod acquire;
mod config;
mod demo;
mod infer;
mod reflect;
mod teach;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ruminate::run::program::train;
use ruminate::run::{RunArgs, SharedCommand, demo as demos, exit_code};

/// TinyThinker: recall, analyze, summarize, and reflect on one's own answers.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Ask a teacher about the training questions, and make the students' records of its answers
    ///
    /// Writes the answers as they come, then splits.json, items.json and the records of every variant to --out. With --answers or
    /// --items no server is asked. --dry-run tells how many tokens the first round takes.
    #[command(
        mut_arg("resume_from", |arg| arg.hide(true)),
        mut_arg("precision", |arg| arg.hide(true)),
        mut_arg("device", |arg| arg.hide(true)),
        mut_arg("threads", |arg| arg.hide(true))
    )]
    Teach(teach::TeachArgs),
    /// Phase 1: learn the stages, in turns
    ///
    /// The best checkpoint has the highest accuracy on the validation questions, which the student answers through all its stages.
    Acquire(RunArgs),
    /// Phase 2: rounds of preference training on pairs of one's own right and wrong runs
    ///
    /// Starts from reflection.start, a checkpoint of `tinythinker acquire`. Each round samples runs with the best checkpoint of the one
    /// before, pairs them, and trains; it has a folder of its own, OUT/round-N. --resume goes on wherever the rounds were.
    #[command(mut_arg("resume_from", |arg| arg.hide(true)), mut_arg("dry_run", |arg| arg.hide(true)))]
    Reflect(RunArgs),
    /// Let a checkpoint answer questions, once or several times with a vote
    #[command(
        mut_arg("config", |arg| arg.help("Configuration file. Default: the configuration of the model's run")),
        mut_arg("out", |arg| arg.help("Folder for the results, which replace those of an earlier call")),
        mut_arg("resume", |arg| arg.hide(true)),
        mut_arg("resume_from", |arg| arg.hide(true)),
        mut_arg("dry_run", |arg| arg.hide(true)),
        mut_arg("precision", |arg| arg.hide(true))
    )]
    Infer(infer::InferArgs),
    /// Train and compare everything on the bundled world
    ///
    /// Some minutes on two cores. Ends with a table and a report, or with --json a line of JSON.
    #[command(mut_arg("out", |arg| arg.default_value("runs/tinythinker-demo")))]
    Demo(demos::DemoArgs),
    #[command(flatten)]
    Shared(SharedCommand),
}

fn main() -> ExitCode {
    exit_code(match Cli::parse().command {
        Command::Teach(args) => teach::run(&args),
        Command::Acquire(args) => train(&acquire::Acquire, &args),
        Command::Reflect(args) => reflect::run(&args),
        Command::Infer(args) => infer::run(&args),
        Command::Demo(args) => demos::run(&mut demo::TinyThinkerDemo, &args),
        Command::Shared(command) => command.run().map_err(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    /// With UPDATE_EXPECT=1, the page is written.
    #[test]
    fn the_reference_page_is_that_of_the_command_line() {
        let page = clap_markdown::help_markdown_command(&Cli::command());
        expect_test::expect_file!["../../../docs/reference/tinythinker.md"].assert_eq(&page);
    }
}
