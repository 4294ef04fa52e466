//! Training records of the stages, and of students that lack some of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::items::Item;
use super::pairs::Run;
use super::question::{Problem, Question};
use super::sources::Splits;
use super::stages::{Draft, StageText};
use crate::{Error, Place, Result};

/// A question with the teacher's knowledge and reasons; the question's gold label is the one to be trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reasoned {
    /// The question.
    pub question: Question,
    /// General knowledge.
    pub knowledge: String,
    /// Why each option is right or wrong, in the teacher's order.
    pub reasons: Vec<(char, String)>,
}

impl Reasoned {
    /// Takes an item apart.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn parse(id: &str, item: &Item) -> std::result::Result<Self, (&'static str, String)> {
        let question = item.question(id)?;
        let labels = question.labels();
        let reason = |text: &String| -> std::result::Result<(char, String), Problem> {
            let bad = || ("specific_knowledge", format!("`{text}` does not begin with `For option X, `"));
            let (label, reason) =
                text.strip_prefix("For option ").and_then(|t| t.split_once(',')).ok_or_else(bad)?;
            let label = labels.iter().copied().find(|l| label == l.to_string()).ok_or_else(bad)?;
            let reason = reason.trim().lines().next().unwrap_or_default();
            Ok((label, reason.to_string()))
        };
        let reasons =
            item.specific_knowledge.iter().map(reason).collect::<std::result::Result<Vec<_>, _>>()?;
        if labels.iter().any(|label| reasons.iter().filter(|(of, _)| of == label).count() != 1) {
            return Err(("specific_knowledge", "must have one reason for each option".into()));
        }
        Ok(Self { question, knowledge: item.general_knowledge.trim().into(), reasons })
    }

    fn ordered(&self, order: AnalysisOrder) -> Vec<(char, String)> {
        let mut reasons = self.reasons.clone();
        if order == AnalysisOrder::ByLabel {
            reasons.sort_by_key(|(label, _)| *label);
        }
        reasons
    }
}

/// The order of the analyses that the summarize stage reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnalysisOrder {
    /// By label, as at inference.
    #[default]
    ByLabel,
    /// The teacher's, as in the published code; the right option often comes first there.
    AsGiven,
}

/// Which stages a student has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// All.
    #[default]
    RecallAnalyzeSummarize,
    /// No analyses.
    RecallSummarize,
    /// No knowledge.
    AnalyzeSummarize,
    /// Neither.
    Summarize,
}

impl Variant {
    /// All of them, the whole student first.
    pub const ALL: [Self; 4] =
        [Self::RecallAnalyzeSummarize, Self::RecallSummarize, Self::AnalyzeSummarize, Self::Summarize];

    /// The name in files and settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RecallAnalyzeSummarize => "recall_analyze_summarize",
            Self::RecallSummarize => "recall_summarize",
            Self::AnalyzeSummarize => "analyze_summarize",
            Self::Summarize => "summarize",
        }
    }

    /// Whether students recall.
    #[must_use]
    pub fn recalls(self) -> bool {
        matches!(self, Self::RecallAnalyzeSummarize | Self::RecallSummarize)
    }

    /// Whether students analyze.
    #[must_use]
    pub fn analyzes(self) -> bool {
        matches!(self, Self::RecallAnalyzeSummarize | Self::AnalyzeSummarize)
    }
}

/// What a student reads, and the target of one stage; without a target for validation and test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What is read.
    pub input: String,
    /// The label.
    #[serde(rename = "GT")]
    pub gold: String,
    /// Target of the recall stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall: Option<String>,
    /// Target of the analyze stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analyze: Option<String>,
    /// Target of the summarize stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summarize: Option<String>,
}

impl Record {
    fn new(input: String, gold: char) -> Self {
        Self { input, gold: gold.into(), recall: None, analyze: None, summarize: None }
    }

    /// The target, whatever its stage.
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        self.recall.as_deref().or(self.analyze.as_deref()).or(self.summarize.as_deref())
    }
}

/// Numbers of records: recall, analyze, summarize, valid and test.
pub type RecordCounts = [usize; 5];

/// The files of a variant; those that it lacks are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StageRecords {
    /// One per item.
    pub recall: Vec<Record>,
    /// The first of each question, for sampling.
    pub recall_single: Vec<Record>,
    /// One per item and option.
    pub analyze: Vec<Record>,
    /// One per item.
    pub summarize: Vec<Record>,
    /// Inputs of the first stage.
    pub valid: Vec<Record>,
    /// Inputs of the first stage.
    pub test: Vec<Record>,
}

