//! Rewards that compare a response with the answer.

use std::sync::LazyLock;

use regex::Regex;
use ruminate_datasets::environments::{
    self, Compat, Environment, Problem, boxed_answer, boxed_number, gold_number,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::numbers::last_number;
use super::{Answered, Judge, Judged, PolicyModel, Unjudged};

/// Settings of `exact_match`: how equal a response and the answer must be. Blanks at both ends never count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExactMatch {
    /// Capitals and small letters are the same.
    pub ignore_case: bool,
    /// Punctuation does not count, signs of minus included, and any number of blanks is one.
    pub ignore_punctuation: bool,
}

/// Settings of `number`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Number {
    /// How far the last number of the response may be from that of the answer.
    pub tolerance: f64,
}

/// Settings of `regex`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pattern {
    /// A regular expression in the syntax of Rust's crate `regex`. What its first group captures, in the last match, is compared with the
    /// answer, blanks at both ends aside. Without a group, `(...)`, any match is worth 1; `(?:...)` is none.
    pub pattern: String,
}

/// Settings of `contains`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Contains {
    /// The text that the response must contain; without one, the answer.
    pub text: Option<String>,
    /// Capitals and small letters are the same.
    pub ignore_case: bool,
}

/// The `math` kind.
#[derive(Debug)]
pub(super) struct Math;

/// The `gsm8k` kind.
#[derive(Debug)]
pub(super) struct Gsm8k;

/// The answer, without which nothing can be compared.
fn answer<'a>(sample: &Answered<'a>) -> Result<&'a str, String> {
    let missing =
        "the row has no `answer` (or the field that data.columns names), which this reward compares with";
    sample.row.answer.as_deref().map(str::trim).ok_or_else(|| missing.into())
}

fn is(right: bool) -> f64 {
    f64::from(u8::from(right))
}

static PUNCTUATION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\p{P}$+<=>^`|~]").expect("the pattern is right"));

impl ExactMatch {
    fn plain(&self, text: &str) -> String {
        let text = if self.ignore_case { text.to_lowercase() } else { text.to_owned() };
        if !self.ignore_punctuation {
            return text.trim().to_owned();
        }
        let text = PUNCTUATION.replace_all(&text, "");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Judge for ExactMatch {
    fn judge(&self, samples: &[Answered<'_>], _: Option<PolicyModel<'_>>) -> Judged {
        Unjudged::each(samples, |sample| {
            let answer = answer(sample)?;
            let wanted = self.plain(answer);
            if wanted.is_empty() && !answer.is_empty() {
                return Err(format!("the answer {answer:?} is nothing but punctuation, which is ignored"));
            }
            Ok(is(wanted == self.plain(sample.text)))
        })
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

impl Judge for Number {
    fn judge(&self, samples: &[Answered<'_>], _: Option<PolicyModel<'_>>) -> Judged {
        Unjudged::each(samples, |sample| {
            let answer = answer(sample)?;
            let gold = last_number(answer).ok_or_else(|| format!("the answer {answer:?} has no number"))?;
            Ok(is(last_number(sample.text).is_some_and(|number| (number - gold).abs() <= self.tolerance)))
        })
    }
}

/// A regular expression that is ready.
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
    fn judge(&self, samples: &[Answered<'_>], _: Option<PolicyModel<'_>>) -> Judged {
        let Self(pattern) = self;
        Unjudged::each(samples, |sample| {
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
    fn judge(&self, samples: &[Answered<'_>], _: Option<PolicyModel<'_>>) -> Judged {
        let math = environments::Math { compat: Compat::Fixed };
        Unjudged::each(samples, |sample| {
            // The answer may be a whole solution.
            let answer = answer(sample)?;
            let solution = match boxed_answer(answer, Compat::Fixed) {
                Some(_) => answer.to_owned(),
                None => format!("\\boxed{{{answer}}}"),
            };
            let problem = Problem { solution, ..Problem::default() };
            if answer.is_empty() || boxed_answer(&problem.solution, Compat::Fixed).is_none() {
                return Err(format!(
                    "the answer {answer:?} is no expression: it is empty, or a brace is not closed"
                ));
            }
            Ok(is(math.judge(&problem, sample.text).success()))
        })
    }
}

impl Judge for Gsm8k {
    fn judge(&self, samples: &[Answered<'_>], _: Option<PolicyModel<'_>>) -> Judged {
        let number = |text: &str| gold_number(text, Compat::Fixed).or_else(|| boxed_number(text));
        Unjudged::each(samples, |sample| {
            let answer = answer(sample)?;
            // The answer may be a whole solution, or a number alone.
            let gold = number(answer).or_else(|| gold_number(&format!("#### {answer}"), Compat::Fixed));
            let gold =
                gold.ok_or_else(|| format!("the answer {answer:?} is no number, nor ends with `#### 42`"))?;
            Ok(is(number(sample.text).is_some_and(|given| given == gold)))
        })
    }
}

impl Contains {
    pub(super) fn checked(&self) -> Result<Self, String> {
        match self.text.as_deref() {
            Some("") => Err("text is empty, which every response contains".into()),
            _ => Ok(self.clone()),
        }
    }
}

impl Judge for Contains {
    fn judge(&self, samples: &[Answered<'_>], _: Option<PolicyModel<'_>>) -> Judged {
        let plain = |text: &str| if self.ignore_case { text.to_lowercase() } else { text.to_owned() };
        Unjudged::each(samples, |sample| {
            let wanted = match &self.text {
                Some(text) => text,
                None => answer(sample)?,
            };
            if wanted.is_empty() {
                return Err("the row's `answer` is empty, which every response contains".into());
            }
            Ok(is(plain(sample.text).contains(&plain(wanted))))
        })
    }
}
