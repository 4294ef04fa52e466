//! Decoding one token after another.

use ruminate_torch::Packed;
use tch::{Device, Kind, Tensor};

use super::layers::{At, LayerCache, Place};
use super::policy::check_prompts;
use super::rope::Rotation;
use super::{HIDDEN, Llama, padded};
use crate::generation::{
    Decoder, FixedSteps, Generate, Generated, GenerationConfig, Started, Steps, generate,
};
use crate::{Result, Side, TokenId, Tokenizer};

/// Decoding in progress. All memory for keys and values is taken when it starts.
pub(crate) struct LlamaSteps<'a> {
    model: &'a Llama,
    layers: Vec<LayerCache>,
    /// The output matrix; none where the first token is the last.
    output: Option<Packed>,
    /// The turns of all positions.
    rotation: Rotation,
    /// Score offsets `[rows, 1, 1, given + new]` that hide padding, where there is some.
    mask: Option<Tensor>,
    /// Tokens of each prompt without padding `[rows]`, where there is some.
    lengths: Option<Tensor>,
    /// Tokens that were given, padding included.
    given: i64,
    /// Positions that there is room for.
    room: i64,
    /// New tokens that have been read.
    read: i64,
}

impl Generate for Llama {
    fn generate(
        &self,
        prompts: &[Vec<TokenId>],
        config: &GenerationConfig,
        seeds: &[u64],
    ) -> Result<Vec<Vec<Generated>>> {
        generate(self, prompts, config, seeds)
    }
}

impl Decoder for Llama {
    type Steps<'a> = LlamaSteps<'a>;

    fn device(&self) -> Device {
        self.device
    }

    fn vocab_size(&self) -> i64 {
        self.config.vocab_size
    }

    fn pad_token_id(&self) -> TokenId {
        self.pad()
    }

    fn end_ids(&self) -> Vec<TokenId> {
        self.config.eos_token_ids.clone()
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    fn bytes_in_flight(&self, prompts: usize, longest: usize, rows: usize, new: usize) -> u64 {
        self.config.decoding_bytes(prompts, longest, rows, new, self.kind)
    }

    fn start(
        &self,
        prompts: &[Vec<TokenId>],
        prefix: &[TokenId],
        each: usize,
        new: usize,
    ) -> Result<Started<LlamaSteps<'_>>> {
        check_prompts(prompts)?;
        let rows: Vec<Vec<TokenId>> = prompts.iter().map(|prompt| [prompt, prefix].concat()).collect();
        let batch = self.batch(&rows, Side::Left)?;
        let (count, given) = batch.ids.size2()?;
        let (each, new) = (each as i64, new as i64);
        let spread = |t: &Tensor| match each {
            1 => Ok(t.shallow_clone()),
            _ => t.f_repeat_interleave_self_int(each, 0, count * each),
        };
        let pass = self.pass(&batch, 0.0)?;
        let (states, cache) = self.stack.forward_behind(self.look_up(&batch.ids)?, &pass, None)?;
        let last = states.f_select(1, given - 1)?;
        let output = if new > 1 { Some(Packed::new(&[self.output()])?) } else { None };
        let logits = spread(&self.logits_by(output.as_ref(), &last)?)?;
        // The last new token is never read.
        let layers = cache.iter().map(|prompts| LayerCache::new(prompts, each, new - 1));
        let layers = layers.collect::<Result<_>>()?;
        let all = Tensor::f_arange(given + new, (Kind::Int64, self.device))?.f_unsqueeze(0)?;
        let (mut mask, mut lengths, mut padding) = (None, None, None);
        if padded(&batch) {
            let real = batch.mask.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?;
            let room = batch.mask.f_new_ones([count, new], (Kind::Int64, self.device))?;
            mask = Some(spread(&self.hidden(&Tensor::f_cat(&[&batch.mask, &room], 1)?)?)?);
            padding = Some(spread(&real.f_neg()?.f_add_scalar(given)?.f_unsqueeze(1)?)?);
            lengths = Some(spread(&real)?);
        }
        let rotation = Rotation::new(&self.config, &all, self.kind)?;
        let steps = LlamaSteps {
            model: self,
            layers,
            output,
            rotation,
            mask,
            lengths,
            given,
            room: given + new - 1,
            read: 0,
        };
        Ok(Started { steps, logits, given: spread(&batch.ids)?, padding })
    }
}

