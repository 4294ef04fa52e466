//! One multiple-choice question, and how a line of text becomes one.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What separates the parts of a question in the text: a backslash and the letter n, *not* a line feed.
pub const PART_SEPARATOR: &str = r"\n";

/// Which part of a data set a question belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Trained on.
    Train,
    /// Validated on.
    Dev,
    /// Evaluated on at the end.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Split::Train => "train",
            Split::Dev => "dev",
            Split::Test => "test",
        })
    }
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "train" => Ok(Split::Train),
            "dev" => Ok(Split::Dev),
            "test" => Ok(Split::Test),
            other => Err(Error::UnknownSplit(other.to_owned())),
        }
    }
}

/// Where questions come from: stamped on each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The task's key.
    pub task: String,
    /// The task's place in the list of tasks, for metrics per task.
    pub task_ix: usize,
    /// The split.
    pub split: Split,
}

impl Origin {
    /// The `task_ix`-th task of a list.
    pub fn new(task: impl Into<String>, task_ix: usize, split: Split) -> Self {
        Self { task: task.into(), task_ix, split }
    }
}

/// A multiple-choice question with letter answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The task's key.
    pub task: String,
    /// The task's place in the list of tasks.
    pub task_ix: usize,
    /// The split.
    pub split: Split,
    /// The whole text: stem, choices with their markers, and context if there is any.
    pub question: String,
    /// The labels of the choices, `A`, `B`, ...: what a model is asked to produce.
    pub choices: Vec<String>,
    /// The label of the gold choice.
    pub answer: String,
    /// The index of the gold choice.
    pub answer_ix: usize,
}

impl Question {
    /// A question of `origin` from what a line says.
    pub fn new(origin: &Origin, parsed: ParsedLine) -> Self {
        Self {
            task: origin.task.clone(),
            task_ix: origin.task_ix,
            split: origin.split,
            choices: letters(parsed.choice_texts.len()),
            answer: letter(parsed.answer_ix),
            answer_ix: parsed.answer_ix,
            question: parsed.question,
        }
    }

    /// The texts of the choices, parsed from the question again. Empty for a text without choices.
    pub fn choice_texts(&self) -> Vec<String> {
        choice_part(&self.question).map(parse_choices).unwrap_or_default()
    }
}

/// Checks that every question fits into `capacity` choice slots.
///
/// # Errors
/// [`Error::TooManyChoices`] for the first question that does not.
pub fn check_capacity<'a>(questions: impl IntoIterator<Item = &'a Question>, capacity: usize) -> Result<()> {
    match questions.into_iter().find(|q| q.choices.len() > capacity) {
        None => Ok(()),
        Some(q) => Err(Error::TooManyChoices {
            task: q.task.clone(),
            question: q.question.clone(),
            choices: q.choices.len(),
            capacity,
        }),
    }
}

/// What one line says: the text of the question, its choices, and which of them is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedLine {
    /// The whole left field without blanks at its ends.
    pub question: String,
    /// The texts of the choices.
    pub choice_texts: Vec<String>,
    /// The index of the gold choice.
    pub answer_ix: usize,
}

/// The placeholder for an answer in test files whose labels are not published.
const NO_LABEL: [&str; 2] = ["-", ""];

/// Why a row is not a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SkipReason {
    /// Not exactly two fields.
    #[error("expected 2 tab-separated columns (question, answer), found {found}")]
    Columns {
        /// Fields in the line.
        found: usize,
    },
    /// No choices.
    #[error(r"the question has no separator `\n` before its choices")]
    NoSeparator,
    /// There is no answer: the file leaves it empty, or has the placeholder `-`, as test files without labels do.
    #[error("there is no label: the answer is {answer:?}")]
    NoLabel {
        /// The text in place of an answer.
        answer: String,
    },
    /// The answer equals none of the choices.
    #[error("the answer {answer:?} is none of the choices {choices:?}")]
    AnswerNotAChoice {
        /// The answer.
        answer: String,
        /// The texts of the choices.
        choices: Vec<String>,
    },
}

