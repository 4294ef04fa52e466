//! The forms that rows may have.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::read::{Row, each_row};
use super::{PromptRow, TextOrMessages};
use crate::preference::PairProblem;
use crate::teacher::Message;
use crate::{DialoguePreference, Error, Place, PreferenceExample, Preferences, Result, SupervisedExample};

/// The names of the fields in the rows of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// What is given to the model: a text, or messages.
    pub prompt: String,
    /// What it should write: a text, or messages.
    pub completion: String,
    /// A whole dialogue, in place of prompt and completion.
    pub messages: String,
    /// The better completion of a pair.
    pub chosen: String,
    /// The worse completion of a pair.
    pub rejected: String,
    /// The right answer, which rewards compare with.
    pub answer: String,
    /// How good a completion is, for reward-weighted regression.
    pub reward: String,
    /// Factor on the loss of a pair.
    pub weight: String,
    /// Where a pair comes from; metrics are also told by source.
    pub source: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            prompt: "prompt".into(),
            completion: "completion".into(),
            messages: "messages".into(),
            chosen: "chosen".into(),
            rejected: "rejected".into(),
            answer: "answer".into(),
            reward: "reward".into(),
            weight: "weight".into(),
            source: "source".into(),
        }
    }
}

impl Columns {
    fn supervised_row(&self) -> String {
        format!(r#"{{"{}": "What do bees make?", "{}": "Honey."}}"#, self.prompt, self.completion)
    }

    fn preference_row(&self) -> String {
        let Self { prompt, chosen, rejected, .. } = self;
        format!(r#"{{"{prompt}": "What do bees make?", "{chosen}": "Honey.", "{rejected}": "Bread."}}"#)
    }

    fn prompt_row(&self) -> String {
        format!(r#"{{"{}": "What do bees make?", "{}": "honey"}}"#, self.prompt, self.answer)
    }

    fn weighted_row(&self) -> String {
        let Self { prompt, completion, reward, .. } = self;
        format!(r#"{{"{prompt}": "What do bees make?", "{completion}": "Honey.", "{reward}": 1.0}}"#)
    }
}

/// An example with what its completion is worth.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedRow {
    /// The example.
    pub example: SupervisedExample,
    /// Its reward; finite.
    pub reward: f64,
}

/// Preferences between texts, or between dialogues.
#[derive(Debug, Clone, PartialEq)]
pub enum PreferenceRows {
    /// Texts.
    Texts(Vec<PreferenceExample>),
    /// Dialogues.
    Dialogues(Vec<DialoguePreference>),
}

/// Reads examples of fine-tuning: `prompt` with `completion`, both as texts or as messages, or `messages`. Forms may be mixed.
///
/// # Errors
/// A file that cannot be read, or a row of another form; the error says where, and what a row looks like.
pub fn read_supervised(path: &Path, columns: &Columns) -> Result<Vec<SupervisedExample>> {
    collect(path, &columns.supervised_row(), |row| supervised(row, columns))
}

/// Reads preferences. All prompts and completions are texts, or all are messages; pairs that cannot be trained on are left out and
/// counted. Without a prompt, dialogues begin with what both completions begin with.
///
/// # Errors
/// As [`read_supervised`].
pub fn read_preferences(
    path: &Path,
    columns: &Columns,
) -> Result<(PreferenceRows, BTreeMap<PairProblem, usize>)> {
    let (mut texts, mut dialogues) = (Preferences::default(), Preferences::default());
    let mut first: Option<(bool, Place)> = None;
    let example = columns.preference_row();
    each_row(path, |place, row| {
        let mut fields = Fields { row };
        let pair = preference(&mut fields, columns);
        let pair = pair.map_err(|reason| refuse(path, place, reason, &example))?;
        let is_text = matches!(pair, Pair::Text(_));
        let (kind, at) = *first.get_or_insert((is_text, place));
        if kind != is_text {
            let [own, other] = if is_text { ["texts", "messages"] } else { ["messages", "texts"] };
            let reason = format!("a pair of {own}, but {at} has {other}; put them into files of their own");
            return Err(refuse(path, place, reason, &example));
        }
        match pair {
            Pair::Text(pair) => texts.push(pair, PreferenceExample::problem),
            Pair::Dialogue(pair) => dialogues.push(pair, DialoguePreference::problem),
        }
        Ok(())
    })?;
    match first {
        None => Err(empty(path, &example)),
        Some((true, _)) => Ok((PreferenceRows::Texts(texts.examples), texts.left_out)),
        Some((false, _)) => Ok((PreferenceRows::Dialogues(dialogues.examples), dialogues.left_out)),
    }
}

/// Reads prompts with what is known about their answers: `prompt` as a text or as messages, or `messages`, of which a last message of the
/// assistant's is taken for the answer where there is no `answer`. An answer may be a number or a truth value, too.
///
/// # Errors
/// As [`read_supervised`].
pub fn read_prompts(path: &Path, columns: &Columns) -> Result<Vec<PromptRow>> {
    collect(path, &columns.prompt_row(), |row| prompt(row, columns))
}

/// Reads examples with a number that says how good the completion is.
///
/// # Errors
/// As [`read_supervised`]; also when a reward is missing.
pub fn read_weighted(path: &Path, columns: &Columns) -> Result<Vec<WeightedRow>> {
    collect(path, &columns.weighted_row(), |row| {
        let reward = row.number(&columns.reward)?;
        let reward = reward.ok_or_else(|| row.missing(&columns.reward))?;
        Ok(WeightedRow { example: supervised(row, columns)?, reward })
    })
}

fn collect<T>(
    path: &Path,
    example: &str,
    mut form: impl FnMut(&mut Fields) -> std::result::Result<T, String>,
) -> Result<Vec<T>> {
    let mut rows = vec![];
    each_row(path, |place, row| {
        let mut fields = Fields { row };
        rows.push(form(&mut fields).map_err(|reason| refuse(path, place, reason, example))?);
        Ok(())
    })?;
    if rows.is_empty() { Err(empty(path, example)) } else { Ok(rows) }
}

fn empty(path: &Path, example: &str) -> Error {
    Error::Rows { path: path.into(), reason: format!("has no rows; a row looks like {example}") }
}

/// A row whose fields are taken one by one.
struct Fields {
    row: Row,
}

impl Fields {
    /// A field that is there and not `null`.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.row.remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str) -> std::result::Result<Option<String>, String> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("`{name}` is {}, but must be a text", shown(&other))),
        }
    }

    fn number(&mut self, name: &str) -> std::result::Result<Option<f64>, String> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(format!("`{name}` is {}, but must be a number", shown(&value))),
            },
        }
    }

    fn text_or_messages(&mut self, name: &str) -> std::result::Result<Option<TextOrMessages>, String> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(TextOrMessages::Text(text))),
            Some(Value::Array(items)) => Ok(Some(TextOrMessages::Messages(messages(name, items)?))),
            Some(other) => {
                Err(format!("`{name}` is {}, but must be a text or a list of messages", shown(&other)))
            }
        }
    }

    fn messages(&mut self, name: &str) -> std::result::Result<Option<Vec<Message>>, String> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => messages(name, items).map(Some),
            Some(other) => Err(format!("`{name}` is {}, but must be a list of messages", shown(&other))),
        }
    }

    /// Says that a field is missing, and which one was meant, perhaps.
    fn missing(&self, name: &str) -> String {
        let near = |key: &&String| strsim::levenshtein(key, name) <= 2 || key.eq_ignore_ascii_case(name);
        match self.row.keys().find(near) {
            Some(key) => format!("`{name}` is missing; the row has `{key}`"),
            None if self.row.is_empty() => format!("`{name}` is missing"),
            None => {
                let keys: Vec<&str> = self.row.keys().map(String::as_str).take(8).collect();
                format!(
                    "`{name}` is missing; the row has `{}` (data.columns names other fields)",
                    keys.join("`, `")
                )
            }
        }
    }
}

