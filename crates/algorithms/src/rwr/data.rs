//! Weighted examples in token ids.

use std::collections::BTreeMap;

use ruminate_datasets::chat::trained_tokens;
use ruminate_datasets::rise::TrainingText;
use ruminate_models::{EncodedText, Example, Tokenizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// An example, and the weight of its loss.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedExample {
    /// Tokens before the first trained one, and those from there to the last one.
    pub example: Example,
    /// Which tokens of the target are trained. The model reads the others, but there is no loss on them.
    pub trained: Vec<bool>,
    /// The weight.
    pub weight: f32,
}

impl WeightedExample {
    /// An example whose whole target is trained.
    #[must_use]
    pub fn new(example: Example, weight: f32) -> Self {
        Self { trained: vec![true; example.target.len()], example, weight }
    }
}

/// What the weights exp(r / tau) of a data set become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// They stay, as in the published code.
    #[default]
    Exp,
    /// exp((r - m) / tau), with the mean m of the rewards of all examples of the same problem.
    ExpMinusPromptMean,
    /// They are divided by their mean over the data set, so that losses have the size of an unweighted one.
    Normalized,
    /// They are all 1: plain fine-tuning on the same examples.
    None,
}

impl Weighting {
    /// The weights to train with. `problems` tells which examples belong together.
    ///
    /// # Errors
    /// When there are not as many problems as weights, or a weight is not above 0.
    ///
    /// # Example
    /// ```
    /// use ruminate_algorithms::rwr::Weighting;
    /// let weights = [1f64.exp(), 3f64.exp(), 5f64.exp()];
    /// let centred = Weighting::ExpMinusPromptMean.apply(&weights, &["a", "a", "b"])?;
    /// for (got, want) in centred.iter().zip([(-1f64).exp(), 1f64.exp(), 1.0]) {
    ///     assert!((got - want).abs() < 1e-12);
    /// }
    /// # Ok::<(), ruminate_algorithms::Error>(())
    /// ```
    pub fn apply<K: Ord>(self, weights: &[f64], problems: &[K]) -> Result<Vec<f64>> {
        if weights.len() != problems.len() {
            let reason = format!("{} weights belong to {} problems", weights.len(), problems.len());
            return Err(Error::config("weighting", reason));
        }
        if let Some(i) = weights.iter().position(|&w| !(w > 0.0 && w.is_finite())) {
            let reason = format!("example {i} has the weight {}, but exp(r / tau) is above 0", weights[i]);
            return Err(Error::config("weighting", reason));
        }
        Ok(match self {
            Self::Exp => weights.to_vec(),
            Self::None => vec![1.0; weights.len()],
            Self::Normalized => {
                let mean = weights.iter().sum::<f64>() / weights.len().max(1) as f64;
                weights.iter().map(|weight| weight / mean).collect()
            }
            Self::ExpMinusPromptMean => {
                let mut sums: BTreeMap<&K, (f64, f64)> = BTreeMap::new();
                for (weight, problem) in weights.iter().zip(problems) {
                    let (sum, count) = sums.entry(problem).or_default();
                    *sum += weight.ln();
                    *count += 1.0;
                }
                let centred = |(weight, problem): (&f64, &K)| {
                    let (sum, count) = sums[problem];
                    (weight.ln() - sum / count).exp()
                };
                weights.iter().zip(problems).map(centred).collect()
            }
        })
    }
}

/// What becomes of a text with too many tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// Its end is cut off, as in the published code.
    #[default]
    Cut,
    /// It is left out.
    Drop,
}

/// Examples of texts, and what became of the others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EncodedExamples {
    /// The examples, with the weights of their texts.
    pub examples: Vec<WeightedExample>,
    /// For each example the number of its text.
    pub texts: Vec<usize>,
    /// Texts whose end was cut off.
    pub cut: usize,
    /// Texts left out because they have too many tokens.
    pub too_long: usize,
    /// Texts left out because no token of them is trained.
    pub untrained: usize,
}

/// Token ids of texts, the begin token never doubled. An example's prompt ends before the first trained token; what stands behind
/// the last one is left out, because nothing depends on it. What stands between two spans belongs to the target without being trained, so
/// that the later span sees it.
///
/// # Errors
/// When `max_length` is below 2, or the tokenizer fails.
pub fn encode_texts(
    tokenizer: &Tokenizer,
    texts: &[TrainingText],
    max_length: usize,
    too_long: TooLong,
) -> Result<EncodedExamples> {
    if max_length < 2 {
        return Err(Error::config("max_length", format!("is {max_length}, but must be at least 2")));
    }
    let mut result = EncodedExamples::default();
    for (i, text) in texts.iter().enumerate() {
        let EncodedText { mut ids, mut offsets } = tokenizer.encode_with_offsets(&text.text)?;
        if ids.len() > max_length {
            match too_long {
                TooLong::Drop => {
                    result.too_long += 1;
                    continue;
                }
                TooLong::Cut => result.cut += 1,
            }
            ids.truncate(max_length);
            offsets.truncate(max_length);
        }
        let mut trained = trained_tokens(&offsets, &text.spans);
        // The first token of a text is predicted from nothing.
        if let Some(first) = trained.first_mut() {
            *first = false;
        }
        let (first, last) = (trained.iter().position(|&t| t), trained.iter().rposition(|&t| t));
        let (Some(first), Some(last)) = (first, last) else {
            result.untrained += 1;
            continue;
        };
        let example = Example { prompt: ids[..first].to_vec(), target: ids[first..=last].to_vec() };
        let trained = trained[first..=last].to_vec();
        result.examples.push(WeightedExample { example, trained, weight: text.weight as f32 });
        result.texts.push(i);
    }
    Ok(result)
}
