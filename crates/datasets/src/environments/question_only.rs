//! An environment that shows no demonstration.

use super::{Environment, Judgement, Problem};

/// Another environment without its demonstration: a dialogue begins with the question, and nothing else.
///
/// # Example
/// ```
/// use ruminate_datasets::environments::{Environment, Gsm8k, Problem, QuestionOnly};
/// let environment = QuestionOnly(Gsm8k::default());
/// let problem = Problem { question: "1+1?".into(), solution: "#### 2".into(), ..Problem::default() };
/// assert_eq!((environment.demonstration(), environment.opening(&problem)), (None, "1+1?".into()));
/// assert!(environment.judge(&problem, r"\boxed{2}").success());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuestionOnly<E>(pub E);

impl<E: Environment> Environment for QuestionOnly<E> {
    fn judge(&self, problem: &Problem, response: &str) -> Judgement {
        self.0.judge(problem, response)
    }

    fn check(&self, problem: &Problem) -> Result<(), String> {
        self.0.check(problem)
    }

    fn worked_solution(&self, problem: &Problem) -> String {
        self.0.worked_solution(problem)
    }

    fn demonstration(&self) -> Option<[&str; 2]> {
        None
    }

    fn opening(&self, problem: &Problem) -> String {
        problem.question.clone()
    }

    fn feedback(&self, problem: &Problem, success: bool) -> String {
        self.0.feedback(problem, success)
    }
}

impl Environment for Box<dyn Environment> {
    fn judge(&self, problem: &Problem, response: &str) -> Judgement {
        (**self).judge(problem, response)
    }

    fn check(&self, problem: &Problem) -> Result<(), String> {
        (**self).check(problem)
    }

    fn worked_solution(&self, problem: &Problem) -> String {
        (**self).worked_solution(problem)
    }

    fn demonstration(&self) -> Option<[&str; 2]> {
        (**self).demonstration()
    }

    fn opening(&self, problem: &Problem) -> String {
        (**self).opening(problem)
    }

    fn feedback(&self, problem: &Problem, success: bool) -> String {
        (**self).feedback(problem, success)
    }
}
