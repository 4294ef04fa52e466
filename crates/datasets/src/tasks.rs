//! Which tasks there are and where their files lie.

use crate::question::Split;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where the questions lie: the default of Crystal's `data_path`.
pub const DATA_PATH: &str = "data/{datapath}/{split}.tsv";

/// Where silver knowledge lies.
pub const KNOWLEDGE_PATH: &str = "data/knowledge/knowledge_gkp_gpt3{engine}.{split}.{task}.json";

/// The tasks that Crystal trains on, in its order.
pub const SEEN_TASKS: [&str; 10] =
    ["obqa", "arc_e", "arc_h", "ai2sci_e", "ai2sci_m", "csqa", "qasc", "piqa", "siqa", "wg"];

/// The tasks that Crystal only evaluates on. Their files are not distributed with it.
pub const UNSEEN_TASKS: [&str; 16] = [
    "com2sense_paired",
    "sciq",
    "quarel",
    "quartz",
    "cycic_mc",
    "comve_a",
    "wsc273",
    "copa",
    "numersense_new",
    "prost",
    "swag",
    "hellaswag",
    "codah",
    "story_cloze_test",
    "alphanli",
    "riddlesense",
];

/// A task's directories. In a configuration: `[data.tasks.piqa] dir = "uqa/physical_iqa"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskEntry {
    /// What `{datapath}` stands for.
    pub dir: String,
    /// What it stands for in some splits, where that differs: `splits.test = "uqa/physical_iqa_test"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub splits: BTreeMap<Split, String>,
}

impl TaskEntry {
    /// A task with the same directory for all splits.
    pub fn new(dir: impl Into<String>) -> Self {
        Self { dir: dir.into(), splits: BTreeMap::new() }
    }

    /// The directory of a split.
    pub fn dir(&self, split: Split) -> &str {
        self.splits.get(&split).unwrap_or(&self.dir)
    }
}

/// All tasks by key. The default holds those of the paper; a configuration adds to them or moves them.
///
/// # Example
/// ```
/// use ruminate_datasets::{Split, TaskEntry, TaskRegistry};
/// use ruminate_datasets::tasks::DATA_PATH;
///
/// let mut tasks = TaskRegistry::default();
/// tasks.register("made_up", TaskEntry::new("my/made_up"));
/// let path = tasks.path(DATA_PATH, "made_up", Split::Dev)?;
/// assert_eq!(path.to_str(), Some("data/my/made_up/dev.tsv"));
/// # Ok::<(), ruminate_datasets::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskRegistry {
    tasks: BTreeMap<String, TaskEntry>,
}

impl Default for TaskRegistry {
    fn default() -> Self {
        let seen_dirs = [
            "openbookqa",
            "arc_easy",
            "arc_hard",
            "ai2_science_elementary",
            "ai2_science_middle",
            "commonsenseqa",
            "qasc",
            "physical_iqa",
            "social_iqa",
            "winogrande_xl",
        ];
        let mut registry = Self::empty();
        for (task, dir) in SEEN_TASKS.iter().zip(seen_dirs) {
            registry.register(*task, TaskEntry::new(format!("uqa/{dir}")));
        }
        for task in UNSEEN_TASKS {
            registry.register(task, TaskEntry::new(task));
        }
        for task in ["piqa", "siqa"] {
            if let Some(entry) = registry.tasks.get_mut(task) {
                entry.splits.insert(Split::Test, format!("{}_test", entry.dir));
            }
        }
        registry
    }
}

impl TaskRegistry {
    /// No tasks at all.
    pub fn empty() -> Self {
        Self { tasks: BTreeMap::new() }
    }

    /// Adds a task, or replaces it.
    pub fn register(&mut self, task: impl Into<String>, entry: TaskEntry) {
        self.tasks.insert(task.into(), entry);
    }

    /// Adds or replaces the tasks of a configuration.
    pub fn extend(&mut self, other: TaskRegistry) {
        self.tasks.extend(other.tasks);
    }

    /// The keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// A task's directories.
    ///
    /// # Errors
    /// [`Error::UnknownTask`] with the registered key that looks most like it.
    pub fn get(&self, task: &str) -> Result<&TaskEntry> {
        self.tasks.get(task).ok_or_else(|| {
            let likeness = |key: &str| strsim::normalized_damerau_levenshtein(key, task);
            let nearest = self.keys().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
            Error::UnknownTask {
                task: task.to_owned(),
                nearest: nearest.filter(|key| likeness(key) >= 0.5).map(str::to_owned),
                known: self.keys().map(str::to_owned).collect(),
            }
        })
    }

    /// The path of a task's file: `template` with `{datapath}`, `{split}` and `{task}` filled in.
    ///
    /// # Errors
    /// [`Error::UnknownTask`] and [`Error::BadTemplate`].
    pub fn path(&self, template: &str, task: &str, split: Split) -> Result<PathBuf> {
        let dir = self.get(task)?.dir(split);
        fill(template, &[("datapath", dir), ("split", &split.to_string()), ("task", task)])
    }

