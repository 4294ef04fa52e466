//! Rows for new tokens, in matrices that have one for each.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::{Error, Result, TokenId};

/// Mean and population standard deviation of each column of an embedding `[vocab, width]`, both `[width]` `f32`: new rows
/// are drawn from a normal distribution with these.
///
/// # Errors
/// When libtorch refuses.
pub fn embedding_statistics(embedding: &Tensor) -> Result<(Tensor, Tensor)> {
    if embedding.dim() != 2 || embedding.numel() == 0 {
        let reason = format!("{:?}, but must be [vocab, width]", embedding.size());
        return Err(Error::invalid("embedding", reason));
    }
    let embedding = embedding.f_detach()?.f_to_kind(Kind::Float)?;
    let mean = embedding.f_mean_dim([0i64].as_slice(), false, Kind::Float)?;
    let std = embedding.f_std_dim([0i64].as_slice(), false, false)?;
    Ok((mean, std))
}

/// The matrices `[vocab, width]` with rows for the tokens `ids` instead of whatever stood at their first one and behind it.
pub(crate) fn resized<const N: usize>(
    matrices: [Option<&Tensor>; N],
    vocab: i64,
    ids: &Range<TokenId>,
    seed: u64,
) -> Result<[Option<Tensor>; N]> {
    if ids.start < 0 || ids.start > vocab || ids.is_empty() {
        let reason = format!("the tokens {ids:?} do not follow those of a vocabulary of {vocab}");
        return Err(Error::invalid("new tokens", reason));
    }
    let width = matrices.iter().flatten().filter_map(|matrix| matrix.size().last().copied()).max();
    if (ids.end - ids.start).checked_mul(width.unwrap_or(1)).is_none_or(|n| n > i64::from(i32::MAX)) {
        return Err(Error::invalid("new tokens", format!("{ids:?} are more than fit into memory")));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut new = [const { None }; N];
    for (new, old) in new.iter_mut().zip(matrices) {
        *new = old.map(|old| with_rows(old, ids, &mut rng)).transpose()?;
    }
    Ok(new)
}

fn with_rows(old: &Tensor, ids: &Range<TokenId>, rng: &mut ChaCha8Rng) -> Result<Tensor> {
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
