//! The data of MaRio (tailoring self-rationalizers with multi-reward distillation): questions with a rationale and a label.
//!
//! The same five data sets come as gold rows, as responses of teachers and of other models, and as targets of training.
//! Row order is kept everywhere, because which row of a question is used depends on it.

mod answer;
mod few_shot;
mod output;
mod own;
mod prompts;
mod responses;
mod rows;
mod silver;
mod teaching;

pub use answer::{ANSWER_MARKER, RewardParts, is_valid, label, num_sents, num_words, rationale, response};
pub use few_shot::{
    Completion, FewShotPrompt, LeadingAnswer, find_few_shot, parse_completion, read_few_shot,
};
pub use output::{OutputRow, OutputTable, training_rows_file, training_summary_file};
pub use own::OwnDataset;
pub use prompts::{
    Target, i2o_input, i2o_target, ir2o_input, label_sentence, quark_rows, target, with_period,
};
pub use responses::{GivenResponse, ResponseFormat, Responses, UnknownFormat, read_responses};
pub use rows::{
    MarioRow, Statement, TeacherRow, read_gold, read_masked_tsv, read_questions, read_statements,
    read_teacher,
};
pub use silver::{Silver, silver_filter};
pub use teaching::{
    FewShotTeaching, LocalAnswers, TeachingConfig, TeachingCounts, completions, cut_dev_questions, kept_rows,
    write_raw,
};

use crate::question::letters;
use std::fmt;
use std::str::FromStr;

/// The five data sets, and those that a configuration describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MarioDataset {
    /// Yes or no.
    StrategyQa,
    /// Qualitative relations, two options.
    QuaRel,
    /// OpenBookQA, four options in lower-case letters.
    Obqa,
    /// A masked number word, the same twelve options for every question.
    NumerSense,
    /// Two facts to be composed, eight options.
    Qasc,
    /// One that is described in a configuration.
    Own(&'static OwnDataset),
}

/// The number words of NumerSense, in the order of their letters.
pub const NUMBER_WORDS: [&str; 12] =
    ["no", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

impl MarioDataset {
    /// The published ones, in the order of the paper.
    pub const ALL: [Self; 5] = [Self::StrategyQa, Self::QuaRel, Self::Obqa, Self::NumerSense, Self::Qasc];

    /// Its name in files and configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::StrategyQa => "strategyqa",
            Self::QuaRel => "quarel",
            Self::Obqa => "obqa",
            Self::NumerSense => "numersense",
            Self::Qasc => "qasc",
            Self::Own(description) => &description.name,
        }
    }

    /// The labels; their order is that of option indices.
    ///
    /// # Example
    /// ```
    /// use ruminate_datasets::mario::MarioDataset;
    ///
    /// assert_eq!(MarioDataset::StrategyQa.labels(), ["no", "yes"]);
    /// assert_eq!(MarioDataset::Obqa.labels(), ["(a)", "(b)", "(c)", "(d)"]);
    /// ```
    #[must_use]
    pub fn labels(self) -> Vec<String> {
        let upper = |n| letters(n).into_iter().map(|letter| format!("({letter})")).collect();
        match self {
            Self::StrategyQa => vec!["no".into(), "yes".into()],
            Self::QuaRel => upper(2),
            Self::Obqa => letters(4).into_iter().map(|l| format!("({})", l.to_lowercase())).collect(),
            Self::NumerSense => upper(NUMBER_WORDS.len()),
            Self::Qasc => upper(8),
            Self::Own(description) => description.labels.clone(),
        }
    }

    /// The index of a label among [`labels`](Self::labels), whatever its case.
    #[must_use]
    pub fn label_index(self, label: &str) -> Option<usize> {
        self.labels().iter().position(|known| known.eq_ignore_ascii_case(label))
    }

    /// A label as gold files of this data set write it: teachers' files have lower-case letters everywhere.
    #[must_use]
    pub fn normalise_label(self, label: &str) -> String {
        match self {
            Self::QuaRel | Self::NumerSense | Self::Qasc => label.to_uppercase(),
            Self::StrategyQa | Self::Obqa => label.to_string(),
            Self::Own(description) => match self.label_index(label) {
                Some(index) => description.labels[index].clone(),
                None => label.to_string(),
            },
        }
    }

    /// Whether the development questions were taken out of the training questions, so that silver rows about them are kept
    /// out of training.
    #[must_use]
    pub fn dev_is_cut_from_train(self) -> bool {
        match self {
            Self::Own(description) => description.dev_is_cut_from_train,
            _ => matches!(self, Self::NumerSense | Self::Qasc),
        }
    }

    /// True if questions list their options behind the labels.
    #[must_use]
    pub fn has_options_in_question(self) -> bool {
        match self {
            Self::Own(description) => description.options_in_question,
            _ => self != Self::StrategyQa,
        }
    }
}

impl fmt::Display for MarioDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no data set of MaRio.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown data set `{0}`; the data sets are strategyqa, quarel, obqa, numersense and qasc, and a configuration may describe others: \
     data.dataset = {{ name = \"mine\", labels = [\"(A)\", \"(B)\"] }}"
)]
pub struct UnknownDataset(String);

impl FromStr for MarioDataset {
    type Err = UnknownDataset;

    fn from_str(name: &str) -> Result<Self, UnknownDataset> {
        Self::ALL.into_iter().find(|set| set.name() == name).ok_or_else(|| UnknownDataset(name.to_string()))
    }
}

/// The share of the most frequent gold label, in percent: what guessing reaches. 0 without rows.
#[must_use]
pub fn majority_accuracy(rows: &[MarioRow]) -> f64 {
    let mut counts = std::collections::BTreeMap::new();
    rows.iter().for_each(|row| *counts.entry(row.answer.as_str()).or_insert(0usize) += 1);
    100.0 * counts.into_values().max().unwrap_or(0) as f64 / rows.len().max(1) as f64
}
