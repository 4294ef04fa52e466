//! What responses are worth that nothing is trained on. Processes that work together divide the prompts.

use std::collections::BTreeMap;

use ruminate_models::{Generate, Policy};
use ruminate_rewards::{Normalization, Reward, Rewarded, Statistics, check_rewards};
use serde::{Deserialize, Serialize};

use super::records::mean;
use super::{Ppo, Prompt, Response};
use crate::trainer::Evaluation;
use crate::{Collective, Error, Metrics, Observer, Result};

/// A response, its reward (under the name `reward`) and the parts of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Assessed {
    pub(crate) response: Response,
    pub(crate) parts: Parts,
}

impl Assessed {
    /// The record of the response to `prompt` before step `step`.
    pub(crate) fn shown<Q>(&self, step: u64, prompt: &Prompt<Q>) -> serde_json::Value {
        let mut sample = serde_json::json!({
            "step": step, "task": prompt.task, "prompt": prompt.text, "response": self.response.text,
        });
        self.parts.iter().for_each(|(name, value)| sample[name] = value.into());
        sample
    }
}

/// One reward for each response, checked.
pub(super) fn judge<P, Q>(
    policy: &P,
    reward: &dyn Reward<P, Q>,
    prompts: &[&Prompt<Q>],
    responses: &[Response],
) -> Result<Vec<Rewarded>> {
    let samples: Vec<_> = responses.iter().zip(prompts).map(|(r, p)| r.sample(p)).collect();
    let rewards = tch::no_grad(|| reward.rewards(policy, &samples))?;
    check_rewards(&samples, &rewards)?;
    Ok(rewards)
}

/// Writes a response to each prompt with `respond`, and judges it. Processes divide the prompts: `respond` gets those of this process, with
/// their numbers among all.
pub(crate) fn assess<P, Q>(
    (policy, reward): (&P, &dyn Reward<P, Q>),
    prompts: &[&Prompt<Q>],
    collective: &Collective,
    (observer, phase): (&mut dyn Observer, &str),
    respond: impl FnOnce(&[&Prompt<Q>], &[usize], &mut dyn FnMut(u64) -> Result<()>) -> Result<Vec<Response>>,
) -> Result<Vec<Assessed>> {
    collective.map(prompts.len(), |mine| {
        let prompts: Vec<&Prompt<Q>> = mine.iter().map(|&i| prompts[i]).collect();
        let total = prompts.len() as u64;
        let mut progress = |done| observer.progress(phase, done, total).map_err(Error::Observer);
        let responses = respond(&prompts, mine, &mut progress)?;
        let rewards = judge(policy, reward, &prompts, &responses)?;
        let assessed = responses.into_iter().zip(&rewards);
        Ok(assessed.map(|(response, of)| Assessed { response, parts: of.into() }).collect())
    })
}

/// Numbers with their names. They travel as bits, because no number survives JSON that is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Parts(Vec<(String, u32)>);

impl From<&Rewarded> for Parts {
    fn from(of: &Rewarded) -> Self {
        let parts = of.parts.iter().map(|(name, value)| (name.to_string(), value.to_bits()));
        Self(std::iter::once(("reward".into(), of.value.to_bits())).chain(parts).collect())
    }
}

impl Parts {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, f32)> {
        self.0.iter().map(|(name, bits)| (name.as_str(), f32::from_bits(*bits)))
    }

    fn get(&self, name: &str) -> Option<f64> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| f64::from(value))
    }
}

/// Rewards before training.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredRewards {
    /// The scale that gives them mean 0 and spread 1.
    pub normalization: Normalization,
    /// Their statistics by task.
    pub by_task: BTreeMap<String, Statistics>,
}

