//! Silver rationales: few-shot prompts for a teacher, what its completions say, and the files that training reads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Completion, FewShotPrompt, LeadingAnswer, MarioDataset, MarioRow, Silver, TeacherRow, find_few_shot,
    parse_completion, read_questions, silver_filter,
};
use crate::teacher::{Answer, Message, Prices, Request, Sampling};
use crate::{Error, Order, Result, Split, json};

/// Settings of the silver data; the defaults are those of the published scripts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeachingConfig {
    /// Questions with their labels; `{dataset}` and `{split}` are filled in. NumerSense's own tables end in `.tsv`.
    pub questions: String,
    /// File with the prompt texts, see [`find_few_shot`].
    pub few_shot: PathBuf,
    /// Which of the data set's prompts.
    pub variant: String,
    /// The teacher's name in the names of files.
    pub name: String,
    /// Only the first questions of the file; 0 for all.
    pub limit: usize,
    /// Responses to each question.
    pub samples: u32,
    /// How a teacher draws its completions.
    pub sampling: Sampling,
    /// The treatment of rationales that begin with yes or no.
    pub leading: LeadingAnswer,
    /// Questions that are cut from the training questions for development, where the data set has its development questions from there
    /// and no file names them.
    pub dev_questions: usize,
    /// Seed of the choice of these questions.
    pub seed: u64,
    /// Prices of a million tokens, to tell what it costs.
    pub prices: Option<Prices>,
    /// How a local model answers.
    pub local: LocalAnswers,
}

/// How a local model answers few-shot prompts, greedily.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalAnswers {
    /// Longest sequence of the decoder in tokens, the start token included.
    pub max_length: usize,
    /// Tokens of the decoder's sequence before which none ends, the start token included.
    pub min_length: usize,
    /// Prompts in a batch.
    pub batch_size: usize,
}

impl Default for LocalAnswers {
    fn default() -> Self {
        Self { max_length: 128, min_length: 10, batch_size: 16 }
    }
}

impl Default for TeachingConfig {
    fn default() -> Self {
        Self {
            questions: "data/{dataset}/original/{split}.jsonl".into(),
            few_shot: "data/few_shot_prompts.json".into(),
            variant: "i2ro".into(),
            name: "gpt3".into(),
            limit: 0,
            samples: 1,
            sampling: Sampling { max_tokens: Some(100), temperature: Some(0.1), ..Sampling::default() },
            leading: LeadingAnswer::Keep,
            dev_questions: 500,
            seed: 1,
            prices: None,
            local: LocalAnswers::default(),
        }
    }
}

impl TeachingConfig {
    /// The file of a split's questions.
    #[must_use]
    pub fn file(&self, dataset: MarioDataset, split: Split) -> PathBuf {
        self.questions.replace("{dataset}", dataset.name()).replace("{split}", &split.to_string()).into()
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong, and what would be right.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let LocalAnswers { max_length, min_length, batch_size } = self.local;
        if self.samples == 0 {
            return Err("teaching.samples is 0, but must be at least 1".into());
        }
        if self.sampling.n.is_some_and(|n| n != 1) {
            return Err(
                "teaching.sampling.n: every response is a request of its own; set teaching.samples".into()
            );
        }
        if self.name.is_empty() || self.name.contains(['/', '\\']) {
            return Err("teaching.name becomes a part of file names; give one without slashes".into());
        }
        if batch_size == 0 || max_length < 2 || min_length > max_length {
            return Err(format!(
                "teaching.local: batch_size is {batch_size} and max_length {max_length}; they must be at least 1 and 2, and \
                 min_length ({min_length}) no larger than max_length"
            ));
        }
        Ok(())
    }
}

/// The questions of a split with the prompt that is put around each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FewShotTeaching {
    dataset: MarioDataset,
    split: Split,
    prompt: FewShotPrompt,
    questions: Vec<MarioRow>,
}

impl FewShotTeaching {
    /// Reads the prompt and the questions of a split. Training questions are asked once, whatever the file repeats. `local` takes the
    /// prompt of Flan-T5 where a data set has one of its own.
    ///
    /// # Errors
    /// Those of [`find_few_shot`] and [`read_questions`].
    pub fn read(config: &TeachingConfig, dataset: MarioDataset, split: Split, local: bool) -> Result<Self> {
        let user = match (local, split) {
            (true, _) => "flan_t5_eval",
            (false, Split::Train) => "gpt3_silver",
            (false, _) => "gpt3_eval",
        };
        let prompt = find_few_shot(&config.few_shot, dataset, &config.variant, user)?;
        let mut questions = read_questions(&config.file(dataset, split), dataset)?;
        if split == Split::Train {
            let mut seen = BTreeSet::new();
            questions.retain(|row| seen.insert(row.question.clone()));
        }
        if config.limit > 0 {
            questions.truncate(config.limit);
        }
        Ok(Self { dataset, split, prompt, questions })
    }

