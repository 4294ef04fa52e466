//! From responses to the lines of result files.

use crate::Outcome;
use crate::compare::{Check, Mismatch, equal};
use crate::file::{GoldenError, GoldenFile};
use ruminate_datasets::mario::{
    GivenResponse, MarioDataset, MarioRow, OutputRow, OutputTable, ResponseFormat, label, num_sents,
    num_words, rationale, read_gold, read_responses,
};
use ruminate_rewards::mario::{
    JudgedResponse, Summary, by_question, correlation_ratio, ngram_diversity, normalised_average,
};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Given = BTreeMap<String, Vec<Option<f64>>>;

/// Columns before those of the rewards.
const COUNTED: usize = 5;

/// Scores of a response: those that are given, by name, and its diversity.
fn scores(given: &Given, names: &[String], ix: usize, rationale: &str) -> Vec<Option<f64>> {
    let score = |name: &String| match given.get(name) {
        Some(column) => column.get(ix).copied().flatten(),
        None => Some(ngram_diversity(rationale.trim(), 2..=4)),
    };
    names.iter().map(score).collect()
}

/// The counts come behind the rewards.
fn with_counts(names: &[String]) -> Vec<String> {
    names.iter().cloned().chain(["num_sents".into(), "num_words".into()]).collect()
}

fn counts(text: &str) -> [Option<f64>; 2] {
    [Some(num_sents(text) as f64), Some(num_words(text) as f64)]
}

/// The summary over questions of responses that were made elsewhere.
fn summary(responses: &[GivenResponse], names: &[String], scores: &[Vec<Option<f64>>]) -> Summary {
    let judged = responses.iter().zip(scores).map(|(r, scores)| JudgedResponse {
        question: &r.question,
        label: &r.label,
        correct: r.correct(),
        scores: scores.iter().copied().chain(counts(&r.text)).collect(),
    });
    let questions = by_question(&judged.collect::<Vec<_>>());
    Summary::of(&with_counts(names), questions.iter().map(|q| (q.correct, &q.scores[..])))
}

pub(super) fn evaluation(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Nrg {
        accuracy_percent: f64,
        plausibility: f64,
        diversity: f64,
        consistency: f64,
        avg_nrg: f64,
    }
    #[derive(Deserialize)]
    struct Correlation {
        correct: Vec<u8>,
        score: Vec<Option<f64>>,
        correlation_ratio: f64,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let mut cases = file.cases("other_sources", other_source)?;
    cases.extend(file.cases("training_eval", training_eval)?);
    cases.extend(file.cases("nrg", |case: Nrg| {
        let unit = (0.0, 1.0);
        let metrics = [
            (case.accuracy_percent, (0.0, 100.0)),
            (case.plausibility, unit),
            (case.diversity, unit),
            (case.consistency, (-1.0, 1.0)),
        ];
        let got = normalised_average(&metrics).unwrap_or(f64::NAN);
        tolerance.close("avg_nrg", &[got], &[case.avg_nrg])
    })?);
    cases.extend(file.cases("correlation", |case: Correlation| {
        let correct: Vec<bool> = case.correct.iter().map(|&c| c == 1).collect();
        let got = correlation_ratio(&correct, &case.score);
        tolerance.close("correlation_ratio", &[got], &[case.correlation_ratio])
    })?);
    Ok(Outcome { cases, pending: vec![] })
}

#[derive(Deserialize)]
struct OtherSource {
    dataset: MarioDataset,
    r#type: ResponseFormat,
    rows: Value,
    gold_rows: Vec<MarioRow>,
    given_scores: Given,
    normalised_responses: Vec<String>,
    rationales: Vec<String>,
    gold_responses: Vec<String>,
    per_row_correct: Vec<u8>,
    num_sents: Vec<usize>,
    num_words: Vec<usize>,
    csv_header: Vec<String>,
    summary_line: String,
}

fn other_source(case: OtherSource) -> Check {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), serde_json::to_vec(&case.rows)?)?;
    let responses = read_responses(file.path(), case.r#type, case.dataset, &case.gold_rows)?.responses;
    let column = |of: &dyn Fn(&GivenResponse) -> String| responses.iter().map(of).collect::<Vec<_>>();
    equal("normalised_responses", &column(&|r| r.text.clone()), &case.normalised_responses)?;
    equal("rationales", &column(&|r| r.rationale.clone()), &case.rationales)?;
    equal("gold_responses", &column(&|r| r.gold_response.clone()), &case.gold_responses)?;
    let numbers = |of: &dyn Fn(&GivenResponse) -> usize| responses.iter().map(of).collect::<Vec<_>>();
    let correct: Vec<usize> = case.per_row_correct.iter().map(|&c| usize::from(c)).collect();
    equal("per_row_correct", &numbers(&|r| usize::from(r.correct())), &correct)?;
    equal("num_sents", &numbers(&|r| num_sents(&r.text)), &case.num_sents)?;
    equal("num_words", &numbers(&|r| num_words(&r.text)), &case.num_words)?;
    let names = case.csv_header.get(COUNTED..).unwrap_or_default();
    let table = OutputTable { rows: vec![], rewards: names.to_vec() };
    equal("csv_header", table.columns(), case.csv_header.iter().map(String::as_str).collect::<Vec<_>>())?;
    let given = |(ix, r): (usize, &GivenResponse)| scores(&case.given_scores, names, ix, &r.rationale);
    let scores: Vec<_> = responses.iter().enumerate().map(given).collect();
    equal("summary_line", summary(&responses, names, &scores).line("Name NAME", Some(2)), case.summary_line)
}

