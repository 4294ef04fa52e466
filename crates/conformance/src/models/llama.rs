//! Llama, Mistral and Qwen checkpoints: forward passes, gradients, rotary positions, generation, training.

use std::path::Path;

use ruminate_models::{
    Batch, Example, Generate, GenerationConfig, IGNORED, Llama, LlamaConfig, Policy, RopeScaling, Sampling,
    ScoreOptions, TokenId, filter_logits,
};
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
    for config in &configs {
        let read = LlamaConfig::open(&folder.join(config))?;
        let llama = Llama::load_with(read, folder, Kind::Float, Device::Cpu)?;
        for case in list(&fixture.json["forward"])? {
            outcome.case(format!("{config}/{}", name(case)), forward(&fixture, &llama, case));
        }
        outcome.case(format!("{config}/rope"), rope(&fixture, llama.config()));
    }
    let llama = Llama::load(folder, Kind::Float, Device::Cpu)?;
    outcome.case("parameters", parameters(&fixture, &llama));
    outcome.case("save and load", round_trip(&llama));
    let generate = &fixture.json["generate"];
    // The file generates with these, whatever the configuration says.
    let writer = Ending { llama: &llama, ends: one_or_many(&generate["eos_token_id"])? };
    for case in list(&generate["cases"])? {
        checkpoints::generation(&fixture, &writer, case, &writer.ends, &mut outcome);
    }
    for (i, case) in list(&generate["first_token_distributions"])?.iter().enumerate() {
        outcome.case(format!("first_token_distribution {i}"), first_token(&fixture, &llama, case));
    }
    checkpoints::training(&fixture, &mut outcome, |forward| {
        let examples = examples(&fixture, forward)?;
        let reason = "the labels of a row do not end it, so that prompt and target cannot be told apart";
        let examples = examples.ok_or_else(|| Mismatch(reason.into()))?;
        Ok((Llama::load(folder, Kind::Float, Device::Cpu)?, examples))
    })?;
    Ok(outcome)
}

fn one_or_many(value: &Value) -> Check<Vec<TokenId>> {
    match value {
        Value::Array(_) => parse(value),
        _ => Ok(vec![parse(value)?]),
    }
}

/// A model with other end tokens.
struct Ending<'a> {
    llama: &'a Llama,
    ends: Vec<TokenId>,
}

impl Generate for Ending<'_> {
    fn generate(
        &self,
        prompts: &[Vec<TokenId>],
        config: &GenerationConfig,
        seeds: &[u64],
    ) -> ruminate_models::Result<Vec<Vec<ruminate_models::Generated>>> {
        let mut config = config.clone();
        if config.stop_ids.is_empty() {
            config.stop_ids.clone_from(&self.ends);
        }
        self.llama.generate(prompts, &config, seeds)
    }
}

fn batch(fixture: &Fixture<'_>, case: &Value) -> Check<Batch> {
    let (ids, mask) = (fixture.tensor(&case["input_ids"])?, fixture.tensor(&case["attention_mask"])?);
    Ok(Batch { ids, mask, tokens: 0 })
}

/// Prompts and targets, where all rows end with their labels.
fn examples(fixture: &Fixture<'_>, case: &Value) -> Check<Option<Vec<Example>>> {
    let mask = fixture.tensor(&case["attention_mask"])?;
    let ids = rows(&fixture.tensor(&case["input_ids"])?, &mask)?;
    let labels = rows(&fixture.tensor(&case["labels"])?, &mask)?;
    let split = |(ids, labels): (Vec<TokenId>, Vec<TokenId>)| {
        let first = labels.iter().position(|&label| label != IGNORED)?;
        let whole = first > 0 && labels[first..] == ids[first..];
        whole.then(|| Example { prompt: ids[..first].to_vec(), target: ids[first..].to_vec() })
    };
    Ok(ids.into_iter().zip(labels).map(split).collect())
}

fn forward(fixture: &Fixture<'_>, llama: &Llama, case: &Value) -> Check {
    let batch = batch(fixture, case)?;
    let real = batch.mask.f_ne(0)?;
    let at = |t: &Tensor, places: &Tensor| t.f_masked_select(&places.f_unsqueeze(2)?);
    let mut trace = vec![];
    // With gradients, and without.
    let mut pass = || -> Check<Tensor> {
        trace = vec![];
        let states = llama.forward_traced(&batch, Some(&mut trace))?;
        let logits = llama.logits(&states)?;
        close("logits", &at(&logits, &real)?, &at(&fixture.tensor(&case["logits"])?, &real)?, VALUES)?;
        Ok(states)
    };
    let _ = tch::no_grad(&mut pass)?;
    let states = pass()?;
    for (name, expected) in case["hidden"].as_object().into_iter().flatten() {
        let embedded = llama.embed(&batch.ids)?;
        let got = match name.as_str() {
            "embed" => Some(&embedded),
            "final_norm" => Some(&states),
            other => {
                other.strip_prefix("layer").and_then(|n| n.parse::<usize>().ok()).and_then(|n| trace.get(n))
            }
        };
        let got = got.ok_or_else(|| Mismatch(format!("no such hidden state: {name}")))?;
        close(name, &at(got, &real)?, &at(&fixture.tensor(expected)?, &real)?, VALUES)?;
    }
    let labels = fixture.tensor(&case["labels"])?;
    let time = labels.size()[1];
    let (behind, next) = (states.f_narrow(1, 0, time - 1)?, labels.f_narrow(1, 1, time - 1)?);
    let labelled = next.f_ne(IGNORED)?;
    let hidden = at(&behind, &labelled)?.f_view_([-1, states.size()[2]])?;
    let (weight, _) = llama.output_projection().ok_or_else(|| Mismatch("no output matrix".into()))?;
    let targets = next.f_masked_select(&labelled)?;
    let scores = ruminate_torch::log_probs(&hidden, weight, &targets, 1.0, true)?;
    let entropy = scores.entropy.ok_or_else(|| Mismatch("no entropy".into()))?;
    for (key, got) in [("token_logprobs", &scores.log_probs), ("token_entropy", &entropy)] {
        close(key, got, &fixture.tensor(&case[key])?.f_masked_select(&labelled)?, VALUES)?;
    }
    let loss = scores.log_probs.f_mean(Kind::Float)?.f_neg()?;
    number_close("loss", loss.f_double_value(&[])?, number(&case["loss"])?, LOSS)?;
    checkpoints::gradients(fixture, llama.parameters(), case, &loss)?;
    match examples(fixture, case)? {
        Some(examples) => scored(fixture, llama, case, &examples, &entropy, &scores.log_probs),
        None => Ok(()),
    }
}