    /// The questions with their labels.
    #[must_use]
    pub fn questions(&self) -> &[MarioRow] {
        &self.questions
    }

    /// The prompts, one for each question.
    #[must_use]
    pub fn prompts(&self) -> Vec<String> {
        self.questions.iter().map(|row| self.prompt.prompt(&row.question)).collect()
    }

    /// A request for each response that is wanted, question by question.
    #[must_use]
    pub fn requests(&self, config: &TeachingConfig) -> Vec<Request> {
        let request = |(question, prompt): (usize, &String), sample: u32| {
            let id = format!("{} {} {question} {sample}", self.dataset, self.split);
            let messages = vec![Message::new("user", prompt)];
            Request { id, messages, sampling: config.sampling.clone() }
        };
        let prompts = self.prompts();
        let of = |numbered| (0..config.samples).map(move |sample| request(numbered, sample));
        prompts.iter().enumerate().flat_map(of).collect()
    }

    /// Tells whether a completion is one: it states an answer.
    ///
    /// # Errors
    /// Says what is missing, so that the teacher is asked again.
    pub fn check(&self, completion: &str) -> std::result::Result<(), String> {
        let text = completion.trim_start();
        if text.starts_with("Q:") {
            return Err("it asks a question instead of answering".into());
        }
        match parse_completion(self.dataset, text, LeadingAnswer::Keep) == Completion::default() {
            true => Err("it does not state an answer, such as `So the answer is`".into()),
            false => Ok(()),
        }
    }

    /// The responses as rows: `texts` are the completions of a question's samples, one after another, as [`requests`](Self::requests) asks for
    /// them; those that are missing make no row.
    #[must_use]
    pub fn rows(&self, texts: &[Option<String>], leading: LeadingAnswer) -> Vec<TeacherRow> {
        let samples = (texts.len() / self.questions.len().max(1)).max(1);
        let row = |(i, text): (usize, &Option<String>)| {
            let question = self.questions.get(i / samples)?;
            let Completion { rationale, label } = parse_completion(self.dataset, text.as_deref()?, leading);
            Some(TeacherRow {
                question: question.question.clone(),
                gold_label: question.answer.to_lowercase(),
                predicted_label: label,
                predicted_rationale: rationale,
            })
        };
        texts.iter().enumerate().filter_map(row).collect()
    }
}

/// The completions of answers that hold one each.
#[must_use]
pub fn completions(answers: &[Option<Answer>]) -> Vec<Option<String>> {
    answers.iter().map(|answer| answer.as_ref().map(|answer| answer.text().to_owned())).collect()
}

/// Counts of a teacher's rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TeachingCounts {
    /// Responses.
    pub rows: usize,
    /// Questions that have any.
    pub questions: usize,
    /// Responses that state a label.
    pub with_label: usize,
    /// Responses with the right label.
    pub correct: usize,
    /// Questions whose most frequent label is right, in percent; among equally frequent ones the first counts.
    pub accuracy: f64,
}

impl TeachingCounts {
    /// Counts rows.
    #[must_use]
    pub fn of(rows: &[TeacherRow]) -> Self {
        let right = |row: &&TeacherRow| row.predicted_label.eq_ignore_ascii_case(&row.gold_label);
        let mut by_question: BTreeMap<&str, Vec<&TeacherRow>> = BTreeMap::new();
        rows.iter().for_each(|row| by_question.entry(&row.question).or_default().push(row));
        let majority = |rows: &Vec<&TeacherRow>| {
            let votes = |row: &TeacherRow| {
                rows.iter().filter(|other| other.predicted_label == row.predicted_label).count()
            };
            // Of equal ones, `max_by_key` takes the last.
            rows.iter().rev().max_by_key(|row| votes(row)).is_some_and(right)
        };
        let decided = by_question.values().filter(|rows| majority(rows)).count();
        Self {
            rows: rows.len(),
            questions: by_question.len(),
            with_label: rows.iter().filter(|row| !row.predicted_label.is_empty()).count(),
            correct: rows.iter().filter(right).count(),
            accuracy: 100.0 * decided as f64 / by_question.len().max(1) as f64,
        }
    }
}

