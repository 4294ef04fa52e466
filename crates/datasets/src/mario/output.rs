//! Tables of scored responses, as the published code writes them.

use super::answer::{num_sents, num_words};
use crate::{Error, Result, json};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::path::Path;

/// Responses with their scores: what `eval_output*.jsonl` and `eval_output*.csv` hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OutputTable {
    /// One row for each response.
    pub rows: Vec<OutputRow>,
    /// Names of the rewards, in order.
    pub rewards: Vec<String>,
}

/// A scored response.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputRow {
    /// The question.
    pub question: String,
    /// The whole response.
    pub response: String,
    /// Whether its label is right.
    pub correct: bool,
    /// One score for each reward; none where it is missing.
    pub scores: Vec<Option<f64>>,
}

const COLUMNS: [&str; 5] = ["question", "model_response", "correctness", "num_sents", "num_words"];

impl OutputTable {
    /// Names of the columns, in order.
    #[must_use]
    pub fn columns(&self) -> Vec<&str> {
        COLUMNS.into_iter().chain(self.rewards.iter().map(String::as_str)).collect()
    }

    /// Writes a comma-separated table.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write_csv(&self, path: &Path) -> Result<()> {
        let failed = |source: std::io::Error| Error::Write { path: path.into(), source };
        let mut writer = csv::WriterBuilder::new()
            .terminator(csv::Terminator::CRLF)
            .from_path(path)
            .map_err(|e| failed(e.into()))?;
        writer.write_record(self.columns()).map_err(|e| failed(e.into()))?;
        for row in &self.rows {
            let counts = [usize::from(row.correct), num_sents(&row.response), num_words(&row.response)];
            let scores = row.scores.iter().map(|score| score.map_or(String::new(), |s| format!("{s:?}")));
            let texts = [row.question.clone(), row.response.clone()].into_iter();
            let record = texts.chain(counts.map(|n| n.to_string())).chain(scores);
            writer.write_record(record).map_err(|e| failed(e.into()))?;
        }
        writer.flush().map_err(failed)
    }

    /// Writes one JSON object of columns, which [`ResponseFormat::QuarkJson`](super::ResponseFormat::QuarkJson) reads.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write_columns(&self, path: &Path) -> Result<()> {
        json::write(path, &Columns(self))
    }
}

struct Columns<'a>(&'a OutputTable);

impl Serialize for Columns<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let rows = &self.0.rows;
        let mut map = serializer.serialize_map(Some(COLUMNS.len() + self.0.rewards.len()))?;
        map.serialize_entry("question", &rows.iter().map(|r| &r.question).collect::<Vec<_>>())?;
        map.serialize_entry("model_response", &rows.iter().map(|r| &r.response).collect::<Vec<_>>())?;
        map.serialize_entry("correctness", &rows.iter().map(|r| u8::from(r.correct)).collect::<Vec<_>>())?;
        map.serialize_entry("num_sents", &rows.iter().map(|r| num_sents(&r.response)).collect::<Vec<_>>())?;
        map.serialize_entry("num_words", &rows.iter().map(|r| num_words(&r.response)).collect::<Vec<_>>())?;
        for (ix, name) in self.0.rewards.iter().enumerate() {
            let scores: Vec<Option<f64>> = rows.iter().map(|r| r.scores.get(ix).copied().flatten()).collect();
            map.serialize_entry(name, &scores)?;
        }
        map.end()
    }
}

/// The name of the file with a line for each evaluation during training; `split` is `val` or `test`.
#[must_use]
pub fn training_summary_file(split: &str) -> String {
    format!("reward_scores_{split}_greedy.txt")
}

/// The name of the file with the responses of an evaluation during training.
#[must_use]
pub fn training_rows_file(split: &str, step: u64) -> String {
    format!("eval_output{split}_greedy_{step}.jsonl")
}
