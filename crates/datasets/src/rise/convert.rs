//! From episodes to training examples.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Episode, Log};
use crate::environments::{Environment, Problem, is_success};
use crate::python;

/// Which attempts become examples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Criterion {
    /// Every one.
    #[default]
    All,
    /// The first, and those that are worth more than the one before.
    Better,
    /// The first, and those than which none before is worth more: the best so far, not the best of all.
    Best,
    /// Those that are right.
    Success,
}

/// How episodes are converted. The defaults are those of the README's command; the script itself neither removes duplicates nor
/// shuffles unless told to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConvertConfig {
    /// Which attempts become examples. Default: all.
    pub criterion: Criterion,
    /// Leave out episodes without a right attempt. Default: no.
    pub only_success: bool,
    /// Trim attempts, and leave out those that are empty or said before in their episode. Default: yes.
    pub remove_duplicates: bool,
    /// Shuffle the examples. Default: yes.
    pub shuffle: bool,
    /// Seed of the shuffle.
    pub seed: u64,
    /// An attempt of reward r has the weight exp(r / tau). Default: 0.4.
    pub tau: f64,
}

impl Default for ConvertConfig {
    fn default() -> Self {
        let (criterion, only_success, remove_duplicates, shuffle) = (Criterion::All, false, true, true);
        Self { criterion, only_success, remove_duplicates, shuffle, seed: 0, tau: 0.4 }
    }
}

impl ConvertConfig {
    /// The weight of an attempt.
    #[must_use]
    pub fn weight(&self, reward: f64) -> f64 {
        (reward / self.tau).exp()
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The first setting that is wrong, and what would be right.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if self.tau > 0.0 && self.weight(1.0).is_finite() {
            return Ok(());
        }
        Err(("tau", format!("is {}, but must be above 0, and exp(1 / tau) finite", self.tau)))
    }
}

/// Which logs become examples, and how.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConversionConfig {
    /// Logs, of this or the published program.
    pub logs: Vec<PathBuf>,
    /// How their episodes are converted.
    pub settings: ConvertConfig,
}

impl ConversionConfig {
    /// Reads the episodes of all logs, one behind the other.
    ///
    /// # Errors
    /// Those of [`Log::read`].
    pub fn read(&self) -> crate::Result<Log> {
        let mut log = Log::default();
        for path in &self.logs {
            log.episodes.extend(Log::read(path)?.episodes);
        }
        Ok(log)
    }
}

/// A message of a training example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object with from, value and loss")]
pub struct Utterance {
    /// `human` or `gpt`.
    pub from: String,
    /// The text.
    pub value: String,
    /// 0 for what is not trained; the weight of the example for the attempt that is.
    pub loss: f64,
}

impl Utterance {
    fn human(value: impl Into<String>) -> Self {
        Self { from: "human".into(), value: value.into(), loss: 0.0 }
    }

    fn model(value: impl Into<String>, loss: f64) -> Self {
        Self { from: "gpt".into(), value: value.into(), loss }
    }

    /// Is it the model's?
    #[must_use]
    pub fn is_models(&self) -> bool {
        self.from == "gpt"
    }
}

/// A dialogue that ends with the attempt to be trained, as the published code writes it. [`json::read`](crate::json::read) and
/// [`json::write`](crate::json::write) read and write files of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object with id and conversations")]
pub struct TrainingExample {
    /// `identity_` and its number in the file; not used, so files of others may have any form of it.
    #[serde(default, deserialize_with = "any_id")]
    pub id: String,
    /// The messages.
    pub conversations: Vec<Utterance>,
}

fn any_id<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(id) => id,
        other => other.to_string(),
    })
}

impl TrainingExample {
    /// The weight of its loss: that of the model's last message.
    #[must_use]
    pub fn weight(&self) -> f64 {
        self.conversations.iter().rev().find(|said| said.is_models()).map_or(0.0, |said| said.loss)
    }
}

