//! The forms that rows may have.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::columns::{Column, Columns};
use super::fields::{Field, Fields, shown};
use super::read::each_row;
use super::{PreferenceFile, PreferenceRows, PromptRow, TextOrMessages, WeightedRow};
use crate::preference::{PairProblem, common_prompt};
use crate::teacher::Message;
use crate::{DialoguePreference, Error, Place, PreferenceExample, Result, SupervisedExample};

/// Reads examples of fine-tuning: `prompt` with `completion`, both as texts or as messages, or `messages`. Forms may be mixed. A prompt of
/// messages may have a text as its completion: what the assistant says. Where a row has a completion, its `messages` are ignored.
///
/// # Errors
/// A file that cannot be read or has no rows, or a row of another form; the error says where, and what a row looks like.
///
/// # Example
/// ```
/// use ruminate_datasets::rows::{Columns, read_supervised};
/// # let folder = tempfile::tempdir()?;
/// let path = folder.path().join("train.jsonl");
/// std::fs::write(&path, r#"{"question": "What do bees make? ", "completion": "honey"}"#)?;
/// let columns = Columns { prompt: "question".into(), ..Columns::default() };
/// assert_eq!(read_supervised(&path, &columns)?.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_supervised(path: &Path, columns: &Columns) -> Result<Vec<SupervisedExample>> {
    supervised_rows(path, columns, usize::MAX)
}

/// Reads preferences. All prompts and completions are texts, or all are messages; pairs that cannot be trained on are left out and
/// counted. Without a prompt, dialogues begin with what both completions begin with.
///
/// # Errors
/// As [`read_supervised`]; also a pair of texts in a file whose first pair has messages, and the other way round.
pub fn read_preferences(path: &Path, columns: &Columns) -> Result<PreferenceFile> {
    let (pairs, left_out) = pairs(path, columns, usize::MAX)?;
    Ok(PreferenceFile { pairs: PreferenceRows::of_one_kind(pairs), left_out })
}

/// Reads prompts with what is known about their answers: `prompt` as a text or as messages, or else `messages`. When the last of these is
/// the assistant's, it is no part of the prompt, and is the answer of a row without `answer`. An answer may be a number or a truth value, too;
/// it becomes the text that JSON has for it. All other fields stay as they are.
///
/// # Errors
/// As [`read_supervised`].
pub fn read_prompts(path: &Path, columns: &Columns) -> Result<Vec<PromptRow>> {
    prompt_rows(path, columns, usize::MAX)
}

/// Reads examples with a number that says how good the completion is.
///
/// # Errors
/// As [`read_supervised`]; also when a reward is missing or is no finite number.
pub fn read_weighted(path: &Path, columns: &Columns) -> Result<Vec<WeightedRow>> {
    weighted_rows(path, columns, usize::MAX)
}

pub(super) fn supervised_rows(
    path: &Path,
    columns: &Columns,
    limit: usize,
) -> Result<Vec<SupervisedExample>> {
    collect(path, limit, &columns.supervised_example(), |mut row| supervised(&mut row, columns))
}

pub(super) fn prompt_rows(path: &Path, columns: &Columns, limit: usize) -> Result<Vec<PromptRow>> {
    collect(path, limit, &columns.prompt_example(), |row| prompt(row, columns))
}

pub(super) fn weighted_rows(path: &Path, columns: &Columns, limit: usize) -> Result<Vec<WeightedRow>> {
    collect(path, limit, &columns.weighted_example(), |mut row| {
        let column = columns.column("reward");
        let reward = row.number(column)?.ok_or_else(|| row.missing(&[column]))?;
        Ok(WeightedRow { example: supervised(&mut row, columns)?, reward })
    })
}

/// A preference of either kind.
#[derive(Debug, Clone)]
pub(super) enum Pair {
    Text(PreferenceExample),
    Dialogue(DialoguePreference),
}

impl Pair {
    /// The kind of prompt and completions: texts or messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "texts",
            Self::Dialogue(_) => "messages",
        }
    }

    fn problem(&self) -> Option<PairProblem> {
        match self {
            Self::Text(pair) => pair.problem(),
            Self::Dialogue(pair) => pair.problem(),
        }
    }
}

