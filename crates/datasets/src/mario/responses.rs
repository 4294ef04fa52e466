//! Responses that were made elsewhere, in the formats that they are published in.

use super::answer::{ANSWER_MARKER, response};
use super::few_shot::{LeadingAnswer, parse_completion};
use super::prompts::with_period;
use super::{MarioDataset, MarioRow};
use crate::{Error, Place, Result, json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The format of a file with responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Teachers' and Flan-T5's files: rows of `question, gold_label, predicted_label, predicted_rationale`.
    Jsonl,
    /// LLaMA's files: rows of `question, trunc_output`.
    LlamaJson,
    /// What an evaluation during training writes: an object of columns, `question` and `model_response` among them.
    QuarkJson,
    /// The gold rows themselves, as if a model had written them.
    GoldData,
    /// A table with the columns `question` and `model_response`.
    Csv,
    /// Old dumps of GPT-3: rows of `question, gpt_answer`.
    Json,
}

impl ResponseFormat {
    const NAMES: [(Self, &'static str); 6] = [
        (Self::Jsonl, "jsonl"),
        (Self::LlamaJson, "llama_json"),
        (Self::QuarkJson, "quark_json"),
        (Self::GoldData, "gold_data"),
        (Self::Csv, "csv"),
        (Self::Json, "json"),
    ];
}

impl fmt::Display for ResponseFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES.iter().find(|(format, _)| format == self).map_or("", |(_, name)| name))
    }
}

/// A name that is no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown format `{0}`; take jsonl, llama_json, quark_json, gold_data, csv or json")]
pub struct UnknownFormat(String);

impl FromStr for ResponseFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownFormat> {
        let known = Self::NAMES.into_iter().find(|(_, known)| *known == name);
        known.map(|(format, _)| format).ok_or_else(|| UnknownFormat(name.to_string()))
    }
}

/// A response to a question whose gold label is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenResponse {
    /// The question as the gold file writes it.
    pub question: String,
    /// The gold label.
    pub gold: String,
    /// The gold rationale and label as a response.
    pub gold_response: String,
    /// The rationale, not trimmed.
    pub rationale: String,
    /// The label in the case of the gold files; empty where the response has none.
    pub label: String,
    /// The whole response, built anew from rationale and label (but for [`ResponseFormat::Json`]).
    pub text: String,
}

impl GivenResponse {
    /// Whether the label is the gold one.
    #[must_use]
    pub fn correct(&self) -> bool {
        self.label == self.gold
    }
}

/// What was read from a file with responses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Responses {
    /// In the order of the file.
    pub responses: Vec<GivenResponse>,
    /// Rows that were left out, because the gold file does not have their question.
    pub skipped: usize,
}

/// Reads responses and joins them with gold rows by the text of the question. NumerSense's questions are compared without
/// regard to white space, because LLaMA's files have another line break in them.
///
/// # Errors
/// [`Error::Read`]; [`Error::Json`] and [`Error::BadField`] for a row that does not fit the format; and
/// [`Error::EmptySplit`] when no row has a gold question.
pub fn read_responses(
    path: &Path,
    format: ResponseFormat,
    dataset: MarioDataset,
    gold: &[MarioRow],
) -> Result<Responses> {
    let key = |question: &str| match dataset {
        MarioDataset::NumerSense => question.split_whitespace().collect::<Vec<_>>().join(" "),
        _ => question.to_string(),
    };
    let by_question: BTreeMap<String, &MarioRow> = gold.iter().map(|row| (key(&row.question), row)).collect();
    let parsed = match format {
        ResponseFormat::GoldData => gold.iter().map(Parsed::of_gold).collect(),
        ResponseFormat::Jsonl => rows(path, Parsed::of_predicted)?,
        ResponseFormat::LlamaJson => rows(path, |row| Parsed::of_llama(dataset, row))?,
        ResponseFormat::Json => rows(path, Parsed::of_dump)?,
        ResponseFormat::QuarkJson => columns(path)?,
        ResponseFormat::Csv => table(path, dataset)?,
    };
    let total = parsed.len();
    let join = |parsed: Parsed| {
        let row = by_question.get(&key(&parsed.question))?;
        let label = dataset.normalise_label(&parsed.label);
        Some(GivenResponse {
            question: row.question.clone(),
            gold: row.answer.clone(),
            gold_response: response(&row.rationale, &row.answer),
            text: parsed.text.unwrap_or_else(|| response(&parsed.rationale, &label)),
            rationale: parsed.rationale,
            label,
        })
    };
    let responses: Vec<GivenResponse> = parsed.into_iter().filter_map(join).collect();
    if responses.is_empty() {
        return Err(Error::EmptySplit { path: path.into(), rows: total, first: None });
    }
    Ok(Responses { skipped: total - responses.len(), responses })
}

