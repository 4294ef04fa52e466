//! Answers of turns that are over, in a file.

use std::cell::RefCell;
use std::path::Path;

use ruminate_datasets::rise::{Answerer, Ask, Failed, Reply};

use crate::kept::KeptLines;
use crate::{Collective, Error, Result};

/// Answers that are kept in a file, until the episodes that they belong to are over: a rollout that is stopped or killed goes on behind
/// the last turn that was answered. Rank 0 reads and writes the file for all processes.
#[derive(Debug)]
pub struct KeptAnswers<'a> {
    collective: &'a Collective,
    /// That of rank 0.
    lines: Option<RefCell<KeptLines<Vec<String>>>>,
}

impl<'a> KeptAnswers<'a> {
    /// Goes on with the answers that are in a file; without one, it is made when there is something to keep.
    ///
    /// # Errors
    /// When the file cannot be read or written, or has other lines.
    pub fn open(path: &Path, collective: &'a Collective) -> Result<Self> {
        let lines = if collective.is_main_process() { Some(KeptLines::open(path)?.into()) } else { None };
        Ok(Self { collective, lines })
    }

    /// The answers of `answerer`, none of them asked for twice.
    pub fn of<'b>(&'b self, answerer: &'b dyn Answerer) -> Kept<'b> {
        Kept { kept: self, answerer }
    }

    /// Removes the file: all episodes are over.
    ///
    /// # Errors
    /// When that fails.
    pub fn remove(&self) -> Result<()> {
        self.lines.as_ref().map_or(Ok(()), |lines| lines.borrow_mut().remove())
    }
}

/// Changes with all that an answer depends on, the model aside.
fn key(ask: &Ask) -> String {
    let mut hasher = blake3::Hasher::new();
    for message in &ask.messages {
        for text in [&message.role, &message.content] {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
    }
    for number in [ask.seed, ask.samples as u64] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// An answerer whose answers are kept; see [`KeptAnswers`].
#[derive(Clone, Copy)]
pub struct Kept<'a> {
    kept: &'a KeptAnswers<'a>,
    answerer: &'a dyn Answerer,
}

impl std::fmt::Debug for Kept<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("kept", &self.kept).finish_non_exhaustive()
    }
}

impl Answerer for Kept<'_> {
    fn answer(&self, asks: &[Ask]) -> std::result::Result<Vec<Reply>, Failed> {
        let Self { kept, answerer } = *self;
        let known: Vec<Option<Vec<String>>> = kept.collective.first(|| {
            let lines = kept.lines.as_ref().map(RefCell::borrow);
            let known = |ask: &Ask| lines.as_ref().and_then(|lines| lines.get(&key(ask)));
            Ok::<_, Error>(asks.iter().map(known).collect())
        })?;
        let open = |(ask, known): (&Ask, &Option<Vec<String>>)| known.is_none().then(|| ask.clone());
        let missing: Vec<Ask> = asks.iter().zip(&known).filter_map(open).collect();
        let replies = if missing.is_empty() { vec![] } else { answerer.answer(&missing)? };
        if let Some(lines) = &kept.lines {
            let answered = |(ask, reply): (&Ask, &Reply)| match reply {
                Reply::Texts(texts) => Some((key(ask), texts.clone())),
                Reply::Blocked(_) => None,
            };
            lines.borrow_mut().append(missing.iter().zip(&replies).filter_map(answered).collect())?;
        }
        let mut replies = replies.into_iter();
        Ok(known.into_iter().filter_map(|known| known.map(Reply::Texts).or_else(|| replies.next())).collect())
    }

    fn role(&self) -> &str {
        self.answerer.role()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use ruminate_datasets::chat::Message;
    use ruminate_datasets::rise::Stopped;

    use super::*;

    fn ask(row: usize, turn: usize) -> Ask {
        let messages = vec![Message { role: "user".into(), content: format!("{row}?") }];
        Ask { row, turn, attempt: 0, messages, samples: 1, seed: (10 * row + turn) as u64 }
    }

    #[test]
    fn nothing_is_asked_for_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let collective = Collective::default();
        let asked = Cell::new(0);
        let answerer = |asks: &[Ask]| -> std::result::Result<Vec<Reply>, Failed> {
            if asks.iter().any(|ask| ask.turn == 2) {
                return Err(Stopped.into());
            }
            asked.set(asked.get() + asks.len());
            let reply = |ask: &Ask| match ask.row {
                7 => Reply::Blocked("no".into()),
                row => Reply::Texts(vec![format!("{row} in turn {}", ask.turn)]),
            };
            Ok(asks.iter().map(reply).collect())
        };
        let turn = |turn| -> Vec<Ask> { [3, 7, 5].map(|row| ask(row, turn)).into() };
        let first = KeptAnswers::open(&path, &collective).unwrap();
        let replies = [0, 1].map(|number| first.of(&answerer).answer(&turn(number)).unwrap());
        assert!(first.of(&answerer).answer(&turn(2)).unwrap_err().is::<Stopped>());
        drop(first);
        assert_eq!(asked.get(), 6);
        // Killed while it wrote the next line.
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"key\":\"");
        std::fs::write(&path, text).unwrap();
        let second = KeptAnswers::open(&path, &collective).unwrap();
        for (number, replies) in replies.iter().enumerate() {
            assert_eq!(second.of(&answerer).answer(&turn(number)).unwrap(), *replies);
        }
        // Whoever gave no answer is asked again, and whatever differs is another question.
        assert_eq!(asked.get(), 8);
        second
            .of(&answerer)
            .answer(&[Ask { seed: 99, ..ask(3, 0) }, Ask { samples: 2, ..ask(3, 0) }])
            .unwrap();
        assert_eq!(asked.get(), 10);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 6);
        second.remove().unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "nonsense\n").unwrap();
        let error = KeptAnswers::open(&path, &collective).unwrap_err();
        assert!(error.to_string().contains("answers.jsonl"), "{error}");
    }
}
