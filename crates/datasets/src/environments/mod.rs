//! Problems whose answers can be checked: what a model is asked, how its answer is judged, and what it is told then.
//!
//! An [`Environment`] is all that multi-turn rollouts ([`rise`](crate::rise)) need to know of a task. [`Gsm8k`] and [`Math`] are
//! those of RISE (arXiv 2407.18219).

mod benchmark;
mod gsm8k;
mod math;
mod quantity;
mod question_only;

pub use benchmark::{Benchmark, Loaded};
pub use gsm8k::{Gsm8k, boxed_integer, boxed_number, gold_number};
pub use math::{Math, NormaliseError, boxed_answer, equivalent, normalise};
pub use question_only::QuestionOnly;

use serde::{Deserialize, Serialize};

/// Whether to do what was meant, or what the published code does, its defects included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compat {
    /// Without the known defects.
    #[default]
    Fixed,
    /// As the published numbers were made.
    Reference,
}

/// A problem with the solution that it is checked against.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problem {
    /// Its number in the file, counted from 0, empty lines left out: the key of logs.
    pub row: usize,
    /// The question, verbatim.
    pub question: String,
    /// A worked solution that ends in the answer.
    pub solution: String,
    /// How hard it is, where the file says so.
    pub level: Option<String>,
    /// What it is about, where the file says so.
    pub subject: Option<String>,
}

/// What an attempt is worth.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The reward; 1 is success, and nothing is worth more.
    pub reward: f64,
    /// What the attempt votes for: attempts with equal answers agree. None for an attempt without an answer.
    pub answer: Option<String>,
}

impl Judgement {
    /// Was the attempt right?
    #[must_use]
    pub fn success(&self) -> bool {
        is_success(self.reward)
    }
}

/// Is this the reward of a right attempt?
#[must_use]
pub fn is_success(reward: f64) -> bool {
    reward == 1.0
}

/// A task with checkable answers. Only [`judge`](Self::judge) has to be written; what is said to the model are the texts of RISE.
///
/// # Example
/// ```
/// use ruminate_datasets::environments::{Environment, Judgement, Problem};
///
/// /// Whether a word was reversed.
/// struct Reversal;
///
/// impl Environment for Reversal {
///     fn judge(&self, problem: &Problem, response: &str) -> Judgement {
///         let answer = response.split_whitespace().last().map(str::to_owned);
///         let right = answer.as_deref() == Some(problem.solution.as_str());
///         Judgement { reward: f64::from(u8::from(right)), answer }
///     }
/// }
///
/// let problem = Problem { question: "Reverse `abc`.".into(), solution: "cba".into(), ..Problem::default() };
/// assert!(Reversal.judge(&problem, "The answer is cba").success());
/// assert_eq!(
///     Reversal.feedback(&problem, false),
///     "The answer is incorrect. Please try again. Here's the question: Reverse `abc`."
/// );
/// ```
pub trait Environment {
    /// Judges a response. The reward must be finite and at most 1.
    fn judge(&self, problem: &Problem, response: &str) -> Judgement;

    /// Whether a problem can be asked at all, e.g. whether its solution has an answer.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    fn check(&self, problem: &Problem) -> Result<(), String> {
        let _ = problem;
        Ok(())
    }

    /// The problem's own solution, in the form in which answers are read. Default: the solution as it is.
    fn worked_solution(&self, problem: &Problem) -> String {
        problem.solution.clone()
    }

    /// A question with an exemplary answer, before everything else. Default: that of RISE.
    fn demonstration(&self) -> Option<[&str; 2]> {
        Some(DEMONSTRATION)
    }

    /// The first message about a problem. Default: congratulations on the demonstration, and the question.
    fn opening(&self, problem: &Problem) -> String {
        format!(
            "Great job! You've successfully answered the question. Now, let's move on to the next one.\n{}",
            problem.question
        )
    }

    /// The message after an attempt. Default: a sentence that gives nothing away but whether it was right.
    fn feedback(&self, problem: &Problem, success: bool) -> String {
        if success {
            return "Great job! You've successfully answered the question.".into();
        }
        format!("The answer is incorrect. Please try again. Here's the question: {}", problem.question)
    }
}

/// The demonstration with which every dialogue of RISE begins: a question of sets and its answer, byte for byte.
pub const DEMONSTRATION: [&str; 2] =
    [include_str!("demonstration_question.txt"), include_str!("demonstration_answer.txt")];

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_demonstration_is_that_of_the_published_code() {
        let hash = |text: &str| -> String {
            Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let [question, answer] = DEMONSTRATION;
        assert_eq!((question.chars().count(), answer.chars().count()), (552, 966));
        assert_eq!(hash(question), "14c137de988f756db03cfa51d1123ee39f034070693726ad0b42e92b636a98af");
        assert_eq!(hash(answer), "6a8262912adb3f6f20942cd33efbc34ff73ccc7c568bf94d5f9a135bdce8ea74");
    }
}
