//! Topic `models`: tiny checkpoints in the Hugging Face layout and the numbers that transformers gives for them, one
//! folder each.

mod checkpoints;
mod llama;
mod optim;
mod processors;
mod t5;
mod tokenization;
mod vera;

use std::path::Path;

use ruminate_algorithms::Schedule;
use ruminate_torch::optim::{AdamConfig, Decay, DecayOn, OptimizerConfig};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::compare::{Check, Mismatch};
use crate::file::{GoldenError, GoldenFile};
use crate::references::References;
use crate::runner::name_of;
use crate::{KindFn, Outcome};

/// Tolerances of the fixtures' README, which their files do not repeat.
const VALUES: f64 = 1e-4;
const OPTIMIZER: f64 = 1e-5;
const ADAFACTOR_OPTIMIZER: f64 = 1e-4;

/// Runners of folders: three that are known by name, and checkpoints by the architecture that their `cases.json` names.
pub const KINDS: &[(&str, KindFn)] = &[
    ("tokenization", |folder| usable(folder, tokenization::run)),
    ("optim", |folder| usable(folder, optim::run)),
    ("processors", |folder| usable(folder, processors::run)),
    ("llama", |folder| usable(folder, llama::run)),
    ("mistral", |folder| usable(folder, llama::run)),
    ("qwen2", |folder| usable(folder, llama::run)),
    ("qwen3", |folder| usable(folder, llama::run)),
    ("t5", |folder| usable(folder, t5::run)),
    ("vera", |folder| usable(folder, vera::run)),
];

/// The kind of a folder: its architecture, or else its name.
pub fn kind_of(folder: &Path) -> String {
    let cases = GoldenFile::read(&folder.join("cases.json")).ok();
    let architecture = cases.as_ref().and_then(|cases| cases.content()["kind"].as_str());
    architecture.map_or_else(|| name_of(folder), str::to_owned)
}

/// Outside the cases, whatever goes wrong makes the folder unusable.
fn usable(folder: &Path, run: fn(&Path) -> Check<Outcome>) -> Result<Outcome, GoldenError> {
    run(folder).map_err(|Mismatch(reason)| GoldenError::Unusable { path: folder.into(), reason })
}

/// A `cases.json` and the tensors beside it.
struct Fixture<'a> {
    folder: &'a Path,
    json: Value,
    tensors: References,
}

impl<'a> Fixture<'a> {
    fn open(folder: &'a Path) -> Result<Self, GoldenError> {
        let json = GoldenFile::read(&folder.join("cases.json"))?.content().clone();
        Ok(Self { folder, json, tensors: References::open(&folder.join("reference.safetensors"))? })
    }

    /// The tensor that a string of `cases.json` names.
    fn tensor(&self, name: &Value) -> Check<Tensor> {
        Ok(self.tensors.tensor(text(name)?)?)
    }
}

fn text(value: &Value) -> Check<&str> {
    value.as_str().ok_or_else(|| Mismatch(format!("expected a string, found {value}")))
}

fn number(value: &Value) -> Check<f64> {
    value.as_f64().ok_or_else(|| Mismatch(format!("expected a number, found {value}")))
}

fn list(value: &Value) -> Check<&Vec<Value>> {
    value.as_array().ok_or_else(|| Mismatch(format!("expected a list, found {value}")))
}

fn parse<T: serde::de::DeserializeOwned>(value: &Value) -> Check<T> {
    serde_json::from_value(value.clone()).map_err(|e| Mismatch(format!("unexpected value: {e}")))
}

fn name(case: &Value) -> String {
    case["name"].as_str().unwrap_or("?").to_owned()
}

/// Fails when the largest absolute difference exceeds the tolerance or the shapes differ.
fn close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) -> Check {
    if got.size() != expected.size() {
        return Err(Mismatch(format!("{what}: shape {:?}, expected {:?}", got.size(), expected.size())));
    }
    if got.numel() == 0 {
        return Ok(());
    }
    let difference = (got.f_to_kind(Kind::Double)? - expected.f_to_kind(Kind::Double)?).f_abs()?;
    // Equal infinities differ by NaN; anything else that is not a number is a failure.
    let same = got.f_eq_tensor(expected)?;
    let largest = difference.f_masked_fill(&same, 0.0)?.f_max()?.f_double_value(&[])?;
    number_close(what, largest, 0.0, tolerance)
}

fn number_close(what: &str, got: f64, expected: f64, tolerance: f64) -> Check {
    // Written so that a NaN fails.
    if (got - expected).abs() <= tolerance {
        return Ok(());
    }
    Err(Mismatch(format!("{what}: {got}, expected {expected} within {tolerance:e}")))
}

fn schedule(name: &str, args: &Value) -> Check<Schedule> {
    Ok(match name {
        "linear" => Schedule::Linear,
        "constant" | "constant_with_warmup" => Schedule::Constant,
        "cosine" => Schedule::Cosine { cycles: args["num_cycles"].as_f64().unwrap_or(0.5) },
        "cosine_with_restarts" => {
            Schedule::CosineWithRestarts { cycles: args["num_cycles"].as_u64().unwrap_or(1) }
        }
        "polynomial" => Schedule::Polynomial {
            lr_end: args["lr_end"].as_f64().unwrap_or(1e-7),
            power: args["power"].as_f64().unwrap_or(1.0),
        },
        "inverse_sqrt" => Schedule::InverseSqrt { timescale: args["timescale"].as_u64() },
        other => return Err(Mismatch(format!("schedule `{other}` is not known"))),
    })
}

/// Settings of an optimizer; `None` for one that this library does not know.
fn optimizer(settings: &Value, kind: &Value, decay_on: DecayOn) -> Check<Option<OptimizerConfig>> {
    Ok(match text(kind)? {
        "adam" | "adamw" => Some(OptimizerConfig::Adam(adam_config(settings, kind, decay_on)?)),
        "adafactor" => {
            let mut known = settings.as_object().cloned().unwrap_or_default();
            known.retain(|key, _| ADAFACTOR.contains(&key.as_str()));
            Some(OptimizerConfig::Adafactor(parse(&Value::Object(known))?))
        }
        _ => None,
    })
}

/// The settings of Adafactor, among those of a training run.
const ADAFACTOR: [&str; 8] = [
    "eps",
    "clip_threshold",
    "decay_rate",
    "beta1",
    "weight_decay",
    "scale_parameter",
    "relative_step",
    "warmup_init",
];

/// The tolerance on parameters; the fixtures' README gives Adafactor another one.
fn parameter_tolerance(config: &OptimizerConfig) -> f64 {
    if matches!(config, OptimizerConfig::Adafactor(_)) { ADAFACTOR_OPTIMIZER } else { OPTIMIZER }
}

/// Settings of Adam or AdamW; `kind` says which.
fn adam_config(settings: &Value, kind: &Value, decay_on: DecayOn) -> Check<AdamConfig> {
    let [beta1, beta2]: [f64; 2] = parse(&settings["betas"])?;
    Ok(AdamConfig {
        beta1,
        beta2,
        eps: number(&settings["eps"])?,
        weight_decay: number(&settings["weight_decay"])?,
        decay: if kind == "adam" { Decay::L2 } else { Decay::Decoupled },
        decay_on,
    })
}
