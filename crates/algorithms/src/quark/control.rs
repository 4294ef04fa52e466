//! Rewards, their buckets, and the control tokens that name them.

use std::ops::Range;

use ruminate_models::{TokenId, Tokenizer, derive_seed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::StageSchedule;
use crate::{Error, Result};

/// The token of a wrong answer.
pub const WRONG: &str = "WRONG_LABEL";
/// The token of a right answer.
pub const CORRECT: &str = "CORRECT_LABEL";

/// Rewards whose tokens are looked for in a tokenizer.
const MOST_REWARDS: usize = 100;

/// What the data pool does with a reward.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TrainOption {
    /// Each sample gets the control token of its bucket.
    #[default]
    Quark,
    /// Samples that score less leave the pool; there is no token.
    Filter {
        /// The least score that stays.
        threshold: f64,
    },
    /// Samples that score less leave the pool, and those that stay get a token.
    FilterQuark {
        /// The least score that stays.
        threshold: f64,
    },
    /// The reward is scored and recorded only.
    QuarkNoTag,
}

impl TrainOption {
    /// Whether samples get a control token.
    #[must_use]
    pub fn tags(self) -> bool {
        matches!(self, Self::Quark | Self::FilterQuark { .. })
    }

    /// The least score that stays in the pool.
    #[must_use]
    pub fn threshold(self) -> Option<f64> {
        match self {
            Self::Filter { threshold } | Self::FilterQuark { threshold } => Some(threshold),
            Self::Quark | Self::QuarkNoTag => None,
        }
    }
}

/// Where samples with equal scores go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// They keep the order of the pool, and a border between buckets may part them: buckets have the sizes that they
    /// should have.
    #[default]
    Split,
    /// They share the best bucket that one of them is in: a bucket means the same for all scores.
    Share,
}

/// How scores become buckets; bucket 0 is the best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Buckets {
    /// Blocks of equal size in the order of the scores. What the division leaves over goes to the worst bucket; with
    /// fewer samples than buckets all are in the worst one.
    Quantiles {
        /// How many.
        count: usize,
        /// Where equal scores go.
        #[serde(default)]
        ties: Ties,
    },
    /// Right (at least 0.5) and wrong answers, with the tokens [`CORRECT`] and [`WRONG`].
    Correctness,
    /// One bucket for each of the scores that there are, best first.
    Values(Vec<f64>),
}

impl Buckets {
    /// How many buckets there are.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Quantiles { count, .. } => *count,
            Self::Correctness => 2,
            Self::Values(values) => values.len(),
        }
    }
}

impl Default for Buckets {
    fn default() -> Self {
        Self::Quantiles { count: 5, ties: Ties::Split }
    }
}

/// One of the rewards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardSpec {
    /// Its name in records.
    pub name: String,
    /// How its scores become buckets; five quantiles unless told otherwise.
    #[serde(default)]
    pub buckets: Buckets,
    /// What the pool does with it.
    #[serde(default)]
    pub option: TrainOption,
}

impl RewardSpec {
    /// A reward with a control token for each of five quantiles.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), buckets: Buckets::default(), option: TrainOption::Quark }
    }

    /// With other buckets.
    #[must_use]
    pub fn buckets(self, buckets: Buckets) -> Self {
        Self { buckets, ..self }
    }

    /// With another option.
    #[must_use]
    pub fn option(self, option: TrainOption) -> Self {
        Self { option, ..self }
    }
}

/// The rewards of a run, and how they control the policy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ControlConfig {
    /// The rewards, in the order of their tokens. The last one gives the pool its order.
    pub rewards: Vec<RewardSpec>,
    /// Rank by the product of all scores instead, with one token. Options of the rewards do not apply.
    pub as_product: bool,
    /// Buckets of the product, in equal blocks; left out, as many as the first reward has, whatever that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product_buckets: Option<usize>,
    /// A token for right and wrong answers behind those of the rewards.
    pub task_correctness: bool,
    /// When tokens come into use.
    pub stages: StageSchedule,
}

