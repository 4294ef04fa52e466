use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::config::{self, ConfigError};

const CONFIG: &str = "config.toml";
pub(crate) const METRICS: &str = "metrics.jsonl";
pub(crate) const SAMPLES: &str = "samples.jsonl";
pub(crate) const CHECKPOINTS: &str = "checkpoints";
pub(crate) const REPORT: &str = "report.html";
const LOCK: &str = ".lock";

/// The folder of one run, locked against a second process for as long as this value or a clone of it lives.
///
/// The lock is the operating system's, so a killed process never leaves it behind.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
    resumed: bool,
    _lock: Option<Arc<File>>,
}

/// A run folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunDirError {
    /// No folder was named.
    #[error("no output folder; pass --out DIR")]
    NoFolder,
    /// The folder holds the results of another run.
    #[error("`{}` already holds a run; choose another --out or pass --resume", .0.display())]
    HoldsRun(PathBuf),
    /// There is nothing to resume.
    #[error("`{}` holds no run to resume (no {CONFIG} in it); check --out or leave out --resume", .0.display())]
    HoldsNoRun(PathBuf),
    /// There is nothing to report on.
    #[error("`{}` holds no run (no {CONFIG} in it); name the folder of a run", .0.display())]
    NoRun(PathBuf),
    /// The run to resume was started with other settings.
    #[error("`{}` was started with another configuration; resume it without these changes or choose another --out:{}",
        path.display(), list(differences))]
    ConfigDiffers {
        /// The folder.
        path: PathBuf,
        /// Every key with two values.
        differences: Vec<Difference>,
    },
    /// The configuration cannot be read or written.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint to go back to cannot be used.
    #[error("the run cannot be resumed from there")]
    Rewind(#[source] ruminate_algorithms::Error),
    /// Another live process has the folder.
    #[error("`{}` is in use by another process{}; wait for it or choose another --out", path.display(),
        holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The other process, where it is known.
        holder: Option<u32>,
    },
    /// A line in the middle of a `.jsonl` file of the run to resume is damaged.
    #[error("{}:{line}: not a line of a run's metrics or samples; delete the line to resume", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// One-based line.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A file or folder cannot be created, read or written.
    #[error("cannot {action} `{}`; check that it is on a writable disk with space left, or choose another --out",
        path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// One key on which two configurations disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// Dotted path of the key.
    pub key: String,
    /// Its value in the run folder, as TOML, if it is set there.
    pub stored: Option<String>,
    /// Its value now, as TOML, if it is set.
    pub now: Option<String>,
}

fn list(differences: &[Difference]) -> String {
    let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
    differences
        .iter()
        .map(|d| format!("\n  {}: stored {}, now {}", d.key, show(&d.stored), show(&d.now)))
        .collect()
}

impl RunDirError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Does another command line mend it?
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            Self::NoFolder
            | Self::HoldsRun(_)
            | Self::HoldsNoRun(_)
            | Self::NoRun(_)
            | Self::ConfigDiffers { .. }
            | Self::Config(_) => true,
            Self::Rewind(_) | Self::Locked { .. } | Self::Line { .. } | Self::Io { .. } => false,
        }
    }
}

impl RunDir {
    /// Starts a run in `path`, which is created where it is missing, and writes `config.toml`.
    ///
    /// A folder in which a run ended before it had anything to show may be used again.
    ///
    /// # Errors
    /// The folder holds metrics, samples or checkpoints, is in use by another process or is not writable.
    pub fn create<T: Serialize>(path: &Path, config: &T) -> Result<Self, RunDirError> {
        let text = config::to_toml(config)?;
        fs::create_dir_all(path).map_err(RunDirError::io("create", path))?;
        let dir = Self::lock(path, false)?;
        let has_lines = |name| fs::metadata(path.join(name)).is_ok_and(|file| file.len() > 0);
        let has_checkpoint =
            fs::read_dir(path.join(CHECKPOINTS)).is_ok_and(|mut entries| entries.next().is_some());
        if has_lines(METRICS) || has_lines(SAMPLES) || has_checkpoint {
            return Err(RunDirError::HoldsRun(path.to_owned()));
        }
        dir.write(CONFIG, text.as_bytes())?;
        Ok(dir)
    }

