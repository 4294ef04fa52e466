//! Multiple-choice questions, and their forms in texts.

use std::fmt::Write;

use serde_json::{Map, Value};

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

    /// A row of CommonsenseQA or OpenBookQA: in the form of the original files, or in that of the Hugging Face Hub, where the question is
    /// a text and labels and texts of the choices stand in two lists. Rows without an id are numbered; fields that are not used may
    /// have any form.
    pub(super) fn parse<'a>(index: usize, row: &'a Value) -> Result<Self, Problem> {
        const CHOICES: &str =
            "must be a list of {\"label\", \"text\"}, or {\"label\": [...], \"text\": [...]}";
        let row = object(row)?;
        let question = row.get("question").or_else(|| row.get("question_stem"));
        let question = question.ok_or_else(|| ("question", String::from("is missing")))?;
        let (stem, choices) = match question {
            Value::Object(inner) => {
                let stem = inner.get("stem").ok_or_else(|| ("question.stem", String::from("is missing")))?;
                (text("question.stem", stem)?, inner.get("choices").or_else(|| row.get("choices")))
            }
            stem => (text("question", stem)?, row.get("choices")),
        };
        let bad = || ("choices", String::from(CHOICES));
        let choices: Vec<(&'a Value, &'a Value)> = match choices {
            None => return Err(("choices", "is missing".into())),
            Some(Value::Array(list)) => {
                let choice = |one: &'a Value| one.get("label").zip(one.get("text")).ok_or_else(bad);
                list.iter().map(choice).collect::<Result<_, _>>()?
            }
            Some(lists) => {
                let list = |name: &str| lists.get(name).and_then(Value::as_array).ok_or_else(bad);
                let (labels, texts) = (list("label")?, list("text")?);
                if labels.len() != texts.len() {
                    let reason = format!("have {} labels, but {} texts", labels.len(), texts.len());
                    return Err(("choices", reason));
                }
                labels.iter().zip(texts).collect()
            }
        };
        let mut options = vec![];
        for (i, (label, option)) in choices.into_iter().enumerate() {
            let label = text("choices.label", label)?;
            if i < 26 && label != letter(i).to_string() {
                let reason = format!("option {i} has the label `{label}`, not `{}`", letter(i));
                return Err(("choices", reason));
            }
            options.push(text("choices.text", option)?);
        }
        let answer = row.get("answerKey").ok_or_else(|| ("answerKey", String::from("is missing")))?;
        let answer = text("answerKey", answer)?;
        let gold = single(&answer).ok_or_else(|| ("answerKey", format!("is `{answer}`, not one letter")))?;
        Self::new(id_of(row.get("id"), index), stem, options, gold)
    }

    /// A row of StrategyQA, which becomes a question with the options yes and no. Rows without `qid` are numbered.
    pub(super) fn parse_strategyqa(index: usize, row: &Value) -> Result<Self, Problem> {
        let row = object(row)?;
        let question = row.get("question").ok_or_else(|| ("question", String::from("is missing")))?;
        let yes = match row.get("answer") {
            None => return Err(("answer", "is missing".into())),
            Some(answer) => {
                answer.as_bool().ok_or_else(|| ("answer", format!("is {answer}, not true or false")))?
            }
        };
        let options = vec!["yes".into(), "no".into()];
        let question = text("question", question)?;
        Self::new(id_of(row.get("qid"), index), question, options, if yes { 'A' } else { 'B' })
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

fn object(row: &Value) -> Result<&Map<String, Value>, Problem> {
    row.as_object().ok_or_else(|| ("row", "is no JSON object".into()))
}

fn text(field: &'static str, value: &Value) -> Result<String, Problem> {
    let reason = || (field, format!("is {value}, not a text"));
    value.as_str().map(str::to_owned).ok_or_else(reason)
}

/// A text or a number; otherwise the number of the row.
fn id_of(id: Option<&Value>, index: usize) -> String {
    match id {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => index.to_string(),
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
        assert!(Question::parse(0, &row("B", "B")).is_ok());
        let changed = |field: &str, value: Value| {
            let mut row = row("A", "B");
            row["question"][field] = value;
            row
        };
        for (row, field) in [
            (row("C", "B"), "answerKey"),
            (row("AB", "B"), "answerKey"),
            (row("A", "C"), "choices"),
            (serde_json::json!({"id": "1"}), "question"),
            (serde_json::json!({"question": "q?"}), "choices"),
            (serde_json::json!({"question": "q?", "choices": "A or B"}), "choices"),
            (serde_json::json!({"question": {}}), "question.stem"),
            (changed("stem", serde_json::json!(3)), "question.stem"),
            (changed("choices", serde_json::json!(["x", "y"])), "choices"),
            (changed("choices", serde_json::json!([{"label": "A", "text": null}])), "choices.text"),
            (changed("choices", serde_json::json!({"label": ["A"], "text": ["x", "y"]})), "choices"),
            (serde_json::json!([]), "row"),
        ] {
            let (found, reason) = Question::parse(0, &row).unwrap_err();
            assert_eq!(found, field, "{row}");
            assert!(!reason.contains("struct"), "{reason}");
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

    #[test]
    fn the_hubs_form_is_read_and_unused_fields_have_any() {
        let hub = serde_json::json!({"id": "1", "question": "s?", "question_concept": null, "answerKey": "B",
            "choices": {"label": ["A", "B"], "text": ["x", "y"]}});
        let original = serde_json::json!({"id": "1", "answerKey": "B", "question": {"stem": "s?", "question_concept": [1],
            "choices": [{"label": "A", "text": "x", "para": 3}, {"label": "B", "text": "y"}]}});
        let openbook = serde_json::json!({"id": "1", "question_stem": "s?", "answerKey": "B", "fact1": 3,
            "choices": {"label": ["A", "B"], "text": ["x", "y"]}});
        let question = Question::new("1", "s?", vec!["x".into(), "y".into()], 'B').unwrap();
        for row in [hub, original, openbook] {
            assert_eq!(Question::parse(0, &row).unwrap(), question, "{row}");
        }
        let row = serde_json::json!({"qid": 7, "question": "q?", "answer": true, "facts": "none", "evidence": null});
        assert_eq!(Question::parse_strategyqa(3, &row).unwrap().id, "7");
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