impl ControlConfig {
    /// One reward with a token for each of `buckets` quantiles.
    #[must_use]
    pub fn single(name: &str, buckets: usize) -> Self {
        let buckets = Buckets::Quantiles { count: buckets, ties: Ties::Split };
        Self { rewards: vec![RewardSpec::new(name).buckets(buckets)], ..Self::default() }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        let refuse = |name: &str, reason: String| {
            Err(Error::config("control.rewards", format!("has `{name}`, {reason}")))
        };
        if self.rewards.is_empty() {
            return Err(Error::config("control.rewards", "names no reward; name at least one"));
        }
        for (i, reward) in self.rewards.iter().enumerate() {
            let RewardSpec { name, buckets, option } = reward;
            if name.is_empty() || self.rewards[..i].iter().any(|other| other.name == *name) {
                return refuse(name, "but names must differ and not be empty".into());
            }
            match buckets {
                Buckets::Quantiles { count, .. } if !(1..=99_999).contains(count) => {
                    return refuse(name, format!("which has {count} buckets, but must have 1 to 99999"));
                }
                Buckets::Values(values)
                    if values.is_empty() || !values.windows(2).all(|pair| pair[0] > pair[1]) =>
                {
                    return refuse(name, format!("whose values {values:?} do not fall from best to worst"));
                }
                _ => {}
            }
            if option.threshold().is_some_and(|threshold| !threshold.is_finite()) {
                return refuse(name, "whose threshold is no number".into());
            }
        }
        if let Some(count) = self.product_buckets {
            let refuse = |reason: String| Err(Error::config("control.product_buckets", reason));
            if !self.as_product {
                return refuse("counts the buckets of a product, but `control.as_product` is off".into());
            }
            if !(1..=99_999).contains(&count) {
                return refuse(format!("is {count}, but must be 1 to 99999"));
            }
        }
        self.stages.validate(self.rewards.len())
    }

    /// How the product of all scores becomes buckets: always by position.
    pub(super) fn product(&self) -> Buckets {
        let first = self.rewards.first().map(|reward| &reward.buckets);
        let ties = match first {
            Some(Buckets::Quantiles { ties, .. }) => *ties,
            _ => Ties::Split,
        };
        let count = self.product_buckets.unwrap_or_else(|| first.map_or(1, Buckets::count));
        Buckets::Quantiles { count, ties }
    }

    /// Control tokens before a response.
    #[must_use]
    pub fn code_len(&self) -> usize {
        let tags = self.rewards.iter().filter(|reward| reward.option.tags()).count();
        usize::from(self.task_correctness) + if self.as_product { 1 } else { tags }
    }
}

/// The control tokens of a run: one for each bucket of each reward.
///
/// The tokens before a response are called its code. Buckets are numbered from 0, the best.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlTokens {
    names: Vec<String>,
    ids: Vec<TokenId>,
    slots: Vec<Slot>,
}

/// A position in the code.
#[derive(Debug, Clone, PartialEq)]
struct Slot {
    /// The reward whose bucket it tells; `None` for the correctness of the answer.
    reward: Option<usize>,
    /// Indices of its tokens, best first.
    tokens: Vec<usize>,
}

/// Which buckets a response is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// The best of every reward.
    Best,
    /// The worst of every reward.
    Worst,
    /// Any, drawn for each reward and response.
    Random,
}

impl ControlTokens {
    /// The names of the tokens, in the order in which a tokenizer gets them: those of every reward from the best bucket to
    /// the worst, then [`WRONG`] and [`CORRECT`], which are there even if nothing uses them.
    #[must_use]
    pub fn names_of(config: &ControlConfig) -> Vec<String> {
        Self::layout(config).0
    }

    /// Adds the tokens to a tokenizer; the model needs rows for them
    /// ([`T5::add_tokens`](ruminate_models::T5::add_tokens)).
    ///
    /// # Errors
    /// When the configuration is wrong or the tokenizer has one of the tokens already.
    pub fn add_to(tokenizer: &mut Tokenizer, config: &ControlConfig) -> Result<Self> {
        config.validate()?;
        let (names, slots) = Self::layout(config);
        let ids = tokenizer.add_tokens(&names)?;
        Ok(Self { names, ids, slots })
    }

    /// The tokens of a tokenizer that has them, e.g. that of a checkpoint.
    ///
    /// # Errors
    /// When the configuration is wrong or the tokenizer lacks one of the tokens.
    pub fn find_in(tokenizer: &Tokenizer, config: &ControlConfig) -> Result<Self> {
        config.validate()?;
        let (names, slots) = Self::layout(config);
        let find = |name: &String| {
            tokenizer.token_id(name).ok_or_else(|| {
                let reason = format!(
                    "need the token `{name}`, which the tokenizer lacks; ControlTokens::add_to adds them"
                );
                Error::config("control.rewards", reason)
            })
        };
        let ids = names.iter().map(find).collect::<Result<_>>()?;
        Ok(Self { names, ids, slots })
    }

