//! PPO with Crystal's settings: updates on fixed responses, and whole steps.

use anyhow::Result;
use ruminate_algorithms::ppo::{Estimates, Estimation, Grid, Mask, policy_loss, token_rewards, value_loss};
use ruminate_datasets::Compat;
use ruminate_models::{ActorCritic, Example, Policy, ScoreChoices, ScoreOptions, TokenId, TokenScores};
use ruminate_rewards::{RewardError, Shape, first_token_scores};
use ruminate_torch::optim::{Adam, Optimizer, clip_grad_norm};
use tch::{Kind, Tensor};

use crate::generation::{crystal, seeds};
use crate::models::Model;
use crate::training::{ADAM, LR};
use crate::{Setting, Workload};

const COMPAT: Compat = Compat::Corrected;
const KL_COEF: f64 = 0.2;
const CLIP: f64 = 0.2;

/// Scoring of given responses, estimates, and two passes over all of them.
pub(crate) fn update<M: Model>(setting: &Setting) -> Result<Workload> {
    let rows = setting.rows(8);
    let examples = setting.examples(rows);
    let rewards: Vec<f64> = (0..rows).map(|row| (row as f64).sin()).collect();
    let mut learner = Learner::<M>::new(setting)?;
    let tokens = rows * (setting.source + setting.target);
    let sizes = (rows, tokens, learner.model.parameters().count());
    // As the definition counts: policy and reference, and two passes with their gradients. Ours needs one of these eight less.
    let flop = 8.0 * setting.pass(rows, setting.source, setting.target);
    let workload = Workload::in_phases(setting, sizes, move |phases| {
        let old = phases.time("scoring", || learner.old(&examples, &rewards))?;
        phases.time("update", || learner.learn(&examples, old, 2))
    });
    Ok(workload.of_products(flop))
}

/// A whole step: responses are drawn, the policy judges what they do for its own answers, and four passes.
pub(crate) fn step<M: Model>(setting: &Setting) -> Result<Workload> {
    let rows = setting.rows(8);
    let (prompts, choices) = (setting.ids(rows, setting.source, 1), setting.ids(rows, 4, 2));
    let (generation, seeds) = (crystal(setting), seeds(rows));
    let mut learner = Learner::<M>::new(setting)?;
    let tokens = rows * (setting.source + setting.response);
    let sizes = (rows, tokens, learner.model.parameters().count());
    let forward = setting.clone();
    Ok(Workload::in_phases(setting, sizes, move |phases| {
        let written = phases.time("rollout", || {
            forward.forward(|| Ok(learner.model.actor().generate(&prompts, &generation, &seeds)?))
        })?;
        let responses = written.into_iter().flatten().map(|generated| generated.ids);
        let examples: Vec<Example> = prompts
            .iter()
            .zip(responses)
            .map(|(prompt, target)| Example { prompt: prompt.clone(), target })
            .collect();
        let rewards = phases
            .time("reward", || forward.forward(|| rewards(learner.model.actor(), &examples, &choices)))?;
        let old = phases.time("scoring", || learner.old(&examples, &rewards))?;
        phases.time("update", || learner.learn(&examples, old, 4))
    }))
}

/// What the responses do for the first choice of each question, as `SelfFeedback` counts it.
fn rewards(policy: &impl ScoreChoices, examples: &[Example], choices: &[Vec<TokenId>]) -> Result<Vec<f64>> {
    let asked = examples.iter().zip(choices).flat_map(|(example, choices)| {
        [example.prompt.clone(), [&example.prompt[..], &example.target].concat()]
            .map(|prompt| (prompt, choices.clone()))
    });
    let scores = first_token_scores(policy, asked, 64, |_, _| Ok::<_, RewardError>(()))?;
    scores.chunks(2).map(|pair| Ok(Shape::default().reward(&pair[1], &pair[0], 0)?)).collect()
}

/// A policy with its value head, their optimizer, and the policy that is not to be left.
struct Learner<M> {
    setting: Setting,
    model: ActorCritic<M>,
    reference: M,
    adam: Adam,
}

/// What the passes over responses learn from, `[rows, time]`.
struct Old {
    /// The pass that made it, with its graph.
    pass: (TokenScores, Tensor),
    log_probs: Tensor,
    values: Tensor,
    advantages: Tensor,
    returns: Tensor,
}

impl<M: Model> Learner<M> {
    fn new(setting: &Setting) -> Result<Self> {
        let model = ActorCritic::shared(setting.build()?, 1)?;
        let adam = Adam::new(model.parameters().named(), ADAM)?;
        Ok(Self { setting: setting.clone(), model, reference: setting.build()?, adam })
    }

    /// All responses have the same length.
    fn old(&self, examples: &[Example], rewards: &[f64]) -> Result<Old> {
        let score = || Ok(self.reference.score(examples, ScoreOptions::default())?.log_probs);
        let reference = tch::no_grad(|| self.setting.forward(score))?;
        let pass = self
            .setting
            .forward(|| Ok(self.model.score_with_values(examples, ScoreOptions::default())?))?;
        let (log_probs, values) = (pass.0.log_probs.f_detach()?, pass.1.f_detach()?);
        let grid = |tensor: &Tensor| -> anyhow::Result<Grid> {
            let (rows, time) = tensor.size2()?;
            let flat = Vec::try_from(tensor.f_to_kind(Kind::Double)?.f_view([-1])?)?;
            Ok(Grid::from_shape_vec((rows as usize, time as usize), flat)?)
        };
        let kl = grid(&log_probs.f_sub(&reference)?)?;
        let mask = Mask::from_elem(kl.dim(), true);
        let rewards = token_rewards(COMPAT, &kl, rewards, &mask, KL_COEF)?;
        let how = Estimation { compat: COMPAT, whiten_rewards: false, gamma: 1.0, lambda: 0.95 };
        let estimates = Estimates::new(how, &rewards, &grid(&values)?, &mask, Ok)?;
        let tensor = |grid: Grid| Tensor::try_from(grid)?.f_to(self.setting.device)?.f_to_kind(Kind::Float);
        let (advantages, returns) = (tensor(estimates.whitened_advantages)?, tensor(estimates.returns)?);
        Ok(Old { pass, log_probs, values, advantages, returns })
    }

    /// Passes over all responses at once. Where there is no dropout, the first is the one that has scored them, as in
    /// [`Ppo`](ruminate_algorithms::ppo::Ppo).
    fn learn(&mut self, examples: &[Example], old: Old, passes: usize) -> Result<()> {
        let mut pass = Some(old.pass);
        for _ in 0..passes {
            let loss = || {
                let (scores, values) = match pass.take() {
                    Some(pass) => pass,
                    None => self.model.score_with_values(examples, ScoreOptions::default())?,
                };
                let mask = &scores.labels.mask;
                let policy = policy_loss(&scores.log_probs, &old.log_probs, &old.advantages, mask, CLIP)?;
                let value = value_loss(&values, &old.values, &old.returns, mask, CLIP)?;
                Ok(policy.f_add(&value)?.f_div_scalar(scores.labels.count as f64)?)
            };
            self.setting.forward(loss)?.f_backward()?;
            let _ = clip_grad_norm(self.adam.parameters(), 1.0)?;
            self.adam.step(LR)?;
            self.adam.zero_grad()?;
        }
        Ok(())
    }
}
