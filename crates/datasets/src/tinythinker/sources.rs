//! Files of the original data sets, and their division into training, validation and test.

use std::collections::BTreeMap;
use std::path::Path;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::items::Item;
use super::question::{Problem, Question};
use super::records::Reasoned;
use crate::{BadRows, Error, Place, Result};

/// A data set: those of the paper, and any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// CommonsenseQA: lines with five options.
    Csqa,
    /// OpenBookQA: lines with four options.
    Obqa,
    /// StrategyQA: an array (or lines) of yes-or-no questions.
    StrategyQa,
    /// Any other: lines as those of CommonsenseQA, with 2 to 26 options each.
    Custom,
}

impl Source {
    /// The name in settings and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Csqa => "csqa",
            Self::Obqa => "obqa",
            Self::StrategyQa => "strategyqa",
            Self::Custom => "custom",
        }
    }

    /// Options of each question, where all have as many.
    #[must_use]
    pub fn num_options(self) -> Option<usize> {
        match self {
            Self::Csqa => Some(5),
            Self::Obqa => Some(4),
            Self::StrategyQa => Some(2),
            Self::Custom => None,
        }
    }

    /// Candidates that the teacher is asked for, and items that are kept of a question.
    #[must_use]
    pub fn candidates(self) -> usize {
        if self == Self::Csqa { 8 } else { 4 }
    }

    /// Times that the teacher is asked, the first one included.
    #[must_use]
    pub fn rounds(self) -> usize {
        if self == Self::StrategyQa { 2 } else { 3 }
    }

    /// One row as it stands in the file; `index` numbers rows without an id.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn parse(self, index: usize, row: &Value) -> std::result::Result<Question, (&'static str, String)> {
        match self {
            Self::StrategyQa => Question::parse_strategyqa(index, row),
            Self::Csqa | Self::Obqa | Self::Custom => {
                let question = Question::parse(index, row)?;
                let got = question.options.len();
                match self.num_options() {
                    Some(want) if got != want => {
                        Err(("choices", format!("are {got}, but this data set has {want}")))
                    }
                    _ => Ok(question),
                }
            }
        }
    }

    /// Reads a file. Bad rows are refused, or left out and returned beside the questions.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Json`], and [`Error::BadField`] with line or item, field and reason.
    pub fn read(self, path: &Path, bad: BadRows) -> Result<(Vec<Question>, Vec<Error>)> {
        let mut questions = vec![];
        let mut skipped = vec![];
        let mut put = |place: Place, parsed: std::result::Result<Question, Problem>| {
            match parsed.map_err(|(field, reason)| Error::BadField {
                path: path.into(),
                place,
                field,
                reason,
            }) {
                Ok(question) => questions.push(question),
                Err(error) if bad == BadRows::Skip => skipped.push(error),
                Err(error) => return Err(error),
            }
            Ok(())
        };
        if self == Self::StrategyQa {
            for (i, (place, row)) in crate::json::read_rows::<Value>(path)?.into_iter().enumerate() {
                put(place, self.parse(i, &row))?;
            }
        } else {
            let bytes = crate::text::read(path)?;
            let lines = bytes.split(|&byte| byte == b'\n').enumerate();
            for (row_index, (i, line)) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()).enumerate()
            {
                let row = serde_json::from_slice(line).map_err(|error| ("row", error.to_string()));
                put(Place::Line(i + 1), row.and_then(|row| self.parse(row_index, &row)))?;
            }
        }
        Ok((questions, skipped))
    }
}

/// The parts of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splits {
    /// What is trained on.
    pub train: Vec<Question>,
    /// What checkpoints are chosen by.
    pub valid: Vec<Question>,
    /// What is reported.
    pub test: Vec<Question>,
}

/// Which question is in which part, to be written beside a run and read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(expecting = "an object with train, valid and test")]
pub struct SplitIds {
    /// Ids of the training questions.
    pub train: Vec<String>,
    /// Ids of the validation questions.
    pub valid: Vec<String>,
    /// Ids of the test questions.
    pub test: Vec<String>,
}

impl Splits {
    /// The parts of a data set from the folder of its original files, under their published names. `valid` questions of CommonsenseQA's
    /// training file are held out (1221 in the paper), and StrategyQA is divided by `seed`. Bad rows are refused, or left out and returned
    /// beside the parts.
    ///
    /// # Errors
    /// Those of [`Source::read`].
    pub fn read(
        source: Source,
        folder: &Path,
        valid: usize,
        seed: u64,
        bad: BadRows,
    ) -> Result<(Self, Vec<Error>)> {
        let mut skipped = vec![];
        let mut read = |name: &str| {
            let (questions, more) = source.read(&folder.join(name), bad)?;
            skipped.extend(more);
            Ok(questions)
        };
        let splits = match source {
            Source::Csqa => {
                let (train, test) = (read("train_rand_split.jsonl")?, read("dev_rand_split.jsonl")?);
                Self::hold_out(train, test, valid, seed)
            }
            Source::Obqa | Source::Custom => {
                Self { train: read("train.jsonl")?, valid: read("dev.jsonl")?, test: read("test.jsonl")? }
            }
            Source::StrategyQa => Self::divide(read("strategyqa_train.json")?, seed),
        };
        Ok((splits, skipped))
    }

