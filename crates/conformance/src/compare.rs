//! Comparisons that say what differs, and by how much.

use serde_json::Value;
use std::fmt::{self, Debug};

/// The outcome of a check.
pub type Check<T = ()> = Result<T, Mismatch>;

/// Why a case failed. Any error becomes one through `?`, its causes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch(pub String);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// Not an `Error` itself: otherwise this conversion would overlap with that of a type to itself.
impl<E: std::error::Error> From<E> for Mismatch {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self(text)
    }
}

/// Checks that two values are equal.
///
/// # Errors
/// A [`Mismatch`] with both.
pub fn equal<T: PartialEq<U> + Debug, U: Debug>(field: &str, got: T, want: U) -> Check {
    if got == want {
        return Ok(());
    }
    Err(Mismatch(format!("{field}: got {}, expected {}", brief(&got), brief(&want))))
}

/// The debug form, without the middle of a long one.
fn brief(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let chars: Vec<char> = text.chars().collect();
    match chars.len() {
        0..=400 => text,
        n => [&chars[..200], &[' ', '.', '.', '.', ' '], &chars[n - 200..]].concat().iter().collect(),
    }
}

/// How far a number may be from the expected one: `|got - want| <= absolute + relative * |want|`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Part that does not depend on the size of the number.
    pub absolute: f64,
    /// Part that grows with it.
    pub relative: f64,
}

impl Tolerance {
    /// No difference at all.
    pub const EXACT: Self = Self { absolute: 0.0, relative: 0.0 };

