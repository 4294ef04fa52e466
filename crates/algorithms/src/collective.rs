//! The processes of a run, as algorithms and programs see them.

use std::rc::Rc;
use std::time::Duration;

use ruminate_datasets::Shard;
use ruminate_torch::dist::{ProcessGroup, Reduce, World};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Tensor};

use crate::{Error, Result};

/// The processes that work together; by default, this one alone. All of them call the same methods in the same order. With one
/// process, each method returns what it was given.
///
/// # Example
/// ```
/// use ruminate_algorithms::{Collective, Result};
///
/// // Each process squares its part of the numbers, and all get all squares.
/// let squares = |collective: &Collective, numbers: &[u64]| -> Result<Vec<u64>> {
///     collective.map(numbers.len(), |mine| Ok(mine.iter().map(|&i| numbers[i] * numbers[i]).collect()))
/// };
/// assert_eq!(squares(&Collective::default(), &[1, 2, 3])?, [1, 4, 9]);
/// # Ok::<(), ruminate_algorithms::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Collective(Option<Rc<ProcessGroup>>);

impl From<ProcessGroup> for Collective {
    fn from(group: ProcessGroup) -> Self {
        Self(Some(Rc::new(group)))
    }
}

impl Collective {
    /// Joins the processes that a launcher has started ([`World::from_env`]); without a launcher, this process is alone. Operations fail
    /// after `timeout`.
    ///
    /// # Errors
    /// The launcher's variables make no sense, or the other processes do not come.
    pub fn from_env(device: Device, timeout: Duration) -> ruminate_torch::Result<Self> {
        let Some(world) = World::from_env()? else { return Ok(Self::default()) };
        Ok(ProcessGroup::join(&world, device, timeout)?.into())
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |group| group.size())
    }

    /// The number of this process, counted from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |group| group.rank())
    }

    /// True in the process that writes files and shows results: the only one, or rank 0.
    pub fn is_main_process(&self) -> bool {
        self.rank() == 0
    }

    /// The connection for operations on tensors; `None` with one process.
    pub fn group(&self) -> Option<&Rc<ProcessGroup>> {
        self.0.as_ref()
    }

    /// This process's part of every batch.
    ///
    /// # Errors
    /// Never with a connected group.
    pub fn shard(&self) -> Result<Shard> {
        Ok(Shard::new(self.rank(), self.size())?)
    }

    /// Divides `count` pieces of work: `work` gets the numbers of this process's pieces, if it has any, and returns a result for each
    /// of them. All processes get the results of all pieces, in their order.
    ///
    /// Results travel as JSON, which turns NaN and infinite floats into `null`: send their bits where they can occur.
    ///
    /// # Errors
    /// Those of `work`, and when another process fails.
    pub fn map<T: Serialize + DeserializeOwned>(
        &self,
        count: usize,
        work: impl FnOnce(&[usize]) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let mine: Vec<usize> = (self.rank()..count).step_by(self.size()).collect();
        let own = if mine.is_empty() { vec![] } else { work(&mine)? };
        let mut ranks: Vec<_> = self.gather(own)?.into_iter().map(Vec::into_iter).collect();
        let size = ranks.len();
        let all: Vec<T> = (0..count).filter_map(|i| ranks[i % size].next()).collect();
        let too_many = ranks.iter_mut().any(|rest| rest.next().is_some());
        if too_many || all.len() != count {
            return Err(Error::Ranks(format!(
                "they do not have one result for each of {count} pieces of work"
            )));
        }
        Ok(all)
    }

    /// Lets rank 0 do something, such as reading a file that it writes itself, and gives all processes the result.
    ///
    /// # Errors
    /// Those of `work`, and when another process fails.
    pub fn first<T: Serialize + DeserializeOwned, E: From<Error>>(
        &self,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        if self.0.is_none() {
            return work();
        }
        // A list, because the result may be nothing.
        let own = if self.is_main_process() { vec![work()?] } else { vec![] };
        let found = self.gather(own)?.into_iter().flatten().next();
        found.ok_or_else(|| Error::Ranks("rank 0 has nothing to tell".into()).into())
    }

    /// The values of all processes, by rank. They travel as JSON, as in [`map`](Self::map).
    ///
    /// # Errors
    /// When another process fails.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Vec<T>> {
        let Some(group) = &self.0 else { return Ok(vec![own]) };
        let wrong =
            |e: serde_json::Error| Error::Ranks(format!("what they tell each other cannot be read: {e}"));
        let bytes = group.all_gather_bytes(&serde_json::to_vec(&own).map_err(wrong)?)?;
        bytes.iter().map(|bytes| serde_json::from_slice(bytes).map_err(wrong)).collect()
    }

    /// The sums of the numbers of all processes, place by place.
    ///
    /// # Errors
    /// When another process fails.
    pub fn sum(&self, own: &[f64]) -> Result<Vec<f64>> {
        let Some(group) = &self.0 else { return Ok(own.to_vec()) };
        let mut sums = Tensor::f_from_slice(own)?.f_to_device(group.device())?;
        group.all_reduce(&mut sums, Reduce::Sum)?;
        Ok(Vec::try_from(sums)?)
    }

    /// True in all processes if it is true in any.
    ///
    /// # Errors
    /// When another process fails.
    pub fn any(&self, own: bool) -> Result<bool> {
        Ok(self.total(own.into())? > 0)
    }

    /// The sum of the counts of all processes.
    pub(crate) fn total(&self, count: u64) -> Result<u64> {
        let Some(group) = &self.0 else { return Ok(count) };
        Ok(group.sum(&[count as i64])?.first().map_or(0, |&sum| sum as u64))
    }

    /// The number of rank 0.
    pub(crate) fn broadcast(&self, value: f64) -> Result<f64> {
        let Some(group) = &self.0 else { return Ok(value) };
        let mut first = Tensor::f_from_slice(&[value])?.f_to_device(group.device())?;
        group.broadcast(&mut first, 0)?;
        Ok(first.f_double_value(&[0])?)
    }

    /// Waits for all processes.
    pub(crate) fn barrier(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |group| Ok(group.barrier()?))
    }
}
