//! One new position at a time, with keys and values of those before.

use ruminate_torch::{Gate, Packed, gate};
use tch::Tensor;

use super::{Block, KeyValues, attention};
use crate::Result;
use crate::llama::rope::Rotation;

/// What a block needs for steps.
#[derive(Debug)]
pub(in crate::llama) struct LayerCache {
    /// Packed by the first step: a call that wants one token has none.
    weights: Option<StepWeights>,
    /// Keys and values of the prompts `[prompts, ...]`, where several rows share them.
    shared: Option<KeyValues>,
    /// Those of each row: of its new tokens, and before them of its prompt where nobody shares it.
    own: KeyValues,
}

/// The weights of a block as steps use them, with what reads the same input joined.
#[derive(Debug)]
struct StepWeights {
    qkv: Packed,
    o: Packed,
    dense_in: Packed,
    down: Packed,
}

/// Where a new token stands, padding included, and what it sees.
#[derive(Debug, Clone, Copy)]
pub(in crate::llama) struct Place {
    /// Tokens of the prompts.
    pub(in crate::llama) given: i64,
    /// The token's position.
    pub(in crate::llama) at: i64,
    /// The first position that it sees.
    pub(in crate::llama) from: i64,
}

impl LayerCache {
    /// With the prompts' keys and values `[prompts, heads, given, head_dim]`, each for `each` rows, and room for `new` more.
    pub(in crate::llama) fn new(prompts: &KeyValues, each: i64, new: i64) -> Result<Self> {
        let (count, heads, given, width) = prompts.keys.size4()?;
        let room = |time: i64| -> Result<KeyValues> {
            let empty = || prompts.keys.f_new_empty([count * each, heads, time, width], options(prompts));
            Ok(KeyValues { keys: empty()?, values: empty()? })
        };
        if each > 1 {
            let KeyValues { keys, values } = prompts;
            let shared = KeyValues { keys: keys.f_contiguous()?, values: values.f_contiguous()? };
            return Ok(Self { weights: None, shared: Some(shared), own: room(new)? });
        }
        let own = room(given + new)?;
        own.keys.f_narrow(2, 0, given)?.f_copy_(&prompts.keys)?;
        own.values.f_narrow(2, 0, given)?.f_copy_(&prompts.values)?;
        Ok(Self { weights: None, shared: None, own })
    }

    pub(in crate::llama) fn select_rows(&mut self, rows: &Tensor) -> Result<()> {
        self.own.select(rows)
    }

    pub(in crate::llama) fn select_prompts(&mut self, prompts: &Tensor) -> Result<()> {
        self.shared.as_mut().map_or(Ok(()), |shared| shared.select(prompts))
    }

    /// Stores the keys and values `[rows, heads, head_dim]` of a position, and attends from it.
    fn attend(
        &mut self,
        queries: &Tensor,
        (keys, values): (&Tensor, &Tensor),
        Place { given, at, from }: Place,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        // The position of the first own entry.
        let first = if self.shared.is_some() { given } else { 0 };
        self.own.keys.f_select(2, at - first)?.f_copy_(keys)?;
        self.own.values.f_select(2, at - first)?.f_copy_(values)?;
        let own = self.own.cut((from - first).max(0), at - first + 1)?;
        let shared = match &self.shared {
            Some(shared) if from < given => Some(shared.cut(from, given)?),
            _ => None,
        };
        let parts: Vec<&KeyValues> = shared.iter().chain([&own]).collect();
        attention(queries, &parts, mask, 0.0)
    }
}

fn options(like: &KeyValues) -> (tch::Kind, tch::Device) {
    (like.keys.kind(), like.keys.device())
}

impl KeyValues {
    /// Some of the time.
    fn cut(&self, from: i64, to: i64) -> Result<Self> {
        let cut = |t: &Tensor| t.f_narrow(2, from, to - from);
        Ok(Self { keys: cut(&self.keys)?, values: cut(&self.values)? })
    }

    fn select(&mut self, rows: &Tensor) -> Result<()> {
        self.keys = self.keys.f_index_select(0, rows)?;
        self.values = self.values.f_index_select(0, rows)?;
        Ok(())
    }
}

impl StepWeights {
    fn new(block: &Block) -> Result<Self> {
        Ok(Self {
            qkv: Packed::new(&[&block.q, &block.k, &block.v])?,
            o: Packed::new(&[&block.o])?,
            dense_in: Packed::new(&[&block.gate, &block.up])?,
            down: Packed::new(&[&block.down])?,
        })
    }
}

impl Block {
    /// One block for one new position of every row, `[rows, 1, hidden]`. `mask` hides padding among what the position sees,
    /// `[rows, 1, 1, seen]`.
    pub(in crate::llama) fn step(
        &self,
        x: &Tensor,
        cache: &mut LayerCache,
        rotation: &Rotation,
        place: Place,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (rows, heads, shared) = (x.size()[0], self.heads, self.key_value_heads);
        let weights = match cache.weights.take() {
            Some(weights) => weights,
            None => StepWeights::new(self)?,
        };
        let parts = weights.qkv.linear(&self.attention_norm.forward(x)?)?;
        let parts = parts.f_view_([rows, 1, heads + 2 * shared, -1])?;
        let turned = rotation.rotate(&parts.f_narrow(2, 0, heads + shared)?)?;
        let queries = turned.f_narrow(2, 0, heads)?.f_contiguous()?;
        let keys = turned.f_narrow(2, heads, shared)?.f_squeeze_dim(1)?;
        let values = parts.f_narrow(2, heads + shared, shared)?.f_squeeze_dim(1)?;
        let context = cache.attend(&queries, (&keys, &values), place, mask)?;
        let x = x.f_add(&weights.o.linear(&context)?)?;
        let halves = weights.dense_in.linear(&self.dense_norm.forward(&x)?)?.f_chunk(2, -1)?;
        let inner = gate(Gate::Silu, &halves[0], &halves[1])?;
        let x = x.f_add(&weights.down.linear(&inner)?)?;
        cache.weights = Some(weights);
        Ok(x)
    }
}
