//! Rewards that a configuration names, without any Rust: comparisons with the answer, forms, lengths, models, programs, and servers.
//!
//! A list of [`RewardConfig`] becomes [`WeightedRewards`], whose value is the weighted sum. In a configuration file:
//! ```toml
//! [[reward]]
//! name = "right"
//! kind = "number"
//!
//! [[reward]]
//! name = "brevity"
//! weight = 0.1
//! kind.length = { max = 50, tolerance = 50 }
//!
//! [[reward]]
//! name = "mine"
//! kind.command = { run = ["python3", "reward.py"] }
//! ```

mod command;
mod compare;
mod form;
mod http;
mod kind;
mod models;
mod numbers;
mod program;
mod template;

use ruminate_datasets::rows::PromptRow;
use ruminate_models::{ScoreChoices, TokenId, Tokenizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use command::CommandReward;
pub use compare::{Contains, ExactMatch, Number, Pattern};
pub use form::{Format, Length, LengthUnit};
pub use http::HttpReward;
pub use kind::{Empty, RewardKind};
pub use models::{ModelPrecision, Plausible, SelfFeedbackReward};

use crate::{Reward, RewardError, Rewarded, Sample};

/// A reward of a configuration: an entry `[[reward]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardConfig {
    /// Its name in records.
    pub name: String,
    /// Factor in the sum of all rewards.
    #[serde(default = "one")]
    pub weight: f64,
    /// The kind, with its settings.
    #[serde(deserialize_with = "kind::by_name")]
    #[schemars(schema_with = "kind::schema")]
    pub kind: RewardKind,
}

fn one() -> f64 {
    1.0
}

/// Why configured rewards cannot be used, or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfiguredError {
    /// A setting is wrong.
    #[error("[[reward]] `{name}`: {reason}")]
    Setting {
        /// The reward's name.
        name: String,
        /// The mistake, and the remedy.
        reason: String,
    },
    /// A row lacks what a reward needs.
    #[error("reward `{name}`, sample {sample}: {reason}")]
    Sample {
        /// The reward's name.
        name: String,
        /// The sample's index.
        sample: usize,
        /// The field that is missing.
        reason: String,
    },
    /// A program or a server failed.
    #[error("reward `{name}`, sample {sample} ({text}): {reason}")]
    External {
        /// The reward's name.
        name: String,
        /// Index of the first sample without a reward.
        sample: usize,
        /// The beginning of its text.
        text: String,
        /// The failure, in words.
        reason: String,
    },
}

impl From<ConfiguredError> for RewardError {
    fn from(error: ConfiguredError) -> Self {
        Self::Other(Box::new(error))
    }
}

/// A response with the row that it answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered<'a> {
    row: &'a PromptRow,
    text: &'a str,
    /// Its tokens, where they are known.
    tokens: Option<usize>,
}

/// The policy that wrote the responses, with its tokenizer.
#[derive(Clone, Copy)]
pub(crate) struct PolicyModel<'a> {
    policy: &'a dyn ScoreChoices,
    tokenizer: &'a Tokenizer,
}

/// One finite number for each sample.
pub(crate) type Judged = Result<Vec<f64>, Unjudged>;

/// A kind of reward that is ready to judge.
pub(crate) trait Judge: std::fmt::Debug + Send + Sync {
    /// Judges samples; the policy is there where it can be asked.
    fn judge(&self, samples: &[Answered<'_>], policy: Option<PolicyModel<'_>>) -> Judged;

    /// True for a kind that cannot judge without the policy.
    fn asks_policy(&self) -> bool {
        false
    }
}

/// Why samples have no reward.
#[derive(Debug)]
pub(crate) enum Unjudged {
    /// A sample that cannot be judged.
    Sample { sample: usize, reason: String },
    /// Something outside of this program failed.
    External { sample: usize, reason: String },
    /// A setting that cannot be checked earlier.
    Setting(String),
    /// A model failed, or somebody asked to stop.
    Other(RewardError),
}

impl From<RewardError> for Unjudged {
    fn from(error: RewardError) -> Self {
        Self::Other(error)
    }
}

impl Unjudged {
    /// Judges samples one by one.
    fn each(samples: &[Answered<'_>], judge: impl Fn(&Answered<'_>) -> Result<f64, String>) -> Judged {
        let one = |(sample, of)| judge(of).map_err(|reason| Self::Sample { sample, reason });
        samples.iter().enumerate().map(one).collect()
    }