fn refuse(path: &Path, place: Place, reason: String, example: &str) -> Error {
    Error::Row { path: path.into(), place, reason, example: example.into() }
}

/// A value as an error shows it.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn messages(name: &str, items: Vec<Value>) -> std::result::Result<Vec<Message>, String> {
    if items.is_empty() {
        return Err(format!("`{name}` has no message"));
    }
    let message = |(i, item): (usize, Value)| {
        let read = serde_json::from_value(item);
        read.map_err(|error| format!("`{name}[{i}]` is no message with role and content: {error}"))
    };
    items.into_iter().enumerate().map(message).collect()
}

fn is_answer(message: &Message) -> bool {
    message.role == "assistant"
}

fn supervised(row: &mut Fields, columns: &Columns) -> std::result::Result<SupervisedExample, String> {
    if let Some(messages) = row.messages(&columns.messages)? {
        if !messages.iter().any(is_answer) {
            return Err(format!("`{}` has no message of the assistant's to learn", columns.messages));
        }
        return Ok(SupervisedExample::Dialogue { messages });
    }
    let given = row.text_or_messages(&columns.prompt)?.ok_or_else(|| row.missing(&columns.prompt))?;
    let completion = row.text_or_messages(&columns.completion)?;
    let completion = completion.ok_or_else(|| row.missing(&columns.completion))?;
    Ok(match (given, completion) {
        (TextOrMessages::Text(prompt), TextOrMessages::Text(completion)) => {
            SupervisedExample::Completion { prompt, completion }
        }
        (TextOrMessages::Messages(prompt), TextOrMessages::Messages(completion)) => {
            SupervisedExample::Answer { prompt, completion }
        }
        (TextOrMessages::Messages(prompt), TextOrMessages::Text(text)) => {
            SupervisedExample::Answer { prompt, completion: vec![Message::new("assistant", text)] }
        }
        (TextOrMessages::Text(_), TextOrMessages::Messages(_)) => {
            let Columns { prompt, completion, .. } = columns;
            return Err(format!("`{completion}` is a list of messages, but `{prompt}` is a text"));
        }
    })
}