impl SkipReason {
    /// The field at fault.
    pub fn field(&self) -> &'static str {
        match self {
            SkipReason::Columns { .. } => "columns",
            SkipReason::NoSeparator => "question",
            SkipReason::NoLabel { .. } | SkipReason::AnswerNotAChoice { .. } => "answer",
        }
    }
}

/// Parses one line of a UnifiedQA TSV file, with or without its line terminator.
///
/// # Errors
/// The reason why the line is not a question.
///
/// # Example
/// ```
/// use ruminate_datasets::question::parse_line;
///
/// let line = parse_line("Which one floats? \\n (A) cork (B) iron\tcork\n").unwrap();
/// assert_eq!(line.choice_texts, ["cork", "iron"]);
/// assert_eq!(line.answer_ix, 0);
/// ```
pub fn parse_line(line: &str) -> std::result::Result<ParsedLine, SkipReason> {
    let line = line.strip_suffix('\n').unwrap_or(line);
    let line = line.strip_suffix('\r').unwrap_or(line);
    match line.split_once('\t') {
        Some((question, answer)) if !answer.contains('\t') => {
            parse_fields(trim_blanks(question), trim_blanks(answer))
        }
        _ => Err(SkipReason::Columns { found: line.split('\t').count() }),
    }
}

/// Parses a question and the text of its answer as they are, without trimming either.
///
/// # Errors
/// The reason why the two are not a question.
pub fn parse_fields(question: &str, answer: &str) -> std::result::Result<ParsedLine, SkipReason> {
    let choice_texts = parse_choices(choice_part(question).ok_or(SkipReason::NoSeparator)?);
    match choice_texts.iter().position(|choice| choice == answer) {
        Some(answer_ix) => Ok(ParsedLine { question: question.to_owned(), choice_texts, answer_ix }),
        None if NO_LABEL.contains(&answer) => Err(SkipReason::NoLabel { answer: answer.to_owned() }),
        None => Err(SkipReason::AnswerNotAChoice { answer: answer.to_owned(), choices: choice_texts }),
    }
}

/// The part of a question that lists the choices.
fn choice_part(question: &str) -> Option<&str> {
    question.split(PART_SEPARATOR).nth(1).map(trim_blanks)
}

/// Splits `(A) x (B) y ...` (or `(a) x (b) y ...`) into the texts of the choices.
///
/// # Reference behaviour
/// The first three characters of each choice are taken for its marker without a look at them, and a marker inside
/// the text of a choice ends it. Both are as in the published code.
pub fn parse_choices(text: &str) -> Vec<String> {
    let mut key = if text.contains("(A)") { 'A' } else { 'a' };
    let mut rest = text;
    let mut choices = Vec::new();
    // The code point after the last one cannot be had; a text never gets that far.
    while let Some(next) = char::from_u32(key as u32 + 1) {
        let Some(at) = rest.find(&format!("({next})")) else { break };
        choices.push(after_marker(&rest[..at]));
        rest = &rest[at..];
        key = next;
    }
    choices.push(after_marker(rest));
    choices
}

/// The text of a choice: everything but its first three *characters*, without blanks at the ends.
fn after_marker(choice: &str) -> String {
    let start = choice.char_indices().nth(3).map_or(choice.len(), |(at, _)| at);
    trim_blanks(&choice[start..]).to_owned()
}

/// Removes U+0020, and only that, at both ends.
fn trim_blanks(text: &str) -> &str {
    text.trim_matches(' ')
}

/// The label of the `ix`-th choice: `A` for 0.
pub fn letter(ix: usize) -> String {
    u32::try_from(ix).ok().and_then(|ix| char::from_u32('A' as u32 + ix)).unwrap_or('?').to_string()
}

