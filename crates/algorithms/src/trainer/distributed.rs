//! The trainer's operations across several processes. With one process, nothing changes.

use ruminate_models::Policy;
use ruminate_torch::rng;
use tch::{Device, Kind, Tensor};

use super::checkpoint::{generators, of_rank};
use super::{Algorithm, Counts, Log};
use crate::{Collective, Error, Result};

/// Gives the algorithm its part of the data, and each rank random numbers of its own.
pub(super) fn distribute<A: Algorithm>(collective: &Collective, algorithm: &mut A) -> Result<()> {
    if collective.group().is_none() {
        return Ok(());
    }
    // Otherwise all would draw the same dropout. A checkpoint brings the states that its ranks had.
    if !collective.is_main_process() {
        let drawn = Tensor::f_randint(i64::MAX, [1], (Kind::Int64, Device::Cpu))?.f_int64_value(&[0])?;
        for device in [Device::Cpu, algorithm.policy().device()] {
            rng::seed(device, drawn.wrapping_add(collective.rank() as i64) as u64)?;
        }
    }
    algorithm.distribute(collective)
}

/// Checks that all ranks stand at the same step with the same model, and gives them the parameters of rank 0.
pub(super) fn align(collective: &Collective, policy: &dyn Policy, step: u64) -> Result<()> {
    let Some(group) = collective.group() else { return Ok(()) };
    let shapes: Vec<_> =
        policy.parameters().iter().map(|(name, tensor)| (name.to_string(), tensor.size())).collect();
    let all = collective.gather((step, shapes))?;
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

/// Counts over all ranks and the largest number of micro-batches, at least 1; `None` when no rank has an update to make.
pub(super) fn all_counts(
    collective: &Collective,
    own: Option<(Counts, usize)>,
) -> Result<Option<(Counts, usize)>> {
    let mut sum: Option<(Counts, usize)> = None;
    for (counts, batches) in collective.gather(own)?.into_iter().flatten() {
        let (sum, rounds) = sum.get_or_insert((Counts::new(), 1));
        *rounds = batches.max(*rounds);
        for (name, count) in counts {
            *sum.entry(name).or_insert(0) += count;
        }
    }
    Ok(sum)
}

/// Adds zeros for all terms of an update, so that every rank records the same names.
pub(super) fn expect(collective: &Collective, counts: &Counts, loss: &str, log: &mut Log) -> Result<()> {
    let Some(group) = collective.group() else { return Ok(()) };
    let nothing = Tensor::f_zeros([0i64; 0], (Kind::Float, group.device()))?;
    let loss = (!counts.is_empty()).then_some(loss);
    counts.keys().map(String::as_str).chain(loss).try_for_each(|name| log.add(name, &nothing))
}

/// This rank's share of a value that all ranks have: the shares add up to the value.
pub(super) fn share(collective: &Collective, value: Tensor) -> Result<Tensor> {
    Ok(if collective.is_main_process() { value } else { value.f_zeros_like()? })
}

/// States of the generators of all ranks, for a checkpoint.
pub(super) fn all_generators(collective: &Collective, device: Device) -> Result<Vec<(String, Tensor)>> {
    let mut states = generators(device)?;
    let Some(group) = collective.group() else { return Ok(states) };
    for i in 0..states.len() {
        let bytes = group.all_gather_bytes(&Vec::<u8>::try_from(&states[i].1)?)?;
        let name = states[i].0.clone();
        for (rank, bytes) in bytes.iter().enumerate().skip(1) {
            states.push((of_rank(&name, rank), Tensor::f_from_slice(bytes)?));
        }
    }
    Ok(states)
}
