//! What the processes of a run do together. With one process, nothing.

use std::rc::Rc;

use ruminate_models::Policy;
use ruminate_torch::dist::{ProcessGroup, Reduce, Reducer, Sharding};
use ruminate_torch::rng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

use super::checkpoint::{generators, of_rank};
use super::{Algorithm, Counts, Log};
use crate::{Error, Result};

/// The other processes, if there are any. All ranks call all methods in the same order.
#[derive(Debug, Clone, Default)]
pub(super) struct Ranks(Option<Rc<ProcessGroup>>);

impl Ranks {
    pub(super) fn new(group: Option<Rc<ProcessGroup>>) -> Self {
        Self(group)
    }

    pub(super) fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |group| group.rank())
    }

    pub(super) fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |group| group.size())
    }

    pub(super) fn barrier(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |group| Ok(group.barrier()?))
    }

    /// Gives the algorithm its part of the data.
    pub(super) fn join<A: Algorithm>(&self, algorithm: &mut A) -> Result<()> {
        let Some(group) = &self.0 else { return Ok(()) };
        // Otherwise all would draw the same dropout. A checkpoint brings the states that its ranks had.
        if group.rank() > 0 {
            let drawn = Tensor::f_randint(i64::MAX, [1], (Kind::Int64, Device::Cpu))?.f_int64_value(&[0])?;
            for device in [Device::Cpu, algorithm.policy().device()] {
                rng::seed(device, drawn.wrapping_add(group.rank() as i64) as u64)?;
            }
        }
        algorithm.join(group)
    }

    /// Makes sure that all ranks stand at the same step with the same model, whose parameters are those of rank 0.
    pub(super) fn align(&self, policy: &dyn Policy, step: u64) -> Result<()> {
        let Some(group) = &self.0 else { return Ok(()) };
        let shapes: Vec<_> =
            policy.parameters().iter().map(|(name, tensor)| (name.to_string(), tensor.size())).collect();
        let all = exchange(group, &(step, shapes))?;
        for (rank, (other_step, other_shapes)) in all.iter().enumerate() {
            let (first_step, first_shapes) = &all[0];
            if other_step != first_step {
                let reason = format!(
                    "rank {rank} would go on at step {other_step} and rank 0 at step {first_step}; all machines must see the \
                     same run folder"
                );
                return Err(Error::Ranks(reason));
            }
            if other_shapes != first_shapes {
                let differing = first_shapes.iter().zip(other_shapes).find(|(a, b)| a != b);
                let reason = match differing {
                    Some(((name, shape), (other, other_shape))) => format!(
                        "rank {rank} has the parameter `{other}` {other_shape:?} where rank 0 has `{name}` {shape:?}"
                    ),
                    None => format!(
                        "rank {rank} has {} parameters and rank 0 has {}",
                        other_shapes.len(),
                        first_shapes.len()
                    ),
                };
                return Err(Error::Ranks(reason));
            }
        }
        for (_, parameter) in policy.parameters().iter() {
            group.broadcast(&mut parameter.f_detach()?, 0)?;
        }
        Ok(())
    }

    /// Counts over all ranks and the largest number of micro-batches, of which there is at least one; `None` when no rank has
    /// an update to make.
    pub(super) fn counts(&self, own: Option<(Counts, usize)>) -> Result<Option<(Counts, usize)>> {
        let all = match &self.0 {
            Some(group) => exchange(group, &own)?,
            None => vec![own],
        };
        let mut sum: Option<(Counts, usize)> = None;
        for (counts, batches) in all.into_iter().flatten() {
            let (sum, rounds) = sum.get_or_insert((Counts::new(), 1));
            *rounds = batches.max(*rounds);
            for (name, count) in counts {
                *sum.entry(name).or_insert(0) += count;
            }
        }
        Ok(sum)
    }

    /// Lets every rank record the same names, those of other ranks' terms too.
    pub(super) fn expect(&self, counts: &Counts, loss: &str, log: &mut Log) -> Result<()> {
        let Some(group) = &self.0 else { return Ok(()) };
        let nothing = Tensor::f_zeros([0i64; 0], (Kind::Float, group.device()))?;
        let loss = (!counts.is_empty()).then_some(loss);
        counts.keys().map(String::as_str).chain(loss).try_for_each(|name| log.add(name, &nothing))
    }

    /// What brings the gradients of these parameters together.
    pub(super) fn reducer(&self, parameters: &[Tensor], sharding: Sharding) -> Result<Option<Reducer>> {
        let Some(group) = &self.0 else { return Ok(None) };
        Ok(Some(Reducer::new(Rc::clone(group), parameters, sharding)?))
    }

    /// This rank's share of a value that all ranks have, so that the shares add up to it.
    pub(super) fn share(&self, value: Tensor) -> Result<Tensor> {
        Ok(if self.rank() == 0 { value } else { value.f_zeros_like()? })
    }

    /// Sums over all ranks.
    pub(super) fn sums(&self, values: Vec<f64>) -> Result<Vec<f64>> {
        let Some(group) = &self.0 else { return Ok(values) };
        let mut sums = Tensor::f_from_slice(&values)?.f_to_device(group.device())?;
        group.all_reduce(&mut sums, Reduce::Sum)?;
        Ok(Vec::try_from(sums)?)
    }

    pub(super) fn total(&self, count: u64) -> Result<u64> {
        let Some(group) = &self.0 else { return Ok(count) };
        Ok(group.sum(&[count as i64])?.first().map_or(0, |&sum| sum as u64))
    }

    /// Whether any rank says yes.
    pub(super) fn any(&self, own: bool) -> Result<bool> {
        Ok(self.total(own.into())? > 0)
    }

    /// What rank 0 says.
    pub(super) fn of_first(&self, value: f64) -> Result<f64> {
        let Some(group) = &self.0 else { return Ok(value) };
        let mut first = Tensor::f_from_slice(&[value])?.f_to_device(group.device())?;
        group.broadcast(&mut first, 0)?;
        Ok(first.f_double_value(&[0])?)
    }

    /// States of the generators of all ranks, for a checkpoint.
    pub(super) fn generators(&self, device: Device) -> Result<Vec<(String, Tensor)>> {
        let mut states = generators(device)?;
        let Some(group) = &self.0 else { return Ok(states) };
        for i in 0..states.len() {
            let bytes = group.all_gather_bytes(&Vec::<u8>::try_from(&states[i].1)?)?;
            let name = states[i].0.clone();
            for (rank, bytes) in bytes.iter().enumerate().skip(1) {
                states.push((of_rank(&name, rank), Tensor::f_from_slice(bytes)?));
            }
        }
        Ok(states)
    }
}

/// What each rank says, by rank.
pub(crate) fn exchange<T: Serialize + DeserializeOwned>(group: &ProcessGroup, own: &T) -> Result<Vec<T>> {
    let wrong = |e: serde_json::Error| Error::Ranks(format!("what they tell each other cannot be read: {e}"));
    let bytes = group.all_gather_bytes(&serde_json::to_vec(own).map_err(wrong)?)?;
    bytes.iter().map(|bytes| serde_json::from_slice(bytes).map_err(wrong)).collect()
}