    /// The same, and the file must be there.
    ///
    /// # Errors
    /// Those of [`TaskRegistry::path`], and [`Error::MissingFile`].
    pub fn locate(&self, template: &str, task: &str, split: Split) -> Result<PathBuf> {
        must_exist(self.path(template, task, split)?, task, split)
    }

    /// The path of a task's silver knowledge: `template` with `{engine}`, `{split}` and `{task}` filled in. The file
    /// must be there.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], [`Error::BadTemplate`] and [`Error::MissingFile`].
    pub fn locate_knowledge(
        &self,
        template: &str,
        engine: &str,
        task: &str,
        split: Split,
    ) -> Result<PathBuf> {
        must_exist(self.knowledge_path(template, engine, task, split)?, task, split)
    }

    /// The path of a task's silver knowledge, whether or not it is there.
    ///
    /// # Errors
    /// [`Error::UnknownTask`] and [`Error::BadTemplate`].
    pub fn knowledge_path(&self, template: &str, engine: &str, task: &str, split: Split) -> Result<PathBuf> {
        self.get(task)?;
        fill(template, &[("engine", engine), ("split", &split.to_string()), ("task", task)])
    }
}

fn must_exist(path: PathBuf, task: &str, split: Split) -> Result<PathBuf> {
    if path.is_file() { Ok(path) } else { Err(Error::MissingFile { task: task.to_owned(), split, path }) }
}

/// Replaces every `{name}` of a template.
fn fill(template: &str, values: &[(&str, &str)]) -> Result<PathBuf> {
    let bad = |reason| Error::BadTemplate { template: template.to_owned(), reason };
    let mut path = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or_else(|| bad("a `{` is never closed".to_owned()))?;
        let value = values.iter().find(|(known, _)| *known == name).ok_or_else(|| {
            let known: Vec<String> = values.iter().map(|(known, _)| format!("{{{known}}}")).collect();
            bad(format!("{{{name}}} is none of {}", known.join(", ")))
        })?;
        path.push_str(before);
        path.push_str(value.1);
        rest = after;
    }
    path.push_str(rest);
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(task: &str, split: Split) -> String {
        TaskRegistry::default().path(DATA_PATH, task, split).unwrap().display().to_string()
    }

    #[test]
    fn knows_the_tasks_of_the_paper() {
        let registry = TaskRegistry::default();
        assert_eq!(registry.keys().count(), SEEN_TASKS.len() + UNSEEN_TASKS.len());
        assert_eq!(path("arc_h", Split::Train), "data/uqa/arc_hard/train.tsv");
        assert_eq!(path("piqa", Split::Dev), "data/uqa/physical_iqa/dev.tsv");
        assert_eq!(path("piqa", Split::Test), "data/uqa/physical_iqa_test/test.tsv");
        assert_eq!(path("siqa", Split::Test), "data/uqa/social_iqa_test/test.tsv");
        assert_eq!(path("copa", Split::Dev), "data/copa/dev.tsv");
    }

    #[test]
    fn a_configuration_extends_it() {
        let config = "[quarel]\ndir = \"uqa/quarel\"\n[piqa]\ndir = \"p\"\nsplits.dev = \"p_dev\"\n";
        let mut registry = TaskRegistry::default();
        registry.extend(toml::from_str(config).unwrap());
        assert_eq!(registry.get("quarel").unwrap().dir(Split::Dev), "uqa/quarel");
        assert_eq!(registry.get("piqa").unwrap().dir(Split::Dev), "p_dev");
        assert_eq!(registry.get("piqa").unwrap().dir(Split::Test), "p");
        let again: TaskRegistry = toml::from_str(&toml::to_string(&registry).unwrap()).unwrap();
        assert_eq!(again, registry);
        assert!(toml::from_str::<TaskRegistry>("[quarel]\ndirectory = \"x\"\n").is_err());
    }

    #[test]
    fn unknown_tasks_are_told_their_neighbour() {
        let error = TaskRegistry::default().get("ocqa").unwrap_err().to_string();
        assert!(error.starts_with("unknown task `ocqa`; did you mean `obqa`?"), "{error}");
        assert!(error.contains("[data.tasks.ocqa] dir = "), "{error}");
        let error = TaskRegistry::default().get("zzzzzzzzzz").unwrap_err().to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }

    #[test]
    fn missing_files_and_bad_templates_are_explained() {
        let registry = TaskRegistry::default();
        let error = registry.locate(DATA_PATH, "sciq", Split::Dev).unwrap_err().to_string();
        assert!(error.contains("task `sciq` has no dev file at data/sciq/dev.tsv"), "{error}");
        let error =
            registry.locate_knowledge(KNOWLEDGE_PATH, "davinci", "wg", Split::Train).unwrap_err().to_string();
        assert!(error.contains("knowledge_gkp_gpt3davinci.train.wg.json"), "{error}");
        let error = registry.path("{dir}/x", "wg", Split::Dev).unwrap_err().to_string();
        assert!(error.contains("{dir} is none of {datapath}, {split}, {task}"), "{error}");
        assert!(registry.path("{split", "wg", Split::Dev).is_err());
    }
}
