//! Files of episodes, in the published code's layout.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::chat::Message;
use crate::environments::{Benchmark, Compat, Environment, Problem};
use crate::{Error, Place, Result, json};

/// What was tried on one problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object with task_id, query, answer, max_reward and turn_history")]
pub struct Episode {
    /// The problem's row.
    pub task_id: usize,
    /// The question.
    pub query: String,
    /// The gold solution.
    pub answer: String,
    /// The largest of the best rewards; none where no turn was played.
    #[serde(serialize_with = "number::one")]
    pub max_reward: Option<f64>,
    /// The turns.
    pub turn_history: TurnHistory,
    /// What the last turn was asked; logs of evaluations lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialogue: Option<Vec<Message>>,
}

/// The turns of an episode. Lists of best things have one entry for each turn that was played; a turn whose sampling failed is only
/// in `actions`, as `blocked`, and in `rewards`, as none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(expecting = "an object with actions, observations, rewards and the best of each")]
pub struct TurnHistory {
    /// The attempt of each turn that the dialogue goes on with.
    pub best_actions: Vec<String>,
    /// All attempts of each turn.
    pub actions: BTreeMap<usize, Vec<String>>,
    /// What was said to the best attempts.
    pub best_observations: Vec<String>,
    /// What was, or would have been, said to all attempts.
    pub observations: BTreeMap<usize, Vec<String>>,
    /// What the best attempts are worth.
    #[serde(serialize_with = "number::list")]
    pub best_rewards: Vec<f64>,
    /// What all attempts are worth.
    #[serde(serialize_with = "number::by_turn")]
    pub rewards: BTreeMap<usize, Vec<Option<f64>>>,
}

/// Rewards are integers where they can be, as in the published files.
mod number {
    use std::collections::BTreeMap;

    use serde::{Serialize, Serializer};

    struct Number(f64);

    impl Serialize for Number {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if self.0.fract() == 0.0 && self.0.abs() < 1e15 {
                return serializer.serialize_i64(self.0 as i64);
            }
            serializer.serialize_f64(self.0)
        }
    }

    pub(super) fn one<S: Serializer>(reward: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        reward.map(Number).serialize(serializer)
    }

    pub(super) fn list<S: Serializer>(rewards: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(rewards.iter().map(|&reward| Number(reward)))
    }

    pub(super) fn by_turn<S: Serializer>(
        rewards: &BTreeMap<usize, Vec<Option<f64>>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let numbers = |rewards: &[Option<f64>]| rewards.iter().map(|r| r.map(Number)).collect::<Vec<_>>();
        serializer.collect_map(rewards.iter().map(|(turn, rewards)| (turn, numbers(rewards))))
    }
}

impl Episode {
    /// The problem that it is about.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let (question, solution) = (self.query.clone(), self.answer.clone());
        Problem { row: self.task_id, question, solution, level: None, subject: None }
    }

    /// The field that contradicts the others, and how.
    pub(super) fn flaw(&self) -> Option<(&'static str, String)> {
        let history = &self.turn_history;
        let turns = history.actions.len();
        if history.actions.keys().copied().ne(0..turns) || history.rewards.keys().copied().ne(0..turns) {
            return Some((
                "turn_history",
                "actions and rewards must have the turns 0, 1, … in common".into(),
            ));
        }
        let blocked = turns > 0 && history.rewards[&(turns - 1)].iter().any(Option::is_none);
        let played = turns - usize::from(blocked);
        let best = [history.best_actions.len(), history.best_observations.len(), history.best_rewards.len()];
        if best != [played; 3] || history.observations.keys().copied().ne(0..played) {
            let reason = format!(
                "{played} turns were played, but best_actions, best_observations, best_rewards and observations have \
                 {best:?} and {}",
                history.observations.len()
            );
            return Some(("turn_history", reason));
        }
        for turn in 0..turns {
            let (actions, rewards) = (history.actions[&turn].len(), history.rewards[&turn].len());
            let observations = history.observations.get(&turn).map_or(actions, Vec::len);
            if actions == 0 || [rewards, observations] != [actions; 2] {
                let reason = format!(
                    "turn {turn} has {actions} actions, {observations} observations and {rewards} rewards"
                );
                return Some(("turn_history", reason));
            }
            if turn < played && history.rewards[&turn].iter().any(Option::is_none) {
                return Some((
                    "turn_history",
                    format!("turn {turn} lacks a reward, but is not the last one"),
                ));
            }
        }
        None
    }
}

