//! Rewards that look at the form of a response: its parts and its length.

use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Answered, Judge, Judged, PolicyModel, Unjudged};

/// Settings of `format`: `parts` or `pattern`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Format {
    /// Texts that must stand in the response in this order, each as often as it is listed, such as `["<think>", "</think>"]`.
    pub parts: Vec<String>,
    /// A regular expression that the whole response must match, blanks at both ends aside, such as `<think>.*</think>\s*\S+`. A point
    /// stands for every character, ends of lines included.
    pub pattern: String,
}

/// The unit of a length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// Settings of `length`: 1 where the response is neither too short nor too long. Outside, the reward falls in a line to 0 at `tolerance`
/// units from the limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Length {
    /// The unit.
    pub unit: LengthUnit,
    /// The shortest length that is good.
    pub min: usize,
    /// The longest length that is good; 0 for any. The same as `min` for a length that is aimed at.
    pub max: usize,
    /// How far beyond the limits the reward comes down to 0; 0 for at once.
    pub tolerance: usize,
}

/// The form of a response.
#[derive(Debug)]
pub(super) enum Form {
    Parts(Vec<String>),
    Whole(Regex),
}

impl Format {
    pub(super) fn checked(&self) -> Result<Form, String> {
        let Self { parts, pattern } = self;
        match (parts.is_empty(), pattern.is_empty()) {
            (true, true) => Err("has neither parts nor pattern; give one of them".into()),
            (false, false) => Err("has parts and pattern; give one of them".into()),
            (true, false) => {
                // The pattern alone first, so that a message shows it as it was written.
                let compiled = Regex::new(pattern).and_then(|_| {
                    let whole = format!("\\A(?:{pattern})\\z");
                    RegexBuilder::new(&whole).dot_matches_new_line(true).build()
                });
                compiled.map(Form::Whole).map_err(|error| format!("pattern: {error}"))
            }
            (false, true) if parts.iter().any(String::is_empty) => Err("parts: none may be empty".into()),
            (false, true) => Ok(Form::Parts(parts.clone())),
        }
    }
}

impl Judge for Form {
    fn judge(&self, samples: &[Answered<'_>], _: Option<PolicyModel<'_>>) -> Judged {
        Unjudged::each(samples, |sample| Ok(f64::from(u8::from(self.fits(sample.text)))))
    }
}

impl Form {
    fn fits(&self, text: &str) -> bool {
        let parts = match self {
            Self::Whole(pattern) => return pattern.is_match(text.trim()),
            Self::Parts(parts) => parts,
        };
        let mut rest = text;
        let in_order = parts.iter().all(|part| match rest.split_once(part.as_str()) {
            Some((_, behind)) => {
                rest = behind;
                true
            }
            None => false,
        });
        let listed = |part: &String| parts.iter().filter(|other| *other == part).count();
        in_order && parts.iter().all(|part| text.matches(part.as_str()).count() == listed(part))
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

    fn reward(&self, length: usize) -> f64 {
        let short = self.min.saturating_sub(length);
        let long = if self.max == 0 { 0 } else { length.saturating_sub(self.max) };
        match short.max(long) {
            0 => 1.0,
            distance => (1.0 - distance as f64 / self.tolerance.max(1) as f64).max(0.0),
        }
    }
}

impl Judge for Length {
    fn judge(&self, samples: &[Answered<'_>], _: Option<PolicyModel<'_>>) -> Judged {
        Unjudged::each(samples, |sample| {
            Ok(self.reward(match self.unit {
                LengthUnit::Words => sample.text.split_whitespace().count(),
                LengthUnit::Characters => sample.text.chars().count(),
                LengthUnit::Tokens => sample.tokens.ok_or(
                    "the tokens of a text from a file are not known; count words or characters (unit)",
                )?,
            }))
        })
    }
}