impl<P, Q, R> Ppo<P, Q, R>
where
    P: Policy + Generate,
    R: Reward<P, Q>,
{
    /// Rewards of one sampled response to each training prompt, or to those of `max_batches` batches in the order of training,
    /// which is shuffled: the scale that gives them mean 0 and spread 1, and their statistics by task. Nothing is trained.
    ///
    /// # Errors
    /// When the model or the reward fails, or the rewards have no spread.
    pub fn measure_rewards(
        &self,
        max_batches: Option<usize>,
        collective: &Collective,
        observer: &mut dyn Observer,
    ) -> Result<MeasuredRewards> {
        let train = &self.data.train;
        let prompts: Vec<&Prompt<Q>> = match max_batches {
            // Files and tasks come one after another, so their head is no sample of them.
            Some(batches) => {
                let count = batches.saturating_mul(self.config.batch_size);
                self.order().indices(0).into_iter().take(count).map(|i| &train[i]).collect()
            }
            None => train.iter().collect(),
        };
        // A step that never comes, so that no rollout has these seeds.
        let assessed = self.assess(&prompts, false, u64::MAX, collective, (observer, "measuring rewards"))?;
        let values: Vec<f64> = assessed.iter().filter_map(|of| of.parts.get("reward")).collect();
        let by_task =
            Statistics::by_task(prompts.iter().map(|p| p.task.as_str()).zip(values.iter().copied()));
        Ok(MeasuredRewards { normalization: Normalization::fit(&values)?, by_task })
    }

    /// Writes a response to every prompt, and judges it.
    fn assess(
        &self,
        prompts: &[&Prompt<Q>],
        greedy: bool,
        step: u64,
        collective: &Collective,
        (observer, phase): (&mut dyn Observer, &str),
    ) -> Result<Vec<Assessed>> {
        let judged_by = (self.model.actor(), &self.reward as &dyn Reward<P, Q>);
        assess(judged_by, prompts, collective, (observer, phase), |prompts, numbers, progress| {
            self.respond(prompts, |i| numbers[i], greedy, step, progress)
        })
    }

    pub(super) fn validate(&self, step: u64, observer: &mut dyn Observer) -> Result<Evaluation> {
        let prompts: Vec<&Prompt<Q>> = self.data.held_out.iter().collect();
        let assessed = self.assess(&prompts, true, step, &self.collective, (observer, "validation"))?;
        let tasks: Vec<&str> = prompts.iter().map(|prompt| prompt.task.as_str()).collect();
        let parts: Vec<&Parts> = assessed.iter().map(|of| &of.parts).collect();
        let evaluation = summary(&self.config.best_by, &tasks, &parts)?;
        for (name, values) in distributions(&self.config.best_by, &tasks, &parts) {
            observer.distribution(step, &name, &values).map_err(Error::Observer)?;
        }
        // The first prompt of every batch, as the reference shows them.
        let shown = (0..prompts.len()).step_by(self.config.rollout.batch_size);
        let samples: Vec<_> = shown.map(|i| assessed[i].shown(step, prompts[i])).collect();
        observer.samples(step, &samples).map_err(Error::Observer)?;
        Ok(evaluation)
    }
}

/// Averages of rewards and their parts over prompts and over tasks. The main part, `main` or else the reward, is
/// also shown by task and gives the score; parts whose names begin with its name share its prefix in the records.
///
/// # Errors
/// When there is no reward, or none has the main part.
pub fn summarize(main: &str, tasks: &[&str], rewards: &[Rewarded]) -> Result<Evaluation> {
    let parts: Vec<Parts> = rewards.iter().map(Parts::from).collect();
    summary(main, tasks, &parts.iter().collect::<Vec<_>>())
}

/// The values of the main part behind its means in the [`summary`].
fn distributions(main: &str, tasks: &[&str], rewards: &[&Parts]) -> BTreeMap<String, Vec<f64>> {
    let main = if main.is_empty() { "reward" } else { main };
    let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (task, parts) in tasks.iter().zip(rewards) {
        let Some(value) = parts.get(main) else { continue };
        values.entry(format!("eval/{main}_weighted")).or_default().push(value);
        if !task.is_empty() {
            values.entry(format!("eval/{main}/{task}")).or_default().push(value);
        }
    }
    values
}

fn summary(main: &str, tasks: &[&str], rewards: &[&Parts]) -> Result<Evaluation> {
    let main = if main.is_empty() { "reward" } else { main };
    let names: Vec<&str> =
        rewards.first().map_or(vec!["reward"], |of| of.iter().map(|(name, _)| name).collect());
    if !names.contains(&main) {
        let reason = format!("is `{main}`, but the reward's parts are {names:?}");
        return Err(Error::config("best_by", reason));
    }
    let (mut metrics, mut score): (Metrics, f64) = (vec![], f64::NAN);
    for name in names {
        let values: Vec<f64> = rewards.iter().filter_map(|of| of.get(name)).collect();
        let by_task = Statistics::by_task(tasks.iter().copied().zip(values.iter().copied()));
        let unweighted = mean(by_task.values().map(|task| task.mean));
        let (stem, rest) = match name.strip_prefix(main) {
            Some(rest) => (main, rest),
            None => (name, ""),
        };
        if name == main {
            score = unweighted;
            metrics.push((format!("eval/{main}_weighted"), mean(values.iter().copied())));
        }
        metrics.push((format!("eval/{stem}_unweighted{rest}"), unweighted));
        if name == main {
            let tasks = by_task.iter().filter(|(task, _)| !task.is_empty());
            metrics.extend(tasks.map(|(task, of)| (format!("eval/{main}/{task}"), of.mean)));
        }
    }
    Ok(Evaluation { metrics, score })
}
