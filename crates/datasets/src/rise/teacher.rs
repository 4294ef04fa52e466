//! A teacher that takes a turn.

use std::path::PathBuf;

use super::{Answerer, Ask, Failed, Reply};
use crate::teacher::{Request, Sampling, Silent, Teacher};

/// Answers by a large model behind an address. Its answers are kept in a file, so that a run that is begun again pays for none of
/// them twice.
#[derive(Debug)]
pub struct TeacherAnswerer {
    teacher: Teacher,
    sampling: Sampling,
    path: PathBuf,
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
        Self { teacher, sampling, path: path.into() }
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
        let outcome = self.teacher.ask(&requests, &self.path, |_, _| Ok(()), &mut Silent)?;
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
