//! Methods of texts.

use minijinja::{Error, ErrorKind, State, Value};

use super::{Arguments, Result, Side, bad, pad, text};
use crate::python;

pub(super) fn strip(text: &str, chars: Option<&str>, start: bool, end: bool) -> String {
    let unwanted = |c: char| chars.map_or_else(|| python::is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(unwanted) } else { text };
    if end { text.trim_end_matches(unwanted) } else { text }.to_owned()
}

/// `str.title`: a letter behind no letter is large.
fn title(text: &str) -> String {
    let mut behind_letter = false;
    text.chars()
        .flat_map(|c| {
            let changed: Vec<char> =
                if behind_letter { c.to_lowercase().collect() } else { c.to_uppercase().collect() };
            behind_letter = c.is_alphabetic();
            changed
        })
        .collect()
}

/// Jinja's filter, which looks at white space and opening brackets only.
pub(super) fn jinja_title(text: &str) -> String {
    let mut begins = true;
    text.chars()
        .flat_map(|c| {
            let changed: Vec<char> =
                if begins { c.to_uppercase().collect() } else { c.to_lowercase().collect() };
            begins = python::is_space(c) || "-({[<".contains(c);
            changed
        })
        .collect()
}

/// The lines of a text, at all ends of lines that Python knows.
fn lines(text: &str, keep: bool) -> Vec<String> {
    let mut lines = vec![];
    let mut rest = text;
    while !rest.is_empty() {
        let ends = |c: char| {
            matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
        };
        let (line, end) = match rest.find(ends) {
            None => (rest, 0),
            Some(at) if rest[at..].starts_with("\r\n") => (&rest[..at], 2),
            Some(at) => (&rest[..at], rest[at..].chars().next().map_or(0, char::len_utf8)),
        };
        lines.push(rest[..line.len() + if keep { end } else { 0 }].to_owned());
        rest = &rest[line.len() + end..];
    }
    lines
}

/// `str.split` or `str.rsplit`; at white space without a separator.
fn split(text: &str, separator: Option<&str>, most: Option<usize>, from_end: bool) -> Vec<String> {
    let most = most.unwrap_or(usize::MAX);
    let mut parts: Vec<String> = vec![];
    match (separator, from_end) {
        (Some(separator), false) => {
            parts.extend(text.splitn(most.saturating_add(1), separator).map(str::to_owned))
        }
        (Some(separator), true) => {
            parts.extend(text.rsplitn(most.saturating_add(1), separator).map(str::to_owned));
            parts.reverse();
        }
        (None, _) => {
            let mut rest = python::strip(text);
            while !rest.is_empty() && parts.len() < most {
                let cut = if from_end { rest.rfind(python::is_space) } else { rest.find(python::is_space) };
                let Some(at) = cut else { break };
                let width = rest[at..].chars().next().map_or(0, char::len_utf8);
                if from_end {
                    parts.push(rest[at + width..].to_owned());
                    rest = rest[..at].trim_end_matches(python::is_space);
                } else {
                    parts.push(rest[..at].to_owned());
                    rest = rest[at + width..].trim_start_matches(python::is_space);
                }
            }
            if !rest.is_empty() {
                // With a limit, the end (or the beginning) stays as it is.
                let rest = match from_end {
                    _ if parts.len() < most => rest,
                    true => {
                        &text[..text.len() - text.trim_start_matches(python::is_space).len() + rest.len()]
                    }
                    false => &text[text.trim_end_matches(python::is_space).len() - rest.len()..],
                };
                parts.push(rest.to_owned());
            }
            if from_end {
                parts.reverse();
            }
        }
    }
    parts
}

/// Python's methods of texts where minijinja's differ or are not there; the others are minijinja's.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value> {
    let usual = |state: &mut State<'_, '_>| {
        minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
    };
    let Some(this) = value.as_str() else { return usual(state) };
    let arguments = Arguments::of_method(arguments)?;
    let optional = |value: Option<Value>| value.filter(|value| !value.is_none());
    let list = |texts: Vec<String>| Ok(Value::from(texts));
    let one = |arguments: Arguments, name: &str| -> Result<String> {
        let [value] = arguments.named([name])?;
        value
            .map(|value| text(&value))
            .ok_or_else(|| Error::new(ErrorKind::MissingArgument, format!("`{name}`")))
    };
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = arguments.named(["chars"])?;
            let chars = optional(chars).map(|chars| text(&chars));
            Ok(Value::from(strip(this, chars.as_deref(), name != "rstrip", name != "lstrip")))
        }
        "split" | "rsplit" => {
            let [separator, most] = arguments.named(["sep", "maxsplit"])?;
            let separator = optional(separator).map(|separator| text(&separator));
            if separator.as_deref() == Some("") {
                return Err(bad("split: an empty separator"));
            }
            let most = optional(most).map(i64::try_from).transpose()?;
            let most = most.and_then(|most| usize::try_from(most).ok());
            list(split(this, separator.as_deref(), most, name == "rsplit"))
        }
        "splitlines" => {
            let [keep] = arguments.named(["keepends"])?;
            list(lines(this, keep.is_some_and(|keep| keep.is_true())))
        }
        "partition" | "rpartition" => {
            let separator = one(arguments, "sep")?;
            let first = name == "partition";
            let found = if first { this.split_once(&separator) } else { this.rsplit_once(&separator) };
            let parts = match found {
                Some((before, after)) => [before, &separator, after],
                None if first => [this, "", ""],
                None => ["", "", this],
            };
            Ok(Value::from(minijinja::value::Tuple::from(parts.map(Value::from))))
        }
        "removeprefix" => {
            let prefix = one(arguments, "prefix")?;
            Ok(Value::from(this.strip_prefix(&prefix).unwrap_or(this)))
        }
        "removesuffix" => {
            let suffix = one(arguments, "suffix")?;
            Ok(Value::from(this.strip_suffix(&suffix).unwrap_or(this)))
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let [width, fill] = arguments.named(["width", "fillchar"])?;
            let width = width.map_or(Ok(0), i64::try_from)?;
            let width = usize::try_from(width).unwrap_or(0);
            let fill = fill.and_then(|fill| text(&fill).chars().next()).unwrap_or(' ');
            Ok(Value::from(match name {
                "center" => pad(this, width, fill, Side::Both),
                "ljust" => pad(this, width, fill, Side::Right),
                "rjust" => pad(this, width, fill, Side::Left),
                _ => {
                    let (sign, digits) = this.split_at(usize::from(this.starts_with(['-', '+'])));
                    sign.to_owned() + &pad(digits, width.saturating_sub(sign.len()), '0', Side::Left)
                }
            }))
        }
        "isspace" => Ok(Value::from(!this.is_empty() && this.chars().all(python::is_space))),
        "isdecimal" => Ok(Value::from(!this.is_empty() && this.chars().all(|c| python::digit(c).is_some()))),
        "title" => Ok(Value::from(title(this))),
        "swapcase" => {
            let swap = |c: char| -> String {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            };
            Ok(Value::from(this.chars().map(swap).collect::<String>()))
        }
        "casefold" => Ok(Value::from(this.to_lowercase().replace('ß', "ss"))),
        "join" => {
            let [values] = arguments.named(["iterable"])?;
            let values = values.unwrap_or_default();
            let texts: Vec<String> = values.try_iter()?.map(|value| text(&value)).collect();
            Ok(Value::from(texts.join(this)))
        }
        _ => usual(state),
    }
}
