//! Where Crystal's questions and statements lie, and how they are read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ruminate_datasets::knowledge::{DataForm, read_evaluation_file};
use ruminate_datasets::tasks::{DATA_PATH, KNOWLEDGE_PATH, SEEN_TASKS};
use ruminate_datasets::{
    Annotated, BadRows, Error as DataError, Origin, Part, Question, ReadOptions, SilverItem, Skipped, Split,
    TaskEntry, TaskRegistry, knowledge, unifiedqa,
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The `[data]` section of a Crystal configuration. The defaults are the paths and tasks of the published code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrystalData {
    /// Where questions lie: a template of a `.tsv` file with `{datapath}` and `{split}`. For an evaluation it may
    /// also name statements made elsewhere: a `.json` template with `{task}` and `{split}`, or one `.json` file as
    /// an earlier evaluation wrote it.
    pub data_path: String,
    /// Where silver knowledge lies: a template with `{engine}`, `{split}` and `{task}`.
    pub knowledge_path: String,
    /// Which model wrote the silver knowledge.
    pub engine: String,
    /// Tasks to train on, in this order.
    pub train_tasks: Vec<String>,
    /// Tasks to evaluate on, in this order.
    pub eval_tasks: Vec<String>,
    /// Tasks besides the built-in ones: `[data.tasks.quarel] dir = "uqa/quarel"`.
    pub tasks: BTreeMap<String, TaskEntry>,
    /// Leave out rows that are not questions, and report them, instead of refusing the file.
    pub skip_bad_rows: bool,
    /// Train on the first half of every training file only, and leave the other to reinforcement.
    pub half_half: bool,
}

impl Default for CrystalData {
    fn default() -> Self {
        let seen: Vec<String> = SEEN_TASKS.iter().map(|t| (*t).to_string()).collect();
        Self {
            data_path: DATA_PATH.into(),
            knowledge_path: KNOWLEDGE_PATH.into(),
            engine: "davinci".into(),
            train_tasks: seen.clone(),
            eval_tasks: seen,
            tasks: BTreeMap::new(),
            skip_bad_rows: false,
            half_half: false,
        }
    }
}

impl CrystalData {
    fn registry(&self) -> TaskRegistry {
        let mut registry = TaskRegistry::default();
        for (task, entry) in &self.tasks {
            registry.register(task.clone(), entry.clone());
        }
        registry
    }

    fn options(&self) -> ReadOptions {
        ReadOptions {
            bad_rows: if self.skip_bad_rows { BadRows::Skip } else { BadRows::Refuse },
            part: if self.half_half { Part::FirstHalf } else { Part::All },
        }
    }

    /// Splits that are never cut in halves and not trained on.
    fn eval_options(&self) -> ReadOptions {
        ReadOptions { part: Part::All, ..self.options() }
    }
}

/// Something about the data that a user should know and that is no error.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The task.
    pub task: String,
    /// The split.
    pub split: Split,
    /// What there is to know.
    pub text: String,
}

/// Rows of data, and what a user should know about them.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadItems<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Rows that were left out, with the reason.
    pub notices: Vec<Notice>,
}

/// Reads silver knowledge of the training tasks, all tasks after each other.
///
/// # Errors
/// When a task is unknown, or a file is missing or malformed; the error names the place.
pub fn read_silver(data: &CrystalData, split: Split) -> Result<ReadItems<Annotated>> {
    let registry = data.registry();
    let (mut items, mut notices) = (vec![], vec![]);
    if data.train_tasks.is_empty() {
        return Err(Error::config("data.train_tasks", "is empty; name at least one task"));
    }
    for (task_ix, task) in data.train_tasks.iter().enumerate() {
        let path = registry.locate_knowledge(&data.knowledge_path, &data.engine, task, split)?;
        let loaded = knowledge::read(&path, &Origin::new(task, task_ix, split), data.options())?;
        notices.extend(skipped_notice(task, split, &loaded.skipped));
        items.extend(loaded.items);
    }
    Ok(ReadItems { items, notices })
}

