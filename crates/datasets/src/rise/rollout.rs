//! Episodes of several turns.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::ops::ControlFlow;
use std::path::Path;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::dialogue::drop_degenerate;
use super::store::EpisodeFile;
use super::{Episode, Log, RolloutConfig, Setting, TurnHistory, dialogue};
use crate::chat::Message;
use crate::environments::{Compat, Environment, Problem, is_success};
use crate::python;

/// The action of a turn whose sampling failed.
pub const BLOCKED: &str = "blocked";

/// What is asked of whoever answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The problem's row.
    pub row: usize,
    /// The turn, counted from 0.
    pub turn: usize,
    /// How often this turn was sampled before and gave nothing but degenerate text.
    pub attempt: usize,
    /// The dialogue, with the last word for the user.
    pub messages: Vec<Message>,
    /// How many answers are wanted.
    pub samples: usize,
    /// The seed of these answers; it depends on the run's seed, row, turn and attempt, and on nothing else.
    pub seed: u64,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// As many texts as were asked for.
    Texts(Vec<String>),
    /// There will be no answer, and why. The episode ends, the run goes on.
    Blocked(String),
}

/// Why somebody who answers cannot go on at all.
pub type Failed = Box<dyn StdError + Send + Sync>;

/// The error of an answerer whom the user has asked to stop. It ends the rollout without being one: what was finished is kept, and the
/// next run goes on from there.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("stopped by the user")]
pub struct Stopped;

/// Who answers: a local model, a teacher, an address. Closures over a batch of asks are answerers too.
pub trait Answerer {
    /// Answers a batch, in its order.
    ///
    /// # Errors
    /// What ends the run, [`Stopped`] among it; an ask that cannot be answered alone is [`Reply::Blocked`].
    fn answer(&self, asks: &[Ask]) -> Result<Vec<Reply>, Failed>;

    /// The role of its answers in dialogues. Default: `agent`, as local models are called in RISE's files.
    fn role(&self) -> &str {
        "agent"
    }
}

impl<F: Fn(&[Ask]) -> Result<Vec<Reply>, Failed>> Answerer for F {
    fn answer(&self, asks: &[Ask]) -> Result<Vec<Reply>, Failed> {
        self(asks)
    }
}

/// Watches a rollout.
pub trait RolloutObserver {
    /// An episode is done and written. `Break` stops the run; what is done is kept.
    fn finished(&mut self, _episode: &Episode, _done: usize, _all: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    /// A turn gave no answer.
    fn blocked(&mut self, _row: usize, _turn: usize, _reason: &str) {}
}

impl RolloutObserver for crate::NullObserver {}

/// Why a rollout ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RolloutError {
    /// A setting.
    #[error("rollout.{field}: {reason}")]
    Config {
        /// Its name.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A problem that cannot be asked.
    #[error("row {row} of the problems {reason}")]
    Problem {
        /// Its row.
        row: usize,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// An answerer that failed.
    #[error("turn {turn} could not be answered")]
    Answerer {
        /// The turn, counted from 0.
        turn: usize,
        /// Why.
        source: Failed,
    },
    /// An answerer that does not do what it was asked.
    #[error("the answerer of turn {turn} gave {got} {what} instead of {wanted}")]
    Count {
        /// The turn, counted from 0.
        turn: usize,
        /// `replies`, or `texts` for one of them.
        what: &'static str,
        /// How many came.
        got: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// A reward that no average, maximum or exponential can use.
    #[error("row {row}: the environment gave the reward {reward}; rewards are finite and at most 1")]
    Reward {
        /// The problem's row.
        row: usize,
        /// The reward.
        reward: f64,
    },
    /// The first turn of a problem gave no answer, at which the published program ends ([`Compat::Reference`]).
    #[error(
        "row {row}: the first turn was blocked: {reason}; compat = \"fixed\" goes on with the next problem"
    )]
    BlockedFirst {
        /// The problem's row.
        row: usize,
        /// Why.
        reason: String,
    },
    /// A file that belongs to another run.
    #[error("{}: was begun with {what}; write to another file, or go on as it was begun", .path.display())]
    Changed {
        /// The file.
        path: std::path::PathBuf,
        /// What differs.
        what: String,
    },
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] crate::Error),
}

/// Plays episodes: problems by `batch`, all of a batch turn by turn.
///
/// # Example
/// ```
/// use ruminate_datasets::environments::{Gsm8k, Problem};
/// use ruminate_datasets::NullObserver;
/// use ruminate_datasets::rise::{Ask, Failed, MultiTurn, Reply, RolloutConfig};
///
/// // Somebody who is right in the second attempt.
/// let student = |asks: &[Ask]| -> Result<Vec<Reply>, Failed> {
///     Ok(asks.iter().map(|ask| Reply::Texts(vec![format!(r"\boxed{{{}}}", 4 + ask.turn)])).collect())
/// };
/// let problems = [Problem { question: "2+3?".into(), solution: "#### 5".into(), ..Problem::default() }];
/// let environment = Gsm8k::default();
/// let turns = MultiTurn::new(&environment, RolloutConfig::collect(&[1, 1]), &[&student, &student])?;
/// let log = turns.play(&problems, None, &mut NullObserver)?;
/// assert_eq!(log.episodes[0].turn_history.best_rewards, [0.0, 1.0]);
/// # Ok::<(), ruminate_datasets::rise::RolloutError>(())
/// ```
pub struct MultiTurn<'a> {
    environment: &'a dyn Environment,
    config: RolloutConfig,
    answerers: Vec<&'a dyn Answerer>,
    batch: usize,
}

