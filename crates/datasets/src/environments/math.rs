//! Competition mathematics: an expression in a box, compared as text after normalisation.

use super::quantity;
use super::{Compat, Environment, Judgement, Problem};

/// MATH's environment: 1 for an expression that equals the gold one, else 0.
///
/// # Reference behaviour
/// [`Compat::Reference`] cuts boxes whose braces are two deep, compares answers after [normalisation](normalise), and takes two missing
/// answers for equal. [`Compat::Fixed`] counts braces, compares two numbers by their values, whatever their forms (`9{,}500`,
/// `18.0`, a sign of minus that is no hyphen), and takes answers with different units for different.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Math {
    /// Fixed, or as published.
    pub compat: Compat,
}

impl Environment for Math {
    fn judge(&self, problem: &Problem, response: &str) -> Judgement {
        let predicted = boxed_answer(response, self.compat);
        let gold = boxed_answer(&problem.solution, self.compat);
        let vote = |raw: &str| normalise(raw).unwrap_or_else(|_| raw.to_owned());
        let (right, answer) = match self.compat {
            Compat::Reference => (equivalent(predicted, gold), predicted.map(vote)),
            Compat::Fixed => {
                let right = predicted.zip(gold).is_some_and(|(predicted, gold)| same(predicted, gold));
                let number = |raw: &str| quantity::parse(raw, false).map(|found| found.value);
                (right, predicted.map(|raw| number(raw).unwrap_or_else(|| vote(raw))))
            }
        };
        Judgement { reward: f64::from(u8::from(right)), answer }
    }

    /// With [`Compat::Reference`] every problem can be asked: where there is no gold answer, none is right.
    fn check(&self, problem: &Problem) -> Result<(), String> {
        match boxed_answer(&problem.solution, self.compat) {
            None if self.compat == Compat::Fixed => {
                Err(r"has no gold answer; the solution should end in `\boxed{ANSWER}`".into())
            }
            _ => Ok(()),
        }
    }
}

/// Do two answers mean the same? Two numbers do if their values are equal, others if their normal forms are; units that both name must
/// be the same.
fn same(a: &str, b: &str) -> bool {
    if let (Some(a), Some(b)) = (quantity::parse(a, false), quantity::parse(b, false)) {
        return a.value == b.value && quantity::agree(a.unit.as_deref(), b.unit.as_deref());
    }
    let units = [a, b].map(quantity::unit_of);
    equivalent(Some(a), Some(b)) && quantity::agree(units[0].as_deref(), units[1].as_deref())
}

const BOX: &str = "boxed{";

/// What is in the last box of a text; none where it has none.
///
/// # Reference behaviour
/// A box may hold groups of braces, each of which ends at its first closing brace, so that `\boxed{\frac{\sqrt{3}}{2}}` gives
/// `\frac{\sqrt{3}`. [`Compat::Fixed`] counts braces. In both, a box that is never closed is passed over.
///
/// # Example
/// ```
/// use ruminate_datasets::environments::{Compat, boxed_answer};
/// let text = r"Hence $\boxed{\frac{\sqrt{3}}{2}}$.";
/// assert_eq!(boxed_answer(text, Compat::Fixed), Some(r"\frac{\sqrt{3}}{2}"));
/// assert_eq!(boxed_answer(text, Compat::Reference), Some(r"\frac{\sqrt{3}"));
/// ```
#[must_use]
pub fn boxed_answer(text: &str, compat: Compat) -> Option<&str> {
    if compat == Compat::Fixed {
        return last_box(text, |_| true);
    }
    let (mut last, mut rest) = (None, text);
    while let Some(start) = rest.find(BOX) {
        let inside = &rest[start + BOX.len()..];
        rest = match shallow(inside) {
            Some(end) => {
                last = Some(&inside[..end]);
                &inside[end..]
            }
            // The search goes on one character later; inside of `boxed{` no other one begins.
            None => inside,
        };
    }
    last
}

/// The content of the last box that is closed and `wanted`, its braces counted.
pub(super) fn last_box(text: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    let boxes = text.rmatch_indices(BOX).filter_map(|(at, _)| {
        let inside = &text[at + BOX.len()..];
        quantity::closing(inside).map(|end| &inside[..end])
    });
    boxes.into_iter().find(|inside| wanted(inside))
}

/// Where the box closes if a group of braces ends at the first closing one.
fn shallow(inside: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        at += inside[at..].find(['{', '}'])?;
        if inside[at..].starts_with('}') {
            return Some(at);
        }
        at += 1 + inside[at..].find('}')?;
    }
}