/// Reads the questions of the evaluation tasks, with their statements where `data_path` names statements. A task
/// whose file is missing or empty is left out with a notice, as long as one task is left.
///
/// # Errors
/// When a task is unknown, a file cannot be read or is malformed, or no task is left.
pub fn read_eval(data: &CrystalData, split: Split) -> Result<ReadItems<Annotated>> {
    let form = DataForm::of(&data.data_path);
    if form == DataForm::EvaluationFile {
        let items = read_evaluation_file(Path::new(&data.data_path), split)?;
        return Ok(ReadItems { items, notices: vec![] });
    }
    let registry = data.registry();
    let (mut items, mut notices, mut first_error) = (vec![], vec![], None);
    for (task_ix, task) in data.eval_tasks.iter().enumerate() {
        // An unknown task is a mistake in the configuration, not a missing download.
        registry.get(task)?;
        let origin = Origin::new(task, task_ix, split);
        let read = || -> Result<_> {
            let path = registry.locate(&data.data_path, task, split)?;
            Ok(match form {
                DataForm::TaskKnowledge => {
                    let loaded = knowledge::read(&path, &origin, data.eval_options())?;
                    (loaded.items, loaded.skipped)
                }
                _ => {
                    let loaded = unifiedqa::read(&path, &origin, data.eval_options())?;
                    let bare = |question| Annotated { question, knowledges: vec![] };
                    (loaded.items.into_iter().map(bare).collect(), loaded.skipped)
                }
            })
        };
        match read() {
            Ok((questions, skipped)) => {
                notices.extend(skipped_notice(task, split, &skipped));
                items.extend(questions);
            }
            Err(error @ Error::Data(DataError::MissingFile { .. } | DataError::EmptySplit { .. })) => {
                let text = format!("left out: {}", chain(&error));
                notices.push(Notice { task: task.clone(), split, text });
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match first_error {
        Some(error) if items.is_empty() => Err(error),
        None if items.is_empty() => Err(Error::config("data.eval_tasks", "is empty; name at least one task")),
        _ => Ok(ReadItems { items, notices }),
    }
}

/// Reads the questions of the training tasks without statements: a part of the training split, or all of another.
///
/// # Errors
/// When a task is unknown, or a file is missing or malformed; the error names the place.
pub fn read_questions(data: &CrystalData, split: Split, part: Part) -> Result<ReadItems<Question>> {
    let registry = data.registry();
    let (mut items, mut notices) = (vec![], vec![]);
    if data.train_tasks.is_empty() {
        return Err(Error::config("data.train_tasks", "is empty; name at least one task"));
    }
    for (task_ix, task) in data.train_tasks.iter().enumerate() {
        let path = registry.locate(&data.data_path, task, split)?;
        let options = ReadOptions { part, ..data.options() };
        let loaded = unifiedqa::read(&path, &Origin::new(task, task_ix, split), options)?;
        notices.extend(skipped_notice(task, split, &loaded.skipped));
        items.extend(loaded.items);
    }
    Ok(ReadItems { items, notices })
}

/// The questions of a task for a teacher who is to write statements about them.
///
/// # Errors
/// When the task is unknown, or the file is missing or malformed; the error names the place.
pub fn read_columns(data: &CrystalData, task: &str, split: Split) -> Result<ReadItems<SilverItem>> {
    let path = data.registry().locate(&data.data_path, task, split)?;
    let loaded = unifiedqa::read_columns(&path, data.eval_options())?;
    let notices = skipped_notice(task, split, &loaded.skipped).into_iter().collect();
    Ok(ReadItems { items: loaded.items, notices })
}

/// A data file and its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DataFile {
    /// The task.
    pub task: String,
    /// The split.
    pub split: Split,
    /// `questions` or `knowledge`.
    pub kind: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Rows that are questions.
    pub rows: usize,
    /// Rows that are none, and are left out with `skip_bad_rows`.
    pub bad_rows: usize,
    /// Statements about the questions.
    pub statements: usize,
    /// Why the file cannot be used.
    pub problem: Option<String>,
}

/// Reads all files that training and evaluation would read, bad rows included, and tells what is in them: for the tasks of
/// `train_tasks` the questions and the silver knowledge of train and dev, for those of `eval_tasks` the dev questions.
///
/// # Errors
/// A task is unknown, or a path template cannot be filled in.
pub fn check_files(data: &CrystalData) -> Result<Vec<DataFile>> {
    let registry = data.registry();
    let options = ReadOptions { bad_rows: BadRows::Skip, part: Part::All };
    let mut files = vec![];
    for (task, trained) in data
        .train_tasks
        .iter()
        .map(|task| (task, true))
        .chain(data.eval_tasks.iter().map(|task| (task, false)))
    {
        for split in [Split::Train, Split::Dev] {
            let known = |file: &DataFile| (&file.task, file.split) == (task, split);
            if files.iter().any(known) || !trained && split == Split::Train {
                continue;
            }
            let origin = Origin::new(task, 0, split);
            let path = registry.path(&data.data_path, task, split)?;
            let loaded = unifiedqa::read(&path, &origin, options).map(|loaded| {
                let bad = loaded.skipped.len();
                (loaded.items, bad)
            });
            let mut questions = vec![];
            let mut file = data_file(task, split, "questions", path);
            match loaded {
                Ok((items, bad)) => {
                    (file.rows, file.bad_rows) = (items.len(), bad);
                    questions = items;
                }
                Err(error) => file.problem = Some(chain(&error)),
            }
            files.push(file);
            if !trained {
                continue;
            }
            let path = registry.knowledge_path(&data.knowledge_path, &data.engine, task, split)?;
            let mut file = data_file(task, split, "knowledge", path);
            match knowledge::read(&file.path, &origin, options) {
                Ok(loaded) => {
                    (file.rows, file.bad_rows) = (loaded.items.len(), loaded.skipped.len());
                    file.statements = loaded.items.iter().map(|item| item.knowledges.len()).sum();
                    let same = |(item, question): (&Annotated, &Question)| {
                        item.question.question == question.question
                    };
                    let in_order = loaded.items.iter().zip(&questions).all(same);
                    if !questions.is_empty() && (loaded.items.len() != questions.len() || !in_order) {
                        file.problem =
                            Some("its questions are not those of the question file, in their order".into());
                    }
                }
                Err(error) => file.problem = Some(chain(&error)),
            }
            files.push(file);
        }
    }
    Ok(files)
}

fn data_file(task: &str, split: Split, kind: &'static str, path: PathBuf) -> DataFile {
    DataFile { task: task.to_owned(), split, kind, path, rows: 0, bad_rows: 0, statements: 0, problem: None }
}

fn skipped_notice(task: &str, split: Split, skipped: &[Skipped]) -> Option<Notice> {
    let first = skipped.first()?;
    let rows = if skipped.len() == 1 { "1 row was".into() } else { format!("{} rows were", skipped.len()) };
    let text = format!("{rows} left out, the first: {first}");
    Some(Notice { task: task.to_string(), split, text })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
