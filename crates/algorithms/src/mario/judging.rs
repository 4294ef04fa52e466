//! What responses are worth, question by question.

use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView1};
use ruminate_datasets::mario::{GivenResponse, OutputRow, OutputTable, num_sents, num_words};
use ruminate_rewards::mario::{
    Interval, JudgedResponse, QuestionSummary, Response, RewardSet, Summary, bootstrap, by_question,
    correlation_ratio, mean, normalised_average,
};
use serde::{Deserialize, Serialize};

use super::rows::{append, at_least_one, replace_labelled};
use crate::quark::Condition;
use crate::{Collective, Error, Result};

/// Settings of [`judge`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JudgingConfig {
    /// The rewards by name, `{dataset}` standing for the data set; none takes those whose models are there.
    pub rewards: Vec<String>,
    /// Resamples of the questions for the 95 % intervals.
    pub resamples: usize,
    /// Seed of the resamples.
    pub seed: u64,
}

impl Default for JudgingConfig {
    fn default() -> Self {
        Self { rewards: vec![], resamples: 1000, seed: 1 }
    }
}

impl JudgingConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        at_least_one([("resamples", self.resamples)])
    }
}

/// Responses with their scores, and the numbers of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// Every response with its scores.
    pub table: OutputTable,
    /// The majority's answer to each question.
    pub questions: Vec<QuestionSummary>,
    /// Accuracy of the majority, and means over questions: of the rewards, then `num_sents` and `num_words`.
    pub summary: Summary,
    /// 95 % intervals over questions, of the accuracy.
    pub accuracy_interval: Option<Interval>,
    /// Those of the columns of the summary.
    pub intervals: Vec<Option<Interval>>,
    /// The average of accuracy and all rewards that have bounds, on a scale from 0 to 100, and its interval. With the four
    /// rewards of the paper, it is its NRG.
    pub normalised: Option<NormalisedAverage>,
    /// Correlation ratio of correctness and each reward, over all responses.
    pub correlations: Vec<f64>,
}

/// An average of accuracy and rewards on a scale from 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NormalisedAverage {
    /// The average.
    pub mean: f64,
    /// Its 95 % interval over questions.
    pub interval: Option<Interval>,
}

/// Scores responses, and lets those to the same question vote (section 11.4 of the method's description).
///
/// # Errors
/// When a reward cannot be computed; it names the response by its number.
pub fn judge(responses: &[GivenResponse], rewards: &RewardSet, config: &JudgingConfig) -> Result<Judged> {
    judge_across(responses, rewards, config, &Collective::default())
}

/// Judges responses as [`judge`] does. Several processes score a part each, and all of them get the result.
///
/// # Errors
/// Those of [`judge`], where a response is named by its number among those of a process; and when another process fails.
pub fn judge_across(
    responses: &[GivenResponse],
    rewards: &RewardSet,
    config: &JudgingConfig,
    collective: &Collective,
) -> Result<Judged> {
    config.validate()?;
    let response = |&ix: &usize| {
        let GivenResponse { question, gold, text, .. } = &responses[ix];
        Response { question, gold, text }
    };
    let names = rewards.names();
    let scores: Vec<Vec<f64>> = collective.map(responses.len(), |mine| {
        let scores = rewards.scores(&mine.iter().map(response).collect::<Vec<_>>())?;
        Ok(scores.outer_iter().map(|row| row.to_vec()).collect())
    })?;
    let scores = Array2::from_shape_fn((responses.len(), names.len()), |(row, reward)| scores[row][reward]);
    let of = |ix: usize| scores.row(ix).to_vec().into_iter().map(Some);
    let rows: Vec<OutputRow> = responses
        .iter()
        .enumerate()
        .map(|(ix, r)| OutputRow {
            question: r.question.clone(),
            response: r.text.clone(),
            correct: r.correct(),
            scores: of(ix).collect(),
        })
        .collect();
    let counts = |text: &str| [Some(num_sents(text) as f64), Some(num_words(text) as f64)];
    let judged: Vec<JudgedResponse<'_>> = responses
        .iter()
        .enumerate()
        .map(|(ix, r)| JudgedResponse {
            question: &r.question,
            label: &r.label,
            correct: r.correct(),
            scores: of(ix).chain(counts(&r.text)).collect(),
        })
        .collect();
    let questions = by_question(&judged);
    let columns: Vec<String> =
        names.iter().cloned().chain(["num_sents".into(), "num_words".into()]).collect();
    let summarise = |of: &[usize]| {
        Summary::of(&columns, of.iter().map(|&ix| (questions[ix].correct, &questions[ix].scores[..])))
    };
    let all: Vec<usize> = (0..questions.len()).collect();
    let summary = summarise(&all);
    let interval = |statistic: &dyn Fn(&[usize]) -> Option<f64>| {
        bootstrap(questions.len(), config.resamples, config.seed, statistic)
    };
    let accuracy =
        |of: &[usize]| mean(of.iter().map(|&ix| Some(if questions[ix].correct { 100.0 } else { 0.0 })));
    let column = |column: usize, of: &[usize]| mean(of.iter().map(|&ix| questions[ix].scores[column]));
    let bounds = rewards.bounds();
    let average = |of: &[usize]| {
        // The accuracy of the responses is not counted again beside that of the majority.
        let rewards = bounds.iter().enumerate().filter(|(ix, _)| names[*ix] != "accuracy");
        let scored = rewards.filter_map(|(ix, bounds)| Some((column(ix, of)?, (*bounds)?)));
        let metrics: Vec<_> = std::iter::once((accuracy(of)?, (0.0, 100.0))).chain(scored).collect();
        normalised_average(&metrics)
    };
    let correct: Vec<bool> = responses.iter().map(GivenResponse::correct).collect();
    let correlation = |column: ArrayView1<'_, f64>| {
        correlation_ratio(&correct, &column.iter().copied().map(Some).collect::<Vec<_>>())
    };
    Ok(Judged {
        accuracy_interval: interval(&accuracy),
        intervals: (0..columns.len()).map(|ix| interval(&|of: &[usize]| column(ix, of))).collect(),
        normalised: average(&all).map(|mean| NormalisedAverage { mean, interval: interval(&average) }),
        correlations: scores.columns().into_iter().map(correlation).collect(),
        table: OutputTable { rows, rewards: names },
        questions,
        summary,
    })
}