    fn named(self, name: &str, samples: &[Answered<'_>]) -> RewardError {
        let name = name.to_owned();
        match self {
            Self::Sample { sample, reason } => ConfiguredError::Sample { name, sample, reason }.into(),
            Self::External { sample, reason } => {
                let text = beginning(samples.get(sample).map_or("", |of| of.text));
                ConfiguredError::External { name, sample, text, reason }.into()
            }
            Self::Setting(reason) => ConfiguredError::Setting { name, reason }.into(),
            Self::Other(error) => error,
        }
    }
}

/// Several configured rewards; the value of a response is their weighted sum, and each is told under its name.
///
/// # Example
/// ```
/// use ruminate_datasets::rows::{PromptRow, TextOrMessages};
/// use ruminate_rewards::configured::{RewardConfig, WeightedRewards};
///
/// let entries = r#"[{"name": "right", "kind": "number"}, {"name": "short", "weight": 0.5, "kind": {"length": {"max": 3}}}]"#;
/// let rewards = WeightedRewards::new(&serde_json::from_str::<Vec<RewardConfig>>(entries)?)?;
/// let prompt = TextOrMessages::Text("What is 3 + 4?".into());
/// let row = PromptRow { prompt, answer: Some("7".into()), fields: Default::default() };
/// let judged = rewards.judge(&[&row, &row], &["It is 7.", "Let me think: 3 + 4 is 8."])?;
/// assert_eq!([judged[0].value, judged[1].value], [1.5, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct WeightedRewards {
    rewards: Vec<(RewardConfig, Box<dyn Judge>)>,
}

impl WeightedRewards {
    /// Prepares rewards. Programs are started when the first sample comes.
    ///
    /// # Errors
    /// There is no reward, two have one name, or a setting is wrong.
    pub fn new(configs: &[RewardConfig]) -> Result<Self, RewardError> {
        let refuse = |name: &str, reason: &str| -> RewardError {
            ConfiguredError::Setting { name: name.into(), reason: reason.into() }.into()
        };
        if configs.is_empty() {
            return Err(refuse("", "there is none; add one with a name and a kind"));
        }
        let mut rewards: Vec<(RewardConfig, Box<dyn Judge>)> = vec![];
        for config in configs {
            let name = &config.name;
            if name.is_empty() || name == "reward" || rewards.iter().any(|(other, _)| other.name == *name) {
                return Err(refuse(
                    name,
                    "names must differ, and be neither empty nor `reward`, which is the sum",
                ));
            }
            if !config.weight.is_finite() {
                return Err(refuse(name, "the weight is no number"));
            }
            let judge = config.kind.judge().map_err(|reason| refuse(name, &reason))?;
            rewards.push((config.clone(), judge));
        }
        Ok(Self { rewards })
    }

    /// The names, in their order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.rewards.iter().map(|(config, _)| config.name.as_str()).collect()
    }

    /// True where a reward asks the policy, so that [`with_tokenizer`](Self::with_tokenizer) is needed.
    #[must_use]
    pub fn asks_policy(&self) -> bool {
        self.rewards.iter().any(|(_, judge)| judge.asks_policy())
    }

    /// Lets rewards ask the policy, whose tokenizer this is.
    #[must_use]
    pub fn with_tokenizer(self, tokenizer: Tokenizer) -> PolicyRewards {
        PolicyRewards { rewards: self, tokenizer }
    }

