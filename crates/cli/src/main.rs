//! `ruminate`: fine-tuning, preference optimisation and reinforcement learning of language models on one's own data and rewards.

mod chat;
mod describe;
mod evaluate;
mod generate;
mod score;
mod serve;
mod talk;
mod train;
mod using;

use std::process::ExitCode;

use clap::{Arg, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use ruminate::run::{Outcome, SharedCommand, exit_code};

use train::TrainArgs;

/// Train language models on your own data and rewards, and use them.
///
/// Models are folders as Hugging Face has them: T5, Llama, Mistral, Qwen2 and Qwen3. Data are JSON lines.
#[derive(Parser)]
#[command(name = "ruminate", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fine-tune a model on prompts with completions, or on dialogues
    ///
    /// For example: ruminate sft --model models/smollm2 --data train.jsonl --out runs/sft
    ///
    /// A row is {"prompt": "...", "completion": "..."} or has a dialogue in "messages", in the forms of TRL. Losses are those of
    /// completions and of the assistant's messages. The best checkpoint is OUT/checkpoints/best, a model folder.
    #[command(mut_args(training))]
    Sft(TrainArgs),
    /// Optimise a model on pairs of a better and a worse completion: DPO and its family
    ///
    /// For example: ruminate dpo --model runs/sft/checkpoints/best --data pairs.jsonl --out runs/dpo
    ///
    /// A row is {"prompt": "...", "chosen": "...", "rejected": "..."}. The loss is chosen by dpo.terms in the
    /// configuration; docs/guide/dpo.md has them all.
    #[command(mut_args(training))]
    Dpo(TrainArgs),
    /// Reinforce a model by rewards of its own responses: PPO
    ///
    /// For example: ruminate ppo --model runs/sft/checkpoints/best --data prompts.jsonl --config rewards.toml --out runs/ppo
    ///
    /// A row is {"prompt": "...", "answer": "..."}. The configuration names at least one reward; docs/guide/rewards.md has all kinds, scripts
    /// of your own among them.
    #[command(mut_args(training))]
    Ppo(TrainArgs),
    /// Fine-tune a model on completions that are weighted by their rewards: reward-weighted regression
    ///
    /// For example: ruminate rwr --model models/smollm2 --data rated.jsonl --out runs/rwr
    ///
    /// A row is {"prompt": "...", "completion": "...", "reward": 0.7}.
    #[command(mut_args(training))]
    Rwr(TrainArgs),
    /// Reinforce a model by control tokens for quantiles of rewards: Quark
    ///
    /// For example: ruminate quark --model runs/sft/checkpoints/best --data prompts.jsonl --config rewards.toml --out runs/quark
    ///
    /// Rows and rewards are those of `ruminate ppo`.
    #[command(mut_args(training))]
    Quark(TrainArgs),
    /// Write responses to prompts
    ///
    /// For example: ruminate generate --model runs/sft/checkpoints/best --prompt 'What do bees make?'
    ///
    /// Prompts come from --prompt, from a file (--data), or line by line from the standard input. With --out, responses are written to a folder, and
    /// a call that was stopped goes on with them.
    #[command(mut_args(using))]
    Generate(generate::GenerateArgs),
    /// Talk with a model in the terminal
    ///
    /// For example: ruminate chat --model models/smollm2
    ///
    /// The model's chat template puts the dialogue to it. Ctrl-C stops an answer, Ctrl-D ends the program; /system TEXT sets the system message,
    /// /reset begins anew, /help tells the rest.
    #[command(mut_args(using))]
    Chat(talk::ChatArgs),
    /// Tell how probable completions are under a model, and what rewards say of them
    ///
    /// For example: ruminate score --model models/smollm2 --data rows.jsonl
    ///
    /// A row is {"prompt": "...", "completion": "..."}.
    #[command(mut_args(using))]
    Score(score::ScoreArgs),
    /// Let a model answer prompts, and judge the answers by rewards
    ///
    /// For example: ruminate evaluate --model runs/ppo/checkpoints/best --data test.jsonl --config rewards.toml --out runs/test
    #[command(mut_args(using))]
    Evaluate(evaluate::EvaluateArgs),
    /// Answer requests over HTTP, in the form of OpenAI's
    ///
    /// For example: ruminate serve --model models/smollm2 --port 8000
    ///
    /// Clients find /v1/completions, /v1/chat/completions and /v1/models there, with streams and log-probabilities. Requests that wait share
    /// batches. docs/guide/serving.md tells what they can ask for.
    #[command(mut_args(serving))]
    Serve(serve::ServeArgs),
    /// Print the configuration file of a command, with every key at its default and explained
    ///
    /// For example: ruminate config sft > sft.toml, and then ruminate sft --config sft.toml ...
    Config(describe::ConfigArgs),
    /// Print what a shell needs to complete commands and flags
    ///
    /// For example: ruminate completions bash > ~/.local/share/bash-completion/completions/ruminate
    Completions {
        /// The shell
        shell: Shell,
    },
    #[command(flatten)]
    Shared(SharedCommand),
}

/// Says what flags mean here, where no paper tells the defaults.
fn training(arg: Arg) -> Arg {
    match arg.get_id().as_str() {
        "config" => arg.help("Configuration file. Keys that it leaves out keep their default"),
        "sets" => arg.help(
            "Override one key of the configuration, e.g. --set trainer.lr=1e-5. Repeatable; the last one wins. An unknown key is an error \
             that names the nearest known one",
        ),
        _ => arg,
    }
}

/// Says what flags mean to commands that use a model, and hides those without use.
fn using(arg: Arg) -> Arg {
    match arg.get_id().as_str() {
        "resume" | "resume_from" | "dry_run" => arg.hide(true),
        "out" => arg.help("Folder for the results, which replace those of an earlier call"),
        _ => training(arg),
    }
}

/// Hides what is of no use to a server.
fn serving(arg: Arg) -> Arg {
    match arg.get_id().as_str() {
        "out" | "nproc" | "rank_timeout" | "seed" => arg.hide(true),
        _ => using(arg),
    }
}

fn main() -> ExitCode {
    exit_code(match Cli::parse().command {
        Command::Sft(args) => args.train(&train::sft::Finetune),
        Command::Dpo(args) => args.train(&train::dpo::Prefer),
        Command::Ppo(args) => args.train(&train::ppo::Reinforce),
        Command::Rwr(args) => args.train(&train::rwr::Regress),
        Command::Quark(args) => args.train(&train::quark::Unlearn),
        Command::Generate(args) => generate::generate(&args),
        Command::Chat(args) => talk::chat(&args),
        Command::Score(args) => score::score(&args),
        Command::Evaluate(args) => evaluate::evaluate(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Config(args) => describe::config(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "ruminate", &mut std::io::stdout());
            Ok(Outcome::Done)
        }
        Command::Shared(command) => command.run().map_err(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use super::{Cli, CommandFactory};

    /// With UPDATE_EXPECT=1, the page is written.
    #[test]
    fn the_reference_page_is_that_of_the_command_line() {
        let page = clap_markdown::help_markdown_command(&Cli::command());
        expect_test::expect_file!["../../../docs/reference/ruminate.md"].assert_eq(&page);
    }
}
