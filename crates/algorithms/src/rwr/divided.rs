//! Asks that several processes divide.

use ruminate_datasets::rise::{Answerer, Ask, Failed, Reply, Stopped};

use crate::{Collective, Error};

/// An answerer of several processes that play the same episodes: all of them are asked the same, each answers a part, and all get all
/// replies. Rank 0 alone keeps a file of episodes; the others leave out what is [finished](ruminate_datasets::rise::MultiTurn::finished)
/// there.
#[derive(Clone, Copy)]
pub struct Divided<'a> {
    answerer: &'a dyn Answerer,
    collective: &'a Collective,
    /// How many of them answer.
    answering: usize,
}

impl std::fmt::Debug for Divided<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Divided").field("answering", &self.answering).finish_non_exhaustive()
    }
}

impl<'a> Divided<'a> {
    /// Each process answers its part.
    #[must_use]
    pub fn new(answerer: &'a dyn Answerer, collective: &'a Collective) -> Self {
        Self { answerer, collective, answering: collective.size() }
    }

    /// Rank 0 alone answers: for a service, whose limits and files are those of one client.
    #[must_use]
    pub fn by_first(answerer: &'a dyn Answerer, collective: &'a Collective) -> Self {
        Self { answerer, collective, answering: 1 }
    }
}

impl Answerer for Divided<'_> {
    fn answer(&self, asks: &[Ask]) -> Result<Vec<Reply>, Failed> {
        let (rank, answering) = (self.collective.rank(), self.answering);
        let mine: Vec<Ask> = if rank < answering {
            asks.iter().skip(rank).step_by(answering).cloned().collect()
        } else {
            vec![]
        };
        let own = match mine.is_empty() {
            true => Some(vec![]),
            false => match self.answerer.answer(&mine) {
                Ok(replies) => Some(replies),
                Err(error) if error.is::<Stopped>() => None,
                Err(error) => return Err(error),
            },
        };
        let Some(told) = self.collective.gather(own)?.into_iter().collect::<Option<Vec<Vec<Reply>>>>() else {
            return Err(Stopped.into());
        };
        let mut ranks: Vec<_> = told.into_iter().map(Vec::into_iter).collect();
        let all: Vec<Reply> = (0..asks.len()).filter_map(|i| ranks[i % answering].next()).collect();
        if all.len() != asks.len() || ranks.iter_mut().any(|rest| rest.next().is_some()) {
            let reason = format!("they do not have one reply to each of {} asks", asks.len());
            return Err(Error::Ranks(reason).into());
        }
        Ok(all)
    }

    fn role(&self) -> &str {
        self.answerer.role()
    }
}