/// Why an expression has no normal form. The published code raises an exception there; answers are then compared as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NormaliseError {
    /// `\text{ ` stands more than once.
    #[error(r"`\text{{ ` stands more than once")]
    SeveralUnits,
    /// Nothing follows a `\sqrt`.
    #[error(r"nothing follows a `\sqrt`")]
    EmptyRoot,
    /// Nothing follows a `\frac`.
    #[error(r"nothing follows a `\frac`")]
    EmptyFraction,
}

/// Are two answers equal? Missing answers equal each other.
#[must_use]
pub fn equivalent(a: Option<&str>, b: Option<&str>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => match (normalise(a), normalise(b)) {
            (Ok(a), Ok(b)) => a == b,
            _ => a == b,
        },
        _ => false,
    }
}

/// The normal form of an expression, as published with the MATH data set (arXiv 2103.03874): replacements of text, in this
/// order. Nothing is computed, and commas stay.
///
/// # Errors
/// [`NormaliseError`].
///
/// # Example
/// ```
/// use ruminate_datasets::environments::normalise;
/// assert_eq!(normalise(r"x = \tfrac12")?, r"\frac{1}{2}");
/// assert_eq!(normalise(".5")?, r"\frac{1}{2}");
/// assert_eq!(normalise(r"10\text{ cm}")?, "10");
/// # Ok::<(), ruminate_datasets::environments::NormaliseError>(())
/// ```
pub fn normalise(expression: &str) -> Result<String, NormaliseError> {
    const BEFORE_UNITS: [(&str, &str); 10] = [
        ("\n", ""),
        (r"\!", ""),
        (r"\\", r"\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        (r"\left", ""),
        (r"\right", ""),
        (r"^{\circ}", ""),
        (r"^\circ", ""),
        (r"\$", ""),
    ];
    const AFTER_UNITS: [(&str, &str); 3] = [(r"\%", ""), (" .", " 0."), ("{.", "{0.")];
    let replace = |text: String, rules: &[(&str, &str)]| {
        rules.iter().fold(text, |text, (from, to)| text.replace(from, to))
    };
    let text = replace(expression.to_owned(), &BEFORE_UNITS);
    let text = replace(without_units(&text)?.to_owned(), &AFTER_UNITS);
    if text.is_empty() {
        return Ok(text);
    }
    let text = if text.starts_with('.') { format!("0{text}") } else { text };
    // `k = 5` is 5.
    let text = match text.split_once('=') {
        Some((name, value)) if !value.contains('=') && name.chars().count() <= 2 => value,
        _ => &text,
    };
    let text = braced_roots(text)?.replace(' ', "");
    let text = braced_fractions(&text)?;
    if text == "0.5" {
        return Ok(r"\frac{1}{2}".into());
    }
    Ok(match text.split_once('/') {
        Some((a, b)) if is_canonical(a) && is_canonical(b) => format!(r"\frac{{{a}}}{{{b}}}"),
        _ => text,
    })
}

fn without_units(text: &str) -> Result<&str, NormaliseError> {
    match text.split_once(r"\text{ ") {
        None => Ok(text),
        Some((_, after)) if after.contains(r"\text{ ") => Err(NormaliseError::SeveralUnits),
        Some((value, _)) => Ok(value),
    }
}

/// `\sqrt3` becomes `\sqrt{3}`.
fn braced_roots(text: &str) -> Result<String, NormaliseError> {
    let mut pieces = text.split(r"\sqrt");
    let mut result = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let mut chars = piece.chars();
        match chars.next() {
            None => return Err(NormaliseError::EmptyRoot),
            Some('{') => result += &format!(r"\sqrt{piece}"),
            Some(c) => result += &format!(r"\sqrt{{{c}}}{}", chars.as_str()),
        }
    }
    Ok(result)
}

/// `\frac12` becomes `\frac{1}{2}`. One with a single character behind it leaves everything as it is.
fn braced_fractions(text: &str) -> Result<String, NormaliseError> {
    let mut pieces = text.split(r"\frac");
    let mut result = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let mut chars = piece.chars();
        match (chars.next(), chars.next()) {
            (None, _) => return Err(NormaliseError::EmptyFraction),
            (Some('{'), _) => result += &format!(r"\frac{piece}"),
            (Some(_), None) => return Ok(text.to_owned()),
            (Some(a), Some('{')) => result += &format!(r"\frac{{{a}}}{{{}", chars.as_str()),
            (Some(a), Some(b)) => result += &format!(r"\frac{{{a}}}{{{b}}}{}", chars.as_str()),
        }
    }
    Ok(result)
}

