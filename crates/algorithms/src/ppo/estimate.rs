//! Token rewards, whitening and generalised advantage estimation (arXiv 1506.02438), in plain numbers: a rollout has
//! few of them, and all that follows takes them as constants.
//!
//! [`Compat`] decides between the arithmetic of Crystal's published code and the textbook's. Everything in which the
//! two differ is in [`spread`], [`hide_padding`] and [`last_token`].

use ndarray::{Array2, ArrayView1, Zip};
use ruminate_datasets::Compat;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// One number per token, `[batch, time]`.
pub type Grid = Array2<f64>;

/// True for the real tokens of a rollout, `[batch, time]`.
pub type Mask = Array2<bool>;

/// Sums over real tokens, from which mean and variance follow. Those of several processes are added.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Moments {
    /// Real tokens.
    pub count: f64,
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub squares: f64,
}

impl Moments {
    /// Of the real tokens of a grid.
    #[must_use]
    pub fn of(values: &Grid, mask: &Mask) -> Self {
        let mut moments = Self::default();
        for (&x, _) in values.iter().zip(mask).filter(|&(_, &real)| real) {
            moments.count += 1.0;
            moments.sum += x;
            moments.squares += x * x;
        }
        moments
    }

    /// Mean; NaN without tokens.
    #[must_use]
    pub fn mean(self) -> f64 {
        self.sum / self.count
    }

    /// Population variance. Rounding does not make it negative.
    #[must_use]
    pub fn variance(self) -> f64 {
        (self.squares / self.count - self.mean().powi(2)).max(0.0)
    }
}

impl std::ops::Add for Moments {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
        }
    }
}

/// What whitening divides by.
///
/// # Reference behaviour
/// The published code divides by the root of the standard deviation.
fn spread(compat: Compat, moments: Moments) -> f64 {
    match compat {
        Compat::Reference => (moments.variance().sqrt() + 1e-8).sqrt(),
        Compat::Corrected => (moments.variance() + 1e-8).sqrt(),
    }
}

/// Sets padding to 0.
///
/// # Reference behaviour
/// The published code leaves whatever whitening made of it, which leaks into the advantages of short rows.
fn hide_padding(compat: Compat, values: Grid, mask: &Mask) -> Grid {
    match compat {
        Compat::Reference => values,
        Compat::Corrected => fill_padding(values, mask, 0.0),
    }
}

/// Sets padding to `fill`.
#[must_use]
pub fn fill_padding(mut values: Grid, mask: &Mask, fill: f64) -> Grid {
    values.iter_mut().zip(mask).filter(|&(_, &real)| !real).for_each(|(x, _)| *x = fill);
    values
}

/// Where the reward of a whole response counts.
///
/// # Reference behaviour
/// The published code counts the real tokens, which is another place when there is padding among them.
fn last_token(compat: Compat, mask: ArrayView1<bool>) -> Option<usize> {
    match compat {
        Compat::Reference => mask.iter().filter(|&&real| real).count().checked_sub(1),
        Compat::Corrected => mask.iter().rposition(|&real| real),
    }
}

/// `(x - mean) / spread` with the moments of all processes; with `keep_mean`, the mean is added back.
#[must_use]
pub fn whiten(compat: Compat, values: &Grid, mask: &Mask, moments: Moments, keep_mean: bool) -> Grid {
    let (mean, spread) = (moments.mean(), spread(compat, moments));
    let shift = if keep_mean { mean } else { 0.0 };
    hide_padding(compat, values.mapv(|x| (x - mean) / spread + shift), mask)
}