/// The pairs of a file, which are of one kind, and those that were left out.
pub(super) fn pairs(
    path: &Path,
    columns: &Columns,
    limit: usize,
) -> Result<(Vec<Pair>, BTreeMap<PairProblem, usize>)> {
    let (mut pairs, mut left_out) = (vec![], BTreeMap::new());
    let mut first: Option<(&'static str, Place)> = None;
    let example = columns.preference_example();
    each(path, limit, &example, |place, mut row| {
        let pair = preference(&mut row, columns)?;
        let (kind, at) = *first.get_or_insert((pair.kind(), place));
        if kind != pair.kind() {
            return Err(format!(
                "a pair of {}, but {at} has {kind}; put them into files of their own",
                pair.kind()
            ));
        }
        match pair.problem() {
            Some(problem) => *left_out.entry(problem).or_default() += 1,
            None => pairs.push(pair),
        }
        Ok(())
    })?;
    Ok((pairs, left_out))
}

fn collect<T>(
    path: &Path,
    limit: usize,
    example: &str,
    mut form: impl FnMut(Fields) -> Field<T>,
) -> Result<Vec<T>> {
    let mut rows = vec![];
    each(path, limit, example, |_, row| {
        rows.push(form(row)?);
        Ok(())
    })?;
    Ok(rows)
}

/// Hands on the rows of a file that has some.
fn each(
    path: &Path,
    limit: usize,
    example: &str,
    mut form: impl FnMut(Place, Fields) -> Field<()>,
) -> Result<()> {
    let rows = each_row(path, limit, example, &mut |place, row| {
        let refuse = |reason| Error::Row { path: path.into(), place, reason, example: example.into() };
        form(place, Fields::new(row)).map_err(refuse)
    })?;
    if rows == 0 {
        return Err(Error::Rows {
            path: path.into(),
            reason: format!("has no rows; a row looks like {example}"),
        });
    }
    Ok(())
}

fn is_answer(message: &Message) -> bool {
    message.role == "assistant"
}

fn supervised(row: &mut Fields, columns: &Columns) -> Field<SupervisedExample> {
    let [prompt, completion, whole] = ["prompt", "completion", "messages"].map(|key| columns.column(key));
    if !row.has(completion)
        && let Some(messages) = row.messages(whole)?
    {
        if !messages.iter().any(is_answer) {
            let name = whole.name;
            return Err(format!(
                "field `{name}` has no message with the role assistant, from which to learn"
            ));
        }
        return Ok(SupervisedExample::Dialogue { messages });
    }
    let Some(given) = row.text_or_messages(prompt)? else {
        let forms = [prompt, whole];
        return Err(row.missing(if row.has(completion) { &forms[..1] } else { &forms }));
    };
    let wanted = row.text_or_messages(completion)?;
    Ok(match (given, wanted.ok_or_else(|| row.missing(&[completion]))?) {
        (TextOrMessages::Text(prompt), TextOrMessages::Text(completion)) => {
            SupervisedExample::Completion { prompt, completion }
        }
        (TextOrMessages::Messages(prompt), TextOrMessages::Messages(completion)) => {
            if !completion.iter().any(is_answer) {
                let name = columns.column("completion").name;
                return Err(format!(
                    "field `{name}` has no message with the role assistant, from which to learn"
                ));
            }
            SupervisedExample::Answer { prompt, completion }
        }
        (TextOrMessages::Messages(prompt), TextOrMessages::Text(text)) => {
            SupervisedExample::Answer { prompt, completion: vec![Message::new("assistant", text)] }
        }
        (TextOrMessages::Text(_), TextOrMessages::Messages(_)) => {
            let [prompt, completion] = [prompt.name, completion.name];
            return Err(format!("field `{completion}` is a list of messages, but `{prompt}` is a text"));
        }
    })
}

fn preference(row: &mut Fields, columns: &Columns) -> Field<Pair> {
    let [prompt, better, worse] = ["prompt", "chosen", "rejected"].map(|key| columns.column(key));
    let given = row.text_or_messages(prompt)?;
    let completion = |row: &mut Fields, column: Column<'_>| {
        row.text_or_messages(column)?.ok_or_else(|| row.missing(&[column]))
    };
    let (chosen, rejected) = (completion(row, better)?, completion(row, worse)?);
    let weight = row.number(columns.column("weight"))?.unwrap_or(1.0) as f32;
    let source = row.text(columns.column("source"))?.unwrap_or_default();
    Ok(match (given, chosen, rejected) {
        (given, TextOrMessages::Text(chosen), TextOrMessages::Text(rejected)) => match given {
            Some(TextOrMessages::Text(prompt)) => {
                Pair::Text(PreferenceExample { prompt, chosen, rejected, weight, source })
            }
            Some(TextOrMessages::Messages(prompt)) => {
                let [chosen, rejected] = [chosen, rejected].map(|text| vec![Message::new("assistant", text)]);
                Pair::Dialogue(DialoguePreference { prompt, chosen, rejected, weight, source })
            }
            None => return Err(row.missing(&[prompt])),
        },
        (given, TextOrMessages::Messages(chosen), TextOrMessages::Messages(rejected)) => {
            let (prompt, chosen, rejected) = match given {
                Some(TextOrMessages::Messages(prompt)) => (prompt, chosen, rejected),
                Some(TextOrMessages::Text(_)) => {
                    let name = prompt.name;
                    return Err(format!(
                        "field `{name}` is a text, but the completions are lists of messages"
                    ));
                }
                None => common_prompt(chosen, rejected),
            };
            Pair::Dialogue(DialoguePreference { prompt, chosen, rejected, weight, source })
        }
        _ => {
            let [chosen, rejected] = [better.name, worse.name];
            return Err(format!(
                "one of the fields `{chosen}` and `{rejected}` is a text, and the other a list of messages"
            ));
        }
    })
}

fn prompt(mut row: Fields, columns: &Columns) -> Field<PromptRow> {
    let [given, whole, known] = ["prompt", "messages", "answer"].map(|key| columns.column(key));
    let mut answer = match row.take(known) {
        None => None,
        Some(Value::String(text)) => Some(text),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Some(value.to_string()),
        Some(other) => {
            let (name, other) = (known.name, shown(&other));
            return Err(format!("field `{name}` is {other}, but must be a text, a number or a truth value"));
        }
    };
    let prompt = match row.text_or_messages(given)? {
        Some(prompt) => prompt,
        None => {
            let messages = row.messages(whole)?;
            let mut messages = messages.ok_or_else(|| row.missing(&[given, whole]))?;
            if let Some(last) = messages.pop_if(|last| is_answer(last)) {
                answer = answer.or(Some(last.content));
            }
            if messages.is_empty() {
                return Err(format!("field `{}` has nothing but an answer", whole.name));
            }
            TextOrMessages::Messages(messages)
        }
    };
    Ok(PromptRow { prompt, answer, fields: row.into_rest() })
}