/// Is this an integer as it would be printed?
fn is_canonical(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let leading_zero = digits.starts_with('0');
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && (!leading_zero || text == "0")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn missing_answers_are_worth_nothing_unless_the_published_code_is_asked() {
        let problem = Problem { solution: "no box".into(), ..Problem::default() };
        let reward = |compat| Math { compat }.judge(&problem, "none either").reward;
        assert_eq!((reward(Compat::Fixed), reward(Compat::Reference)), (0.0, 1.0));
        assert!(Math::default().check(&problem).is_err());
        assert!(Math { compat: Compat::Reference }.check(&problem).is_ok());
    }

    #[test]
    fn numbers_are_compared_by_value_and_units_by_name() {
        let reward = |compat, gold: &str, answer: &str| {
            let problem = Problem { solution: format!(r"Hence \boxed{{{gold}}}."), ..Problem::default() };
            Math { compat }.judge(&problem, &format!(r"\boxed{{{answer}}}")).reward
        };
        for (gold, answer, fixed, reference) in [
            ("9500", r"9{,}500", 1.0, 0.0),
            ("80000", r"\$80,000", 1.0, 0.0),
            ("18", "18.0", 1.0, 0.0),
            ("-18", "\u{2212}18", 1.0, 0.0),
            ("18", r"18 \text{ clips}", 1.0, 1.0),
            ("5", r"5 \text{cm}", 1.0, 0.0),
            (r"\frac{1}{4}", "0.25", 1.0, 0.0),
            (r"10\text{ cm}", r"10\text{ centimeters}", 1.0, 1.0),
            (r"10\text{ cm}", r"10\text{ m}", 0.0, 1.0),
            (r"2\pi\text{ cm}", r"2\pi\text{ m}", 0.0, 1.0),
            (r"2\pi\text{ cm}", r"2\pi", 1.0, 1.0),
            ("21/2", "2 1/2", 0.0, 1.0),
            (r"\text{Evelyn}", r"\text{Evelyn}", 1.0, 1.0),
            ("x^2+1", "x^2 + 1", 1.0, 1.0),
        ] {
            assert_eq!(reward(Compat::Fixed, gold, answer), fixed, "{gold} {answer}");
            assert_eq!(reward(Compat::Reference, gold, answer), reference, "{gold} {answer}");
        }
        let votes = ["9{,}500", "9500", "9,500.0"]
            .map(|answer| Math::default().judge(&Problem::default(), &format!(r"\boxed{{{answer}}}")).answer);
        assert_eq!(votes, [const { Some("9500") }; 3].map(|vote| vote.map(str::to_owned)));
    }

    #[test]
    fn a_box_that_is_never_closed_leaves_the_last_closed_one() {
        for compat in [Compat::Fixed, Compat::Reference] {
            assert_eq!(boxed_answer(r"\boxed{3} and \boxed{", compat), Some("3"));
            assert_eq!(boxed_answer(r"\boxed{3} and \boxed{\frac{1}{2}", compat), Some("3"));
            assert_eq!(boxed_answer(r"\boxed{3", compat), None);
        }
    }

    #[test]
    fn what_has_no_normal_form_is_compared_as_it_is() {
        let twice = r"1\text{ a}\text{ b}";
        assert_eq!(normalise(twice), Err(NormaliseError::SeveralUnits));
        assert_eq!(normalise(r"2\sqrt"), Err(NormaliseError::EmptyRoot));
        assert_eq!(normalise(r"\frac"), Err(NormaliseError::EmptyFraction));
        assert!(equivalent(Some(twice), Some(twice)));
        assert!(!equivalent(Some(twice), Some("1")));
    }

    proptest! {
        #[test]
        fn a_row_that_is_accepted_is_solved_by_its_own_solution(
            text in r"(\\boxed\{|\\frac|\\sqrt|\\text\{ |[{}=/. 0-9a%^-]){0,14}",
        ) {
            for compat in [Compat::Fixed, Compat::Reference] {
                let problem = Problem { solution: text.clone(), ..Problem::default() };
                let environment = Math { compat };
                if environment.check(&problem).is_ok() {
                    prop_assert!(environment.judge(&problem, &environment.worked_solution(&problem)).success());
                }
            }
        }

        #[test]
        fn no_text_is_too_strange(text in r"(boxed\{|\\frac|\\sqrt|\\text\{ |[{}=/. 0-9aé\\%^-]){0,12}") {
            let _ = boxed_answer(&text, Compat::Reference);
            if let Some(answer) = boxed_answer(&text, Compat::Fixed) {
                prop_assert_eq!(answer.matches('{').count(), answer.matches('}').count());
            }
            prop_assert!(equivalent(Some(&text), Some(&text)));
            let _ = normalise(&text);
        }
    }
}
