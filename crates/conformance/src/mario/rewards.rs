//! The rewards.

use crate::Outcome;
use crate::compare::{Check, Mismatch, equal};
use crate::file::{GoldenError, GoldenFile};
use ruminate_datasets::mario::{MarioDataset, RewardParts, i2o_input, ir2o_input, rationale};
use ruminate_models::{IGNORED, ScoreChoices, TokenId, VeraHead};
use ruminate_rewards::choices::choice_probs;
use ruminate_rewards::mario::{
    ConsistencyMode, Diversity, Response, TextReward, ngram_diversity, option_scores, repetition,
    statement_with_question,
};
use serde::Deserialize;
use std::path::Path;
use tch::{Kind, Tensor};

pub(super) fn diversity(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        text: String,
        rep_2: f64,
        rep_3: f64,
        rep_4: f64,
        diversity: f64,
        diversity_3_4: f64,
    }
    #[derive(Deserialize)]
    struct ResponseCase {
        response: String,
        rationale: String,
        diversity: f64,
        diversity_3_4_on_full_response: f64,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let mut cases = file.cases("cases", |case: Case| {
        for (n, want) in [(2, case.rep_2), (3, case.rep_3), (4, case.rep_4)] {
            tolerance.close(&format!("rep_{n}"), &[repetition(&case.text, n)], &[want])?;
        }
        tolerance.close("diversity", &[ngram_diversity(&case.text, 2..=4)], &[case.diversity])?;
        tolerance.close("diversity_3_4", &[ngram_diversity(&case.text, 3..=4)], &[case.diversity_3_4])
    })?;
    cases.extend(file.cases("responses", |case: ResponseCase| {
        equal("rationale", rationale(&case.response), case.rationale.as_str())?;
        let response = [Response { question: "", gold: "", text: &case.response }];
        tolerance.close("diversity", &Diversity::Rationale.scores(&response)?, &[case.diversity])?;
        let whole = Diversity::WholeResponse.scores(&response)?;
        tolerance.close("diversity_3_4_on_full_response", &whole, &[case.diversity_3_4_on_full_response])
    })?);
    Ok(Outcome { cases, pending: vec![] })
}

/// A model that says what a golden case holds: `[option][token]` log-probabilities.
struct Said<'a>(&'a [Vec<f64>]);

impl ScoreChoices for Said<'_> {
    fn choice_log_probs(
        &self,
        _: &[Vec<TokenId>],
        choices: &[Vec<Vec<TokenId>>],
    ) -> ruminate_models::Result<Tensor> {
        let time = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let padded =
            |row: &Vec<f64>| (0..time).map(|i| row.get(i).copied().unwrap_or(0.0)).collect::<Vec<_>>();
        let flat: Vec<f64> = self.0.iter().flat_map(padded).collect();
        let one = Tensor::f_from_slice(&flat)?.f_view_([1, self.0.len() as i64, time as i64])?;
        Ok(one.f_expand([choices.len() as i64, -1, -1], false)?.f_contiguous()?)
    }

    fn first_token_logits(
        &self,
        _: &[Vec<TokenId>],
        _: &[Vec<TokenId>],
    ) -> ruminate_models::Result<Vec<Vec<f32>>> {
        Ok(vec![])
    }
}

/// Log-probabilities of label tokens from `[option][token][vocabulary]` logits. Labels may be padded with -100.
fn label_log_probs(logits: &[Vec<Vec<f64>>], labels: &[Vec<TokenId>]) -> Check<Vec<Vec<f64>>> {
    let option = |(logits, labels): (&Vec<Vec<f64>>, &Vec<TokenId>)| {
        let labels = &real(labels)[..];
        let logits =
            logits.get(..labels.len()).ok_or_else(|| Mismatch("logits: fewer than labels".into()))?;
        let rows = Tensor::f_from_slice(&logits.concat())?.f_view_([logits.len() as i64, -1])?;
        let ids = Tensor::f_from_slice(labels)?.f_unsqueeze(1)?;
        Ok(Vec::try_from(rows.f_log_softmax(-1, Kind::Double)?.f_gather(1, &ids, false)?.f_squeeze_dim(1)?)?)
    };
    logits.iter().zip(labels).map(option).collect()
}

/// Labels without their padding.
fn real(labels: &[TokenId]) -> Vec<TokenId> {
    labels.iter().copied().take_while(|&id| id != IGNORED).collect()
}

/// Rows cut to the labels that are real, where the file gives labels.
fn cut(rows: &[Vec<f64>], labels: Option<&Vec<Vec<TokenId>>>) -> Vec<Vec<f64>> {
    let Some(labels) = labels else { return rows.to_vec() };
    rows.iter().zip(labels).map(|(row, labels)| row[..real(labels).len().min(row.len())].to_vec()).collect()
}