    /// Opens the folder of an interrupted run, whose `config.toml` must agree with `config` in every key.
    ///
    /// # Errors
    /// There is no run, its configuration differs, or it is in use by another process.
    pub fn resume<T: Serialize>(path: &Path, config: &T) -> Result<Self, RunDirError> {
        let Some(file) = Self::stored_config(path) else {
            return Err(RunDirError::HoldsNoRun(path.to_owned()));
        };
        let dir = Self::lock(path, true)?;
        let stored: toml::Table = config::load(Some(&file), &[])?;
        let differences = differences(&stored, &config::resolve(config)?.1);
        if differences.is_empty() {
            Ok(dir)
        } else {
            Err(RunDirError::ConfigDiffers { path: path.to_owned(), differences })
        }
    }

    /// The folder as a process sees it that works on the run without leading it: another one holds the lock and writes.
    pub fn follow(path: &Path, resumed: bool) -> Self {
        Self { path: path.to_owned(), resumed, _lock: None }
    }

    /// The `config.toml` of the run in `path`, if there is one.
    pub fn stored_config(path: &Path) -> Option<PathBuf> {
        let file = path.join(CONFIG);
        file.is_file().then_some(file)
    }

    /// The `config.toml` of the run that a checkpoint belongs to, if it lies in one, as `RUN/checkpoints/step-N` and the links to it do.
    pub fn config_of_model(model: &Path) -> Option<PathBuf> {
        let above = |model: &Path| Self::stored_config(model.parent()?.parent()?);
        // A path alone need not tell the folders above it.
        above(model).or_else(|| above(&model.canonicalize().ok()?))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder for checkpoints; the trainer creates and fills it.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// Was the run opened with [`RunDir::resume`]?
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Writes a whole file of the folder, such as a result table. Whoever reads it meanwhile sees the old or the new
    /// content, never a part.
    ///
    /// # Errors
    /// The disk is full or not writable.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), RunDirError> {
        write_file(&self.path, name, content)
    }

    pub(crate) fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    pub(crate) fn samples(&self) -> PathBuf {
        self.path.join(SAMPLES)
    }