/// The silver rows of a teacher's responses to the training questions, and the gold rows beside them.
///
/// Development questions are those of the split's file. Where the data set has them from its training questions and there is no file,
/// `dev_questions` of the training questions are drawn for it. Data sets without such a file otherwise have no development rows.
///
/// # Errors
/// When a file of questions cannot be read, other than because it is missing.
pub fn kept_rows(config: &TeachingConfig, dataset: MarioDataset, teacher: &[TeacherRow]) -> Result<Silver> {
    let gold = |split| -> Result<Vec<MarioRow>> {
        let file = config.file(dataset, split);
        if file.is_file() { read_questions(&file, dataset) } else { Ok(vec![]) }
    };
    let dev = gold(Split::Dev)?;
    let drawn = match dev.is_empty() && dataset.dev_is_cut_from_train() {
        true => cut_dev_questions(teacher, config.dev_questions, config.seed),
        false => dev.iter().map(|row| row.question.clone()).collect(),
    };
    let mut silver = silver_filter(dataset, teacher, drawn.iter().map(String::as_str));
    if !dataset.dev_is_cut_from_train() {
        silver.dev = dev;
    }
    Ok(silver)
}

/// Draws questions from those that a teacher has answered, at most half of them.
#[must_use]
pub fn cut_dev_questions(rows: &[TeacherRow], count: usize, seed: u64) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let distinct: Vec<&str> =
        rows.iter().map(|row| row.question.as_str()).filter(|question| seen.insert(*question)).collect();
    let chosen = Order::shuffled(distinct.len(), seed).indices(0);
    chosen.iter().take(count.min(distinct.len() / 2)).map(|&i| distinct[i].to_owned()).collect()
}