    /// As StrategyQA is divided: after a shuffle, eight tenths, one tenth and the rest.
    #[must_use]
    pub fn divide(mut questions: Vec<Question>, seed: u64) -> Self {
        questions.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let n = questions.len();
        let test = questions.split_off(n * 8 / 10 + n / 10);
        let valid = questions.split_off(n * 8 / 10);
        Self { train: questions, valid, test }
    }

    /// As CommonsenseQA is divided: `count` questions of the training file are drawn for validation, and the development file
    /// is the test. What stays keeps its order.
    #[must_use]
    pub fn hold_out(train: Vec<Question>, test: Vec<Question>, count: usize, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..train.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        order.truncate(count);
        order.sort_unstable();
        let (mut kept, mut valid) = (vec![], vec![]);
        for (i, question) in train.into_iter().enumerate() {
            if order.binary_search(&i).is_ok() { &mut valid } else { &mut kept }.push(question);
        }
        Self { train: kept, valid, test }
    }

    /// The manifest.
    #[must_use]
    pub fn ids(&self) -> SplitIds {
        let ids = |part: &[Question]| part.iter().map(|question| question.id.clone()).collect();
        SplitIds { train: ids(&self.train), valid: ids(&self.valid), test: ids(&self.test) }
    }

    /// The parts that a manifest read from `path` names.
    ///
    /// # Errors
    /// [`Error::BadField`] for an id that no question has.
    pub fn from_ids(questions: &[Question], ids: &SplitIds, path: &Path) -> Result<Self> {
        let by_id: BTreeMap<&str, &Question> = questions.iter().map(|q| (q.id.as_str(), q)).collect();
        let part = |field: &'static str, ids: &[String]| {
            let find = |(i, id): (usize, &String)| {
                by_id.get(id.as_str()).map(|&question| question.clone()).ok_or_else(|| Error::BadField {
                    path: path.into(),
                    place: Place::Item(i),
                    field,
                    reason: format!("no question has the id `{id}`"),
                })
            };
            ids.iter().enumerate().map(find).collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            train: part("train", &ids.train)?,
            valid: part("valid", &ids.valid)?,
            test: part("test", &ids.test)?,
        })
    }
}

/// Reads a JSON array of teacher items and takes them apart.
///
/// # Errors
/// [`Error::Read`], [`Error::Json`], and [`Error::BadField`] with item, field and reason.
pub fn read_items(path: &Path) -> Result<Vec<Reasoned>> {
    let items: Vec<Item> = crate::json::read(path)?;
    let parse = |(i, item): (usize, &Item)| {
        Reasoned::parse(&i.to_string(), item).map_err(|(field, reason)| Error::BadField {
            path: path.into(),
            place: Place::Item(i),
            field,
            reason,
        })
    };
    items.iter().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn questions(n: usize) -> Vec<Question> {
        let question = |i: usize| {
            Question::new(i.to_string(), format!("q {i}?"), vec!["x".into(), "y".into()], 'A').unwrap()
        };
        (0..n).map(question).collect()
    }

    #[test]
    fn parts_have_their_sizes_and_share_nothing() {
        let all = questions(2290);
        let splits = Splits::divide(all.clone(), 1);
        assert_eq!([&splits.train, &splits.valid, &splits.test].map(Vec::len), [1832, 229, 229]);
        assert_eq!(Splits::divide(all.clone(), 1), splits);
        assert_ne!(Splits::divide(all.clone(), 2), splits);
        let mut ids = [splits.ids().train, splits.ids().valid, splits.ids().test].concat();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 2290);
        let held = Splits::hold_out(all.clone(), questions(3), 100, 5);
        assert_eq!((held.train.len(), held.valid.len(), held.test.len()), (2190, 100, 3));
        assert_eq!(Splits::from_ids(&all, &splits.ids(), Path::new("s")).unwrap(), splits);
        let mut wrong = splits.ids();
        wrong.valid[2] = "nobody".into();
        let error = Splits::from_ids(&all, &wrong, Path::new("splits.json")).unwrap_err().to_string();
        assert!(error.contains("splits.json") && error.contains("item 2, field valid"), "{error}");
    }

    #[test]
    fn bad_rows_are_named_or_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.jsonl");
        let good = r#"{"id": "1", "answerKey": "A", "question": {"stem": "s?", "choices": [{"label": "A", "text": "a"},
            {"label": "B", "text": "b"}, {"label": "C", "text": "c"}, {"label": "D", "text": "d"}]}}"#
            .replace('\n', " ");
        std::fs::write(&path, format!("{good}\n\n{{\"id\": 3}}\n{good}")).unwrap();
        let error = Source::Obqa.read(&path, BadRows::Refuse).unwrap_err().to_string();
        assert!(error.contains("line 3, field question: is missing"), "{error}");
        let (questions, skipped) = Source::Obqa.read(&path, BadRows::Skip).unwrap();
        assert_eq!((questions.len(), skipped.len()), (2, 1));
        let error = Source::Csqa.read(&path, BadRows::Refuse).unwrap_err().to_string();
        assert!(error.contains("line 1, field choices"), "{error}");
        std::fs::write(&path, r#"[{"question": "q?", "answer": true}, {"question": "q?"}]"#).unwrap();
        let error = Source::StrategyQa.read(&path, BadRows::Refuse).unwrap_err().to_string();
        assert!(error.contains("item 1, field answer: is missing"), "{error}");
    }
}
