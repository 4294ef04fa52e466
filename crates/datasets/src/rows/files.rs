//! Which files are read, how they are mixed, and what is held out of them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::forms::{
    Columns, PreferenceRows, WeightedRow, read_preferences, read_prompts, read_supervised, read_weighted,
};
use super::{PromptRow, TextOrMessages};
use crate::{Error, Order, Result, SupervisedExample};

/// Files of one's own data: the section `[data]` of a configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataFiles {
    /// Files to train on, JSON lines or a JSON array: paths, or tables with `path` and `weight`.
    pub train: Vec<FileEntry>,
    /// Files to validate with.
    pub valid: Vec<FileEntry>,
    /// The share of the training rows that is held out for validation where `valid` names no file. Rows with the same prompt stay together.
    pub valid_share: f64,
    /// Rows of each file at most, its first ones; 0 takes all.
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// What was read: rows to train on, rows to validate with, and how many they are.
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
    /// Of each file.
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
}

impl DataFiles {
    /// Examples of fine-tuning; see [`read_supervised`].
    ///
    /// # Errors
    /// No file is named, a setting is out of its range, or a file cannot be used.
    pub fn supervised(&self) -> Result<Rows<Vec<SupervisedExample>>> {
        self.read(&mut |path| read_supervised(path, &self.columns), supervised_prompt)
    }

    /// Prompts; see [`read_prompts`].
    ///
    /// # Errors
    /// As [`supervised`](Self::supervised).
    pub fn prompts(&self) -> Result<Rows<Vec<PromptRow>>> {
        self.read(&mut |path| read_prompts(path, &self.columns), |row| prompt_key(&row.prompt))
    }

    /// Examples with rewards; see [`read_weighted`].
    ///
    /// # Errors
    /// As [`supervised`](Self::supervised).
    pub fn weighted(&self) -> Result<Rows<Vec<WeightedRow>>> {
        self.read(&mut |path| read_weighted(path, &self.columns), |row| supervised_prompt(&row.example))
    }

    /// Preferences; see [`read_preferences`]. All files hold texts, or all hold dialogues.
    ///
    /// # Errors
    /// As [`supervised`](Self::supervised), and when texts are mixed with dialogues.
    pub fn preferences(&self) -> Result<Rows<PreferenceRows>> {
        let mut left_out: BTreeMap<String, usize> = BTreeMap::new();
        let mut of = |path: &Path| -> Result<PreferenceRows> {
            let (rows, problems) = read_preferences(path, &self.columns)?;
            for (problem, count) in problems {
                *left_out.entry(problem.to_string()).or_default() += count;
            }
            Ok(rows)
        };
        // The first file tells the kind of all.
        let first = self.train.first().ok_or_else(no_file)?.path();
        let mut rows = match of(first)? {
            PreferenceRows::Texts(head) => {
                let mut head = Some(head);
                let read = self.read(
                    &mut |path| match head.take() {
                        Some(rows) if path == first => Ok(rows),
                        _ => match of(path)? {
                            PreferenceRows::Texts(rows) => Ok(rows),
                            PreferenceRows::Dialogues(_) => Err(mixed(path, "messages", first, "texts")),
                        },
                    },
                    |pair| pair.prompt.clone(),
                )?;
                let Rows { train, valid, counts } = read;
                Rows { train: PreferenceRows::Texts(train), valid: PreferenceRows::Texts(valid), counts }
            }
            PreferenceRows::Dialogues(head) => {
                let mut head = Some(head);
                let read = self.read(
                    &mut |path| match head.take() {
                        Some(rows) if path == first => Ok(rows),
                        _ => match of(path)? {
                            PreferenceRows::Dialogues(rows) => Ok(rows),
                            PreferenceRows::Texts(_) => Err(mixed(path, "texts", first, "messages")),
                        },
                    },
                    |pair| serde_json::json!(pair.prompt).to_string(),
                )?;
                let Rows { train, valid, counts } = read;
                Rows {
                    train: PreferenceRows::Dialogues(train),
                    valid: PreferenceRows::Dialogues(valid),
                    counts,
                }
            }
        };
        rows.counts.left_out = left_out;
        Ok(rows)
    }

