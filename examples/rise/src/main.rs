//! RISE: a model that tries again after a wrong answer, and learns from what its attempts were worth.

mod collect;
mod config;
mod convert;
mod demo;
mod evaluate;
mod finetune;
mod iterate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ruminate::run::demo::{self as demos, DemoArgs};
use ruminate::run::{SharedCommand, exit_code};

use config::RiseArgs;

/// RISE: recursive introspection.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Play episodes: problems, attempts of the student, and a better answer in the last turn
    ///
    /// collection.models says who answers in each turn: "student", a local checkpoint, "teacher", another one or a chat service, or a
    /// name of the section players. Writes every episode as it ends, and at the end the log in the published layout, OUT/N_turns.json. --dry-run tells what it takes.
    #[command(mut_arg("resume_from", |arg| arg.hide(true)))]
    Collect(RiseArgs),
    /// Make weighted training examples of logs
    #[command(
        mut_arg("resume_from", |arg| arg.hide(true)),
        mut_arg("dry_run", |arg| arg.hide(true)),
        mut_arg("device", |arg| arg.hide(true)),
        mut_arg("precision", |arg| arg.hide(true)),
        mut_arg("threads", |arg| arg.hide(true))
    )]
    Convert(convert::ConvertArgs),
    /// Train on weighted examples, or on the problems' own solutions
    ///
    /// finetune.source = "solutions" is the boost of weak models before the first iteration. --dry-run tells what it takes.
    Finetune(RiseArgs),
    /// Let a checkpoint try several times, or look at a log, and print all metrics
    #[command(
        mut_arg("config", |arg| arg.help("Configuration file. Default: the configuration of the model's or the log's run")),
        mut_arg("resume_from", |arg| arg.hide(true))
    )]
    Evaluate(evaluate::EvaluateArgs),
    /// The whole loop: collect, convert, fine-tune, evaluate, and again with the new student
    ///
    /// Starts from model.pretrained. Each step has a folder of its own, OUT/iteration-N/STEP. --resume goes on wherever it was.
    #[command(mut_arg("resume_from", |arg| arg.hide(true)))]
    Iterate(RiseArgs),
    /// Train and compare everything on the bundled world
    ///
    /// Some minutes on two cores. Ends with a table and a report, or with --json a line of JSON.
    #[command(mut_arg("out", |arg| arg.default_value("runs/rise-demo")))]
    Demo(DemoArgs),
    #[command(flatten)]
    Shared(SharedCommand),
}

fn main() -> ExitCode {
    exit_code(match Cli::parse().command {
        Command::Collect(args) => collect::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Finetune(args) => finetune::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Iterate(args) => iterate::run(&args),
        Command::Demo(args) => demos::run(&mut demo::RiseDemo, &args),
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
        expect_test::expect_file!["../../../docs/reference/rise.md"].assert_eq(&page);
    }
}
