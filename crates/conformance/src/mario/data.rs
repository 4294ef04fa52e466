//! Rows, prompts, targets and answers.

use super::ingest::ingest;
use crate::Outcome;
use crate::compare::{Check, Mismatch, equal};
use crate::file::{GoldenError, GoldenFile};
use ruminate_algorithms::Schedule;
use ruminate_datasets::mario::{
    LeadingAnswer, MarioDataset, MarioRow, RewardParts, TeacherRow, i2o_input, i2o_target, ir2o_input,
    is_valid, label, label_sentence, num_sents, num_words, parse_completion, quark_rows, silver_filter,
    target, with_period,
};
use ruminate_models::{History, Processor, Sampling, filter_logits};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

pub(super) fn answer_extraction(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        response: String,
        gold_response: String,
        predicted_label: String,
        gold_label: String,
        correct: u8,
        correct_marker_with_blank: u8,
        has_marker: bool,
        num_sents: usize,
        num_words: usize,
    }
    #[derive(Deserialize)]
    struct CompletionCase {
        dataset: MarioDataset,
        completion: String,
        few_shot_api: Parsed,
        flan_t5: Parsed,
    }
    /// The published parser fails where no phrase is in the case that it looks for; ours finds nothing there.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Parsed {
        Parts { predicted_label: String, predicted_rationale: String },
        Failure { error: String },
    }
    let file = GoldenFile::read(path)?;
    let (mut correct, mut responses) = (0, 0);
    let mut cases = file.cases("responses", |case: Case| {
        let (predicted, gold) = (label(&case.response), label(&case.gold_response));
        equal("predicted_label", &predicted, &case.predicted_label)?;
        equal("gold_label", &gold, &case.gold_label)?;
        equal("correct", u8::from(predicted == gold), case.correct)?;
        let with_blank =
            [&case.response, &case.gold_response].map(|r| RewardParts::of(r).label.to_lowercase());
        equal(
            "correct_marker_with_blank",
            u8::from(with_blank[0] == with_blank[1]),
            case.correct_marker_with_blank,
        )?;
        equal("has_marker", is_valid(&case.response), case.has_marker)?;
        equal("num_sents", num_sents(&case.response), case.num_sents)?;
        correct += u32::from(predicted == gold);
        responses += 1;
        equal("num_words", num_words(&case.response), case.num_words)
    })?;
    cases.extend(file.cases("completions", |case: CompletionCase| {
        for (field, want, leading) in [
            ("few_shot_api", case.few_shot_api, LeadingAnswer::Keep),
            ("flan_t5", case.flan_t5, LeadingAnswer::Reference),
        ] {
            let got = parse_completion(case.dataset, &case.completion, leading);
            let (label, rationale) = match want {
                Parsed::Parts { predicted_label, predicted_rationale } => {
                    (predicted_label, predicted_rationale)
                }
                Parsed::Failure { error } => {
                    equal(&format!("{field}.error"), error, "IndexError".to_string())?;
                    Default::default()
                }
            };
            equal(&format!("{field}.predicted_label"), got.label, label)?;
            equal(&format!("{field}.predicted_rationale"), got.rationale, rationale)?;
        }
        Ok(())
    })?);
    let mut outcome = Outcome { cases, pending: vec![] };
    let percent: f64 = file.field("accuracy_percent")?;
    let got = 100.0 * f64::from(correct) / f64::from(responses);
    let near = if (got - percent).abs() < 1e-8 { Ok(()) } else { equal("accuracy_percent", got, percent) };
    outcome.case("accuracy_percent", near);
    Ok(outcome)
}

