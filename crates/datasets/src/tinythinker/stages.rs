//! What the student reads at each stage, and what is made of what it writes.

use std::fmt::Write;

use super::question::{Problem, Question};

/// A skill of the student.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Writes general knowledge for a question.
    Recall,
    /// Says why one option is right or wrong.
    Analyze,
    /// Gives the answer.
    Summarize,
}

impl Stage {
    /// The name in files and settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Recall => "recall",
            Self::Analyze => "analyze",
            Self::Summarize => "summarize",
        }
    }
}

/// Trims a text and ends it with a full stop, unless it ends with one or with a quotation mark already. Questions get one too, as
/// in the published code: training and inference share the rule.
#[must_use]
pub fn with_full_stop(text: &str) -> String {
    let text = text.trim();
    if text.ends_with(['.', '"', '\'']) { text.into() } else { format!("{text}.") }
}

/// A text of the student, taken apart: a question block and what follows it.
///
/// # Example
/// ```
/// use ruminate_datasets::tinythinker::{Stage, StageText};
/// let text = StageText::parse("Wet?\n(A) sea (B) sun\nRecall: Seas hold water.\nAnalyze: For option B,")?;
/// assert_eq!(text.block, "Wet?\n(A) sea (B) sun");
/// assert_eq!(text.recall.as_deref(), Some("Seas hold water."));
/// assert_eq!((text.asks, text.option), (Stage::Analyze, Some('B')));
/// # Ok::<(), (&str, String)>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageText {
    /// Question and options.
    pub block: String,
    /// The knowledge that is stated.
    pub recall: Option<String>,
    /// The analyses that are stated, by label, in their order.
    pub analyses: Vec<(char, String)>,
    /// What is asked for.
    pub asks: Stage,
    /// The option that an analysis is asked for.
    pub option: Option<char>,
}

impl StageText {
    /// Takes a text apart. Labels are those of the question's options, so an analysis may hold the words `For option`.
    ///
    /// # Errors
    /// The field `input` and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, (&'static str, String)> {
        let bad = |reason: &str| ("input", format!("{reason}: `{text}`"));
        let start = [Stage::Recall, Stage::Analyze, Stage::Summarize].map(|stage| text.find(marker(stage)));
        let Some(end) = start.iter().copied().flatten().min() else {
            return Err(bad("no line begins with a stage"));
        };
        let block = text[..end].to_string();
        let question = Question::from_block("", &block, "A")?;
        // Each stage holds what stands between its marker and the next one.
        let mut rest = &text[end..];
        let mut take = |stage: Stage, next: &[Stage]| -> Option<String> {
            let body = rest.strip_prefix(marker(stage))?;
            let end = next.iter().filter_map(|&next| body.find(marker(next))).min().unwrap_or(body.len());
            rest = &body[end..];
            Some(body[..end].to_string())
        };
        let recall = take(Stage::Recall, &[Stage::Analyze, Stage::Summarize]);
        let analyze = take(Stage::Analyze, &[Stage::Summarize]);
        let summarize = take(Stage::Summarize, &[]);
        if !rest.is_empty() || summarize.as_ref().is_some_and(|text| !text.trim().is_empty()) {
            return Err(bad("text follows where an answer should"));
        }
        let trimmed = |text: Option<String>| text.map(|text| text.trim().to_string());
        let (recall, analyze) = (trimmed(recall), trimmed(analyze));
        if summarize.is_some() {
            let analyses = match &analyze {
                Some(text) => {
                    split_analyses(text, &question.labels()).ok_or_else(|| bad("no analysis is readable"))?
                }
                None => vec![],
            };
            return Ok(Self { block, recall, analyses, asks: Stage::Summarize, option: None });
        }
        if let Some(analyze) = analyze {
            let option = analyze.strip_prefix("For option ").and_then(|text| text.strip_suffix(','));
            let option = question.labels().into_iter().find(|&label| option == Some(&label.to_string()));
            let option = option.ok_or_else(|| bad("it does not end in an option of the question"))?;
            return Ok(Self { block, recall, analyses: vec![], asks: Stage::Analyze, option: Some(option) });
        }
        match recall {
            Some(text) if text.is_empty() => {
                Ok(Self { block, recall: None, analyses: vec![], asks: Stage::Recall, option: None })
            }
            _ => Err(bad("text follows where knowledge should")),
        }
    }
}

fn marker(stage: Stage) -> &'static str {
    match stage {
        Stage::Recall => "\nRecall:",
        Stage::Analyze => "\nAnalyze:",
        Stage::Summarize => "\nSummarize:",
    }
}

/// The analyses in `For option B, … For option A, …`; nothing if the text does not begin with one.
fn split_analyses(text: &str, labels: &[char]) -> Option<Vec<(char, String)>> {
    let mut found: Vec<(usize, usize, char)> = vec![];
    for &label in labels {
        let mark = format!("For option {label},");
        // The first mention at the beginning of a sentence is the analysis.
        let start = text.match_indices(&mark).map(|(i, _)| i).find(|&i| i == 0 || text[..i].ends_with(' '));
        found.extend(start.map(|start| (start, start + mark.len(), label)));
    }
    found.sort_unstable();
    if found.first()?.0 != 0 {
        return None;
    }
    let ends = found.iter().skip(1).map(|&(start, ..)| start).chain([text.len()]);
    Some(
        found
            .iter()
            .zip(ends)
            .map(|(&(_, start, label), end)| (label, text[start..end].trim().to_string()))
            .collect(),
    )
}

/// A question on its way through the stages. Its prompts are those of the published code, whatever stages a student has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    block: String,
    labels: Vec<char>,
    recall: Option<String>,
    analyses: Vec<(char, String)>,
}