    /// The tokens of a trained model's tokenizer; `None` where it has no control token at all.
    ///
    /// # Errors
    /// When the configuration is wrong, or the tokenizer has other control tokens than those of the configuration: the model was
    /// trained with others.
    pub fn of_model(tokenizer: &Tokenizer, config: &ControlConfig) -> Result<Option<Self>> {
        config.validate()?;
        let expected = Self::layout(config).0;
        let has = |name: &String| tokenizer.token_id(name).is_some();
        let buckets = |reward| (0..).map(move |bucket| Self::name(reward, bucket)).take_while(has);
        let answers = [WRONG, CORRECT].map(String::from).into_iter().filter(has);
        let found: Vec<String> = (0..MOST_REWARDS).flat_map(buckets).chain(answers).collect();
        if found.is_empty() {
            return Ok(None);
        }
        if let Some(name) = found.iter().find(|name| !expected.contains(name)) {
            let reason = format!(
                "give no token `{name}`, which the tokenizer has; the model was trained with other rewards"
            );
            return Err(Error::config("control.rewards", reason));
        }
        Self::find_in(tokenizer, config).map(Some)
    }

    /// The name of the token of a reward's bucket.
    fn name(reward: usize, bucket: usize) -> String {
        format!("_TOKEN{reward}_{bucket:05}")
    }

    fn layout(config: &ControlConfig) -> (Vec<String>, Vec<Slot>) {
        let mut names = vec![];
        let mut slots = vec![];
        let mut of_reward = |index: usize, count: usize| {
            let first = names.len();
            names.extend((0..count).map(|bucket| Self::name(index, bucket)));
            (first..first + count).collect()
        };
        if config.as_product {
            let tokens = of_reward(config.rewards.len().saturating_sub(1), config.product().count());
            slots.push(Slot { reward: Some(0), tokens });
        } else {
            for (i, reward) in config.rewards.iter().enumerate() {
                let tokens = match reward.buckets {
                    Buckets::Correctness => vec![],
                    _ => of_reward(i, reward.buckets.count()),
                };
                if reward.option.tags() {
                    slots.push(Slot { reward: Some(i), tokens });
                }
            }
        }
        if config.task_correctness {
            slots.push(Slot { reward: None, tokens: vec![] });
        }
        // Those of answers come last; only now it is known where.
        let (wrong, right) = (names.len(), names.len() + 1);
        slots
            .iter_mut()
            .filter(|slot| slot.tokens.is_empty())
            .for_each(|slot| slot.tokens = vec![right, wrong]);
        names.extend([WRONG.to_string(), CORRECT.to_string()]);
        (names, slots)
    }

    /// The tokens' names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The tokens' ids, in the order of their names.
    #[must_use]
    pub fn ids(&self) -> &[TokenId] {
        &self.ids
    }

    /// The ids that a model needs rows for.
    #[must_use]
    pub fn id_range(&self) -> Range<TokenId> {
        let first = self.ids.iter().copied().min().unwrap_or(0);
        first..self.ids.iter().copied().max().map_or(first, |last| last + 1)
    }

    /// The id of a token.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<TokenId> {
        self.names.iter().position(|n| n == name).map(|i| self.ids[i])
    }

    /// Tokens of a code.
    #[must_use]
    pub fn code_len(&self) -> usize {
        self.slots.len()
    }

    /// The code of a sample: `buckets` has one entry for each reward (in product mode one only).
    ///
    /// # Errors
    /// When there are too few buckets, or one that has no token.
    pub fn code(&self, buckets: &[usize], correct: bool) -> Result<Vec<TokenId>> {
        Ok(self.chosen(buckets, correct)?.into_iter().map(|token| self.ids[token]).collect())
    }

    /// The code of a sample as text, separated by blanks.
    ///
    /// # Errors
    /// As [`code`](Self::code).
    pub fn code_text(&self, buckets: &[usize], correct: bool) -> Result<String> {
        let names = self.chosen(buckets, correct)?.into_iter().map(|token| self.names[token].as_str());
        Ok(names.collect::<Vec<_>>().join(" "))
    }

    fn chosen(&self, buckets: &[usize], correct: bool) -> Result<Vec<usize>> {
        let token = |slot: &Slot| {
            let bucket = slot.reward.map_or(Some(usize::from(!correct)), |i| buckets.get(i).copied());
            bucket.and_then(|bucket| slot.tokens.get(bucket).copied()).ok_or_else(|| Error::Pool {
                reason: format!("the buckets {buckets:?} do not belong to these control tokens"),
            })
        };
        self.slots.iter().map(token).collect()
    }

    /// The code that asks for what `condition` says; `seed` decides a random one.
    #[must_use]
    pub fn condition(&self, condition: Condition, seed: u64) -> Vec<TokenId> {
        let token = |(i, slot): (usize, &Slot)| {
            let last = slot.tokens.len() - 1;
            let bucket = match condition {
                Condition::Best => 0,
                Condition::Worst => last,
                Condition::Random => (derive_seed(seed, &[i as u64]) % slot.tokens.len() as u64) as usize,
            };
            self.ids[slot.tokens[bucket]]
        };
        self.slots.iter().enumerate().map(token).collect()
    }
}