#[derive(Deserialize)]
struct TrainingEval {
    step: u64,
    eval_type: String,
    questions: Vec<String>,
    responses: Vec<String>,
    gold_responses: Vec<String>,
    given_scores: Given,
    summary_file_name: String,
    summary_line: String,
    rows_file_name: String,
    rows_file_keys: Vec<String>,
    correctness: Vec<u8>,
    num_sents: Vec<usize>,
    num_words: Vec<usize>,
    diversity: Vec<f64>,
}

fn training_eval(case: TrainingEval) -> Check {
    use ruminate_datasets::mario::{training_rows_file, training_summary_file};
    let names = case.rows_file_keys.get(COUNTED..).unwrap_or_default();
    let row = |(ix, (question, text)): (usize, (&String, &String))| OutputRow {
        question: question.clone(),
        response: text.clone(),
        correct: case.gold_responses.get(ix).is_some_and(|gold| label(text) == label(gold)),
        scores: scores(&case.given_scores, names, ix, rationale(text)),
    };
    let rows: Vec<OutputRow> = case.questions.iter().zip(&case.responses).enumerate().map(row).collect();
    let all: Vec<Vec<Option<f64>>> =
        rows.iter().map(|r| r.scores.iter().copied().chain(counts(&r.response)).collect()).collect();
    let pairs = rows.iter().zip(&all).map(|(r, scores)| (r.correct, &scores[..]));
    let line = Summary::of(&with_counts(names), pairs).line(&format!("Step {}", case.step), Some(2));
    equal("summary_line", line, case.summary_line)?;
    equal("summary_file_name", training_summary_file(&case.eval_type), case.summary_file_name)?;
    equal("rows_file_name", training_rows_file(&case.eval_type, case.step), case.rows_file_name.clone())?;

    let folder = tempfile::tempdir()?;
    let path = folder.path().join(&case.rows_file_name);
    let table = OutputTable { rows, rewards: names.to_vec() };
    equal(
        "rows_file_keys",
        table.columns(),
        case.rows_file_keys.iter().map(String::as_str).collect::<Vec<_>>(),
    )?;
    table.write_columns(&path)?;
    let written: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let field = |name: &str| {
        written.get(name).cloned().ok_or_else(|| Mismatch(format!("{name} is missing in the file")))
    };
    equal("correctness", field("correctness")?, serde_json::to_value(&case.correctness)?)?;
    equal("num_sents", field("num_sents")?, serde_json::to_value(&case.num_sents)?)?;
    equal("num_words", field("num_words")?, serde_json::to_value(&case.num_words)?)?;
    crate::compare::Tolerance { absolute: 1e-9, relative: 0.0 }.json(
        "diversity",
        &field("diversity")?,
        &serde_json::to_value(&case.diversity)?,
    )
}

/// The slices of real files, beside the folder with the golden files.
pub(super) fn slices(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        dataset: MarioDataset,
        file: PathBuf,
        r#type: ResponseFormat,
        rows: usize,
        accuracy_percent: f64,
        mean_diversity: f64,
        mean_num_sents: f64,
        mean_num_words: f64,
        summary_line: String,
    }
    let file = GoldenFile::read(path)?;
    let data = path.ancestors().nth(3).map(|shared| shared.join("data/mario")).filter(|data| data.is_dir());
    let Some(data) = data else {
        return Ok(Outcome { cases: vec![], pending: file.case_names("cases")? });
    };
    let tolerance = file.tolerance()?;
    let cases = file.cases("cases", |case: Case| {
        let raw = data.join(case.dataset.name()).join("raw");
        let gold = match case.dataset {
            MarioDataset::StrategyQa => raw.join("strategyqa_processed_test.json"),
            _ => raw.join("test.jsonl"),
        };
        let gold = read_gold(&gold, case.dataset)?;
        let responses = read_responses(&data.join(&case.file), case.r#type, case.dataset, &gold)?.responses;
        equal("rows", responses.len(), case.rows)?;
        let names = ["diversity".to_string()];
        let scores: Vec<_> =
            responses.iter().map(|r| scores(&Given::new(), &names, 0, &r.rationale)).collect();
        let summary = summary(&responses, &names, &scores);
        let column = |ix: usize| summary.scores[ix].1.unwrap_or(f64::NAN);
        for (field, got, want) in [
            ("accuracy_percent", summary.accuracy, case.accuracy_percent),
            ("mean_diversity", column(0), case.mean_diversity),
            ("mean_num_sents", column(1), case.mean_num_sents),
            ("mean_num_words", column(2), case.mean_num_words),
        ] {
            tolerance.close(field, &[got], &[want])?;
        }
        let what = case.summary_line.split(" - ").next().unwrap_or_default();
        equal("summary_line", summary.line(what, Some(2)), case.summary_line.clone())
    })?;
    Ok(Outcome { cases, pending: vec![] })
}