impl Llama {
    /// As [`logits`](Self::logits), by a packed output matrix where there is one.
    fn logits_by(&self, output: Option<&Packed>, states: &Tensor) -> Result<Tensor> {
        match output {
            Some(output) => Ok(output.linear(states)?.f_to_kind(Kind::Float)?),
            None => self.logits(states),
        }
    }
}

impl LlamaSteps<'_> {
    /// Reads one token of every row, `[rows, 1]`; logits of the next one `[rows, vocab]`.
    fn read(
        &mut self,
        tokens: &Tensor,
        rotation: &Rotation,
        place: Place<'_>,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut x = self.model.look_up(tokens)?;
        for (block, layer) in self.model.stack.blocks.iter().zip(&mut self.layers) {
            x = block.step(&x, layer, rotation, place, mask)?;
        }
        let (norm, x) = (&self.model.stack.final_norm, x.f_squeeze_dim(1)?);
        match &self.output {
            Some(output) => Ok(output.linear_after(norm.before(), &x, None)?.f_to_kind(Kind::Float)?),
            None => self.model.logits(&norm.forward(&x)?),
        }
    }
}

impl Steps for LlamaSteps<'_> {
    fn step(&mut self, tokens: &Tensor) -> Result<Tensor> {
        let at = self.position();
        // What has left the window is not even looked at.
        let from = self.model.config.sliding_window.map_or(0, |window| (at - window + 1).max(0));
        let rotation = match &self.lengths {
            Some(lengths) => self.rotation.of_rows(&lengths.f_add_scalar(self.read)?)?,
            None => self.rotation.at(at)?,
        };
        let mask = self.mask.as_ref().map(|mask| mask.f_narrow(3, from, at - from + 1)).transpose()?;
        let place = Place { given: self.given, at: At::Known(at), from, to: at + 1 };
        let logits = self.read(tokens, &rotation, place, mask.as_ref())?;
        self.advance();
        Ok(logits)
    }

    fn reorder(&mut self, rows: &Tensor) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.select_rows(rows))
    }

    fn keep(&mut self, rows: &Tensor, prompts: &Tensor) -> Result<()> {
        for layer in &mut self.layers {
            layer.select_rows(rows)?;
            layer.select_prompts(prompts)?;
        }
        let take = |t: &Tensor| t.f_index_select(0, rows);
        self.mask = self.mask.as_ref().map(take).transpose()?;
        self.lengths = self.lengths.as_ref().map(take).transpose()?;
        Ok(())
    }
}

impl FixedSteps for LlamaSteps<'_> {
    fn prepare(&mut self) -> Result<()> {
        self.layers.iter().try_for_each(|layer| layer.clear_room(self.given))
    }

    fn position(&self) -> i64 {
        self.given + self.read
    }

    fn room(&self) -> i64 {
        self.room
    }

    fn fixed_step(&mut self, tokens: &Tensor, position: &Tensor, length: i64) -> Result<Tensor> {
        let rotation = match &self.lengths {
            Some(lengths) => self.rotation.of_rows(&lengths.f_add(position)?.f_sub_scalar(self.given)?)?,
            None => self.rotation.of_rows(position)?,
        };
        let keys = Tensor::f_arange(length, (Kind::Int64, self.model.device))?;
        let mut hidden = keys.f_gt_tensor(position)?;
        if let Some(window) = self.model.config.sliding_window {
            hidden = hidden.f_logical_or(&keys.f_le_tensor(&position.f_sub_scalar(window)?)?)?;
        }
        let mask = match &self.mask {
            Some(mask) => mask.f_narrow(3, 0, length)?,
            None => Tensor::f_zeros([1, 1, 1, length], (self.model.kind, self.model.device))?,
        };
        let mask = mask.f_masked_fill(&hidden, HIDDEN)?;
        let place = Place { given: self.given, at: At::OnDevice(position), from: 0, to: length };
        self.read(tokens, &rotation, place, Some(&mask))
    }

    fn advance(&mut self) {
        self.read += 1;
    }
}
