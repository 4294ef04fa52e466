//! MaRio: a T5 that writes a rationale before its answer, and learns from several rewards.

mod config;
mod demo;
mod evaluate;
mod plan;
mod rewards;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use ruminate::run::{RunArgs, SharedCommand, exit_code};

use crate::config::Stage;

/// MaRio: write a rationale, then the answer, and learn from several rewards at once.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Supervised stage: learn to write a teacher's rationales and the answers
    ///
    /// Writes checkpoints, metrics and the resolved configuration to --out; the best checkpoint has the highest accuracy on
    /// the development questions.
    Sft(RunArgs),
    /// Train one of the models behind the rewards
    RewardModel(RewardModelArgs),
    /// Quark with several rewards: learn from one's own samples, behind control tokens that say how good they are
    ///
    /// Starts from quark.model, and stays near quark.reference, a checkpoint of `mario sft`. Needs the models behind the rewards:
    /// rewards.i2o, rewards.ir2o and rewards.vera. Result files go to --out/reward.
    Train(RunArgs),
    /// Judge a checkpoint's own responses, or some that were made elsewhere
    ///
    /// Lets --model answer the gold questions, or joins a file of responses with the gold rows, lets several responses to a question vote, and writes the published
    /// code's result files to --out. Plausibility needs rewards.vera, consistency rewards.i2o and rewards.ir2o.
    #[command(
        mut_arg("out", |arg| arg.help("Folder for the result files; lines are appended, tables of the same name replaced")),
        mut_arg("resume", |arg| arg.hide(true)),
        mut_arg("resume_from", |arg| arg.hide(true)),
        mut_arg("dry_run", |arg| arg.hide(true)),
        mut_arg("precision", |arg| arg.hide(true))
    )]
    Evaluate(evaluate::EvaluateArgs),
    /// Train and compare everything on the bundled world
    ///
    /// Some minutes on two cores. Ends with a table and a report, or with --json a line of JSON.
    Demo(demo::DemoArgs),
    #[command(flatten)]
    Shared(SharedCommand),
}

#[derive(clap::Args)]
struct RewardModelArgs {
    /// What the model is for: labels from the question (i2o) or from question and rationale (ir2o), for consistency; or the
    /// truth of statements (vera), for plausibility
    #[arg(long)]
    mode: Mode,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    I2o,
    Ir2o,
    Vera,
}

impl From<Mode> for Stage {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::I2o => Self::I2o,
            Mode::Ir2o => Self::Ir2o,
            Mode::Vera => Self::Vera,
        }
    }
}

fn main() -> ExitCode {
    exit_code(match Cli::parse().command {
        Command::Sft(args) => train::run(&args, Stage::Sft),
        Command::RewardModel(args) => train::run(&args.run, args.mode.into()),
        Command::Train(args) => train::run(&args, Stage::Quark),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Demo(args) => demo::run(&args),
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
        expect_test::expect_file!["../../../docs/reference/mario.md"].assert_eq(&page);
    }
}
