//! The developer's commands of ruminate: `cargo xtask <command>`.
//!
//! Compiles in seconds, without libtorch: providing libtorch is its first job. Everything that it prints
//! itself goes to stderr, so that the output of what it runs stays clean.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks to its terminal")]

mod bench;
mod cargo;
mod commands;
mod docs;
mod doctor;
mod features;
mod host;
mod levels;
mod lint;
mod model;
mod new;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use ruminate_libtorch::{Build, Problem};

/// The developer's commands of ruminate.
///
/// Commands that need libtorch fetch it first where it is missing, into the cache of all checkouts (RUMINATE_CACHE, else ruminate in
/// the user's cache folder), from the Python package `torch`. A LIBTORCH of your own, or LIBTORCH_USE_PYTORCH=1, is used as it is.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Download libtorch into the cache, unless it is there already
    Setup(Cuda),
    /// Build a system and run its demo: training and evaluation in miniature, in minutes on a CPU
    Demo(commands::Demo),
    /// Run every test of the workspace, golden vectors included
    Test(commands::Test),
    /// Run a few steps of everything on emulated processors with fewer instructions (needs the package qemu-user)
    Emulate(Cuda),
    /// Run golden vectors against the libraries; exits with 1 if one of them fails
    Golden(commands::Golden),
    /// Time the hot operations, alone or in turns with the Python stack
    Bench(bench::Bench),
    /// Check formatting, lints, documentation and links; with cargo-deny and typos where they are installed
    Lint(Cuda),
    /// Check the links of all Markdown files, and build the site of docs/ with mdBook, to target/book
    Docs(docs::Docs),
    /// Check this machine, and print for each thing that is not right the command that mends it
    Doctor(Cuda),
    /// Write the bundled world, the data of the demos and of many tests, to fixtures/world
    World(World),
    /// Write a crate of your own, outside of this workspace, with a program that fine-tunes a model
    New(new::New),
    /// Fetch a small real model into the folder models, unless it is there already
    Model(model::Model),
}

/// Which libtorch a command works with.
#[derive(Debug, Clone, Copy, Args)]
struct Cuda {
    /// Use the CUDA build of libtorch (about 2.7 GB to download)
    #[arg(long)]
    cuda: bool,
}

/// What to do with the bundled world.
#[derive(Debug, Args)]
struct World {
    /// Write nothing; fail if a file differs from what would be written
    #[arg(long)]
    check: bool,
}

impl From<Cuda> for Build {
    fn from(args: Cuda) -> Self {
        if args.cuda { Self::Cuda } else { Self::Cpu }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            print_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints an error, its causes and, where one is known, the next step.
fn print_error(error: &anyhow::Error) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  caused by: {cause}");
    }
    if let Some(problem) = error.downcast_ref::<Problem>() {
        eprintln!("  what to do: {}", problem.fix);
    }
}

/// Returns the exit status to end with.
fn run(command: Command) -> Result<u8> {
    let root = root();
    match command {
        Command::Setup(args) => commands::setup(args.into()),
        Command::Demo(args) => commands::demo(&root, &args),
        Command::Test(args) => commands::test(&root, &args),
        Command::Emulate(args) => levels::emulate(&root, args),
        Command::Golden(args) => commands::golden(&root, &args),
        Command::Bench(args) => bench::bench(&root, &args),
        Command::Lint(args) => lint::lint(&root, args),
        Command::Docs(args) => docs::docs(&root, &args),
        Command::Doctor(args) => doctor::doctor(&root, args.into()),
        Command::World(args) => world::run(args.check).map(|()| 0),
        Command::New(args) => new::new(&root, &args),
        Command::Model(args) => model::model(&root, &args),
    }
}

/// The root of the workspace. Cargo says where it is when it runs this program; the place it was compiled in
/// is only a fallback, wrong once the checkout has moved.
fn root() -> PathBuf {
    let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest_dir.ancestors().nth(2).unwrap_or(Path::new(".")).to_path_buf()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
