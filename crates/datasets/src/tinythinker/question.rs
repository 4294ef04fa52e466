//! Multiple-choice questions, and their forms in texts.

use std::fmt::Write;

use serde::Deserialize;
use serde_json::Value;

/// One option of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// A capital letter.
    pub label: char,
    /// The option's text.
    pub text: String,
}

/// A multiple-choice question whose options are labelled `A`, `B`, … in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Identifies the question in its data set.
    pub id: String,
    /// The question itself, one line.
    pub stem: String,
    /// 2 to 26 options.
    pub options: Vec<Choice>,
    /// The label of the right option.
    pub gold: char,
}

/// What is wrong with a row: a field and the reason.
pub(super) type Problem = (&'static str, String);

impl Question {
    /// A question with options `A`, `B`, … of the given texts.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn new(
        id: impl Into<String>,
        stem: impl Into<String>,
        options: Vec<String>,
        gold: char,
    ) -> Result<Self, (&'static str, String)> {
        let (id, stem) = (id.into(), stem.into());
        if stem.trim().is_empty() || stem.contains('\n') {
            return Err(("stem", "must be one line of text".into()));
        }
        if !(2..=26).contains(&options.len()) {
            return Err(("choices", format!("are {}, but must be 2 to 26", options.len())));
        }
        if let Some(i) = options.iter().position(|text| text.trim().is_empty() || text.contains('\n')) {
            return Err(("choices", format!("option {} must be one line of text", letter(i))));
        }
        let options: Vec<Choice> =
            options.into_iter().enumerate().map(|(i, text)| Choice { label: letter(i), text }).collect();
        if options.iter().all(|option| option.label != gold) {
            return Err(("answerKey", format!("is `{gold}`, which is no option")));
        }
        Ok(Self { id, stem, options, gold })
    }

    /// The labels of the options.
    #[must_use]
    pub fn labels(&self) -> Vec<char> {
        self.options.iter().map(|option| option.label).collect()
    }

    /// The question as the student reads it: `{stem}`, a line feed, `(A) … (B) …`.
    #[must_use]
    pub fn block(&self) -> String {
        let mut text = self.stem.clone();
        for (i, Choice { label, text: option }) in self.options.iter().enumerate() {
            let _ = write!(text, "{}({label}) {option}", if i == 0 { '\n' } else { ' ' });
        }
        text
    }

    /// The options as the teacher reads them: `A. …, B. …`.
    #[must_use]
    pub fn option_line(&self) -> String {
        let options: Vec<String> =
            self.options.iter().map(|Choice { label, text }| format!("{label}. {text}")).collect();
        options.join(", ")
    }

    /// A row of CommonsenseQA or OpenBookQA.
    pub(super) fn parse(row: &Value) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct Row {
            id: String,
            #[serde(rename = "answerKey")]
            answer: String,
            question: Inner,
        }
        #[derive(Deserialize)]
        struct Inner {
            stem: String,
            choices: Vec<Labelled>,
        }
        #[derive(Deserialize)]
        struct Labelled {
            label: String,
            text: String,
        }
        let row = Row::deserialize(row).map_err(|error| ("row", error.to_string()))?;
        for (i, choice) in row.question.choices.iter().enumerate().take(26) {
            if choice.label != letter(i).to_string() {
                let reason = format!("option {i} has the label `{}`, not `{}`", choice.label, letter(i));
                return Err(("choices", reason));
            }
        }
        let gold = single(&row.answer).ok_or_else(|| ("answerKey", format!("is `{}`", row.answer)))?;
        let options = row.question.choices.into_iter().map(|choice| choice.text).collect();
        Self::new(row.id, row.question.stem, options, gold)
    }

    /// A row of StrategyQA, which becomes a question with the options yes and no. Rows without `qid` are numbered.
    pub(super) fn parse_strategyqa(index: usize, row: &Value) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct Row {
            qid: Option<String>,
            question: String,
            answer: bool,
        }
        let row = Row::deserialize(row).map_err(|error| ("row", error.to_string()))?;
        let id = row.qid.unwrap_or_else(|| index.to_string());
        Self::new(id, row.question, vec!["yes".into(), "no".into()], if row.answer { 'A' } else { 'B' })
    }

    /// Reads back `A. …, B. …`. The next label ends an option, so options may hold commas.
    pub(super) fn from_option_line(id: &str, stem: &str, line: &str, gold: &str) -> Result<Self, Problem> {
        let bad = || ("Options", format!("`{line}` is not of the form `A. …, B. …`"));
        let options = split_at_labels(line, |label| (format!("{label}. "), format!(", {label}. ")));
        let gold = single(gold).ok_or_else(|| ("GT", format!("is `{gold}`, not one letter")))?;
        Self::new(id, stem, options.ok_or_else(bad)?, gold)
    }

    /// Reads back a [`block`](Self::block).
    pub(super) fn from_block(id: &str, block: &str, gold: &str) -> Result<Self, Problem> {
        let bad = || ("input", format!("`{block}` does not end in a line of the form `(A) … (B) …`"));
        let (stem, line) = block.split_once('\n').ok_or_else(bad)?;
        let options = split_at_labels(line, |label| (format!("({label}) "), format!(" ({label}) ")));
        let gold = single(gold).ok_or_else(|| ("GT", format!("is `{gold}`, not one letter")))?;
        Self::new(id, stem, options.ok_or_else(bad)?, gold)
    }
}

