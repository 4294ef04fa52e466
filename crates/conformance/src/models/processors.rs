//! Logits processors on given logits.

use std::path::Path;

use ruminate_models::{History, Processor, SequenceBias, TokenId};
use serde_json::Value;
use tch::Tensor;

use super::{Fixture, close, list, name};
use crate::Outcome;
use crate::compare::Check;

pub(super) fn run(folder: &Path) -> Check<Outcome> {
    let fixture = Fixture::open(folder)?;
    let mut outcome = Outcome::default();
    for case in list(&fixture.json["cases"])? {
        let chain: Option<Vec<_>> = list(&case["chain"])?.iter().map(processor).collect();
        match chain {
            Some(chain) => outcome.case(name(case), processors_case(&fixture, case, &chain)),
            None => outcome.pending(name(case)),
        }
    }
    Ok(outcome)
}

/// A processor, and the leading tokens per row that it skips as padding.
type Step = (Processor, Option<Vec<i64>>);

/// `None` for a processor that this library does not know.
fn processor(step: &Value) -> Option<Step> {
    let (value, min_keep) = (&step["value"], step["min_tokens_to_keep"].as_u64().unwrap_or(1) as usize);
    let count = |key: &str| step[key].as_u64().map(|n| n as usize);
    let ids = |key: &str| match &step[key] {
        Value::Array(ids) => ids.iter().map(Value::as_i64).collect(),
        id => id.as_i64().map(|id| vec![id]),
    };
    let processor = match step["type"].as_str()? {
        "temperature" => Processor::Temperature(value.as_f64()?),
        // 0 is off.
        "top_k" if count("value")? == 0 => Processor::TopK(0),
        "top_k" => Processor::TopK(count("value")?.max(min_keep)),
        "top_p" => Processor::TopP { p: value.as_f64()?, min_keep },
        "min_p" => Processor::MinP(value.as_f64()?),
        "typical_p" => Processor::TypicalP(value.as_f64()?),
        "repetition_penalty" => Processor::RepetitionPenalty(value.as_f64()?),
        "no_repeat_ngram" => Processor::NoRepeatNgram(count("value")?),
        "min_length" => Processor::SuppressUntil { length: count("value")?, ids: ids("eos")? },
        "min_new_tokens" => {
            Processor::SuppressUntil { length: count("prompt_length")? + count("value")?, ids: ids("eos")? }
        }
        "bad_words" => {
            let words: Vec<Vec<TokenId>> = serde_json::from_value(value.clone()).ok()?;
            let never = |ids| SequenceBias { ids, bias: f64::NEG_INFINITY };
            Processor::SequenceBias(words.into_iter().map(never).collect())
        }
        "sequence_bias" => {
            let biases: Vec<(Vec<TokenId>, f64)> = serde_json::from_value(value.clone()).ok()?;
            Processor::SequenceBias(
                biases.into_iter().map(|(ids, bias)| SequenceBias { ids, bias }).collect(),
            )
        }
        "suppress_tokens" => Processor::Suppress(ids("value")?),
        "forced_eos" => Processor::ForceAt { length: count("max_length")? - 1, id: step["eos"].as_i64()? },
        _ => return None,
    };
    let padding = step["ignore_first"].as_array().map(|n| n.iter().filter_map(Value::as_i64).collect());
    Some((processor, padding))
}

fn processors_case(fixture: &Fixture<'_>, case: &Value, chain: &[Step]) -> Check {
    let mut logits = fixture.tensor(&case["input"])?;
    let tokens = fixture.tensor(&case["history"])?;
    let length = case["history_length"].as_i64().unwrap_or(tokens.size()[1]);
    let tokens = tokens.f_narrow(1, 0, length)?;
    for (processor, padding) in chain {
        let padding = padding.as_ref().map(|n| Tensor::f_from_slice(n)?.f_unsqueeze(1)).transpose()?;
        logits = processor.apply(&logits, History { tokens: &tokens, padding: padding.as_ref() })?;
    }
    close("output", &logits, &fixture.tensor(&case["output"])?, 1e-5)
}