impl TrainingExample {
    /// What tells its problem from others: the first message after the environment's demonstration.
    #[must_use]
    pub fn opening(&self, environment: &dyn Environment) -> &str {
        let shown = environment.demonstration().is_some_and(|[question, _]| {
            self.conversations.first().is_some_and(|first| first.value == question)
        });
        self.conversations.get(if shown { 2 } else { 0 }).map_or("", |said| &said.value)
    }
}

/// Examples of the problems' own solutions, all of weight 1: what a weak model is trained on before its first episodes.
#[must_use]
pub fn solutions(problems: &[Problem], environment: &dyn Environment) -> Vec<TrainingExample> {
    let example = |(i, problem): (usize, &Problem)| {
        let mut conversations = beginning(environment, problem);
        conversations.push(Utterance::model(environment.worked_solution(problem), 1.0));
        TrainingExample { id: format!("identity_{i}"), conversations }
    };
    problems.iter().enumerate().map(example).collect()
}

/// What stands before the first attempt.
fn beginning(environment: &dyn Environment, problem: &Problem) -> Vec<Utterance> {
    let shown = environment.demonstration();
    let mut conversation: Vec<Utterance> = shown
        .into_iter()
        .flat_map(|[question, answer]| [Utterance::human(question), Utterance::model(answer, 0.0)])
        .collect();
    conversation.push(Utterance::human(environment.opening(problem)));
    conversation
}

/// Examples, and what became of everything else.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Conversion {
    /// The examples.
    #[serde(skip)]
    pub examples: Vec<TrainingExample>,
    /// The reward of each example's attempt.
    #[serde(skip)]
    pub rewards: Vec<f64>,
    /// Episodes in the log.
    pub episodes: usize,
    /// Episodes without a right attempt that were left out.
    pub unsuccessful: usize,
    /// Attempts that were empty or said before.
    pub duplicates: usize,
    /// Attempts that the criterion refused.
    pub refused: usize,
    /// For each reward how many examples there are, and their weight.
    pub weights: Vec<WeightCount>,
    /// Mean weight.
    pub mean_weight: f64,
    /// Examples of equal weight that would give as exact a mean: (sum of weights)² / sum of their squares.
    pub effective_examples: f64,
}

/// Examples of one reward.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WeightCount {
    /// The reward.
    pub reward: f64,
    /// Its weight.
    pub weight: f64,
    /// How many examples have it.
    pub examples: usize,
}

impl Conversion {
    /// The file of the examples, in the published layout.
    pub const EXAMPLES: &str = "examples.json";
    /// The file that tells what became of the episodes; written last.
    pub const SUMMARY: &str = "conversion.json";

    /// The counts of episodes and attempts, in words.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, usize); 5] {
        [
            ("episodes", self.episodes),
            ("of them without success, left out", self.unsuccessful),
            ("attempts that were empty or said before", self.duplicates),
            ("attempts that the criterion refused", self.refused),
            ("examples", self.examples.len()),
        ]
    }
}

