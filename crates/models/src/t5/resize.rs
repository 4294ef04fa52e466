//! Room for new tokens.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::T5;
use crate::{Error, Result, TokenId};

/// Mean and population standard deviation of each column of an embedding `[vocab, width]`, both `[width]` `f32`: new rows
/// are drawn from a normal distribution with these.
///
/// # Errors
/// When libtorch refuses.
pub fn embedding_statistics(embedding: &Tensor) -> Result<(Tensor, Tensor)> {
    let embedding = embedding.f_detach()?.f_to_kind(Kind::Float)?;
    let mean = embedding.f_mean_dim([0i64].as_slice(), false, Kind::Float)?;
    let std = embedding.f_std_dim([0i64].as_slice(), false, false)?;
    Ok((mean, std))
}

impl T5 {
    /// Makes the embedding end with the tokens `ids`, as a tokenizer numbers the ones that it was given last. Their rows
    /// are drawn from a normal distribution with the mean and spread of the old embedding's columns; rows before them
    /// stay, and rows behind them, which no token uses, go: the embedding may become smaller. An output matrix of its own
    /// is treated alike. The same seed gives the same rows.
    ///
    /// The model has new parameters afterwards; an optimizer that knows the old ones does not train it.
    ///
    /// # Errors
    /// When there are no ids, or rows before them would be missing.
    pub fn add_tokens(&mut self, ids: Range<TokenId>, seed: u64) -> Result<()> {
        let vocab = self.config.vocab_size;
        if ids.start < 0 || ids.start > vocab || ids.is_empty() {
            let reason = format!("the tokens {ids:?} do not follow those of a vocabulary of {vocab}");
            return Err(Error::invalid("new tokens", reason));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        self.shared = resized(&self.shared, &ids, &mut rng)?;
        self.parameters.replace("shared.weight", &self.shared);
        if let Some(head) = &self.lm_head {
            let head = resized(head, &ids, &mut rng)?;
            self.parameters.replace("lm_head.weight", &head);
            self.lm_head = Some(head);
        }
        self.config.vocab_size = ids.end;
        Ok(())
    }
}

fn resized(old: &Tensor, ids: &Range<TokenId>, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let (count, width) = (ids.end - ids.start, old.size()[1]);
    let (mean, std) = embedding_statistics(old)?;
    let drawn: Vec<f32> = (0..count * width).map(|_| normal(rng)).collect();
    let drawn = Tensor::f_from_slice(&drawn)?.f_view_([count, width])?.f_to_device(old.device())?;
    let new = drawn.f_mul(&std)?.f_add(&mean)?.f_to_kind(old.kind())?;
    let kept = old.f_detach()?.f_narrow(0, 0, ids.start)?;
    Ok(Tensor::f_cat(&[kept, new], 0)?.f_set_requires_grad(true)?)
}

/// Standard normal, after Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    // In (0, 1], so that the logarithm is finite.
    let (radius, angle) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
}
