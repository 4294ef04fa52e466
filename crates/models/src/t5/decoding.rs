//! Decoding one token after another.

use ruminate_torch::Packed;
use tch::{Device, Kind, Tensor};

use super::layers::{DecoderCache, Place, Stack};
use super::{Encoded, T5, check_rows, scaled};
use crate::batch::check_range;
use crate::generation::{
    Decoder, FixedSteps, Generate, Generated, GenerationConfig, Started, Steps, generate,
};
use crate::{Error, Result, TokenId, Tokenizer};

/// Decoding one token after another over [`Encoded`] states.
#[derive(Debug)]
pub struct Decoding<'a> {
    model: &'a T5,
    decoder: &'a Stack,
    mask: Tensor,
    cache: DecoderCache,
    output: Packed,
}

impl T5 {
    /// Starts decoding step by step, without dropout: `rows` sequences (a multiple of the encoded batch) of at most `max_time`
    /// tokens. Memory for keys and values is taken here, once; on a CPU also for copies of the decoder's weights, laid out
    /// as steps like them best.
    ///
    /// # Errors
    /// When the model has no decoder, or libtorch refuses.
    pub fn start_decoding(&self, encoded: &Encoded, rows: i64, max_time: i64) -> Result<Decoding<'_>> {
        let decoder = self.decoder()?;
        check_rows(rows, &encoded.states)?;
        if max_time < 1 {
            return Err(Error::invalid(
                "decoding",
                format!("room for {max_time} tokens; there must be 1 at least"),
            ));
        }
        let cache = decoder.cache(&encoded.states, rows, max_time)?;
        let output = Packed::new(&[self.output_projection().0])?;
        Ok(Decoding { model: self, decoder, mask: encoded.mask.shallow_clone(), cache, output })
    }
}

impl Decoding<'_> {
    /// Feeds one token to every row, `[rows, 1]`, and returns the decoder's states after the final norm
    /// `[rows, 1, d_model]`.
    ///
    /// # Errors
    /// When it is not one token per row, more tokens are fed than the cache was made for, or libtorch refuses.
    pub fn step(&mut self, tokens: &Tensor) -> Result<Tensor> {
        self.cache.check(tokens)?;
        // On an accelerator, looking would wait for it.
        if tokens.device() == Device::Cpu {
            check_range("decoder input", tokens, self.model.config.vocab_size)?;
        }
        let place = Place::At(self.cache.step);
        let states = self.decoder.step(self.model.embed(tokens)?, &mut self.cache, place, &self.mask)?;
        self.cache.step += 1;
        Ok(states)
    }

    /// Vocabulary logits of states `[..., d_model]`, in `f32`.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let (_, scale) = self.model.output_projection();
        Ok(self.output.linear(&scaled(states, scale)?)?.f_to_kind(Kind::Float)?)
    }
}

impl Generate for T5 {
    fn generate(
        &self,
        prompts: &[Vec<TokenId>],
        config: &GenerationConfig,
        seeds: &[u64],
    ) -> Result<Vec<Vec<Generated>>> {
        generate(self, prompts, config, seeds)
    }
}

impl Decoder for T5 {
    type Steps<'a> = Decoding<'a>;

    fn device(&self) -> Device {
        self.device
    }

    fn vocab_size(&self) -> i64 {
        self.config.vocab_size
    }

    fn pad_token_id(&self) -> TokenId {
        self.config.pad_token_id
    }

    fn end_ids(&self) -> Vec<TokenId> {
        self.config.eos_token_ids.clone()
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The start token and the prefix are what every row begins with.
    fn bytes_in_flight(&self, prompts: usize, longest: usize, rows: usize, new: usize) -> u64 {
        self.config.decoding_bytes(prompts, longest, rows, new, self.kind())
    }

    fn start(
        &self,
        prompts: &[Vec<TokenId>],
        prefix: &[TokenId],
        each: usize,
        new: usize,
    ) -> Result<Started<Decoding<'_>>> {
        let beginning = [&[self.config.decoder_start_token_id], prefix].concat();
        let (rows, width) = ((prompts.len() * each) as i64, beginning.len() as i64);
        let given = Tensor::f_from_slice(&beginning)?.f_to_device(self.device)?;
        let given = given.f_unsqueeze(0)?.f_repeat([rows, 1])?;
        let encoded = self.encode_with(&self.batch(prompts)?, 0.0, None)?;
        let mut steps = self.start_decoding(&encoded, rows, width + new as i64 - 1)?;
        // All but the last of the given tokens only fill the cache.
        for position in 0..width - 1 {
            let _ = Decoding::step(&mut steps, &given.f_narrow(1, position, 1)?)?;
        }
        let logits = Steps::step(&mut steps, &given.f_narrow(1, width - 1, 1)?)?;
        Ok(Started { steps, logits, given, padding: None })
    }
}

impl Steps for Decoding<'_> {
    fn step(&mut self, tokens: &Tensor) -> Result<Tensor> {
        let states = Decoding::step(self, tokens)?;
        self.logits(&states.f_squeeze_dim(1)?)
    }

    fn reorder(&mut self, rows: &Tensor) -> Result<()> {
        self.cache.select_rows(rows)
    }

    fn keep(&mut self, rows: &Tensor, prompts: &Tensor) -> Result<()> {
        self.mask = self.mask.f_index_select(0, prompts)?;
        self.cache.select_rows(rows)?;
        self.cache.select_sources(prompts)
    }
}

impl FixedSteps for Decoding<'_> {
    /// Its memory begins with zeros.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    fn position(&self) -> i64 {
        self.cache.step
    }

    fn room(&self) -> i64 {
        self.cache.max_time
    }

    fn fixed_step(&mut self, tokens: &Tensor, position: &Tensor, length: i64) -> Result<Tensor> {
        self.cache.check(tokens)?;
        let place = Place::Fixed { position, length };
        let states = self.decoder.step(self.model.embed(tokens)?, &mut self.cache, place, &self.mask)?;
        self.logits(&states.f_squeeze_dim(1)?)
    }

    fn advance(&mut self) {
        self.cache.step += 1;
    }
}