/// `-kl_coef * kl` at every real token, and each response's reward at its end.
///
/// # Errors
/// When a response has no token, or the three do not have the same rows and positions.
pub fn token_rewards(compat: Compat, kl: &Grid, rewards: &[f64], mask: &Mask, kl_coef: f64) -> Result<Grid> {
    same_shape("divergences", kl, mask)?;
    if kl.nrows() != rewards.len() {
        let reason = format!("has divergences of {} responses and rewards of {}", kl.nrows(), rewards.len());
        return Err(Error::config("rollout", reason));
    }
    let mut tokens = Zip::from(kl).and(mask).map_collect(|kl, &real| if real { -kl_coef * kl } else { 0.0 });
    for (i, reward) in rewards.iter().enumerate() {
        let end = last_token(compat, mask.row(i)).ok_or_else(|| {
            Error::config("rollout", format!("response {i} has no token that a reward could be given for"))
        })?;
        tokens[[i, end]] += reward;
    }
    Ok(tokens)
}

fn same_shape(name: &str, grid: &Grid, mask: &Mask) -> Result<()> {
    if grid.dim() == mask.dim() {
        return Ok(());
    }
    let reason = format!("has {name} of shape {:?} and a mask of shape {:?}", grid.shape(), mask.shape());
    Err(Error::config("rollout", reason))
}

/// Advantages `A_t = delta_t + gamma * lambda * A_{t+1}` with `delta_t = r_t + gamma * V_{t+1} - V_t`, over as many
/// positions as the longest response has tokens, 0 behind.
///
/// # Errors
/// When the three do not have one shape.
pub fn advantages(rewards: &Grid, values: &Grid, mask: &Mask, gamma: f64, lambda: f64) -> Result<Grid> {
    same_shape("rewards", rewards, mask)?;
    same_shape("values", values, mask)?;
    let real = |row: ArrayView1<bool>| row.iter().filter(|&&real| real).count();
    let length = mask.rows().into_iter().map(real).max().unwrap_or(0);
    let mut advantages = Grid::zeros(rewards.raw_dim());
    for i in 0..rewards.nrows() {
        let (mut next_value, mut next) = (0.0, 0.0);
        for t in (0..length).rev() {
            let delta = rewards[[i, t]] + gamma * next_value - values[[i, t]];
            next = delta + gamma * lambda * next;
            next_value = values[[i, t]];
            advantages[[i, t]] = next;
        }
    }
    Ok(advantages)
}

/// What the optimisation epochs need to know of a rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimates {
    /// Token rewards after whitening, or as they were.
    pub rewards: Grid,
    /// Advantages before whitening.
    pub advantages: Grid,
    /// Advantages plus old values: what the values are trained on.
    pub returns: Grid,
    /// Advantages with mean 0 and unit spread: what the policy is trained on.
    pub whitened_advantages: Grid,
}

/// Settings of [`Estimates::new`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimation {
    /// Whose arithmetic.
    pub compat: Compat,
    /// Whether token rewards are scaled to unit spread; they keep their mean.
    pub whiten_rewards: bool,
    /// Discount of later rewards.
    pub gamma: f64,
    /// Trade-off between bias (0) and variance (1).
    pub lambda: f64,
}

impl Estimates {
    /// From the token rewards and old values of a rollout; old values are 0 at padding. `reduce` adds the moments of all
    /// processes.
    ///
    /// # Errors
    /// Those of `reduce`, and when rewards, values and mask do not have one shape.
    pub fn new(
        how: Estimation,
        rewards: &Grid,
        values: &Grid,
        mask: &Mask,
        mut reduce: impl FnMut(Moments) -> Result<Moments>,
    ) -> Result<Self> {
        let rewards = if how.whiten_rewards {
            let moments = reduce(Moments::of(rewards, mask))?;
            whiten(how.compat, rewards, mask, moments, true)
        } else {
            rewards.clone()
        };
        let advantages = advantages(&rewards, values, mask, how.gamma, how.lambda)?;
        let moments = reduce(Moments::of(&advantages, mask))?;
        let whitened_advantages = whiten(how.compat, &advantages, mask, moments, false);
        Ok(Self { rewards, returns: &advantages + values, advantages, whitened_advantages })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Axis, array, concatenate};

    use super::*;