impl Draft {
    /// A question before its first stage.
    #[must_use]
    pub fn new(question: &Question) -> Self {
        Self { block: question.block(), labels: question.labels(), recall: None, analyses: vec![] }
    }

    /// What a text of the student already holds.
    ///
    /// # Errors
    /// When its block is no question.
    pub fn of(text: &StageText) -> Result<Self, (&'static str, String)> {
        let labels = Question::from_block("", &text.block, "A").map_err(|p: Problem| p)?.labels();
        let (block, recall, analyses) = (text.block.clone(), text.recall.clone(), text.analyses.clone());
        Ok(Self { block, labels, recall, analyses })
    }

    /// The labels of the question.
    #[must_use]
    pub fn labels(&self) -> &[char] {
        &self.labels
    }

    /// The knowledge that was written.
    #[must_use]
    pub fn recall(&self) -> Option<&str> {
        self.recall.as_deref()
    }

    /// The analyses that were written, by label.
    #[must_use]
    pub fn analyses(&self) -> &[(char, String)] {
        &self.analyses
    }

    /// What the recall stage reads.
    #[must_use]
    pub fn recall_prompt(&self) -> String {
        format!("{}{}", self.block, marker(Stage::Recall))
    }

    /// Takes what the recall stage wrote, with a full stop.
    pub fn set_recall(&mut self, text: &str) {
        self.recall = Some(with_full_stop(text));
    }

    /// What the analyze stage reads for one option.
    #[must_use]
    pub fn analyze_prompt(&self, option: char) -> String {
        format!("{}{} For option {option},", self.stated(), marker(Stage::Analyze))
    }

    /// What the analyze stage reads, for all options in their order.
    #[must_use]
    pub fn analyze_prompts(&self) -> Vec<String> {
        self.labels.iter().map(|&label| self.analyze_prompt(label)).collect()
    }

    /// Takes what the analyze stage wrote for one option, with a full stop.
    pub fn push_analysis(&mut self, option: char, text: &str) {
        self.analyses.push((option, with_full_stop(text)));
    }

    /// What the summarize stage reads: whatever was written so far.
    #[must_use]
    pub fn summarize_prompt(&self) -> String {
        let mut text = self.stated();
        if !self.analyses.is_empty() {
            text.push_str(marker(Stage::Analyze));
            for (label, analysis) in &self.analyses {
                let _ = write!(text, " For option {label}, {analysis}");
            }
        }
        text + marker(Stage::Summarize)
    }

    /// Takes texts as they stand, without full stops.
    #[must_use]
    pub fn stating(mut self, recall: Option<&str>, analyses: &[(char, String)]) -> Self {
        self.recall = recall.map(String::from);
        self.analyses = analyses.to_vec();
        self
    }

    /// Question and options.
    #[must_use]
    pub fn block(&self) -> &str {
        &self.block
    }

    /// The question with the knowledge that was written.
    pub(super) fn stated(&self) -> String {
        match &self.recall {
            Some(recall) => format!("{}{} {recall}", self.block, marker(Stage::Recall)),
            None => self.block.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn full_stops() {
        for (text, expected) in
            [("", "."), (" a ", "a."), ("a.", "a."), ("a?", "a?."), ("\"a\"", "\"a\""), ("a'", "a'")]
        {
            assert_eq!(with_full_stop(text), expected);
        }
    }

    #[test]
    fn malformed_texts_are_refused() {
        for text in [
            "",
            "q\n(A) x (B) y",
            "q\nRecall:",
            "q\n(A) x (B) y\nRecall: something",
            "q\n(A) x (B) y\nAnalyze: For option C,",
            "q\n(A) x (B) y\nAnalyze:",
            "q\n(A) x (B) y\nRecall: k.\nAnalyze: it is so.\nSummarize:",
            "q\n(A) x (B) y\nSummarize: So",
        ] {
            assert_eq!(StageText::parse(text).unwrap_err().0, "input", "{text}");
        }
    }

    #[test]
    fn an_analysis_may_hold_the_words_of_its_marker() {
        let text = "q\n(A) x (B) y\nAnalyze: For option B, no. For option value reasons. For option A, yes.\nSummarize:";
        let parsed = StageText::parse(text).unwrap();
        let expected = [('B', "no. For option value reasons.".to_string()), ('A', "yes.".to_string())];
        assert_eq!(parsed.analyses, expected);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            recall in prop::option::of("[a-z][a-z ,.]{0,20}"),
            first in "[a-z][a-z ,.]{0,20}",
            second in "[a-z][a-z ,.]{0,20}",
        ) {
            let question = Question::new("", "q?", vec!["x".into(), "y".into()], 'A').unwrap();
            let mut draft = Draft::new(&question);
            prop_assert_eq!(StageText::parse(&draft.recall_prompt()).unwrap().asks, Stage::Recall);
            if let Some(recall) = &recall {
                draft.set_recall(recall);
            }
            let asked = StageText::parse(&draft.analyze_prompt('B')).unwrap();
            prop_assert_eq!((asked.option, asked.recall.as_deref()), (Some('B'), draft.recall()));
            draft.push_analysis('A', &first);
            draft.push_analysis('B', &second);
            let read = Draft::of(&StageText::parse(&draft.summarize_prompt()).unwrap()).unwrap();
            prop_assert_eq!(read, draft);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(\\PC|\\n|\nRecall:|\nAnalyze:|\nSummarize:|For option A,|\n\\(A\\) ){0,12}") {
            let _ = StageText::parse(&text);
        }
    }
}
