//! Grade-school arithmetic: a whole number in a box.

use super::{Compat, Environment, Judgement, Problem};
use crate::python;

/// What stands before the gold number.
const MARK: &str = "####";

/// GSM8K's environment: 1 for the right integer in the last box, 0 for a wrong one, -1 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gsm8k {
    /// [`Compat::Reference`] reads gold numbers up to their first comma.
    pub compat: Compat,
}

impl Environment for Gsm8k {
    fn judge(&self, problem: &Problem, response: &str) -> Judgement {
        let answer = boxed_integer(response);
        let Some(predicted) = &answer else { return Judgement { reward: -1.0, answer } };
        // Both sides as 64-bit floats, as the published code compares them; what is too large for one equals nothing.
        let predicted = predicted.parse::<f64>().ok().filter(|number| number.is_finite());
        let gold = gold_number(&problem.solution, self.compat).and_then(|gold| gold.parse::<f64>().ok());
        let right = predicted.is_some() && predicted == gold;
        Judgement { reward: f64::from(u8::from(right)), answer }
    }

    fn check(&self, problem: &Problem) -> Result<(), String> {
        match gold_number(&problem.solution, self.compat) {
            Some(_) => Ok(()),
            None => Err("has no gold number; its last line should be `#### N`".into()),
        }
    }

    /// Without the calculator's marks (`<<48/2=24>>`), and with the number in a box, as the demonstration ends.
    fn worked_solution(&self, problem: &Problem) -> String {
        let mut text = String::new();
        let mut rest = problem.solution.as_str();
        while let Some((before, marked)) = rest.split_once("<<") {
            let Some((_, after)) = marked.split_once(">>") else { break };
            text.push_str(before);
            rest = after;
        }
        text.push_str(rest);
        match (text.rsplit_once(MARK), gold_number(&problem.solution, self.compat)) {
            (Some((before, _)), Some(gold)) => format!("{}\nAnswer: \\boxed{{{gold}}}", before.trim_end()),
            _ => text,
        }
    }
}

/// The integer in the last box of a response, in decimal digits. `boxed{` begins a box, which ends at the next `}`; commas in it
/// do not count. A last box that holds no integer is not rescued by an earlier one.
///
/// # Example
/// ```
/// use ruminate_datasets::environments::boxed_integer;
/// assert_eq!(boxed_integer(r"first \boxed{3}, no: \boxed{1,234}").as_deref(), Some("1234"));
/// assert_eq!(boxed_integer(r"\boxed{3} or \boxed{3.5}"), None);
/// ```
#[must_use]
pub fn boxed_integer(response: &str) -> Option<String> {
    const BOX: &str = "boxed{";
    let mut last = None;
    let mut rest = response;
    while let Some(start) = rest.find(BOX) {
        let inside = &rest[start + BOX.len()..];
        let Some(end) = inside.find('}') else { break };
        rest = &inside[end..];
        // An empty box is none.
        if end > 0 {
            last = Some(&inside[..end]);
        }
    }
    python::int(&last?.replace(',', ""))
}

/// The gold number of a solution: what follows `####`, as the text of a decimal number.
///
/// # Reference behaviour
/// The first `####` is read, up to a comma: `#### 2,125` is 2. [`Compat::Fixed`] reads the last one, without its commas.
#[must_use]
pub fn gold_number(solution: &str, compat: Compat) -> Option<String> {
    match compat {
        Compat::Fixed => {
            let (_, last) = solution.rsplit_once(MARK)?;
            leading_number(&last.replace(',', ""))
        }
        // One character at a time: `#####5` holds the mark twice.
        Compat::Reference => (solution.char_indices())
            .filter_map(|(at, _)| solution[at..].strip_prefix(MARK))
            .find_map(leading_number),
    }
}

/// The number that a text begins with, in ASCII digits: `\s*([-+]?\d+(?:\.\d+)?)`.
fn leading_number(text: &str) -> Option<String> {
    let text = text.trim_start_matches(python::is_space);
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = |text: &str| -> String { text.chars().map_while(python::digit).collect() };
    let whole = digits(text);
    if whole.is_empty() {
        return None;
    }
    let after = text.trim_start_matches(|c| python::digit(c).is_some());
    let fraction = after.strip_prefix('.').map(digits).unwrap_or_default();
    let point = if fraction.is_empty() { "" } else { "." };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn worked_solutions_are_right_answers() {
        let problem = |solution: &str| Problem { solution: solution.into(), ..Problem::default() };
        for (solution, worked) in [
            (
                "48/2 = <<48/2=24>>24.\nSo 2*24=<<2*24=48>>48\n#### 48",
                "48/2 = 24.\nSo 2*24=48\nAnswer: \\boxed{48}",
            ),
            ("1 << 2 #### 2,125", "1 << 2\nAnswer: \\boxed{2125}"),
            ("#### -3", "\nAnswer: \\boxed{-3}"),
        ] {
            let problem = problem(solution);
            let written = Gsm8k::default().worked_solution(&problem);
            assert_eq!(written, worked);
            assert!(Gsm8k::default().judge(&problem, &written).success());
        }
    }

    use super::*;

    #[test]
    fn gold_numbers_with_commas() {
        for (solution, reference, fixed) in [
            ("x\n#### 2,125", Some("2"), Some("2125")),
            ("#### 3\n#### 4", Some("3"), Some("4")),
            ("####   -7", Some("-7"), Some("-7")),
            ("#### 12.", Some("12"), Some("12")),
            ("#### 0.50", Some("0.50"), Some("0.50")),
            ("#####5", Some("5"), Some("5")),
            ("#### none\n#### 3", Some("3"), Some("3")),
            ("18", None, None),
            ("#### x", None, None),
        ] {
            assert_eq!(gold_number(solution, Compat::Reference).as_deref(), reference, "{solution}");
            assert_eq!(gold_number(solution, Compat::Fixed).as_deref(), fixed, "{solution}");
        }
    }

    #[test]
    fn numbers_beyond_all_floats_are_wrong_and_not_a_crash() {
        let problem = Problem { solution: format!("#### {}", "9".repeat(400)), ..Problem::default() };
        let response = format!("\\boxed{{{}}}", "9".repeat(400));
        assert_eq!(Gsm8k::default().judge(&problem, &response).reward, 0.0);
    }
}
