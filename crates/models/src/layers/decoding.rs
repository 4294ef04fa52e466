//! Decoding in progress: one token of every row at a time.

use tch::{Device, Kind, Tensor};

use super::block::{DecodingBlock, Step, View};
use super::kv_cache::{KvCache, Position};
use super::mask::MASKED_SCORE;
use super::{Embeddings, KeyValues, PackedLinear, Rope, Stack};
use crate::batch::check_range;
use crate::generation::Steps;
use crate::{Error, Result};

/// How a stack knows the order of tokens.
#[derive(Debug)]
pub(crate) enum Positions {
    /// By a bias on the scores: that of the last position, `[1, heads, 1, capacity]`.
    Bias(Tensor),
    /// By rotating queries and keys, with the tables of all positions. Some blocks may see a window only.
    Rope { tables: Rope, window: Option<i64> },
}

/// Padding in front of prompts that are shorter than the longest.
#[derive(Debug)]
pub(crate) struct LeftPadding {
    /// Masks it, `[rows, 1, 1, prompt_len + max_new]`.
    pub(crate) bias: Tensor,
    /// Real tokens of each row's prompt, `[rows]`.
    pub(crate) lengths: Tensor,
}

/// The parts that decoding starts from.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) embeddings: &'a Embeddings,
    pub(crate) stack: &'a Stack,
    /// For each block: its cache, and the keys and values of the encoder's states where there is one.
    pub(crate) caches: Vec<(KvCache, Option<KeyValues>)>,
    pub(crate) output: Option<PackedLinear>,
    pub(crate) positions: Positions,
    pub(crate) padding: Option<LeftPadding>,
    /// Masks padding of the encoder's states, `[prompts, 1, 1, source]`.
    pub(crate) encoder_bias: Option<Tensor>,
    pub(crate) rows: i64,
    /// Positions that the caches hold already, padding included.
    pub(crate) prompt_len: i64,
    /// Positions that the caches have room for.
    pub(crate) capacity: i64,
}

/// Decoding in progress. All memory for keys and values was taken when it started.
#[derive(Debug)]
pub struct Decoding<'a> {
    embeddings: &'a Embeddings,
    stack: &'a Stack,
    blocks: Vec<DecodingBlock>,
    output: Option<PackedLinear>,
    positions: Positions,
    padding: Option<LeftPadding>,
    encoder_bias: Option<Tensor>,
    rows: i64,
    prompt_len: i64,
    /// The position of the next token.
    position: i64,
    capacity: i64,
}

impl<'a> Decoding<'a> {
    pub(crate) fn new(start: Start<'a>) -> Self {
        let Start { embeddings, stack, caches, output, positions, padding, encoder_bias, .. } = start;
        let Start { rows, prompt_len, capacity, .. } = start;
        let blocks = caches.into_iter().map(|(cache, encoder)| DecodingBlock::new(cache, encoder)).collect();
        let position = prompt_len;
        Self {
            embeddings,
            stack,
            blocks,
            output,
            positions,
            padding,
            encoder_bias,
            rows,
            prompt_len,
            position,
            capacity,
        }
    }

    /// Reads one token of every row, `[rows, 1]`, and returns the states after the final norm `[rows, 1, width]`.
    ///
    /// # Errors
    /// When it is not one token per row, more tokens are read than there is room for, or libtorch refuses.
    pub fn step(&mut self, tokens: &Tensor) -> Result<Tensor> {
        self.check(tokens)?;
        // On an accelerator, looking at the ids would wait for it.
        if tokens.device() == Device::Cpu {
            check_range("decoder input", tokens, self.embeddings.output_projection().0.size()[0])?;
        }
        let x = self.read(tokens)?;
        self.stack.final_norm.forward(&x)
    }

    /// Reads one token of every row, whose successor is known.
    pub(crate) fn fill(&mut self, tokens: &Tensor) -> Result<()> {
        self.read(tokens).map(drop)
    }

