//! From questions to training items: what the teacher is asked in each round, and what is made of its answers.

use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::items::{Candidate, Item, LabelPolicy, Retry, check_all, items_of};
use super::question::Question;
use super::records::Reasoned;
use super::sources::{Source, read_items};
use super::teacher::{FewShot, TeacherRequest, read_instruction, system_message};
use crate::Result;
use crate::teacher::{
    self, Answer, AnswerFile, Exchange, Imported, Prices, Request, Teacher, TeacherObserver, match_answers,
};

/// Settings of the teaching; the defaults are the published ones, and 0 stands for the data set's own number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeachingConfig {
    /// Candidates that are asked for about each question: 8 for CommonsenseQA, else 4.
    pub candidates: usize,
    /// Times that a question is asked, the first one included: 2 for StrategyQA, else 3.
    pub rounds: usize,
    /// Items that are kept of a question; by default as many as candidates.
    pub keep: usize,
    /// Largest length of a candidate in tokens. A question with one that was cut off is asked again with twice as many.
    pub max_tokens: u32,
    /// Temperature of the draw.
    pub temperature: f64,
    /// Which label is trained where the teacher disagrees with the data set.
    pub labels: LabelPolicy,
    /// Seed of the order of the examples, and of draws among candidates.
    pub seed: u64,
}

impl Default for TeachingConfig {
    fn default() -> Self {
        Self {
            candidates: 0,
            rounds: 0,
            keep: 0,
            max_tokens: 256,
            temperature: 0.8,
            labels: LabelPolicy::default(),
            seed: 42,
        }
    }
}

/// The `[teaching]` section of a TinyThinker configuration: what the teacher is asked. The defaults are the paths of the published code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeachingSection {
    /// File with the instruction.
    pub instruction: PathBuf,
    /// File with the examples.
    pub few_shot: PathBuf,
    /// Prices of a million tokens, to show what it costs.
    pub prices: Option<Prices>,
    /// Only the first training questions; 0 for all.
    pub questions: usize,
    /// Rounds, candidates and labels.
    pub settings: TeachingConfig,
}

impl Default for TeachingSection {
    fn default() -> Self {
        Self {
            instruction: "datasets/request.json".into(),
            few_shot: "datasets/csqa/prompt/csqa_cot.json".into(),
            prices: None,
            questions: 0,
            settings: TeachingConfig::default(),
        }
    }
}

impl TeachingSection {
    /// The system message: instruction and examples.
    ///
    /// # Errors
    /// A file cannot be read or has another form.
    pub fn system_message(&self) -> Result<String> {
        let examples = read_few_shot(&self.few_shot, self.settings.seed)?;
        Ok(system_message(&read_instruction(&self.instruction)?, &examples))
    }

    /// The teaching of the training questions. Where there are answers that were collected before, their system message is taken, because
    /// the order of its examples was drawn.
    ///
    /// # Errors
    /// Those of [`system_message`](Self::system_message).
    pub fn teaching<'q>(
        &self,
        source: Source,
        train: &'q [Question],
        answers: &[(PathBuf, Vec<Exchange>)],
    ) -> Result<Teaching<'q>> {
        let mut told = answers.iter().flat_map(|(_, exchanges)| exchanges);
        let system = match told.find_map(|exchange| exchange.messages.first()) {
            Some(message) => message.content.clone(),
            None => self.system_message()?,
        };
        let count = if self.questions == 0 { train.len() } else { self.questions.min(train.len()) };
        Ok(Teaching::new(source, system, &train[..count], self.settings.clone()))
    }
}

/// What became of the questions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TaughtCounts {
    /// Questions that were asked.
    pub questions: usize,
    /// Candidates that were in order.
    pub accepted: usize,
    /// Candidates that were not.
    pub rejected: usize,
    /// Questions whose label is the teacher's and not the data set's.
    pub relabelled: usize,
    /// Questions without any item.
    pub without_items: usize,
    /// Requests without an answer, over all rounds.
    pub unanswered: usize,
}

/// The teaching of a data set: ask for [`requests`](Self::requests), give the answers to [`take`](Self::take), and again, until there are
/// no more requests; then there are [`items`](Self::items).
#[derive(Debug)]
pub struct Teaching<'a> {
    source: Source,
    system: String,
    questions: &'a [Question],
    config: TeachingConfig,
    round: usize,
    open: Vec<(usize, Retry)>,
    accepted: Vec<Vec<Candidate>>,
    counts: TaughtCounts,
}

