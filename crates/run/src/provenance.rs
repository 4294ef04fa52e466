//! Provenance of a run: `run.json` in its folder, one entry for each start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ruminate_algorithms::trainer::{MANIFEST, file_hash};
use ruminate_datasets::text::files_read;
use ruminate_torch::CpuLevel;
use ruminate_torch::dist::World;
use serde::{Deserialize, Serialize};
use tch::Device;
use toml::Value;

use crate::config;
use crate::doctor::libtorch_version;
use crate::host;
use crate::rundir::{RunDir, RunDirError};

pub(crate) const PROVENANCE: &str = "run.json";

/// All starts of a run, the first one and those that resumed it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Provenance {
    pub(crate) starts: Vec<Start>,
}

/// One start of the run: all that decides its numbers to the last bit, besides the configuration. Older versions recorded less.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Start {
    /// When, in UTC.
    pub(crate) time: String,
    /// The command line.
    pub(crate) command: Vec<String>,
    /// The version of this library.
    pub(crate) version: String,
    /// The commit that it was built from, where that is known.
    pub(crate) commit: Option<String>,
    /// The version of libtorch.
    pub(crate) libtorch: Option<String>,
    /// Where the first process computes.
    pub(crate) device: String,
    /// How many processes work together.
    pub(crate) processes: usize,
    /// The machine's name.
    pub(crate) host: Option<String>,
    /// The processor's name.
    pub(crate) cpu: String,
    /// Its vector unit in use, as `RUMINATE_CPU` names it.
    pub(crate) cpu_level: String,
    /// Threads of one process.
    pub(crate) threads: i32,
    /// Files that this process had read by then, and those that the settings name: data, and the model or checkpoint to start from.
    pub(crate) files: BTreeMap<String, Hashed>,
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hashed {
    pub(crate) bytes: u64,
    pub(crate) blake3: String,
}

impl Start {
    fn now(inputs: BTreeSet<PathBuf>, device: Device) -> Self {
        Self {
            time: jiff::Timestamp::now().strftime("%FT%TZ").to_string(),
            command: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("RUMINATE_COMMIT").map(str::to_owned),
            libtorch: libtorch_version(),
            device: device_name(device),
            processes: World::from_env().ok().flatten().map_or(1, |world| world.size),
            host: host::name(),
            cpu: host::cpu_name().unwrap_or_else(|| std::env::consts::ARCH.into()),
            cpu_level: CpuLevel::in_use().map_or_else(|error| error.to_string(), |level| level.to_string()),
            threads: tch::get_num_threads(),
            files: hashes(inputs),
        }
    }
}

impl Provenance {
    /// Reads the provenance from the folder of a run; empty where its file is missing or damaged.
    pub(crate) fn read(folder: &Path) -> Self {
        let text = fs::read(folder.join(PROVENANCE)).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }
}

fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => {
            let gpus: BTreeSet<String> = host::gpus().into_iter().map(|gpu| gpu.name).collect();
            format!("cuda:{index} ({})", gpus.into_iter().collect::<Vec<_>>().join(", "))
        }
        Device::Cpu => "cpu".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The files that the data sets were read from, and the files and model folders that the configuration names.
fn inputs(config: &toml::Table) -> BTreeSet<PathBuf> {
    let mut files: BTreeSet<PathBuf> = files_read().into_iter().collect();
    for (key, value) in config::flatten(config) {
        let Value::String(text) = value else { continue };
        let path = PathBuf::from(text);
        // A teacher's key is no input, and its hash is nobody's business.
        if key.ends_with("key.file") {
            continue;
        }
        if path.is_file() {
            files.insert(path);
        } else if ["config.json", "tokenizer.json"].iter().any(|name| path.join(name).is_file()) {
            // Of a tokenizer's folder, weights are not read.
            let kinds: &[&str] = if key.ends_with("tokenizer") {
                &["json", "jinja"]
            } else {
                &["json", "jinja", "safetensors"]
            };
            files.extend(files_of(&path, kinds));
        }
    }
    files
}

/// The files of a folder with one of these extensions. Weights in other forms, which are never read, may take as much space again.
fn files_of(folder: &Path, kinds: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let read = |path: &PathBuf| path.extension().is_some_and(|found| kinds.iter().any(|kind| found == *kind));
    entries.filter(|path| path.is_file() && read(path)).collect()
}

/// Files that are gone by now are left out: a record is no reason for a run to fail.
fn hashes(files: BTreeSet<PathBuf>) -> BTreeMap<String, Hashed> {
    let mut manifests: BTreeMap<PathBuf, Option<Manifest>> = BTreeMap::new();
    let mut hashed = |path: &Path| -> Option<Hashed> {
        let bytes = fs::metadata(path).ok()?.len();
        let folder = path.parent()?;
        // A checkpoint is compared with these when it is loaded.
        let manifest = manifests.entry(folder.to_owned()).or_insert_with(|| Manifest::read(folder));
        let listed = manifest.as_ref().and_then(|manifest| manifest.files.get(path.file_name()?.to_str()?));
        if let Some(listed) = listed.filter(|listed| listed.bytes == bytes) {
            return Some(listed.clone());
        }
        Some(Hashed { bytes, blake3: file_hash(path).ok()? })
    };
    files.iter().filter_map(|path| Some((path.display().to_string(), hashed(path)?))).collect()
}

