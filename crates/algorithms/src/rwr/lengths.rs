//! How long examples are in tokens.

use ruminate_datasets::chat::trained_tokens;
use ruminate_datasets::rise::TrainingText;
use ruminate_models::Tokenizer;
use serde::Serialize;

use crate::Result;

/// A number of tokens over all examples. Percentiles are lengths of examples (nearest rank).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LengthStatistics {
    /// Mean.
    pub mean: f64,
    /// Variance over all examples.
    pub variance: f64,
    /// Half of the examples have no more.
    pub p50: usize,
    /// 90 % of the examples have no more.
    pub p90: usize,
    /// 99 % of the examples have no more.
    pub p99: usize,
    /// The largest.
    pub max: usize,
}

impl LengthStatistics {
    /// The statistics of some lengths; none of none.
    #[must_use]
    pub fn of(mut lengths: Vec<usize>) -> Option<Self> {
        lengths.sort_unstable();
        let count = lengths.len() as f64;
        let max = *lengths.last()?;
        let mean = lengths.iter().sum::<usize>() as f64 / count;
        let variance = lengths.iter().map(|&length| (length as f64 - mean).powi(2)).sum::<f64>() / count;
        let at = |percent: usize| lengths[(lengths.len() * percent).div_ceil(100).max(1) - 1];
        Some(Self { mean, variance, p50: at(50), p90: at(90), p99: at(99), max })
    }
}

/// How long the texts of training examples are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenLengths {
    /// Examples.
    pub examples: usize,
    /// Whole texts, with all markers of the template.
    pub total: LengthStatistics,
    /// The prompt: everything before the first token that is trained.
    pub prompt: LengthStatistics,
    /// Tokens that are trained.
    pub response: LengthStatistics,
    /// The limit of training.
    pub max_length: usize,
    /// Texts that are longer than it.
    pub over_max_length: usize,
}

impl TokenLengths {
    /// The lengths of texts for a training that takes at most `max_length` tokens of each; none without texts.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn of(tokenizer: &Tokenizer, texts: &[TrainingText], max_length: usize) -> Result<Option<Self>> {
        let (mut total, mut prompt, mut response) = (vec![], vec![], vec![]);
        for text in texts {
            let offsets = tokenizer.encode_with_offsets(&text.text)?.offsets;
            let trained = trained_tokens(&offsets, &text.spans);
            total.push(trained.len());
            prompt.push(trained.iter().position(|&trained| trained).unwrap_or(trained.len()));
            response.push(trained.iter().filter(|&&trained| trained).count());
        }
        let (examples, over_max_length) =
            (total.len(), total.iter().filter(|&&tokens| tokens > max_length).count());
        let parts =
            (LengthStatistics::of(total), LengthStatistics::of(prompt), LengthStatistics::of(response));
        let (Some(total), Some(prompt), Some(response)) = parts else { return Ok(None) };
        Ok(Some(Self { examples, total, prompt, response, max_length, over_max_length }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_lengths_that_are_there() {
        assert_eq!(LengthStatistics::of(vec![]), None);
        let one = LengthStatistics::of(vec![7]).unwrap();
        assert_eq!(one, LengthStatistics { mean: 7.0, variance: 0.0, p50: 7, p90: 7, p99: 7, max: 7 });
        let many = LengthStatistics::of((1..=200).rev().collect()).unwrap();
        assert_eq!((many.mean, many.p50, many.p90, many.p99, many.max), (100.5, 100, 180, 198, 200));
        assert!((many.variance - 3333.25).abs() < 1e-9);
    }

    #[test]
    fn prompts_and_responses_are_told_apart() {
        let world = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/world/rise/llama");
        let tokenizer = Tokenizer::open(std::path::Path::new(world)).unwrap();
        let whole = "two plus three";
        let text = |from: usize| TrainingText {
            text: whole.into(),
            spans: std::iter::once(from..whole.len()).collect(),
            weight: 1.0,
        };
        let tokens = tokenizer.encode_with_offsets(whole).unwrap().ids.len();
        let none = TrainingText { text: whole.into(), spans: vec![], weight: 1.0 };
        let lengths = TokenLengths::of(&tokenizer, &[text(9), text(0), none], tokens - 1).unwrap().unwrap();
        assert_eq!((lengths.examples, lengths.over_max_length), (3, 3));
        assert_eq!((lengths.total.p50, lengths.total.max), (tokens, tokens));
        // What has no trained token is all prompt.
        assert_eq!((lengths.prompt.max, lengths.response.p50), (tokens, 1));
        assert!(lengths.response.max < tokens && lengths.response.max > 1);
        assert_eq!(TokenLengths::of(&tokenizer, &[], 5).unwrap(), None);
    }
}
