//! MLflow's file store: a folder of an experiment, in it a folder for each run, in it a file for each metric, parameter and tag.
//!
//! The layout is that of MLflow 2 and 3 (`mlflow.store.tracking.file_store`).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;

use crate::hyperparameters;
use crate::provenance::Provenance;
use crate::report::for_lines;
use crate::rundir::{self, RunDirError};

/// The most characters of a parameter.
const PARAM_CHARS: usize = 6000;
/// Files of a run that go with it.
const ARTIFACTS: [&str; 4] = ["report.html", "config.toml", "run.json", rundir::SAMPLES];

/// Writes a run into a store, where it replaces what was written of it before. Returns its folder.
pub(super) fn write(run: &Path, store: &Path, experiment: &str) -> Result<PathBuf, RunDirError> {
    let records = Records::read(&run.join(rundir::METRICS));
    let starts = Provenance::read(run).starts;
    let settings = hyperparameters::of_run(run);
    let run = fs::canonicalize(run).map_err(RunDirError::io("find", run))?;
    let name = run.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned());
    let first = starts.first();
    // The same run in another folder is still the same one.
    let told: Vec<_> = settings.iter().map(|(key, value)| (key, hyperparameters::text(value))).collect();
    let identity = serde_json::json!([name, first.map(|start| (&start.time, &start.host)), told]);
    let id = blake3::hash(identity.to_string().as_bytes()).to_hex()[..32].to_owned();

    create(store)?;
    let store = fs::canonicalize(store).map_err(RunDirError::io("find", store))?;
    let (experiment_id, experiment) = self::experiment(&store, experiment)?;
    let folder = experiment.join(&id);
    let started =
        first.and_then(|start| start.time.parse::<Timestamp>().ok()).map_or(0, Timestamp::as_millisecond);
    let at = |secs: f64| started.saturating_add((secs * 1e3) as i64);
    let alive = rundir::is_locked(&run);
    let (status, end) = match records.ending.as_deref() {
        _ if alive => (1, None),
        Some("stopped") => (5, Some(at(records.time))),
        Some(_) => (3, Some(at(records.time))),
        None => (4, Some(at(records.time))),
    };
    let mut meta = Meta::default();
    meta.text("artifact_uri", &uri(&folder.join("artifacts")));
    meta.plain("end_time", end.map_or_else(|| "null".to_owned(), |end| end.to_string()));
    meta.text("entry_point_name", "");
    meta.text("experiment_id", &experiment_id);
    meta.text("lifecycle_stage", "active");
    meta.text("run_id", &id);
    meta.text("run_name", &name);
    meta.text("run_uuid", &id);
    meta.text("source_name", "");
    meta.plain("source_type", 4);
    meta.text("source_version", "");
    meta.plain("start_time", started);
    meta.plain("status", status);
    meta.plain("tags", "[]");
    meta.text("user_id", "");
    write_file(&folder.join("meta.yaml"), &meta.0)?;

    for (name, points) in &records.points {
        let mut lines = String::new();
        for &(time, updates, value) in points {
            let _ = writeln!(lines, "{} {value} {updates}", at(time));
        }
        write_file(&folder.join("metrics").join(metric(name)), &lines)?;
    }
    for (name, value) in &settings {
        let text: String = hyperparameters::text(value).chars().take(PARAM_CHARS).collect();
        write_file(&folder.join("params").join(key(name)), &text.replace(['\n', '\r'], " "))?;
    }
    let mut tags = BTreeMap::from([("mlflow.runName", name.clone()), ("mlflow.source.type", "LOCAL".into())]);
    if let Some(start) = starts.last() {
        tags.insert("mlflow.source.name", start.command.join(" "));
        tags.insert("ruminate.version", start.version.clone());
        tags.extend(start.commit.clone().map(|commit| ("mlflow.source.git.commit", commit)));
        tags.extend(start.host.clone().map(|host| ("host", host)));
    }
    for (name, text) in tags {
        write_file(&folder.join("tags").join(name), &text)?;
    }
    create(&folder.join("artifacts"))?;
    for name in ARTIFACTS {
        let (from, to) = (run.join(name), folder.join("artifacts").join(name));
        if from.is_file() {
            fs::copy(&from, &to).map_err(RunDirError::io("copy", &from))?;
        }
    }
    Ok(folder)
}

