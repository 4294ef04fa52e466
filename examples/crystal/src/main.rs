//! Crystal (arXiv 2310.04921): a T5 that writes knowledge about a question before it answers.

mod check;
mod config;
mod demo;
mod evaluate;
mod imitate;
mod reinforce;
mod teach;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ruminate::run::{SharedCommand, demo as demos, exit_code};

/// Crystal: write knowledge about a question, then answer with it (arXiv 2310.04921).
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check the files of questions and silver knowledge: are all there, and what is in them
    ///
    /// Exits with 1 if a file cannot be used. Example: crystal check --config examples/crystal/configs/large.toml
    #[command(
        mut_arg("out", |arg| arg.hide(true)),
        mut_arg("device", |arg| arg.hide(true)),
        mut_arg("precision", |arg| arg.hide(true)),
        mut_arg("seed", |arg| arg.hide(true)),
        mut_arg("threads", |arg| arg.hide(true)),
        mut_arg("nproc", |arg| arg.hide(true)),
        mut_arg("rank_timeout", |arg| arg.hide(true)),
        mut_arg("resume", |arg| arg.hide(true)),
        mut_arg("resume_from", |arg| arg.hide(true)),
        mut_arg("dry_run", |arg| arg.hide(true))
    )]
    Check(check::CheckArgs),
    /// Have a large model write silver knowledge, by few-shot prompts
    ///
    /// Writes the answers as they come and a file of knowledge for each task and split to --out. --resume asks only for what is missing;
    /// --dry-run tells how many tokens it takes. Example: crystal teach --tasks csqa --set 'teaching.prompts=prompts/{task}.txt' --out runs/silver
    #[command(
        mut_arg("device", |arg| arg.hide(true)),
        mut_arg("precision", |arg| arg.hide(true)),
        mut_arg("threads", |arg| arg.hide(true)),
        mut_arg("nproc", |arg| arg.hide(true)),
        mut_arg("rank_timeout", |arg| arg.hide(true)),
        mut_arg("resume_from", |arg| arg.hide(true))
    )]
    Teach(teach::TeachArgs),
    /// Stage I: imitate silver knowledge, and learn to answer with it
    ///
    /// Writes checkpoints, metrics and the resolved configuration to --out. `--set imitation.qk_weight=0 --set
    /// imitation.qka_weight=0 --set imitation.qa_weight=1` trains the direct-QA baseline instead.
    Imitate(imitate::ImitateArgs),
    /// Stage II: reinforce the knowledge by the model's own confidence in its answers
    ///
    /// Starts from a checkpoint of Stage I, with the configuration of its run unless --config names another. The scale of
    /// the rewards is measured first and kept in OUT/reward.
    Reinforce(reinforce::ReinforceArgs),
    /// Sample knowledge, answer with it, and combine the answers
    ///
    /// Writes the reference's knowledge and inference files. The configuration is that of the model's run, unless
    /// --config names another. `data.data_path` may also name statements made elsewhere.
    #[command(
        mut_arg("config", |arg| arg.help("Configuration file. Default: the configuration of the model's run")),
        mut_arg("out", |arg| arg.help("Folder for the results, which replace those of an earlier evaluation. Default: \
            the run's folder with `runs` replaced by `eval` and with the checkpoint's step, such as eval/my-run_ckp-500")),
        mut_arg("resume", |arg| arg.hide(true)),
        mut_arg("resume_from", |arg| arg.hide(true)),
        mut_arg("dry_run", |arg| arg.hide(true)),
        mut_arg("precision", |arg| arg.hide(true))
    )]
    Evaluate(evaluate::EvaluateArgs),
    /// Train Stage I, Stage II and the direct-QA baseline on the bundled world, and compare them
    #[command(mut_arg("out", |arg| arg.default_value("runs/crystal-demo")))]
    Demo(demo::CrystalDemo),
    #[command(flatten)]
    Shared(SharedCommand),
}

fn main() -> ExitCode {
    exit_code(match Cli::parse().command {
        Command::Check(args) => check::run(&args),
        Command::Teach(args) => teach::run(&args),
        Command::Imitate(args) => imitate::run(&args),
        Command::Reinforce(args) => reinforce::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Demo(mut demo) => {
            let args = demo.args.clone();
            demos::run(&mut demo, &args)
        }
        Command::Shared(command) => command.run().map_err(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Cli;

    #[test]
    fn the_commands_of_the_papers_page_are_those_of_the_program() {
        let page = include_str!("../../../docs/papers/crystal.md");
        let commands = ruminate::run::program::commands_in_tables(page, "crystal");
        assert!(commands.len() >= 13, "{commands:?}");
        for words in commands {
            Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        }
    }

    /// With UPDATE_EXPECT=1, the page is written.
    #[test]
    fn the_reference_page_is_that_of_the_command_line() {
        let page = clap_markdown::help_markdown_command(&Cli::command());
        expect_test::expect_file!["../../../docs/reference/crystal.md"].assert_eq(&page);
    }
}
