//! Rewards that look at the text of a response.

use regex::Regex;
use ruminate_datasets::environments::{Compat, boxed_answer, boxed_number, equivalent, gold_number};
use serde::{Deserialize, Serialize};

use super::{Answered, Judge, Unjudged};

/// 1 where the response is the answer, blanks at both ends aside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExactMatch {
    /// Capitals and small letters are the same.
    pub ignore_case: bool,
    /// Punctuation does not count.
    pub ignore_punctuation: bool,
}

/// 1 where the last number of the response is that of the answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Number {
    /// How far they may be apart.
    pub tolerance: f64,
}

/// A regular expression, in the syntax of Rust's `regex`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pattern {
    /// The expression. What its first group captures, in the last match, is compared with the answer; without a group, any match is worth 1.
    pub pattern: String,
}

/// 1 where a text is in the response.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contains {
    /// The text; without one, the answer.
    pub text: Option<String>,
    /// Capitals and small letters are the same.
    pub ignore_case: bool,
}

/// 1 where parts stand in the response in their order, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Format {
    /// The parts, such as `["<think>", "</think>", "<answer>", "</answer>"]`.
    pub parts: Vec<String>,
}

/// What a length is counted in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthUnit {
    /// Words between blanks.
    #[default]
    Words,
    /// Characters.
    Characters,
    /// Tokens of the model that wrote the response, its end token included.
    Tokens,
}

/// 1 where the response is neither too short nor too long. Outside, the reward falls in a line to 0 at `tolerance` units from the limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Length {
    /// What is counted.
    pub unit: LengthUnit,
    /// The shortest length that is good.
    pub min: usize,
    /// The longest length that is good; 0 for any.
    pub max: usize,
    /// How far beyond the limits there is still some reward; 0 for none.
    pub tolerance: usize,
}

/// The `math` kind.
#[derive(Debug)]
pub(super) struct Math;

/// The `gsm8k` kind.
#[derive(Debug)]
pub(super) struct Gsm8k;

/// Compares each response with its answer.
fn each(
    samples: &[Answered<'_>],
    judge: impl Fn(&Answered<'_>) -> Result<f64, String>,
) -> Result<Vec<f64>, Unjudged> {
    let one = |(sample, of)| judge(of).map_err(|reason| Unjudged { sample, reason, external: false });
    samples.iter().enumerate().map(one).collect()
}

/// The answer, without which nothing can be compared.
fn answer<'a>(sample: &Answered<'a>) -> Result<&'a str, String> {
    let missing = "the row has no answer (data.columns.answer), which this reward compares with";
    sample.row.answer.as_deref().map(str::trim).ok_or_else(|| missing.into())
}

fn is(right: bool) -> f64 {
    f64::from(u8::from(right))
}

