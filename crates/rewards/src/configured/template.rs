//! Texts with places for the fields of a row.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use ruminate_datasets::rows::TextOrMessages;
use serde_json::Value;

use super::Answered;

static PLACES: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\{([A-Za-z_][A-Za-z0-9_]*)\}").expect("the pattern is right"));

/// The names in a template.
pub(super) fn places(template: &str) -> impl Iterator<Item = &str> {
    PLACES.captures_iter(template).filter_map(|place| place.get(1)).map(|name| name.as_str())
}

/// Puts the response in the place of `{completion}`, and fields of its row in the places of their names. All other text stays.
pub(super) fn fill(template: &str, sample: &Answered<'_>) -> Result<String, String> {
    let mut problem = None;
    let text = PLACES.replace_all(template, |place: &Captures<'_>| {
        value(&place[1], sample).unwrap_or_else(|reason| {
            problem.get_or_insert(reason);
            String::new()
        })
    });
    match problem {
        Some(reason) => Err(reason),
        None => Ok(text.into_owned()),
    }
}

fn value(name: &str, sample: &Answered<'_>) -> Result<String, String> {
    let row = sample.row;
    match name {
        "completion" => return Ok(sample.text.to_owned()),
        "prompt" => {
            return match &row.prompt {
                TextOrMessages::Text(text) => Ok(text.clone()),
                TextOrMessages::Messages(_) => {
                    Err("the row's `prompt` is a dialogue, which {prompt} cannot stand for; name a field with a text".into())
                }
            };
        }
        "answer" => {
            return row
                .answer
                .clone()
                .ok_or_else(|| "the row has no `answer`, which {answer} stands for".into());
        }
        _ => {}
    }
    match row.fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(_) => Err(format!("the row's `{name}` is neither a text nor a number")),
        None => {
            let known: Vec<&str> = row.fields.keys().map(String::as_str).collect();
            Err(format!(
                "the row has no `{name}`, which {{{name}}} stands for; its fields are prompt, completion, answer{}{}",
                if known.is_empty() { "" } else { ", " },
                known.join(", ")
            ))
        }
    }
}