impl StageRecords {
    /// The records of a variant. Of equal records the first stays. In `recall_summarize` equal summarize inputs stay too, as in the
    /// published code, so that stages keep their proportions.
    #[must_use]
    pub fn new(
        variant: Variant,
        items: &[Reasoned],
        valid: &[Question],
        test: &[Question],
        order: AnalysisOrder,
    ) -> Self {
        let draft = |item: &Reasoned, recall: bool, reasons: &[(char, String)]| {
            Draft::new(&item.question).stating(recall.then_some(item.knowledge.as_str()), reasons)
        };
        let gold = |item: &Reasoned| item.question.gold;
        let mut records = Self::default();
        // What all variants are made of: the distinct rows of the whole student's last stage.
        let mut seen = BTreeSet::new();
        let rows: Vec<(&Reasoned, Vec<(char, String)>)> = items
            .iter()
            .map(|item| (item, item.ordered(order)))
            .filter(|(item, reasons)| {
                seen.insert((draft(item, true, reasons).summarize_prompt(), gold(item)))
            })
            .collect();
        for item in items {
            if variant.recalls() {
                let recall = Some(item.knowledge.clone());
                let input = draft(item, false, &[]).recall_prompt();
                records.recall.push(Record { recall, ..Record::new(input, gold(item)) });
            }
            if variant.analyzes() {
                let asked = draft(item, variant.recalls(), &[]);
                records.analyze.extend(item.reasons.iter().map(|(label, reason)| Record {
                    analyze: Some(reason.clone()),
                    ..Record::new(asked.analyze_prompt(*label), gold(item))
                }));
            }
        }
        for (item, reasons) in &rows {
            let reasons: &[(char, String)] = if variant.analyzes() { reasons } else { &[] };
            let input = draft(item, variant.recalls(), reasons).summarize_prompt();
            let summarize = Some(format!("So the answer is option {}.", gold(item)));
            records.summarize.push(Record { summarize, ..Record::new(input, gold(item)) });
        }
        distinct(&mut records.recall, Record::target);
        distinct(&mut records.analyze, Record::target);
        if variant == Variant::Summarize {
            distinct(&mut records.summarize, |_| None);
        }
        if variant == Variant::RecallAnalyzeSummarize {
            records.recall_single = records.recall.clone();
            distinct(&mut records.recall_single, |_| None);
        }
        let first = |questions: &[Question]| -> Vec<Record> {
            let inputs = |question: &Question| {
                let draft = Draft::new(question);
                let inputs = match variant {
                    Variant::Summarize => vec![draft.summarize_prompt()],
                    Variant::AnalyzeSummarize => draft.analyze_prompts(),
                    _ => vec![draft.recall_prompt()],
                };
                let gold = question.gold;
                inputs.into_iter().map(move |input| Record::new(input, gold))
            };
            questions.iter().flat_map(inputs).collect()
        };
        records.valid = first(valid);
        records.test = first(test);
        records
    }

    /// The files by name, in their usual order.
    #[must_use]
    pub fn files(&self) -> [(&'static str, &[Record]); 6] {
        [
            ("recall", &self.recall),
            ("recall_single", &self.recall_single),
            ("analyze", &self.analyze),
            ("summarize", &self.summarize),
            ("valid", &self.valid),
            ("test", &self.test),
        ]
    }

    /// Makes the records of every variant and writes them to `folder/VARIANT`. Returns how many there are.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write).
    pub fn write_variants(
        folder: &Path,
        items: &[Reasoned],
        splits: &Splits,
        order: AnalysisOrder,
    ) -> Result<Vec<(Variant, RecordCounts)>> {
        let write = |variant: Variant| {
            let records = Self::new(variant, items, &splits.valid, &splits.test, order);
            records.write(&folder.join(variant.name()))?;
            Ok((variant, records.counts()))
        };
        Variant::ALL.into_iter().map(write).collect()
    }

    /// How many records there are of recall, analyze, summarize, valid and test.
    #[must_use]
    pub fn counts(&self) -> RecordCounts {
        [&self.recall, &self.analyze, &self.summarize, &self.valid, &self.test].map(Vec::len)
    }

    /// Writes a JSON array for each file that is not empty.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write).
    pub fn write(&self, folder: &Path) -> Result<()> {
        for (name, records) in self.files().into_iter().filter(|(_, records)| !records.is_empty()) {
            crate::json::write(&folder.join(format!("{name}.json")), records)?;
        }
        Ok(())
    }

    /// Reads the files that are there.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read), and [`Error::Json`](crate::Error::Json) with item and field.
    pub fn read(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(format!("{name}.json"));
            if path.exists() { crate::json::read(&path) } else { Ok(vec![]) }
        };
        Ok(Self {
            recall: read("recall")?,
            recall_single: read("recall_single")?,
            analyze: read("analyze")?,
            summarize: read("summarize")?,
            valid: read("valid")?,
            test: read("test")?,
        })
    }
}

