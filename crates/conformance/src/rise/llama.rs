//! Rotary frequencies, and a tiny Llama that is trained with weights on its examples.

use std::collections::BTreeMap;
use std::path::Path;

use ruminate_algorithms::Schedule;
use ruminate_models::{Example, Llama, LlamaConfig, Policy, ScoreOptions, Side, TokenId};
use ruminate_torch::optim::{Adam, AdamConfig, Optimizer, clip_grad_norm};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::Outcome;
use crate::compare::{Check, Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};
use crate::references::f64s;

/// The tolerances that the files state in words.
const FREQUENCIES: Tolerance = Tolerance { absolute: 0.0, relative: 1e-6 };
const ANGLES: Tolerance = Tolerance { absolute: 2e-5, relative: 0.0 };
/// Of the logits before training; those after it agree as well.
const LOGITS: Tolerance = Tolerance { absolute: 1e-4, relative: 0.0 };
const LOSSES: Tolerance = Tolerance { absolute: 0.0, relative: 1e-3 };
fn config(keys: &Map<String, Value>) -> Check<LlamaConfig> {
    Ok(LlamaConfig::from_json(keys.clone(), Path::new("config"))?)
}

pub(super) fn rope(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        head_dim: i64,
        theta: f64,
        scaling: Value,
        max_position_embeddings: i64,
        attention_factor: f64,
        inv_freq: Vec<f64>,
        positions: Vec<i64>,
        cos: Vec<Vec<f64>>,
        sin: Vec<Vec<f64>>,
    }
    let file = GoldenFile::read(path)?;
    let cases = file.cases("cases", |case: Case| {
        // Both spellings of a configuration, and the oldest name of the type.
        let mut parameters = case.scaling.as_object().cloned().unwrap_or_default();
        let mut oldest = parameters.clone();
        if let Some(name) = oldest.remove("rope_type") {
            oldest.insert("type".into(), name);
        }
        parameters.insert("rope_theta".into(), json!(case.theta));
        let oldest = if oldest.is_empty() { Value::Null } else { Value::Object(oldest) };
        for spelling in [
            json!({"rope_theta": case.theta, "rope_scaling": case.scaling}),
            json!({"rope_theta": case.theta, "rope_scaling": oldest}),
            json!({"rope_parameters": parameters}),
        ] {
            let mut keys = json!({
                "vocab_size": 8, "hidden_size": case.head_dim, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 1, "max_position_embeddings": case.max_position_embeddings,
            });
            let keys = keys.as_object_mut().ok_or_else(|| Mismatch("no keys".into()))?;
            keys.extend(spelling.as_object().cloned().unwrap_or_default());
            let config = config(keys)?;
            let frequencies: Vec<f64> = config.rotary_frequencies()?.iter().map(|&f| f.into()).collect();
            FREQUENCIES.close("inv_freq", &frequencies, &case.inv_freq)?;
            let (cos, sin) = config.rotary(&Tensor::f_from_slice(&case.positions)?)?;
            let half = |t: &Tensor| -> Check<Vec<Vec<f64>>> {
                Ok(Vec::try_from(t.f_narrow(1, 0, case.head_dim / 2)?.f_to_kind(Kind::Double)?)?)
            };
            ANGLES.close_rows("cos", &half(&cos)?, &case.cos)?;
            ANGLES.close_rows("sin", &half(&sin)?, &case.sin)?;
        }
        equal("attention_factor", 1.0, case.attention_factor)
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

#[derive(Deserialize)]
struct Row {
    input_ids: Vec<TokenId>,
    train_from: usize,
    weight: f64,
}

impl Row {
    fn example(&self) -> Example {
        let (prompt, target) = self.input_ids.split_at(self.train_from.min(self.input_ids.len()));
        Example { prompt: prompt.to_vec(), target: target.to_vec() }
    }
}

#[derive(Deserialize)]
struct Step {
    micro_batches: Vec<Vec<usize>>,
    lr: f64,
    loss: f64,
    grad_norm: f64,
}

/// The file's own spelling of a configuration, and weights beside it.
fn open(file: &GoldenFile, path: &Path) -> Check<Llama> {
    let mut keys: Map<String, Value> = file.field("config")?;
    if let Some(rope) = keys.remove("rope") {
        keys.insert("rope_parameters".into(), rope);
    }
    let weights = path.with_file_name(file.field::<String>("weights_file")?);
    let folder = tempfile::tempdir().map_err(|e| Mismatch(e.to_string()))?;
    std::fs::copy(&weights, folder.path().join(ruminate_models::checkpoint::WEIGHTS))
        .map_err(|e| Mismatch(format!("{}: {e}", weights.display())))?;
    Ok(Llama::load_with(config(&keys)?, folder.path(), Kind::Float, Device::Cpu)?)
}

fn logits(llama: &Llama, row: &Row) -> Check<Vec<Vec<f64>>> {
    let batch = llama.batch(&[&row.input_ids], Side::Right)?;
    let logits = tch::no_grad(|| llama.logits(&llama.forward(&batch)?))?;
    Ok(Vec::try_from(logits.f_squeeze_dim(0)?.f_to_kind(Kind::Double)?)?)
}

/// The mean over a micro-batch of weight times mean negative log-likelihood.
fn loss(llama: &Llama, rows: &[&Row]) -> Check<Tensor> {
    let examples: Vec<Example> = rows.iter().map(|row| row.example()).collect();
    let scores = llama.score(&examples, ScoreOptions::default())?;
    let sums = scores.log_probs.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
    let counts = scores.labels.mask.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
    let weights: Vec<f32> = rows.iter().map(|row| row.weight as f32).collect();
    Ok(sums.f_div(&counts)?.f_mul(&Tensor::f_from_slice(&weights)?)?.f_mean(Kind::Float)?.f_neg()?)
}

pub(super) fn training(path: &Path) -> Result<Outcome, GoldenError> {
    let file = GoldenFile::read(path)?;
    let mut outcome = Outcome::default();
    let rows: Vec<Row> = file.field("examples")?;
    let first = rows
        .first()
        .ok_or_else(|| GoldenError::Unusable { path: path.into(), reason: "there is no example".into() })?;
    let initial = || {
        LOGITS.close_rows(
            "logits",
            &logits(&open(&file, path)?, first)?,
            &file.field::<Vec<_>>("initial_logits_example0")?,
        )
    };
    outcome.case("initial logits", initial());
    for recompute in [false, true] {
        let name = if recompute { "training with checkpointed activations" } else { "training" };
        outcome.case(name, trained(&file, path, &rows, recompute));
    }
    Ok(outcome)
}

fn trained(file: &GoldenFile, path: &Path, rows: &[Row], recompute: bool) -> Check {
    let mut llama = open(file, path)?;
    llama.set_gradient_checkpointing(recompute);
    let trace: Vec<Step> = file.field("trace")?;
    let steps = trace.len() as u64;
    let warmup = (0.04 * steps as f64).ceil() as u64;
    let adam = AdamConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, ..AdamConfig::default() };
    let mut optimizer = Adam::new(llama.parameters().named(), adam)?;
    // The rate of the first step after the warm-up is the largest.
    let peak = trace.iter().map(|step| step.lr).fold(0.0, f64::max);
    for (i, step) in trace.iter().enumerate() {
        let at = |what: &str| format!("{what} at step {i}");
        let lr = Schedule::Cosine { cycles: 0.5 }.lr(peak, i as u64, warmup, steps);
        Tolerance { absolute: 1e-12, relative: 1e-6 }.close(&at("lr"), &[lr], &[step.lr])?;
        optimizer.zero_grad()?;
        let share = 1.0 / step.micro_batches.len() as f64;
        let mut total = 0.0;
        for batch in &step.micro_batches {
            let batch: Option<Vec<&Row>> = batch.iter().map(|&row| rows.get(row)).collect();
            let batch = batch.ok_or_else(|| Mismatch(at("a row that is not there")))?;
            let loss = loss(&llama, &batch)?.f_mul_scalar(share)?;
            total += loss.f_double_value(&[])?;
            loss.f_backward()?;
        }
        LOSSES.close(&at("loss"), &[total], &[step.loss])?;
        let norm = clip_grad_norm(optimizer.parameters(), 1.0)?.f_double_value(&[])?;
        LOSSES.close(&at("grad_norm"), &[norm], &[step.grad_norm])?;
        optimizer.step(lr)?;
    }
    LOGITS.close_rows(
        "final logits",
        &logits(&llama, &rows[0])?,
        &file.field::<Vec<_>>("final_logits_example0")?,
    )?;
    for (name, want) in file.field::<BTreeMap<String, f64>>("final_param_l2")? {
        let parameter = llama.parameters().get(&name);
        let parameter = parameter.ok_or_else(|| Mismatch(format!("no parameter `{name}`")))?;
        LOSSES.close(&name, &f64s(&parameter.f_norm()?)?, &[want])?;
    }
    Ok(())
}
