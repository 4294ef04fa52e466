//! A teacher that takes a turn.

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;

use super::{Answerer, Ask, Failed, Reply, Stopped};
use crate::NullObserver;
use crate::teacher::{AnswerFile, Request, Sampling, Teacher, TeacherObserver};

/// Answers by a large model behind an address. Its answers are kept in a file, so that a run that is begun again pays for none of
/// them twice. The file is read at the first question and stays open.
pub struct TeacherAnswerer {
    teacher: Teacher,
    sampling: Sampling,
    path: PathBuf,
    /// Open between the batches of a rollout.
    file: RefCell<Option<AnswerFile>>,
    observer: RefCell<Box<dyn TeacherObserver>>,
}

impl fmt::Debug for TeacherAnswerer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TeacherAnswerer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl TeacherAnswerer {
    /// A teacher whose answers are appended to the file at `path`, drawn as the published code does: temperature 0.7, top-p 1, at
    /// most 512 tokens.
    pub fn new(teacher: Teacher, path: impl Into<PathBuf>) -> Self {
        let sampling = Sampling {
            max_tokens: Some(512),
            temperature: Some(0.7),
            top_p: Some(1.0),
            ..Sampling::default()
        };
        let observer = RefCell::new(Box::new(NullObserver));
        Self { teacher, sampling, path: path.into(), file: RefCell::default(), observer }
    }

    /// Lets somebody watch, who may also stop: then the rollout ends with what is finished.
    #[must_use]
    pub fn watched_by(mut self, observer: impl TeacherObserver + 'static) -> Self {
        self.observer = RefCell::new(Box::new(observer));
        self
    }

    /// Draws answers in another way; their number and seed come from the rollout.
    #[must_use]
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }
}

impl Answerer for TeacherAnswerer {
    fn answer(&self, asks: &[Ask]) -> Result<Vec<Reply>, Failed> {
        let request = |ask: &Ask| Request {
            id: format!("row {} turn {} attempt {}", ask.row, ask.turn, ask.attempt),
            messages: ask.messages.clone(),
            sampling: Sampling {
                n: (ask.samples > 1).then_some(u32::try_from(ask.samples).unwrap_or(u32::MAX)),
                // Servers read seeds into signed integers.
                seed: Some(ask.seed >> 1),
                ..self.sampling.clone()
            },
        };
        let requests: Vec<Request> = asks.iter().map(request).collect();
        let mut observer = self.observer.borrow_mut();
        let mut file = match self.file.take() {
            Some(file) => file,
            None => AnswerFile::open(&self.path)?,
        };
        let outcome = self.teacher.ask_into(&mut file, &requests, |_, _| Ok(()), &mut **observer)?;
        // After an error it is read again.
        self.file.replace(Some(file));
        if outcome.stopped {
            return Err(Stopped.into());
        }
        let reply = |(request, answer): (&Request, Option<crate::teacher::Answer>)| match answer {
            Some(answer) => Reply::Texts(answer.choices.into_iter().map(|choice| choice.content).collect()),
            None => {
                let why = outcome.failed.iter().find(|(id, _)| *id == request.id);
                Reply::Blocked(why.map_or_else(|| "it was not asked any more".into(), |(_, why)| why.clone()))
            }
        };
        Ok(requests.iter().zip(outcome.answers).map(reply).collect())
    }

    fn role(&self) -> &str {
        "assistant"
    }
}