impl<'a> Teaching<'a> {
    /// Before the first round. `system` is the [system message](super::system_message).
    #[must_use]
    pub fn new(
        source: Source,
        system: impl Into<String>,
        questions: &'a [Question],
        config: TeachingConfig,
    ) -> Self {
        let own = |setting: usize, published: usize| if setting == 0 { published } else { setting };
        let candidates = own(config.candidates, source.candidates());
        let config = TeachingConfig {
            candidates,
            rounds: own(config.rounds, source.rounds()),
            keep: own(config.keep, candidates),
            ..config
        };
        let first = Retry { n: candidates, max_tokens: config.max_tokens };
        Self {
            source,
            system: system.into(),
            questions,
            round: 0,
            open: (0..questions.len()).map(|i| (i, first)).collect(),
            accepted: vec![vec![]; questions.len()],
            counts: TaughtCounts { questions: questions.len(), ..TaughtCounts::default() },
            config,
        }
    }

    /// The number of the present round, from 0.
    #[must_use]
    pub fn round(&self) -> usize {
        self.round
    }

    /// What is to be asked in the present round; empty when the teaching is over.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        if self.round >= self.config.rounds {
            return vec![];
        }
        let request = |&(i, Retry { n, max_tokens }): &(usize, Retry)| {
            let question = &self.questions[i];
            let temperature = self.config.temperature;
            let of = TeacherRequest::new(self.source, &self.system, question);
            TeacherRequest { n, max_tokens, temperature, ..of }
                .named(format!("{}/{}", question.id, self.round))
        };
        self.open.iter().map(request).collect()
    }

    /// Takes the answers to the round's requests, in their order. What has no answer is asked again unchanged; of the others, as many
    /// candidates as were not in order.
    pub fn take(&mut self, answers: &[Option<Answer>]) {
        let mut next = vec![];
        for (&(i, asked), answer) in self.open.iter().zip(answers) {
            let Some(answer) = answer else {
                self.counts.unanswered += 1;
                next.push((i, asked));
                continue;
            };
            let question = &self.questions[i];
            let mut checked = check_all(&answer.choices, &question.labels());
            // A candidate that skips an option is of no use either.
            let all = checked.accepted.len();
            checked.accepted.retain(|candidate| candidate.reasons.len() == question.options.len());
            let missing = checked.rejected.len() + all - checked.accepted.len();
            self.counts.accepted += checked.accepted.len();
            self.counts.rejected += missing;
            if missing > 0 {
                let factor = if checked.cut_off() { 2 } else { 1 };
                let max_tokens = asked.max_tokens.saturating_mul(factor);
                next.push((i, Retry { n: missing.min(self.config.candidates), max_tokens }));
            }
            self.accepted[i].extend(checked.accepted);
        }
        self.open = next;
        self.round += 1;
    }

    /// The file of the present round's answers in a folder.
    #[must_use]
    pub fn answer_path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("answers_{}.jsonl", self.round))
    }

    /// Asks a teacher in all rounds that are left, with a file of answers for each in `folder`. Returns false when the observer stopped it.
    ///
    /// # Errors
    /// Those of [`Teacher::ask`].
    pub fn ask(
        &mut self,
        teacher: &Teacher,
        folder: &Path,
        observer: &mut dyn TeacherObserver,
    ) -> teacher::Result<bool> {
        loop {
            let requests = self.requests();
            if requests.is_empty() {
                return Ok(true);
            }
            let outcome = teacher.ask(&requests, &self.answer_path(folder), |_, _| Ok(()), observer)?;
            if outcome.stopped {
                return Ok(false);
            }
            self.take(&outcome.answers);
        }
    }

    /// Takes answers that were collected before, a file for each round. Rounds without a file have no answers.
    ///
    /// # Errors
    /// Those of [`match_answers`].
    pub fn take_files(&mut self, files: Vec<(PathBuf, Vec<Exchange>)>) -> teacher::Result<()> {
        let mut files = files.into_iter();
        loop {
            let requests = self.requests();
            if requests.is_empty() {
                return Ok(());
            }
            let answers = match files.next() {
                Some((path, exchanges)) => match_answers(&path, exchanges, &requests)?,
                None => vec![None; requests.len()],
            };
            self.take(&answers);
        }
    }

    /// Takes the answers to `model` in a folder, round after round, up to the round that has requests which are neither answered nor failed.
    /// Returns these; none when the teaching is over.
    ///
    /// # Errors
    /// Those of [`AnswerFile`].
    pub fn catch_up(&mut self, folder: &Path, model: &str) -> teacher::Result<Vec<Request>> {
        loop {
            let requests = self.requests();
            if requests.is_empty() {
                return Ok(vec![]);
            }
            let file = AnswerFile::open(&self.answer_path(folder))?;
            let open = file.open_requests(model, &requests)?;
            if !open.is_empty() {
                return Ok(open);
            }
            self.take(&file.answers(model, &requests)?);
        }
    }

    /// Takes the answers of another sender, those in `folder` and those in `import`, and tells what is still to be asked.
    ///
    /// # Errors
    /// Those of [`catch_up`](Self::catch_up) and [`AnswerFile::import`].
    pub fn exchange(&mut self, folder: &Path, model: &str, import: &[PathBuf]) -> teacher::Result<Exchanged> {
        let open = self.catch_up(folder, model)?;
        if import.is_empty() || open.is_empty() {
            return Ok(Exchanged { open, imported: None });
        }
        let requests = self.requests();
        let imported = AnswerFile::open(&self.answer_path(folder))?.import(import, model, &requests)?;
        Ok(Exchanged { open: self.catch_up(folder, model)?, imported: Some(imported) })
    }

    /// Writes the [`items`](Self::items) to `items.json` in a folder, and takes them apart.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_items(&self, folder: &Path) -> Result<(Vec<Reasoned>, TaughtCounts)> {
        let path = folder.join("items.json");
        let (items, counts) = self.items();
        crate::json::write(&path, &items)?;
        Ok((read_items(&path)?, counts))
    }

    /// The items of what was accepted so far, and what became of the questions. All rounds vote together on a label.
    #[must_use]
    pub fn items(&self) -> (Vec<Item>, TaughtCounts) {
        let mut counts = self.counts.clone();
        let mut items = vec![];
        for (question, accepted) in self.questions.iter().zip(&self.accepted) {
            let TeachingConfig { labels, keep, seed, .. } = self.config;
            let (made, _) = items_of(question, accepted, labels, keep, seed);
            match made.first() {
                None => counts.without_items += 1,
                Some(item) => counts.relabelled += usize::from(item.gold != question.gold.to_string()),
            }
            items.extend(made);
        }
        (items, counts)
    }
}