/// Episodes in the order of their file.
///
/// # Example
/// ```
/// use ruminate_datasets::rise::Log;
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("1_turns.json");
/// std::fs::write(&path, r#"{"3": {"task_id": 3, "query": "1+1?", "answer": "2", "max_reward": 0, "turn_history": {
///     "best_actions": ["3"], "best_observations": ["no"], "best_rewards": [0],
///     "actions": {"0": ["3"]}, "observations": {"0": ["no"]}, "rewards": {"0": [0]}}}}"#)?;
/// let log = Log::read(&path)?;
/// assert_eq!(log.episodes[0].turn_history.best_rewards, [0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Log {
    /// The episodes.
    pub episodes: Vec<Episode>,
}

/// How often rewards and observations were looked up again, and where something else came out than is stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rescored {
    /// Attempts that were judged.
    pub actions: usize,
    /// Places with another reward: `task`, turn, sample, stored, judged.
    pub rewards: Vec<(usize, usize, usize, f64, f64)>,
    /// Places with another observation: task, turn, sample.
    pub observations: Vec<(usize, usize, usize)>,
}

/// Counts of the problems in a turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TurnCount {
    /// Problems that were asked about.
    pub problems: usize,
    /// Those with a right attempt, which ends an episode.
    pub solved: usize,
    /// Those that nobody answered.
    pub blocked: usize,
}

impl Log {
    /// Counts the problems, turn by turn.
    #[must_use]
    pub fn turns(&self) -> Vec<TurnCount> {
        let mut turns: Vec<TurnCount> = vec![];
        for episode in &self.episodes {
            for (&turn, rewards) in &episode.turn_history.rewards {
                turns.resize(turns.len().max(turn + 1), TurnCount::default());
                turns[turn].problems += 1;
                turns[turn].solved += usize::from(rewards.contains(&Some(1.0)));
                turns[turn].blocked += usize::from(rewards.contains(&None));
            }
        }
        turns
    }

    /// Reads a file of this or the published program.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Json`] with episode and field, and [`Error::BadField`] where fields contradict each other.
    pub fn read(path: &Path) -> Result<Self> {
        let log: Self = json::read(path)?;
        for episode in &log.episodes {
            if let Some((field, reason)) = episode.flaw() {
                let place = Place::Item(episode.task_id);
                return Err(Error::BadField { path: path.into(), place, field, reason });
            }
        }
        Ok(log)
    }

