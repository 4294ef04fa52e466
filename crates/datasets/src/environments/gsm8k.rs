//! Grade-school arithmetic: a whole number in a box.

use super::math::last_box;
use super::quantity::{self, Quantity};
use super::{Compat, Environment, Judgement, Problem};
use crate::python;

/// What stands before the gold number.
const MARK: &str = "####";

/// GSM8K's environment: 1 for the right number in the last box, 0 for a wrong one, -1 for none.
///
/// # Reference behaviour
/// [`Compat::Reference`] reads whole numbers only ([`boxed_integer`]), compares them as 64-bit floats, and reads gold numbers up to
/// their first comma. [`Compat::Fixed`] reads all forms of a number ([`boxed_number`]) and compares values exactly; units that both
/// sides name must be the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gsm8k {
    /// Fixed, or as published.
    pub compat: Compat,
}

impl Environment for Gsm8k {
    fn judge(&self, problem: &Problem, response: &str) -> Judgement {
        if self.compat == Compat::Fixed {
            let Some(answer) = last_quantity(response) else {
                return Judgement { reward: -1.0, answer: None };
            };
            let right = gold_quantity(&problem.solution).is_some_and(|gold| {
                // What is too large for a float equals nothing, as nothing that a model can have computed is.
                is_finite(&gold.value)
                    && gold.value == answer.value
                    && quantity::agree(gold.unit.as_deref(), answer.unit.as_deref())
            });
            return Judgement { reward: f64::from(u8::from(right)), answer: Some(answer.value) };
        }
        let answer = boxed_integer(response);
        let Some(predicted) = &answer else { return Judgement { reward: -1.0, answer } };
        let predicted = predicted.parse::<f64>().ok().filter(|number| number.is_finite());
        let gold = gold_number(&problem.solution, self.compat).and_then(|gold| gold.parse::<f64>().ok());
        let right = predicted.is_some() && predicted == gold;
        Judgement { reward: f64::from(u8::from(right)), answer }
    }

    fn check(&self, problem: &Problem) -> Result<(), String> {
        let Some(gold) = gold_number(&problem.solution, self.compat) else {
            return Err("has no gold number; its last line should be `#### N`, N being one number".into());
        };
        if !is_finite(&gold) {
            return Err("has a gold number that is too large for a 64-bit float".into());
        }
        if self.compat == Compat::Reference && integral(&gold).is_none() {
            return Err(format!(
                "has the gold number {gold}, but the published rule reads whole numbers only; compat = \"fixed\" reads it"
            ));
        }
        Ok(())
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
            (Some((before, _)), Some(gold)) => {
                let gold = integral(&gold).unwrap_or(&gold);
                format!("{}\nAnswer: \\boxed{{{gold}}}", before.trim_end())
            }
            _ => text,
        }
    }
}

/// A whole number without its decimals.
fn integral(number: &str) -> Option<&str> {
    match number.split_once('.') {
        None => (!number.contains('/')).then_some(number),
        Some((whole, decimals)) => decimals.bytes().all(|digit| digit == b'0').then_some(whole),
    }
}

/// Does a 64-bit float have room for it?
fn is_finite(number: &str) -> bool {
    number.split('/').all(|part| part.parse::<f64>().is_ok_and(f64::is_finite))
}

/// The number in the last box of a response, in one form for each value: `1,234.50`, `\$1234.5` and `2469/2` are all `1234.5`. A last
/// box that holds no number is not rescued by an earlier one; one that is never closed, or empty, is none.
///
/// # Example
/// ```
/// use ruminate_datasets::environments::boxed_number;
/// assert_eq!(boxed_number(r"first \boxed{3}, no: \boxed{9{,}500 \text{ clips}}").as_deref(), Some("9500"));
/// assert_eq!(boxed_number(r"\boxed{3} or \boxed{between 3 and 4}"), None);
/// ```
#[must_use]
pub fn boxed_number(response: &str) -> Option<String> {
    last_quantity(response).map(|found| found.value)
}

fn last_quantity(response: &str) -> Option<Quantity> {
    quantity::parse(last_box(response, |inside| !inside.is_empty())?, true)
}