/// The content of `metrics.jsonl`.
#[derive(Default)]
struct Records {
    /// Seconds since the start, updates taken, and the value, by the metric's name.
    points: BTreeMap<String, Vec<(f64, u64, f64)>>,
    /// Seconds since the start.
    time: f64,
    ending: Option<String>,
}

impl Records {
    fn read(path: &Path) -> Self {
        let mut records = Self::default();
        for_lines(path, |line| {
            let text = |key: &str| line.get(key).and_then(Value::as_str);
            let step = line.get("step").and_then(Value::as_u64).unwrap_or(0);
            let updates = if text("kind") == Some("train") { step + 1 } else { step };
            records.time = line.get("time").and_then(Value::as_f64).unwrap_or(records.time);
            records.ending = text("ending").map(str::to_owned);
            for (name, value) in &line {
                // The fixed fields have no group; null stands for what is no number.
                if let Some(value) = value.as_f64().filter(|_| name.contains('/')) {
                    records.points.entry(name.clone()).or_default().push((records.time, updates, value));
                }
            }
        });
        records
    }
}

/// The experiment of a name, made where there is none: its id and its folder.
fn experiment(store: &Path, name: &str) -> Result<(String, PathBuf), RunDirError> {
    let entries = fs::read_dir(store).map_err(RunDirError::io("read", store))?;
    for folder in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let Ok(meta) = fs::read_to_string(folder.join("meta.yaml")) else { continue };
        let is_named =
            meta.lines().any(|line| line.strip_prefix("name: ").is_some_and(|of| unquoted(of) == name));
        if let Some(id) = folder.file_name().and_then(|id| id.to_str()).filter(|_| is_named) {
            return Ok((id.to_owned(), folder.clone()));
        }
    }
    let hash = blake3::hash(name.as_bytes());
    let digits = hash.as_bytes().iter().map(|byte| byte % 10).take(17);
    let id = digits.fold("1".to_owned(), |id, digit| id + &digit.to_string());
    let folder = store.join(&id);
    let now = Timestamp::now().as_millisecond();
    let mut meta = Meta::default();
    meta.text("artifact_location", &uri(&folder));
    meta.plain("creation_time", now);
    meta.text("experiment_id", &id);
    meta.plain("last_update_time", now);
    meta.text("lifecycle_stage", "active");
    meta.text("name", name);
    write_file(&folder.join("meta.yaml"), &meta.0)?;
    Ok((id, folder))
}

/// The value of a YAML line, of which one-line strings are all that names of experiments need.
fn unquoted(text: &str) -> String {
    let text = text.trim();
    let inner = |quote: char| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    match (inner('\''), serde_json::from_str::<String>(text)) {
        (Some(inner), _) => inner.replace("''", "'"),
        (None, Ok(text)) => text,
        (None, Err(_)) => text.to_owned(),
    }
}

/// Lines of YAML. Strings are those of JSON, which YAML reads.
#[derive(Default)]
struct Meta(String);

impl Meta {
    fn text(&mut self, key: &str, text: &str) {
        self.plain(key, serde_json::Value::from(text));
    }

    fn plain(&mut self, key: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{key}: {value}");
    }
}

/// The file of a metric. A file cannot be a folder as well, as `eval/acc` beside `eval/acc/lives` would be, so only the group is a folder.
fn metric(name: &str) -> String {
    match name.split_once('/') {
        Some((group, rest)) => format!("{}/{}", key(group), key(&rest.replace('/', "."))),
        None => key(name),
    }
}

/// A name of characters that MLflow takes.
fn key(name: &str) -> String {
    let taken = |c: char| c.is_ascii_alphanumeric() || "_-. ".contains(c);
    name.chars().map(|c| if taken(c) { c } else { '_' }).collect()
}

