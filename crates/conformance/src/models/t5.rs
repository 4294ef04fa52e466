//! T5 checkpoints: forward passes, gradients, position buckets, generation, training.

use std::path::Path;

use ruminate_models::{
    Batch, Beam, EarlyStopping, Example, Finish, Generate, GenerationConfig, IGNORED, Policy, Sampling,
    Strategy, T5, T5Config, TokenId, Tokenizer, Want, filter_logits,
};
use ruminate_torch::optim::{Adam, AdamConfig, DecayOn, Optimizer, OptimizerConfig, clip_grad_norm};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{Fixture, VALUES, close, list, name, number, number_close, optimizer, parse, schedule};
use crate::Outcome;
use crate::compare::{Check, Mismatch, equal};

const LOSS: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;
const TRAIN_LOSS_RELATIVE: f64 = 1e-3;

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
        let name = name(case);
        match generation_config(case) {
            Some(config) => outcome.case(name, t5_generate(&fixture, &t5, case, &config)),
            None => outcome.pending(name),
        }
    }
    let distributions = list(&generate["first_token_distributions"])?;
    for (i, case) in distributions.iter().enumerate() {
        outcome.case(format!("first_token_distribution {i}"), t5_first_token(&fixture, &t5, case));
    }
    for (i, case) in fixture.json["train"].as_array().into_iter().flatten().enumerate() {
        let name = format!("train {i}");
        let settings = &case["settings"];
        let all = settings["weight_decay_on"].as_str().is_none_or(|on| !on.starts_with("matrices"));
        let decay_on = if all { DecayOn::All } else { DecayOn::Matrices };
        match optimizer(settings, &settings["optimizer"], decay_on)? {
            Some(config) => outcome.case(name, t5_train(&fixture, case, config)),
            None => outcome.pending(name),
        }
    }
    Ok(outcome)
}

pub(super) fn source(fixture: &Fixture<'_>, case: &Value) -> Check<Batch> {
    let (ids, mask) = (&fixture.tensor(&case["input_ids"])?, &fixture.tensor(&case["attention_mask"])?);
    Ok(Batch { ids: ids.shallow_clone(), mask: mask.shallow_clone(), tokens: 0 })
}

/// The rows of a padded batch without their padding.
pub(super) fn rows(ids: &Tensor, mask: &Tensor) -> Check<Vec<Vec<TokenId>>> {
    let (ids, mask): (Vec<Vec<i64>>, Vec<Vec<i64>>) = (Vec::try_from(ids)?, Vec::try_from(mask)?);
    let keep = |(ids, mask): (Vec<i64>, Vec<i64>)| {
        ids.into_iter().zip(mask).filter(|p| p.1 != 0).map(|p| p.0).collect()
    };
    Ok(ids.into_iter().zip(mask).map(keep).collect())
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
    let scores = t5.score(&examples(fixture, case)?, Want { entropy: true, states: false })?;
    close("token_logprobs", &scores.log_probs, &fixture.tensor(&case["token_logprobs"])?, VALUES)?;
    let entropy = scores.entropy.as_ref().ok_or_else(|| Mismatch("no entropy".into()))?;
    close("token_entropy", entropy, &fixture.tensor(&case["token_entropy"])?, VALUES)?;
    let loss = scores.log_probs.f_sum(Kind::Float)?.f_div_scalar(-(scores.labels.count as f64))?;
    number_close("loss", loss.f_double_value(&[])?, number(&case["loss"])?, LOSS)?;
    let Some(gradients) = case["gradients"].as_object() else { return Ok(()) };
    clear_grads(t5)?;
    loss.f_backward()?;
    for (name, expected) in gradients["parameters"].as_object().into_iter().flatten() {
        let parameter = t5.parameters().get(name);
        let grad = parameter.ok_or_else(|| Mismatch(format!("no parameter `{name}`")))?.f_grad()?;
        let norm = number(&expected["norm"])?;
        number_close(
            &format!("norm of grad {name}"),
            grad.f_norm()?.f_double_value(&[])?,
            norm,
            GRADIENTS * norm.max(1.0),
        )?;
        if let Some(pattern) = gradients["full"].as_str() {
            let key = Value::String(pattern.replace("<parameter name>", name));
            close(&format!("grad {name}"), &grad, &fixture.tensor(&key)?, GRADIENTS)?;
        }
    }
    let all: Vec<Tensor> = t5.parameters().iter().map(|(_, t)| t.shallow_clone()).collect();
    let norm = clip_grad_norm(&all, f64::INFINITY)?.f_double_value(&[])?;
    let expected = number(&gradients["global_norm"])?;
    number_close("global gradient norm", norm, expected, GRADIENTS * expected)?;
    clear_grads(t5)
}

