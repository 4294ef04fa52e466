//! MaRio: a T5 that writes a rationale before its answer, and learns from several rewards.

mod config;
mod demo;
mod evaluate;
mod teach;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ruminate::run::program::train;
use ruminate::run::{RunArgs, SharedCommand, demo as demos, exit_code};

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
    /// Ask a teacher for rationales, and keep those with the right answer
    ///
    /// `mario teach --config examples/mario/configs/published.toml --out data/mine` asks the questions of teaching.questions behind the few-shot
    /// prompt of teaching.few_shot, parses the answers into OUT/DATASET/NAME, and writes what training reads to OUT/DATASET/raw. Answers are
    /// stored as they come; the same command line goes on after an interruption. With --model, a local model answers, as in the Flan-T5
    /// baseline; with --responses, only what is right is kept.
    #[command(
        mut_arg("out", |arg| arg.help("Folder for the answers and the data")),
        mut_arg("nproc", |arg| arg.help("With --model: write with N processes on this machine, each its part of the questions")),
        mut_arg("dry_run", |arg| arg.help("Print how many requests and tokens a teacher would be asked for, and send nothing")),
        mut_arg("resume", |arg| arg.hide(true)),
        mut_arg("resume_from", |arg| arg.hide(true)),
        mut_arg("precision", |arg| arg.hide(true))
    )]
    Teach(teach::TeachArgs),
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
    /// Judge a checkpoint's own responses, those of all checkpoints of a run, or some that were made elsewhere
    ///
    /// `mario evaluate --model runs/mario/checkpoints/best --out eval/mario` lets a checkpoint answer the gold questions, and `mario
    /// evaluate --model runs/mario --checkpoints all` every one of a run. With --responses, a file is joined with the gold rows, and several
    /// responses to a question vote. Writes the published code's result files. Plausibility needs rewards.vera, consistency
    /// rewards.i2o and rewards.ir2o.
    #[command(
        mut_arg("out", |arg| arg.help("Folder for the result files; lines are appended, tables of the same name replaced. \
            Default with --checkpoints: the run's folder `reward`, where lines about the same checkpoint are replaced too")),
        mut_arg("nproc", |arg| arg.help("Write and judge with N processes on this machine, each its part of the questions")),
        mut_arg("resume", |arg| arg.hide(true)),
        mut_arg("resume_from", |arg| arg.hide(true)),
        mut_arg("dry_run", |arg| arg.hide(true)),
        mut_arg("precision", |arg| arg.hide(true))
    )]
    Evaluate(evaluate::EvaluateArgs),
    /// Train and compare everything on the bundled world
    ///
    /// Some minutes on two cores. Ends with a table and a report, or with --json a line of JSON.
    #[command(
        mut_arg("seeds", |arg| arg.default_value("1,2")
            .help("Seeds; each trains a policy. The models behind the rewards are trained once")),
        mut_arg("out", |arg| arg.default_value("runs/mario-demo"))
    )]
    Demo(demos::DemoArgs),
    #[command(flatten)]
    Shared(SharedCommand),
}

#[derive(clap::Args)]
struct RewardModelArgs {
    /// What the model judges
    #[arg(long)]
    mode: Stage,
    #[command(flatten)]
    run: RunArgs,
}

fn main() -> ExitCode {
    exit_code(match Cli::parse().command {
        Command::Teach(args) => teach::run(&args),
        Command::Sft(args) => train(&Stage::Sft, &args),
        Command::RewardModel(args) => train(&args.mode, &args.run),
        Command::Train(args) => train(&Stage::Quark, &args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Demo(args) => demos::run(&mut demo::MarioDemo::default(), &args),
        Command::Shared(command) => command.run().map_err(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Cli;

    const PAGE: &str = include_str!("../../../docs/papers/mario.md");

    /// `examples/mario/tests/mario/page.rs` runs them.
    #[test]
    fn the_commands_of_the_page_are_understood() {
        let rows = PAGE.lines().skip_while(|line| !line.starts_with("| Command of the original"));
        let mut commands = 0;
        for row in rows.skip(2).take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
            assert_eq!(cells.len(), 2, "{row}");
            let Some(command) = cells[1].trim().strip_prefix('`') else {
                assert!(cells[1].len() > 10, "say why there is no counterpart: {row}");
                continue;
            };
            let words = command.trim_end_matches('`').split_whitespace();
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{row}: {error}"));
            commands += 1;
        }
        assert!(commands >= 20, "{commands}");
    }

    /// With UPDATE_EXPECT=1, the page is written.
    #[test]
    fn the_reference_page_is_that_of_the_command_line() {
        let page = clap_markdown::help_markdown_command(&Cli::command());
        expect_test::expect_file!["../../../docs/reference/mario.md"].assert_eq(&page);
    }
}
