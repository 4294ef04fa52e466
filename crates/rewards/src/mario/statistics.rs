//! From scores of responses to the numbers of a table.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// A response with its scores.
#[derive(Debug, Clone, PartialEq)]
pub struct JudgedResponse<'a> {
    /// The question.
    pub question: &'a str,
    /// The label of the response.
    pub label: &'a str,
    /// Whether it is the gold one.
    pub correct: bool,
    /// One score for each column; none where it is missing.
    pub scores: Vec<Option<f64>>,
}

/// The answer to one question that most of its responses give.
#[derive(Debug, Clone, PartialEq)]
pub struct QuestionSummary {
    /// The question.
    pub question: String,
    /// Whether the majority's label is right.
    pub correct: bool,
    /// The mean of each column over the responses with the majority's label; none where all are missing.
    pub scores: Vec<Option<f64>>,
}

/// Lets the responses to each question vote, in the order in which questions appear. With as many votes, the label that
/// came first wins.
#[must_use]
pub fn by_question(responses: &[JudgedResponse<'_>]) -> Vec<QuestionSummary> {
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut groups: Vec<Vec<&JudgedResponse<'_>>> = vec![];
    for response in responses {
        let number = *numbers.entry(response.question).or_insert(groups.len());
        if number == groups.len() {
            groups.push(vec![]);
        }
        groups[number].push(response);
    }
    let summary = |group: &Vec<&JudgedResponse<'_>>| {
        let votes = |label: &str| group.iter().filter(|r| r.label == label).count();
        // `max_by_key` takes the last of equals.
        let winner = group.iter().rev().max_by_key(|r| votes(r.label))?;
        let agreeing: Vec<_> = group.iter().filter(|r| r.label == winner.label).collect();
        let column = |ix: usize| mean(agreeing.iter().map(|r| r.scores.get(ix).copied().flatten()));
        Some(QuestionSummary {
            question: winner.question.to_string(),
            correct: winner.correct,
            scores: (0..winner.scores.len()).map(column).collect(),
        })
    };
    groups.iter().filter_map(summary).collect()
}

/// The mean of the scores that are there and are numbers; none without any.
pub fn mean(scores: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let (count, sum) =
        scores.flatten().filter(|s| !s.is_nan()).fold((0usize, 0.0), |(n, sum), s| (n + 1, sum + s));
    (count > 0).then(|| sum / count as f64)
}

/// Accuracy and mean scores.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Percent.
    pub accuracy: f64,
    /// Columns in order; none where all scores of a column are missing.
    pub scores: Vec<(String, Option<f64>)>,
}

impl Summary {
    /// Of rows of `(correct, scores)`; `names` are those of the columns.
    #[must_use]
    pub fn of<'a>(names: &[String], rows: impl Iterator<Item = (bool, &'a [Option<f64>])> + Clone) -> Self {
        let accuracy = mean(rows.clone().map(|(correct, _)| Some(f64::from(u8::from(correct)))));
        let column = |ix: usize| mean(rows.clone().map(|(_, scores)| scores.get(ix).copied().flatten()));
        let scores = names.iter().enumerate().map(|(ix, name)| (name.clone(), column(ix))).collect();
        Self { accuracy: 100.0 * accuracy.unwrap_or(0.0), scores }
    }

    /// The line of the published code's result files, e.g. `Step 1000 - diversity: 0.95  Accuracy: 77.0` and a line feed.
    /// `digits` are the decimals of the rewards; accuracy, `num_sents` and `num_words` have two at most. Without `digits`, numbers
    /// are not rounded.
    #[must_use]
    pub fn line(&self, what: &str, digits: Option<usize>) -> String {
        let number = |x: f64, digits: Option<usize>| match digits {
            Some(digits) => rounded(x, digits),
            None => format!("{x:?}"),
        };
        let coarse = digits.map(|digits| digits.min(2));
        let columns = self.scores.iter().map(|(name, score)| {
            let digits = if ["num_sents", "num_words"].contains(&name.as_str()) { coarse } else { digits };
            format!("{name}: {} ", score.map_or("nan".to_string(), |score| number(score, digits)))
        });
        format!("{what} - {} Accuracy: {}\n", columns.collect::<String>(), number(self.accuracy, coarse))
    }
}

/// A number as Python prints `round(x, digits)`: without zeros at the end, but with one decimal at least.
#[must_use]
pub fn rounded(x: f64, digits: usize) -> String {
    if x.is_nan() {
        return "nan".to_string();
    }
    format!("{:?}", format!("{x:.digits$}").parse::<f64>().unwrap_or(x))
}