/// The hashes in a checkpoint of the trainer.
#[derive(Deserialize)]
struct Manifest {
    files: BTreeMap<String, Hashed>,
}

impl Manifest {
    fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(MANIFEST)).ok()?).ok()
    }
}

/// Records this start in `run.json`; gives a note for people where the run was computed in another way before.
///
/// # Errors
/// The file cannot be read or written.
pub(crate) fn record(dir: &RunDir, device: Device) -> Result<Option<String>, RunDirError> {
    let config = match RunDir::stored_config(dir.path()) {
        Some(file) => config::load(Some(&file), &[])?,
        None => toml::Table::new(),
    };
    let mut inputs = inputs(&config);
    if dir.is_resumed() {
        // Its manifest has the hashes.
        inputs.extend(files_of(&dir.checkpoints().join("last"), &["json", "jinja", "safetensors"]));
    }
    record_start(dir, Start::now(inputs, device))
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
    let files: Vec<&str> = now
        .files
        .iter()
        .filter(|(path, file)| before.files.get(*path).is_some_and(|before| before != *file))
        .map(|(path, _)| path.as_str())
        .collect();
    let mut notes = vec![];
    if !changes.is_empty() {
        notes.push(format!(
            "note: this run was computed with {}: its numbers will differ in the last bits from those of a run without a stop",
            changes.join("; ")
        ));
    }
    if !files.is_empty() {
        notes.push(format!("note: not as they were when this run was last started: {}", files.join(", ")));
    }
    (!notes.is_empty()).then(|| notes.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn start(cpu_level: &str, threads: i32) -> Start {
        Start { cpu_level: cpu_level.into(), threads, ..Start::default() }
    }

    #[test]
    fn what_a_run_reads_is_hashed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("model")).unwrap();
        for (name, text) in [
            ("model/config.json", "{}"),
            ("model/model.safetensors", "w"),
            ("model/pytorch_model.bin", "b"),
            ("data.tsv", "d"),
            ("key", "k"),
            ("other", "o"),
        ] {
            fs::write(path(name), text).unwrap();
        }
        let listed = json!({ "files": { "model.safetensors": { "bytes": 1, "blake3": "listed" }, "config.json": { "bytes": 9, "blake3": "stale" } } });
        fs::write(path("model").join(MANIFEST), listed.to_string()).unwrap();
        ruminate_datasets::text::read(&path("data.tsv")).unwrap();
        let config = toml::toml! {
            steps = 3
            [model]
            pretrained = "MODEL"
            name = "no file"
            [teacher]
            key = { file = "KEY" }
        };
        let text = config.to_string().replace("MODEL", &path("model").display().to_string());
        let text = text.replace("KEY", &path("key").display().to_string());
        let start = Start::now(inputs(&text.parse().unwrap()), Device::Cpu);
        let hash =
            |name: &str| start.files.get(&path(name).display().to_string()).map(|file| file.blake3.clone());
        let expected = |text: &str| Some(blake3::hash(text.as_bytes()).to_hex().to_string());
        assert_eq!(hash("data.tsv"), expected("d"));
        assert_eq!(hash("model/model.safetensors"), Some("listed".into()));
        assert_eq!(hash("model/config.json"), expected("{}"), "the manifest lists another size");
        for name in ["other", "key", "model/pytorch_model.bin"] {
            assert_eq!(hash(name), None, "{name}");
        }
        let tokenizer =
            toml::Table::from_iter([("tokenizer".into(), path("model").display().to_string().into())]);
        assert_eq!(inputs(&tokenizer).into_iter().filter(|file| file.starts_with(path("model"))).count(), 2);
        assert_eq!((start.device.as_str(), start.processes), ("cpu", 1));
        assert!(start.libtorch.is_some_and(|version| version.starts_with("2.")));
        assert!(!start.command.is_empty() && start.time.ends_with('Z'));
    }

    #[test]
    fn resuming_with_other_data_is_said() {
        let with = |blake3: &str| {
            let file = Hashed { bytes: 1, blake3: blake3.into() };
            Start { files: [("train.tsv".into(), file)].into(), ..start("avx2", 1) }
        };
        assert_eq!(difference(&with("a"), &with("a")), None);
        assert!(difference(&with("a"), &with("b")).unwrap().ends_with("last started: train.tsv"));
        assert_eq!(difference(&start("avx2", 1), &with("b")), None, "older versions recorded no files");
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
