//! Values as Python writes them, and the functions, filters and methods of Jinja that minijinja lacks or does otherwise.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use crate::python;

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

/// `json.dumps` with the options that transformers offers, `ensure_ascii` off by default.
fn to_json(value: &Value, options: Rest<Value>, named: Kwargs) -> Result<Value> {
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

fn join(values: &Value, options: Rest<Value>, named: Kwargs) -> Result<String> {
    let [separator, attribute] = Arguments(options.to_vec(), named).named(["d", "attribute"])?;
    let attribute = attribute.filter(|attribute| !attribute.is_none()).map(|attribute| text(&attribute));
    let mut texts = vec![];
    for value in values.try_iter()? {
        let mut value = value;
        for name in attribute.iter().flat_map(|path| path.split('.')) {
            value = match name.parse::<usize>() {
                Ok(index) => value.get_item_by_index(index)?,
                Err(_) => value.get_attr(name)?,
            };
        }
        texts.push(text(&value));
    }
    Ok(texts.join(&separator.map(|separator| text(&separator)).unwrap_or_default()))
}

fn truncate(value: &Value, options: Rest<Value>, named: Kwargs) -> Result<String> {
    let [length, kill, end, leeway] =
        Arguments(options.to_vec(), named).named(["length", "killwords", "end", "leeway"])?;
    let number = |value: Option<Value>, usual: i64| match value.filter(|value| !value.is_none()) {
        Some(value) => i64::try_from(value),
        None => Ok(usual),
    };
    let (length, leeway) = (number(length, 255)?, number(leeway, 5)?);
    let end = end.map_or_else(|| "...".to_owned(), |end| text(&end));
    let ending = end.chars().count() as i64;
    if length < ending || leeway < 0 {
        return Err(bad(format!(
            "truncate: the length {length} must be at least {ending}, and leeway no less than 0"
        )));
    }
    let value = text(value);
    if value.chars().count() as i64 <= length + leeway {
        return Ok(value);
    }
    let head: String = value.chars().take((length - ending) as usize).collect();
    if kill.is_some_and(|kill| kill.is_true()) {
        return Ok(head + &end);
    }
    Ok(head.rsplit_once(' ').map_or(head.as_str(), |(words, _)| words).to_owned() + &end)
}

/// `int(value, base)`, or the whole part of a float, or the default.
fn integer(value: &Value, options: Rest<Value>, named: Kwargs) -> Result<Value> {
    let [default, base] = Arguments(options.to_vec(), named).named(["default", "base"])?;
    let base = base.map_or(Ok(10), u32::try_from)?;
    let whole = match value.as_str() {
        Some(text) if base == 10 => python::int(text).and_then(|digits| digits.parse::<i128>().ok()),
        Some(text) if (2..=36).contains(&base) => {
            let text = python::strip(text).to_lowercase();
            let prefix = [(16, "0x"), (8, "0o"), (2, "0b")].into_iter().find(|(of, _)| *of == base);
            let digits = prefix.and_then(|(_, prefix)| text.strip_prefix(prefix)).unwrap_or(&text);
            i128::from_str_radix(digits, base).ok()
        }
        _ if value.is_integer() => return Ok(value.clone()),
        _ => None,
    };
    let whole =
        whole.or_else(|| as_float(value).filter(|number| number.is_finite()).map(|number| number as i128));
    Ok(match whole {
        Some(whole) => i64::try_from(whole).map_or_else(|_| Value::from(whole), Value::from),
        None => default.unwrap_or(Value::from(0)),
    })
}

/// `float(value)`, if it is one.
fn as_float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::String => python::strip(value.as_str()?).replace('_', "").parse().ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// Rounds halves to even, as Python does.
fn round(value: &Value, options: Rest<Value>, named: Kwargs) -> Result<Value> {
    let [precision, method] = Arguments(options.to_vec(), named).named(["precision", "method"])?;
    let precision = precision.map_or(Ok(0), i64::try_from)?;
    let method = method.map_or_else(|| "common".to_owned(), |method| text(&method));
    if value.is_integer() && method == "common" && precision >= 0 {
        return Ok(value.clone());
    }
    let number = f64::try_from(value.clone())?;
    let power = 10f64.powi(precision.clamp(-300, 300) as i32);
    Ok(Value::from(match method.as_str() {
        "common" if precision >= 0 => {
            format!("{number:.*}", precision.min(300) as usize).parse().unwrap_or(number)
        }
        "common" => (number * power).round_ties_even() / power,
        "ceil" => (number * power).ceil() / power,
        "floor" => (number * power).floor() / power,
        other => {
            return Err(bad(format!("round: the method is `{other}`, but must be common, ceil or floor")));
        }
    }))
}

/// `left % right`: a remainder with the sign of the divisor, or a text with its values.
fn percent(left: &Value, right: &Value) -> Result<Value> {
    if let Some(format) = left.as_str() {
        let text = match right.kind() {
            ValueKind::Map => printf(format, None, Some(right)),
            _ if right.is_tuple() => printf(format, Some(&right.try_iter()?.collect::<Vec<_>>()), None),
            _ => printf(format, Some(std::slice::from_ref(right)), None),
        };
        return text.map(Value::from);
    }
    let integer = |value: &Value| match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        _ if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    };
    if let (Some(a), Some(b)) = (integer(left), integer(right)) {
        let rest = a.checked_rem(b).ok_or_else(|| bad("a remainder of a division by zero"))?;
        let rest = if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest };
        return Ok(i64::try_from(rest).map_or_else(|_| Value::from(rest), Value::from));
    }
    let (a, b) = (f64::try_from(left.clone())?, f64::try_from(right.clone())?);
    if b == 0.0 {
        return Err(bad("a remainder of a division by zero"));
    }
    let rest = a % b;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }))
}

