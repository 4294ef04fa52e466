//! Which files are read, how they are mixed, and what is held out of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::forms::{Pair, pairs, prompt_rows, supervised_rows, weighted_rows};
use super::{Columns, PreferenceRows, PromptRow, WeightedRow, mix};
use crate::preference::PairProblem;
use crate::{Error, Result, SupervisedExample};

/// The largest weight of a file.
const MOST_OFTEN: f64 = 1000.0;

/// Files of one's own data: the section `[data]` of a configuration.
///
/// # Example
/// ```
/// use ruminate_datasets::rows::{DataFiles, FileEntry};
/// # let folder = tempfile::tempdir()?;
/// # let [mine, more] = ["mine.jsonl", "more.jsonl"].map(|name| folder.path().join(name));
/// # for path in [&mine, &more] {
/// #     std::fs::write(path, "{\"prompt\": \"p\", \"completion\": \"c\"}\n{\"prompt\": \"q\", \"completion\": \"c\"}")?;
/// # }
/// let more = FileEntry::Weighted { path: more, weight: 0.5 };
/// let files = DataFiles { train: vec![mine.into(), more], ..DataFiles::default() };
/// let rows = files.supervised()?;
/// assert_eq!((rows.train.len(), rows.counts.files[1].taken), (3, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataFiles {
    /// Files to train on, JSON lines, a JSON array or Parquet: paths, or tables with `path` and `weight`.
    pub train: Vec<FileEntry>,
    /// Files to validate with.
    pub valid: Vec<FileEntry>,
    /// The share of the training rows that is held out for validation where `valid` names no file: at least one of twenty rows, each of them
    /// once. Rows with the same prompt stay together; in dialogues, that is what was said before the assistant's first message.
    pub valid_share: f64,
    /// Rows of each file at most, its first ones; what follows is not looked at. 0 takes all.
    pub limit: usize,
    /// Seed of what is held out, and of what is drawn from files with a weight.
    pub seed: u64,
    /// The names of the fields.
    pub columns: Columns,
}

impl Default for DataFiles {
    fn default() -> Self {
        Self {
            train: vec![],
            valid: vec![],
            valid_share: 0.05,
            limit: 0,
            seed: 1,
            columns: Columns::default(),
        }
    }
}

/// A file, and how often its rows are taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a path, or a table with path and weight")]
pub enum FileEntry {
    /// Every row once.
    Path(PathBuf),
    /// Every row `weight` times: 2 takes each twice, and 0.5 a half of them, drawn by the seed.
    Weighted {
        /// The file.
        path: PathBuf,
        /// How often.
        weight: f64,
    },
}

impl<T: Into<PathBuf>> From<T> for FileEntry {
    fn from(path: T) -> Self {
        Self::Path(path.into())
    }
}

impl FileEntry {
    fn path(&self) -> &Path {
        match self {
            Self::Path(path) | Self::Weighted { path, .. } => path,
        }
    }

    fn weight(&self) -> f64 {
        match self {
            Self::Path(_) => 1.0,
            Self::Weighted { weight, .. } => *weight,
        }
    }
}

/// Rows of files: rows to train on, rows to validate with, and how many they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows<T> {
    /// To train on.
    pub train: T,
    /// To validate with; may be empty.
    pub valid: T,
    /// How many.
    pub counts: RowCounts,
}

/// How many rows there are.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RowCounts {
    /// To train on.
    pub train: usize,
    /// To validate with.
    pub valid: usize,
    /// Counts of each file.
    pub files: Vec<FileCount>,
    /// Left out, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, usize>,
}

/// How many rows a file has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileCount {
    /// The file.
    pub path: PathBuf,
    /// Its rows that can be used.
    pub rows: usize,
    /// How many rows its weight makes of them.
    pub taken: usize,
    /// Rows that were left out, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<PairProblem, usize>,
}

impl DataFiles {
    /// Examples of fine-tuning; see [`read_supervised`](super::read_supervised).
    ///
    /// # Errors
    /// No file is named, a setting is out of its range, or a file cannot be used.
    pub fn supervised(&self) -> Result<Rows<Vec<SupervisedExample>>> {
        let file = |path: &Path| supervised_rows(path, &self.columns, self.row_limit());
        self.read(whole(file), mix::supervised_key)
    }

    /// Prompts; see [`read_prompts`](super::read_prompts).
    ///
    /// # Errors
    /// As [`supervised`](Self::supervised).
    pub fn prompts(&self) -> Result<Rows<Vec<PromptRow>>> {
        let file = |path: &Path| prompt_rows(path, &self.columns, self.row_limit());
        self.read(whole(file), |row| mix::key(&row.prompt))
    }

    /// Examples with rewards; see [`read_weighted`](super::read_weighted).
    ///
    /// # Errors
    /// As [`supervised`](Self::supervised).
    pub fn weighted(&self) -> Result<Rows<Vec<WeightedRow>>> {
        let file = |path: &Path| weighted_rows(path, &self.columns, self.row_limit());
        self.read(whole(file), |row| mix::supervised_key(&row.example))
    }

