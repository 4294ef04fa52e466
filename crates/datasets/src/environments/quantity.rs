//! Numbers as answers write them: which forms mean the same number.

use crate::python;

/// A number and its unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quantity {
    /// The number in one form for each value: `-3`, `0.25`, or `1/3` where no decimal number ends.
    pub(super) value: String,
    /// The unit in one form for each unit; none where there is none.
    pub(super) unit: Option<String>,
}

/// Units by the names that mean the same.
const UNITS: [&[&str]; 24] = [
    &["$", "dollar", "usd", "buck"],
    &["€", "euro", "eur"],
    &["£", "pound sterling", "gbp"],
    &["cent", "¢"],
    &["%", "percent", "per cent"],
    &["°", "degree", "deg"],
    &["mm", "millimeter", "millimetre"],
    &["cm", "centimeter", "centimetre"],
    &["m", "meter", "metre"],
    &["km", "kilometer", "kilometre"],
    &["in", "inch", "inche"],
    &["ft", "foot", "feet"],
    &["yd", "yard"],
    &["mi", "mile"],
    &["mg", "milligram"],
    &["g", "gram"],
    &["kg", "kilogram"],
    &["lb", "lbs", "pound"],
    &["oz", "ounce"],
    &["ml", "milliliter", "millilitre"],
    &["l", "liter", "litre"],
    &["s", "sec", "second"],
    &["min", "minute"],
    &["h", "hr", "hour"],
];

/// Words that make another number of the one before them, or no number at all.
const NO_UNITS: [&str; 25] = [
    "dozen",
    "hundred",
    "thousand",
    "million",
    "billion",
    "trillion",
    "k",
    "half",
    "halve",
    "third",
    "quarter",
    "fourth",
    "fifth",
    "sixth",
    "eighth",
    "tenth",
    "hundredth",
    "thousandth",
    "pi",
    "e",
    "i",
    "to",
    "or",
    "and",
    "by",
];

/// Commands whose argument is text.
const TEXT: [&str; 9] = [
    "\\text",
    "\\textbf",
    "\\textrm",
    "\\textit",
    "\\mathrm",
    "\\mathbf",
    "\\mbox",
    "\\hbox",
    "\\operatorname",
];

/// Stands for white space in a number, which separates groups of digits.
const THIN: char = '\u{2009}';

/// Reads a number. `words` says whether a unit may stand there as plain words (`18 eggs`); in mathematics letters are variables.
pub(super) fn parse(text: &str, words: bool) -> Option<Quantity> {
    let text = unwrapped(&plain(text));
    // `x = 5` is 5.
    let text = match text.split_once('=') {
        Some((name, value)) if !value.contains('=') && name.chars().count() <= 2 => unwrapped(value),
        _ => text,
    };
    let (sign, rest) = sign(&text);
    let (currency, rest) = currency(rest);
    let (second, rest) = if currency.is_some() && sign.is_none() { self::sign(rest) } else { (None, rest) };
    let negative = sign.or(second) == Some('-');
    let rest = rest.trim_start();
    let (value, rest) = magnitude(rest)?;
    let unit = match unit(rest, words)? {
        None => currency.map(canonical_unit),
        Some(unit) if currency.is_none() => Some(unit),
        // `$5 per day` has two.
        Some(unit) => Some(format!("{} {unit}", canonical_unit(currency.unwrap_or_default()))),
    };
    let value = if negative && value != "0" { format!("-{value}") } else { value };
    Some(Quantity { value, unit })
}

/// The unit at the end of an expression that need not be a number: what stands in its last `\text{…}` and the like, or a sign of
/// percent, degrees or currency.
pub(super) fn unit_of(expression: &str) -> Option<String> {
    let text = unwrapped(&plain(expression));
    let (_, rest) = sign(&text);
    if let (Some(currency), _) = currency(rest) {
        return Some(canonical_unit(currency));
    }
    let start = TEXT.iter().filter_map(|command| text.find(&format!("{command}{{"))).min();
    let at = start.or_else(|| text.find(['%', '°']))?;
    // An expression that is nothing but text is a word, not a unit.
    if text[..at].trim().is_empty() { None } else { unit(&text[at..], false).flatten() }
}

/// Are two units the same, as far as both are told?
pub(super) fn agree(a: Option<&str>, b: Option<&str>) -> bool {
    a.is_none() || b.is_none() || a == b
}