/// Formats as Python's `%` does. Values come one after the other, or by name.
fn printf(format: &str, values: Option<&[Value]>, named: Option<&Value>) -> Result<String> {
    let mut values = values.into_iter().flatten();
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut name = None;
        if chars.next_if_eq(&'(').is_some() {
            name = Some(chars.by_ref().take_while(|&c| c != ')').collect::<String>());
        }
        let mut flags = String::new();
        while let Some(flag) = chars.next_if(|c| "#0- +".contains(*c)) {
            flags.push(flag);
        }
        let mut next = || values.next().cloned().ok_or_else(|| bad("not enough values for the format"));
        let width = size(&mut chars, &mut next)?;
        let precision =
            if chars.next_if_eq(&'.').is_some() { Some(size(&mut chars, &mut next)?) } else { None };
        while chars.next_if(|c| matches!(c, 'h' | 'l' | 'L')).is_some() {}
        let conversion = chars.next().ok_or_else(|| bad("the format ends within a directive"))?;
        if conversion == '%' {
            out.push('%');
            continue;
        }
        let value = match (&name, named) {
            (Some(name), Some(named)) => {
                let value = named.get_item(&Value::from(name.as_str()))?;
                if value.is_undefined() {
                    return Err(bad(format!("the format wants `{name}`, which is not there")));
                }
                value
            }
            (Some(_), None) => return Err(bad("the format wants values by name")),
            (None, Some(named)) => named.clone(),
            (None, None) => next()?,
        };
        let text = converted(&value, conversion, precision, &flags)?;
        let left = flags.contains('-');
        let fill = if flags.contains('0') && !left && !"sracr".contains(conversion) { '0' } else { ' ' };
        match (left, fill) {
            (true, _) => out.push_str(&pad(&text, width, ' ', Side::Right)),
            (false, '0') => {
                let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+', ' '])));
                out.push_str(sign);
                out.push_str(&pad(digits, width.saturating_sub(sign.len()), '0', Side::Left));
            }
            (false, _) => out.push_str(&pad(&text, width, ' ', Side::Left)),
        }
    }
    if values.next().is_some() {
        return Err(bad("the format does not use all values"));
    }
    Ok(out)
}

/// A width or precision: digits, or `*` for the next value.
fn size(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    next: &mut impl FnMut() -> Result<Value>,
) -> Result<usize> {
    let mut digits = String::new();
    if chars.next_if_eq(&'*').is_some() {
        digits = text(&next()?);
    }
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    let size = if digits.is_empty() { 0 } else { digits.parse().unwrap_or(usize::MAX) };
    if size > 10_000 { Err(bad("a width or precision above 10000")) } else { Ok(size) }
}