    /// Preferences; see [`read_preferences`](super::read_preferences). All files hold texts, or all hold dialogues.
    ///
    /// # Errors
    /// As [`supervised`](Self::supervised), and when texts are mixed with dialogues.
    pub fn preferences(&self) -> Result<Rows<PreferenceRows>> {
        let mut first: Option<(PathBuf, &'static str)> = None;
        let file = |path: &Path| {
            let (pairs, left_out) = pairs(path, &self.columns, self.row_limit())?;
            if let Some(pair) = pairs.first() {
                let (of, kind) = first.get_or_insert_with(|| (path.into(), pair.kind()));
                if *kind != pair.kind() {
                    return Err(mixed(path, pair.kind(), of, kind));
                }
            }
            Ok((pairs, left_out))
        };
        let key = |pair: &Pair| match pair {
            Pair::Text(pair) => mix::text_key(&pair.prompt),
            Pair::Dialogue(pair) => mix::opening_key(&pair.prompt),
        };
        let Rows { train, valid, counts } = self.read(file, key)?;
        let dialogues = matches!(train.first(), Some(Pair::Dialogue(_)));
        let [train, valid] = [train, valid].map(|pairs| PreferenceRows::of_kind(dialogues, pairs));
        Ok(Rows { train, valid, counts })
    }

    fn row_limit(&self) -> usize {
        if self.limit == 0 { usize::MAX } else { self.limit }
    }

    fn validate(&self) -> Result<()> {
        if self.train.is_empty() {
            return Err(no_file());
        }
        if !(0.0..1.0).contains(&self.valid_share) {
            let reason = format!("is {}, but must be at least 0 and below 1", self.valid_share);
            return Err(Error::DataSetting { key: "data.valid_share", reason });
        }
        for (key, entries) in [("data.train", &self.train), ("data.valid", &self.valid)] {
            for entry in entries {
                let weight = entry.weight();
                if !(weight > 0.0 && weight <= MOST_OFTEN) {
                    let path = entry.path().display();
                    let reason = format!(
                        "gives {path} the weight {weight}, but a weight is above 0 and at most {MOST_OFTEN}"
                    );
                    return Err(Error::DataSetting { key, reason });
                }
            }
        }
        Ok(())
    }

    fn read<T: Clone>(
        &self,
        mut file: impl FnMut(&Path) -> Result<(Vec<T>, BTreeMap<PairProblem, usize>)>,
        key: impl Fn(&T) -> u64,
    ) -> Result<Rows<Vec<T>>> {
        self.validate()?;
        let mut counts = RowCounts::default();
        // The rows of each file, and how often each is taken.
        let mut all = |entries: &[FileEntry]| -> Result<Vec<(Vec<T>, Vec<usize>)>> {
            let read = |(i, entry): (usize, &FileEntry)| {
                let (rows, left_out) = file(entry.path())?;
                for (problem, count) in &left_out {
                    *counts.left_out.entry(problem.to_string()).or_default() += count;
                }
                let times = mix::times(rows.len(), entry.weight(), self.seed.wrapping_add(i as u64));
                let taken = times.iter().sum();
                let path = entry.path().into();
                counts.files.push(FileCount { path, rows: rows.len(), taken, left_out });
                Ok((rows, times))
            };
            entries.iter().enumerate().map(read).collect()
        };
        let (train, valid) = (all(&self.train)?, all(&self.valid)?);
        let keep = |files: Vec<(Vec<T>, Vec<usize>)>| -> Vec<T> {
            files.into_iter().flat_map(|(rows, times)| mix::repeat(rows, &times)).collect()
        };
        let (train, valid) =
            if self.valid.is_empty() { self.hold_out(train, key) } else { (keep(train), keep(valid)) };
        if train.is_empty() {
            let left_out: Vec<String> =
                counts.left_out.iter().map(|(why, count)| format!("; {count} rows: {why}")).collect();
            let reason = format!("no row is left to train on{}", left_out.concat());
            return Err(Error::Rows { path: self.train[0].path().into(), reason });
        }
        (counts.train, counts.valid) = (train.len(), valid.len());
        Ok(Rows { train, valid, counts })
    }

    /// Holds out a share of the rows that are taken at all, each of them once; what is left is repeated.
    fn hold_out<T: Clone>(
        &self,
        files: Vec<(Vec<T>, Vec<usize>)>,
        key: impl Fn(&T) -> u64,
    ) -> (Vec<T>, Vec<T>) {
        let taken =
            files.iter().flat_map(|(rows, times)| rows.iter().zip(times)).filter(|(_, times)| **times > 0);
        let keys: Vec<u64> = taken.map(|(row, _)| key(row)).collect();
        let mut out = mix::held_out(&keys, self.valid_share, self.seed).into_iter();
        let (mut train, mut valid) = (vec![], vec![]);
        for (rows, times) in files {
            let (mut stay, mut stay_times) = (vec![], vec![]);
            for (row, times) in rows.into_iter().zip(times).filter(|(_, times)| *times > 0) {
                if out.next() == Some(true) {
                    valid.push(row);
                } else {
                    stay.push(row);
                    stay_times.push(times);
                }
            }
            train.append(&mut mix::repeat(stay, &stay_times));
        }
        (train, valid)
    }
}

/// A file of which no row is left out.
fn whole<T>(
    file: impl Fn(&Path) -> Result<Vec<T>>,
) -> impl FnMut(&Path) -> Result<(Vec<T>, BTreeMap<PairProblem, usize>)> {
    move |path| Ok((file(path)?, BTreeMap::new()))
}

fn no_file() -> Error {
    let reason = "names no file to train on; give one with --data FILE";
    Error::DataSetting { key: "data.train", reason: reason.into() }
}

fn mixed(path: &Path, own: &str, first: &Path, other: &str) -> Error {
    let reason =
        format!("has pairs of {own}, but {} has pairs of {other}; use files of one kind", first.display());
    Error::Rows { path: path.into(), reason }
}
