//! Rotary positions (arXiv 2104.09864) and their scaling.

use std::f64::consts::TAU;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::config::LlamaConfig;
use crate::Result;
use crate::config::{Keys, refuse};

/// How rotary frequencies are stretched, so that a model reads longer texts than it was first trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by the factor.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: only low frequencies are divided by the factor, with a smooth passage to those that stay.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings` through this are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings` through this stay.
        high_freq_factor: f64,
        /// Positions before the stretch.
        original_max_position_embeddings: i64,
    },
}

/// Rotary settings outside of the dictionary `rope_parameters` or `rope_scaling`.
struct Outer {
    partial_rotary_factor: Option<f64>,
    original: Option<i64>,
    /// `max_position_embeddings`.
    positions: i64,
}

impl RopeScaling {
    /// Base of the frequencies and scaling, from `rope_parameters`, or from `rope_theta` and `rope_scaling`. Both may be
    /// there if they agree. `positions` are `max_position_embeddings`.
    pub(super) fn read(keys: &mut Keys, positions: i64) -> Result<(f64, Self)> {
        // Settings beside the dictionary, which stand for those that it lacks.
        let outer = Outer {
            partial_rotary_factor: keys.nullable("partial_rotary_factor", None)?,
            original: keys.nullable("original_max_position_embeddings", None)?,
            positions,
        };
        let mut read = |key| match keys.take(key) {
            Some(Value::Null) | None => Ok(None),
            Some(value) => Self::inner(keys.inside(key, value)?, &outer).map(Some),
        };
        let (new, old) = (read("rope_parameters")?, read("rope_scaling")?);
        if let (Some((_, new)), Some((_, old))) = (&new, &old)
            && new != old
        {
            return Err(refuse("rope_scaling", "contradicts rope_parameters".into()));
        }
        let (inner, scaling) = new.or(old).unwrap_or((None, Self::None));
        let theta: Option<f64> = match inner {
            // Then the outer one is not read.
            Some(_) => keys.nullable("rope_theta", None)?,
            None => keys.optional("rope_theta")?,
        };
        if let (Some(theta), Some(inner)) = (theta, inner)
            && theta != inner
        {
            return Err(refuse("rope_theta", format!("is {theta} and, in rope_parameters, {inner}")));
        }
        Ok((inner.or(theta).unwrap_or(10_000.0), scaling))
    }

    /// One of the two dictionaries, in all spellings.
    fn inner(mut keys: Keys, outer: &Outer) -> Result<(Option<f64>, Self)> {
        let (new, old) = (keys.optional::<String>("rope_type")?, keys.optional::<String>("type")?);
        if let (Some(new), Some(old)) = (&new, &old)
            && new != old
        {
            return Err(keys.refuse("rope_type", format!("`{new}` contradicts type `{old}`")));
        }
        let theta = keys.optional("rope_theta")?;
        let name = new.or(old).unwrap_or_else(|| "default".into());
        if name != "default" {
            let inner = keys.optional::<f64>("partial_rotary_factor")?;
            if let Some(share) = inner.or(outer.partial_rotary_factor).filter(|&share| share != 1.0) {
                return Err(keys.refuse("partial_rotary_factor", format!("{share} is not implemented")));
            }
        }
        let scaling = match name.as_str() {
            "default" => Self::None,
            "linear" => Self::Linear { factor: keys.required("factor")? },
            "llama3" => {
                let inner = keys.optional("original_max_position_embeddings")?;
                Self::Llama3 {
                    factor: keys.required("factor")?,
                    low_freq_factor: keys.required("low_freq_factor")?,
                    high_freq_factor: keys.required("high_freq_factor")?,
                    original_max_position_embeddings: outer.original.or(inner).unwrap_or(outer.positions),
                }
            }
            other => {
                let reason = format!("`{other}` is not implemented; known are default, linear and llama3");
                return Err(keys.refuse("rope_type", reason));
            }
        };
        if let Some(layers) = keys.nested() {
            let reason =
                "holds settings of its own: a rotary embedding for each kind of layer is not implemented";
            return Err(keys.refuse(&layers, reason.into()));
        }
        keys.finish();
        Ok((theta, scaling))
    }