/// Writes what training reads: `{dataset}/raw/{split}.jsonl` below a folder, for each split that has rows. Returns the paths.
///
/// # Errors
/// [`Error::EmptySplit`] when there is no row to train on, and [`Error::Write`].
pub fn write_raw(
    folder: &Path,
    config: &TeachingConfig,
    dataset: MarioDataset,
    silver: &Silver,
) -> Result<Vec<PathBuf>> {
    let raw = folder.join(dataset.name()).join("raw");
    let file = |split: Split| raw.join(format!("{split}.jsonl"));
    if silver.train.is_empty() {
        return Err(Error::EmptySplit { path: file(Split::Train), rows: 0, first: None });
    }
    let test = config.file(dataset, Split::Test);
    let test = if test.is_file() { read_questions(&test, dataset)? } else { vec![] };
    let mut written = vec![];
    for (split, rows) in [(Split::Train, &silver.train), (Split::Dev, &silver.dev), (Split::Test, &test)] {
        if !rows.is_empty() {
            json::write_lines(&file(split), rows)?;
            written.push(file(split));
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPTS: &str = r#"[
        {"dataset": "quarel", "variant": "i2ro", "used_by": ["gpt3_silver"], "prefix": "Q: Sun? (A) hot (B) cold\nA: It burns. So the answer is (A).\n\nQ: ", "suffix": "\nA: "},
        {"dataset": "quarel", "variant": "i2ro", "used_by": ["flan_t5_eval"], "prefix": "", "suffix": ""},
        {"dataset": "weather", "variant": "own", "prefix": "P ", "suffix": " S"}
    ]"#;

    fn workplace() -> (tempfile::TempDir, TeachingConfig) {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(place.path().join(name), text).unwrap();
        write("prompts.json", PROMPTS);
        write(
            "train.jsonl",
            "{\"question\": \"Ice? (A) hot (B) cold\", \"answer\": \"(B)\"}\n{\"question\": \"Ice? (A) hot (B) cold\", \"answer\": \"(B)\"}\n\
             {\"question\": \"Fire? (A) hot (B) cold\", \"answer\": \"(A)\"}\n",
        );
        write("test.jsonl", "{\"question\": \"Snow? (A) hot (B) cold\", \"answer\": \"(B)\"}\n");
        let config = TeachingConfig {
            questions: place.path().join("{split}.jsonl").display().to_string(),
            few_shot: place.path().join("prompts.json"),
            samples: 2,
            ..TeachingConfig::default()
        };
        (place, config)
    }

    #[test]
    fn questions_become_requests_and_answers_rows() {
        let (place, config) = workplace();
        let set = MarioDataset::QuaRel;
        let teaching = FewShotTeaching::read(&config, set, Split::Train, false).unwrap();
        let requests = teaching.requests(&config);
        assert_eq!(requests.len(), 4);
        assert_eq!(requests[3].id, "quarel train 1 1");
        assert!(requests[2].messages[0].content.ends_with("\n\nQ: Fire? (A) hot (B) cold\nA: "));
        assert_eq!(requests[0].sampling.max_tokens, Some(100));
        let says = |text: &str| Some(text.to_owned());
        let texts = [
            says("It is frozen. So the answer is: (B)"),
            says("It glows. So the answer is (A)."),
            None,
            says("It burns"),
        ];
        let rows = teaching.rows(&texts, LeadingAnswer::Keep);
        assert_eq!(rows.len(), 3);
        assert_eq!((rows[0].predicted_label.as_str(), rows[0].gold_label.as_str()), ("(b)", "(b)"));
        assert_eq!(rows[2].question, "Fire? (A) hot (B) cold");
        let counts = TeachingCounts::of(&rows);
        assert_eq!((counts.rows, counts.questions, counts.with_label, counts.correct), (3, 2, 2, 1));
        // The first of two equally frequent labels is right, and no label is wrong.
        assert_eq!(counts.accuracy, 50.0);
        let silver = kept_rows(&config, set, &rows).unwrap();
        assert_eq!((silver.train.len(), silver.dev.len()), (1, 0));
        assert_eq!(
            (silver.train[0].rationale.as_str(), silver.train[0].answer.as_str()),
            ("It is frozen.", "(B)")
        );
        let written = write_raw(place.path(), &config, set, &silver).unwrap();
        assert_eq!(written.len(), 2);
        let test = read_questions(&place.path().join("quarel/raw/test.jsonl"), set).unwrap();
        assert_eq!(test[0].rationale, "dummy");
        let error = write_raw(place.path(), &config, set, &Silver::default()).unwrap_err().to_string();
        assert!(error.contains("train.jsonl"), "{error}");
    }

    #[test]
    fn completions_that_state_nothing_are_asked_for_again() {
        let (_place, config) = workplace();
        let teaching = FewShotTeaching::read(&config, MarioDataset::QuaRel, Split::Train, false).unwrap();
        assert!(teaching.check("\nIt is frozen. So the answer is: (B)").is_ok());
        for (text, reason) in [
            ("", "state an answer"),
            ("It is frozen.", "state an answer"),
            ("Q: Why? So the answer is (A).", "asks a question"),
        ] {
            let error = teaching.check(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn prompts_are_found_by_data_set_variant_and_user() {
        let (_place, config) = workplace();
        let set = MarioDataset::QuaRel;
        let local = FewShotTeaching::read(&config, set, Split::Train, true).unwrap();
        assert_eq!(local.prompts()[0], "Ice? (A) hot (B) cold");
        let own: MarioDataset =
            serde_json::from_str(r#"{"name": "weather", "labels": ["(A)", "(B)"]}"#).unwrap();
        let prompt = find_few_shot(&config.few_shot, own, "own", "gpt3_eval").unwrap();
        assert_eq!(prompt.prompt("Q"), "P Q S");
        let error = find_few_shot(&config.few_shot, own, "i2ro", "gpt3_eval").unwrap_err().to_string();
        assert!(error.contains("\"i2ro\" for weather") && error.contains("weather own"), "{error}");
        // Nobody asks GPT-3 about the test questions of QuaRel.
        assert!(FewShotTeaching::read(&config, set, Split::Test, false).is_err());
    }

    #[test]
    fn development_questions_are_drawn_where_they_come_from_training() {
        let row = |i: usize| TeacherRow {
            question: format!("{i}?"),
            gold_label: "(a)".into(),
            predicted_label: "(a)".into(),
            predicted_rationale: "So.".into(),
        };
        let rows: Vec<TeacherRow> = (0..10).map(row).collect();
        let chosen = cut_dev_questions(&rows, 3, 1);
        assert_eq!((chosen.len(), cut_dev_questions(&rows, 30, 1).len()), (3, 5));
        assert_eq!(chosen, cut_dev_questions(&rows, 3, 1));
        assert_ne!(chosen, cut_dev_questions(&rows, 3, 2));
        let config = TeachingConfig {
            questions: "nowhere/{split}.jsonl".into(),
            dev_questions: 3,
            ..Default::default()
        };
        let silver = kept_rows(&config, MarioDataset::Qasc, &rows).unwrap();
        assert_eq!((silver.train.len(), silver.dev.len()), (7, 3));
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let wrong = |change: fn(&mut TeachingConfig)| {
            let mut config = TeachingConfig::default();
            change(&mut config);
            config.validate().unwrap_err()
        };
        TeachingConfig::default().validate().unwrap();
        assert!(wrong(|config| config.samples = 0).contains("teaching.samples"));
        assert!(wrong(|config| config.sampling.n = Some(5)).contains("teaching.samples"));
        assert!(wrong(|config| config.name = "a/b".into()).contains("teaching.name"));
        assert!(wrong(|config| config.local.min_length = 200).contains("min_length"));
    }
}
