//! What answers are worth: accuracy, votes, and the files about them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ruminate_datasets::tinythinker::{NoAnswer, Variant, vote};
use ruminate_rewards::mario::{Interval, bootstrap};
use serde::{Deserialize, Serialize};

use super::generation::{Decoding, Response};
use super::reflection::Reflected;
use crate::{Metrics, Result};

const RESAMPLES: usize = 1000;

/// Shares of questions, from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accuracy {
    /// Questions.
    pub questions: usize,
    /// Of right answers in each run.
    pub runs: Vec<f64>,
    /// Of right answers by vote among the runs: the most frequent answer, of equally frequent ones that which came first. A run
    /// without an answer abstains.
    pub voted: f64,
    /// Where the share by vote lies with 95 % confidence: a bootstrap over the questions.
    pub interval: Option<Interval>,
    /// Of responses without a readable answer.
    pub unreadable: f64,
}

impl Accuracy {
    /// Counts the responses to each question.
    #[must_use]
    pub fn of(responses: &[Vec<Response>]) -> Self {
        let share = |right: usize, all: usize| right as f64 / all.max(1) as f64;
        let runs = responses.iter().map(Vec::len).max().unwrap_or(0);
        let right = |run: usize| {
            let of_run = responses.iter().filter_map(|of| of.get(run));
            of_run.filter(|response| response.right()).count()
        };
        let voted: Vec<bool> = responses.iter().map(|of| voted(of)).collect();
        let all = || responses.iter().flatten();
        let unreadable = all().filter(|response| response.run.answer.is_none()).count();
        let mean = |of: &[usize]| Some(share(of.iter().filter(|&&i| voted[i]).count(), of.len()));
        Self {
            questions: responses.len(),
            runs: (0..runs).map(|run| share(right(run), responses.len())).collect(),
            voted: share(voted.iter().filter(|right| **right).count(), voted.len()),
            interval: bootstrap(responses.len(), RESAMPLES, 1, mean),
            unreadable: share(unreadable, all().count()),
        }
    }

    /// The rows of a table: what is measured, its value, and its 95 % interval.
    #[must_use]
    pub fn rows(&self) -> Vec<[String; 3]> {
        let number = |x: f64| format!("{x:.3}");
        let interval = self.interval.map(|i| format!("{} to {}", number(i.low), number(i.high)));
        let by_vote = if self.runs.len() > 1 { " by vote" } else { "" };
        let mut rows = vec![[format!("accuracy{by_vote}"), number(self.voted), interval.unwrap_or_default()]];
        if self.runs.len() > 1 {
            let mean = self.runs.iter().sum::<f64>() / self.runs.len() as f64;
            rows.push([format!("mean of {} runs", self.runs.len()), number(mean), String::new()]);
        }
        rows.push(["without a readable answer".into(), number(self.unreadable), String::new()]);
        rows
    }

    /// As metrics of a validation.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        vec![("eval/accuracy".into(), self.voted), ("eval/unreadable".into(), self.unreadable)]
    }
}

/// Whether the vote among the runs of a question is right.
pub(super) fn voted(responses: &[Response]) -> bool {
    let answers: Vec<Option<char>> = responses.iter().map(|response| response.run.answer).collect();
    let winner = vote(&answers, NoAnswer::Abstains);
    winner.is_some() && winner == responses.first().map(|response| response.run.gold)
}

impl Response {
    /// Whether the answer is the right one.
    #[must_use]
    pub fn right(&self) -> bool {
        self.run.answer == Some(self.run.gold)
    }

    /// As a line of `responses.jsonl`; `run` counts from 1.
    #[must_use]
    pub fn line(&self, run: usize) -> ResponseLine {
        let Self { run: of, summarize } = self;
        let letter = |letter: char| letter.to_string();
        ResponseLine {
            id: of.id.clone(),
            run,
            recall: of.draft.recall().map(String::from),
            analyses: of
                .draft
                .analyses()
                .iter()
                .map(|(label, text)| (letter(*label), text.clone()))
                .collect(),
            summarize: summarize.clone(),
            prediction: of.answer.map(letter),
            gold: letter(of.gold),
            correct: self.right(),
        }
    }
}

/// A response as it stands in `responses.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseLine {
    /// The question.
    pub id: String,
    /// The run, from 1.
    pub run: usize,
    /// Knowledge, where the student recalls.
    pub recall: Option<String>,
    /// Analyses by label, where the student analyzes.
    pub analyses: BTreeMap<String, String>,
    /// What the last stage wrote.
    pub summarize: String,
    /// The answer, where it could be read.
    pub prediction: Option<String>,
    /// The label that is right.
    pub gold: String,
    /// Whether they agree.
    pub correct: bool,
}

/// A row of the published code's result files.
#[derive(Debug, Serialize)]
struct PublishedRow {
    input: String,
    #[serde(rename = "GT")]
    gold: String,
    summarize: String,
    prediction: Option<String>,
}

/// The name of a result file in the published layout. Rounds of reflection are told from phase 1 by the folder of their checkpoint,
/// `round-3/checkpoints/step-20`, or `iter_3` as in the published layout.
#[must_use]
pub fn published_name(
    variant: Variant,
    reflected: Option<Reflected>,
    checkpoint: &Path,
    decoding: Decoding,
) -> String {
    let kind = if decoding == Decoding::Greedy { "greedy" } else { "random" };
    let run = checkpoint.parent().and_then(Path::parent).and_then(Path::file_name).unwrap_or_default();
    let round = run.to_str().and_then(|name| name.strip_prefix("round-").or(name.strip_prefix("iter_")));
    match (reflected, round) {
        (Some(stages), Some(round)) => format!("dpo_test_{}_{round}_{kind}.json", stages.name()),
        _ => format!("sft_test_{}_{kind}.json", variant.name()),
    }
}

/// Writes `responses.jsonl`, `metrics.json` and, under the name `published`, a file in the published code's layout: an array of
/// `{input, GT, summarize, prediction}`, the first run of all questions first. Returns the files.
///
/// # Errors
/// When a file cannot be written.
pub fn write_responses(folder: &Path, published: &str, responses: &[Vec<Response>]) -> Result<Vec<PathBuf>> {
    let runs = responses.iter().map(Vec::len).max().unwrap_or(0);
    let in_order =
        || (0..runs).flat_map(|run| responses.iter().filter_map(move |of| Some((run, of.get(run)?))));
    let lines: Vec<ResponseLine> = in_order().map(|(run, response)| response.line(run + 1)).collect();
    let rows: Vec<PublishedRow> = in_order()
        .map(|(_, response)| PublishedRow {
            input: response.run.draft.summarize_prompt(),
            gold: response.run.gold.to_string(),
            summarize: response.summarize.clone(),
            prediction: response.run.answer.map(String::from),
        })
        .collect();
    let paths = ["responses.jsonl", "metrics.json", published].map(|name| folder.join(name));
    ruminate_datasets::json::write_lines(&paths[0], &lines)?;
    ruminate_datasets::json::write(&paths[1], &Accuracy::of(responses))?;
    ruminate_datasets::json::write(&paths[2], &rows)?;
    Ok(paths.to_vec())
}
