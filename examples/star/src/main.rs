//! STaR (arXiv 2203.14465): a model that learns from its own rationales that led to right answers.

mod config;
mod demo;
mod finetune;
mod iterate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ruminate::run::demo::{self as demos, DemoArgs};
use ruminate::run::program::train;
use ruminate::run::{RunArgs, SharedCommand, exit_code};

/// STaR: reason, keep the rationales that led to right answers, learn from them, and again (arXiv 2203.14465).
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train on questions with rationales: the first model
    ///
    /// Stands for the paper's few-shot prompt, for models that are too small to be prompted. Example: star finetune --set
    /// model.pretrained=flan-t5-base --set data.train=examples.jsonl --out runs/start
    Finetune(RunArgs),
    /// The loop: reason about the questions of data.train, keep what led to right answers, train, and again
    ///
    /// Starts from model.pretrained. Each iteration has a folder of its own, OUT/iteration-N; --resume goes on wherever it was. Example:
    /// star iterate --set model.pretrained=runs/start/checkpoints/last --out runs/star
    #[command(mut_arg("resume_from", |arg| arg.hide(true)), mut_arg("dry_run", |arg| arg.hide(true)))]
    Iterate(RunArgs),
    /// Train and compare on the bundled world
    #[command(mut_arg("out", |arg| arg.default_value("runs/star-demo")))]
    Demo(DemoArgs),
    #[command(flatten)]
    Shared(SharedCommand),
}

fn main() -> ExitCode {
    exit_code(match Cli::parse().command {
        Command::Finetune(args) => train(&finetune::Finetune { kept: None }, &args),
        Command::Iterate(args) => iterate::run(&args),
        Command::Demo(args) => demos::run(&mut demo::StarDemo, &args),
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
        expect_test::expect_file!["../../../docs/reference/star.md"].assert_eq(&page);
    }
}