fn clear_grads(t5: &T5) -> Check {
    Ok(Adam::new(t5.parameters().named(), AdamConfig::default())?.zero_grad()?)
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

/// Settings that this library knows; `None` for others.
fn generation_config(case: &Value) -> Option<GenerationConfig> {
    let mut config = GenerationConfig::default();
    if let Some(prefix) = case["decoder_prefix"].as_array() {
        // The first token is the start token.
        config.prefix = prefix.iter().skip(1).map(Value::as_i64).collect::<Option<_>>()?;
    }
    for (key, value) in case["settings"].as_object()? {
        match key.as_str() {
            "max_new_tokens" => config.max_new_tokens = value.as_u64()? as usize,
            // Counts the start token.
            "max_length" => config.max_new_tokens = value.as_u64()? as usize - 1,
            "min_new_tokens" => config.min_new_tokens = value.as_u64()? as usize,
            "eos_token_id" => config.stop_ids = serde_json::from_value(value.clone()).ok()?,
            "repetition_penalty" => config.repetition_penalty = value.as_f64()?,
            "no_repeat_ngram_size" => config.no_repeat_ngram_size = value.as_u64()? as usize,
            "num_return_sequences" => config.samples_per_prompt = value.as_u64()? as usize,
            "num_beams" | "length_penalty" | "early_stopping" => {}
            _ => return None,
        }
    }
    let settings = &case["settings"];
    if let Some(num_beams) = settings["num_beams"].as_u64() {
        let early_stopping = match &settings["early_stopping"] {
            Value::Bool(true) => EarlyStopping::Yes,
            Value::String(text) if text == "never" => EarlyStopping::Never,
            _ => EarlyStopping::No,
        };
        let length_penalty = settings["length_penalty"].as_f64().unwrap_or(1.0);
        config.strategy =
            Strategy::Beam(Beam { num_beams: num_beams as usize, length_penalty, early_stopping });
    }
    Some(config)
}

fn t5_generate(fixture: &Fixture<'_>, t5: &T5, case: &Value, config: &GenerationConfig) -> Check {
    let generate = &fixture.json["generate"];
    let prompts =
        rows(&fixture.tensor(&generate["input_ids"])?, &fixture.tensor(&generate["attention_mask"])?)?;
    let tokenizer = Tokenizer::open(fixture.folder)?;
    let generated = t5.generate(&prompts, config, &[])?;
    let expected: Vec<Vec<TokenId>> = parse(&case["new_token_ids"])?;
    let log_probs: Option<Vec<Vec<f64>>> = parse(&case["token_logprobs"])?;
    let scores: Option<Vec<f64>> = parse(&case["sequence_scores"])?;
    let texts: Vec<String> = parse(&case["text"])?;
    for (i, row) in generated.iter().flatten().enumerate() {
        equal("new_token_ids", &row.ids, &expected[i])?;
        equal("text", &tokenizer.decode(&row.ids, true)?, &texts[i])?;
        for (got, expected) in row.log_probs.iter().zip(log_probs.iter().flat_map(|rows| &rows[i])) {
            number_close("token_logprobs", f64::from(*got), *expected, VALUES)?;
        }
        if let Some(scores) = &scores {
            number_close("sequence_scores", row.score.unwrap_or(f64::NAN), scores[i], VALUES)?;
        }
        let stopped = row.ids.last().is_some_and(|id| {
            if config.stop_ids.is_empty() {
                *id == t5.config().eos_token_id
            } else {
                config.stop_ids.contains(id)
            }
        });
        equal("finish", &row.finish, &if stopped { Finish::Stop } else { Finish::Length })?;
        // A prompt on its own gives what it gave in the batch.
        let (prompt, sample) = (i / config.samples_per_prompt, i % config.samples_per_prompt);
        let alone = t5.generate(&prompts[prompt..=prompt], config, &[])?;
        equal("the same prompt alone", &alone[0][sample].ids, &row.ids)?;
    }
    equal("rows", generated.iter().flatten().count(), expected.len())
}

fn sampling(settings: &Value) -> Check<Sampling> {
    parse(settings)
}

fn t5_first_token(fixture: &Fixture<'_>, t5: &T5, case: &Value) -> Check {
    let batch = source(fixture, &fixture.json["generate"])?;
    let sampling = sampling(&case["settings"])?;
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
    // And the tokens that are really drawn follow it: a chi-square-like bound on 2000 draws per prompt.
    const DRAWS: usize = 2000;
    let config = GenerationConfig {
        strategy: Strategy::Sample(sampling),
        max_new_tokens: 1,
        samples_per_prompt: DRAWS,
        ..GenerationConfig::default()
    };
    let prompts = rows(&batch.ids, &batch.mask)?;
    let seeds: Vec<u64> = (0..prompts.len() as u64).collect();
    let expected: Vec<Vec<f64>> = Vec::try_from(expected.f_to_kind(Kind::Double)?)?;
    for (samples, expected) in t5.generate(&prompts, &config, &seeds)?.iter().zip(expected) {
        let mut counts = vec![0.0; expected.len()];
        samples.iter().for_each(|s| counts[s.ids[0] as usize] += 1.0);
        for (id, (count, p)) in counts.into_iter().zip(expected).enumerate() {
            let mean = p * DRAWS as f64;
            let limit = 6.0 * (mean * (1.0 - p)).sqrt() + if p > 0.0 { 2.0 } else { 0.0 };
            number_close(&format!("draws of token {id}"), count, mean, limit)?;
        }
    }
    Ok(())
}

fn t5_train(fixture: &Fixture<'_>, case: &Value, config: OptimizerConfig) -> Check {
    let settings = &case["settings"];
    let forward = &list(&fixture.json["forward"])?[parse::<usize>(&settings["forward_case"])?];
    let examples = examples(fixture, forward)?;
    let t5 = T5::load(fixture.folder, Kind::Float, Device::Cpu)?;
    let steps: u64 = parse(&settings["steps"])?;
    let schedule = schedule(settings["schedule"].as_str().unwrap_or("constant"), &serde_json::json!({}))?;
    let warmup = settings["warmup_steps"].as_u64().unwrap_or(0);
    let mut optimizer = config.build(t5.parameters().named())?;
    let loss = || -> Check<Tensor> {
        let scores = t5.score(&examples, Want::default())?;
        Ok(scores.log_probs.f_sum(Kind::Float)?.f_div_scalar(-(scores.labels.count as f64))?)
    };
    for step in 0..steps {
        let i = step as usize;
        let at = |what: &str| format!("{what} at step {step}");
        // Both are null where the optimizer has a rate of its own.
        let lr = settings["lr"].as_f64().map_or(f64::NAN, |lr| schedule.lr(lr, step, warmup, steps));
        if let Some(expected) = case["lr_used_per_step"][i].as_f64() {
            number_close(&at("lr"), lr, expected, 1e-9)?;
        }
        optimizer.zero_grad()?;
        let loss = loss()?;
        let expected = number(&case["loss_before_each_step"][i])?;
        number_close(&at("loss"), loss.f_double_value(&[])?, expected, TRAIN_LOSS_RELATIVE * expected)?;
        loss.f_backward()?;
        let norm = clip_grad_norm(optimizer.parameters(), number(&settings["max_grad_norm"])?)?
            .f_double_value(&[])?;
        let expected = number(&case["grad_norm_before_clip"][i])?;
        number_close(&at("gradient norm"), norm, expected, TRAIN_LOSS_RELATIVE * expected)?;
        optimizer.step(lr)?;
    }
    let expected = number(&case["final_loss"])?;
    number_close("final loss", loss()?.f_double_value(&[])?, expected, TRAIN_LOSS_RELATIVE * expected)?;
    for (name, expected) in case["final_parameters"].as_object().into_iter().flatten() {
        let parameter =
            t5.parameters().get(name).ok_or_else(|| Mismatch(format!("no parameter `{name}`")))?;
        let norm = number(&expected["norm"])?;
        number_close(name, parameter.f_norm()?.f_double_value(&[])?, norm, TRAIN_LOSS_RELATIVE * norm)?;
    }
    Ok(())
}