enum Pair {
    Text(PreferenceExample),
    Dialogue(DialoguePreference),
}

fn preference(row: &mut Fields, columns: &Columns) -> std::result::Result<Pair, String> {
    let given = row.text_or_messages(&columns.prompt)?;
    let completion =
        |row: &mut Fields, name: &str| row.text_or_messages(name)?.ok_or_else(|| row.missing(name));
    let (chosen, rejected) = (completion(row, &columns.chosen)?, completion(row, &columns.rejected)?);
    let weight = row.number(&columns.weight)?.unwrap_or(1.0) as f32;
    let source = row.text(&columns.source)?.unwrap_or_default();
    let Columns { prompt: name, .. } = columns;
    Ok(match (given, chosen, rejected) {
        (given, TextOrMessages::Text(chosen), TextOrMessages::Text(rejected)) => match given {
            Some(TextOrMessages::Text(prompt)) => {
                Pair::Text(PreferenceExample { prompt, chosen, rejected, weight, source })
            }
            Some(TextOrMessages::Messages(prompt)) => {
                let [chosen, rejected] = [chosen, rejected].map(|text| vec![Message::new("assistant", text)]);
                Pair::Dialogue(DialoguePreference { prompt, chosen, rejected, weight, source })
            }
            None => return Err(row.missing(name)),
        },
        (given, TextOrMessages::Messages(chosen), TextOrMessages::Messages(rejected)) => {
            let (prompt, chosen, rejected) = match given {
                Some(TextOrMessages::Messages(prompt)) => (prompt, chosen, rejected),
                Some(TextOrMessages::Text(_)) => {
                    return Err(format!("`{name}` is a text, but the completions are lists of messages"));
                }
                None => crate::preference::common_prompt(chosen, rejected),
            };
            Pair::Dialogue(DialoguePreference { prompt, chosen, rejected, weight, source })
        }
        _ => {
            let Columns { chosen, rejected, .. } = columns;
            return Err(format!(
                "one of `{chosen}` and `{rejected}` is a text and the other a list of messages"
            ));
        }
    })
}

fn prompt(row: &mut Fields, columns: &Columns) -> std::result::Result<PromptRow, String> {
    let mut answer = match row.take(&columns.answer) {
        None => None,
        Some(Value::String(text)) => Some(text),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Some(value.to_string()),
        Some(other) => {
            let name = &columns.answer;
            return Err(format!("`{name}` is {}, but must be a text or a number", shown(&other)));
        }
    };
    let prompt = match row.messages(&columns.messages)? {
        Some(mut messages) => {
            if let Some(last) = messages.pop_if(|last| is_answer(last)) {
                answer = answer.or(Some(last.content));
            }
            if messages.is_empty() {
                return Err(format!("`{}` has nothing but an answer", columns.messages));
            }
            TextOrMessages::Messages(messages)
        }
        None => row.text_or_messages(&columns.prompt)?.ok_or_else(|| row.missing(&columns.prompt))?,
    };
    Ok(PromptRow { prompt, answer, fields: std::mem::take(&mut row.row) })
}
