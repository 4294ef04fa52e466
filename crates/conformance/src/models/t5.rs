//! T5 checkpoints: forward passes, gradients, position buckets, generation, training.

use std::path::Path;

use ruminate_models::{Batch, Example, IGNORED, Policy, Sampling, ScoreOptions, T5, T5Config, filter_logits};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::checkpoints::{self, LOSS, rows};
use super::{Fixture, VALUES, close, list, name, number, number_close, parse};
use crate::Outcome;
use crate::compare::{Check, Mismatch, equal};

/// Runs a folder.
pub(super) fn run(folder: &Path) -> Check<Outcome> {
    let fixture = Fixture::open(folder)?;
    let mut outcome = Outcome::default();
    let mut configs = vec!["config.json".to_string()];
    if let Some(alternates) = fixture.json["alternate_configs"].as_object() {
        configs.extend(alternates.keys().cloned());
    }
    let forward = list(&fixture.json["forward"])?;
    for config in &configs {
        let t5 = T5::load_with(T5Config::open(&folder.join(config))?, folder, Kind::Float, Device::Cpu)?;
        for case in forward {
            let name = format!("{config}/{}", name(case));
            outcome.case(name, t5_forward(&fixture, &t5, case));
        }
    }
    let t5 = T5::load(folder, Kind::Float, Device::Cpu)?;
    let stacks = [("bidirectional", true), ("causal", false)];
    outcome.case("relative_position_buckets", buckets(&fixture, &t5, &stacks));
    outcome.case("save and load", t5_round_trip(&t5));
    let generate = &fixture.json["generate"];
    for case in list(&generate["cases"])? {
        checkpoints::generation(&fixture, &t5, case, &t5.config().eos_token_ids, &mut outcome);
    }
    let distributions = list(&generate["first_token_distributions"])?;
    for (i, case) in distributions.iter().enumerate() {
        outcome.case(format!("first_token_distribution {i}"), t5_first_token(&fixture, &t5, case));
    }
    checkpoints::training(&fixture, &mut outcome, |forward| {
        Ok((T5::load(folder, Kind::Float, Device::Cpu)?, examples(&fixture, forward)?))
    })?;
    Ok(outcome)
}

pub(super) fn source(fixture: &Fixture<'_>, case: &Value) -> Check<Batch> {
    let (ids, mask) = (&fixture.tensor(&case["input_ids"])?, &fixture.tensor(&case["attention_mask"])?);
    Ok(Batch { ids: ids.shallow_clone(), mask: mask.shallow_clone(), tokens: 0 })
}

fn examples(fixture: &Fixture<'_>, case: &Value) -> Check<Vec<Example>> {
    let prompts = rows(&fixture.tensor(&case["input_ids"])?, &fixture.tensor(&case["attention_mask"])?)?;
    let labels = &fixture.tensor(&case["labels"])?;
    let targets = rows(labels, &labels.f_ne(IGNORED)?.f_to_kind(Kind::Int64)?)?;
    Ok(prompts.into_iter().zip(targets).map(|(prompt, target)| Example { prompt, target }).collect())
}

fn t5_forward(fixture: &Fixture<'_>, t5: &T5, case: &Value) -> Check {
    let batch = source(fixture, case)?;
    let labels = &fixture.tensor(&case["labels"])?;
    let inputs = &fixture.tensor(&case["decoder_input_ids"])?;
    close("decoder inputs", &t5.shift_right(labels)?, inputs, 0.0)?;
    let labelled = labels.f_ne(IGNORED)?;
    let mut traces = (vec![], vec![]);
    // Once with gradients and once without: the two take different attention kernels.
    let mut pass = || -> Check<_> {
        traces = (vec![], vec![]);
        let encoded = t5.encode_traced(&batch, Some(&mut traces.0))?;
        let states = t5.decode_traced(&encoded, inputs, Some(&mut traces.1))?;
        let logits = t5.logits(&states)?;
        let expected = fixture.tensor(&case["logits"])?;
        let at = |t: &Tensor| t.f_masked_select(&labelled.f_unsqueeze(2)?);
        close("logits", &at(&logits)?, &at(&expected)?, VALUES)?;
        Ok((encoded, states))
    };
    let _ = pass()?;
    let (encoded, states) = tch::no_grad(pass)?;
    if let Some(hidden) = case["hidden"].as_object() {
        for (name, expected) in hidden {
            let got = match name.split_once('.') {
                Some(("enc", "final_norm")) => Some(&encoded.states),
                Some(("dec", "final_norm")) => Some(&states),
                Some((stack, layer)) => {
                    let trace = if stack == "enc" { &traces.0 } else { &traces.1 };
                    layer
                        .strip_prefix("layer")
                        .and_then(|n| n.parse::<usize>().ok())
                        .and_then(|n| trace.get(n))
                }
                None => None,
            };
            let got = got.ok_or_else(|| Mismatch(format!("no such hidden state: {name}")))?;
            // States of padding are unspecified.
            let real = if name.starts_with("enc") { batch.mask.f_ne(0)? } else { labelled.shallow_clone() };
            let at = |t: &Tensor| t.f_masked_select(&real.f_unsqueeze(2)?);
            close(name, &at(got)?, &at(&fixture.tensor(expected)?)?, VALUES)?;
        }
    }
    for (key, bidirectional) in [("encoder_position_bias", true), ("decoder_position_bias", false)] {
        if case[key].is_null() {
            continue;
        }
        let expected = &fixture.tensor(&case[key])?;
        close(key, &t5.position_bias(expected.size()[3], bidirectional)?, expected, VALUES)?;
    }
    t5_scores(fixture, t5, case)
}

