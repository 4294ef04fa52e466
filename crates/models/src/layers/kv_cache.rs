//! Keys and values of the tokens that were read, in decoding.

use std::ops::Range;

use ruminate_torch::{KvRef, append_kv, append_kv_at, decode_attention};
use tch::{Device, Kind, Tensor};

use super::attention::attention;
use super::{AttentionBias, AttentionShape, KeyValues, Rope};
use crate::Result;

/// A position in decoding.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Position<'a> {
    /// This one.
    At(i64),
    /// One that only the device knows, `[1]`.
    OnDevice(&'a Tensor),
}

/// The keys and values of one layer. All memory is taken when decoding starts.
#[derive(Debug)]
pub(crate) struct KvCache {
    /// Keys and values of the prompts `[prompts, kv_heads, prompt_len, head_dim]`, where several rows share each.
    shared: Option<KeyValues>,
    /// Keys and values of each row `[rows, kv_heads, capacity, head_dim]`: its prompt, unless that is shared, and its new tokens.
    rows: KeyValues,
}

impl KvCache {
    /// An empty cache for `capacity` tokens in each row, filled with zeros.
    pub(crate) fn empty(
        rows: i64,
        shape: &AttentionShape,
        capacity: i64,
        options: (Kind, Device),
    ) -> Result<Self> {
        let zeros = || Tensor::f_zeros([rows, shape.kv_heads, capacity, shape.head_dim], options);
        Ok(Self { shared: None, rows: KeyValues { keys: zeros()?, values: zeros()? } })
    }

    /// A cache behind prompts that have been read, for `samples_per_prompt` rows each and `max_new` more tokens in each row.
    pub(crate) fn with_prompts(prompts: &KeyValues, samples_per_prompt: i64, max_new: i64) -> Result<Self> {
        let (count, heads, prompt_len, head_dim) = prompts.keys.size4()?;
        let room = |time: i64| -> Result<KeyValues> {
            let options = (prompts.keys.kind(), prompts.keys.device());
            let empty =
                || prompts.keys.f_new_empty([count * samples_per_prompt, heads, time, head_dim], options);
            Ok(KeyValues { keys: empty()?, values: empty()? })
        };
        if samples_per_prompt > 1 {
            let KeyValues { keys, values } = prompts;
            let shared = KeyValues { keys: keys.f_contiguous()?, values: values.f_contiguous()? };
            return Ok(Self { shared: Some(shared), rows: room(max_new)? });
        }
        let rows = room(prompt_len + max_new)?;
        rows.keys.f_narrow(2, 0, prompt_len)?.f_copy_(&prompts.keys)?;
        rows.values.f_narrow(2, 0, prompt_len)?.f_copy_(&prompts.values)?;
        Ok(Self { shared: None, rows })
    }

    /// Zeroes the slots from `position` on. Steps of a fixed shape read unwritten slots before they mask them, so these must not hold
    /// NaN.
    pub(crate) fn zero_unwritten(&self, position: i64) -> Result<()> {
        let first = position - self.prompt_len();
        for states in [&self.rows.keys, &self.rows.values] {
            let _ = states.f_narrow(2, first, states.size()[2] - first)?.f_zero_()?;
        }
        Ok(())
    }

    /// The position of a row's first slot: behind its prompt, where that is shared.
    fn prompt_len(&self) -> i64 {
        self.shared.as_ref().map_or(0, |shared| shared.keys.size()[2])
    }

    pub(crate) fn select_rows(&mut self, rows: &Tensor) -> Result<()> {
        self.rows.select(rows)
    }

    pub(crate) fn select_prompts(&mut self, prompts: &Tensor) -> Result<()> {
        self.shared.as_mut().map_or(Ok(()), |shared| shared.select(prompts))
    }

    /// Appends keys and values of a position, out of `qkv` `[rows, heads + 2 kv_heads, head_dim]`, and attends from it to the
    /// positions `visible`. The result is `[rows, 1, heads * head_dim]`.
    pub(crate) fn attend(
        &self,
        qkv: Tensor,
        rope: Option<&Rope>,
        position: Position<'_>,
        visible: &Range<i64>,
        bias: Option<&Tensor>,
        scale: f64,
    ) -> Result<Tensor> {
        let prompt_len = self.prompt_len();
        let cache = KvRef { keys: &self.rows.keys, values: &self.rows.values };
        let tables = rope.map(Rope::tables);
        let queries = match position {
            Position::At(at) => append_kv(qkv, tables, cache, at - prompt_len)?,
            Position::OnDevice(at) if prompt_len == 0 => append_kv_at(&qkv, tables, cache, at)?,
            Position::OnDevice(at) => append_kv_at(&qkv, tables, cache, &at.f_sub_scalar(prompt_len)?)?,
        };
        let rows = self.rows.narrow((visible.start - prompt_len).max(0), visible.end - prompt_len)?;
        let shared = match &self.shared {
            Some(shared) if visible.start < prompt_len => Some(shared.narrow(visible.start, prompt_len)?),
            _ => None,
        };
        let parts: Vec<&KeyValues> = shared.iter().chain([&rows]).collect();
        attend_from_position(&queries, &parts, bias, scale)
    }
}

/// Attention of one query for each row, `[rows, 1, heads, head_dim]`, without gradients.
pub(crate) fn attend_from_position(
    queries: &Tensor,
    parts: &[&KeyValues],
    bias: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor> {
    let refs: Vec<_> = parts.iter().map(|part| KvRef { keys: &part.keys, values: &part.values }).collect();
    if let Some(context) = decode_attention(queries, &refs, bias, scale)? {
        return Ok(context);
    }
    let bias = match bias {
        Some(bias) => AttentionBias::Scores(bias.shallow_clone().into()),
        None => AttentionBias::None,
    };
    attention(queries, parts, &bias, scale, 0.0)
}

impl KeyValues {
    /// Views of the positions `from..to`.
    fn narrow(&self, from: i64, to: i64) -> Result<Self> {
        let narrow = |t: &Tensor| t.f_narrow(2, from, to - from);
        Ok(Self { keys: narrow(&self.keys)?, values: narrow(&self.values)? })
    }

    /// Keeps some batch entries, in this order.
    pub(crate) fn select(&mut self, entries: &Tensor) -> Result<()> {
        self.keys = self.keys.f_index_select(0, entries)?;
        self.values = self.values.f_index_select(0, entries)?;
        Ok(())
    }
}