impl Judge for ExactMatch {
    fn judge(&self, samples: &[Answered<'_>]) -> Result<Vec<f64>, Unjudged> {
        let plain = |text: &str| {
            let text = if self.ignore_case { text.to_lowercase() } else { text.to_owned() };
            let kept = |c: &char| !self.ignore_punctuation || c.is_alphanumeric() || c.is_whitespace();
            let text: String = text.chars().filter(kept).collect();
            text.trim().to_owned()
        };
        each(samples, |sample| Ok(is(plain(answer(sample)?) == plain(sample.text))))
    }
}

impl Number {
    pub(super) fn checked(&self) -> Result<Self, String> {
        if self.tolerance >= 0.0 && self.tolerance.is_finite() {
            return Ok(self.clone());
        }
        Err(format!("tolerance is {}, but must not be negative", self.tolerance))
    }
}

/// The last number of a text: an optional sign, digits in groups of three or not, a fraction.
fn last_number(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    // From the last digit back to where the number begins.
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let start = text[..end]
        .rfind(|c: char| !(c.is_ascii_digit() || c == '.' || c == ','))
        .map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    let mut number = text[start..end].trim_start_matches([',', '.']);
    // A list such as `3, 4` has a blank; one such as `3,4` ends with a number of its own.
    if let Some((_, rest)) = number.split_once(',') {
        let groups = rest.split('.').next().unwrap_or_default().split(',');
        if !groups.clone().all(|group| group.len() == 3) {
            number = number.rsplit(',').next().unwrap_or(number);
        }
    }
    let at = end - number.len();
    let number: String = number.chars().filter(|&c| c != ',').collect();
    let before = text[..at].chars().next_back();
    // `.5`, which is the fraction of nothing.
    let (number, before) = match before {
        Some('.') if !number.contains('.') => {
            let earlier = text[..at - 1].chars().next_back();
            match earlier {
                Some(c) if c.is_ascii_digit() || c == '.' => (number, before),
                _ => (format!("0.{number}"), earlier),
            }
        }
        _ => (number, before),
    };
    let value: f64 = number.parse().ok()?;
    Some(if matches!(before, Some('-' | '\u{2212}')) { -value } else { value })
}

impl Judge for Number {
    fn judge(&self, samples: &[Answered<'_>]) -> Result<Vec<f64>, Unjudged> {
        each(samples, |sample| {
            let answer = answer(sample)?;
            let gold = last_number(answer).ok_or_else(|| format!("the answer {answer:?} has no number"))?;
            Ok(is(last_number(sample.text).is_some_and(|number| (number - gold).abs() <= self.tolerance)))
        })
    }
}

/// A pattern that is ready.
#[derive(Debug)]
pub(super) struct Compiled(Regex);

impl Pattern {
    pub(super) fn compiled(&self) -> Result<Compiled, String> {
        if self.pattern.is_empty() {
            return Err(
                "pattern is empty; give one, such as kind.regex.pattern = 'The answer is (\\d+)'".into()
            );
        }
        Regex::new(&self.pattern).map(Compiled).map_err(|error| format!("pattern: {error}"))
    }
}

impl Judge for Compiled {
    fn judge(&self, samples: &[Answered<'_>]) -> Result<Vec<f64>, Unjudged> {
        let Self(pattern) = self;
        each(samples, |sample| {
            if pattern.captures_len() == 1 {
                return Ok(is(pattern.is_match(sample.text)));
            }
            let answer = answer(sample)?;
            let found = pattern.captures_iter(sample.text).last().and_then(|found| found.get(1));
            Ok(is(found.is_some_and(|found| found.as_str().trim() == answer)))
        })
    }
}

impl Judge for Math {
    fn judge(&self, samples: &[Answered<'_>]) -> Result<Vec<f64>, Unjudged> {
        each(samples, |sample| {
            // The answer may be a whole solution.
            let answer = answer(sample)?;
            let gold = boxed_answer(answer, Compat::Fixed).unwrap_or(answer);
            let given = boxed_answer(sample.text, Compat::Fixed);
            Ok(is(given.is_some() && equivalent(given, Some(gold))))
        })
    }
}

impl Judge for Gsm8k {
    fn judge(&self, samples: &[Answered<'_>]) -> Result<Vec<f64>, Unjudged> {
        let number = |text: &str| gold_number(text, Compat::Fixed).or_else(|| boxed_number(text));
        each(samples, |sample| {
            let answer = answer(sample)?;
            // The answer may be a whole solution, or a number alone.
            let gold = number(answer).or_else(|| gold_number(&format!("#### {answer}"), Compat::Fixed));
            let gold =
                gold.ok_or_else(|| format!("the answer {answer:?} is no number, nor ends with `#### 42`"))?;
            Ok(is(number(sample.text).is_some_and(|given| given == gold)))
        })
    }
}

impl Judge for Contains {
    fn judge(&self, samples: &[Answered<'_>]) -> Result<Vec<f64>, Unjudged> {
        let plain = |text: &str| if self.ignore_case { text.to_lowercase() } else { text.to_owned() };
        each(samples, |sample| {
            let wanted = match &self.text {
                Some(text) => text,
                None => answer(sample)?,
            };
            Ok(is(plain(sample.text).contains(&plain(wanted))))
        })
    }
}

impl Format {
    pub(super) fn checked(&self) -> Result<Self, String> {
        if self.parts.is_empty() || self.parts.iter().any(String::is_empty) {
            return Err("parts: name at least one, and none that is empty".into());
        }
        Ok(self.clone())
    }
}

impl Judge for Format {
    fn judge(&self, samples: &[Answered<'_>]) -> Result<Vec<f64>, Unjudged> {
        each(samples, |sample| {
            let mut rest = sample.text;
            for part in &self.parts {
                let Some((_, behind)) = rest.split_once(part.as_str()) else { return Ok(0.0) };
                rest = behind;
            }
            Ok(is(self
                .parts
                .iter()
                .all(|part| sample.text.matches(part.as_str()).count() == self.count(part))))
        })
    }
}

impl Format {
    /// How often a part is wanted.
    fn count(&self, part: &str) -> usize {
        self.parts.iter().filter(|other| *other == part).count()
    }
}

impl Length {
    pub(super) fn checked(&self) -> Result<Self, String> {
        let Self { min, max, .. } = *self;
        match (min, max) {
            (0, 0) => Err("has neither min nor max, so every length is good; set one".into()),
            (min, max) if max > 0 && min > max => Err(format!("min is {min}, more than max ({max})")),
            _ => Ok(self.clone()),
        }
    }
}

impl Judge for Length {
    fn judge(&self, samples: &[Answered<'_>]) -> Result<Vec<f64>, Unjudged> {
        each(samples, |sample| {
            let length = match self.unit {
                LengthUnit::Words => sample.text.split_whitespace().count(),
                LengthUnit::Characters => sample.text.chars().count(),
                LengthUnit::Tokens => sample.tokens.ok_or(
                    "the tokens of a text from a file are not known; count words or characters (unit)",
                )?,
            };
            let short = self.min.saturating_sub(length);
            let long = if self.max == 0 { 0 } else { length.saturating_sub(self.max) };
            let (distance, tolerance) = (short.max(long) as f64, self.tolerance as f64);
            Ok(if distance == 0.0 { 1.0 } else { (1.0 - distance / tolerance.max(1.0)).max(0.0) })
        })
    }
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
            ("-5", Some(-5.0)),
            ("\u{2212}5 °C", Some(-5.0)),
            ("7 (or 3.0)", Some(3.0)),
            (".5", Some(0.5)),
            ("-.5", Some(-0.5)),
            ("...5", Some(5.0)),
            ("1.2.3", None),
            ("007", Some(7.0)),
            ("ünï12ö", Some(12.0)),
            ("é,5", Some(5.0)),
            ("none", None),
            ("", None),
        ] {
            assert_eq!(last_number(text), number, "{text}");
        }
    }
}