/// Converts the best attempts of each episode. Each attempt ends an example, as far as the criterion takes it, and is part of the
/// context of those that follow; a right attempt is the last one.
///
/// # Example
/// ```
/// use ruminate_datasets::environments::Gsm8k;
/// use ruminate_datasets::rise::{ConvertConfig, Log, convert};
/// let conversion = convert(&Log::default(), &Gsm8k::default(), &ConvertConfig::default());
/// assert!(conversion.examples.is_empty());
/// assert!((ConvertConfig::default().weight(1.0) - 12.182494).abs() < 1e-6);
/// ```
#[must_use]
pub fn convert(log: &Log, environment: &dyn Environment, config: &ConvertConfig) -> Conversion {
    let mut result = Conversion { episodes: log.episodes.len(), ..Conversion::default() };
    let mut found: Vec<(Vec<Utterance>, f64)> = vec![];
    for episode in &log.episodes {
        if config.only_success && !episode.max_reward.is_some_and(is_success) {
            result.unsuccessful += 1;
            continue;
        }
        let attempts = attempts(episode, config.remove_duplicates);
        result.duplicates += episode.turn_history.best_actions.len() - attempts.len();
        let mut conversation = beginning(environment, &episode.problem());
        for (i, &(action, observation, reward)) in attempts.iter().enumerate() {
            let before = &attempts[..i];
            let taken = match config.criterion {
                Criterion::Success => is_success(reward),
                _ if i == 0 => true,
                Criterion::All => true,
                Criterion::Better => before.last().is_none_or(|&(.., last)| reward > last),
                Criterion::Best => before.iter().all(|&(.., earlier)| earlier <= reward),
            };
            if taken {
                let mut example = conversation.clone();
                example.push(Utterance::model(action, config.weight(reward)));
                found.push((example, reward));
            } else {
                result.refused += 1;
            }
            if is_success(reward) {
                break;
            }
            conversation.push(Utterance::model(action, 0.0));
            conversation.push(Utterance::human(observation));
        }
    }
    if config.shuffle {
        found.shuffle(&mut ChaCha8Rng::seed_from_u64(config.seed));
    }
    for (i, (conversations, reward)) in found.into_iter().enumerate() {
        result.examples.push(TrainingExample { id: format!("identity_{i}"), conversations });
        result.rewards.push(reward);
    }
    count_weights(&mut result, config);
    result
}

/// Attempt, what was said to it, and its reward.
fn attempts(episode: &Episode, without_duplicates: bool) -> Vec<(&str, &str, f64)> {
    let history = &episode.turn_history;
    let said = history.best_actions.iter().zip(&history.best_observations).zip(&history.best_rewards);
    let mut attempts: Vec<(&str, &str, f64)> = vec![];
    for ((action, observation), &reward) in said {
        let action = if without_duplicates { python::strip(action) } else { action };
        let known = action.is_empty() || attempts.iter().any(|&(earlier, ..)| earlier == action);
        if !(without_duplicates && known) {
            attempts.push((action, observation, reward));
        }
    }
    attempts
}