fn uri(path: &Path) -> String {
    let mut uri = "file://".to_owned();
    for byte in path.to_string_lossy().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                uri.push(byte.into())
            }
            _ => {
                let _ = write!(uri, "%{byte:02X}");
            }
        }
    }
    uri
}

fn create(folder: &Path) -> Result<(), RunDirError> {
    fs::create_dir_all(folder).map_err(RunDirError::io("create", folder))
}

fn write_file(path: &Path, text: &str) -> Result<(), RunDirError> {
    if let Some(folder) = path.parent() {
        create(folder)?;
    }
    fs::write(path, text).map_err(RunDirError::io("write to", path))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_becomes_files_of_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("runs/first one");
        create(&run).unwrap();
        fs::write(
            run.join("config.toml"),
            "seed = 1\n[trainer]\nlr = 1e-3\nnote = \"a\\nb\"\n[[reward]]\nname = \"r\"\n",
        )
        .unwrap();
        let start = json!({"starts": [{"time": "2026-01-02T03:04:05Z", "host": "h", "version": "0.1.0",
                                       "command": ["ruminate", "sft"]}]});
        fs::write(run.join("run.json"), start.to_string()).unwrap();
        let lines = [
            json!({"kind": "eval", "step": 0, "time": 0.5, "eval/acc": 0.25, "eval/acc/lives": 0.5}),
            json!({"kind": "train", "step": 0, "time": 1.0, "secs": 1, "train/loss": 2.5, "train/odd": null}),
            json!({"kind": "end", "step": 1, "time": 2.0, "ending": "finished"}),
        ];
        let metrics = run.join(rundir::METRICS);
        fs::write(&metrics, lines.map(|line| format!("{line}\n")).concat()).unwrap();
        let store = folder.path().join("mlruns");
        let written = write(&run, &store, "it's: mine").unwrap();
        let read = |name: &str| fs::read_to_string(written.join(name)).unwrap();
        let start = 1_767_323_045_000u64;
        assert_eq!(read("metrics/eval/acc"), format!("{} 0.25 0\n", start + 500));
        assert_eq!(read("metrics/eval/acc.lives"), format!("{} 0.5 0\n", start + 500));
        // A training record stands beside the validation that follows it.
        assert_eq!(read("metrics/train/loss"), format!("{} 2.5 1\n", start + 1000));
        assert!(!written.join("metrics/train/odd").exists());
        assert_eq!((read("params/trainer.lr"), read("params/reward.0.name")), ("0.001".into(), "r".into()));
        assert_eq!(
            (read("params/trainer.note"), read("tags/mlflow.runName")),
            ("a b".into(), "first one".into())
        );
        assert!(
            read("meta.yaml").contains(&format!("start_time: {start}\nstatus: 3\n")),
            "{}",
            read("meta.yaml")
        );
        assert!(read("artifacts/config.toml").starts_with("seed = 1"));

        // Again, and from elsewhere, it is the same run; another one is another.
        let moved = folder.path().join("moved/first one");
        create(moved.parent().unwrap()).unwrap();
        fs::rename(&run, &moved).unwrap();
        assert_eq!(write(&moved, &store, "it's: mine").unwrap(), written);
        let other = folder.path().join("moved/second");
        fs::rename(&moved, &other).unwrap();
        let second = write(&other, &store, "it's: mine").unwrap();
        assert!(second != written && second.parent() == written.parent());
        assert_ne!(write(&other, &store, "another").unwrap().parent(), written.parent());
    }

    /// Experiments that MLflow has made are found by their names.
    #[test]
    fn names_are_read_as_yaml_writes_them() {
        for (yaml, name) in
            [("mine", "mine"), ("'it''s: mine'", "it's: mine"), ("\"a\\tb\"", "a\tb"), ("'7'", "7")]
        {
            assert_eq!(unquoted(yaml), name);
        }
        assert_eq!(uri(Path::new("/a b/ü")), "file:///a%20b/%C3%BC");
    }
}
