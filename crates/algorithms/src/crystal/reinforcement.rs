//! Stage II: reinforcement of the statements by the model's own confidence in the answers they lead to, alternating
//! with answering on their strength.

use std::path::Path;

use ruminate_datasets::question::check_capacity;
use ruminate_datasets::{Compat, Prompts, Question, json};
use ruminate_models::{ActorCritic, Example, Generate, Policy, Sampling, ScoreChoices};
use ruminate_rewards::{EncodedQuestion, Normalization, Sample, SelfFeedback, Shape};
use serde::{Deserialize, Serialize};

use super::{ImitationConfig, QuestionEncoder};
use crate::ppo::{KlPenalty, Ppo, PpoConfig, PpoData, Prompt, RolloutConfig, Supervision};
use crate::{Collective, Error, Objective, Observer, Result, TrainerConfig};

/// Answer slots of a question in training and in validation.
const TRAIN_CAPACITY: usize = 8;
const EVAL_CAPACITY: usize = 16;

const QA: &str = "loss/qa";
const QKA: &str = "loss/qka";

/// Settings of Stage II; the defaults are those of the published t5-large run (8 devices times 8 rows).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReinforcementConfig {
    /// How choice scores become rewards.
    pub reward_shape: Shape,
    /// Factor on rewards; measured before training if neither it nor `bias` is given. With 0 alone every reward is 0, and nothing
    /// is measured.
    pub gain: Option<f64>,
    /// Added to rewards after the factor; needs `gain`.
    pub bias: Option<f64>,
    /// Batches of training questions, drawn from all tasks, from which gain and bias are measured; 0 takes them all.
    pub normalization_batches: usize,
    /// Weight of the loss of answering directly (QA) in answer steps.
    pub qa_coef: f64,
    /// Weight of the loss of answering with the model's own statement (QKA) in answer steps.
    pub qka_coef: f64,
    /// A network of its own for the values, in place of a head on the policy.
    pub separate_value_model: bool,
    /// The algorithm. Steps outside `rl_steps` are answer steps.
    pub ppo: PpoConfig,
    /// The loop around it.
    pub trainer: TrainerConfig,
}

impl Default for ReinforcementConfig {
    fn default() -> Self {
        Self {
            reward_shape: Shape::default(),
            gain: None,
            bias: None,
            normalization_batches: 0,
            qa_coef: 0.0,
            qka_coef: 1.0,
            separate_value_model: false,
            ppo: PpoConfig {
                rollout: RolloutConfig {
                    sampling: Sampling { temperature: 0.7, top_k: Some(50), ..Sampling::default() },
                    max_new_tokens: 32,
                    min_new_tokens: 2,
                    clean_up: true,
                    ..RolloutConfig::default()
                },
                kl: KlPenalty::Fixed { coef: 0.2 },
                whiten_rewards: true,
                value_coef: 1.0,
                rl_steps: 500,
                cycle_steps: 1000,
                best_by: "acc".into(),
                ..PpoConfig::default()
            },
            trainer: TrainerConfig {
                // 2 000 000 episodes of 64, counted inclusively.
                steps: 31_251,
                lr: 2e-5,
                log_every: 1,
                eval_every: 0,
                ..ImitationConfig::trainer()
            },
        }
    }
}

impl ReinforcementConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn validate(&self) -> Result<()> {
        for (key, coef) in [("qa_coef", self.qa_coef), ("qka_coef", self.qka_coef)] {
            if !(coef >= 0.0 && coef.is_finite()) {
                return Err(Error::config(key, format!("is {coef}, but must not be negative")));
            }
        }
        if self.ppo.rl_steps < self.ppo.cycle_steps && self.qa_coef == 0.0 && self.qka_coef == 0.0 {
            return Err(Error::config(
                "qka_coef",
                "is 0, and so is qa_coef: answer steps would train nothing; set ppo.rl_steps to ppo.cycle_steps to have \
                 none",
            ));
        }
        match (self.gain, self.bias) {
            // The summand that is measured is a multiple of the factor.
            (Some(0.0), None) | (None, None) => {}
            (Some(_), None) | (None, Some(_)) => {
                return Err(Error::config("gain", "and bias belong together; give both or neither"));
            }
            (Some(gain), Some(bias)) if !(gain.is_finite() && bias.is_finite()) => {
                return Err(Error::config("gain", format!("is {gain} and bias {bias}; both must be finite")));
            }
            (Some(_), Some(_)) => {}
        }
        let (best_by, parts) = (self.ppo.best_by.as_str(), SelfFeedback::PARTS);
        if !["", "reward"].contains(&best_by) && !parts.contains(&best_by) {
            let reason = format!("is `{best_by}`, but must be \"reward\" or one of {parts:?}");
            return Err(Error::config("ppo.best_by", reason));
        }
        self.ppo.validate()?;
        self.trainer.validate()
    }
}

/// Questions of Stage II.
#[derive(Debug, Clone, Default)]
pub struct ReinforcementData {
    /// For reinforced steps.
    pub train: Vec<Question>,
    /// For answer steps; `None` takes them from `train` too.
    pub answers: Option<Vec<Question>>,
    /// For validation.
    pub dev: Vec<Question>,
}

/// Stage II of a policy.
pub type Reinforcement<P> = Ppo<P, EncodedQuestion, SelfFeedback>;

/// Copies of the model of Stage I, from which Stage II starts.
#[derive(Debug)]
pub struct ReinforcementModels<P> {
    /// The model that is trained.
    pub policy: P,
    /// The model that the policy is held at.
    pub reference: P,
    /// The model behind the value head, where [`separate_value_model`](ReinforcementConfig::separate_value_model) asks for one.
    pub value: Option<P>,
}

