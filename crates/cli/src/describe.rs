//! Configuration files and their schemas.

use clap::{Args, ValueEnum};
use ruminate::run::config::{schema, template};
use ruminate::run::{ConfigError, Outcome, print_text};
use schemars::{JsonSchema, Schema};
use serde::Serialize;

use crate::serve::ServerConfig;
use crate::train::{dpo::DpoConfig, ppo::PpoConfig, quark::QuarkConfig, rwr::RwrConfig, sft::SftConfig};
use crate::using::UseConfig;

/// A command that has a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Configured {
    Sft,
    Dpo,
    Ppo,
    Rwr,
    Quark,
    Generate,
    Chat,
    Score,
    Evaluate,
    Serve,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The command
    command: Configured,
    /// Print the JSON schema instead, by which editors check and complete the file
    #[arg(long)]
    schema: bool,
}

pub(crate) fn config(args: &ConfigArgs) -> anyhow::Result<Outcome> {
    let (template, schema) = args.command.files()?;
    let text = if args.schema { serde_json::to_string_pretty(&schema)? } else { template };
    print_text(text.trim_end())?;
    Ok(Outcome::Done)
}

impl Configured {
    /// The configuration file with all defaults, and its schema.
    fn files(self) -> Result<(String, Schema), ConfigError> {
        fn of<T: Default + Serialize + JsonSchema>() -> Result<(String, Schema), ConfigError> {
            Ok((template(&T::default())?, schema::<T>()))
        }
        match self {
            Self::Sft => of::<SftConfig>(),
            Self::Dpo => of::<DpoConfig>(),
            Self::Ppo => of::<PpoConfig>(),
            Self::Rwr => of::<RwrConfig>(),
            Self::Quark => of::<QuarkConfig>(),
            Self::Generate | Self::Chat | Self::Score | Self::Evaluate => of::<UseConfig>(),
            Self::Serve => of::<ServerConfig>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use expect_test::expect_file;
    use ruminate::run::config::{load, unexplained_keys};
    use serde::de::DeserializeOwned;

    use super::*;

    fn shipped(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name)
    }

    fn check<T: Default + Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
        command: Configured,
        name: &str,
    ) {
        let (text, _) = command.files().unwrap();
        expect_file![shipped(&format!("{name}.toml"))].assert_eq(&text);
        // What is written there are the defaults, and the schema knows and explains each of them.
        assert_eq!(load::<T>(Some(&shipped(&format!("{name}.toml"))), &[]).unwrap(), T::default());
        assert_eq!(unexplained_keys(&text, &T::default()), [""; 0], "{name}");
    }

    /// With UPDATE_EXPECT=1, the files are written.
    #[test]
    fn the_shipped_files_are_those_that_are_printed() {
        std::fs::create_dir_all(shipped("")).unwrap();
        check::<SftConfig>(Configured::Sft, "sft");
        check::<DpoConfig>(Configured::Dpo, "dpo");
        check::<PpoConfig>(Configured::Ppo, "ppo");
        check::<RwrConfig>(Configured::Rwr, "rwr");
        check::<QuarkConfig>(Configured::Quark, "quark");
        check::<UseConfig>(Configured::Generate, "generate");
        check::<ServerConfig>(Configured::Serve, "serve");
    }
}