    /// Judges texts, each with the row that it answers.
    ///
    /// # Errors
    /// A sample cannot be judged; the error names the reward, the sample and the reason.
    pub fn judge(&self, rows: &[&PromptRow], texts: &[&str]) -> Result<Vec<Rewarded>, RewardError> {
        if rows.len() != texts.len() {
            return Err(RewardError::Count { samples: rows.len(), rewards: texts.len() });
        }
        let samples = rows.iter().zip(texts).map(|(&row, &text)| Answered { row, text, tokens: None });
        self.judge_all(&samples.collect::<Vec<_>>(), None)
    }

    fn judge_all(
        &self,
        samples: &[Answered<'_>],
        policy: Option<PolicyModel<'_>>,
    ) -> Result<Vec<Rewarded>, RewardError> {
        let mut judged = vec![Rewarded::default(); samples.len()];
        if samples.is_empty() {
            return Ok(judged);
        }
        let mut sums = vec![0.0; samples.len()];
        for (RewardConfig { name, weight, .. }, judge) in &self.rewards {
            let values = judge.judge(samples, policy).map_err(|unjudged| unjudged.named(name, samples))?;
            for ((of, sum), value) in judged.iter_mut().zip(&mut sums).zip(values) {
                *sum += weight * value;
                of.parts.push((name.clone().into(), value as f32));
            }
        }
        for (sample, (of, sum)) in judged.iter_mut().zip(sums).enumerate() {
            of.value = sum as f32;
            if !of.value.is_finite() {
                return Err(RewardError::NotFinite { sample, task: String::new(), value: sum });
            }
        }
        Ok(judged)
    }
}

/// A text as an error shows it.
fn beginning(text: &str) -> String {
    const SHOWN: usize = 60;
    let short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() { format!("{short:?}...") } else { format!("{text:?}") }
}

fn answered<'a>(samples: &'a [Sample<'_, PromptRow>]) -> Vec<Answered<'a>> {
    let answered = |sample: &'a Sample<'_, PromptRow>| Answered {
        row: sample.item,
        text: sample.text,
        tokens: Some(sample.response.len()),
    };
    samples.iter().map(answered).collect()
}

impl<P: ?Sized> Reward<P, PromptRow> for WeightedRewards {
    fn rewards(&self, _: &P, samples: &[Sample<'_, PromptRow>]) -> Result<Vec<Rewarded>, RewardError> {
        self.judge_all(&answered(samples), None)
    }
}

/// Configured rewards that may ask the policy; made by [`WeightedRewards::with_tokenizer`].
#[derive(Debug)]
pub struct PolicyRewards {
    rewards: WeightedRewards,
    tokenizer: Tokenizer,
}

impl<P: ScoreChoices + ?Sized> Reward<P, PromptRow> for PolicyRewards {
    fn rewards(&self, policy: &P, samples: &[Sample<'_, PromptRow>]) -> Result<Vec<Rewarded>, RewardError> {
        /// A policy of any size behind a reference, which can be a trait object.
        struct Behind<'a, P: ?Sized>(&'a P);
        impl<P: ScoreChoices + ?Sized> ScoreChoices for Behind<'_, P> {
            fn choice_log_probs(
                &self,
                prompts: &[Vec<TokenId>],
                choices: &[Vec<Vec<TokenId>>],
            ) -> ruminate_models::Result<tch::Tensor> {
                self.0.choice_log_probs(prompts, choices)
            }

            fn first_token_logits(
                &self,
                prompts: &[Vec<TokenId>],
                tokens: &[Vec<TokenId>],
            ) -> ruminate_models::Result<Vec<Vec<f32>>> {
                self.0.first_token_logits(prompts, tokens)
            }
        }
        let policy = PolicyModel { policy: &Behind(policy), tokenizer: &self.tokenizer };
        self.rewards.judge_all(&answered(samples), Some(policy))
    }
}
