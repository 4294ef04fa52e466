//! Filters that Jinja has and minijinja lacks, or that differ there.

use minijinja::Value;
use minijinja::value::{Kwargs, Rest, ValueKind};

use super::{Arguments, Result, bad, text};
use crate::python;

pub(super) fn join(values: &Value, options: Rest<Value>, named: Kwargs) -> Result<String> {
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

pub(super) fn truncate(value: &Value, options: Rest<Value>, named: Kwargs) -> Result<String> {
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
pub(super) fn integer(value: &Value, options: Rest<Value>, named: Kwargs) -> Result<Value> {
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
pub(super) fn as_float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::String => python::strip(value.as_str()?).replace('_', "").parse().ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// Rounds halves to even, as Python does.
pub(super) fn round(value: &Value, options: Rest<Value>, named: Kwargs) -> Result<Value> {
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
