//! The two files that an evaluation of Crystal leaves behind: what was recalled, and what was answered with it.
//!
//! Names and order of the fields are those of the published code, so that its tools read our files and ours read
//! its. Both are arrays in the order of the data set, written with [`crate::json::write`].

use crate::question::{Question, Split};
use serde::{Deserialize, Serialize};

/// The prefix of file names in the published code.
pub const DEFAULT_PREFIX: &str = "rainier";

/// One element of a knowledge file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object of a knowledge file")]
pub struct KnowledgeItem {
    /// The task's key.
    pub task: String,
    /// The split.
    pub split: Split,
    /// The text of the question.
    pub query: String,
    /// The labels of the choices.
    pub cands: Vec<String>,
    /// The index of the gold choice.
    pub answer_ix: usize,
    /// The label of the gold choice.
    pub answer: String,
    /// The statements, without empty ones.
    pub knowledges: Vec<String>,
}

impl KnowledgeItem {
    /// What was recalled for a question; empty statements are dropped.
    pub fn new<S: AsRef<str>>(question: &Question, statements: &[S]) -> Self {
        Self {
            task: question.task.clone(),
            split: question.split,
            query: question.question.clone(),
            cands: question.choices.clone(),
            answer_ix: question.answer_ix,
            answer: question.answer.clone(),
            knowledges: (statements.iter().map(AsRef::as_ref))
                .filter(|statement| !statement.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }
}

/// One element of an inference file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object of an inference file")]
pub struct InferenceItem {
    /// The question and what was recalled for it.
    #[serde(flatten)]
    pub knowledge: KnowledgeItem,
    /// Raw scores, `[expert][choice]`: of the first `1 + knowledges.len()` experts in use.
    pub scores_: Vec<Vec<f64>>,
    /// Probabilities of the same experts.
    pub probs_: Vec<Vec<f64>>,
    /// The combined score of each choice; absent where experts vote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probs: Option<Vec<f64>>,
    /// The index of the predicted choice.
    pub pred: usize,
    /// 1 if that is the gold choice, else 0.
    pub ok: u8,
    /// The index of the choice predicted from the bare question.
    pub pred_knowless: usize,
    /// 1 if that is the gold choice, else 0.
    pub ok_knowless: u8,
    /// `ok - ok_knowless`: 1 if knowledge mended the answer, -1 if it broke it.
    pub rectified: i8,
    /// Our addition: the index into `knowledges` of the statement that decided, -1 for the bare question; absent
    /// where no single expert decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected_knowledge_ix: Option<i64>,
}

/// The name of a knowledge file, e.g. `knowledge_rainier-ckp0.json`. Step -1 is the baseline without knowledge.
pub fn knowledge_file_name(prefix: &str, step: i64) -> String {
    format!("knowledge_{prefix}-ckp{step}.json")
}

/// The name of the inference file that goes with a knowledge file, ours or another program's.
///
/// # Example
/// ```
/// use ruminate_datasets::evaluation_files::{inference_file_name, knowledge_file_name};
///
/// let knowledge = knowledge_file_name("rainier", 0);
/// assert_eq!(
///     inference_file_name("rainier", 0, &knowledge),
///     "inference_rainier-ckp0.knowledge_rainier-ckp0.json",
/// );
/// ```
pub fn inference_file_name(prefix: &str, step: i64, knowledge_file: &str) -> String {
    format!("inference_{prefix}-ckp{step}.{knowledge_file}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::question::{Origin, parse_line};

    #[test]
    fn fields_come_in_the_published_order() {
        let line = parse_line("Q \\n (A) x (B) y\ty").unwrap();
        let question = Question::new(&Origin::new("made_up", 0, Split::Dev), line);
        let item = InferenceItem {
            knowledge: KnowledgeItem::new(&question, &["", "k"]),
            scores_: vec![vec![0.5, 1.0]],
            probs_: vec![vec![0.25, 0.75]],
            probs: Some(vec![0.25, 0.75]),
            pred: 1,
            ok: 1,
            pred_knowless: 0,
            ok_knowless: 0,
            rectified: 1,
            selected_knowledge_ix: Some(0),
        };
        let text = serde_json::to_string(&item).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"task":"made_up","split":"dev","query":"Q \\n (A) x (B) y","cands":["A","B"],"answer_ix":1,"#,
                r#""answer":"B","knowledges":["k"],"scores_":[[0.5,1.0]],"probs_":[[0.25,0.75]],"#,
                r#""probs":[0.25,0.75],"pred":1,"ok":1,"pred_knowless":0,"ok_knowless":0,"rectified":1,"#,
                r#""selected_knowledge_ix":0}"#
            )
        );
        assert_eq!(serde_json::from_str::<InferenceItem>(&text).unwrap(), item);
    }
}