/// Sets Stage II up.
///
/// # Errors
/// When a setting is wrong, there is no complete batch, or a question has too many choices.
pub fn reinforcement<P>(
    config: &ReinforcementConfig,
    compat: Compat,
    encoder: &QuestionEncoder,
    models: ReinforcementModels<P>,
    data: &ReinforcementData,
) -> Result<Reinforcement<P>>
where
    P: Policy + Generate + ScoreChoices,
{
    config.validate()?;
    let answers = data.answers.iter().flatten();
    check_capacity(data.train.iter().chain(answers.clone()), TRAIN_CAPACITY)?;
    check_capacity(&data.dev, EVAL_CAPACITY)?;
    let all = data.train.iter().chain(answers).chain(&data.dev);
    encoder.check_letters(all.map(|question| question.choices.len()).max().unwrap_or(0))?;
    let model = match (config.separate_value_model, models.value) {
        (true, Some(network)) => ActorCritic::separate(models.policy, network, config.ppo.seed)?,
        (true, None) => {
            return Err(Error::config(
                "separate_value_model",
                "is set, but no model was given for the values",
            ));
        }
        (false, _) => ActorCritic::shared(models.policy, config.ppo.seed)?,
    };
    let prompts =
        |questions: &[Question]| questions.iter().map(|q| prompt(encoder, q)).collect::<Result<_>>();
    let data = PpoData {
        train: prompts(&data.train)?,
        supervised: data.answers.as_deref().map(prompts).transpose()?,
        held_out: prompts(&data.dev)?,
    };
    let mut ppo = config.ppo.clone();
    ppo.rollout.max_new_tokens = ppo.rollout.max_new_tokens.min(encoder.lengths().max_knowledge_len);
    let reward = SelfFeedback::new(encoder.prompts.clone(), config.reward_shape, ppo.rollout.batch_size);
    let answering =
        Answering { prompts: encoder.prompts.clone(), qa_coef: config.qa_coef, qka_coef: config.qka_coef };
    let ppo = Ppo::new(ppo, model, models.reference, encoder.tokenizer().clone(), reward, data)?;
    Ok(ppo.compat(compat).supervised_by(answering))
}

fn prompt(encoder: &QuestionEncoder, question: &Question) -> Result<Prompt<EncodedQuestion>> {
    let ids = encoder.question(&question.question)?;
    Ok(Prompt {
        text: question.question.clone(),
        task: question.task.clone(),
        item: EncodedQuestion {
            choices: encoder.first_tokens(&question.choices)?,
            gold: question.answer_ix,
            answer: encoder.label(&question.answer)?,
            ids: ids.clone(),
        },
        ids: encoder.prompts.qk(&ids),
    })
}

/// Scale of the rewards: as configured, or as `folder/reward_normalization.json` has it, or measured and written there,
/// with the rewards of each task beside it. Where no step is reinforced, they stay as they are. Processes that train together measure
/// together.
///
/// # Errors
/// When the model fails, the rewards have no spread, or the folder is not writable.
pub fn reward_normalization<P>(
    config: &ReinforcementConfig,
    stage: &Reinforcement<P>,
    folder: &Path,
    collective: &Collective,
    observer: &mut dyn Observer,
) -> Result<Normalization>
where
    P: Policy + Generate + ScoreChoices,
{
    let path = folder.join("reward_normalization.json");
    // Rank 0 may write the file while others look for it.
    let stored = || if path.exists() { Ok::<_, Error>(Some(Normalization::load(&path)?)) } else { Ok(None) };
    let map = match (config.gain, config.bias) {
        (Some(gain), Some(bias)) => Normalization { gain, bias },
        (Some(gain), None) => Normalization { gain, bias: 0.0 },
        // Nothing is rewarded.
        _ if config.ppo.rl_steps == 0 => Normalization::default(),
        _ => {
            if let Some(map) = collective.first(stored)? {
                return Ok(map);
            }
            let batches = (config.normalization_batches > 0).then_some(config.normalization_batches);
            let measured = stage.measure_rewards(batches, collective, observer)?;
            if collective.is_main_process() {
                json::write(&folder.join("reward_statistics.json"), &measured.by_task)?;
            }
            measured.normalization
        }
    };
    if collective.is_main_process() {
        map.save(&path)?;
    }
    Ok(map)
}

/// Trains answers on the statements that the policy has just written.
struct Answering {
    prompts: Prompts,
    qa_coef: f64,
    qka_coef: f64,
}

impl Supervision<EncodedQuestion> for Answering {
    fn objectives(&self, samples: &[Sample<'_, EncodedQuestion>]) -> Result<Vec<Objective>> {
        let examples = |prompt: &dyn Fn(&Sample<'_, EncodedQuestion>) -> Vec<_>| -> Vec<Example> {
            samples.iter().map(|s| Example { prompt: prompt(s), target: s.item.answer.clone() }).collect()
        };
        let mut objectives = vec![];
        if self.qa_coef > 0.0 {
            let examples = examples(&|s| self.prompts.qa(&s.item.ids));
            objectives.push(Objective { name: QA, weight: self.qa_coef, examples });
        }
        if self.qka_coef > 0.0 {
            let examples = examples(&|s| self.prompts.qka(&s.item.ids, s.response));
            objectives.push(Objective { name: QKA, weight: self.qka_coef, examples });
        }
        Ok(objectives)
    }
}