    const HOW: Estimation =
        Estimation { compat: Compat::Corrected, whiten_rewards: true, gamma: 0.9, lambda: 0.8 };

    fn estimate(how: Estimation, rewards: &Grid, values: &Grid, mask: &Mask) -> Estimates {
        Estimates::new(how, rewards, values, mask, Ok).unwrap()
    }

    #[test]
    fn padding_is_invisible_in_corrected_mode() {
        let rewards = array![[0.3, -1.0, 2.0], [0.5, 0.1, 0.0]];
        let values = array![[0.2, 0.4, -0.3], [1.0, -0.5, 0.0]];
        let mask = array![[true, true, true], [true, true, false]];
        let wide = |grid: &Grid, fill: f64| concatenate![Axis(1), *grid, Grid::from_elem((2, 2), fill)];
        let wide_mask = concatenate![Axis(1), mask, Mask::from_elem((2, 2), false)];
        let narrow = estimate(HOW, &rewards, &values, &mask);
        // Values at padding are 0 by contract, rewards there must not matter.
        let padded = estimate(HOW, &wide(&rewards, 7.0), &wide(&values, 0.0), &wide_mask);
        assert_eq!(padded.whitened_advantages, wide(&narrow.whitened_advantages, 0.0));
        // The short row's end is the end of its recursion.
        let row = advantages(&array![[1.0]], &array![[0.25]], &array![[true]], 0.9, 0.8).unwrap();
        assert_eq!(row, array![[0.75]]);
    }

    #[test]
    fn padding_leaks_in_reference_mode_up_to_the_longest_row() {
        let mask = array![[true, true, false, false], [true, false, false, false]];
        let rewards = array![[1.0, 2.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]];
        let how = Estimation { compat: Compat::Reference, gamma: 1.0, lambda: 1.0, ..HOW };
        let estimates = estimate(how, &rewards, &Grid::zeros((2, 4)), &mask);
        assert!(estimates.advantages[[1, 1]] != 0.0);
        assert_eq!(estimates.advantages.row(1).to_vec()[2..], [0.0, 0.0]);
    }

    #[test]
    fn rewards_go_to_the_end_of_a_response() {
        let kl = array![[0.5, 1.0, 9.0]];
        let holes = array![[true, false, true]];
        let rewards = |compat, mask: &Mask| token_rewards(compat, &kl, &[2.0], mask, 0.1);
        assert_eq!(rewards(Compat::Corrected, &holes).unwrap(), array![[-0.05, 0.0, -0.9 + 2.0]]);
        assert_eq!(rewards(Compat::Reference, &holes).unwrap(), array![[-0.05, 2.0, -0.9]]);
        for shape in [(1, 4), (2, 3), (0, 0)] {
            let mask = Mask::from_elem(shape, true);
            let error = rewards(Compat::Corrected, &mask).unwrap_err().to_string();
            assert!(error.contains("divergences of shape [1, 3]"), "{error}");
            assert!(advantages(&kl, &kl, &mask, 1.0, 1.0).is_err());
        }
        let error = token_rewards(Compat::Corrected, &kl, &[], &holes, 0.1).unwrap_err().to_string();
        assert!(error.contains("divergences of 1 responses and rewards of 0"), "{error}");
        let error = rewards(Compat::Reference, &array![[false, false, false]]).unwrap_err().to_string();
        assert!(error.contains("response 0 has no token"), "{error}");
    }

    #[test]
    fn equal_values_are_whitened_without_dividing_by_nothing() {
        let (values, mask) = (array![[3.0, 3.0]], array![[true, true]]);
        for compat in [Compat::Reference, Compat::Corrected] {
            let moments = Moments::of(&values, &mask);
            assert_eq!(whiten(compat, &values, &mask, moments, true), array![[3.0, 3.0]]);
            assert_eq!(whiten(compat, &values, &mask, moments, false), array![[0.0, 0.0]]);
        }
    }
}