/// Writes signs in one form, and drops what changes only the look.
fn plain(text: &str) -> String {
    let mut text = text.replace(['\u{2212}', '\u{fe63}', '\u{ff0d}', '\u{2013}'], "-");
    for (from, to) in [
        ("\\!", ""),
        ("{,}", ","),
        ("\\,", "\u{2009}"),
        ("\u{202f}", "\u{2009}"),
        ("\\;", " "),
        ("\\:", " "),
        ("\\ ", " "),
        ("\\quad", " "),
        ("~", " "),
        ("\u{a0}", " "),
        ("\\%", "%"),
        ("^{\\circ}", "°"),
        ("^\\circ", "°"),
        ("\\degree", "°"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\displaystyle", ""),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\cfrac", "\\frac"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// Without what stands around the whole: white space, `$…$`, `\(…\)`, braces, commands for text, and a full stop at the end.
fn unwrapped(text: &str) -> String {
    let mut text = python::strip(text).to_owned();
    loop {
        let inner = |open: &str, close: &str| {
            let inside = text.strip_prefix(open)?.strip_suffix(close)?;
            (!inside.contains(open) && !inside.contains(close)).then_some(inside)
        };
        let mut commands = TEXT.iter().filter_map(|command| text.strip_prefix(command));
        let argument = commands.find(|rest| rest.starts_with('{')).unwrap_or(&text);
        let whole = |inside: &&str| closing(inside).is_some_and(|end| end + 1 == inside.len());
        let braces = argument.strip_prefix('{').filter(whole);
        let next = (text.strip_suffix('.'))
            .or_else(|| inner("$$", "$$"))
            .or_else(|| inner("$", "$"))
            .or_else(|| inner("\\(", "\\)"))
            .or_else(|| inner("\\[", "\\]"))
            .or_else(|| braces.map(|inside| &inside[..inside.len() - 1]));
        let Some(next) = next else { return text };
        text = python::strip(next).to_owned();
    }
}

/// Where the brace closes that was open before the text.
pub(super) fn closing(inside: &str) -> Option<usize> {
    let mut depth = 1usize;
    inside.bytes().position(|byte| {
        depth = match byte {
            b'{' => depth + 1,
            b'}' => depth - 1,
            _ => depth,
        };
        depth == 0
    })
}

fn sign(text: &str) -> (Option<char>, &str) {
    match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.chars().next(), rest.trim_start()),
        None => (None, text),
    }
}

/// The sign of a currency in front.
fn currency(text: &str) -> (Option<&str>, &str) {
    let found =
        ["\\$", "$", "€", "£"].iter().find_map(|sign| text.strip_prefix(sign).map(|rest| (sign, rest)));
    found.map_or((None, text), |(sign, rest)| (Some(sign.trim_start_matches('\\')), rest.trim_start()))
}

/// The number that a text begins with, without its sign, and what follows it.
fn magnitude(text: &str) -> Option<(String, &str)> {
    if let Some(found) = fraction(text) {
        let ((a, b), rest) = found;
        return Some((quotient(0, a, b)?, rest));
    }
    let (whole, rest) = digits(text)?;
    if let Some((below, rest)) =
        rest.trim_start().strip_prefix('/').and_then(|rest| digits(rest.trim_start()))
    {
        return Some((quotient(0, small(&whole)?, small(&below)?)?, rest));
    }
    // `2\frac{1}{2}` and `2 1/2`.
    let mixed = fraction(rest.trim_start()).or_else(|| {
        let (a, rest) = digits(rest.strip_prefix([' ', THIN])?.trim_start())?;
        let (b, rest) = digits(rest.strip_prefix('/')?)?;
        Some(((small(&a)?, small(&b)?), rest))
    });
    match mixed {
        Some(((a, b), rest)) => Some((quotient(small(&whole)?, a, b)?, rest)),
        None => Some((whole, rest)),
    }
}

/// `\frac{a}{b}` or `\frac12` of whole numbers.
fn fraction(text: &str) -> Option<((u64, u64), &str)> {
    let mut rest = text.strip_prefix("\\frac")?.trim_start();
    let mut part = || -> Option<u64> {
        let (number, after) = match rest.strip_prefix('{') {
            Some(inside) => {
                let end = closing(inside)?;
                (&inside[..end], &inside[end + 1..])
            }
            None => rest.split_at(rest.chars().next()?.len_utf8()),
        };
        rest = after.trim_start();
        let (number, after) = digits(number.trim())?;
        if after.is_empty() { small(&number) } else { None }
    };
    let (a, b) = (part()?, part()?);
    Some(((a, b), rest))
}

/// A whole number that sums and products have room for.
fn small(number: &str) -> Option<u64> {
    number.parse().ok().filter(|&number: &u64| number < 1_000_000_000_000_000)
}

/// `whole + a / b` in its one form.
fn quotient(whole: u64, a: u64, b: u64) -> Option<String> {
    if b == 0 {
        return None;
    }
    let (mut a, mut b) = (u128::from(whole) * u128::from(b) + u128::from(a), u128::from(b));
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    (a, b) = (a / x.max(1), b / x.max(1));
    let mut odd = b;
    for prime in [2, 5] {
        while odd % prime == 0 {
            odd /= prime;
        }
    }
    if odd > 1 {
        return Some(format!("{a}/{b}"));
    }
    let mut decimal = (a / b).to_string();
    let mut rest = a % b;
    if rest > 0 {
        decimal.push('.');
    }
    while rest > 0 {
        decimal.push(char::from(b'0' + (rest * 10 / b) as u8));
        rest = rest * 10 % b;
    }
    Some(decimal)
}

/// The decimal number that a text begins with, in its one form, and what follows it. Commas and thin blanks separate groups of three
/// digits, or, before the last three, of two.
fn digits(text: &str) -> Option<(String, &str)> {
    let mut groups = vec![String::new()];
    let mut separator = None;
    let mut rest = text;
    loop {
        let mut chars = rest.chars();
        let Some(c) = chars.next() else { break };
        let after = chars.as_str();
        if let Some(digit) = python::digit(c) {
            groups.last_mut()?.push(digit);
        } else if matches!(c, ',' | THIN)
            && separator.is_none_or(|known| known == c)
            && starts_with_digit(after)
        {
            // `9\,500 1/2` and `2\,1/2`: what is no group of digits belongs to what follows.
            let length = after.chars().take_while(|&c| python::digit(c).is_some()).count();
            if c == THIN && length != 3 {
                break;
            }
            separator = Some(c);
            groups.push(String::new());
        } else if c == '_' && starts_with_digit(after) && !groups.last()?.is_empty() {
            // Python's separator.
        } else {
            break;
        }
        rest = after;
    }
    let (last, before) = groups.split_last()?;
    if !before.is_empty() {
        let inner = &before[1..];
        let sizes = inner.iter().all(|group| group.len() == 3) || inner.iter().all(|group| group.len() == 2);
        if last.len() != 3 || !(1..=3).contains(&before[0].len()) || !sizes {
            return None;
        }
    }
    let whole = groups.concat();
    let mut decimals = String::new();
    if let Some(after) = rest.strip_prefix('.') {
        decimals = after.chars().map_while(python::digit).collect();
        let end =
            after.char_indices().find(|&(_, c)| python::digit(c).is_none()).map_or(after.len(), |(at, _)| at);
        // `18.` ends a sentence.
        rest = if decimals.is_empty() && !after.trim().is_empty() { rest } else { &after[end..] };
    }
    if whole.is_empty() && decimals.is_empty() {
        return None;
    }
    let (whole, decimals) = (whole.trim_start_matches('0'), decimals.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if decimals.is_empty() { "" } else { "." };
    Some((format!("{whole}{point}{decimals}"), rest))
}

fn starts_with_digit(text: &str) -> bool {
    text.chars().next().is_some_and(|c| python::digit(c).is_some())
}

/// The unit behind a number: `Some(None)` for none, and `None` where what follows makes it another expression.
fn unit(rest: &str, words: bool) -> Option<Option<String>> {
    let spaced = rest.starts_with([' ', THIN, '\n', '\t']);
    let mut rest = python::strip(rest).trim_matches(THIN);
    if rest.is_empty() {
        return Some(None);
    }
    let mut name = String::new();
    let mut marked = false;
    while let Some(first) = rest.chars().next() {
        if let Some((inside, after)) = text_command(rest) {
            name.push_str(inside);
            (rest, marked) = (after, true);
        } else if let Some(after) = rest.strip_prefix("\\$") {
            name.push('$');
            (rest, marked) = (after, true);
        } else if matches!(first, '%' | '°' | '$' | '€' | '£' | '¢') {
            name.push(first);
            (rest, marked) = (&rest[first.len_utf8()..], true);
        } else if first == '^' && marked {
            let power = rest[1..].trim_start_matches('{');
            let (power, after) = power.split_at_checked(1).filter(|(power, _)| "123".contains(power))?;
            name.push_str(&format!("^{power}"));
            rest = after.trim_start_matches('}');
        } else if first.is_whitespace()
            || matches!(first, '/' | '.')
            || words && (spaced || marked) && (first.is_alphabetic() || matches!(first, '-' | '\'' | '’'))
        {
            name.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            return None;
        }
    }
    let unit = canonical_unit(&name);
    let wrong = unit.chars().any(|c| python::digit(c).is_some_and(|_| !unit.contains('^')))
        || unit.split([' ', '/', '-']).any(|word| NO_UNITS.contains(&canonical_word(word).as_str()))
        || unit.contains(['=', '+', '*', '<', '>', ':', '\\', ',', ';', '(']);
    if wrong {
        return None;
    }
    Some(Some(unit).filter(|unit| !unit.is_empty() && !unit.ends_with("unit")))
}

/// The argument of a command for text, and what follows it.
fn text_command(text: &str) -> Option<(&str, &str)> {
    let rest =
        TEXT.iter().filter_map(|command| text.strip_prefix(command)).find(|rest| rest.starts_with('{'))?;
    let inside = &rest[1..];
    let end = closing(inside)?;
    Some((&inside[..end], &inside[end + 1..]))
}

fn canonical_unit(name: &str) -> String {
    let lower = name.to_lowercase().replace('.', " ");
    let words: Vec<String> = lower.split_whitespace().map(canonical_word).collect();
    words.join(" ")
}

fn canonical_word(word: &str) -> String {
    if let Some((unit, power)) = word.split_once('^') {
        return format!("{}^{power}", canonical_word(unit));
    }
    let known =
        |word: &str| UNITS.iter().find(|names| names.contains(&word)).map(|names| names[0].to_owned());
    let singular = word.strip_suffix('s').filter(|stem| stem.chars().count() > 1).unwrap_or(word);
    known(word).or_else(|| known(singular)).unwrap_or_else(|| singular.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_one_number_are_one_value() {
        for (text, value) in [
            ("18", "18"),
            (" +018.00 ", "18"),
            ("18.", "18"),
            ("$18$", "18"),
            (r"\(18\)", "18"),
            (r"\text{18}", "18"),
            (r"\textbf{18}.", "18"),
            (r"{18}", "18"),
            ("x = 18", "18"),
            (r"9{,}500", "9500"),
            (r"9,\!500", "9500"),
            (r"9\,500", "9500"),
            ("9_500", "9500"),
            ("1,00,000", "100000"),
            (r"\$80,000", "80000"),
            (r"-\$5", "-5"),
            (r"\$-5", "-5"),
            ("\u{2212}18", "-18"),
            ("-0.0", "0"),
            (".50", "0.5"),
            ("1/2", "0.5"),
            (r"\frac{1}{2}", "0.5"),
            (r"\dfrac12", "0.5"),
            ("36/2", "18"),
            ("2/6", "1/3"),
            (r"2\frac{1}{2}", "2.5"),
            ("-2 1/2", "-2.5"),
            ("１８", "18"),
            (r"18 \text{ clips}", "18"),
            (r"18\,\mathrm{cm}^2", "18"),
            (r"45^{\circ}", "45"),
            (r"50\%", "50"),
        ] {
            assert_eq!(parse(text, false).map(|found| found.value).as_deref(), Some(value), "{text}");
        }
        for text in [
            "",
            "-",
            "$",
            "3:30",
            "5-7",
            "1e3",
            "1,8",
            "7,9,12,13",
            "1,2345",
            "2x",
            r"2\pi",
            "3i",
            "5!",
            "2^3",
            "1/0",
            "(18)",
            "18 eggs",
            "x+1",
            r"2\text{ dozen}",
            r"3\text{ million}",
            r"5\text{ to }7",
            "1.2.3",
            "18,",
            "6 + 12",
            r"\frac{1}{2}x",
            r"\frac{a}{2}",
        ] {
            assert_eq!(parse(text, false), None, "{text}");
        }
        assert_eq!(parse("18 eggs", true).map(|found| found.value).as_deref(), Some("18"));
        for text in ["18x", "2 dozen", "5 to 7", "5 or 7", "3 million", "1e3", "18 + eggs"] {
            assert_eq!(parse(text, true), None, "{text}");
        }
    }

    #[test]
    fn units_have_one_form_too() {
        let unit = |text: &str| parse(text, true).unwrap().unit;
        for (a, b) in [
            (r"5\text{ cm}", "5 centimeters"),
            (r"\$5", r"5 \text{ dollars}"),
            (r"5\%", "5 percent"),
            (r"90^\circ", r"90\text{ degrees}"),
            ("3 clips", "3 clip"),
            (r"2\text{ ft}^2", r"2\text{ feet}^{2}"),
        ] {
            assert_eq!(unit(a), unit(b), "{a} {b}");
            assert!(unit(a).is_some(), "{a}");
        }
        for (a, b) in
            [(r"5\text{ cm}", r"5\text{ m}"), (r"5\text{ cm}", r"5\text{ cm}^2"), (r"\$5", r"5\text{ cents}")]
        {
            assert!(!agree(unit(a).as_deref(), unit(b).as_deref()), "{a} {b}");
        }
        assert_eq!(unit(r"5\text{ square units}"), None);
        assert_eq!(unit_of(r"2\pi\text{ cm}").as_deref(), Some("cm"));
        assert_eq!((unit_of(r"\text{Evelyn}"), unit_of("2x")), (None, None));
    }
}
