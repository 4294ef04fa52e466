//! The last number of a text.

use std::sync::LazyLock;

use regex::Regex;

/// A run of digits, points and commas with an exponent, and a second run behind a slash.
static RUNS: LazyLock<Regex> = LazyLock::new(|| {
    let run = r"[0-9.,]*[0-9](?:[eE][-+]?[0-9]+)?";
    Regex::new(&format!("({run})(?:/({run}))?")).expect("the pattern is right")
});

/// Thousands in groups of three.
static GROUPED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?:[eE].*)?$").expect("the pattern is right")
});

/// The last number of a text: digits, with commas between groups of three or without, decimals, an exponent, or a fraction such as `3/4`.
///
/// A minus sign counts unless a letter, a digit or a closing bracket stands before it: `3-4` ends with 4. None where there is no number, where
/// the last one has several points (`1.2.3`), and where it is too large for a 64-bit float.
pub(super) fn last_number(text: &str) -> Option<f64> {
    let found = RUNS.captures_iter(text).last()?;
    let run = found.get(1)?;
    let (mut value, whole) = magnitude(run.as_str())?;
    if let Some(divisor) = found.get(2) {
        value /= magnitude(divisor.as_str())?.0;
    }
    if whole && ends_with_minus(&text[..run.start()]) {
        value = -value;
    }
    value.is_finite().then_some(value)
}

/// The last number of a run, and whether it is the only one, so that a sign before the run is its own.
fn magnitude(run: &str) -> Option<(f64, bool)> {
    let number = run.trim_start_matches([',', '.']);
    let front = &run[..run.len() - number.len()];
    if GROUPED.is_match(number) {
        return Some((number.replace(',', "").parse().ok()?, front.is_empty()));
    }
    if let Some((_, last)) = number.rsplit_once(',') {
        return Some((last.parse().ok()?, false));
    }
    // `.5`, but not `...5`.
    let fraction = front.ends_with('.') && !front.ends_with("..") && !number.contains('.');
    let number = if fraction { format!("0.{number}") } else { number.to_owned() };
    Some((number.parse().ok()?, front.len() <= usize::from(fraction)))
}

/// True where a text ends with the sign of a negative number, which may have a sign of currency behind it.
fn ends_with_minus(text: &str) -> bool {
    let text = text.strip_suffix(['$', '€', '£', '¥']).unwrap_or(text);
    text.strip_suffix(['-', '\u{2212}', '\u{2013}']).is_some_and(|before| {
        !before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, ')' | ']' | '}'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_of_a_text() {
        for (text, number) in [
            ("It is 7.", Some(7.0)),
            ("3 + 4 = 7", Some(7.0)),
            ("$1,234.50", Some(1234.5)),
            ("1,234,567", Some(1_234_567.0)),
            ("1, 2, 3", Some(3.0)),
            ("1,2", Some(2.0)),
            ("1,2345", Some(2345.0)),
            ("[-3,-4]", Some(-4.0)),
            ("-3,4", Some(4.0)),
            ("-5", Some(-5.0)),
            ("\u{2212}5 °C", Some(-5.0)),
            ("-$5", Some(-5.0)),
            ("**-5**", Some(-5.0)),
            ("3-4 days", Some(4.0)),
            ("f(x)-5", Some(5.0)),
            ("page-5", Some(5.0)),
            ("- 5", Some(5.0)),
            ("7 (or 3.0)", Some(3.0)),
            (".5", Some(0.5)),
            ("-.5", Some(-0.5)),
            ("...5", Some(5.0)),
            ("-1,234", Some(-1234.0)),
            ("1.2.3", None),
            ("1e3", Some(1000.0)),
            ("2.5E-1.", Some(0.25)),
            ("7e", Some(7.0)),
            ("1e999", None),
            ("1/2", Some(0.5)),
            ("-3/4", Some(-0.75)),
            ("24 / 3", Some(3.0)),
            ("1/0", None),
            ("5 km/h", Some(5.0)),
            ("007", Some(7.0)),
            ("ünï12ö", Some(12.0)),
            ("é,5", Some(5.0)),
            // Digits of other scripts are none.
            ("\u{ff11}\u{0663}", None),
            ("none", None),
            ("", None),
            ("-", None),
            (",.,", None),
        ] {
            assert_eq!(last_number(text), number, "{text}");
        }
    }
}