    /// Writes the file, byte for byte as the published program would.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write(&self, path: &Path) -> Result<()> {
        json::write_indented(path, self, b"  ")
    }

    /// Judges all attempts again. `oracle` says whether observations told the truth; in evaluations without an oracle they always
    /// say that the attempt was wrong.
    #[must_use]
    pub fn rescore(&self, environment: &dyn Environment, oracle: bool) -> Rescored {
        let mut result = Rescored::default();
        for episode in &self.episodes {
            let problem = episode.problem();
            let history = &episode.turn_history;
            for (&turn, actions) in &history.actions {
                for (sample, action) in actions.iter().enumerate() {
                    let stored = history.rewards.get(&turn).and_then(|rewards| *rewards.get(sample)?);
                    let Some(stored) = stored else { continue };
                    result.actions += 1;
                    let judged = environment.judge(&problem, action);
                    if judged.reward != stored {
                        result.rewards.push((episode.task_id, turn, sample, stored, judged.reward));
                    }
                    let said = environment.feedback(&problem, oracle && judged.success());
                    let heard = history.observations.get(&turn).and_then(|said| said.get(sample));
                    if heard != Some(&said) {
                        result.observations.push((episode.task_id, turn, sample));
                    }
                }
            }
        }
        result
    }

    /// The benchmarks that this log can be of: those that read a gold answer in every problem.
    #[must_use]
    pub fn benchmarks(&self) -> Vec<Benchmark> {
        let reads = |benchmark: &Benchmark| {
            let environment = benchmark.environment(Compat::Fixed);
            self.episodes.iter().all(|episode| environment.check(&episode.problem()).is_ok())
        };
        [Benchmark::Gsm8k, Benchmark::Math].into_iter().filter(reads).collect()
    }

    /// Whether judging all attempts again gives the rewards that are stored.
    #[must_use]
    pub fn agrees_with(&self, environment: &dyn Environment) -> bool {
        self.rescore(environment, true).rewards.is_empty()
    }

    /// Does any observation tell an attempt that it was right? Logs of evaluations without an oracle hold none.
    #[must_use]
    pub fn has_oracle(&self, environment: &dyn Environment) -> bool {
        self.episodes.iter().any(|episode| {
            let praise = environment.feedback(&episode.problem(), true);
            episode.turn_history.observations.values().flatten().any(|said| *said == praise)
        })
    }
}