/// The labels of `n` choices: `A`, `B`, ...
pub fn letters(n: usize) -> Vec<String> {
    (0..n).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(line: &str) -> Vec<String> {
        parse_line(line).unwrap().choice_texts
    }

    #[test]
    fn keeps_context_and_inner_spacing_in_the_question() {
        let line = parse_line(" Who  sings? \\n (A) Ann (B) Bob (C) Cleo \\n Ann is shy. \t Bob \n").unwrap();
        assert_eq!(line.question, "Who  sings? \\n (A) Ann (B) Bob (C) Cleo \\n Ann is shy.");
        assert_eq!(line.choice_texts, ["Ann", "Bob", "Cleo"]);
        assert_eq!(line.answer_ix, 1);
    }

    #[test]
    fn reads_every_marker_style() {
        assert_eq!(texts("Q \\n (a) x (b) y\ty \n"), ["x", "y"]);
        assert_eq!(texts("Q \\n(A) x (B) y \\n Context.\tx\r\n"), ["x", "y"]);
        assert_eq!(texts("Q \\n (A) only\tonly\r"), ["only"]);
    }

    #[test]
    fn offsets_are_characters() {
        assert_eq!(texts("Q \\n (A) naïve café (B) thé\tthé"), ["naïve café", "thé"]);
        // The three "characters of the marker" are whatever stands there.
        assert_eq!(texts("Q \\n éàü1 (b) y\t1"), ["1", "y"]);
        // A marker before character 3 leaves nothing for the first choice.
        assert_eq!(texts("Q \\n é(b) y\ty"), ["", "y"]);
    }

    #[test]
    fn says_why_a_line_is_no_question() {
        assert_eq!(parse_line("a\tb\tc"), Err(SkipReason::Columns { found: 3 }));
        assert_eq!(parse_line("\n"), Err(SkipReason::Columns { found: 1 }));
        assert_eq!(parse_line("Q (A) x (B) y\tx"), Err(SkipReason::NoSeparator));
        let reason = parse_line("Q \\n (A) x (B) y\t-").unwrap_err();
        assert_eq!(reason.to_string(), r#"there is no label: the answer is "-""#);
        assert_eq!(parse_line("Q \\n (A) x (B) y\t"), Err(SkipReason::NoLabel { answer: String::new() }));
        assert_eq!(parse_line("Minus? \\n (A) + (B) -\t-").unwrap().answer_ix, 1);
        let reason = parse_line("Q \\n (A) x (B) y\tz").unwrap_err();
        assert_eq!(reason.to_string(), r#"the answer "z" is none of the choices ["x", "y"]"#);
        // Only U+0020 is trimmed.
        assert!(parse_line("Q \\n (A) x (B) y\t\u{a0}x").is_err());
    }

    #[test]
    fn first_of_equal_choices_is_gold() {
        assert_eq!(parse_line("Q \\n (A) x (B) y (C) y\ty").unwrap().answer_ix, 1);
    }

    #[test]
    fn questions_know_their_texts_and_capacity() {
        let origin = Origin::new("made_up", 3, Split::Dev);
        let q = Question::new(&origin, parse_line("Q \\n (A) x (B) y\ty").unwrap());
        assert_eq!((q.answer.as_str(), q.answer_ix, q.task_ix), ("B", 1, 3));
        assert_eq!(q.choices, ["A", "B"]);
        assert_eq!(q.choice_texts(), ["x", "y"]);
        assert!(check_capacity([&q], 2).is_ok());
        let error = check_capacity([&q], 1).unwrap_err().to_string();
        assert!(error.contains("2 choices but a batch holds 1"), "{error}");
    }

    #[test]
    fn splits_have_names() {
        for split in [Split::Train, Split::Dev, Split::Test] {
            assert_eq!(split.to_string().parse::<Split>().unwrap(), split);
        }
        assert!("valid".parse::<Split>().is_err());
    }
}
