//! Where TinyThinker's questions and records lie, and how they are read.

use std::path::{Path, PathBuf};

use ruminate_datasets::tinythinker::{
    AnalysisOrder, Question, Reasoned, RecordCounts, Run, Source, SplitIds, Splits, StageRecords,
    TaughtCounts, Variant, questions_of, teacher_runs,
};
use ruminate_datasets::{BadRows, Error as DataError, Split, json};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The `[data]` section of a TinyThinker configuration. The defaults are the paths of the published code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TinyThinkerData {
    /// Which data set.
    pub dataset: Source,
    /// Folder of its original files.
    pub original: PathBuf,
    /// Questions of CommonsenseQA's training file that are held out for validation.
    pub valid_questions: usize,
    /// Seed of the division.
    pub split_seed: u64,
    /// A `splits.json` to divide by instead.
    pub splits: Option<PathBuf>,
    /// Leave out bad rows instead of refusing the file.
    pub skip_bad_rows: bool,
    /// Order of the analyses that the summarize stage learns to read.
    pub analysis_order: AnalysisOrder,
    /// Folder of the students' records: `DIR/VARIANT/recall.json` and so on.
    pub records: PathBuf,
}

impl Default for TinyThinkerData {
    fn default() -> Self {
        Self {
            dataset: Source::Csqa,
            original: "datasets/csqa/original".into(),
            valid_questions: 1221,
            split_seed: 42,
            splits: None,
            skip_bad_rows: false,
            analysis_order: AnalysisOrder::default(),
            records: "datasets/csqa/final/sft".into(),
        }
    }
}

impl TinyThinkerData {
    /// The parts of the data set, and the rows that were left out.
    ///
    /// # Errors
    /// A file cannot be read or has bad rows, or `splits.json` names questions that are not there.
    pub fn read_splits(&self) -> Result<(Splits, Vec<DataError>)> {
        let bad = if self.skip_bad_rows { BadRows::Skip } else { BadRows::Refuse };
        let (splits, skipped) =
            Splits::read(self.dataset, &self.original, self.valid_questions, self.split_seed, bad)?;
        let Some(path) = &self.splits else { return Ok((splits, skipped)) };
        let ids: SplitIds = json::read(path)?;
        let all = [splits.train, splits.valid, splits.test].concat();
        Ok((Splits::from_ids(&all, &ids, path)?, skipped))
    }

    /// Writes what a teaching came to: `splits.json`, `teaching.json` where there are counts, and the records of every variant below `sft`.
    ///
    /// # Errors
    /// There are no items, or a file cannot be written.
    pub fn write_taught(
        &self,
        out: &Path,
        splits: &Splits,
        items: &[Reasoned],
        counts: Option<&TaughtCounts>,
    ) -> Result<Vec<(Variant, RecordCounts)>> {
        json::write(&out.join("splits.json"), &splits.ids())?;
        let report = out.join("teaching.json");
        if let Some(counts) = counts {
            json::write(&report, counts)?;
        }
        if items.is_empty() {
            let reason = format!("no candidate of the teacher was in order; see {}", report.display());
            return Err(Error::config("teaching", reason));
        }
        Ok(StageRecords::write_variants(&out.join("sft"), items, splits, self.analysis_order)?)
    }

    /// The folder of a variant's records, and what is in it.
    ///
    /// # Errors
    /// There is no such folder, or a file is damaged.
    pub fn read_records(&self, variant: Variant) -> Result<(PathBuf, StageRecords)> {
        let folder = self.records.join(variant.name());
        if !folder.is_dir() {
            let reason = format!(
                "there is no folder {}; `tinythinker teach` makes it as OUT/sft/{}",
                folder.display(),
                variant.name()
            );
            return Err(Error::config("data.records", reason));
        }
        let records = StageRecords::read(&folder)?;
        Ok((folder, records))
    }

    /// The questions that a variant's records ask in training, validation or test.
    ///
    /// # Errors
    /// Those of [`read_records`](Self::read_records), and texts that are no questions.
    pub fn read_recorded(&self, variant: Variant, split: Split) -> Result<Vec<Question>> {
        let (folder, records) = self.read_records(variant)?;
        let (records, file) = match split {
            Split::Train => (&records.recall_single, "recall_single.json"),
            Split::Dev => (&records.valid, "valid.json"),
            Split::Test => (&records.test, "test.json"),
        };
        Ok(questions_of(records, &folder.join(file))?)
    }

    /// Questions from a file in the form of the data set.
    ///
    /// # Errors
    /// The file cannot be read or has bad rows.
    pub fn read_questions(&self, path: &Path) -> Result<Vec<Question>> {
        Ok(self.dataset.read(path, BadRows::Refuse)?.0)
    }

    /// Reads the data of reflection: the questions of a variant's records, or those of `questions`.
    ///
    /// # Errors
    /// Files cannot be read or are damaged, or there are no questions.
    pub fn read_reflection(&self, variant: Variant, questions: Option<&Path>) -> Result<ReflectionData> {
        let (folder, records) = self.read_records(variant)?;
        let questions = match questions {
            Some(path) => self.read_questions(path)?,
            None => questions_of(&records.recall_single, &folder.join("recall_single.json"))?,
        };
        if questions.is_empty() {
            let reason = format!(
                "there are no questions to reflect on: {} has none in recall_single.json, as records of a student that recalls and \
                 analyzes have; or name some with reflection.questions",
                folder.display()
            );
            return Err(Error::config("data.records", reason));
        }
        let teacher = teacher_runs(&records.summarize, &questions, &folder.join("summarize.json"))?;
        let valid = questions_of(&records.valid, &folder.join("valid.json"))?;
        Ok(ReflectionData { questions, teacher, valid })
    }
}

/// The data that all rounds of reflection share.
#[derive(Debug, Clone, PartialEq)]
pub struct ReflectionData {
    /// The questions that are sampled.
    pub questions: Vec<Question>,
    /// The teacher's runs on these questions.
    pub teacher: Vec<Run>,
    /// The questions that checkpoints are chosen by.
    pub valid: Vec<Question>,
}
