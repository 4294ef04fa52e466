//! Statements of knowledge: silver ones to imitate, and pre-generated ones to evaluate with.

mod few_shot;

pub use few_shot::{FewShotPrompt, published_sampling, silver_file, statements};

use crate::question::{Origin, Question, Split, letter, letters, parse_fields};
use crate::unifiedqa::{Loaded, ReadOptions, collect};
use crate::{Error, Place, Result, json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One element of a silver-knowledge file: a question as text, the text of its answer, and statements about it.
///
/// A file of them is read and written with [`json::read`] and [`json::write`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object with query, answer and knowledges")]
pub struct SilverItem {
    /// The question with its choices, as in the left column of a TSV file.
    pub query: String,
    /// The text of the gold choice.
    pub answer: String,
    /// The statements, in the order in which they were sampled.
    pub knowledges: Vec<String>,
}

/// A question with statements about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotated {
    /// The question.
    pub question: Question,
    /// The statements; possibly none.
    pub knowledges: Vec<String>,
}

impl Annotated {
    /// Exactly `n` statements: the first ones, and empty strings if there are fewer.
    pub fn statements(&self, n: usize) -> impl Iterator<Item = &str> {
        self.knowledges.iter().map(String::as_str).chain(std::iter::repeat("")).take(n)
    }
}

/// Reads a file of [`SilverItem`]s as questions of `origin`: silver knowledge, or statements that another program
/// has generated for one task.
///
/// # Errors
/// [`Error::Read`], [`Error::Json`], [`Error::BadRow`] (unless bad rows are skipped) and [`Error::EmptySplit`].
pub fn read(path: &Path, origin: &Origin, options: ReadOptions) -> Result<Loaded<Annotated>> {
    let mut items: Vec<SilverItem> = json::read(path)?;
    let part = options.part.of(origin.split, items.len());
    let first = part.start;
    let mut items: Vec<SilverItem> = items.drain(part).collect();
    // Nothing is trimmed: these texts come out of a TSV file and were trimmed on their way.
    let rows: Vec<_> = (items.iter().enumerate())
        .map(|(ix, item)| Ok((Place::Item(first + ix), parse_fields(&item.query, &item.answer))))
        .collect();
    collect(path, options.bad_rows, rows.into_iter(), |ix, parsed| Annotated {
        question: Question::new(origin, parsed),
        knowledges: std::mem::take(&mut items[ix].knowledges),
    })
}

/// The instances of imitation: pairs of a question and one statement about it.
///
/// # Example
/// ```
/// use ruminate_datasets::{Annotated, Instances, Origin, Question, Split};
/// use ruminate_datasets::question::parse_line;
///
/// let origin = Origin::new("made_up", 0, Split::Train);
/// let question = Question::new(&origin, parse_line("Which floats? \\n (A) cork (B) iron\tcork")?);
/// let knowledges = vec!["Cork is light.".to_owned(), "Iron is heavy.".to_owned()];
/// let instances = Instances::new(vec![Annotated { question, knowledges }]);
/// assert_eq!(instances.len(), 2);
/// assert_eq!(instances.get(1).map(|(_, statement)| statement), Some("Iron is heavy."));
/// # Ok::<(), ruminate_datasets::SkipReason>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Instances {
    items: Vec<Annotated>,
    // Item and statement of each instance: a question has about 20 statements and is not copied for each.
    pairs: Vec<(usize, usize)>,
}

impl Instances {
    /// One instance for each statement about a training question, and one with the first statement about any other
    /// question. A question without statements yields none.
    pub fn new(items: Vec<Annotated>) -> Self {
        let pairs = (items.iter().enumerate())
            .flat_map(|(ix, item)| {
                let n = match item.question.split {
                    Split::Train => item.knowledges.len(),
                    _ => item.knowledges.len().min(1),
                };
                (0..n).map(move |statement| (ix, statement))
            })
            .collect();
        Self { items, pairs }
    }

