//! From episodes to training examples.

use std::path::PathBuf;

use ruminate::algorithms::rwr::TokenLengths;
use ruminate::datasets::rise::{Conversion, Log, convert};
use ruminate::run::{
    ConfigError, Outcome, RunDir, conversion_tables, print_json, print_tables, tell, write_conversion,
};
use serde_json::json;

use crate::config::{Phase, RiseArgs, RiseConfig};

#[derive(clap::Args)]
pub(crate) struct ConvertArgs {
    /// Logs of `rise collect` or of the published program, instead of conversion.logs
    #[arg(long, value_name = "FILE", num_args = 1..)]
    log: Vec<PathBuf>,
    #[command(flatten)]
    rise: RiseArgs,
}

pub(crate) fn run(args: &ConvertArgs) -> anyhow::Result<Outcome> {
    let run = args.rise.run();
    if run.dry_run {
        return Err(ConfigError::UselessFlag { flag: "--dry-run" }.into());
    }
    let mut config = RiseConfig::of_run(&run, Phase::Convert)?;
    if !args.log.is_empty() {
        config.conversion.logs.clone_from(&args.log);
    }
    let Some(first) = config.conversion.logs.first() else {
        let reason = "name the log of `rise collect` with --log, such as runs/collect/2_turns.json";
        return Err(ConfigError::invalid(reason).into());
    };
    let log = config.conversion.read()?;
    if let Some(benchmark) = args.rise.benchmark {
        log.judge(first, Some(benchmark), None).map_err(ConfigError::invalid)?;
    }
    let dir = run.open(&config)?;
    let (conversion, lengths) = write(&config, &log, &dir)?;
    if run.json {
        print_json(&json!({
            "system": "rise", "phase": "convert", "examples": conversion.examples.len(), "counts": conversion,
            "lengths": lengths, "file": dir.path().join(Conversion::EXAMPLES),
        }))?;
    } else {
        let tables = conversion_tables(&conversion, lengths.as_ref());
        print_tables(&tables.into_iter().map(|(_, table)| table).collect::<Vec<_>>())?;
    }
    Ok(Outcome::Done)
}

/// Writes the examples of a log, and what became of its episodes. Lengths are in tokens of the model that is to be trained.
pub(crate) fn write(
    config: &RiseConfig,
    log: &Log,
    dir: &RunDir,
) -> anyhow::Result<(Conversion, Option<TokenLengths>)> {
    let conversion = convert(log, &*config.data.environment(), &config.conversion.settings);
    let (how, folder) = ((&config.data, &config.chat), config.model.tokenizer_folder());
    let lengths = match config.model.tokenizer_if_there()? {
        Some(tokenizer) => config.finetune.lengths(&conversion.examples, how, &folder, &tokenizer)?,
        None => {
            let note =
                "no lengths in tokens: no tokenizer is at [model]; name one with --set model.tokenizer=DIR";
            tell("note", [note.to_owned()]);
            None
        }
    };
    write_conversion(&conversion, lengths.as_ref(), dir)?;
    Ok((conversion, lengths))
}