    /// In the spelling that transformers 4 and 5 both read.
    pub(super) fn to_json(self) -> Value {
        match self {
            Self::None => Value::Null,
            // Before 4.43 the key was `type`.
            Self::Linear { factor } => json!({"type": "linear", "rope_type": "linear", "factor": factor}),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                })
            }
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let refuse = |reason: String| Err(refuse("rope_scaling", reason));
        let factor = match *self {
            Self::None => 1.0,
            Self::Linear { factor } | Self::Llama3 { factor, .. } => factor,
        };
        if !(factor >= 1.0 && factor.is_finite()) {
            return refuse(format!("factor is {factor}, but must be at least 1"));
        }
        if let Self::Llama3 { low_freq_factor, high_freq_factor, original_max_position_embeddings, .. } =
            *self
        {
            if !(low_freq_factor > 0.0 && high_freq_factor > low_freq_factor && high_freq_factor.is_finite())
            {
                return refuse(format!(
                    "low_freq_factor {low_freq_factor} must be above 0 and below high_freq_factor {high_freq_factor}"
                ));
            }
            if original_max_position_embeddings < 1 {
                return refuse("original_max_position_embeddings must be at least 1".into());
            }
        }
        Ok(())
    }

    /// The frequencies after scaling, from those before it, in radians per position.
    ///
    /// # Reference behaviour
    /// transformers works in `f32` and divides a number by a tensor as the tensor's reciprocal times the number. Every operation here
    /// stands in its order: angles at position 8000 differ visibly otherwise.
    fn apply(&self, frequencies: Tensor) -> Result<Tensor> {
        match *self {
            Self::None => Ok(frequencies),
            Self::Linear { factor } => Ok(frequencies.f_div_scalar(factor)?),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings,
            } => {
                let old = original_max_position_embeddings as f64;
                let wavelengths = frequencies.f_reciprocal()?.f_mul_scalar(TAU)?;
                let long = wavelengths.f_gt(old / low)?;
                let short = wavelengths.f_lt(old / high)?;
                let scaled = frequencies.f_div_scalar(factor)?.f_where_self(&long, &frequencies)?;
                // 1 for frequencies that stay, 0 for those that are stretched.
                let stays = wavelengths.f_reciprocal()?.f_mul_scalar(old)?;
                let stays = stays.f_sub_scalar(low)?.f_div_scalar(high - low)?;
                let stretched = stays.f_neg()?.f_add_scalar(1.0)?.f_mul(&scaled)?.f_div_scalar(factor)?;
                let smooth = stretched.f_add(&stays.f_mul(&scaled)?)?;
                Ok(scaled.f_where_self(&long.f_logical_or(&short)?, &smooth)?)
            }
        }
    }
}

impl LlamaConfig {
    /// Angles per position in radians, `head_dim / 2` of them, after scaling; in `f32` as transformers computes them.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn rotary_frequencies(&self) -> Result<Vec<f32>> {
        Ok(Vec::try_from(self.frequencies()?)?)
    }

    /// The frequencies as a tensor on the CPU.
    fn frequencies(&self) -> Result<Tensor> {
        let even = Tensor::f_arange_start_step(0, self.head_dim, 2, (Kind::Float, Device::Cpu))?;
        let exponents = even.f_div_scalar(self.head_dim)?;
        let base = Tensor::f_pow_scalar(self.rope_theta, &exponents)?.f_reciprocal()?;
        self.rope_scaling.apply(base)
    }

    /// Cosines and sines `[..., head_dim]` of `i64` positions `[...]`, `f32`, in the layout where element `i` turns with
    /// element `i + head_dim / 2`: both halves are the same.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn rotary(&self, positions: &Tensor) -> Result<(Tensor, Tensor)> {
        let frequencies = self.frequencies()?.f_to_device(positions.device())?;
        let angles = positions.f_to_kind(Kind::Float)?.f_unsqueeze(-1)?.f_mul(&frequencies)?;
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?;
        Ok((angles.f_cos()?, angles.f_sin()?))
    }
}

/// Cosines and sines as [`rotate`](Self::rotate) uses them, in the model's precision.
#[derive(Debug)]
pub(super) struct Rotation {
    /// `[1 or rows, time, 1, head_dim]`.
    cos: Tensor,
    /// The same for the sines, those of the first half negated.
    sin: Tensor,
}

impl Rotation {
    /// Of positions `[1 or rows, time]`.
    pub(super) fn new(config: &LlamaConfig, positions: &Tensor, kind: Kind) -> Result<Self> {
        let (cos, sin) = config.rotary(positions)?;
        let first = sin.f_narrow(-1, 0, config.head_dim / 2)?;
        first.shallow_clone().f_copy_(&first.f_neg()?)?;
        let shaped = |t: &Tensor| t.f_unsqueeze(2)?.f_to_kind(kind);
        Ok(Self { cos: shaped(&cos)?, sin: shaped(&sin)? })
    }

    /// Turns `x` `[rows, time, heads, head_dim]`.
    pub(super) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ruminate_torch::rotate(x, &self.cos, &self.sin)?)
    }

    /// The turns of some positions, one for each row, `[rows]`, out of those of all positions from 0 on.
    pub(super) fn of_rows(&self, positions: &Tensor) -> Result<Self> {
        let take = |t: &Tensor| t.f_index_select(1, positions)?.f_transpose(0, 1);
        Ok(Self { cos: take(&self.cos)?, sin: take(&self.sin)? })
    }

    /// The turn of one position for all rows.
    pub(super) fn at(&self, position: i64) -> Result<Self> {
        Ok(Self { cos: self.cos.f_narrow(1, position, 1)?, sin: self.sin.f_narrow(1, position, 1)? })
    }

    /// Cosines and sines.
    pub(super) fn tables(&self) -> (&Tensor, &Tensor) {
        (&self.cos, &self.sin)
    }

    pub(super) fn share(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }
}