pub(super) fn consistency(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Numbers {
        dataset: MarioDataset,
        choices: Vec<String>,
        gold_index: usize,
        i2o_option_token_logprobs: Vec<Vec<f64>>,
        ir2o_option_token_logprobs: Vec<Vec<f64>>,
        i2o_option_probs: Vec<f64>,
        ir2o_option_probs: Vec<f64>,
        continuous: f64,
        discrete: f64,
        label_token_ids: Option<Vec<Vec<TokenId>>>,
        i2o_logits: Option<Vec<Vec<Vec<f64>>>>,
        ir2o_logits: Option<Vec<Vec<Vec<f64>>>>,
    }
    #[derive(Deserialize)]
    struct Strings {
        dataset: MarioDataset,
        question: String,
        response: String,
        gold_response: String,
        gold_index: usize,
        i2o_input: String,
        ir2o_input: String,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let mut cases = file.cases("numeric", |case: Numbers| {
        equal("choices", case.dataset.labels(), case.choices)?;
        let labels = case.label_token_ids.as_ref();
        let i2o_said = cut(&case.i2o_option_token_logprobs, labels);
        let ir2o_said = cut(&case.ir2o_option_token_logprobs, labels);
        if let (Some(i2o), Some(ir2o), Some(labels)) =
            (&case.i2o_logits, &case.ir2o_logits, &case.label_token_ids)
        {
            let (i2o, ir2o) = (label_log_probs(i2o, labels)?, label_log_probs(ir2o, labels)?);
            tolerance.close_rows("i2o_option_token_logprobs", &i2o, &i2o_said)?;
            tolerance.close_rows("ir2o_option_token_logprobs", &ir2o, &ir2o_said)?;
        }
        let scores = |said: &[Vec<f64>]| -> Check<Vec<f64>> {
            let options: Vec<Vec<TokenId>> = said.iter().map(|tokens| vec![1; tokens.len()]).collect();
            Ok(option_scores(&Said(said), &[vec![1]], &options, 1)?.into_raw_vec_and_offset().0)
        };
        let i2o = scores(&i2o_said)?;
        let ir2o = scores(&ir2o_said)?;
        tolerance.close("i2o_option_probs", &choice_probs(&i2o)?, &case.i2o_option_probs)?;
        tolerance.close("ir2o_option_probs", &choice_probs(&ir2o)?, &case.ir2o_option_probs)?;
        let reward = |mode: ConsistencyMode| mode.reward(&i2o, &ir2o, case.gold_index);
        tolerance.close("continuous", &[reward(ConsistencyMode::Continuous)?], &[case.continuous])?;
        equal("discrete", reward(ConsistencyMode::Discrete)?, case.discrete)
    })?;
    cases.extend(file.cases("strings", |case: Strings| {
        let gold = case.dataset.label_index(RewardParts::of(&case.gold_response).label);
        // Without a gold label, the reference takes the first option; here it is an error.
        let want = (!case.gold_response.is_empty()).then_some(case.gold_index);
        equal("gold_index", gold, want)?;
        equal("i2o_input", i2o_input(case.dataset, &case.question), case.i2o_input)?;
        let rationale = RewardParts::of(&case.response).rationale;
        equal("ir2o_input", ir2o_input(case.dataset, &case.question, rationale), case.ir2o_input)
    })?);
    Ok(Outcome { cases, pending: vec![] })
}

pub(super) fn plausibility(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        question: String,
        response: String,
        statement: String,
        statement_with_question: String,
        n_tokens: usize,
        hidden: Vec<Vec<f32>>,
        logit: f64,
        score: f64,
    }
    let file = GoldenFile::read(path)?;
    let tolerance = file.tolerance()?;
    let weight: Vec<f32> = file.field("w")?;
    let head = VeraHead {
        weight: Tensor::f_from_slice(&weight)?,
        bias: file.field("b")?,
        temperature: file.field("t")?,
    };
    let cases = file.cases("cases", |case: Case| {
        equal("statement", rationale(&case.response), case.statement.as_str())?;
        let together = statement_with_question(&case.question, &case.response);
        equal("statement_with_question", together, case.statement_with_question)?;
        let last = Tensor::f_from_slice(&case.hidden[case.n_tokens - 1])?.f_unsqueeze(0)?;
        let logit = head.logits(&last)?.f_double_value(&[0])?;
        tolerance.close("logit", &[logit], &[case.logit])?;
        tolerance.close("score", &[head.plausibility(logit).calibrated], &[case.score])
    })?;
    Ok(Outcome { cases, pending: vec![] })
}
