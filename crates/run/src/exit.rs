use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use ruminate_algorithms::Ending;
use ruminate_datasets::teacher::TeacherError;
use ruminate_rewards::configured::ConfiguredError;

use crate::cli::DeviceError;
use crate::config::ConfigError;
use crate::launch::LaunchError;
use crate::model::ModelError;
use crate::rundir::RunDirError;
use crate::worker::WorkerError;

/// How a binary ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All work is done.
    Done,
    /// Something is not right, and the output says what.
    Failed,
    /// Stopped on request, with a checkpoint to resume from.
    Interrupted,
}

impl From<Ending> for Outcome {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Finished => Self::Done,
            Ending::Stopped => Self::Interrupted,
        }
    }
}

/// What `main` returns: prints an error and its causes on stderr and picks the exit code.
///
/// | code | meaning |
/// |---|---|
/// | 0 | done |
/// | 1 | failed |
/// | 2 | wrong usage: command line, configuration, or an output folder that does not go with them |
/// | 130 | interrupted |
///
/// Takes `anyhow::Error` as well as `Box<dyn Error + Send + Sync>`; the causes are searched too, so adding context to
/// an error does not change its code.
pub fn exit_code<E>(result: Result<Outcome, E>) -> ExitCode
where
    E: AsRef<dyn Error + Send + Sync>,
{
    ExitCode::from(code(result, &mut std::io::stderr()))
}

pub(crate) fn code<E>(result: Result<Outcome, E>, stderr: &mut impl Write) -> u8
where
    E: AsRef<dyn Error + Send + Sync>,
{
    let error = match result {
        Ok(Outcome::Done) => return 0,
        Ok(Outcome::Failed) => return 1,
        Ok(Outcome::Interrupted) => return 130,
        Err(error) => error,
    };
    let error: &(dyn Error + 'static) = error.as_ref();
    if let Some(error) = error.downcast_ref::<clap::Error>() {
        // clap knows its own layout, and that --help is no failure.
        let _ = error.print();
        return u8::try_from(error.exit_code()).unwrap_or(2);
    }
    let mut usage = false;
    for (depth, cause) in std::iter::successors(Some(error), |&error| error.source()).enumerate() {
        let label = if depth == 0 { "error" } else { "caused by" };
        // In one piece, because other processes may write there too. A closed stderr must not turn a failure into a panic.
        let _ = stderr.write_all(format!("{label}: {cause}\n").as_bytes());
        usage |= is_usage(cause);
    }
    if usage { 2 } else { 1 }
}

fn is_usage(error: &(dyn Error + 'static)) -> bool {
    error.is::<ConfigError>()
        || error.is::<DeviceError>()
        || error.downcast_ref().is_some_and(ruminate_algorithms::Error::is_configuration)
        || error.downcast_ref().is_some_and(LaunchError::is_usage)
        || error.downcast_ref::<RunDirError>().is_some_and(RunDirError::is_usage)
        // A transparent error does not name its cause.
        || error.downcast_ref().is_some_and(WorkerError::is_usage)
        || matches!(error.downcast_ref(), Some(ModelError::Config(_)))
        || matches!(error.downcast_ref(), Some(ruminate_datasets::Error::DataSetting { .. }))
        || matches!(error.downcast_ref(), Some(ConfiguredError::Setting { .. }))
        || matches!(error.downcast_ref(), Some(TeacherError::Config { .. } | TeacherError::MissingKey(_)))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use ruminate_datasets::teacher::KeySource;

    use super::*;

    fn run(result: anyhow::Result<Outcome>) -> (u8, String) {
        let mut stderr = Vec::new();
        let code = code(result, &mut stderr);
        (code, String::from_utf8(stderr).unwrap())
    }

    fn usage_error() -> Result<Outcome, ConfigError> {
        Err(ConfigError::invalid("clip must be positive"))
    }

    #[test]
    fn success_and_interruption_are_silent() {
        assert_eq!(run(Ok(Ending::Finished.into())), (0, String::new()));
        assert_eq!(run(Ok(Ending::Stopped.into())), (130, String::new()));
    }

    #[test]
    fn failures_print_the_chain_of_causes() {
        let failure = Err::<Outcome, _>(std::io::Error::other("disk on fire")).context("cannot save");
        assert_eq!(run(failure), (1, "error: cannot save\ncaused by: disk on fire\n".into()));
    }

    #[test]
    fn usage_errors_are_recognised_with_and_without_context() {
        let text = "error: the configuration is not valid\ncaused by: clip must be positive\n";
        assert_eq!(run(usage_error().map_err(Into::into)), (2, text.into()));
        assert_eq!(run(usage_error().context("no run")).0, 2);
        assert_eq!(run(Err(DeviceError::NoCuda(0).into())).0, 2);
        assert_eq!(run(Err(WorkerError::from(DeviceError::NoCuda(0)).into())).0, 2);
        let setting = ruminate_algorithms::Error::Config { key: "lr".into(), reason: "is 0".into() };
        assert_eq!(run(Err(setting.into())).0, 2);
        assert_eq!(run(Err(RunDirError::HoldsRun("out".into()).into())).0, 2);
        assert_eq!(run(Err(ModelError::from(ConfigError::invalid("no model")).into())).0, 2);
        let key = KeySource::Env("NO_SUCH_KEY".into());
        assert_eq!(run(Err(TeacherError::MissingKey(key).into())).0, 2);
        assert_eq!(
            run(Err(TeacherError::from(ruminate_datasets::Error::Locked("answers.jsonl".into())).into())).0,
            1
        );
        assert_eq!(run(Err(RunDirError::Locked { path: "out".into(), holder: None }.into())).0, 1);
    }

    #[test]
    fn errors_of_the_command_line_keep_the_code_of_clap() {
        let command = || clap::Command::new("test");
        let wrong = command().try_get_matches_from(["test", "--nonsense"]).unwrap_err();
        assert_eq!(run(Err(wrong.into())).0, 2);
        let help = command().try_get_matches_from(["test", "--help"]).unwrap_err();
        assert_eq!(run(Err(help.into())).0, 0);
    }

    #[test]
    fn boxed_errors_are_accepted() {
        let boxed: Box<dyn Error + Send + Sync> = DeviceError::NoCuda(1).into();
        assert_eq!(code(Err(boxed), &mut Vec::new()), 2);
    }
}
