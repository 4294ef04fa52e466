//! What the checkpoints of all architectures have in common: gradients, generation, training.

use ruminate_models::{
    Beam, EarlyStopping, Example, Finish, Generate, GenerationConfig, Parameters, Policy, Sampling,
    ScoreOptions, Strategy, TokenId, Tokenizer,
};
use ruminate_torch::optim::{Adam, AdamConfig, DecayOn, Optimizer, OptimizerConfig, clip_grad_norm};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::{Fixture, VALUES, close, list, name, number, number_close, optimizer, parse, schedule};
use crate::Outcome;
use crate::compare::{Check, Mismatch, equal};

pub(super) const LOSS: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;
const TRAIN_LOSS_RELATIVE: f64 = 1e-3;

/// The rows of a padded batch without their padding.
pub(super) fn rows(ids: &Tensor, mask: &Tensor) -> Check<Vec<Vec<TokenId>>> {
    let (ids, mask): (Vec<Vec<i64>>, Vec<Vec<i64>>) = (Vec::try_from(ids)?, Vec::try_from(mask)?);
    let keep = |(ids, mask): (Vec<i64>, Vec<i64>)| {
        ids.into_iter().zip(mask).filter(|p| p.1 != 0).map(|p| p.0).collect()
    };
    Ok(ids.into_iter().zip(mask).map(keep).collect())
}

