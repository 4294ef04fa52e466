//! `tojson`, as Python's `json.dumps` writes.

use std::fmt::Write;

use minijinja::Value;
use minijinja::value::{Kwargs, Rest, ValueKind};

use super::{Arguments, Result, bad, float, text};

/// `json.dumps` with the options that transformers offers, `ensure_ascii` off by default.
pub(super) fn to_json(value: &Value, options: Rest<Value>, named: Kwargs) -> Result<Value> {
    let [ascii, indent, separators, sort] =
        Arguments(options.to_vec(), named).named(["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let truth = |value: &Option<Value>| value.as_ref().is_some_and(Value::is_true);
    let given = |value: Option<Value>| value.filter(|value| !value.is_none());
    let indent = match given(indent) {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(i64::try_from(indent)?.clamp(0, 1000) as usize),
        }),
    };
    let (item, key) = match given(separators) {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            let [item, key] = &pair[..] else { return Err(bad("tojson: separators must be two texts")) };
            (text(item), text(key))
        }
    };
    let json = Json { ascii: truth(&ascii), indent, item, key, sort: truth(&sort) };
    let mut out = String::new();
    json.write(value, 1, &mut out)?;
    Ok(Value::from(out))
}

struct Json {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
}

impl Json {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<()> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&json_number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.several('[', ']', &items, depth, out, |item, out| self.write(item, depth + 1, out))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.several('{', '}', &keys, depth, out, |key, out| {
                    let name = match key.kind() {
                        ValueKind::String => text(key),
                        ValueKind::None => "null".into(),
                        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
                        ValueKind::Number => json_number(key),
                        kind => return Err(bad(format!("tojson: a key cannot be of the type {kind}"))),
                    };
                    self.string(&name, out);
                    out.push_str(&self.key);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            kind => return Err(bad(format!("tojson: a value of the type {kind} is no JSON"))),
        }
        Ok(())
    }

    fn several(
        &self,
        open: char,
        close: char,
        items: &[Value],
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&Value, &mut String) -> Result<()>,
    ) -> Result<()> {
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            line(depth, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            line(depth - 1, out);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn json_number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => match number {
            _ if number.is_nan() => "NaN".into(),
            f64::INFINITY => "Infinity".into(),
            f64::NEG_INFINITY => "-Infinity".into(),
            _ => float(number),
        },
        _ => value.to_string(),
    }
}
