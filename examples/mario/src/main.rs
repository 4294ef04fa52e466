//! MaRio: a T5 that writes a rationale before its answer, and learns from several rewards.

mod config;
mod evaluate;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use ruminate::algorithms::mario::OptionMode;
use ruminate::run::{RunArgs, SharedCommand, exit_code};

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
    /// Train one of the two models behind the consistency reward
    RewardModel(RewardModelArgs),
    /// Judge responses that were made elsewhere
    ///
    /// Joins a file of responses with the gold rows, lets several responses to a question vote, and writes the published
    /// code's result files to --out. Plausibility needs rewards.vera, consistency rewards.i2o and rewards.ir2o.
    #[command(
        mut_arg("out", |arg| arg.help("Folder for the result files; lines are appended, tables of the same name replaced")),
        mut_arg("resume", |arg| arg.hide(true)),
        mut_arg("resume_from", |arg| arg.hide(true)),
        mut_arg("dry_run", |arg| arg.hide(true)),
        mut_arg("precision", |arg| arg.hide(true))
    )]
    Evaluate(evaluate::EvaluateArgs),
    #[command(flatten)]
    Shared(SharedCommand),
}

#[derive(clap::Args)]
struct RewardModelArgs {
    /// What the model reads: the question (i2o), or question and rationale (ir2o)
    #[arg(long)]
    mode: Mode,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    I2o,
    Ir2o,
}

impl From<Mode> for OptionMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::I2o => Self::I2o,
            Mode::Ir2o => Self::Ir2o,
        }
    }
}

fn main() -> ExitCode {
    exit_code(match Cli::parse().command {
        Command::Sft(args) => train::sft(&args),
        Command::RewardModel(args) => train::reward_model(&args.run, args.mode.into()),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Shared(command) => command.run().map_err(Into::into),
    })
}