pub(super) fn prompts(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        dataset: MarioDataset,
        rows: Vec<MarioRow>,
        quark_all: Expected,
        quark_no_repeats: Expected,
        sft_i2ro: Expected,
        sft_i2o: Expected,
        rq_i2o: Expected,
        rq_ir2o: Expected,
    }
    #[derive(Deserialize)]
    struct Expected {
        prompts: Vec<String>,
        references: Vec<String>,
        gold_labels: Vec<String>,
        #[serde(default)]
        choices: Vec<String>,
    }
    let cases = GoldenFile::read(path)?.cases("cases", |case: Case| {
        let question = |row: &MarioRow| row.question.clone();
        let check = |field: &str,
                     want: &Expected,
                     rows: &[MarioRow],
                     make: &dyn Fn(&MarioRow) -> [String; 3]|
         -> Check {
            let made: Vec<[String; 3]> = rows.iter().map(make).collect();
            let column = |ix: usize| made.iter().map(|parts| parts[ix].clone()).collect::<Vec<_>>();
            equal(&format!("{field}.prompts"), &column(0), &want.prompts)?;
            equal(&format!("{field}.references"), &column(1), &want.references)?;
            equal(&format!("{field}.gold_labels"), &column(2), &want.gold_labels)
        };
        let learnt = |row: &MarioRow| [question(row), target(row), label_sentence(row)];
        check("quark_all", &case.quark_all, &quark_rows(&case.rows, false), &learnt)?;
        check("quark_no_repeats", &case.quark_no_repeats, &quark_rows(&case.rows, true), &learnt)?;
        check("sft_i2ro", &case.sft_i2ro, &case.rows, &learnt)?;
        let answer_only = |row: &MarioRow| [question(row), i2o_target(row), label_sentence(row)];
        check("sft_i2o", &case.sft_i2o, &case.rows, &answer_only)?;
        let i2o =
            |row: &MarioRow| [i2o_input(case.dataset, &row.question), row.answer.clone(), row.answer.clone()];
        check("rq_i2o", &case.rq_i2o, &case.rows, &i2o)?;
        let ir2o = |row: &MarioRow| {
            let input = ir2o_input(case.dataset, &row.question, &with_period(&row.rationale));
            [input, row.answer.clone(), row.answer.clone()]
        };
        check("rq_ir2o", &case.rq_ir2o, &case.rows, &ir2o)?;
        equal("rq_i2o.choices", case.dataset.labels(), case.rq_i2o.choices)?;
        equal("rq_ir2o.choices", case.dataset.labels(), case.rq_ir2o.choices)
    })?;
    Ok(Outcome { cases, pending: vec![] })
}

pub(super) fn pipeline(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Silver {
        dataset: MarioDataset,
        rows: Vec<TeacherRow>,
        kept: Vec<MarioRow>,
    }
    #[derive(Deserialize)]
    struct Filter {
        logits: Vec<f64>,
        temperature: f64,
        top_k: usize,
        top_p: f64,
        kept_ids: Vec<usize>,
        probs: BTreeMap<usize, f64>,
    }
    #[derive(Deserialize)]
    struct MinLength {
        decoder_length_so_far: i64,
        min_length: usize,
        end_token_allowed: bool,
    }
    #[derive(Deserialize)]
    struct Rates {
        base: f64,
        warmup: u64,
        total: u64,
        steps: Vec<u64>,
        lr: Vec<f64>,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let mut cases = file.cases("silver_filter", |case: Silver| {
        equal("kept", silver_filter(case.dataset, &case.rows, []).train, case.kept)
    })?;
    cases.extend(file.cases("sampling_filters", |case: Filter| {
        let logits = Tensor::f_from_slice(&case.logits)?.f_view_([1, -1])?;
        let sampling = Sampling {
            temperature: case.temperature,
            top_k: (case.top_k > 0).then_some(case.top_k),
            top_p: Some(case.top_p),
            ..Sampling::default()
        };
        let probs = filter_logits(&logits, &sampling)?.f_softmax(-1, None::<Kind>)?.f_flatten(0, 1)?;
        let probs: Vec<f64> = Vec::try_from(probs)?;
        let kept: Vec<usize> = (0..probs.len()).filter(|&id| probs[id] > 0.0).collect();
        equal("kept_ids", &kept, &case.kept_ids)?;
        let want: Vec<f64> = case.probs.values().copied().collect();
        equal("ids of probs", case.probs.keys().copied().collect::<Vec<_>>(), kept.clone())?;
        tolerance.close("probs", &kept.iter().map(|&id| probs[id]).collect::<Vec<_>>(), &want)
    })?);
    cases.extend(file.cases("min_length", |case: MinLength| {
        let tokens = Tensor::f_zeros([1, case.decoder_length_so_far], (Kind::Int64, tch::Device::Cpu))?;
        let history = History { tokens: &tokens, padding: None };
        let rule = Processor::SuppressUntil { length: case.min_length, ids: vec![1] };
        let logits = rule.apply(&Tensor::f_from_slice(&[0.5f32, 0.5])?.f_view_([1, 2])?, history)?;
        equal("end_token_allowed", logits.f_double_value(&[0, 1])?.is_finite(), case.end_token_allowed)
    })?);
    cases.extend(file.cases("lr_schedule", |case: Rates| {
        let rate = |&step: &u64| Schedule::Linear.lr(case.base, step, case.warmup, case.total);
        let rates: Vec<f64> = case.steps.iter().map(rate).collect();
        if rates.iter().all(|rate| *rate == 0.0) {
            return Err(Mismatch("no rate is above 0".to_owned()));
        }
        // The tolerance of the file is for probabilities.
        let relative = crate::compare::Tolerance { absolute: 0.0, relative: 1e-9 };
        relative.close("lr", &rates, &case.lr)
    })?);
    cases.extend(ingest(&file)?);
    Ok(Outcome { cases, pending: vec![] })
}
