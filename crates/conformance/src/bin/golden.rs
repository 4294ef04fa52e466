//! `golden`: runs golden vectors against the crates and prints what passed.

use clap::Parser;
use ruminate_conformance::runner::{default_roots, run};
use std::path::PathBuf;
use std::process::ExitCode;

/// Run golden vectors (ROOT/TOPIC/KIND.json, ROOT/models/KIND/) against the crates.
///
/// Exits with 1 if a case fails or nothing ran; kinds that are not covered are listed and do no harm, unless their
/// topic was asked for.
#[derive(Debug, Parser)]
struct Arguments {
    /// A folder of golden files; may be repeated [default: $RUMINATE_GOLDEN, else fixtures/golden and
    /// ../shared/golden and ../shared/golden-next where they exist]
    #[arg(long, value_name = "DIR")]
    root: Vec<PathBuf>,
    /// Run this topic only, and insist on it: it must have cases and no unknown kind; may be repeated
    #[arg(long, value_name = "NAME")]
    topic: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let roots = if arguments.root.is_empty() { default_roots() } else { arguments.root };
    let report = run(&roots, &arguments.topic);
    // A closed pipe (`golden | head`) takes nothing away from the verdict.
    let _ = report.write(&mut std::io::stdout().lock());
    if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
