//! Work that several processes divide.

use std::rc::Rc;

use ruminate_datasets::Shard;
use ruminate_torch::dist::{ProcessGroup, Reduce};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::Tensor;

use crate::trainer::exchange;
use crate::{Error, Result};

/// The processes that work together; by default, this one alone. All of them call the same methods in the same order. With one
/// process, each method returns what it was given.
///
/// # Example
/// ```
/// use ruminate_algorithms::{Peers, Result};
///
/// // Each process squares its part of the numbers, and all get all squares.
/// let squares = |peers: &Peers, numbers: &[u64]| -> Result<Vec<u64>> {
///     peers.map(numbers.len(), |mine| Ok(mine.iter().map(|&i| numbers[i] * numbers[i]).collect()))
/// };
/// assert_eq!(squares(&Peers::default(), &[1, 2, 3])?, [1, 4, 9]);
/// # Ok::<(), ruminate_algorithms::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Peers(Option<Rc<ProcessGroup>>);

impl From<Option<Rc<ProcessGroup>>> for Peers {
    fn from(group: Option<Rc<ProcessGroup>>) -> Self {
        Self(group)
    }
}

impl From<&Rc<ProcessGroup>> for Peers {
    fn from(group: &Rc<ProcessGroup>) -> Self {
        Self(Some(Rc::clone(group)))
    }
}

impl Peers {
    /// How many there are, this one included.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |group| group.size())
    }

    /// Which one this is, counted from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |group| group.rank())
    }

    /// Whether this is the process that writes files: the only one, or rank 0.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// The connection, where there are several.
    pub fn group(&self) -> Option<&Rc<ProcessGroup>> {
        self.0.as_ref()
    }

    pub(crate) fn shard(&self) -> Result<Shard> {
        Ok(Shard::new(self.rank(), self.size())?)
    }

    /// Divides `count` pieces of work: `work` gets the numbers of this process's pieces, if it has any, and returns a result for each
    /// of them. All processes get the results of all pieces, in their order.
    ///
    /// Results travel as JSON, where a float that is no number becomes nothing.
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
        let mut ranks: Vec<_> = self.exchange(own)?.into_iter().map(Vec::into_iter).collect();
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

    /// Lets rank 0 do something, such as reading a file that it writes itself, and gives all processes what it found.
    ///
    /// # Errors
    /// Those of `work`, and when another process fails.
    pub fn first<T: Serialize + DeserializeOwned, E: From<Error>>(
        &self,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let Some(group) = &self.0 else { return work() };
        // A list, because what was found may be nothing.
        let own = if self.leads() { vec![work()?] } else { vec![] };
        let found = exchange(group, &own)?.into_iter().flatten().next();
        found.ok_or_else(|| Error::Ranks("rank 0 has nothing to tell".into()).into())
    }

    /// Whether any process says yes.
    ///
    /// # Errors
    /// When another process fails.
    pub fn any(&self, own: bool) -> Result<bool> {
        Ok(self.sums(&[f64::from(u8::from(own))])?.iter().any(|&yes| yes > 0.0))
    }

    /// What each process says, by rank.
    pub(crate) fn exchange<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Vec<T>> {
        match &self.0 {
            Some(group) => exchange(group, &own),
            None => Ok(vec![own]),
        }
    }

    /// The sums of the numbers of all processes.
    pub(crate) fn sums(&self, own: &[f64]) -> Result<Vec<f64>> {
        let Some(group) = &self.0 else { return Ok(own.to_vec()) };
        let mut sums = Tensor::f_from_slice(own)?.f_to_device(group.device())?;
        group.all_reduce(&mut sums, Reduce::Sum)?;
        Ok(Vec::try_from(sums)?)
    }
}