/// The state after another sender's answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchanged {
    /// The requests of the present round that are neither answered nor failed; none when the teaching is over.
    pub open: Vec<Request>,
    /// Counts of the files' answers; none where there were no files, or nothing was open.
    pub imported: Option<Imported>,
}

/// Reads the examples of a data set, in an order that the seed decides.
///
/// # Errors
/// [`Error::Read`](crate::Error::Read) and [`Error::Json`](crate::Error::Json).
pub fn read_few_shot(path: &Path, seed: u64) -> Result<Vec<FewShot>> {
    let mut examples: Vec<FewShot> = crate::json::read(path)?;
    examples.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    Ok(examples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::teacher::Completion;

    fn answer(texts: &[(&str, &str)]) -> Option<Answer> {
        let choice = |&(content, finish): &(&str, &str)| Completion {
            content: content.into(),
            finish_reason: finish.into(),
        };
        Some(Answer { choices: texts.iter().map(choice).collect(), ..Answer::default() })
    }

    const GOOD: &str =
        "Key Information: k.\nExplanations: A is correct. Because x.\nB is incorrect. Because y.";
    const OTHER: &str =
        "Key Information: k.\nExplanations: B is correct. Because x.\nA is incorrect. Because y.";
    const PARTIAL: &str = "Key Information: k.\nExplanations: A is correct. Because x.";

    #[test]
    fn rounds_ask_for_what_is_missing() {
        let question = |id: &str| Question::new(id, "q?", vec!["x".into(), "y".into()], 'A').unwrap();
        let questions = ["1", "2", "3"].map(question);
        let config = TeachingConfig { candidates: 2, rounds: 2, ..TeachingConfig::default() };
        let mut teaching = Teaching::new(Source::StrategyQa, "be brief", &questions, config);
        let asked = |teaching: &Teaching<'_>| -> Vec<(String, Option<u32>, Option<u32>)> {
            let requests = teaching.requests().into_iter();
            requests.map(|r| (r.id, r.sampling.n, r.sampling.max_tokens)).collect()
        };
        let first = |id: &str| (id.to_string(), Some(2), Some(256));
        assert_eq!(asked(&teaching), [first("1/0"), first("2/0"), first("3/0")]);
        teaching.take(&[
            answer(&[(GOOD, "stop"), (GOOD, "length")]),
            answer(&[(OTHER, "stop"), (PARTIAL, "stop")]),
            None,
        ]);
        let expected = [("1/1", 1, 512), ("2/1", 1, 256), ("3/1", 2, 256)];
        assert_eq!(asked(&teaching), expected.map(|(id, n, max)| (id.to_string(), Some(n), Some(max))));
        teaching.take(&[answer(&[(GOOD, "stop")]), answer(&[(OTHER, "stop")]), None]);
        assert!(teaching.requests().is_empty());
        let (items, counts) = teaching.items();
        assert_eq!(items.iter().map(|item| item.gold.as_str()).collect::<Vec<_>>(), ["A", "A", "B", "B"]);
        let expected = TaughtCounts {
            questions: 3,
            accepted: 4,
            rejected: 2,
            relabelled: 1,
            without_items: 1,
            unanswered: 2,
        };
        assert_eq!(counts, expected);
    }
}