impl Judged {
    /// Writes the published code's files: appends a line to `eval_reward_scores_other_outputs.txt`, and replaces
    /// `eval_output_other{name}.csv`. Returns their paths.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn write(&self, folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
        std::fs::create_dir_all(folder).map_err(|source| Error::Io {
            action: "create",
            path: folder.into(),
            source,
        })?;
        let table = folder.join(format!("eval_output_other{name}.csv"));
        self.table.write_csv(&table)?;
        let lines = folder.join("eval_reward_scores_other_outputs.txt");
        append(&lines, &self.line(&format!("Name {name}"), 2))?;
        Ok(vec![lines, table])
    }

    /// Writes the published code's files about a checkpoint's own responses to a split, `val` or `test`: appends a line to
    /// `eval_reward_scores_{split}_greedy.txt`, and replaces `eval_output{split}_greedy_{checkpoint}.csv`. The names of both
    /// begin with what was asked for, unless it is the best. Returns their paths.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn write_own(
        &self,
        folder: &Path,
        split: &str,
        condition: Option<Condition>,
        checkpoint: &str,
    ) -> Result<Vec<PathBuf>> {
        self.write_greedy(folder, split, condition, checkpoint, append)
    }

    /// Writes as [`write_own`](Self::write_own) does, but replaces the line about the same checkpoint.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn replace_own(
        &self,
        folder: &Path,
        split: &str,
        condition: Option<Condition>,
        checkpoint: &str,
    ) -> Result<Vec<PathBuf>> {
        let label = format!("Step {checkpoint} - ");
        self.write_greedy(folder, split, condition, checkpoint, |path, line| {
            replace_labelled(path, &label, line)
        })
    }

    fn write_greedy(
        &self,
        folder: &Path,
        split: &str,
        condition: Option<Condition>,
        checkpoint: &str,
        add: impl FnOnce(&Path, &str) -> Result<()>,
    ) -> Result<Vec<PathBuf>> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let prefix = match condition {
            None | Some(Condition::Best) => "",
            Some(Condition::Worst) => "worst_",
            Some(Condition::Random) => "random_",
        };
        let table = folder.join(format!("{prefix}eval_output{split}_greedy_{checkpoint}.csv"));
        self.table.write_csv(&table)?;
        let lines = folder.join(format!("{prefix}eval_reward_scores_{split}_greedy.txt"));
        add(&lines, &self.line(&format!("Step {checkpoint}"), 3))?;
        Ok(vec![lines, table])
    }

    /// The published line, in which the names of Flan-T5's rewards lack their beginning.
    fn line(&self, what: &str, decimals: usize) -> String {
        let mut summary = self.summary.clone();
        summary.scores.iter_mut().for_each(|(name, _)| *name = name.replace("flan-t5-", ""));
        summary.line(what, Some(decimals))
    }
}