/// A row before it is joined with its gold row.
struct Parsed {
    question: String,
    rationale: String,
    label: String,
    /// The response, where it is not built from the parts.
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with question, predicted_label and predicted_rationale")]
struct PredictedRow {
    question: String,
    predicted_label: String,
    predicted_rationale: String,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with question and trunc_output")]
struct LlamaRow {
    question: String,
    trunc_output: String,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with question and gpt_answer")]
struct DumpRow {
    question: String,
    gpt_answer: String,
}

impl Parsed {
    fn new(question: String, rationale: impl Into<String>, label: impl Into<String>) -> Self {
        Self { question, rationale: rationale.into(), label: label.into(), text: None }
    }

    fn of_gold(row: &MarioRow) -> Self {
        Self::new(row.question.clone(), &row.rationale, &row.answer)
    }

    fn of_predicted(row: PredictedRow) -> Self {
        Self::new(row.question, row.predicted_rationale, row.predicted_label)
    }

    fn of_llama(dataset: MarioDataset, LlamaRow { question, trunc_output: text }: LlamaRow) -> Self {
        if dataset == MarioDataset::StrategyQa {
            let mut pieces = text.split("\nA: So the answer is");
            let rationale = pieces.next().unwrap_or("");
            return Self::new(question, rationale, bare_label(pieces.next()));
        }
        let label = text.replace(':', "");
        let label = bare_label(label.split("So the answer is ").nth(1));
        Self::new(question, text.split(ANSWER_MARKER).next().unwrap_or(""), label)
    }

    fn of_response(question: String, text: &str) -> Self {
        let mut pieces = text.split(ANSWER_MARKER);
        let rationale = pieces.next().unwrap_or("");
        Self::new(question, rationale, bare_label(pieces.next()))
    }

    fn of_table(dataset: MarioDataset, question: String, text: &str) -> Self {
        let parsed = parse_completion(dataset, text, LeadingAnswer::Keep);
        Self::new(question, with_period(&parsed.rationale), parsed.label)
    }

    fn of_dump(row: DumpRow) -> Self {
        let question = ["Q: ", "A: "].iter().fold(row.question, |q, prefix| q.replace(prefix, ""));
        let question = question.replace('\n', " ").replace("  ", " ");
        let text = row.gpt_answer;
        let parts = ["The answer is", "So the answer is: "].into_iter().find_map(|m| {
            let mut pieces = text.split(m);
            let rationale = pieces.next()?.trim().to_string();
            Some((rationale, pieces.next()?.trim().trim_matches('.').to_lowercase()))
        });
        let (rationale, label) = parts.unwrap_or_else(|| (text.clone(), String::new()));
        Self { question, rationale, label, text: Some(text) }
    }
}

/// A label without periods and surrounding white space; empty where there is none.
fn bare_label(piece: Option<&str>) -> String {
    piece.unwrap_or("").replace('.', "").trim().to_string()
}

fn rows<T: serde::de::DeserializeOwned>(path: &Path, parse: impl Fn(T) -> Parsed) -> Result<Vec<Parsed>> {
    Ok(json::read_rows(path)?.into_iter().map(|(_, row)| parse(row)).collect())
}

fn columns(path: &Path) -> Result<Vec<Parsed>> {
    #[derive(Deserialize)]
    #[serde(expecting = "an object with the lists question and model_response")]
    struct Columns {
        question: Vec<String>,
        model_response: Vec<String>,
    }
    let Columns { question, model_response } = json::read(path)?;
    if question.len() != model_response.len() {
        return Err(Error::BadField {
            path: path.into(),
            place: Place::Item(question.len().min(model_response.len())),
            field: "model_response",
            reason: format!("has {} elements, but question has {}", model_response.len(), question.len()),
        });
    }
    Ok(question.into_iter().zip(model_response).map(|(q, text)| Parsed::of_response(q, &text)).collect())
}

fn table(path: &Path, dataset: MarioDataset) -> Result<Vec<Parsed>> {
    #[derive(Deserialize)]
    struct Row {
        question: String,
        model_response: String,
    }
    let bytes = crate::text::read(path)?;
    let mut reader = csv::Reader::from_reader(&bytes[..]);
    let rows = reader.deserialize::<Row>().map(|row| {
        let row = row.map_err(|error| {
            let line = error.position().map_or(1, |p| p.line() as usize);
            let reason = format!("{error}; a table has the columns question and model_response");
            Error::BadField { path: path.into(), place: Place::Line(line), field: "question", reason }
        })?;
        Ok(Parsed::of_table(dataset, row.question, &row.model_response))
    });
    rows.collect()
}