fn gold_quantity(solution: &str) -> Option<Quantity> {
    let (_, last) = solution.rsplit_once(MARK)?;
    quantity::parse(last.trim_start_matches(python::is_space).lines().next()?, true)
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

/// The gold number of a solution: what follows `####`. In its [one form](boxed_number), or, with [`Compat::Reference`], as it is
/// written.
///
/// # Reference behaviour
/// The first `####` is read, and of it the longest beginning that is a decimal number: `#### 2,125` is 2, `#### 1/2` is 1.
/// [`Compat::Fixed`] reads the rest of the line behind the last one, and takes it as a whole or not at all.
#[must_use]
pub fn gold_number(solution: &str, compat: Compat) -> Option<String> {
    match compat {
        Compat::Fixed => gold_quantity(solution).map(|gold| gold.value),
        // One character at a time: `#####5` holds the mark twice.
        Compat::Reference => (solution.char_indices())
            .filter_map(|(at, _)| solution[at..].strip_prefix(MARK))
            .find_map(leading_number),
    }
}

/// The number that a text begins with, in ASCII digits: `\s*([-+]?\d+(?:\.\d+)?)`.
fn leading_number(text: &str) -> Option<String> {
    let text = text.trim_start_matches(python::is_space);
    let (sign, text) = text.split_at(usize::from(text.starts_with(['-', '+'])));
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
    use proptest::prelude::*;

    use super::*;

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

    #[test]
    fn gold_numbers_with_commas() {
        for (solution, reference, fixed) in [
            ("x\n#### 2,125", Some("2"), Some("2125")),
            ("#### 3\n#### 4", Some("3"), Some("4")),
            ("####   -7", Some("-7"), Some("-7")),
            ("#### 12.", Some("12"), Some("12")),
            ("#### 0.50", Some("0.50"), Some("0.5")),
            ("#### +5", Some("+5"), Some("5")),
            ("#### 2.50 \nthe end", Some("2.50"), Some("2.5")),
            ("####\n 7", Some("7"), Some("7")),
            ("#### 1/2", Some("1"), Some("0.5")),
            ("#### $1,200", None, Some("1200")),
            ("#### 18 clips", Some("18"), Some("18")),
            ("#### 3:30", Some("3"), None),
            ("#### 5-7", Some("5"), None),
            ("#### 1e3", Some("1"), None),
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

    fn reward(compat: Compat, gold: &str, answer: &str) -> f64 {
        let problem = Problem { solution: format!("x\n#### {gold}"), ..Problem::default() };
        Gsm8k { compat }.judge(&problem, &format!("So \\boxed{{{answer}}}.")).reward
    }

    #[test]
    fn all_forms_of_a_number_are_right_unless_the_published_rule_is_asked() {
        for (gold, answer) in [
            ("9500", "9{,}500"),
            ("80000", r"\$80,000"),
            ("18", "18.0"),
            ("-18", "\u{2212}18"),
            ("18", r"18 \text{ clips}"),
            ("18 clips", r"18 \text{ clips}"),
            ("18", "18 eggs"),
            ("18", "$18$"),
            ("1/2", "0.5"),
            ("2.50", r"\frac{5}{2}"),
            ("33", r"33\%"),
        ] {
            assert_eq!(reward(Compat::Fixed, gold, answer), 1.0, "{gold} {answer}");
            assert!(reward(Compat::Reference, gold, answer) < 1.0, "{gold} {answer}");
        }
        for (gold, answer, fixed) in [
            ("1/2", "1", 0.0),
            ("18 dollars", r"18 \text{ cents}", 0.0),
            ("2", "2 dozen", -1.0),
            ("1000", "1e3", -1.0),
            ("57", "5,7", -1.0),
            ("9007199254740993", "9007199254740992", 0.0),
        ] {
            assert_eq!(reward(Compat::Fixed, gold, answer), fixed, "{gold} {answer}");
        }
        assert_eq!(reward(Compat::Reference, "+5", "5"), 1.0);
    }

    #[test]
    fn a_box_that_is_never_closed_leaves_the_last_closed_one() {
        let problem = Problem { solution: "#### 3".into(), ..Problem::default() };
        for compat in [Compat::Fixed, Compat::Reference] {
            let reward = |response: &str| Gsm8k { compat }.judge(&problem, response).reward;
            assert_eq!(reward(r"\boxed{3} and \boxed{4"), 1.0);
            assert_eq!(reward(r"\boxed{3} and \boxed{}"), 1.0);
            assert_eq!(reward(r"\boxed{3"), -1.0);
        }
    }

    proptest! {
        #[test]
        fn a_row_that_is_accepted_is_solved_by_its_number_and_no_other(
            gold in r"([-+\u{2212}]?\$?[0-9]{1,6}(,[0-9]{3}){0,2}(\.[0-9]{1,3})?( ?[/:e-] ?[0-9]{1,3})?( ?(eggs|%|cm|dozen|1/2|AM))?\.?){0,1}",
            other in r"-?[0-9]{1,6}(\.[0-9]{1,3})?(/[1-9][0-9]?)?",
        ) {
            let problem = Problem { solution: format!("x <<1+1=2>>2\n#### {gold}"), ..Problem::default() };
            for compat in [Compat::Fixed, Compat::Reference] {
                let environment = Gsm8k { compat };
                if environment.check(&problem).is_err() {
                    continue;
                }
                let worked = environment.worked_solution(&problem);
                prop_assert!(environment.judge(&problem, &worked).success(), "{compat:?}: {worked}");
                let judgement = environment.judge(&problem, &format!("\\boxed{{{other}}}"));
                let value = |number: &str| {
                    let mut parts = number.split('/').map(|part| part.parse::<f64>().unwrap());
                    parts.next().unwrap() / parts.next().unwrap_or(1.0)
                };
                let number = gold_number(&problem.solution, compat).unwrap();
                if judgement.success() {
                    prop_assert!((value(&other) - value(&number)).abs() < 1e-9, "{compat:?}: {number} {other}");
                } else if compat == Compat::Fixed {
                    prop_assert!(value(&other) != value(&number), "{number} {other}");
                }
            }
        }
    }
}
