//! Logits processors on given logits.

use std::path::Path;

use ruminate_models::{Sampling, TokenId, filter_logits, forbid};
use serde_json::Value;
use tch::Tensor;

use super::{Fixture, close, list, name};
use crate::Outcome;
use crate::compare::Check;

pub(super) fn run(folder: &Path) -> Check<Outcome> {
    let fixture = Fixture::open(folder)?;
    let mut outcome = Outcome::default();
    for case in list(&fixture.json["cases"])? {
        let name = name(case);
        match processor_chain(case) {
            Some(chain) => outcome.case(name, processors_case(&fixture, case, &chain)),
            None => outcome.pending(name),
        }
    }
    Ok(outcome)
}

enum Processor {
    Filter(Sampling),
    Forbid(Vec<TokenId>),
}

/// The processors that this library knows; `None` when the chain holds another.
fn processor_chain(case: &Value) -> Option<Vec<Processor>> {
    case["chain"].as_array()?.iter().map(processor).collect()
}

fn processor(step: &Value) -> Option<Processor> {
    let known =
        |keys: &[&str]| step.as_object().is_some_and(|o| o.keys().all(|k| keys.contains(&k.as_str())));
    if !known(&["type", "value"]) {
        return None;
    }
    let value = &step["value"];
    let neutral = Sampling::default();
    match step["type"].as_str()? {
        "temperature" => Some(Processor::Filter(Sampling { temperature: value.as_f64()?, ..neutral })),
        "top_k" => Some(Processor::Filter(Sampling { top_k: Some(value.as_u64()? as usize), ..neutral })),
        "top_p" => Some(Processor::Filter(Sampling { top_p: Some(value.as_f64()?), ..neutral })),
        "suppress_tokens" => Some(Processor::Forbid(serde_json::from_value(value.clone()).ok()?)),
        _ => None,
    }
}

fn processors_case(fixture: &Fixture<'_>, case: &Value, chain: &[Processor]) -> Check {
    let mut logits = fixture.tensor(&case["input"])?;
    for step in chain {
        logits = match step {
            Processor::Filter(sampling) => filter_logits(&logits, sampling)?,
            Processor::Forbid(ids) => forbid(&logits, &Tensor::f_from_slice(ids)?)?,
        };
    }
    close("output", &logits, &fixture.tensor(&case["output"])?, 1e-5)
}
