//! Vera: a T5 encoder that scores statements.

use std::path::Path;

use ruminate_models::{T5, TokenId, Vera};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::checkpoints::rows;
use super::{Fixture, VALUES, close, list, number, number_close, parse, t5};
use crate::Outcome;
use crate::compare::{Check, Mismatch, equal};

pub(super) fn run(folder: &Path) -> Check<Outcome> {
    let fixture = Fixture::open(folder)?;
    let encoder = T5::load(folder, Kind::Float, Device::Cpu)?;
    let vera = Vera::load(folder, Kind::Float, Device::Cpu)?;
    let max_length: Option<usize> = parse(&fixture.json["vera"]["max_length"])?;
    let vera = match max_length {
        Some(length) => vera.max_tokens(length),
        None => vera,
    };
    let mut outcome = Outcome::default();
    outcome.case("relative_position_buckets", t5::buckets(&fixture, &encoder, &[("bidirectional", true)]));
    for (i, case) in list(&fixture.json["vera"]["batches"])?.iter().enumerate() {
        outcome.case(format!("encoder {i}"), encoder_case(&fixture, &encoder, case));
        outcome.case(format!("scores {i}"), scores_case(&fixture, &vera, case));
    }
    Ok(outcome)
}

fn encoder_case(fixture: &Fixture<'_>, encoder: &T5, case: &Value) -> Check {
    let batch = t5::source(fixture, case)?;
    let mut trace = vec![];
    let states = tch::no_grad(|| encoder.encode_traced(&batch, Some(&mut trace)))?.states;
    let real = batch.mask.f_ne(0)?.f_unsqueeze(2)?;
    let at = |t: &Tensor| t.f_masked_select(&real);
    let expected = fixture.tensor(&case["encoder_last_hidden"])?;
    close("encoder_last_hidden", &at(&states)?, &at(&expected)?, VALUES)?;
    for (name, key) in case["hidden"].as_object().into_iter().flatten() {
        let layer = name.strip_prefix("enc.layer").and_then(|n| n.parse::<usize>().ok());
        let got = layer.map_or(Some(&states), |i| trace.get(i));
        let got = got.ok_or_else(|| Mismatch(format!("no such hidden state: {name}")))?;
        close(name, &at(got)?, &at(&fixture.tensor(key)?)?, VALUES)?;
    }
    let last = Tensor::f_from_slice(&parse::<Vec<i64>>(&case["last_index"])?)?;
    let last = last.f_view_([-1, 1, 1])?.f_expand([-1, 1, states.size()[2]], false)?;
    close(
        "pooled",
        &states.f_gather(1, &last, false)?.f_squeeze_dim(1)?,
        &fixture.tensor(&case["pooled"])?,
        VALUES,
    )
}

fn scores_case(fixture: &Fixture<'_>, vera: &Vera, case: &Value) -> Check {
    let texts: Vec<String> = parse(&case["texts"])?;
    let rows = rows(&fixture.tensor(&case["input_ids"])?, &fixture.tensor(&case["attention_mask"])?)?;
    let tokens: Vec<Vec<TokenId>> = texts.iter().map(|text| Ok(vera.tokens(text)?)).collect::<Check<_>>()?;
    equal("input_ids", &tokens, &rows)?;
    let scores = vera.score(&texts)?;
    for (i, score) in scores.iter().enumerate() {
        let alone = vera.score(&texts[i..=i])?[0];
        for (key, got, alone) in [
            ("logit", score.logit, alone.logit),
            ("score_raw", score.raw, alone.raw),
            ("score_calibrated", score.calibrated, alone.calibrated),
        ] {
            let expected = number(&list(&case[key])?[i])?;
            number_close(&format!("{key} of statement {i}"), got, expected, VALUES)?;
            number_close(&format!("{key} of statement {i} alone"), alone, expected, VALUES)?;
        }
    }
    equal("statements", scores.len(), texts.len())
}