/// The correlation ratio of being correct and a score, in `[0, 1]`: how much of the score's spread lies between right and
/// wrong responses. Missing scores are left out; 0 without any spread, NaN without any score.
#[must_use]
pub fn correlation_ratio(correct: &[bool], scores: &[Option<f64>]) -> f64 {
    let pairs: Vec<(bool, f64)> = correct.iter().zip(scores).filter_map(|(&c, s)| Some((c, (*s)?))).collect();
    // Of nothing there is no ratio, in the published code, either.
    let Some(all) = mean(pairs.iter().map(|&(_, s)| Some(s))) else { return f64::NAN };
    let between: f64 = [true, false]
        .into_iter()
        .map(|class| {
            let of_class = || pairs.iter().filter(move |(c, _)| *c == class);
            let mean = mean(of_class().map(|&(_, s)| Some(s))).unwrap_or(all);
            of_class().count() as f64 * (mean - all).powi(2)
        })
        .sum();
    let total: f64 = pairs.iter().map(|(_, s)| (s - all).powi(2)).sum();
    if total == 0.0 || between == 0.0 { 0.0 } else { (between / total).sqrt() }
}

/// MaRio's "NRG": each metric mapped to 0..100 by its bounds, and the mean of them. None without metrics. The published
/// code has no aggregate, so this is our definition of the paper's number.
///
/// # Example
/// ```
/// use ruminate_rewards::mario::normalised_average;
///
/// // Accuracy, plausibility, diversity, consistency.
/// let metrics = [(60.0, (0.0, 100.0)), (0.5, (0.0, 1.0)), (0.9, (0.0, 1.0)), (0.0, (-1.0, 1.0))];
/// assert_eq!(normalised_average(&metrics), Some(62.5));
/// ```
#[must_use]
pub fn normalised_average(metrics: &[(f64, (f64, f64))]) -> Option<f64> {
    mean(metrics.iter().map(|&(x, (min, max))| Some(100.0 * (x - min) / (max - min))))
}

/// A 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// The 95 % bootstrap interval (percentiles) of a statistic: `statistic` is given the indices of `resamples` resamples, each
/// `rows` long and drawn with replacement. None without rows, or when no resample has the statistic.
pub fn bootstrap(
    rows: usize,
    resamples: usize,
    seed: u64,
    mut statistic: impl FnMut(&[usize]) -> Option<f64>,
) -> Option<Interval> {
    if rows == 0 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || (0..rows).map(|_| rng.random_range(0..rows)).collect::<Vec<usize>>();
    let mut values: Vec<f64> = (0..resamples).filter_map(|_| statistic(&draw())).collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| values[(share * last as f64).round() as usize];
    Some(Interval { low: at(0.025), high: at(0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged<'a>(question: &'a str, label: &'a str, score: f64) -> JudgedResponse<'a> {
        JudgedResponse { question, label, correct: label == "yes", scores: vec![Some(score)] }
    }

    #[test]
    fn the_majority_answers_and_the_first_label_wins_a_tie() {
        let responses = [judged("a", "no", 1.0), judged("b", "no", 5.0), judged("a", "yes", 2.0)];
        let tied = by_question(&responses);
        assert_eq!((tied[0].correct, tied[0].scores[0]), (false, Some(1.0)));
        assert_eq!(tied[1].scores[0], Some(5.0));
        let voted = by_question(&[&responses[..], &[judged("a", "yes", 3.0)]].concat());
        assert_eq!((voted[0].correct, voted[0].scores[0]), (true, Some(2.5)));
    }

    #[test]
    fn numbers_look_as_python_prints_them() {
        let cases = [(75.0, "75.0"), (0.6, "0.6"), (-0.311, "-0.31"), (2.675, "2.67"), (-0.001, "-0.0")];
        for (number, text) in cases {
            assert_eq!(rounded(number, 2), text);
        }
        assert_eq!(rounded(f64::NAN, 2), "nan");
    }

    #[test]
    fn intervals_hold_the_mean_and_depend_on_the_seed_only() {
        let values: Vec<f64> = (0..200).map(|i| f64::from(i % 7)).collect();
        let average = |of: &[usize]| mean(of.iter().map(|&i| Some(values[i])));
        let interval = |seed| bootstrap(values.len(), 500, seed, average).unwrap();
        let Interval { low, high } = interval(1);
        let exact = mean(values.iter().map(|&v| Some(v))).unwrap();
        // About two standard errors of the mean on both sides.
        assert!(low < exact && exact < high && (0.4..0.7).contains(&(high - low)), "{low} {high}");
        assert_eq!(interval(1), interval(1));
        assert_ne!(interval(1), interval(2));
        assert_eq!(bootstrap(0, 10, 1, |_| Some(1.0)), None);
        assert_eq!(bootstrap(3, 10, 1, |_| Some(1.0)), Some(Interval { low: 1.0, high: 1.0 }));
    }
}
