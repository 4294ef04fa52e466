//! What algorithms need of a model.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::{Labels, Parameters, Result, TokenId};
use ruminate_torch::linear;

/// A prompt and the tokens that are to follow it. Targets may hold [`IGNORED`](crate::IGNORED) at positions without
/// loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// What the model is given, special tokens included.
    pub prompt: Vec<TokenId>,
    /// What it should answer, end token included.
    pub target: Vec<TokenId>,
}

/// What [`Policy::score`] computes besides log-probabilities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScoreOptions {
    /// The entropy of the distribution at each target position.
    pub entropy: bool,
    /// The state from which each target token is predicted.
    pub states: bool,
}

/// Scores of a batch of targets, padded on the right to the longest; all `[batch, time]` `f32` unless said
/// otherwise.
#[derive(Debug)]
pub struct TokenScores {
    /// Natural logarithm of each target token's probability; 0 where there is no loss.
    pub log_probs: Tensor,
    /// Entropy in nats; 0 where there is no loss.
    pub entropy: Option<Tensor>,
    /// States after the final norm `[batch, time, d_model]`.
    pub states: Option<Tensor>,
    /// The targets: ids, mask and count.
    pub labels: Labels,
    /// Real tokens that went through the model, prompts and targets together.
    pub tokens: u64,
}

/// The loss of supervised training before its division, over all targets of a batch.
#[derive(Debug)]
pub struct CrossEntropy {
    /// Sum of the negative log-probabilities in nats, a scalar with gradients, `f32`.
    pub sum: Tensor,
    /// Positions that were summed.
    pub count: u64,
    /// Real tokens that went through the model, prompts and targets together.
    pub tokens: u64,
}

/// What a model's logits at the target positions are like, without gradients; all `[batch, time]` `f32`, 0 where there is no
/// loss.
#[derive(Debug)]
pub struct LogitStatistics {
    /// Mean logit over the vocabulary.
    pub mean_logit: Tensor,
    /// Entropy of the distribution in nats.
    pub entropy: Tensor,
    /// Logarithm of the sum of the squared probabilities.
    pub collision: Tensor,
    /// 1 where the target has the largest logit.
    pub correct: Tensor,
}

impl LogitStatistics {
    /// Computes the statistics from states of [`ScoreOptions::states`], under a policy's output matrix.
    ///
    /// # Errors
    /// When the policy has no output matrix, or shapes do not fit.
    pub fn of(policy: &dyn Policy, states: &Tensor, labels: &Labels) -> Result<Self> {
        let (weight, scale) = policy.output_projection().ok_or_else(|| {
            crate::Error::invalid("logit statistics", "the policy has no output matrix (output_projection)")
        })?;
        tch::no_grad(|| {
            let states = states.f_flatten(0, 1)?.f_index_select(0, &labels.positions)?;
            let mut columns: [Vec<Tensor>; 4] = Default::default();
            // Logits of some rows at a time, as for the log-probabilities.
            let rows = ((10 << 20) / weight.size()[0].max(1)).max(1);
            for (states, targets) in states.f_split(rows, 0)?.iter().zip(labels.targets.f_split(rows, 0)?) {
                let logits = linear(&states.f_mul_scalar(scale)?, weight)?.f_to_kind(Kind::Float)?;
                let total = logits.f_logsumexp(-1i64, true)?;
                let log_probs = logits.f_sub(&total)?;
                columns[0].push(logits.f_mean_dim(-1i64, false, None::<Kind>)?);
                let expected = log_probs.f_exp()?.f_mul(&log_probs)?;
                columns[1].push(expected.f_sum_dim_intlist(-1i64, false, None::<Kind>)?.f_neg()?);
                columns[2].push(log_probs.f_mul_scalar(2.0)?.f_logsumexp(-1i64, false)?);
                columns[3].push(logits.f_argmax(-1, false)?.f_eq_tensor(&targets)?.f_to_kind(Kind::Float)?);
            }
            let whole = |rows: &[Tensor]| labels.scatter(&Tensor::f_cat(rows, 0)?);
            Ok(LogitStatistics {
                mean_logit: whole(&columns[0])?,
                entropy: whole(&columns[1])?,
                collision: whole(&columns[2])?,
                correct: whole(&columns[3])?,
            })
        })
    }
}