    /// Logits `[..., vocab]` `f32` of states `[..., width]`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn logits(&self, states: &Tensor) -> Result<Tensor> {
        match &self.output {
            Some(output) => Ok(output.forward(&self.embeddings.scaled(states)?)?.f_to_kind(Kind::Float)?),
            None => self.embeddings.logits(states),
        }
    }

    /// The next position's state before the final norm, `[rows, 1, width]`.
    fn read(&mut self, tokens: &Tensor) -> Result<Tensor> {
        self.check(tokens)?;
        let at = self.position;
        let (rope, full, sliding) = match &self.positions {
            Positions::Bias(bias) => {
                let bias = bias.f_narrow(3, self.capacity - 1 - at, at + 1)?;
                (None, View { positions: 0..at + 1, bias: Some(bias) }, View::NOTHING)
            }
            Positions::Rope { tables, window } => {
                let rope = match &self.padding {
                    Some(padding) => tables.of_rows(&padding.lengths.f_add_scalar(at - self.prompt_len)?)?,
                    None => tables.at(at)?,
                };
                // What has left the window is not even read.
                let from = window.map_or(0, |window| (at - window + 1).max(0));
                (Some(rope), self.view(0, at + 1)?, self.view(from, at + 1)?)
            }
        };
        let encoder_bias = self.encoder_bias.as_ref();
        let rope = rope.as_ref();
        let step = Step { position: Position::At(at), rope, full, sliding, encoder_bias };
        let x = run(self.embeddings, self.stack, &mut self.blocks, tokens, &step)?;
        self.position += 1;
        Ok(x)
    }

    /// The positions `from..to` without padding.
    fn view(&self, from: i64, to: i64) -> Result<View> {
        let narrow = |padding: &LeftPadding| padding.bias.f_narrow(3, from, to - from);
        Ok(View { positions: from..to, bias: self.padding.as_ref().map(narrow).transpose()? })
    }

    /// Logits `[rows, vocab]` `f32` of states before the final norm, `[rows, 1, width]`.
    fn logits_before_norm(&self, x: &Tensor) -> Result<Tensor> {
        let (norm, x) = (&self.stack.final_norm, x.f_squeeze_dim(1)?);
        match &self.output {
            Some(output) if self.embeddings.output_projection().1 == 1.0 => {
                Ok(output.forward(norm.fused(&x))?.f_to_kind(Kind::Float)?)
            }
            _ => self.logits(&norm.forward(&x)?),
        }
    }

    /// Refuses what is not the next token of every row.
    fn check(&self, tokens: &Tensor) -> Result<()> {
        let Self { rows, capacity, position, .. } = self;
        if tokens.size() != [*rows, 1] {
            let reason = format!("has shape {:?}, but one token for every row is [{rows}, 1]", tokens.size());
            return Err(Error::invalid("decoder input", reason));
        }
        if position >= capacity {
            let reason = format!("the cache has room for {capacity} tokens only");
            return Err(Error::invalid("decoder input", reason));
        }
        Ok(())
    }

    /// Zeroes what [`step_at`](Self::step_at) reads before it is written.
    pub(crate) fn zero_unwritten(&self) -> Result<()> {
        self.blocks.iter().try_for_each(|block| block.zero_unwritten(self.position))
    }

    /// The position of the next token.
    pub(crate) fn position(&self) -> i64 {
        self.position
    }

    /// Positions that there is room for.
    pub(crate) fn capacity(&self) -> i64 {
        self.capacity
    }

    /// Goes on to the next position.
    pub(crate) fn advance(&mut self) {
        self.position += 1;
    }

    /// [`Steps::next_logits`] in a shape that does not depend on the position, which only the device knows, `[1]`: attention covers `length`
    /// slots and masks the future ones. The next token's position stays the same.
    pub(crate) fn step_at(&mut self, tokens: &Tensor, position: &Tensor, length: i64) -> Result<Tensor> {
        self.check(tokens)?;
        let keys = Tensor::f_arange(length, (Kind::Int64, tokens.device()))?;
        let future = keys.f_gt_tensor(position)?;
        let view = |bias: Tensor| View { positions: 0..length, bias: Some(bias) };
        let (rope, full, sliding) = match &self.positions {
            Positions::Bias(bias) => {
                let last = self.capacity - 1;
                let columns = keys.f_sub(position)?.f_add_scalar(last)?.f_clamp_max(last)?;
                let bias = bias.f_index_select(3, &columns)?.f_masked_fill(&future, MASKED_SCORE)?;
                (None, view(bias), View::NOTHING)
            }
            Positions::Rope { tables, window } => {
                let rope = match &self.padding {
                    Some(padding) => {
                        tables.of_rows(&padding.lengths.f_add(position)?.f_sub_scalar(self.prompt_len)?)?
                    }
                    None => tables.of_rows(position)?,
                };
                let bias = match &self.padding {
                    Some(padding) => padding.bias.f_narrow(3, 0, length)?,
                    None => {
                        let (weight, _) = self.embeddings.output_projection();
                        Tensor::f_zeros([1, 1, 1, length], (weight.kind(), weight.device()))?
                    }
                };
                let masked = |mask: &Tensor| bias.f_masked_fill(mask, MASKED_SCORE);
                let sliding = match window {
                    Some(window) => {
                        let left = keys.f_le_tensor(&position.f_sub_scalar(*window)?)?;
                        view(masked(&future.f_logical_or(&left)?)?)
                    }
                    None => View::NOTHING,
                };
                let all_slide = self.stack.blocks.iter().all(|block| block.sliding);
                let full = if all_slide { View::NOTHING } else { view(masked(&future)?) };
                (Some(rope), full, sliding)
            }
        };
        let encoder_bias = self.encoder_bias.as_ref();
        let rope = rope.as_ref();
        let step = Step { position: Position::OnDevice(position), rope, full, sliding, encoder_bias };
        let x = run(self.embeddings, self.stack, &mut self.blocks, tokens, &step)?;
        self.logits_before_norm(&x)
    }
}

/// All blocks over one token of every row.
fn run(
    embeddings: &Embeddings,
    stack: &Stack,
    blocks: &mut [DecodingBlock],
    tokens: &Tensor,
    step: &Step<'_>,
) -> Result<Tensor> {
    let mut x = embeddings.embed(tokens)?;
    for (block, state) in stack.blocks.iter().zip(blocks) {
        x = state.step(block, &x, step)?;
    }
    Ok(x)
}

impl View {
    /// An empty view, for a kind of block that the stack lacks.
    const NOTHING: Self = Self { positions: 0..0, bias: None };
}

impl Steps for Decoding<'_> {
    fn next_logits(&mut self, tokens: &Tensor) -> Result<Tensor> {
        let x = self.read(tokens)?;
        self.logits_before_norm(&x)
    }

    fn reorder(&mut self, rows: &Tensor) -> Result<()> {
        self.blocks.iter_mut().try_for_each(|block| block.select_rows(rows))
    }

    fn keep(&mut self, rows: &Tensor, prompts: &Tensor) -> Result<()> {
        self.reorder(rows)?;
        self.rows = rows.size()[0];
        self.blocks.iter_mut().try_for_each(|block| block.select_prompts(prompts))?;
        let select = |t: &Tensor, entries: &Tensor| t.f_index_select(0, entries);
        if let Some(padding) = &mut self.padding {
            padding.bias = select(&padding.bias, rows)?;
            padding.lengths = select(&padding.lengths, rows)?;
        }
        if let Some(bias) = &mut self.encoder_bias {
            *bias = select(bias, prompts)?;
        }
        Ok(())
    }
}
