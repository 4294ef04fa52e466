//! Kinds `convert` and `label_mask`: what is trained, and how much.

use std::collections::BTreeMap;
use std::path::Path;

use ruminate_datasets::chat::{ChatTemplate, NamedTemplate, trained_tokens};
use ruminate_datasets::environments::{Benchmark, Compat, DEMONSTRATION};
use ruminate_datasets::rise::{
    self, ConvertConfig, Criterion, Layout, Log, TrainingExample, TrainingText, Utterance, training_text,
};
use serde::Deserialize;

use super::MODES;
use crate::Outcome;
use crate::compare::{Mismatch, Tolerance, equal};
use crate::file::{GoldenError, GoldenFile};

pub(super) fn convert(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        log: String,
        env: Benchmark,
        criteria: Criterion,
        remove_duplication: bool,
        only_success: bool,
        temperature: f64,
        examples: Vec<Example>,
    }
    #[derive(Deserialize)]
    struct Example {
        id: String,
        reward: f64,
        messages: Vec<(String, String, f64)>,
    }
    #[derive(Deserialize)]
    struct Weight {
        reward: f64,
        temperature: f64,
        weight: f64,
    }
    let file = GoldenFile::read(path)?;
    let logs: BTreeMap<String, Log> = file.field("logs")?;
    // Weights are written with ten digits.
    let tolerance = file.tolerance_or(Tolerance { absolute: 1e-9, relative: 1e-9 })?;
    let mut cases = file.cases("cases", |case: Case| {
        let log = logs.get(&case.log).ok_or_else(|| Mismatch(format!("log {}: missing", case.log)))?;
        let config = ConvertConfig {
            criterion: case.criteria,
            only_success: case.only_success,
            remove_duplicates: case.remove_duplication,
            shuffle: false,
            tau: case.temperature,
            ..ConvertConfig::default()
        };
        for (compat, _) in MODES {
            let got = rise::convert(log, &*case.env.environment(compat), &config);
            equal("examples", got.examples.len(), case.examples.len())?;
            for ((got, reward), want) in got.examples.iter().zip(&got.rewards).zip(&case.examples) {
                equal("id", &got.id, &want.id)?;
                equal("reward", *reward, want.reward)?;
                let demonstration = got.conversations.iter().take(2);
                equal(
                    "demonstration",
                    demonstration
                        .map(|said| (said.from.as_str(), said.value.as_str(), said.loss))
                        .collect::<Vec<_>>(),
                    vec![("human", DEMONSTRATION[0], 0.0), ("gpt", DEMONSTRATION[1], 0.0)],
                )?;
                let messages = &got.conversations[2..];
                equal("messages", messages.len(), want.messages.len())?;
                for (said, (from, value, loss)) in messages.iter().zip(&want.messages) {
                    equal("message", (&said.from, &said.value), (from, value))?;
                    tolerance.close("loss", &[said.loss], &[*loss])?;
                }
            }
        }
        Ok(())
    })?;
    cases.extend(file.cases("weights", |case: Weight| {
        let config = ConvertConfig { tau: case.temperature, ..ConvertConfig::default() };
        tolerance.close("weight", &[config.weight(case.reward)], &[case.weight])
    })?);
    Ok(Outcome { cases, ..Outcome::default() })
}

pub(super) fn label_mask(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        layout: Layout,
        #[serde(default)]
        template: Option<String>,
        messages: Vec<(String, String, f64)>,
        #[serde(default)]
        max_length: Option<usize>,
        text: String,
        trained_spans: Vec<(usize, usize)>,
        weight: f64,
        #[serde(default)]
        attended: Option<usize>,
        #[serde(default)]
        fixed_spans: Option<Vec<(usize, usize)>>,
        #[serde(default)]
        fixed_weight: Option<f64>,
    }
    let file = GoldenFile::read(path)?;
    // The reference keeps weights in single precision.
    let tolerance = file.tolerance_or(Tolerance { absolute: 0.0, relative: 1e-6 })?;
    let cases = file.cases("cases", |case: Case| {
        let template: NamedTemplate = case.template.as_deref().unwrap_or("zephyr").parse()?;
        let said = |(from, value, loss): &(String, String, f64)| Utterance {
            from: from.clone(),
            value: value.clone(),
            loss: *loss,
        };
        let example =
            TrainingExample { id: String::new(), conversations: case.messages.iter().map(said).collect() };
        for (compat, mode) in MODES {
            let text = training_text(&example, &ChatTemplate::from(template), case.layout, compat)?;
            let tokens = Characters::of(&text, case.max_length);
            let (spans, weight) = match compat {
                Compat::Reference => (&case.trained_spans, case.weight),
                Compat::Fixed => (
                    case.fixed_spans.as_ref().unwrap_or(&case.trained_spans),
                    case.fixed_weight.unwrap_or(case.weight),
                ),
            };
            equal("text", &tokens.text, &case.text)?;
            equal(&format!("trained_spans ({mode})"), &tokens.trained, spans)?;
            tolerance.close(&format!("weight ({mode})"), &[text.weight], &[weight])?;
            if let Some(attended) = case.attended {
                equal("attended", tokens.text.chars().count() + 1, attended)?;
            }
        }
        Ok(())
    })?;
    Ok(Outcome { cases, ..Outcome::default() })
}

/// A text under a tokenizer of single characters with a begin token.
struct Characters {
    text: String,
    /// Ranges of characters.
    trained: Vec<(usize, usize)>,
}

impl Characters {
    fn of(text: &TrainingText, max_length: Option<usize>) -> Self {
        let kept = max_length.map_or(usize::MAX, |length| length.saturating_sub(1));
        let offsets: Vec<_> =
            text.text.char_indices().map(|(at, c)| at..at + c.len_utf8()).take(kept).collect();
        let mut trained: Vec<(usize, usize)> = vec![];
        for (i, is_trained) in trained_tokens(&offsets, &text.spans).into_iter().enumerate() {
            match trained.last_mut().filter(|(_, end)| *end == i) {
                _ if !is_trained => {}
                Some((_, end)) => *end = i + 1,
                None => trained.push((i, i + 1)),
            }
        }
        Self { text: text.text.chars().take(kept).collect(), trained }
    }
}