/// A model that gives probabilities to target tokens: all that losses, rewards and references need.
///
/// A [`Model`](crate::Model) with an encoder reads the prompt there; one without reads prompt and target in one row. Algorithms are
/// generic over this trait and never see the difference.
///
/// # Example
/// A model of one's own; this one has learnt how frequent tokens are, and looks at no prompt:
/// ```
/// use ruminate_models::checkpoint::{WEIGHTS, write_tensors};
/// use ruminate_models::{Example, Labels, Parameters, Policy, Result, TokenId, TokenScores, ScoreOptions};
/// use tch::{Device, Kind, Tensor};
///
/// struct Frequencies {
///     logits: Tensor,
///     parameters: Parameters,
/// }
///
/// impl Frequencies {
///     fn new(vocabulary: i64) -> Self {
///         let logits = Tensor::zeros([vocabulary], (Kind::Float, Device::Cpu)).set_requires_grad(true);
///         let parameters = Parameters::new(vec![("logits".into(), logits.shallow_clone())]);
///         Self { logits, parameters }
///     }
/// }
///
/// impl Policy for Frequencies {
///     fn parameters(&self) -> &Parameters {
///         &self.parameters
///     }
///     fn device(&self) -> Device {
///         Device::Cpu
///     }
///     fn hidden_size(&self) -> i64 {
///         1
///     }
///     fn pad_token_id(&self) -> TokenId {
///         0
///     }
///     // There is no dropout.
///     fn set_training(&mut self, _: bool) {}
///
///     fn score(&self, examples: &[Example], _: ScoreOptions) -> Result<TokenScores> {
///         let targets: Vec<_> = examples.iter().map(|e| e.target.as_slice()).collect();
///         let labels = Labels::new(&targets, Device::Cpu)?;
///         let ids = labels.ids.f_clamp_min(0)?.f_view_([-1])?;
///         let all = self.logits.f_log_softmax(0, Kind::Float)?;
///         let log_probs = all.f_index_select(0, &ids)?.f_view_(labels.ids.size())?.f_mul(&labels.mask)?;
///         let tokens = labels.count;
///         Ok(TokenScores { log_probs, entropy: None, states: None, labels, tokens })
///     }
///
///     fn save(&self, folder: &std::path::Path) -> Result<()> {
///         write_tensors(&folder.join(WEIGHTS), self.parameters.iter())
///     }
/// }
///
/// let policy = Frequencies::new(4);
/// let example = Example { prompt: vec![1], target: vec![2, 3] };
/// let scores = policy.score(&[example], ScoreOptions::default())?;
/// assert!((scores.log_probs.double_value(&[0, 1]) - 0.25f64.ln()).abs() < 1e-6);
/// scores.log_probs.sum(Kind::Float).neg().backward();
/// assert!(policy.logits.grad().double_value(&[2]) < 0.0);
/// # Ok::<(), ruminate_models::Error>(())
/// ```
pub trait Policy {
    /// The trainable parameters.
    fn parameters(&self) -> &Parameters;

    /// Where the parameters lie.
    fn device(&self) -> Device;

    /// Width of the states that [`ScoreOptions::states`] asks for.
    fn hidden_size(&self) -> i64;

    /// The token that rows are filled up with. Of a model that has none of its own, it is an end token.
    fn pad_token_id(&self) -> TokenId;

    /// The output matrix `[vocab, hidden]`, where the model has one, and the factor on the states before it: the logits are `factor *
    /// states` times the transposed matrix.
    fn output_projection(&self) -> Option<(&Tensor, f64)> {
        None
    }

    /// The tokens that end a response: several for chat models, none for a model that has no end.
    fn end_token_ids(&self) -> &[TokenId] {
        &[]
    }

    /// The padding token, unless texts end with it: what may be forbidden in writing and left out of losses.
    fn filler(&self) -> Option<TokenId> {
        Some(self.pad_token_id()).filter(|pad| !self.end_token_ids().contains(pad))
    }

    /// Training mode switches dropout on.
    fn set_training(&mut self, training: bool);

    /// Whether training mode changes what the model computes. Where it does not, a pass that scored can be learnt from, too.
    fn has_dropout(&self) -> bool {
        true
    }

    /// Switches activation checkpointing on or off: activations are made again in the backward pass instead of kept.
    ///
    /// # Errors
    /// When a model that does not support it is asked to.
    fn set_gradient_checkpointing(&mut self, on: bool) -> Result<()> {
        if on {
            return Err(crate::Error::invalid("gradient_checkpointing", "this model does not support it"));
        }
        Ok(())
    }

    /// Log-probabilities of the targets given their prompts. Gradients flow unless the caller switched them off.
    /// The scores of a row do not depend on the other rows.
    ///
    /// # Errors
    /// When there is no example, a prompt is empty, or an id is outside the vocabulary.
    fn score(&self, examples: &[Example], options: ScoreOptions) -> Result<TokenScores>;

