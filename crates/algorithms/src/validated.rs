//! Validation by a reward, for algorithms that train on something else.

use ruminate_models::{Generate, GenerationConfig, Policy, Strategy, Tokenizer, derive_seed};
use ruminate_rewards::Reward;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dpo::PolicyEvaluation;
use crate::ppo::{Assessed, Prompt, assess, respond};
use crate::trainer::Evaluation;
use crate::{Collective, Error, Metrics, Observer, Result};

/// Settings of a [`RewardEvaluation`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RewardEvaluationConfig {
    /// Tokens after which a response ends at the latest. Default: 256.
    pub max_new_tokens: usize,
    /// Strings that end a response; the model needs its tokenizer for them. Default: none, so that the model's end tokens end it.
    pub stop_strings: Vec<String>,
    /// Prompts that are answered at the same time. Default: 32.
    pub batch_size: usize,
    /// Responses of each validation that the records show, to prompts at equal distances. Default: 8.
    pub samples: usize,
}

impl Default for RewardEvaluationConfig {
    fn default() -> Self {
        Self { max_new_tokens: 256, stop_strings: vec![], batch_size: 32, samples: 8 }
    }
}

impl RewardEvaluationConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        for (key, value) in [("max_new_tokens", self.max_new_tokens), ("batch_size", self.batch_size)] {
            if value == 0 {
                return Err(Error::config(key, "is 0, but must be at least 1"));
            }
        }
        Ok(())
    }
}

/// Validates a policy by the reward of its greedy responses to held-out prompts. [`Dpo`](crate::dpo::Dpo::evaluated_by),
/// [`Rwr`](crate::rwr::Rwr::evaluated_by) and [`SupervisedData`](crate::SupervisedData::evaluated_by) take it.
///
/// The metrics are `eval/reward`, the mean reward, which also is the score that chooses the best checkpoint, and `eval/reward/PART` for the
/// mean of each part of the reward. The observer gets all values, and some responses with their rewards.
pub struct RewardEvaluation<Q, R> {
    prompts: Vec<Prompt<Q>>,
    reward: R,
    tokenizer: Tokenizer,
    config: RewardEvaluationConfig,
    /// The processes that divide the prompts.
    collective: Collective,
}

impl<Q, R> std::fmt::Debug for RewardEvaluation<Q, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RewardEvaluation")
            .field("prompts", &self.prompts.len())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl<Q, R> RewardEvaluation<Q, R> {
    /// Joins the parts. `tokenizer` makes texts of the responses, which the reward and the records see.
    ///
    /// # Errors
    /// When there is no prompt, or a setting is out of its range.
    pub fn new(
        prompts: Vec<Prompt<Q>>,
        reward: R,
        tokenizer: Tokenizer,
        config: RewardEvaluationConfig,
    ) -> Result<Self> {
        config.validate()?;
        if prompts.is_empty() {
            return Err(Error::config("prompts", "there is no prompt to validate with"));
        }
        Ok(Self { prompts, reward, tokenizer, config, collective: Collective::default() })
    }

    fn generation(&self) -> GenerationConfig {
        GenerationConfig {
            strategy: Strategy::Greedy,
            max_new_tokens: self.config.max_new_tokens,
            stop_strings: self.config.stop_strings.clone(),
            ..GenerationConfig::default()
        }
    }

    /// Shows responses to prompts at equal distances.
    fn show(&self, assessed: &[Assessed], step: u64, observer: &mut dyn Observer) -> Result<()> {
        let (count, all) = (self.config.samples.min(assessed.len()), assessed.len());
        let samples: Vec<_> =
            (0..count).map(|i| i * all / count).map(|i| assessed[i].shown(step, &self.prompts[i])).collect();
        if samples.is_empty() {
            return Ok(());
        }
        observer.samples(step, &samples).map_err(Error::Observer)
    }
}

impl<P, Q, R> PolicyEvaluation<P> for RewardEvaluation<Q, R>
where
    P: Policy + Generate,
    R: Reward<P, Q>,
{
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.collective = collective.clone();
        Ok(())
    }

    fn evaluate(&mut self, policy: &P, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        let prompts: Vec<&Prompt<Q>> = self.prompts.iter().collect();
        let (generation, tokenizer) = (self.generation(), (&self.tokenizer, false));
        let judged_by = (policy, &self.reward as &dyn Reward<P, Q>);
        let answer =
            |prompts: &[&Prompt<Q>], numbers: &[usize], progress: &mut dyn FnMut(u64) -> Result<()>| {
                // Nothing is drawn, but each row has a seed.
                let seed = |i: usize| derive_seed(step, &[numbers[i] as u64]);
                respond(policy, tokenizer, prompts, &generation, self.config.batch_size, seed, progress)
            };
        let assessed = assess(judged_by, &prompts, &self.collective, (observer, "validation"), answer)?;
        let columns = columns(&assessed);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let metrics: Metrics = columns.iter().map(|(name, values)| (name.clone(), mean(values))).collect();
        for (name, values) in &columns {
            observer.distribution(step, name, values).map_err(Error::Observer)?;
        }
        self.show(&assessed, step, observer)?;
        // The reward comes first.
        let score = metrics.first().map_or(f64::NAN, |(_, reward)| *reward);
        Ok(Evaluation { metrics, score })
    }
}

/// The rewards under the name of their metric, and those of each part.
fn columns(assessed: &[Assessed]) -> Vec<(String, Vec<f64>)> {
    let Some(first) = assessed.first() else { return vec![] };
    let names = first.parts.iter().enumerate().map(|(i, (name, _))| match i {
        0 => "eval/reward".to_owned(),
        _ => format!("eval/reward/{name}"),
    });
    let mut columns: Vec<(String, Vec<f64>)> = names.map(|name| (name, vec![])).collect();
    for of in assessed {
        for ((_, column), (_, value)) in columns.iter_mut().zip(of.parts.iter()) {
            column.push(f64::from(value));
        }
    }
    columns
}