/// The gradients of `loss` against those of a forward case, where it has some.
pub(super) fn gradients(
    fixture: &Fixture<'_>,
    parameters: &Parameters,
    case: &Value,
    loss: &Tensor,
) -> Check {
    let Some(gradients) = case["gradients"].as_object() else { return Ok(()) };
    let clear = || Adam::new(parameters.named(), AdamConfig::default())?.zero_grad();
    clear()?;
    loss.f_backward()?;
    for (name, expected) in gradients["parameters"].as_object().into_iter().flatten() {
        let parameter = parameters.get(name);
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
    let all: Vec<Tensor> = parameters.iter().map(|(_, t)| t.shallow_clone()).collect();
    let norm = clip_grad_norm(&all, f64::INFINITY)?.f_double_value(&[])?;
    let expected = number(&gradients["global_norm"])?;
    number_close("global gradient norm", norm, expected, GRADIENTS * expected)?;
    Ok(clear()?)
}

/// One case of generation; `ends` are the model's end tokens.
pub(super) fn generation(
    fixture: &Fixture<'_>,
    model: &impl Generate,
    case: &Value,
    ends: &[TokenId],
    outcome: &mut Outcome,
) {
    let name = name(case);
    match generation_config(case) {
        Some(config) => outcome.case(name, written(fixture, model, case, &config, ends)),
        None => outcome.pending(name),
    }
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

fn written(
    fixture: &Fixture<'_>,
    model: &impl Generate,
    case: &Value,
    config: &GenerationConfig,
    ends: &[TokenId],
) -> Check {
    let generate = &fixture.json["generate"];
    let prompts =
        rows(&fixture.tensor(&generate["input_ids"])?, &fixture.tensor(&generate["attention_mask"])?)?;
    let generated = model.generate(&prompts, config, &[])?;
    let expected: Vec<Vec<TokenId>> = parse(&case["new_token_ids"])?;
    let log_probs: Option<Vec<Vec<f64>>> = parse(&case["token_logprobs"])?;
    let scores: Option<Vec<f64>> = parse(&case["sequence_scores"])?;
    // A folder without texts has no tokenizer.
    let texts: Option<Vec<String>> = parse(&case["text"])?;
    let tokenizer = texts.as_ref().map(|_| Tokenizer::open(fixture.folder)).transpose()?;
    for (i, row) in generated.iter().flatten().enumerate() {
        equal("new_token_ids", &row.ids, &expected[i])?;
        if let (Some(tokenizer), Some(texts)) = (&tokenizer, &texts) {
            equal("text", &tokenizer.decode(&row.ids, true)?, &texts[i])?;
        }
        for (got, expected) in row.log_probs.iter().zip(log_probs.iter().flat_map(|rows| &rows[i])) {
            number_close("token_logprobs", f64::from(*got), *expected, VALUES)?;
        }
        if let Some(scores) = &scores {
            number_close("sequence_scores", row.score.unwrap_or(f64::NAN), scores[i], VALUES)?;
        }
        let ends = if config.stop_ids.is_empty() { ends } else { &config.stop_ids };
        let stopped = row.ids.last().is_some_and(|id| ends.contains(id));
        equal("finish", &row.finish, &if stopped { Finish::Stop } else { Finish::Length })?;
        // A prompt on its own gives what it gave in the batch.
        let (prompt, sample) = (i / config.samples_per_prompt, i % config.samples_per_prompt);
        let alone = model.generate(&prompts[prompt..=prompt], config, &[])?;
        equal("the same prompt alone", &alone[0][sample].ids, &row.ids)?;
    }
    equal("rows", generated.iter().flatten().count(), expected.len())
}

/// Bounds like chi-square's on 2000 draws of a first token for each prompt, whose distribution is `expected`.
pub(super) fn draws(
    model: &impl Generate,
    prompts: &[Vec<TokenId>],
    sampling: Sampling,
    expected: &Tensor,
) -> Check {
    const DRAWS: usize = 2000;
    let config = GenerationConfig {
        strategy: Strategy::Sample(sampling),
        max_new_tokens: 1,
        samples_per_prompt: DRAWS,
        ..GenerationConfig::default()
    };
    let seeds: Vec<u64> = (0..prompts.len() as u64).collect();
    let expected: Vec<Vec<f64>> = Vec::try_from(expected.f_to_kind(Kind::Double)?)?;
    for (samples, expected) in model.generate(prompts, &config, &seeds)?.iter().zip(expected) {
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

/// The training runs of a folder; `open` gives a fresh model and the examples of a forward case.
pub(super) fn training<P: Policy>(
    fixture: &Fixture<'_>,
    outcome: &mut Outcome,
    open: impl Fn(&Value) -> Check<(P, Vec<Example>)>,
) -> Check {
    for (i, case) in fixture.json["train"].as_array().into_iter().flatten().enumerate() {
        let name = format!("train {i}");
        let settings = &case["settings"];
        let all = settings["weight_decay_on"].as_str().is_none_or(|on| !on.starts_with("matrices"));
        let decay_on = if all { DecayOn::All } else { DecayOn::Matrices };
        match optimizer(settings, &settings["optimizer"], decay_on)? {
            Some(config) => {
                let forward = &list(&fixture.json["forward"])?[parse::<usize>(&settings["forward_case"])?];
                let (model, examples) = open(forward)?;
                outcome.case(name, trained(&model, &examples, case, config));
            }
            None => outcome.pending(name),
        }
    }
    Ok(())
}

fn trained(model: &impl Policy, examples: &[Example], case: &Value, config: OptimizerConfig) -> Check {
    let settings = &case["settings"];
    let steps: u64 = parse(&settings["steps"])?;
    let schedule = schedule(settings["schedule"].as_str().unwrap_or("constant"), &serde_json::json!({}))?;
    let warmup = settings["warmup_steps"].as_u64().unwrap_or(0);
    let mut optimizer = config.build(model.parameters().named())?;
    let loss = || -> Check<Tensor> {
        let scores = model.score(examples, ScoreOptions::default())?;
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
            model.parameters().get(name).ok_or_else(|| Mismatch(format!("no parameter `{name}`")))?;
        let norm = number(&expected["norm"])?;
        number_close(name, parameter.f_norm()?.f_double_value(&[])?, norm, TRAIN_LOSS_RELATIVE * norm)?;
    }
    Ok(())
}