fn converted(value: &Value, conversion: char, precision: Option<usize>, flags: &str) -> Result<String> {
    let cut = |text: String| match precision {
        Some(length) => text.chars().take(length).collect(),
        None => text,
    };
    let signed = |text: String| {
        let sign = ["+", " "].into_iter().find(|sign| flags.contains(sign) && !text.starts_with('-'));
        sign.unwrap_or_default().to_owned() + &text
    };
    let integer = || -> Result<i128> {
        match value.kind() {
            ValueKind::Bool => Ok(i128::from(value.is_true())),
            _ if value.is_integer() => Ok(i128::try_from(value.clone())?),
            ValueKind::Number => Ok(f64::try_from(value.clone())?.trunc() as i128),
            kind => Err(bad(format!("%{conversion} wants a number, not a value of the type {kind}"))),
        }
    };
    let number = || -> Result<f64> {
        match value.kind() {
            ValueKind::Bool => Ok(f64::from(u8::from(value.is_true()))),
            ValueKind::Number => Ok(f64::try_from(value.clone())?),
            kind => Err(bad(format!("%{conversion} wants a number, not a value of the type {kind}"))),
        }
    };
    let in_base = |digits: String, negative: bool, prefix: &str| {
        let prefix = if flags.contains('#') { prefix } else { "" };
        let digits = pad(&digits, precision.unwrap_or(0), '0', Side::Left);
        signed(format!("{}{prefix}{digits}", if negative { "-" } else { "" }))
    };
    Ok(match conversion {
        's' => cut(text(value)),
        'r' => cut(repr(value)),
        'a' => {
            cut(repr(value).chars().map(|c| if c.is_ascii() { c.to_string() } else { ascii(c) }).collect())
        }
        'c' if value.as_str().is_some_and(|text| text.chars().count() == 1) => text(value),
        'c' => {
            let c = u32::try_from(integer()?).ok().and_then(char::from_u32);
            c.ok_or_else(|| bad("%c wants a character"))?.into()
        }
        'd' | 'i' | 'u' => in_base(integer()?.unsigned_abs().to_string(), integer()? < 0, ""),
        'x' => in_base(format!("{:x}", integer()?.unsigned_abs()), integer()? < 0, "0x"),
        'X' => in_base(format!("{:X}", integer()?.unsigned_abs()), integer()? < 0, "0X"),
        'o' => in_base(format!("{:o}", integer()?.unsigned_abs()), integer()? < 0, "0o"),
        'f' | 'F' | 'e' | 'E' | 'g' | 'G' if !number()?.is_finite() => {
            let text = float(number()?);
            signed(if conversion.is_uppercase() { text.to_uppercase() } else { text })
        }
        'f' | 'F' => signed(format!("{:.*}", precision.unwrap_or(6), number()?)),
        'e' | 'E' => signed(in_case(scientific(number()?, precision.unwrap_or(6)), conversion)),
        'g' | 'G' => {
            let precision = precision.unwrap_or(6).max(1);
            let written = scientific(number()?, precision - 1);
            let exponent: i32 = written.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or_default();
            let text = if (-4..precision as i32).contains(&exponent) {
                format!("{:.*}", (precision as i32 - 1 - exponent) as usize, number()?)
            } else {
                written
            };
            let (digits, tail) = text.split_at(text.find('e').unwrap_or(text.len()));
            let digits = match digits.contains('.') && !flags.contains('#') {
                true => digits.trim_end_matches('0').trim_end_matches('.'),
                false => digits,
            };
            signed(in_case(format!("{digits}{tail}"), conversion))
        }
        other => return Err(bad(format!("the format has the unknown directive %{other}"))),
    })
}

fn in_case(text: String, conversion: char) -> String {
    if conversion.is_uppercase() { text.to_uppercase() } else { text }
}

fn scientific(number: f64, precision: usize) -> String {
    let written = format!("{number:.precision$e}");
    let (digits, exponent) = written.split_once('e').unwrap_or((&written, "0"));
    format!("{digits}{}", exponent_part(exponent.parse().unwrap_or_default()))
}

fn ascii(c: char) -> String {
    match u32::from(c) {
        code @ 0..=0xff => format!("\\x{code:02x}"),
        code @ 0x100..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
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

fn strip(text: &str, chars: Option<&str>, start: bool, end: bool) -> String {
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
fn jinja_title(text: &str) -> String {
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
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, arguments: &[Value]) -> Result<Value> {
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