    fn lock(path: &Path, resumed: bool) -> Result<Self, RunDirError> {
        let lock_path = path.join(LOCK);
        let io_error = || RunDirError::io("lock", &lock_path);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(io_error())?;
        match fs4::FileExt::try_lock(&lock) {
            Ok(()) => {}
            Err(fs4::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message: who wrote the lock last, if that can be read.
                let _ = lock.read_to_string(&mut holder);
                return Err(RunDirError::Locked {
                    path: path.to_owned(),
                    holder: holder.trim().parse().ok(),
                });
            }
            // Some cluster file systems have no locks; that must not keep a run from starting.
            Err(fs4::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(fs4::TryLockError::Error(error)) => return Err(io_error()(error)),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(io_error())?;
        Ok(Self { path: path.to_owned(), resumed, _lock: Some(Arc::new(lock)) })
    }
}

/// Writes a whole file of a folder in one step.
pub(crate) fn write_file(folder: &Path, name: &str, content: &[u8]) -> Result<(), RunDirError> {
    let path = folder.join(name);
    ruminate_files::write_atomically(&path, |file| file.write_all(content))
        .map_err(RunDirError::io("write", &path))
}

/// Does a live process work on the run in `folder`?
pub(crate) fn is_locked(folder: &Path) -> bool {
    let Ok(lock) = File::open(folder.join(LOCK)) else { return false };
    matches!(fs4::FileExt::try_lock(&lock), Err(fs4::TryLockError::WouldBlock))
}

fn differences(stored: &toml::Table, now: &toml::Table) -> Vec<Difference> {
    let (stored, now) = (config::flatten(stored), config::flatten(now));
    let keys: std::collections::BTreeSet<&String> = stored.keys().chain(now.keys()).collect();
    keys.into_iter()
        .filter(|&key| stored.get(key) != now.get(key))
        .map(|key| Difference {
            key: key.clone(),
            stored: stored.get(key).map(ToString::to_string),
            now: now.get(key).map(ToString::to_string),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Config {
        lr: f32,
        steps: u32,
        model: Model,
    }

    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Model {
        name: String,
        layers: Option<u32>,
    }

    fn config() -> Config {
        Config { lr: 0.1, steps: 10, model: Model { name: "t5".into(), layers: None } }
    }

    #[test]
    fn a_new_run_stores_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/run");
        let run = RunDir::create(&path, &config()).unwrap();
        assert!(!run.is_resumed());
        let stored = fs::read_to_string(path.join("config.toml")).unwrap();
        assert_eq!(stored, "lr = 0.1\nsteps = 10\n\n[model]\nname = \"t5\"\n");
        let hidden = fs::read_dir(&path).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != LOCK);
        assert_eq!(hidden.count(), 1, "nothing temporary is left");
    }

    #[test]
    fn a_folder_with_a_run_is_refused_without_resume() {
        for content in [METRICS, SAMPLES] {
            let dir = tempfile::tempdir().unwrap();
            drop(RunDir::create(dir.path(), &config()).unwrap());
            fs::write(dir.path().join(content), "{}\n").unwrap();
            let message = RunDir::create(dir.path(), &config()).unwrap_err().to_string();
            assert!(
                message.ends_with("already holds a run; choose another --out or pass --resume"),
                "{message}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(CHECKPOINTS).join("step-1")).unwrap();
        assert!(matches!(RunDir::create(dir.path(), &config()), Err(RunDirError::HoldsRun(_))));
    }

    #[test]
    fn a_start_that_came_to_nothing_is_not_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        drop(RunDir::create(dir.path(), &config()).unwrap());
        fs::write(dir.path().join(METRICS), "").unwrap();
        fs::create_dir(dir.path().join(CHECKPOINTS)).unwrap();
        RunDir::create(dir.path(), &Config { steps: 20, ..config() }).unwrap();
    }

    #[test]
    fn a_checkpoint_knows_its_run_by_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let run = RunDir::create(&out, &config()).unwrap();
        let checkpoint = run.checkpoints().join("step-7");
        fs::create_dir_all(&checkpoint).unwrap();
        let stored = RunDir::stored_config(&out);
        assert!(stored.is_some());
        assert_eq!(RunDir::config_of_model(&checkpoint), stored);
        let link = dir.path().join("mine");
        std::os::unix::fs::symlink(&checkpoint, &link).unwrap();
        let canonical = stored.map(|file| file.canonicalize().unwrap());
        assert_eq!(RunDir::config_of_model(&link), canonical);
        let elsewhere = dir.path().join("models/step-7");
        fs::create_dir_all(&elsewhere).unwrap();
        for model in [elsewhere, dir.path().join("nowhere")] {
            assert_eq!(RunDir::config_of_model(&model), None);
        }
    }

    #[test]
    fn resume_needs_a_run_with_the_same_configuration() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(RunDir::resume(dir.path(), &config()), Err(RunDirError::HoldsNoRun(_))));
        assert!(matches!(
            RunDir::resume(&dir.path().join("none"), &config()),
            Err(RunDirError::HoldsNoRun(_))
        ));

        drop(RunDir::create(dir.path(), &config()).unwrap());
        assert!(RunDir::resume(dir.path(), &config()).unwrap().is_resumed());

        let now = Config { lr: 0.2, steps: 10, model: Model { name: "t5".into(), layers: Some(2) } };
        let error = RunDir::resume(dir.path(), &now).unwrap_err();
        let message = error.to_string();
        assert!(
            message.ends_with("\n  lr: stored 0.1, now 0.2\n  model.layers: stored nothing, now 2"),
            "{message}"
        );
    }

    #[test]
    fn two_live_runs_on_one_folder_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunDir::create(dir.path(), &config()).unwrap();
        let clone = first.clone();
        drop(first);
        for result in [RunDir::create(dir.path(), &config()), RunDir::resume(dir.path(), &config())] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains(&format!("(pid {})", std::process::id())), "{message}");
        }
        drop(clone);
        RunDir::create(dir.path(), &config()).unwrap();
    }

    #[test]
    fn an_unwritable_folder_is_reported() {
        // Below a regular file nothing can be created, whoever runs the test.
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = RunDir::create(&file.path().join("run"), &config()).unwrap_err();
        assert!(error.to_string().starts_with("cannot create `"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }
}