    /// Reads `"exact"`, `{"relative": r, "absolute": a}` (either may be left out), or a number, which is taken for
    /// both. A `why` beside them is for the reader.
    pub fn parse(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) if text == "exact" => Some(Self::EXACT),
            Value::Number(number) => number.as_f64().map(|both| Self { absolute: both, relative: both }),
            Value::Object(parts) => {
                let known = |key: &String| ["relative", "absolute", "why"].contains(&key.as_str());
                let part = |key| parts.get(key).map_or(Some(0.0), Value::as_f64);
                let (absolute, relative) = (part("absolute")?, part("relative")?);
                ((parts.contains_key("relative") || parts.contains_key("absolute"))
                    && parts.keys().all(known))
                .then_some(Self { absolute, relative })
            }
            _ => None,
        }
    }

    /// Is `got` near enough to `want`? Infinities are near themselves only, and so is NaN.
    pub fn allows(&self, got: f64, want: f64) -> bool {
        got == want
            || (got.is_nan() && want.is_nan())
            || (got - want).abs() <= self.absolute + self.relative * want.abs()
    }

    /// Checks numbers one by one.
    ///
    /// # Errors
    /// A [`Mismatch`] with the first number that is too far off and the largest difference of all.
    pub fn close(&self, field: &str, got: &[f64], want: &[f64]) -> Check {
        if got.len() != want.len() {
            return Err(Mismatch(format!("{field}: got {} values, expected {}", got.len(), want.len())));
        }
        let Some(ix) = (0..got.len()).find(|&ix| !self.allows(got[ix], want[ix])) else { return Ok(()) };
        let largest = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
        Err(Mismatch(format!(
            "{field}[{ix}]: got {}, expected {} (largest difference of {} values {largest:.3e}, allowed {:e} + {:e} \
             relative)",
            got[ix],
            want[ix],
            got.len(),
            self.absolute,
            self.relative
        )))
    }

    /// Checks rows of numbers.
    ///
    /// # Errors
    /// A [`Mismatch`] for the first row that differs.
    pub fn close_rows(&self, field: &str, got: &[Vec<f64>], want: &[Vec<f64>]) -> Check {
        equal(&format!("number of rows of {field}"), got.len(), want.len())?;
        got.iter()
            .zip(want)
            .enumerate()
            .try_for_each(|(row, (got, want))| self.close(&format!("{field}[{row}]"), got, want))
    }

    /// Checks JSON: all that is expected must be there; objects may hold more. Numbers that are not both integers
    /// are compared within the tolerance.
    ///
    /// # Errors
    /// A [`Mismatch`] for the first place that differs.
    pub fn json(&self, field: &str, got: &Value, want: &Value) -> Check {
        match (got, want) {
            (Value::Object(got), Value::Object(want)) => want.iter().try_for_each(|(key, want)| {
                let field = format!("{field}.{key}");
                let got = got.get(key).ok_or_else(|| Mismatch(format!("{field}: missing")))?;
                self.json(&field, got, want)
            }),
            (Value::Array(got), Value::Array(want)) => {
                equal(&format!("length of {field}"), got.len(), want.len())?;
                got.iter()
                    .zip(want)
                    .enumerate()
                    .try_for_each(|(ix, (got, want))| self.json(&format!("{field}[{ix}]"), got, want))
            }
            (Value::Number(g), Value::Number(w)) if g.is_f64() || w.is_f64() => {
                let number = |n: &serde_json::Number| n.as_f64().unwrap_or(f64::NAN);
                self.close(field, &[number(g)], &[number(w)])
            }
            (got, want) if got == want => Ok(()),
            (got, want) => {
                let (got, want) = (brief(&format_args!("{got}")), brief(&format_args!("{want}")));
                Err(Mismatch(format!("{field}: got {got}, expected {want}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tolerances_are_read() {
        assert_eq!(Tolerance::parse(&json!("exact")), Some(Tolerance::EXACT));
        assert_eq!(Tolerance::parse(&json!(0.5)), Some(Tolerance { absolute: 0.5, relative: 0.5 }));
        let relative = Tolerance { absolute: 0.0, relative: 1e-5 };
        assert_eq!(Tolerance::parse(&json!({"relative": 1e-5})), Some(relative));
        assert_eq!(Tolerance::parse(&json!({"relative": 1e-5, "why": "float32"})), Some(relative));
        for bad in [
            json!("about"),
            json!({}),
            json!({"why": "so"}),
            json!({"values": 1.0}),
            json!({"relative": "x"}),
            json!(null),
        ] {
            assert_eq!(Tolerance::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn numbers_are_compared() {
        let tolerance = Tolerance { absolute: 0.1, relative: 0.0 };
        assert!(tolerance.close("x", &[1.0, f64::INFINITY], &[1.05, f64::INFINITY]).is_ok());
        let error = tolerance.close("x", &[1.0, 2.0, 9.0], &[1.0, 3.0, 4.0]).unwrap_err().to_string();
        assert!(
            error.starts_with("x[1]: got 2, expected 3 (largest difference of 3 values 5.000e0"),
            "{error}"
        );
        assert!(tolerance.close("x", &[f64::NAN], &[1.0]).is_err());
        assert!(tolerance.close("x", &[1.0], &[]).is_err());
        assert!(tolerance.close_rows("x", &[vec![1.0]], &[vec![1.0], vec![]]).is_err());
    }

    #[test]
    fn json_is_compared() {
        let tolerance = Tolerance { absolute: 0.1, relative: 0.0 };
        let got = json!({"a": [1, 0.5, "x"], "b": null, "extra": 1});
        assert!(tolerance.json("", &got, &json!({"a": [1, 0.55, "x"], "b": null})).is_ok());
        let message = |want| tolerance.json("top", &got, &want).unwrap_err().to_string();
        assert_eq!(message(json!({"c": 1})), "top.c: missing");
        assert!(message(json!({"a": [1, 0.7, "x"]})).starts_with("top.a[1][0]: got 0.5"));
        // Integers are exact.
        assert_eq!(tolerance.json("n", &json!(1), &json!(2)).unwrap_err().0, "n: got 1, expected 2");
    }

    #[test]
    fn long_values_are_cut() {
        let error = equal("x", "é".repeat(1000), "").unwrap_err().to_string();
        assert!(error.chars().count() < 500 && error.contains(" ... "), "{error}");
    }
}