impl std::fmt::Debug for MultiTurn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MultiTurn")
            .field("config", &self.config)
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}

/// An episode on its way.
struct Playing<'a> {
    problem: &'a Problem,
    history: TurnHistory,
    dialogue: Vec<Message>,
    /// Has it ended before the last turn?
    over: bool,
}

impl<'a> Playing<'a> {
    fn begin(problem: &'a Problem) -> Self {
        Self { problem, history: TurnHistory::default(), dialogue: vec![], over: false }
    }
}

impl<'a> MultiTurn<'a> {
    /// One answerer for each turn; the same one may answer several. Further ones are ignored.
    ///
    /// # Errors
    /// [`RolloutError::Config`].
    pub fn new(
        environment: &'a dyn Environment,
        config: RolloutConfig,
        answerers: &[&'a dyn Answerer],
    ) -> Result<Self, RolloutError> {
        config.validate().map_err(|(field, reason)| RolloutError::Config { field, reason })?;
        let (turns, models) = (config.samples.len(), answerers.len());
        if models < turns {
            let reason = format!("{turns} turns have {models} models; name one for each");
            return Err(RolloutError::Config { field: "models", reason });
        }
        Ok(Self { environment, config, answerers: answerers.to_vec(), batch: 16 })
    }

    /// How many problems are asked about at a time. Default: 16. Nothing but speed depends on it, and how much is lost when the
    /// program is killed: the episodes of one batch.
    #[must_use]
    pub fn batch(mut self, problems: usize) -> Self {
        self.batch = problems.max(1);
        self
    }

    /// The rows of the problems whose episodes are in a file already.
    ///
    /// # Errors
    /// When the file cannot be read, or was begun with other settings or problems.
    pub fn finished(&self, problems: &[Problem], file: &Path) -> Result<BTreeSet<usize>, RolloutError> {
        let (_, episodes) = EpisodeFile::open(Some(file), &self.config, problems)?;
        Ok(episodes.into_keys().collect())
    }

    /// Plays all problems. White space around attempts is dropped, except in [`Compat::Reference`]. With a file, each episode is appended to it as soon as it is over, and episodes that are in it already
    /// are not played again; a cut-off last line is removed. The log has the order of the problems.
    ///
    /// # Errors
    /// [`RolloutError`].
    pub fn play(
        &self,
        problems: &[Problem],
        file: Option<&Path>,
        observer: &mut dyn RolloutObserver,
    ) -> Result<Log, RolloutError> {
        let mut rows = BTreeSet::new();
        for problem in problems {
            let bad = |reason| RolloutError::Problem { row: problem.row, reason };
            self.environment.check(problem).map_err(bad)?;
            if !rows.insert(problem.row) {
                return Err(bad("are two; give each a row of its own".into()));
            }
        }
        let (mut store, mut episodes) = EpisodeFile::open(file, &self.config, problems)?;
        let open: Vec<&Problem> = problems.iter().filter(|p| !episodes.contains_key(&p.row)).collect();
        for batch in open.chunks(self.batch) {
            let mut done = vec![];
            let mut stopped = match self.play_batch(batch, &mut store, observer, &mut done) {
                Err(RolloutError::Answerer { source, .. }) if source.is::<Stopped>() => true,
                played => played.map(|()| false)?,
            };
            for episode in done {
                stopped |= observer.finished(&episode, episodes.len() + 1, problems.len()).is_break();
                episodes.insert(episode.task_id, episode);
            }
            if stopped {
                break;
            }
        }
        store.sync()?;
        Ok(Log { episodes: problems.iter().filter_map(|p| episodes.remove(&p.row)).collect() })
    }

    /// Plays some problems, and writes their episodes in the order in which they end.
    fn play_batch(
        &self,
        problems: &[&Problem],
        store: &mut EpisodeFile,
        observer: &mut dyn RolloutObserver,
        done: &mut Vec<Episode>,
    ) -> Result<(), RolloutError> {
        let mut playing: Vec<Playing<'_>> = problems.iter().map(|problem| Playing::begin(problem)).collect();
        for turn in 0..self.config.samples.len() {
            let role = self.answerers[turn].role();
            for episode in &mut playing {
                episode.dialogue =
                    dialogue(self.environment, episode.problem, &episode.history, role, &self.config);
            }
            let outcomes = self.sample(turn, &playing)?;
            for (episode, outcome) in playing.iter_mut().zip(outcomes) {
                match outcome {
                    Reply::Texts(texts) => self.judge(episode, turn, texts)?,
                    Reply::Blocked(reason) => {
                        let row = episode.problem.row;
                        if turn == 0 && self.config.compat == Compat::Reference {
                            return Err(RolloutError::BlockedFirst { row, reason });
                        }
                        observer.blocked(row, turn, &reason);
                        episode.history.actions.insert(turn, vec![BLOCKED.into()]);
                        episode.history.rewards.insert(turn, vec![None]);
                        episode.over = true;
                    }
                }
            }
            let last = turn + 1 == self.config.samples.len();
            let (over, going): (Vec<_>, Vec<_>) = playing.into_iter().partition(|e| last || e.over);
            playing = going;
            for episode in over {
                let episode = self.finish(episode);
                store.write(&episode)?;
                done.push(episode);
            }
        }
        Ok(())
    }

    /// Asks for the attempts of a turn, again for episodes that got degenerate text only.
    fn sample(&self, turn: usize, playing: &[Playing<'_>]) -> Result<Vec<Reply>, RolloutError> {
        let samples = self.config.samples[turn];
        let mut outcomes: Vec<Option<Reply>> = vec![None; playing.len()];
        for attempt in 0..self.config.tries {
            let open: Vec<usize> = (0..playing.len()).filter(|&i| outcomes[i].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let ask = |&i: &usize| Ask {
                row: playing[i].problem.row,
                turn,
                attempt,
                messages: playing[i].dialogue.clone(),
                samples,
                seed: self.seed(playing[i].problem.row, turn, attempt),
            };
            let asks: Vec<Ask> = open.iter().map(ask).collect();
            let replies = self.answerers[turn].answer(&asks);
            let replies = replies.map_err(|source| RolloutError::Answerer { turn, source })?;
            let count = |what, got, wanted| {
                if got == wanted { Ok(()) } else { Err(RolloutError::Count { turn, what, got, wanted }) }
            };
            count("replies", replies.len(), asks.len())?;
            for (i, reply) in open.into_iter().zip(replies) {
                outcomes[i] = match reply {
                    Reply::Texts(mut texts) => {
                        count("texts", texts.len(), samples)?;
                        if self.config.compat == Compat::Fixed {
                            // What is sent, stored and trained on is one text: conversion trims attempts, and so do templates.
                            texts.iter_mut().for_each(|text| *text = python::strip(text).to_owned());
                        }
                        if self.config.setting == Setting::Oracle {
                            drop_degenerate(&mut texts, self.config.compat);
                        }
                        (!texts.is_empty()).then_some(Reply::Texts(texts))
                    }
                    blocked => Some(blocked),
                };
            }
        }
        let tries = self.config.tries;
        let blocked = || Reply::Blocked(format!("{tries} tries gave nothing but degenerate text"));
        Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(blocked)).collect())
    }

    /// Takes the attempts of a turn into the history; the first one of the best goes on.
    fn judge(&self, episode: &mut Playing<'_>, turn: usize, texts: Vec<String>) -> Result<(), RolloutError> {
        let mut rewards = vec![];
        let mut observations = vec![];
        let oracle = self.config.setting == Setting::Oracle;
        for text in &texts {
            let judgement = self.environment.judge(episode.problem, text);
            let reward = judgement.reward;
            if !reward.is_finite() || reward > 1.0 {
                return Err(RolloutError::Reward { row: episode.problem.row, reward });
            }
            let told = oracle && judgement.success();
            observations.push(self.environment.feedback(episode.problem, told));
            rewards.push(reward);
        }
        // `max_by` takes the last of equals.
        let best = (0..texts.len()).rev().max_by(|&a, &b| rewards[a].total_cmp(&rewards[b])).unwrap_or(0);
        let history = &mut episode.history;
        history.best_actions.push(texts[best].clone());
        history.best_observations.push(observations[best].clone());
        history.best_rewards.push(rewards[best]);
        episode.over = oracle && is_success(rewards[best]);
        history.actions.insert(turn, texts);
        history.observations.insert(turn, observations);
        history.rewards.insert(turn, rewards.into_iter().map(Some).collect());
        Ok(())
    }

    fn finish(&self, episode: Playing<'_>) -> Episode {
        let Playing { problem, history, dialogue, .. } = episode;
        Episode {
            task_id: problem.row,
            query: problem.question.clone(),
            answer: problem.solution.clone(),
            max_reward: history.best_rewards.iter().copied().max_by(f64::total_cmp),
            turn_history: history,
            dialogue: (self.config.setting == Setting::Oracle).then_some(dialogue),
        }
    }

    /// One stream for each row; one number of it for each attempt at a turn.
    fn seed(&self, row: usize, turn: usize, attempt: usize) -> u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        rng.set_stream(row as u64);
        rng.set_word_pos(2 * (turn as u128 * self.config.tries as u128 + attempt as u128));
        rng.next_u64()
    }
}