/// The `i`-th label.
pub(super) fn letter(i: usize) -> char {
    char::from(b'A' + u8::try_from(i.min(25)).unwrap_or(25))
}

/// The only character of a text.
fn single(text: &str) -> Option<char> {
    let mut chars = text.chars();
    chars.next().filter(|_| chars.next().is_none())
}

/// Cuts a line at its labels in their order; `form` gives the first label's form and that of a later one.
fn split_at_labels(line: &str, form: impl Fn(char) -> (String, String)) -> Option<Vec<String>> {
    let mut rest = line.strip_prefix(&form('A').0)?;
    let mut options = vec![];
    for i in 1..26 {
        match rest.split_once(&form(letter(i)).1) {
            Some((option, behind)) => {
                options.push(option.to_string());
                rest = behind;
            }
            None => break,
        }
    }
    options.push(rest.to_string());
    Some(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_rows_name_the_field() {
        let row = |answer: &str, second: &str| {
            serde_json::json!({"id": "1", "answerKey": answer, "question": {"stem": "s?", "choices": [
                {"label": "A", "text": "x"}, {"label": second, "text": "y"}]}})
        };
        assert!(Question::parse(&row("B", "B")).is_ok());
        for (row, field) in [
            (row("C", "B"), "answerKey"),
            (row("AB", "B"), "answerKey"),
            (row("A", "C"), "choices"),
            (serde_json::json!({"id": "1"}), "row"),
            (serde_json::json!([]), "row"),
        ] {
            assert_eq!(Question::parse(&row).unwrap_err().0, field, "{row}");
        }
        assert_eq!(Question::new("1", "a\nb", vec!["x".into(), "y".into()], 'A').unwrap_err().0, "stem");
        assert_eq!(Question::new("1", "a", vec!["x".into()], 'A').unwrap_err().0, "choices");
        assert!(
            Question::parse_strategyqa(3, &serde_json::json!({"question": "q?", "answer": "yes"})).is_err()
        );
        let yes =
            Question::parse_strategyqa(3, &serde_json::json!({"question": "q?", "answer": true})).unwrap();
        assert_eq!((yes.id.as_str(), yes.gold, yes.block().as_str()), ("3", 'A', "q?\n(A) yes (B) no"));
    }

    proptest! {
        #[test]
        fn forms_read_back(
            stem in "[a-z][a-z ,.?]{0,30}",
            options in prop::collection::vec("[a-z][a-z, ]{0,12}", 2..26),
            gold in 0usize..2,
        ) {
            let question = Question::new("id", stem, options, letter(gold)).unwrap();
            let gold = question.gold.to_string();
            prop_assert_eq!(&Question::from_block("id", &question.block(), &gold).unwrap(), &question);
            let line = question.option_line();
            prop_assert_eq!(&Question::from_option_line("id", &question.stem, &line, &gold).unwrap(), &question);
        }

        #[test]
        fn no_text_makes_a_reader_panic(text in "\\PC{0,60}", gold in "\\PC{0,2}") {
            let _ = Question::from_block("id", &text, &gold);
            let _ = Question::from_option_line("id", "s", &text, &gold);
        }
    }
}