/// The same numbers through the interface that losses use, with gradients.
fn t5_scores(fixture: &Fixture<'_>, t5: &T5, case: &Value) -> Check {
    let scores = t5.score(&examples(fixture, case)?, ScoreOptions { entropy: true, states: false })?;
    close("token_logprobs", &scores.log_probs, &fixture.tensor(&case["token_logprobs"])?, VALUES)?;
    let entropy = scores.entropy.as_ref().ok_or_else(|| Mismatch("no entropy".into()))?;
    close("token_entropy", entropy, &fixture.tensor(&case["token_entropy"])?, VALUES)?;
    let loss = scores.log_probs.f_sum(Kind::Float)?.f_div_scalar(-(scores.labels.count as f64))?;
    number_close("loss", loss.f_double_value(&[])?, number(&case["loss"])?, LOSS)?;
    checkpoints::gradients(fixture, t5.parameters(), case, &loss)
}

pub(super) fn buckets(fixture: &Fixture<'_>, t5: &T5, stacks: &[(&str, bool)]) -> Check {
    let case = &fixture.json["relative_position_buckets"];
    let (from, to): (i64, i64) = (parse(&case["from"])?, parse(&case["to"])?);
    let distance = Tensor::f_arange_start(from, to + 1, (Kind::Int64, Device::Cpu))?;
    for &(key, bidirectional) in stacks {
        let got: Vec<i64> = Vec::try_from(t5.position_buckets(&distance, bidirectional)?)?;
        equal(key, got, parse::<Vec<i64>>(&case[key])?)?;
    }
    Ok(())
}

fn t5_round_trip(t5: &T5) -> Check {
    let folder = tempfile::tempdir().map_err(|e| Mismatch(e.to_string()))?;
    t5.save(folder.path())?;
    let back = T5::load(folder.path(), Kind::Float, Device::Cpu)?;
    equal("config", back.config(), t5.config())?;
    t5.parameters().iter().try_for_each(|(name, tensor)| {
        let other = back.parameters().get(name).ok_or_else(|| Mismatch(format!("`{name}` was lost")))?;
        close(name, other, tensor, 0.0)
    })
}

fn t5_first_token(fixture: &Fixture<'_>, t5: &T5, case: &Value) -> Check {
    let batch = source(fixture, &fixture.json["generate"])?;
    let sampling: Sampling = parse(&case["settings"])?;
    let start =
        Tensor::f_full([batch.rows(), 1], t5.config().decoder_start_token_id, (Kind::Int64, Device::Cpu))?;
    let logits = tch::no_grad(|| t5.logits(&t5.decode(&t5.encode(&batch)?, &start)?.f_squeeze_dim(1)?))?;
    let probs = filter_logits(&logits, &sampling)?.f_softmax(-1, Kind::Float)?;
    let expected = &fixture.tensor(&case["probs"])?;
    close("probs", &probs, expected, VALUES)?;
    close(
        "support",
        &probs.f_gt(0.0)?.f_to_kind(Kind::Float)?,
        &expected.f_gt(0.0)?.f_to_kind(Kind::Float)?,
        0.0,
    )?;
    checkpoints::draws(t5, &rows(&batch.ids, &batch.mask)?, sampling, expected)
}
