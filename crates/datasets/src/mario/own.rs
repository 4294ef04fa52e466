//! Data sets beside the five.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::MarioDataset;

/// A data set of one's own, as a configuration describes it.
///
/// # Example
/// ```
/// use ruminate_datasets::mario::MarioDataset;
///
/// let dataset: MarioDataset = serde_json::from_str(r#"{"name": "weather", "labels": ["(A)", "(B)"]}"#)?;
/// assert_eq!(dataset.name(), "weather");
/// assert_eq!(dataset.label_index("(b)"), Some(1));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnDataset {
    /// Its name in files and in names of rewards: letters, digits, `_` and `-`.
    pub name: String,
    /// The labels; their order is that of option indices.
    pub labels: Vec<String>,
    /// True where questions list their options behind the labels, such as `(A) sunny (B) rainy`. Otherwise the models behind consistency read
    /// the labels behind the question.
    #[serde(default = "yes")]
    pub options_in_question: bool,
    /// True where the development questions were taken out of the training questions, so that silver rows about them are kept out of training.
    #[serde(default)]
    pub dev_is_cut_from_train: bool,
}

fn yes() -> bool {
    true
}

/// Descriptions that this process has read. A data set is named everywhere and must be cheap to copy, so its description stays.
static KNOWN: Mutex<Vec<&'static OwnDataset>> = Mutex::new(vec![]);

impl OwnDataset {
    /// Checks the description.
    fn check(&self) -> Result<(), String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        if self.name.is_empty() || !self.name.chars().all(is_plain) {
            return Err(format!("the name {:?} must be of letters, digits, _ and -", self.name));
        }
        if MarioDataset::ALL.iter().any(|known| known.name() == self.name) {
            return Err(format!("{} is one of the five data sets; describe another one", self.name));
        }
        if self.labels.len() < 2 {
            return Err("give two labels or more".into());
        }
        for (i, label) in self.labels.iter().enumerate() {
            // Labels are found between a marker and a period.
            if label.trim().trim_matches('.').is_empty() || label.trim().trim_matches('.') != label {
                return Err(format!(
                    "the label {label:?} must not be empty, nor begin or end in blanks or periods"
                ));
            }
            if self.labels[..i].iter().any(|other| other.eq_ignore_ascii_case(label)) {
                return Err(format!("the label {label:?} is there twice; case does not tell labels apart"));
            }
        }
        Ok(())
    }

    fn interned(self) -> &'static Self {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.iter().find(|same| ***same == self) {
            return same;
        }
        let description: &'static Self = Box::leak(Box::new(self));
        known.push(description);
        description
    }
}

impl TryFrom<OwnDataset> for MarioDataset {
    type Error = String;

    /// Checks a description and keeps it.
    fn try_from(description: OwnDataset) -> Result<Self, String> {
        description.check()?;
        Ok(Self::Own(description.interned()))
    }
}

/// The name of one of the five, or the description of another.
impl Serialize for MarioDataset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Own(description) => description.serialize(serializer),
            published => serializer.serialize_str(published.name()),
        }
    }
}

impl<'de> Deserialize<'de> for MarioDataset {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = MarioDataset;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("strategyqa, quarel, obqa, numersense or qasc, or a table with name and labels")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<MarioDataset, E> {
                name.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MarioDataset, A::Error> {
                let description = OwnDataset::deserialize(MapAccessDeserializer::new(map))?;
                MarioDataset::try_from(description).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mario::{LeadingAnswer, i2o_input, parse_completion};

    fn read(description: serde_json::Value) -> Result<MarioDataset, String> {
        serde_json::from_value(description).map_err(|error| error.to_string())
    }

    #[test]
    fn a_description_is_read_once_and_written_as_it_was() {
        let description = json!({
            "name": "moods", "labels": ["Glad", "Sad"], "options_in_question": false, "dev_is_cut_from_train": false,
        });
        let dataset = read(description.clone()).unwrap();
        assert_eq!(dataset, read(description.clone()).unwrap());
        assert_eq!(serde_json::to_value(dataset).unwrap(), description);
        assert_eq!((dataset.name(), dataset.to_string()), ("moods", "moods".to_owned()));
        assert_eq!((dataset.label_index("sad"), dataset.label_index("mad")), (Some(1), None));
        assert_eq!(dataset.normalise_label("glad"), "Glad");
        assert_eq!(i2o_input(dataset, "How is Ada?"), "explain How is Ada?: choice: Glad choice: Sad");
        let parsed = parse_completion(dataset, "She smiles. So the answer is: glad.", LeadingAnswer::Keep);
        assert_eq!((parsed.rationale.as_str(), parsed.label.as_str()), ("She smiles.", "glad"));
        for published in MarioDataset::ALL {
            assert_eq!(read(json!(published.name())), Ok(published));
            assert_eq!(serde_json::to_value(published).unwrap(), published.name());
        }
    }

    #[test]
    fn letters_may_have_more_than_one_sign() {
        let labels: Vec<String> = (1..=12).map(|i| format!("({i})")).collect();
        let dataset = read(json!({ "name": "months", "labels": labels })).unwrap();
        assert_eq!(i2o_input(dataset, "When? (1) x (12) y"), "explain When? choice: (1) x choice: (12) y");
        let parsed = parse_completion(dataset, "It snows. The answer is (12).", LeadingAnswer::Keep);
        assert_eq!(parsed.label, "(12)");
    }

    #[test]
    fn descriptions_that_cannot_work_are_refused() {
        for (description, reason) in [
            (json!({ "name": "quarel", "labels": ["a", "b"] }), "one of the five"),
            (json!({ "name": "a/b", "labels": ["a", "b"] }), "letters, digits"),
            (json!({ "name": "", "labels": ["a", "b"] }), "letters, digits"),
            (json!({ "name": "x", "labels": ["a"] }), "two labels"),
            (json!({ "name": "x", "labels": ["a", "A"] }), "twice"),
            (json!({ "name": "x", "labels": ["a", "b."] }), "periods"),
            (json!({ "name": "x", "labels": ["a", " "] }), "empty"),
            (json!({ "name": "x" }), "labels"),
            (json!({ "name": "x", "labels": ["a", "b"], "letters": 2 }), "letters"),
            (json!("csqa"), "unknown data set `csqa`"),
            (json!(3), "a table with name and labels"),
        ] {
            let error = read(description.clone()).unwrap_err();
            assert!(error.contains(reason), "{description}: {error}");
        }
    }
}
