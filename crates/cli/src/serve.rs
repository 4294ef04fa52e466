//! A server around a model.

use clap::Args;
use ruminate::algorithms::Precision;
use ruminate::run::program::Configuration;
use ruminate::run::{ConfigError, FlagKeys, Outcome, StopFlag, print_json, print_text};
use ruminate::serve::{Error, ServeConfig, serve as serve_model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::train::set;
use crate::using::{ModelArgs, load_model};

/// Settings of `ruminate serve`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ServerConfig {
    /// Precision of the weights: f32 or bf16.
    precision: Precision,
    /// Where the server listens, and how much it takes on.
    server: ServeConfig,
}

impl Configuration for ServerConfig {
    const FLAGS: FlagKeys = FlagKeys { seed: &[], precision: &["precision"] };

    fn validate(&self) -> Result<(), ConfigError> {
        self.server.validate().map_err(|error| ConfigError::invalid(format!("server.{}", told(&error))))
    }
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Name under which clients ask for the model. Default: the name of its folder
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Address to listen at; short for --set server.host. Any but a loopback address needs --api-key-env
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Port to listen at; short for --set server.port. 0 takes any that is free
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Environment variable that holds the key which clients must send; short for --set server.api_key_env
    #[arg(long, value_name = "VARIABLE")]
    api_key_env: Option<String>,
}

/// An error and its causes in one line.
fn told(error: &Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

pub(crate) fn serve(args: &ServeArgs) -> anyhow::Result<Outcome> {
    let folder = args.model.folder()?;
    let mut run = args.model.run.clone();
    run.refuse(&["--out", "--resume", "--resume-from", "--dry-run", "--nproc"])?;
    run.sets.extend(args.host.as_ref().map(|host| set("server.host", host)));
    run.sets.extend(args.port.map(|port| set("server.port", &port)));
    run.sets.extend(args.api_key_env.as_ref().map(|variable| set("server.api_key_env", variable)));
    let ServerConfig { precision, server } = ServerConfig::load(&run)?;
    let device = run.setup()?;
    let stop = StopFlag::on_ctrl_c()?;
    let model = load_model(&folder, precision, device)?;
    let of_folder = || std::path::absolute(&folder).ok()?.file_name()?.to_str().map(str::to_owned);
    let name = args.name.clone().or_else(of_folder).unwrap_or_else(|| "model".to_owned());
    let ready = |address| {
        let url = format!("http://{address}/v1");
        let printed = match run.json {
            true => print_json(&json!({ "url": url, "model": name })),
            false => print_text(&format!("{name} answers at {url} (Ctrl-C ends it)")),
        };
        if let Err(error) = printed {
            log::warn!("the address could not be printed: {error}");
        }
    };
    serve_model(&model, &name, &server, ready, &stop.interrupt()).map_err(|error| {
        match error.is_configuration() {
            true => ConfigError::invalid(told(&error)).into(),
            false => anyhow::Error::from(error),
        }
    })?;
    Ok(Outcome::Done)
}
