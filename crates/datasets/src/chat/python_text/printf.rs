//! The operator `%` on texts: Python's formatting with directives.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::{Result, Side, bad, exponent_part, float, pad, repr, text};

/// `left % right`: a remainder with the sign of the divisor, or a text with its values.
pub(super) fn percent(left: &Value, right: &Value) -> Result<Value> {
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
pub(super) fn printf(format: &str, values: Option<&[Value]>, named: Option<&Value>) -> Result<String> {
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
