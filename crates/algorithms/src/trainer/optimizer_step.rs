//! The step that moves the parameters.

use std::rc::Rc;

use ruminate_models::Policy;
use ruminate_torch::dist::{Reducer, Sharding};
use ruminate_torch::optim::{Optimizer, clip_grad_norm, zero_grad};
use tch::Tensor;

use super::{Phases, TrainerConfig};
use crate::{Collective, Result};

/// The optimizer, and with several ranks the reducer that sums their gradients. With [`Sharding`], the optimizer has the parameters
/// that this rank owns.
#[derive(Debug)]
pub(super) struct OptimizerStep {
    parameters: Vec<Tensor>,
    optimizer: Box<dyn Optimizer>,
    reducer: Option<Reducer>,
}

impl OptimizerStep {
    pub(super) fn new(config: &TrainerConfig, policy: &dyn Policy, collective: &Collective) -> Result<Self> {
        let named = policy.parameters().named();
        let parameters: Vec<Tensor> = named.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        let reducer = collective
            .group()
            .map(|group| Reducer::new(Rc::clone(group), &parameters, config.sharding))
            .transpose()?;
        let owns = |index: usize| reducer.as_ref().is_none_or(|reducer| reducer.owns(index));
        let own = named.into_iter().enumerate().filter(|(i, _)| owns(*i)).map(|(_, named)| named).collect();
        Ok(Self { parameters, optimizer: config.optimizer().build(own)?, reducer })
    }

    pub(super) fn optimizer(&self) -> &dyn Optimizer {
        self.optimizer.as_ref()
    }

    pub(super) fn optimizer_mut(&mut self) -> &mut dyn Optimizer {
        self.optimizer.as_mut()
    }

    /// True if each rank has states of its own.
    pub(super) fn is_sharded(&self) -> bool {
        self.reducer.as_ref().is_some_and(|reducer| reducer.sharding() != Sharding::None)
    }

    pub(super) fn zero_grad(&self) -> Result<()> {
        Ok(zero_grad(&self.parameters)?)
    }

    /// Prepares the backward pass of one of `rounds` micro-batches.
    pub(super) fn begin(&mut self, round: usize, rounds: usize) {
        if let Some(reducer) = &mut self.reducer
            && travels(reducer, round, rounds)
        {
            reducer.begin();
        }
    }

    /// Ends the backward pass. A rank without that many micro-batches takes part as well.
    pub(super) fn finish(&mut self, round: usize, rounds: usize, phases: &mut Phases) -> Result<()> {
        if let Some(reducer) = &mut self.reducer
            && travels(reducer, round, rounds)
        {
            phases.time("communication", || reducer.finish(round + 1 == rounds))?;
        }
        Ok(())
    }

    /// Clips the gradients and moves the parameters. Returns the norm before clipping.
    pub(super) fn apply(&mut self, max_norm: f64, lr: f64, phases: &mut Phases) -> Result<Tensor> {
        let norm = match &self.reducer {
            Some(reducer) if self.is_sharded() => phases
                .time("communication", || reducer.clip_grad_norm(self.optimizer.parameters(), max_norm))?,
            _ => clip_grad_norm(self.optimizer.parameters(), max_norm)?,
        };
        phases.time("optimizer", || self.optimizer.step(lr))?;
        if let Some(reducer) = &mut self.reducer {
            phases.time("communication", || reducer.publish())?;
        }
        Ok(norm)
    }
}

/// True if gradients travel in this round: in the last one, with what the rounds before it left, or in every one where ranks must not
/// keep gradients of parameters that others own.
fn travels(reducer: &Reducer, round: usize, rounds: usize) -> bool {
    round + 1 == rounds || reducer.sharding() == Sharding::Gradients
}