/// The same numbers through the interface that losses use, with gradients.
fn scored(
    fixture: &Fixture<'_>,
    llama: &Llama,
    case: &Value,
    examples: &[Example],
    entropy: &Tensor,
    log_probs: &Tensor,
) -> Check {
    let scores = llama.score(examples, ScoreOptions { entropy: true, states: false })?;
    let here = scores.labels.ids.f_ne(IGNORED)?;
    let got = scores.entropy.as_ref().ok_or_else(|| Mismatch("no entropy".into()))?;
    close("entropy of score", &got.f_masked_select(&here)?, entropy, VALUES)?;
    close("log-probabilities of score", &scores.log_probs.f_masked_select(&here)?, log_probs, VALUES)?;
    let sums: Vec<f64> = parse(&case["sequence_logprob_sum"])?;
    let got = scores.log_probs.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
    close("sequence_logprob_sum", &got, &Tensor::f_from_slice(&sums)?, VALUES * 10.0)?;
    equal("label_count", scores.labels.count, parse::<Vec<u64>>(&case["label_count"])?.iter().sum::<u64>())?;
    let loss = scores.log_probs.f_sum(Kind::Float)?.f_div_scalar(-(scores.labels.count as f64))?;
    number_close("loss of score", loss.f_double_value(&[])?, number(&case["loss"])?, LOSS)?;
    checkpoints::gradients(fixture, llama.parameters(), case, &loss)
}

fn rope(fixture: &Fixture<'_>, config: &LlamaConfig) -> Check {
    let case = &fixture.json["rope"];
    let factor = match config.rope_scaling {
        RopeScaling::Yarn { attention_factor, .. } => attention_factor,
        _ => 1.0,
    };
    number_close("attention_scaling", factor, number(&case["attention_scaling"])?, 1e-12)?;
    let frequencies = Tensor::f_from_slice(&config.rotary_frequencies()?)?;
    close("inv_freq", &frequencies, &fixture.tensor(&case["inv_freq"])?, 1e-6)?;
    let positions = Tensor::f_arange(parse::<i64>(&case["positions"])?, (Kind::Int64, Device::Cpu))?;
    let (cos, sin) = config.rotary(&positions)?;
    close("cos", &cos, &fixture.tensor(&case["cos"])?, VALUES)?;
    close("sin", &sin, &fixture.tensor(&case["sin"])?, VALUES)
}

fn parameters(fixture: &Fixture<'_>, llama: &Llama) -> Check {
    let Some(expected) = fixture.json["parameters"].as_object() else { return Ok(()) };
    // The file may hold more, such as the frequencies that old versions stored.
    llama.parameters().iter().try_for_each(|(name, tensor)| {
        let shape = expected.get(name).map(parse::<Vec<i64>>).transpose()?;
        equal(name, Some(tensor.size()), shape)
    })
}

fn round_trip(llama: &Llama) -> Check {
    let folder = tempfile::tempdir().map_err(|e| Mismatch(e.to_string()))?;
    llama.save(folder.path())?;
    let back = Llama::load(folder.path(), Kind::Float, Device::Cpu)?;
    equal("config", back.config(), llama.config())?;
    llama.parameters().iter().try_for_each(|(name, tensor)| {
        let other = back.parameters().get(name).ok_or_else(|| Mismatch(format!("`{name}` was lost")))?;
        close(name, other, tensor, 0.0)
    })
}

fn first_token(fixture: &Fixture<'_>, llama: &Llama, case: &Value) -> Check {
    let batch = batch(fixture, &fixture.json["generate"])?;
    let sampling: Sampling = parse(&case["settings"])?;
    // Prompts are padded on the left.
    let last = batch.ids.size()[1] - 1;
    let logits = tch::no_grad(|| llama.logits(&llama.forward(&batch)?.f_select(1, last)?))?;
    let probs = filter_logits(&logits, &sampling)?.f_softmax(-1, Kind::Float)?;
    let expected = &fixture.tensor(&case["probs"])?;
    close("probs", &probs, expected, VALUES)?;
    let support = |t: &Tensor| t.f_gt(0.0)?.f_to_kind(Kind::Float);
    close("support", &support(&probs)?, &support(expected)?, 0.0)?;
    checkpoints::draws(llama, &rows(&batch.ids, &batch.mask)?, sampling, expected)
}
