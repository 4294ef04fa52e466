//! Crystal (arXiv 2310.04921): a T5 that writes knowledge about a question before it answers.

mod config;
mod demo;
mod evaluate;
mod imitate;
mod reinforce;

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
    use clap::CommandFactory;

    use super::Cli;

    /// With UPDATE_EXPECT=1, the page is written.
    #[test]
    fn the_reference_page_is_that_of_the_command_line() {
        let page = clap_markdown::help_markdown_command(&Cli::command());
        expect_test::expect_file!["../../../docs/reference/crystal.md"].assert_eq(&page);
    }
}