impl Serialize for Log {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.episodes.len()))?;
        for episode in &self.episodes {
            map.serialize_entry(&episode.task_id, episode)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Log {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Episodes;
        impl<'de> Visitor<'de> for Episodes {
            type Value = Log;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of episodes by row")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Log, A::Error> {
                let mut seen = std::collections::BTreeSet::new();
                let mut episodes = vec![];
                while let Some(key) = map.next_key::<String>()? {
                    let episode: Episode = map.next_value()?;
                    if key != episode.task_id.to_string() {
                        let task = episode.task_id;
                        return Err(A::Error::custom(format!("the episode `{key}` has task_id {task}")));
                    }
                    if !seen.insert(episode.task_id) {
                        return Err(A::Error::custom(format!("the episode `{key}` is there twice")));
                    }
                    episodes.push(episode);
                }
                Ok(Log { episodes })
            }
        }
        deserializer.deserialize_map(Episodes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn episode() -> Value {
        json!({
            "task_id": 3, "query": "q", "answer": "#### 5", "max_reward": 0,
            "turn_history": {
                "best_actions": ["a"], "actions": {"0": ["a", "b"], "1": ["blocked"]},
                "best_observations": ["no"], "observations": {"0": ["no", "no"]},
                "best_rewards": [0], "rewards": {"0": [0, -1], "1": [null]},
            },
        })
    }

    fn read(value: &Value) -> Result<Log> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("2_turns.json");
        std::fs::write(&path, value.to_string()).unwrap();
        Log::read(&path)
    }

    #[test]
    fn contradictions_are_named() {
        read(&json!({"3": episode()})).unwrap();
        let refused = |change: &dyn Fn(&mut Value), says: &str| {
            let mut log = json!({"3": episode()});
            change(&mut log["3"]);
            let error = read(&log).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("2_turns.json"), "{error}");
        };
        refused(&|e| e["task_id"] = json!(4), "`3` has task_id 4");
        refused(&|e| e["query"] = json!(4), "item 3, field query");
        refused(
            &|e| e["turn_history"]["best_rewards"] = json!([]),
            "item 3, field turn_history: 1 turns were played",
        );
        refused(
            &|e| e["turn_history"]["actions"]["0"] = json!(["a"]),
            "turn 0 has 1 actions, 2 observations",
        );
        refused(&|e| e["turn_history"]["actions"]["2"] = json!(["a"]), "in common");
        refused(&|e| e["turn_history"]["rewards"]["0"] = json!([null, 0]), "turn 0 lacks a reward");
        refused(&|e| e["turn_history"]["rewards"]["x"] = json!([]), "item 3, field turn_history.rewards");
        refused(&|e| e["turn_history"]["actions"] = json!({}), "in common");
        assert!(read(&json!([episode()])).unwrap_err().to_string().contains("an object of episodes"));
        assert_eq!(read(&json!({})).unwrap(), Log::default());
    }

    #[test]
    fn a_log_tells_its_benchmark_and_whether_it_was_judged_so() {
        let of = |answer: &str, reward: i64| {
            let history = json!({
                "best_actions": [r"It is \boxed{5}."], "actions": {"0": [r"It is \boxed{5}."]},
                "best_observations": ["no"], "observations": {"0": ["no"]},
                "best_rewards": [reward], "rewards": {"0": [reward]},
            });
            let episode = json!({"task_id": 3, "query": "q", "answer": answer, "max_reward": reward, "turn_history": history});
            read(&json!({"3": episode})).unwrap()
        };
        let agrees = |log: &Log, of: Benchmark| log.agrees_with(&*of.environment(Compat::Fixed));
        for (benchmark, gold) in [(Benchmark::Gsm8k, "#### 5"), (Benchmark::Math, r"Hence \boxed{5}.")] {
            assert_eq!(of(gold, 1).benchmarks(), [benchmark]);
            assert!(agrees(&of(gold, 1), benchmark) && !agrees(&of(gold, 0), benchmark));
        }
        assert!(of("five", 0).benchmarks().is_empty());
        assert_eq!(of("\\boxed{5}\n#### 5", 1).benchmarks(), [Benchmark::Gsm8k, Benchmark::Math]);
    }

    #[test]
    fn a_log_judged_in_another_mode_disagrees() {
        use crate::environments::Gsm8k;
        let mut log = json!({"3": episode()});
        log["3"]["answer"] = json!("#### 18");
        log["3"]["turn_history"]["actions"]["0"] = json!([r"\boxed{18.0}", "none"]);
        log["3"]["turn_history"]["rewards"]["0"] = json!([-1, -1]);
        let published = read(&log).unwrap();
        assert!(published.agrees_with(&Gsm8k { compat: Compat::Reference }));
        assert!(!published.agrees_with(&Gsm8k::default()));
    }

    #[test]
    fn files_look_as_python_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.json");
        let mut log = read(&json!({"3": episode()})).unwrap();
        log.episodes[0].query = "2 € ?".into();
        log.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("{\n  \"3\": {\n    \"task_id\": 3,\n    \"query\": \"2 \\u20ac ?\",\n"),
            "{text}"
        );
        assert!(
            text.contains("\"max_reward\": 0,") && text.contains("-1\n") && text.contains("null"),
            "{text}"
        );
        assert_eq!(Log::read(&path).unwrap(), log);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(rewards in prop::collection::vec(-1.0f64..=1.0, 1..4), rows in 1usize..4) {
            let mut log = Log::default();
            for row in 0..rows {
                let mut history = TurnHistory::default();
                for (turn, &reward) in rewards.iter().enumerate() {
                    history.best_actions.push(format!("a{turn}"));
                    history.best_observations.push("no".into());
                    history.best_rewards.push(reward);
                    history.actions.insert(turn, vec![format!("a{turn}")]);
                    history.observations.insert(turn, vec!["no".into()]);
                    history.rewards.insert(turn, vec![Some(reward)]);
                }
                // Any order of rows is kept.
                log.episodes.push(Episode {
                    task_id: rows - row, query: "q".into(), answer: "a".into(), max_reward: None,
                    turn_history: history, dialogue: None,
                });
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log.json");
            log.write(&path).unwrap();
            prop_assert_eq!(Log::read(&path).unwrap(), log);
        }
    }
}
