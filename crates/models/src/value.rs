//! Value estimates for reinforcement learning: a head on the policy, or a network of its own.

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{read_tensors, write_tensors};
use crate::{CrossEntropy, Error, Example, Parameters, Policy, Result, ScoreOptions, TokenId, TokenScores};

/// The file of the parameters that predict values, beside the policy's weights.
pub const VALUE_WEIGHTS: &str = "value.safetensors";

/// An affine map from states `[..., hidden]` to values `[...]`.
#[derive(Debug)]
struct ValueHead {
    /// `[1, hidden]`.
    weight: Tensor,
    /// `[1]`.
    bias: Tensor,
    /// Factor on the states.
    scale: f64,
}

impl ValueHead {
    /// Drawn uniformly within `1 / sqrt(hidden)`, as PyTorch's linear layers are.
    fn new(policy: &dyn Policy, scale: f64, seed: u64) -> Result<Self> {
        let hidden = policy.hidden_size();
        let bound = (hidden as f64).powf(-0.5);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let drawn: Vec<f32> =
            (0..=hidden).map(|_| ((2.0 * rng.random::<f64>() - 1.0) * bound) as f32).collect();
        let drawn = Tensor::f_from_slice(&drawn)?.f_to_device(policy.device())?;
        let weight = leaf(&drawn.f_narrow(0, 0, hidden)?.f_unsqueeze(0)?)?;
        Ok(Self { weight, bias: leaf(&drawn.f_narrow(0, hidden, 1)?)?, scale })
    }

    fn values(&self, states: &Tensor) -> Result<Tensor> {
        let states = states.f_to_kind(Kind::Float)?.f_mul_scalar(self.scale)?;
        Ok(states.f_linear(&self.weight, Some(&self.bias))?.f_squeeze_dim(-1)?)
    }

    fn named(&self) -> [(String, Tensor); 2] {
        [("value_head.weight", &self.weight), ("value_head.bias", &self.bias)]
            .map(|(name, tensor)| (name.to_string(), tensor.shallow_clone()))
    }
}

/// A tensor of its own that gathers gradients.
fn leaf(tensor: &Tensor) -> Result<Tensor> {
    let mut leaf = tensor.f_zeros_like()?;
    leaf.f_copy_(&tensor.f_detach()?)?;
    Ok(leaf.f_set_requires_grad(true)?)
}

/// A policy and what predicts the values of its states, trained together.
///
/// The value of position `t` is predicted from the state that predicts token `t`: the state has seen the tokens before
/// `t`. As a [`Policy`] it scores as the actor does; its parameters are those of both. Its folder is the actor's
/// Hugging Face folder with [`VALUE_WEIGHTS`] beside it.
#[derive(Debug)]
pub struct ActorCritic<P> {
    actor: P,
    /// The network that values are predicted from, where it is not the actor.
    network: Option<P>,
    head: ValueHead,
    /// Of the actor, then of the critic.
    parameters: Parameters,
    /// Of the critic.
    own: Parameters,
}

impl<P: Policy> ActorCritic<P> {
    /// A value head on the actor's states after the final norm; gradients of both reach the same trunk.
    ///
    /// # Errors
    /// When memory is short.
    pub fn shared(actor: P, seed: u64) -> Result<Self> {
        let head = ValueHead::new(&actor, 1.0, seed)?;
        Ok(Self::join(actor, None, head))
    }

    /// A value network beside the actor, e.g. a second copy of it. Its head sees the states as its output matrix
    /// would (for a T5 with tied embeddings: times `d_model^-0.5`).
    ///
    /// # Errors
    /// When memory is short.
    pub fn separate(actor: P, network: P, seed: u64) -> Result<Self> {
        let head =
            ValueHead::new(&network, network.output_projection().map_or(1.0, |(_, scale)| scale), seed)?;
        Ok(Self::join(actor, Some(network), head))
    }

    fn join(actor: P, network: Option<P>, head: ValueHead) -> Self {
        let mut own = vec![];
        if let Some(network) = &network {
            let parameters = network.parameters().named().into_iter();
            own.extend(parameters.map(|(name, tensor)| (format!("value_model.{name}"), tensor)));
        }
        own.extend(head.named());
        let mut all = actor.parameters().named();
        all.extend(own.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
        Self { actor, network, head, parameters: Parameters::new(all), own: Parameters::new(own) }
    }

    /// The policy itself.
    pub fn actor(&self) -> &P {
        &self.actor
    }

    /// Gives the policy back.
    pub fn into_actor(self) -> P {
        self.actor
    }

    /// The parameters that predict values.
    pub fn value_parameters(&self) -> &Parameters {
        &self.own
    }

    /// As [`Policy::score`], with the value of every target position, `[batch, time]` `f32`, 0 where there is no loss.
    ///
    /// # Errors
    /// As [`Policy::score`].
    pub fn score_with_values(
        &self,
        examples: &[Example],
        options: ScoreOptions,
    ) -> Result<(TokenScores, Tensor)> {
        let mut scores = self.actor.score(examples, ScoreOptions { states: true, ..options })?;
        let states = match &self.network {
            Some(network) => network.states(examples)?,
            None => scores.states.take(),
        };
        let states = states.ok_or_else(|| Error::invalid("policy", "it returned no states"))?;
        let values = self.head.values(&states)?.f_mul(&scores.labels.mask)?;
        scores.states = options.states.then_some(states);
        Ok((scores, values))
    }
}

impl<P: Policy> Policy for ActorCritic<P> {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn device(&self) -> Device {
        self.actor.device()
    }

    fn hidden_size(&self) -> i64 {
        self.actor.hidden_size()
    }

    fn pad_token_id(&self) -> TokenId {
        self.actor.pad_token_id()
    }

    fn output_projection(&self) -> Option<(&Tensor, f64)> {
        self.actor.output_projection()
    }

    fn end_token_ids(&self) -> &[TokenId] {
        self.actor.end_token_ids()
    }

    fn set_training(&mut self, training: bool) {
        self.actor.set_training(training);
        if let Some(network) = &mut self.network {
            network.set_training(training);
        }
    }

    fn has_dropout(&self) -> bool {
        self.actor.has_dropout() || self.network.as_ref().is_some_and(P::has_dropout)
    }

    fn set_gradient_checkpointing(&mut self, on: bool) -> Result<()> {
        self.actor.set_gradient_checkpointing(on)?;
        self.network.as_mut().map_or(Ok(()), |network| network.set_gradient_checkpointing(on))
    }

    fn score(&self, examples: &[Example], options: ScoreOptions) -> Result<TokenScores> {
        self.actor.score(examples, options)
    }

    fn cross_entropy(&self, examples: &[Example]) -> Result<CrossEntropy> {
        self.actor.cross_entropy(examples)
    }

    fn score_alternatives(
        &self,
        prompts: &[&[TokenId]],
        targets: &[&[TokenId]],
        options: ScoreOptions,
    ) -> Result<TokenScores> {
        self.actor.score_alternatives(prompts, targets, options)
    }

    fn states(&self, examples: &[Example]) -> Result<Option<Tensor>> {
        self.actor.states(examples)
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.actor.save(folder)?;
        write_tensors(&folder.join(VALUE_WEIGHTS), self.own.iter())
    }

    fn restore(&self, folder: &Path) -> Result<()> {
        self.actor.restore(folder)?;
        let path = folder.join(VALUE_WEIGHTS);
        let saved = read_tensors(&path, Device::Cpu)?;
        self.own.fill(&path, saved)
    }
}
