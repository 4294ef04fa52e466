//! TinyThinker: a T5 that recalls knowledge, analyzes each option and then answers, and that learns from its own right and
//! wrong answers.

mod acquire;
mod config;
mod demo;
mod dpo;
mod infer;
mod reflect;
mod teach;

use std::process::ExitCode;

use clap::{Arg, Parser, Subcommand};
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
    /// --items no server is asked. --export and --import leave asking to another sender, round by round. --dry-run tells how many tokens the
    /// first round takes.
    #[command(mut_args(|arg| without(&["resume_from", "precision", "device", "threads"], arg)))]
    Teach(teach::TeachArgs),
    /// Phase 1: learn the stages, in turns
    ///
    /// The best checkpoint has the highest accuracy on the validation questions, which the student answers through all its stages.
    Acquire(RunArgs),
    /// Phase 2: rounds of preference training on pairs of one's own right and wrong runs
    ///
    /// Starts from reflection.start, a checkpoint of `tinythinker acquire`. Each round samples runs with the best checkpoint of the one
    /// before, pairs them, and trains; it has a folder of its own, OUT/round-N. --resume goes on wherever the rounds were.
    #[command(mut_args(|arg| without(&["resume_from", "dry_run"], arg)))]
    Reflect(RunArgs),
    /// The pairs of one round alone, sampled with a checkpoint
    ///
    /// For example `tinythinker pairs --config examples/tinythinker/configs/published.toml --model runs/acquire/checkpoints/best --out
    /// runs/pairs-1`. Writes recall_dpo.json and analyze_dpo.json in the published form, the runs that they come from, and pairs.json.
    #[command(mut_args(|arg| without(&["resume_from", "dry_run", "precision"], arg)))]
    Pairs(reflect::PairsArgs),
    /// Preference training alone, on pair files
    ///
    /// For example `tinythinker dpo --config examples/tinythinker/configs/published.toml --model runs/acquire/checkpoints/best --pairs
    /// runs/pairs-1 --out runs/dpo-1`. Policy and reference begin as the checkpoint.
    Dpo(dpo::DpoArgs),
    /// Let a checkpoint answer questions, once or several times with a vote
    #[command(
        mut_arg("config", |arg| arg.help("Configuration file. Default: the configuration of the model's run")),
        mut_arg("out", |arg| arg.help("Folder for the results, which replace those of an earlier call")),
        mut_args(|arg| without(&["resume", "resume_from", "dry_run", "precision"], arg))
    )]
    Infer(infer::InferArgs),
    /// Train and compare everything on the bundled world, in some minutes on two cores
    #[command(mut_arg("out", |arg| arg.default_value("runs/tinythinker-demo")))]
    Demo(demos::DemoArgs),
    #[command(flatten)]
    Shared(SharedCommand),
}

/// Hides flags that a command has no use for.
fn without(flags: &[&str], arg: Arg) -> Arg {
    let useless = flags.contains(&arg.get_id().as_str());
    if useless { arg.hide(true) } else { arg }
}

fn main() -> ExitCode {
    exit_code(match Cli::parse().command {
        Command::Teach(args) => teach::run(&args),
        Command::Acquire(args) => train(&acquire::Acquire, &args),
        Command::Reflect(args) => reflect::run(&args),
        Command::Pairs(args) => reflect::pairs(&args),
        Command::Dpo(args) => train(&args, &args.run),
        Command::Infer(args) => infer::run(&args),
        Command::Demo(args) => demos::run(&mut demo::TinyThinkerDemo, &args),
        Command::Shared(command) => command.run().map_err(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Cli;

    #[test]
    fn the_commands_on_the_pages_are_those_of_the_command_line() {
        let pages = [include_str!("../README.md"), include_str!("../../../docs/papers/tinythinker.md")];
        let spans =
            pages.iter().flat_map(|page| page.lines()).flat_map(|line| line.split('`').skip(1).step_by(2));
        // A name alone is no command line.
        let commands: Vec<&str> =
            spans.filter(|span| span.starts_with("tinythinker ") && span.contains(" --")).collect();
        assert!(commands.len() >= 20, "{commands:?}");
        for command in commands {
            let parsed = Cli::try_parse_from(command.split_whitespace());
            parsed.unwrap_or_else(|error| panic!("{command}: {error}"));
        }
    }

    /// With UPDATE_EXPECT=1, the page is written.
    #[test]
    fn the_reference_page_is_that_of_the_command_line() {
        let page = clap_markdown::help_markdown_command(&Cli::command());
        expect_test::expect_file!["../../../docs/reference/tinythinker.md"].assert_eq(&page);
    }
}
