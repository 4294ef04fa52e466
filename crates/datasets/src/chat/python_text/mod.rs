//! Values as Python writes them, and the functions, filters and methods of Jinja that minijinja lacks or does otherwise.

mod filters;
mod json;
mod methods;
mod printf;

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use filters::{as_float, integer, join, round, truncate};
use json::to_json;
use methods::{jinja_title, method, strip};
use printf::{percent, printf};

/// The function that takes the place of the operator `%`.
pub(super) const PERCENT: &str = "__percent";
/// The function that takes the place of the operator `~`.
pub(super) const CONCAT: &str = "__concat";

type Result<T> = std::result::Result<T, Error>;

fn bad(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// Adds everything to an environment.
pub(super) fn install(environment: &mut Environment<'_>) {
    environment.set_formatter(|out, _, value| {
        out.write_str(&text(value))?;
        Ok(())
    });
    environment.set_unknown_method_callback(method);
    environment.add_function(PERCENT, percent);
    environment.add_function(CONCAT, |values: Rest<Value>| values.iter().map(text).collect::<String>());
    environment
        .add_function("cycler", |values: Rest<Value>| minijinja_contrib::globals::cycler(values.to_vec()));
    environment.add_function("joiner", minijinja_contrib::globals::joiner as fn(Option<Value>) -> Value);
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| text(value));
    environment.add_filter("trim", |value: &Value, chars: Option<String>| {
        strip(&text(value), chars.as_deref(), true, true)
    });
    environment.add_filter("join", join);
    environment.add_filter("format", |format: &Value, values: Rest<Value>, named: Kwargs| {
        let values = values.to_vec();
        let named = named.args().next().is_some().then(|| {
            Value::from_pairs(named.args().filter_map(|name| Some((name, named.get::<Value>(name).ok()?))))
        });
        printf(&text(format), named.is_none().then_some(&values[..]), named.as_ref())
    });
    environment.add_filter("wordcount", |value: &Value| {
        let text = text(value);
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
    });
    environment.add_filter("truncate", truncate);
    environment.add_filter("center", |value: &Value, width: Option<usize>| {
        pad(&text(value), width.unwrap_or(80), ' ', Side::Both)
    });
    environment.add_filter("round", round);
    environment.add_filter("int", integer);
    environment.add_filter("float", |value: &Value, options: Rest<Value>, named: Kwargs| {
        let [default] = Arguments(options.to_vec(), named).named(["default"])?;
        Ok::<_, Error>(as_float(value).map_or_else(|| default.unwrap_or(Value::from(0.0)), Value::from))
    });
    environment.add_filter("title", |value: &Value| jinja_title(&text(value)));
}

/// Positional and named arguments.
struct Arguments(Vec<Value>, Kwargs);

impl Arguments {
    fn of_method(arguments: &[Value]) -> Result<Self> {
        let (positional, named): (&[Value], Kwargs) = minijinja::value::from_args(arguments)?;
        Ok(Self(positional.to_vec(), named))
    }

    /// The arguments with these names, which may also be given by position.
    fn named<const N: usize>(self, names: [&str; N]) -> Result<[Option<Value>; N]> {
        let Self(positional, named) = self;
        if positional.len() > N {
            return Err(bad(format!("at most {N} arguments are known: {}", names.join(", "))));
        }
        let mut positional = positional.into_iter();
        let mut found = [const { None }; N];
        for (place, name) in found.iter_mut().zip(names) {
            *place = match positional.next() {
                Some(value) => Some(value),
                None => named.get::<Option<Value>>(name)?,
            };
        }
        named.assert_all_used()?;
        Ok(found)
    }
}

/// `str(value)`.
pub(super) fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        ValueKind::Undefined => String::new(),
        _ => repr(value),
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => "Undefined".into(),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let Ok(items) = value.try_iter() else { return value.to_string() };
            let items: Vec<String> = items.map(|item| repr(&item)).collect();
            match (value.is_tuple(), items.len()) {
                (true, 1) => format!("({},)", items[0]),
                (true, _) => format!("({})", items.join(", ")),
                (false, _) => format!("[{}]", items.join(", ")),
            }
        }
        ValueKind::Map => {
            let Ok(keys) = value.try_iter() else { return value.to_string() };
            let entry =
                |key: Value| format!("{}: {}", repr(&key), repr(&value.get_item(&key).unwrap_or_default()));
            format!("{{{}}}", keys.map(entry).collect::<Vec<_>>().join(", "))
        }
        _ => value.to_string(),
    }
}

/// `repr` of a text.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if unprintable(c) => {
                let _ = match u32::from(c) {
                    code @ 0..=0xff => write!(out, "\\x{code:02x}"),
                    code @ 0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    code => write!(out, "\\U{code:08x}"),
                };
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

fn unprintable(c: char) -> bool {
    let format = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let private = matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..);
    c.is_control() || format || private || (c.is_whitespace() && c != ' ')
}

/// `repr` of a float: an exponent below 1e-4 and from 1e16 on.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let written = format!("{number:e}");
    let (digits, exponent) = written.split_once('e').unwrap_or((&written, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if number == 0.0 || (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    format!("{digits}{}", exponent_part(exponent))
}

/// `e+16`: at least two digits.
fn exponent_part(exponent: i32) -> String {
    format!("e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Left,
    Right,
    Both,
}

/// Fills a text up to a width, on the given side.
fn pad(text: &str, width: usize, fill: char, side: Side) -> String {
    let missing = width.min(100_000).saturating_sub(text.chars().count());
    // Python puts the odd one to the left where the width is odd.
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        Side::Both => missing / 2 + (missing & width & 1),
    };
    let filling = |count| std::iter::repeat_n(fill, count).collect::<String>();
    filling(left) + text + &filling(missing - left)
}