    /// The number of instances.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Is there no instance?
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The `ix`-th instance.
    pub fn get(&self, ix: usize) -> Option<(&Question, &str)> {
        let &(item, statement) = self.pairs.get(ix)?;
        let item = self.items.get(item)?;
        Some((&item.question, item.knowledges.get(statement)?))
    }

    /// All instances in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Question, &str)> {
        (0..self.len()).filter_map(|ix| self.get(ix))
    }
}

/// What the form of a data path says about the files behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataForm {
    /// A TSV file for each task: [`crate::unifiedqa::read`].
    Questions,
    /// `.json` with `{task}` and `{split}`: silver items for each task: [`read`].
    TaskKnowledge,
    /// `.json` without them: one file of evaluation items of all tasks: [`read_evaluation_file`].
    EvaluationFile,
}

impl DataForm {
    /// The form of a path template.
    pub fn of(template: &str) -> Self {
        if !template.ends_with(".json") {
            DataForm::Questions
        } else if template.contains("{task}") && template.contains("{split}") {
            DataForm::TaskKnowledge
        } else {
            DataForm::EvaluationFile
        }
    }
}

/// Reads a knowledge or inference file of an earlier evaluation. The choices are not parsed again: their number is
/// that of `cands`. Tasks are numbered in the order in which they appear; an item without `split` is of `split`.
///
/// # Errors
/// [`Error::Read`], [`Error::Json`], [`Error::BadField`] for a gold index without a choice, and
/// [`Error::EmptySplit`].
pub fn read_evaluation_file(path: &Path, split: Split) -> Result<Vec<Annotated>> {
    #[derive(Deserialize)]
    #[serde(expecting = "an object with task, query, cands, answer_ix and knowledges")]
    struct Item {
        task: String,
        split: Option<Split>,
        query: String,
        cands: Vec<String>,
        answer_ix: usize,
        knowledges: Vec<String>,
    }
    let items: Vec<Item> = json::read(path)?;
    if items.is_empty() {
        return Err(Error::EmptySplit { path: path.into(), rows: 0, first: None });
    }
    let mut tasks = BTreeMap::new();
    let annotate = |(ix, item): (usize, Item)| {
        let choices = item.cands.len();
        if item.answer_ix >= choices {
            let reason = format!("is {} but there are {choices} cands, counted from 0", item.answer_ix);
            return Err(Error::BadField {
                path: path.into(),
                place: Place::Item(ix),
                field: "answer_ix",
                reason,
            });
        }
        let next = tasks.len();
        let question = Question {
            task_ix: *tasks.entry(item.task.clone()).or_insert(next),
            task: item.task,
            split: item.split.unwrap_or(split),
            question: item.query,
            choices: letters(choices),
            answer: letter(item.answer_ix),
            answer_ix: item.answer_ix,
        };
        Ok(Annotated { question, knowledges: item.knowledges })
    };
    items.into_iter().enumerate().map(annotate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unifiedqa::{BadRows, Part};
    use std::path::PathBuf;

    const ITEMS: &str = r#"[
        {"query": "Q0 \\n (A) x (B) y", "answer": "y", "knowledges": ["k0", "k1", "k1"], "extra": 1},
        {"query": "Q1 \\n (A) x (B) y", "answer": "z", "knowledges": ["k2"]},
        {"query": "Q2 \\n (A) x (B) y", "answer": "x", "knowledges": []},
        {"query": "Q3 \\n (A) x (B) y", "answer": "x", "knowledges": ["k3"]}
    ]"#;

    fn file(content: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("silver.json");
        std::fs::write(&path, content).unwrap();
        (dir, path)
    }

    fn pairs(split: Split, part: Part) -> Vec<(String, String)> {
        let (_dir, path) = file(ITEMS);
        let options = ReadOptions { bad_rows: BadRows::Skip, part };
        let loaded = read(&path, &Origin::new("made_up", 2, split), options).unwrap();
        let instances = Instances::new(loaded.items);
        assert_eq!(instances.get(instances.len()), None);
        instances.iter().map(|(q, k)| (q.question[..2].to_owned(), k.to_owned())).collect()
    }

    #[test]
    fn expands_by_split_and_half() {
        let of = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(q, k)| (q.to_string(), k.to_string())).collect()
        };
        let train = pairs(Split::Train, Part::All);
        assert_eq!(train, of(&[("Q0", "k0"), ("Q0", "k1"), ("Q0", "k1"), ("Q3", "k3")]));
        assert_eq!(pairs(Split::Dev, Part::FirstHalf), of(&[("Q0", "k0"), ("Q3", "k3")]));
        assert_eq!(pairs(Split::Train, Part::SecondHalf), of(&[("Q3", "k3")]));
    }

    #[test]
    fn bad_items_are_located() {
        let (_dir, path) = file(ITEMS);
        let origin = Origin::new("made_up", 0, Split::Train);
        let error = read(&path, &origin, ReadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("silver.json: item 1, answer: the answer \"z\" is none"), "{error}");
        let half = ReadOptions { part: Part::SecondHalf, bad_rows: BadRows::Skip };
        let loaded = read(&path, &origin, half).unwrap();
        assert!(loaded.skipped.is_empty() && loaded.items[0].question.question.starts_with("Q2"));
    }

    #[test]
    fn statements_are_padded_and_cut() {
        let (_dir, path) = file(ITEMS);
        let options = ReadOptions { bad_rows: BadRows::Skip, part: Part::All };
        let loaded = read(&path, &Origin::new("made_up", 0, Split::Dev), options).unwrap();
        assert_eq!(loaded.items[0].statements(2).collect::<Vec<_>>(), ["k0", "k1"]);
        assert_eq!(loaded.items[2].statements(3).collect::<Vec<_>>(), ["k3", "", ""]);
    }

    #[test]
    fn evaluation_files_are_not_parsed_again() {
        let (_dir, path) = file(
            r#"[
            {"task": "b", "query": "no choices here", "cands": ["A", "B"], "answer": "B", "answer_ix": 1,
             "knowledges": ["k"]},
            {"task": "a", "split": "test", "query": "q", "cands": ["A"], "answer": "A", "answer_ix": 0,
             "knowledges": []},
            {"task": "b", "query": "q", "cands": ["x", "y", "z"], "answer": "A", "answer_ix": 0, "knowledges": []}
        ]"#,
        );
        let items = read_evaluation_file(&path, Split::Dev).unwrap();
        let numbers: Vec<usize> = items.iter().map(|i| i.question.task_ix).collect();
        assert_eq!(numbers, [0, 1, 0]);
        assert_eq!(items[0].question.answer, "B");
        assert_eq!(items[1].question.split, Split::Test);
        assert_eq!(items[2].question.choices, ["A", "B", "C"]);

        let (_dir, path) = file(
            r#"[{"task": "b", "query": "q", "cands": ["A"], "answer": "B", "answer_ix": 1, "knowledges": []}]"#,
        );
        let error = read_evaluation_file(&path, Split::Dev).unwrap_err().to_string();
        assert!(error.contains("item 0, field answer_ix: is 1 but there are 1 cands"), "{error}");
        let (_dir, path) = file("[]");
        assert!(matches!(read_evaluation_file(&path, Split::Dev), Err(Error::EmptySplit { .. })));
    }

    #[test]
    fn forms_of_paths() {
        assert_eq!(DataForm::of("data/{datapath}/{split}.tsv"), DataForm::Questions);
        assert_eq!(DataForm::of("k/{split}.{task}.json"), DataForm::TaskKnowledge);
        assert_eq!(DataForm::of("k/knowledge_rainier-ckp0.json"), DataForm::EvaluationFile);
    }
}