/// The questions that records ask, each once. The number of a question's first record is its id.
///
/// # Errors
/// [`Error::BadField`] with `path`, item and field.
pub fn questions_of(records: &[Record], path: &Path) -> Result<Vec<Question>> {
    let mut seen = BTreeSet::new();
    let mut questions = vec![];
    for (i, record) in records.iter().enumerate() {
        let question = StageText::parse(&record.input)
            .and_then(|text| Question::from_block(&i.to_string(), &text.block, &record.gold));
        let question = question.map_err(|(field, reason)| Error::BadField {
            path: path.into(),
            place: Place::Item(i),
            field,
            reason,
        })?;
        if seen.insert(question.block()) {
            questions.push(question);
        }
    }
    Ok(questions)
}

/// The runs that summarize records tell of, under the ids of `questions`; those of other questions are left out.
///
/// # Errors
/// [`Error::BadField`] with `path`, item and field.
pub fn teacher_runs(records: &[Record], questions: &[Question], path: &Path) -> Result<Vec<Run>> {
    let ids: BTreeMap<String, &str> = questions.iter().map(|q| (q.block(), q.id.as_str())).collect();
    let mut runs = vec![];
    for (i, record) in records.iter().enumerate() {
        let read = || {
            let text = StageText::parse(&record.input)?;
            let question = Question::from_block("", &text.block, &record.gold)?;
            Ok((Draft::of(&text)?, question.gold))
        };
        let (draft, gold) = read().map_err(|(field, reason): Problem| Error::BadField {
            path: path.into(),
            place: Place::Item(i),
            field,
            reason,
        })?;
        if let Some(&id) = ids.get(draft.block()) {
            runs.push(Run { id: id.into(), draft, gold, answer: Some(gold) });
        }
    }
    Ok(runs)
}

/// Keeps the first of the records that agree in input and key.
fn distinct(records: &mut Vec<Record>, key: impl Fn(&Record) -> Option<&str>) {
    let mut seen = BTreeSet::new();
    records.retain(|record| seen.insert((record.input.clone(), key(record).map(String::from))));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(input: &str, reasons: &[&str]) -> Item {
        Item {
            input: input.into(),
            gold: "A".into(),
            general_knowledge: "k.".into(),
            specific_knowledge: reasons.iter().map(|reason| (*reason).into()).collect(),
        }
    }

    const GOOD: [&str; 2] = ["For option B, no.\nmore", "For option A,  yes."];

    #[test]
    fn malformed_items_name_the_field() {
        let input = "q?\nOptions: A. x, B. y";
        let good = Reasoned::parse("1", &item(input, &GOOD)).unwrap();
        assert_eq!(good.reasons, [('B', "no.".to_string()), ('A', "yes.".to_string())]);
        for (item, field) in [
            (item("q? A. x, B. y", &GOOD), "input"),
            (item("q?\nOptions: A. x; B. y", &GOOD), "choices"),
            (item("q?\nOptions: 1. x", &GOOD), "Options"),
            (item(input, &["For option A, x."]), "specific_knowledge"),
            (item(input, &["For option A, x.", "For option C, y."]), "specific_knowledge"),
            (item(input, &["For option A, x.", "For option A, y."]), "specific_knowledge"),
            (item(input, &["A, x.", "B, y."]), "specific_knowledge"),
            (Item { gold: "C".into(), ..item(input, &GOOD) }, "answerKey"),
        ] {
            assert_eq!(Reasoned::parse("1", &item).unwrap_err().0, field, "{item:?}");
        }
    }

    #[test]
    fn files_read_back_and_analyses_are_sorted() {
        let reasoned = Reasoned::parse("1", &item("q?\nOptions: A. x, B. y", &GOOD)).unwrap();
        let question = reasoned.question.clone();
        let records = StageRecords::new(
            Variant::default(),
            &[reasoned.clone(), reasoned],
            std::slice::from_ref(&question),
            &[],
            AnalysisOrder::ByLabel,
        );
        assert_eq!([records.recall.len(), records.analyze.len(), records.summarize.len()], [1, 2, 1]);
        assert!(
            records.summarize[0].input.contains("Analyze: For option A, yes. For option B, no.\nSummarize:")
        );
        let folder = tempfile::tempdir().unwrap();
        records.write(folder.path()).unwrap();
        assert!(!folder.path().join("test.json").exists());
        assert_eq!(StageRecords::read(folder.path()).unwrap(), records);
        std::fs::write(folder.path().join("recall.json"), r#"[{"input": "x", "GT": "A", "recal": "y"}]"#)
            .unwrap();
        let error = StageRecords::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("item 0") && error.contains("recal"), "{error}");
    }
}