    fn read<T: Clone>(
        &self,
        file: &mut dyn FnMut(&Path) -> Result<Vec<T>>,
        prompt: impl Fn(&T) -> String,
    ) -> Result<Rows<Vec<T>>> {
        if self.train.is_empty() {
            return Err(no_file());
        }
        if !(0.0..1.0).contains(&self.valid_share) {
            let reason = format!("is {}, but must be at least 0 and below 1", self.valid_share);
            return Err(Error::DataSetting { key: "data.valid_share", reason });
        }
        let mut counts = RowCounts::default();
        let mut all = |entries: &[FileEntry]| -> Result<Vec<T>> {
            let mut rows = vec![];
            for (i, entry) in entries.iter().enumerate() {
                let mut of_file = file(entry.path())?;
                if self.limit > 0 {
                    of_file.truncate(self.limit);
                }
                counts.files.push(FileCount { path: entry.path().into(), rows: of_file.len() });
                rows.extend(weighted(of_file, entry.weight(), self.seed.wrapping_add(i as u64))?);
            }
            Ok(rows)
        };
        let (mut train, mut valid) = (all(&self.train)?, all(&self.valid)?);
        if self.valid.is_empty() {
            (train, valid) = split(train, self.valid_share, self.seed, prompt);
        }
        if train.is_empty() {
            let path = self.train[0].path().into();
            return Err(Error::Rows { path, reason: "no row is left to train on".into() });
        }
        (counts.train, counts.valid) = (train.len(), valid.len());
        Ok(Rows { train, valid, counts })
    }
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

fn prompt_key(prompt: &TextOrMessages) -> String {
    match prompt {
        TextOrMessages::Text(text) => text.clone(),
        TextOrMessages::Messages(messages) => serde_json::json!(messages).to_string(),
    }
}

fn supervised_prompt(example: &SupervisedExample) -> String {
    match example {
        SupervisedExample::Completion { prompt, .. } => prompt.clone(),
        SupervisedExample::Answer { prompt, .. } => serde_json::json!(prompt).to_string(),
        SupervisedExample::Dialogue { messages } => {
            let given = messages.iter().position(|message| message.role == "assistant").unwrap_or(0);
            serde_json::json!(&messages[..given]).to_string()
        }
    }
}

/// Each row as often as the weight says, in the order of the file.
fn weighted<T: Clone>(rows: Vec<T>, weight: f64, seed: u64) -> Result<Vec<T>> {
    if !(weight > 0.0 && weight.is_finite()) {
        let reason = format!("has a file with the weight {weight}, but a weight must be above 0");
        return Err(Error::DataSetting { key: "data.train", reason });
    }
    if weight == 1.0 {
        return Ok(rows);
    }
    let part = (rows.len() as f64 * weight.fract()).round() as usize;
    let mut drawn = Order::shuffled(rows.len(), seed).indices(0);
    drawn.truncate(part);
    drawn.sort_unstable();
    let whole = weight.trunc() as usize;
    let mut all = Vec::with_capacity(rows.len() * whole + part);
    (0..whole).for_each(|_| all.extend(rows.iter().cloned()));
    all.extend(drawn.into_iter().map(|row| rows[row].clone()));
    Ok(all)
}

/// Holds out a share of the rows, at least one of twenty. Rows with the same prompt are on one side.
fn split<T>(rows: Vec<T>, share: f64, seed: u64, prompt: impl Fn(&T) -> String) -> (Vec<T>, Vec<T>) {
    const LEAST: usize = 20;
    let wanted = (rows.len() as f64 * share).round() as usize;
    let wanted = if share > 0.0 && rows.len() >= LEAST { wanted.max(1) } else { wanted };
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let mut of_row = Vec::with_capacity(rows.len());
    let mut sizes: Vec<usize> = vec![];
    for row in &rows {
        let fresh = numbers.len();
        let number = *numbers.entry(prompt(row)).or_insert(fresh);
        sizes.resize(sizes.len().max(number + 1), 0);
        sizes[number] += 1;
        of_row.push(number);
    }
    let (mut held_out, mut count) = (vec![false; sizes.len()], 0);
    for number in Order::shuffled(sizes.len(), seed).indices(0) {
        // What would leave nothing to train on, or far too much to validate, stays.
        if count + sizes[number] <= wanted {
            held_out[number] = true;
            count += sizes[number];
        }
    }
    let (mut train, mut valid) = (vec![], vec![]);
    for (row, number) in rows.into_iter().zip(of_row) {
        if held_out[number] { valid.push(row) } else { train.push(row) }
    }
    (train, valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_held_out_and_prompts_stay_together() {
        let rows: Vec<(usize, usize)> = (0..200).map(|i| (i / 4, i)).collect();
        let held = |seed| split(rows.clone(), 0.1, seed, |row| row.0.to_string());
        let (train, valid) = held(1);
        assert_eq!((train.len(), valid.len()), (180, 20));
        assert!(valid.iter().all(|(prompt, _)| train.iter().all(|(other, _)| other != prompt)));
        assert_eq!(held(1), (train, valid.clone()));
        assert_ne!(held(2).1, valid);
        // Of a few rows, none is taken away; of twenty, one is.
        let few = |count: usize| split((0..count).collect(), 0.01, 1, usize::to_string).1.len();
        assert_eq!([few(5), few(19), few(20)], [0, 0, 1]);
        assert_eq!(split((0..50).collect(), 0.0, 1, usize::to_string).1.len(), 0);
        // One prompt for all: nothing can be held out.
        assert_eq!(split((0..50).collect::<Vec<usize>>(), 0.5, 1, |_| String::new()).1.len(), 0);
    }

    #[test]
    fn weights_repeat_and_thin_out() {
        let rows: Vec<usize> = (0..10).collect();
        assert_eq!(weighted(rows.clone(), 2.0, 1).unwrap(), [&rows[..], &rows].concat());
        let half = weighted(rows.clone(), 0.5, 1).unwrap();
        assert!(half.len() == 5 && half.is_sorted());
        assert_eq!(weighted(rows.clone(), 0.5, 1).unwrap(), half);
        assert_eq!(weighted(rows.clone(), 1.5, 1).unwrap().len(), 15);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(weighted(rows.clone(), bad, 1).unwrap_err().to_string().contains("above 0"));
        }
    }
}