    /// The sum of what [`score`](Self::score) gives, negated. Models may work out its gradients together with it, which is cheaper; they
    /// can be taken once then, and that of the output matrix is in memory until they are.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    fn cross_entropy(&self, examples: &[Example]) -> Result<CrossEntropy> {
        let TokenScores { log_probs, labels, tokens, .. } = self.score(examples, ScoreOptions::default())?;
        Ok(CrossEntropy { sum: log_probs.f_sum(Kind::Float)?.f_neg()?, count: labels.count, tokens })
    }

    /// As [`score`](Self::score), for several targets of each prompt: `targets` holds equally many for each, those of the first
    /// prompt first, and the scores have their order. A model with an encoder runs it once per prompt.
    ///
    /// # Errors
    /// As [`score`](Self::score), and when the targets cannot be shared evenly.
    fn score_alternatives(
        &self,
        prompts: &[&[TokenId]],
        targets: &[&[TokenId]],
        options: ScoreOptions,
    ) -> Result<TokenScores> {
        let each = targets_per_prompt(prompts.len(), targets.len())?;
        let example = |(i, target): (usize, &&[TokenId])| Example {
            prompt: prompts[i / each].to_vec(),
            target: target.to_vec(),
        };
        self.score(&targets.iter().enumerate().map(example).collect::<Vec<_>>(), options)
    }

    /// The states of [`ScoreOptions::states`] alone, without the work of scoring.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    fn states(&self, examples: &[Example]) -> Result<Option<Tensor>> {
        Ok(self.score(examples, ScoreOptions { states: true, ..ScoreOptions::default() })?.states)
    }

    /// Writes configuration and weights into an existing folder, in the Hugging Face layout.
    ///
    /// # Errors
    /// When the folder is not writable or the disk is full.
    fn save(&self, folder: &Path) -> Result<()>;

    /// Reads back the weights that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// When the folder cannot be read or belongs to another architecture; no value of the model is changed then.
    fn restore(&self, folder: &Path) -> Result<()> {
        self.parameters().restore(folder)
    }
}

/// How many targets each prompt has. That there is nothing at all is found out by whoever makes a batch of it.
pub(crate) fn targets_per_prompt(prompts: usize, targets: usize) -> Result<usize> {
    if prompts == targets {
        return Ok(1);
    }
    if prompts > 0 && targets > 0 && targets.is_multiple_of(prompts) {
        return Ok(targets / prompts);
    }
    let reason = format!("{targets} cannot be shared evenly by {prompts} prompts");
    Err(crate::Error::invalid("targets", reason))
}

/// Log-probabilities (and entropies) of the labels, `[batch, time]`, under the output matrix `[vocab, hidden]` and the factor
/// on the states `[batch, time, hidden]`. Only positions with a label are projected to the vocabulary, some at a time.
pub(crate) fn label_scores(
    states: &Tensor,
    (weight, scale): (&Tensor, f64),
    labels: &Labels,
    entropy: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let states = states.f_flatten(0, 1)?.f_index_select(0, &labels.positions)?;
    let scores = ruminate_torch::log_probs(&states, weight, &labels.targets, scale, entropy)?;
    let entropy = scores.entropy.map(|entropy| labels.scatter(&entropy)).transpose()?;
    Ok((labels.scatter(&scores.log_probs)?, entropy))
}

/// Real tokens of prompts and targets.
pub(crate) fn tokens_of(prompts: &[&[TokenId]], labels: &Labels) -> u64 {
    prompts.iter().map(|prompt| prompt.len() as u64).sum::<u64>() + labels.count
}

/// [`Policy::cross_entropy`] of what [`label_scores`] scores.
pub(crate) fn label_cross_entropy(
    states: &Tensor,
    (weight, scale): (&Tensor, f64),
    labels: &Labels,
) -> Result<Tensor> {
    let states = states.f_flatten(0, 1)?.f_index_select(0, &labels.positions)?;
    Ok(ruminate_torch::cross_entropy(&states, weight, &labels.targets, scale)?)
}

/// Refuses targets with ids outside the vocabulary; [`IGNORED`](crate::IGNORED) is none.
pub(crate) fn check_targets(vocab: i64, targets: &[&[TokenId]]) -> Result<()> {
    for (i, target) in targets.iter().enumerate() {
        if let Some(id) = target.iter().find(|&&id| id != crate::IGNORED && (id < 0 || id >= vocab)) {
            let reason = format!("row {i} holds id {id}, outside the vocabulary of {vocab}");
            return Err(crate::Error::invalid("target", reason));
        }
    }
    Ok(())
}
