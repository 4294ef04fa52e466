//! One new position at a time, with keys and values of those before.

use ruminate_torch::{Before, Gate, KeysValues, Packed, look_up, remember, remember_at};
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

/// Where a new token stands, padding included, and what it looks at.
#[derive(Debug, Clone, Copy)]
pub(in crate::llama) struct Place<'a> {
    /// Tokens of the prompts.
    pub(in crate::llama) given: i64,
    /// The token's position.
    pub(in crate::llama) at: At<'a>,
    /// The first position that it looks at.
    pub(in crate::llama) from: i64,
    /// The position behind the last one.
    pub(in crate::llama) to: i64,
}

/// A position.
#[derive(Debug, Clone, Copy)]
pub(in crate::llama) enum At<'a> {
    /// This one.
    Known(i64),
    /// One that the device knows, `[1]`.
    OnDevice(&'a Tensor),
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

    /// Makes numbers of what has not been written yet; of the prompts, `given` tokens have.
    pub(in crate::llama) fn clear_room(&self, given: i64) -> Result<()> {
        let first = if self.shared.is_some() { 0 } else { given };
        for states in [&self.own.keys, &self.own.values] {
            let _ = states.f_narrow(2, first, states.size()[2] - first)?.f_zero_()?;
        }
        Ok(())
    }

    pub(in crate::llama) fn select_rows(&mut self, rows: &Tensor) -> Result<()> {
        self.own.select(rows)
    }

    pub(in crate::llama) fn select_prompts(&mut self, prompts: &Tensor) -> Result<()> {
        self.shared.as_mut().map_or(Ok(()), |shared| shared.select(prompts))
    }

    /// Stores the keys and values of a position, whose `states` `[rows, heads + 2 * key_value_heads, head_dim]` are given, and
    /// attends from it.
    fn attend(
        &mut self,
        states: Tensor,
        rotation: &Rotation,
        Place { given, at, from, to }: Place<'_>,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        // The position of the first own entry.
        let first = if self.shared.is_some() { given } else { 0 };
        let cache = KeysValues { keys: &self.own.keys, values: &self.own.values };
        let turn = Some(rotation.tables());
        let queries = match at {
            At::Known(at) => remember(states, turn, cache, at - first)?,
            At::OnDevice(at) => remember_at(&states, turn, cache, &at.f_sub_scalar(first)?)?,
        };
        let own = self.own.cut((from - first).max(0), to - first)?;
        let shared = match &self.shared {
            Some(shared) if from < given => Some(shared.cut(from, given)?),
            _ => None,
        };
        let parts: Vec<&KeyValues> = shared.iter().chain([&own]).collect();
        let seen: Vec<_> =
            parts.iter().map(|part| KeysValues { keys: &part.keys, values: &part.values }).collect();
        let scale = (queries.size()[3] as f64).powf(-0.5);
        match look_up(&queries, &seen, mask, scale)? {
            Some(context) => Ok(context),
            None => attention(&queries, &parts, mask, 0.0),
        }
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
        place: Place<'_>,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (rows, heads, shared) = (x.size()[0], self.heads, self.key_value_heads);
        let weights = match cache.weights.take() {
            Some(weights) => weights,
            None => StepWeights::new(self)?,
        };
        let states = weights.qkv.linear_after(self.attention_norm.before(), x, None)?;
        let states = states.f_view_([rows, heads + 2 * shared, -1])?;
        let context = cache.attend(states, rotation, place, mask)?;
        let x = weights.o.linear_after(Before::Nothing, &context, Some(x))?;
        let inner = weights.dense_in.linear_after(self.dense_norm.before(), &x, None)?;
        let x = weights.down.linear_after(Before::Gate(Gate::Silu), &inner, Some(&x))?;
        cache.weights = Some(weights);
        Ok(x)
    }
}
