//! Readers of gold rows and of a teacher's responses.

use super::{MarioDataset, NUMBER_WORDS};
use crate::question::letter;
use crate::{Error, Place, Result, json};
use serde::{Deserialize, Deserializer, Serialize};
use std::path::Path;

/// A question with its gold label and a rationale; `dummy` stands for none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object with question, rationale and answer")]
pub struct MarioRow {
    /// The question as the policy reads it, options included.
    pub question: String,
    /// Why the answer is right.
    pub rationale: String,
    /// The label, one of [`MarioDataset::labels`].
    #[serde(deserialize_with = "label_or_truth")]
    pub answer: String,
}

/// Records of StrategyQA say `true` and `false`.
fn label_or_truth<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    #[serde(expecting = "a label, true or false")]
    enum Answer {
        Truth(bool),
        Label(String),
    }
    Ok(match Answer::deserialize(deserializer)? {
        Answer::Truth(yes) => if yes { "yes" } else { "no" }.to_string(),
        Answer::Label(label) => label,
    })
}

/// A response of a teacher or of another model to a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object with question, gold_label, predicted_label and predicted_rationale")]
pub struct TeacherRow {
    /// The question.
    pub question: String,
    /// The right label, in lower case.
    pub gold_label: String,
    /// The label in the response; empty where it names none.
    pub predicted_label: String,
    /// The rationale in the response.
    pub predicted_rationale: String,
}

/// Reads gold rows: `raw/*.jsonl`, which are objects keyed by row number, an array (also of StrategyQA's own records),
/// or JSON lines.
///
/// # Errors
/// As [`json::read_rows`]; [`Error::BadField`] for a label that the data set does not have or a question without text;
/// and [`Error::EmptySplit`].
pub fn read_gold(path: &Path, dataset: MarioDataset) -> Result<Vec<MarioRow>> {
    checked(path, dataset, json::read_rows(path)?)
}

/// Rows that have a question and one of the labels.
fn checked(
    path: &Path,
    dataset: MarioDataset,
    rows: impl IntoIterator<Item = (Place, MarioRow)>,
) -> Result<Vec<MarioRow>> {
    let check = |(place, row): (Place, MarioRow)| {
        let bad = |field, reason| Error::BadField { path: path.into(), place, field, reason };
        if row.question.trim().is_empty() {
            return Err(bad("question", "is empty; give the text of the question".into()));
        }
        // Case counts here: the label becomes part of a target.
        if !dataset.labels().contains(&row.answer) {
            let reason =
                format!("is {:?}; the labels of {dataset} are {}", row.answer, dataset.labels().join(", "));
            return Err(bad("answer", reason));
        }
        Ok(row)
    };
    not_empty(path, rows.into_iter().map(check).collect::<Result<_>>()?)
}

/// Reads questions with their labels: gold rows, whose rationale may be missing, which `dummy` then stands for. A file of NumerSense that ends
/// in `.tsv` is one of its own tables.
///
/// # Errors
/// Those of [`read_gold`] and [`read_masked_tsv`].
pub fn read_questions(path: &Path, dataset: MarioDataset) -> Result<Vec<MarioRow>> {
    if dataset == MarioDataset::NumerSense && path.extension().is_some_and(|extension| extension == "tsv") {
        return read_masked_tsv(path);
    }
    #[derive(Deserialize)]
    #[serde(expecting = "an object with question and answer")]
    struct Asked {
        question: String,
        #[serde(default = "dummy")]
        rationale: String,
        #[serde(deserialize_with = "label_or_truth")]
        answer: String,
    }
    fn dummy() -> String {
        "dummy".into()
    }
    let row =
        |(place, Asked { question, rationale, answer })| (place, MarioRow { question, rationale, answer });
    checked(path, dataset, json::read_rows::<Asked>(path)?.into_iter().map(row))
}

/// A statement for a verifier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object with statement and plausible")]
pub struct Statement {
    /// The statement.
    pub statement: String,
    /// Whether it is true.
    pub plausible: bool,
}

/// Reads statements, in any layout of [`json::read_rows`].
///
/// # Errors
/// As [`json::read_rows`], and [`Error::EmptySplit`].
pub fn read_statements(path: &Path) -> Result<Vec<Statement>> {
    not_empty(path, json::read_rows(path)?.into_iter().map(|(_, row)| row).collect())
}

/// Reads a teacher's responses (`gpt3/*.jsonl`, `flant5/*.jsonl`), in any layout of [`json::read_rows`].
///
/// # Errors
/// As [`json::read_rows`]; [`Error::BadField`] for a gold label that the data set does not have; and
/// [`Error::EmptySplit`].
pub fn read_teacher(path: &Path, dataset: MarioDataset) -> Result<Vec<TeacherRow>> {
    let check = |(place, row): (Place, TeacherRow)| match dataset.label_index(&row.gold_label) {
        Some(_) => Ok(row),
        None => {
            let (labels, found) = (dataset.labels().join(", "), &row.gold_label);
            let reason = format!("is {found:?}; the labels of {dataset} are {labels}, in any case");
            Err(Error::BadField { path: path.into(), place, field: "gold_label", reason })
        }
    };
    not_empty(path, json::read_rows(path)?.into_iter().map(check).collect::<Result<_>>()?)
}

/// Reads NumerSense as it is published (`numersense.*.masked.tsv`: sentence, tab, number word), and appends the options
/// to each sentence.
///
/// # Reference behaviour
/// Quotation marks around the first words of a sentence are taken for those of a table, and are gone.
///
/// # Errors
/// [`Error::Read`], [`Error::BadField`] for a line without a tab or with a word that is no option, and
/// [`Error::EmptySplit`].
pub fn read_masked_tsv(path: &Path) -> Result<Vec<MarioRow>> {
    let bytes = crate::text::read(path)?;
    let mut reader =
        csv::ReaderBuilder::new().delimiter(b'\t').has_headers(false).flexible(true).from_reader(&bytes[..]);
    let options: Vec<String> =
        NUMBER_WORDS.iter().enumerate().map(|(ix, word)| format!("({}) {word}", letter(ix))).collect();
    let options = options.join(" ");
    let row = |record: csv::Result<csv::StringRecord>| {
        let bad = |position: Option<&csv::Position>, reason: String| {
            let place = Place::Line(position.map_or(1, |p| p.line() as usize));
            Error::BadField { path: path.into(), place, field: "answer", reason }
        };
        let record = record.map_err(|error| bad(error.position(), error.to_string()))?;
        let (Some(sentence), Some(word)) = (record.get(0), record.get(1)) else {
            let reason = "is missing; a line is a sentence, a tab and a number word";
            return Err(bad(record.position(), reason.to_string()));
        };
        let choice = NUMBER_WORDS.iter().position(|known| *known == word.trim()).ok_or_else(|| {
            bad(record.position(), format!("is {word:?}; the number words are {}", NUMBER_WORDS.join(", ")))
        })?;
        Ok(MarioRow {
            question: format!("{sentence} \n {options}"),
            rationale: "dummy".into(),
            answer: format!("({})", letter(choice)),
        })
    };
    let rows = reader.records().map(row).collect::<Result<_>>()?;
    not_empty(path, rows)
}

fn not_empty<T>(path: &Path, rows: Vec<T>) -> Result<Vec<T>> {
    if rows.is_empty() {
        return Err(Error::EmptySplit { path: path.into(), rows: 0, first: None });
    }
    Ok(rows)
}
