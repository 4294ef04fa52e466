//! The fields of a row, and what is wrong with them.

use serde_json::{Map, Value};

use super::TextOrMessages;
use super::columns::Column;
use crate::teacher::Message;

/// A row before anybody has looked at its fields.
pub(super) type Row = Map<String, Value>;

/// The value of a field, or what is wrong with the row.
pub(super) type Field<T> = std::result::Result<T, String>;

/// A row whose fields are taken one by one.
pub(super) struct Fields {
    row: Row,
    /// The fields that are `null`: as if they were not there.
    nulls: Vec<String>,
}

impl Fields {
    pub(super) fn new(row: Row) -> Self {
        Self { row, nulls: vec![] }
    }

    /// The fields that nobody has taken.
    pub(super) fn into_rest(self) -> Row {
        self.row
    }

    pub(super) fn has(&self, column: Column<'_>) -> bool {
        self.row.get(column.name).is_some_and(|value| !value.is_null())
    }

    /// A field that is there and not `null`.
    pub(super) fn take(&mut self, column: Column<'_>) -> Option<Value> {
        let value = self.row.remove(column.name)?;
        if value.is_null() {
            self.nulls.push(column.name.into());
            return None;
        }
        Some(value)
    }

    pub(super) fn text(&mut self, column: Column<'_>) -> Field<Option<String>> {
        match self.take(column) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(column, &other, "a text")),
        }
    }

    /// A number that is neither infinite nor NaN.
    pub(super) fn number(&mut self, column: Column<'_>) -> Field<Option<f64>> {
        match self.take(column) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(wrong(column, &value, "a finite number")),
            },
        }
    }

    pub(super) fn text_or_messages(&mut self, column: Column<'_>) -> Field<Option<TextOrMessages>> {
        match self.take(column) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(TextOrMessages::Text(text))),
            Some(Value::Array(items)) => Ok(Some(TextOrMessages::Messages(messages(column, items)?))),
            Some(other) => Err(wrong(column, &other, "a text or a list of messages")),
        }
    }

    pub(super) fn messages(&mut self, column: Column<'_>) -> Field<Option<Vec<Message>>> {
        match self.take(column) {
            None => Ok(None),
            Some(Value::Array(items)) => messages(column, items).map(Some),
            Some(other) => Err(wrong(column, &other, "a list of messages")),
        }
    }

    /// Says that a field is missing, what the row has, and which setting would name it. The first of `columns` is named; the others
    /// would do in its place.
    pub(super) fn missing(&self, columns: &[Column<'_>]) -> String {
        let Some(first) = columns.first() else { return String::new() };
        let names: Vec<String> = columns.iter().map(|column| format!("`{}`", column.name)).collect();
        let is_null = self.nulls.iter().any(|null| null == first.name);
        let mut reason = match names.len() {
            1 if is_null => format!("field {} is null", names[0]),
            1 => format!("no field {}", names[0]),
            _ => format!("no field {}", names.join(" or ")),
        };
        let near = columns.iter().flat_map(|column| {
            self.row
                .keys()
                .map(|key| (likeness(key, column.name), *column, key))
                .filter(|(like, ..)| *like >= 0.6)
        });
        let near = near.max_by(|(a, ..), (b, ..)| a.total_cmp(b));
        if let Some((_, Column { key: setting, .. }, key)) = near {
            reason += &format!(", but `{key}`: rename it, or set columns.{setting} = {}", quoted(key));
        } else if !self.row.is_empty() {
            let mut keys: Vec<String> =
                self.row.keys().take(8).map(|key| format!("`{}`", cut(key))).collect();
            if self.row.len() > keys.len() {
                keys.push(format!("{} more", self.row.len() - keys.len()));
            }
            let keys = keys.join(", ");
            reason +=
                &format!(", but {keys}: where another one is meant, set columns.{} to its name", first.key);
        }
        reason
    }
}

/// How much two names have in common, from 0 to 1.
fn likeness(a: &str, b: &str) -> f64 {
    // The distance takes time and memory that grow with the product of the lengths.
    if a.len() > 100 || b.len() > 100 {
        return 0.0;
    }
    strsim::normalized_damerau_levenshtein(&a.to_lowercase(), &b.to_lowercase())
}

fn quoted(name: &str) -> String {
    Value::from(name).to_string()
}

fn wrong(column: Column<'_>, value: &Value, expected: &str) -> String {
    format!("field `{}` is {}, but must be {expected}", column.name, shown(value))
}

/// A value as an error shows it.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(truth) => format!("{truth}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text {}", quoted(&cut(text))),
        Value::Array(items) if items.is_empty() => "an empty list".into(),
        Value::Array(items) => format!("a list that begins with {}", kind(&items[0])),
        Value::Object(row) => {
            let keys: Vec<String> = row.keys().take(4).map(|key| quoted(&cut(key))).collect();
            format!("an object with the fields {}", keys.join(", "))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}

fn messages(column: Column<'_>, items: Vec<Value>) -> Field<Vec<Message>> {
    let name = column.name;
    if items.is_empty() {
        return Err(format!("field `{name}` has no message"));
    }
    let message = |(i, item): (usize, Value)| {
        let expected = r#"{"role": "user", "content": "..."}"#;
        let wrong = |what: String| format!("field `{name}[{i}]` {what}; a message is {expected}");
        let Value::Object(mut message) = item else { return Err(wrong(format!("is {}", shown(&item)))) };
        let mut text = |key: &str| match message.remove(key) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(wrong(format!("has {} as {key}", shown(&other)))),
            None if message.is_empty() => Err(wrong(format!("has no {key}"))),
            None => {
                let keys: Vec<String> = message.keys().take(4).map(|key| quoted(&cut(key))).collect();
                Err(wrong(format!("has no {key}, but {}", keys.join(", "))))
            }
        };
        Ok(Message { role: text("role")?, content: text("content")? })
    };
    items.into_iter().enumerate().map(message).collect()
}
