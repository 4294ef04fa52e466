//! What a run was computed on: `run.json` in its folder, one entry for each start.

use std::fs;
use std::io;

use ruminate_torch::CpuLevel;
use serde::{Deserialize, Serialize};

use crate::host;
use crate::rundir::{RunDir, RunDirError};

pub(crate) const PROVENANCE: &str = "run.json";

/// All starts of a run, the first one and those that resumed it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Provenance {
    starts: Vec<Start>,
}

/// One start of the run: all that decides its numbers to the last bit, besides the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Start {
    /// The version of this library.
    version: String,
    /// The processor's name.
    cpu: String,
    /// Its vector unit in use, as `RUMINATE_CPU` names it.
    cpu_level: String,
    /// Threads of one process.
    threads: i32,
}

impl Start {
    fn now() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            cpu: host::cpu_name().unwrap_or_else(|| std::env::consts::ARCH.into()),
            cpu_level: CpuLevel::in_use().map_or_else(|error| error.to_string(), |level| level.to_string()),
            threads: tch::get_num_threads(),
        }
    }
}

/// Records this start in `run.json`; gives a note for people where the run was computed in another way before.
///
/// # Errors
/// The file cannot be read or written.
pub(crate) fn record(dir: &RunDir) -> Result<Option<String>, RunDirError> {
    record_start(dir, Start::now())
}

fn record_start(dir: &RunDir, now: Start) -> Result<Option<String>, RunDirError> {
    let path = dir.path().join(PROVENANCE);
    let mut provenance = match fs::read(&path) {
        Ok(text) if dir.is_resumed() => serde_json::from_slice(&text).map_err(io::Error::other),
        Ok(_) => Ok(Provenance::default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Provenance::default()),
        Err(error) => Err(error),
    }
    .map_err(RunDirError::io("read", &path))?;
    let note = provenance.starts.last().and_then(|before| difference(before, &now));
    provenance.starts.push(now);
    let text = serde_json::to_string_pretty(&provenance).map_err(io::Error::other);
    dir.write(PROVENANCE, format!("{}\n", text.map_err(RunDirError::io("write", &path))?).as_bytes())?;
    Ok(note)
}

/// A note on what differs between two starts, if anything does.
fn difference(before: &Start, now: &Start) -> Option<String> {
    let changes: Vec<String> = [
        ("vector unit", before.cpu_level.clone(), now.cpu_level.clone()),
        ("threads", before.threads.to_string(), now.threads.to_string()),
    ]
    .into_iter()
    .filter(|(_, before, now)| before != now)
    .map(|(what, before, now)| format!("{what} {before}, now {now}"))
    .collect();
    (!changes.is_empty()).then(|| {
        format!(
            "note: this run was computed with {}: its numbers will differ in the last bits from those of a run without a stop",
            changes.join("; ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(cpu_level: &str, threads: i32) -> Start {
        Start { version: "1".into(), cpu: "A".into(), cpu_level: cpu_level.into(), threads }
    }

    #[test]
    fn resuming_on_another_vector_unit_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let config = toml::Table::new();
        let fresh = RunDir::create(folder.path(), &config).unwrap();
        assert_eq!(record_start(&fresh, start("avx512", 2)).unwrap(), None);
        drop(fresh);
        let resumed = RunDir::resume(folder.path(), &config).unwrap();
        assert_eq!(record_start(&resumed, start("avx512", 2)).unwrap(), None);
        let note = record_start(&resumed, start("avx2", 2)).unwrap().unwrap();
        assert!(note.contains("vector unit avx512, now avx2:"), "{note}");
        assert!(record_start(&resumed, start("avx2", 4)).unwrap().unwrap().contains("threads 2, now 4"));
        let text = fs::read_to_string(folder.path().join(PROVENANCE)).unwrap();
        let stored: Provenance = serde_json::from_str(&text).unwrap();
        let levels: Vec<&str> = stored.starts.iter().map(|start| start.cpu_level.as_str()).collect();
        assert_eq!(levels, ["avx512", "avx512", "avx2", "avx2"]);
        fs::write(folder.path().join(PROVENANCE), "{").unwrap();
        assert!(record_start(&resumed, start("avx2", 2)).unwrap_err().to_string().contains(PROVENANCE));
    }
}
