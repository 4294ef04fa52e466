//! The bundled world.

use ruminate::run::Outcome;

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Print the result as one line of JSON on stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(_args: &DemoArgs) -> anyhow::Result<Outcome> {
    Ok(Outcome::Done)
}