fn count_weights(result: &mut Conversion, config: &ConvertConfig) {
    // Ordered by the bits of a key that sorts like the numbers.
    let mut counts: BTreeMap<i64, WeightCount> = BTreeMap::new();
    for &reward in &result.rewards {
        let bits = reward.to_bits() as i64;
        let key = bits ^ (((bits >> 63) as u64) >> 1) as i64;
        let new = WeightCount { reward, weight: config.weight(reward), examples: 0 };
        counts.entry(key).or_insert(new).examples += 1;
    }
    result.weights = counts.into_values().collect();
    let sum =
        |power: i32| -> f64 { result.weights.iter().map(|c| c.examples as f64 * c.weight.powi(power)).sum() };
    if !result.rewards.is_empty() {
        result.mean_weight = sum(1) / result.rewards.len() as f64;
        result.effective_examples = sum(1).powi(2) / sum(2);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::environments::{Gsm8k, QuestionOnly};
    use crate::rise::TurnHistory;

    fn log(rewards: &[Vec<i8>]) -> Log {
        let episode = |(row, rewards): (usize, &Vec<i8>)| {
            let rewards: Vec<f64> = rewards.iter().map(|&reward| f64::from(reward)).collect();
            let history = TurnHistory {
                best_actions: (0..rewards.len()).map(|turn| format!("{row} {}", turn / 2)).collect(),
                best_observations: vec!["no".into(); rewards.len()],
                best_rewards: rewards.clone(),
                ..TurnHistory::default()
            };
            Episode {
                task_id: row,
                query: format!("q{row}"),
                answer: "#### 1".into(),
                max_reward: rewards.iter().copied().max_by(f64::total_cmp),
                turn_history: history,
                dialogue: None,
            }
        };
        Log { episodes: rewards.iter().enumerate().map(episode).collect() }
    }

    #[test]
    fn solutions_are_examples_and_openings_tell_problems_apart() {
        let problem = |row: usize| Problem {
            row,
            question: format!("q{row}"),
            solution: "So #### 1".into(),
            ..Problem::default()
        };
        let problems = [problem(0), problem(1)];
        for (environment, messages) in [
            (Box::new(Gsm8k::default()) as Box<dyn Environment>, 4),
            (Box::new(QuestionOnly(Gsm8k::default())), 2),
        ] {
            let examples = solutions(&problems, &*environment);
            let trained =
                |example: &TrainingExample| example.conversations.last().map(|said| said.value.clone());
            assert_eq!(examples[1].conversations.len(), messages);
            assert_eq!(trained(&examples[1]).as_deref(), Some("So\nAnswer: \\boxed{1}"));
            assert_eq!((examples[1].weight(), &*examples[1].id), (1.0, "identity_1"));
            for (example, problem) in examples.iter().zip(&problems) {
                assert_eq!(example.opening(&*environment), environment.opening(problem));
            }
            // Those of episodes begin in the same way.
            let log = log(&[vec![0, 1]]);
            let converted = convert(&log, &*environment, &ConvertConfig::default()).examples;
            assert!(
                converted
                    .iter()
                    .all(|example| example.opening(&*environment) == environment.opening(&problems[0]))
            );
        }
    }

    #[test]
    fn the_report_counts_everything() {
        let log = log(&[vec![-1, -1, 0, 1, 1], vec![1], vec![]]);
        let config = ConvertConfig { shuffle: false, ..ConvertConfig::default() };
        let conversion = convert(&log, &Gsm8k::default(), &config);
        assert_eq!((conversion.episodes, conversion.duplicates, conversion.examples.len()), (3, 2, 4));
        let counts: Vec<(f64, usize)> = conversion.weights.iter().map(|c| (c.reward, c.examples)).collect();
        assert_eq!(counts, [(-1.0, 1), (0.0, 1), (1.0, 2)]);
        assert!(conversion.effective_examples > 1.9 && conversion.effective_examples < 2.4);
        let only = ConvertConfig { only_success: true, criterion: Criterion::Success, ..config };
        let conversion = convert(&log, &Gsm8k::default(), &only);
        assert_eq!((conversion.unsuccessful, conversion.refused, conversion.examples.len()), (1, 2, 2));
        assert!(ConvertConfig { tau: 0.0, ..ConvertConfig::default() }.validate().is_err());
        assert!(ConvertConfig { tau: 1e-9, ..ConvertConfig::default() }.validate().is_err());
        ConvertConfig::default().validate().unwrap();
    }

    proptest! {
        #[test]
        fn a_shuffle_loses_nothing_and_only_the_last_message_is_trained(
            rewards in prop::collection::vec(prop::collection::vec(-1i8..=1, 0..5), 0..8), seed: u64,
        ) {
            let log = log(&rewards);
            let plain = ConvertConfig { shuffle: false, ..ConvertConfig::default() };
            let shuffled = ConvertConfig { seed, ..ConvertConfig::default() };
            let texts = |conversion: &Conversion| -> BTreeSet<String> {
                conversion.examples.iter().map(|e| format!("{:?}", e.conversations)).collect()
            };
            let (plain, shuffled) =
                (convert(&log, &Gsm8k::default(), &plain), convert(&log, &Gsm8k::default(), &shuffled));
            prop_assert_eq!(texts(&plain), texts(&shuffled));
            for (i, example) in shuffled.examples.iter().enumerate() {
                prop_assert_eq!(&example.id, &format!("identity_{i}"));
                let trained = example.conversations.iter().filter(|said| said.loss != 0.0).count();
                prop_assert_eq!((trained, example.weight() > 0.0), (1, true));
                prop_assert_eq!(example.weight(), ConvertConfig::default().weight(shuffled.rewards[i]));
            }
        }
    }
}
