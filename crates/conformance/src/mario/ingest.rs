//! What enters Quark's pool.

use ruminate_algorithms::quark::{Admission, QuarkConfig, Source, admit};
use ruminate_datasets::mario::{is_valid, label};
use serde::Deserialize;

use crate::CaseResult;
use crate::compare::{Mismatch, equal};
use crate::file::{GoldenError, GoldenFile};

/// Group `ingest` of kind `pipeline`.
pub(super) fn ingest(file: &GoldenFile) -> Result<Vec<CaseResult>, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        step: u64,
        step_to_start_sampling: u64,
        /// Steps between rounds. A case without it shows a round at its step.
        #[serde(alias = "interval", alias = "round_interval")]
        sample_interval: Option<u64>,
        sample_at_start: u8,
        use_only_correct: u8,
        sampled: Rows,
        expert: Rows,
        sampled_from: Option<String>,
        added: Added,
    }
    #[derive(Deserialize)]
    struct Rows {
        prompts: Vec<String>,
        responses: Vec<String>,
        label_sentences: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Added {
        #[serde(flatten)]
        rows: Rows,
        task_correctness: Vec<u8>,
        accuracy_scores: Vec<u8>,
    }
    file.cases("ingest", |case: Case| {
        let config = QuarkConfig {
            start_sampling_at: case.step_to_start_sampling,
            sample_at_start: case.sample_at_start == 1,
            only_correct: case.use_only_correct == 1,
            sample_interval: case.sample_interval.unwrap_or(case.step.max(1)),
            ..QuarkConfig::default()
        };
        let source = match case.sampled_from.as_deref() {
            None => None,
            Some("reference") => Some(Source::Reference),
            Some("policy") => Some(Source::Policy),
            Some(other) => return Err(Mismatch(format!("sampled_from: `{other}` is not known"))),
        };
        equal("sampled_from", config.samples_from(case.step), source)?;
        let mut rows: Vec<(&Rows, usize, Admission)> = vec![];
        if source.is_some() {
            rows.extend((0..case.sampled.prompts.len()).map(|i| {
                let response = &case.sampled.responses[i];
                let correct = label(response) == label(&case.sampled.label_sentences[i]);
                (&case.sampled, i, Admission { valid: is_valid(response), correct })
            }));
        }
        rows.extend((0..case.expert.prompts.len()).map(|i| (&case.expert, i, Admission::EXPERT)));
        rows.retain(|(_, _, admission)| admit(*admission, config.only_correct));
        let column = |of: fn(&Rows) -> &Vec<String>| -> Vec<String> {
            rows.iter().map(|(rows, i, _)| of(rows)[*i].clone()).collect()
        };
        equal("added.prompts", column(|rows| &rows.prompts), case.added.rows.prompts.clone())?;
        equal("added.responses", column(|rows| &rows.responses), case.added.rows.responses.clone())?;
        equal(
            "added.label_sentences",
            column(|rows| &rows.label_sentences),
            case.added.rows.label_sentences.clone(),
        )?;
        let correct: Vec<u8> = rows.iter().map(|(_, _, admission)| admission.correct.into()).collect();
        equal("added.task_correctness", &correct, &case.added.task_correctness)?;
        equal("added.accuracy_scores", &correct, &case.added.accuracy_scores)
    })
}
