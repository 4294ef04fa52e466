//! Prompts of the few-shot baselines, and the parser of what they answer.

use super::MarioDataset;
use crate::{Error, Place, Result, json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// Demonstrations to put before a question, and what to put behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object with its texts")]
pub struct FewShotPrompt {
    /// The data set.
    pub dataset: MarioDataset,
    /// Which of its prompts, e.g. `i2ro` (rationale, then answer) or `i2o` (answer alone).
    pub variant: String,
    /// The baselines that use it.
    pub used_by: Vec<String>,
    /// Demonstrations, and the beginning of the question.
    pub prefix: String,
    /// What follows the question.
    pub suffix: String,
    /// How many demonstrations there are.
    pub n_demonstrations: usize,
}

impl FewShotPrompt {
    /// The prompt for a question.
    #[must_use]
    pub fn prompt(&self, question: &str) -> String {
        format!("{}{question}{}", self.prefix, self.suffix)
    }
}

/// Reads prompt texts: an array of [`FewShotPrompt`]s.
///
/// # Errors
/// As [`json::read`].
pub fn read_few_shot(path: &Path) -> Result<Vec<FewShotPrompt>> {
    json::read(path)
}

/// The prompt of a data set in a file of prompt texts: an array of objects as [`FewShotPrompt`] has them, where `used_by` and
/// `n_demonstrations` may be missing, and `dataset` may be the name of any data set. `user` tells baselines apart that have texts of their
/// own; a prompt without `used_by` serves all.
///
/// # Errors
/// Those of [`json::read`], and [`Error::BadField`] when there is no such prompt.
pub fn find_few_shot(path: &Path, dataset: MarioDataset, variant: &str, user: &str) -> Result<FewShotPrompt> {
    #[derive(Deserialize)]
    #[serde(expecting = "an object with dataset, variant, prefix and suffix")]
    struct Text {
        dataset: String,
        variant: String,
        #[serde(default)]
        used_by: Vec<String>,
        prefix: String,
        suffix: String,
        #[serde(default)]
        n_demonstrations: usize,
    }
    let texts: Vec<Text> = json::read(path)?;
    let known: BTreeSet<String> =
        texts.iter().map(|text| format!("{} {}", text.dataset, text.variant)).collect();
    let fits = |text: &Text| {
        let used = text.used_by.is_empty() || text.used_by.iter().any(|by| by == user);
        text.dataset == dataset.name() && text.variant == variant && used
    };
    match texts.into_iter().find(fits) {
        Some(Text { variant, used_by, prefix, suffix, n_demonstrations, .. }) => {
            Ok(FewShotPrompt { dataset, variant, used_by, prefix, suffix, n_demonstrations })
        }
        None => {
            let known: Vec<String> = known.into_iter().collect();
            let reason = format!(
                "is never {variant:?} for {dataset} and {user}; the file has prompts for {}",
                known.join(", ")
            );
            Err(Error::BadField { path: path.into(), place: Place::Item(0), field: "variant", reason })
        }
    }
}

/// What happens to a rationale that begins with the answer, `Yes` or `No`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeadingAnswer {
    /// It stays, as in the GPT-3 baseline.
    #[default]
    Keep,
    /// The word goes, once, with a comma or period behind it.
    Remove,
    /// All letters of the word go, as in the published Flan-T5 baseline: `Norman` becomes `rman`.
    Reference,
}

/// Rationale and label of a completion; both empty where it states no answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Completion {
    /// The rationale.
    pub rationale: String,
    /// The label in lower case; empty where the answer is none.
    pub label: String,
}

const PHRASES: [&str; 7] = [
    "The answer is",
    "So the answer is",
    "So, the answer is",
    "Thus the answer is",
    "Thus, the answer is",
    "Of the choices, the most appropriate answer is",
    "The correct answer is",
];

/// Takes a completion apart at the phrase that states the answer.
///
/// # Reference behaviour
/// A completion whose only phrase is "the correct answer is (B)" yields nothing, because it lacks `the answer is (`. One
/// whose phrases are all in capitals makes the published parser fail; here it yields nothing.
#[must_use]
pub fn parse_completion(dataset: MarioDataset, completion: &str, leading: LeadingAnswer) -> Completion {
    let text = completion.replace('\n', " ").replace(':', "");
    let text = text.trim_start();
    let labels = dataset.labels();
    // Labels such as (A) are announced by their parenthesis, words by nothing.
    let by_words = !labels.iter().all(|label| label.starts_with('('));
    let gate = if by_words { "the answer is" } else { "the answer is (" };
    if !text.to_lowercase().contains(gate) {
        return Completion::default();
    }
    let phrase = |words: &str| if by_words { words.to_string() } else { format!("{words} (") };
    let phrases = &PHRASES[..if by_words { PHRASES.len() - 1 } else { PHRASES.len() }];
    // `the answer is` is a part of most others in lower case, so it comes last.
    let lower = phrases[1..].iter().chain(&phrases[..1]).map(|words| phrase(&words.to_lowercase()));
    let mut all = phrases.iter().map(|words| phrase(words)).chain(lower);
    let Some(found) = all.find(|phrase| text.contains(phrase.as_str())) else { return Completion::default() };
    let mut pieces = text.split(found.as_str());
    let rationale = pieces.next().unwrap_or("").trim().trim_end_matches([' ', 'A']);
    let answer = pieces.next().unwrap_or("").trim().to_lowercase();
    let label = if by_words {
        let mut labels: Vec<String> = labels.iter().map(|label| label.to_lowercase()).collect();
        // The longest first, because one may begin with another.
        labels.sort_by_key(|label| std::cmp::Reverse(label.len()));
        labels.into_iter().find(|label| answer.starts_with(label.as_str())).unwrap_or_default()
    } else {
        let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(3);
        let answer: String = answer.chars().take(longest - 1).collect();
        // Where labels have more than a letter, an answer ends at its parenthesis.
        let answer = if longest > 3 { answer.split_inclusive(')').next().unwrap_or("") } else { &answer };
        format!("({answer}")
    };
    let rationale = match leading {
        LeadingAnswer::Keep => rationale,
        LeadingAnswer::Remove => without_leading_word(rationale),
        LeadingAnswer::Reference => without_leading_letters(rationale),
    };
    Completion { rationale: rationale.to_string(), label }
}

fn without_leading_word(rationale: &str) -> &str {
    for word in ["No", "Yes"] {
        if let Some(rest) = rationale.strip_prefix(word)
            && !rest.starts_with(|c: char| c.is_alphanumeric() || "'’-".contains(c))
        {
            return rest.strip_prefix([',', '.']).unwrap_or(rest).trim_start();
        }
    }
    rationale
}

fn without_leading_letters(rationale: &str) -> &str {
    ["No,", "Yes,", "No.", "Yes.", "No", "Yes"].into_iter().fold(rationale, |rest, word| {
        if rest.starts_with(word) { rest.trim_start_matches(|c| word.contains(c)).trim_start() } else { rest }
    })
}
