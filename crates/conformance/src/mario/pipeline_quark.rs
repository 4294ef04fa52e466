//! The groups of kind `pipeline` that are Quark's: sampling filters, lengths, learning rate, and what enters the pool.

use std::collections::BTreeMap;

use ruminate_algorithms::Schedule;
use ruminate_algorithms::quark::{Admission, QuarkConfig, Source, admit};
use ruminate_models::{History, Processor, Sampling, TokenId, filter_logits};
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::CaseResult;
use crate::compare::{Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};

/// Group `sampling_filters`.
pub(super) fn sampling_filters(file: &GoldenFile) -> Result<Vec<CaseResult>, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        logits: Vec<f32>,
        temperature: f64,
        top_k: usize,
        top_p: f64,
        kept_ids: Vec<TokenId>,
        probs: BTreeMap<TokenId, f64>,
    }
    let tolerance = file.tolerance()?;
    file.cases("sampling_filters", |case: Case| {
        let top_k = (case.top_k > 0).then_some(case.top_k);
        let sampling = Sampling { temperature: case.temperature, top_k, top_p: Some(case.top_p) };
        let kept = filter_logits(&Tensor::f_from_slice(&case.logits)?.f_unsqueeze(0)?, &sampling)?;
        let probs: Vec<f64> = Vec::try_from(kept.f_softmax(-1, Kind::Double)?.f_view_([-1])?)?;
        let ids: Vec<TokenId> = (0..).zip(&probs).filter(|(_, p)| **p > 0.0).map(|(id, _)| id).collect();
        equal("kept_ids", &ids, &case.kept_ids)?;
        let got: Vec<f64> = ids.iter().map(|&id| probs[id as usize]).collect();
        tolerance.close("probs", &got, &case.probs.into_values().collect::<Vec<_>>())
    })
}

/// Group `min_length`.
pub(super) fn min_length(file: &GoldenFile) -> Result<Vec<CaseResult>, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        decoder_length_so_far: i64,
        min_length: usize,
        end_token_allowed: bool,
    }
    file.cases("min_length", |case: Case| {
        let tokens = Tensor::f_zeros([1, case.decoder_length_so_far], (Kind::Int64, tch::Device::Cpu))?;
        let logits = Tensor::f_zeros([1, 3], (Kind::Float, tch::Device::Cpu))?;
        let rule = Processor::SuppressUntil { length: case.min_length, ids: vec![1] };
        let logits = rule.apply(&logits, History { tokens: &tokens, padding: None })?;
        equal("end_token_allowed", logits.f_double_value(&[0, 1])?.is_finite(), case.end_token_allowed)
    })
}

/// Group `lr_schedule`.
pub(super) fn lr_schedule(file: &GoldenFile) -> Result<Vec<CaseResult>, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        base: f64,
        warmup: u64,
        total: u64,
        steps: Vec<u64>,
        lr: Vec<f64>,
    }
    file.cases("lr_schedule", |case: Case| {
        let rate = |&step| Schedule::Linear.lr(case.base, step, case.warmup, case.total);
        let rates: Vec<f64> = case.steps.iter().map(rate).collect();
        Tolerance { absolute: 0.0, relative: 1e-8 }.close("lr", &rates, &case.lr)
    })
}

/// Group `ingest`. `judge` says of a response and the label sentence of its question whether it has an answer at all, and
/// whether that is right.
pub(super) fn ingest(
    file: &GoldenFile,
    judge: impl Fn(&str, &str) -> (bool, bool),
) -> Result<Vec<CaseResult>, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        step: u64,
        step_to_start_sampling: u64,
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
            sample_interval: 4000,
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
                let (valid, correct) = judge(&case.sampled.responses[i], &case.sampled.label_sentences[i]);
                (&case.sampled, i, Admission { valid, correct })
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
