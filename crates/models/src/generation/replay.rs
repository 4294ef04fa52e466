//! Decoding steps of one shape, which a CUDA device can start as a whole.

use ruminate_torch::Graph;
use tch::{Device, Kind, Tensor};

use super::Steps;
use crate::Result;
use crate::layers::Decoding;

/// Positions by which what a step looks at grows. A graph is recorded for each such length.
const LENGTHS: i64 = 64;

/// Takes steps of fixed shapes. On CUDA these are graphs: the host launches all operations of a step at once. For each token it copies
/// the ids, sets the position and starts the graph.
pub(super) struct Replayed<'a> {
    steps: Decoding<'a>,
    device: Device,
    recorded: Option<Recorded>,
}

/// A step and the memory that it reads and writes.
struct Recorded {
    /// There is none on the CPU.
    graph: Option<Graph>,
    length: i64,
    tokens: Tensor,
    position: Tensor,
    logits: Tensor,
}

impl<'a> Replayed<'a> {
    pub(super) fn new(steps: Decoding<'a>, device: Device) -> Result<Self> {
        steps.zero_unwritten()?;
        Ok(Self { steps, device, recorded: None })
    }

    /// Takes a step of a new shape, and records it for those that follow.
    fn first_step(&mut self, tokens: &Tensor, length: i64) -> Result<Tensor> {
        // Its memory goes back to libtorch, which keeps it until it is short of some.
        self.recorded = None;
        let mut own = tokens.f_empty_like()?;
        own.f_copy_(tokens)?;
        let (tokens, steps) = (own, &mut self.steps);
        let position = Tensor::f_full([1], steps.position(), (Kind::Int64, self.device))?;
        // What is first done while recording may not be possible, so it is done before.
        let first = steps.step_at(&tokens, &position, length)?;
        let (graph, logits) = match self.device {
            Device::Cuda(_) => {
                let (graph, logits) =
                    Graph::record(self.device, || steps.step_at(&tokens, &position, length))?;
                (Some(graph), logits)
            }
            _ => (None, first.shallow_clone()),
        };
        self.recorded = Some(Recorded { graph, length, tokens, position, logits });
        Ok(first)
    }
}

impl Steps for Replayed<'_> {
    fn next_logits(&mut self, tokens: &Tensor) -> Result<Tensor> {
        let at = self.steps.position();
        let length = ((at / LENGTHS + 1) * LENGTHS).min(self.steps.capacity());
        let logits = match &mut self.recorded {
            Some(recorded) if recorded.length == length => {
                recorded.tokens.f_copy_(tokens)?;
                let _ = recorded.position.f_fill_(at)?;
                match &recorded.graph {
                    Some(graph) => graph.replay()?,
                    None => {
                        let Recorded { tokens, position, .. } = recorded;
                        recorded.logits = self.steps.step_at(tokens, position, length)?;
                    }
                }
                recorded.logits.shallow_clone()
            }
            _ => self.first_step(tokens, length)?,
        };
        self.steps.advance();
        Ok(logits)
    }

    fn reorder(&mut self, rows: &Tensor) -> Result<()> {
        self.recorded = None;
        self.steps.reorder(rows)
    }

    fn keep(&mut self, rows: &Tensor, prompts: &Tensor) -> Result<()> {
        self.recorded = None;
        self.steps.keep(rows, prompts)
    }
}
