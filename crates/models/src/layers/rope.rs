//! Rotary position embeddings, RoPE (arXiv 2104.09864), and their scaling to longer texts.

use std::f64::consts::{PI, TAU};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::config::{Keys, refuse};

/// How the frequencies of rotary positions are scaled, so that a model reads longer texts than it was first trained on.
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
    /// YaRN (arXiv 2309.00071): low frequencies are divided by the factor, high ones stay, with a linear ramp between them.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Positions before the stretch.
        original_max_position_embeddings: i64,
        /// Cosines and sines are multiplied by this.
        attention_factor: f64,
        /// Frequencies with more rotations than this over the original positions stay.
        beta_fast: f64,
        /// Frequencies with fewer rotations than this are divided by the whole factor.
        beta_slow: f64,
        /// Whether the ends of the ramp are rounded to whole dimensions.
        truncate: bool,
    },
    /// Dynamic NTK: beyond `max_position_embeddings` the base grows with the length of the text.
    Dynamic {
        /// At least 1.
        factor: f64,
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
    pub(crate) fn read(keys: &mut Keys, positions: i64) -> Result<(f64, Self)> {
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
            "yarn" => Self::read_yarn(&mut keys, outer)?,
            "dynamic" => Self::Dynamic { factor: keys.required("factor")? },
            other => {
                let reason = format!(
                    "`{other}` is not implemented; known are default, linear, llama3, yarn and dynamic"
                );
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

    fn read_yarn(keys: &mut Keys, outer: &Outer) -> Result<Self> {
        let inner = keys.optional("original_max_position_embeddings")?;
        let factor: f64 = keys.required("factor")?;
        // Zero stands for a missing number in transformers.
        let mut number =
            |key| Ok::<_, crate::Error>(keys.nullable::<f64>(key, None)?.filter(|&number| number != 0.0));
        let (mscale, mscale_all_dim) = (number("mscale")?, number("mscale_all_dim")?);
        let (beta_fast, beta_slow) = (number("beta_fast")?, number("beta_slow")?);
        let attention_scale =
            |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let attention_factor = match (keys.nullable("attention_factor", None)?, mscale, mscale_all_dim) {
            (Some(given), ..) => given,
            (None, Some(mscale), Some(all)) => attention_scale(mscale) / attention_scale(all),
            _ => attention_scale(1.0),
        };
        Ok(Self::Yarn {
            factor,
            original_max_position_embeddings: outer.original.or(inner).unwrap_or(outer.positions),
            attention_factor,
            beta_fast: beta_fast.unwrap_or(32.0),
            beta_slow: beta_slow.unwrap_or(1.0),
            truncate: keys.or("truncate", true)?,
        })
    }

    /// In the spelling that transformers 4 and 5 both read.
    pub(crate) fn to_json(self) -> Value {
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
            Self::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
                truncate,
            } => json!({
                "type": "yarn",
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_max_position_embeddings,
                "attention_factor": attention_factor,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "truncate": truncate,
            }),
            Self::Dynamic { factor } => json!({"type": "dynamic", "rope_type": "dynamic", "factor": factor}),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |reason: String| Err(refuse("rope_scaling", reason));
        let factor = match *self {
            Self::None => 1.0,
            Self::Linear { factor }
            | Self::Llama3 { factor, .. }
            | Self::Yarn { factor, .. }
            | Self::Dynamic { factor } => factor,
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
        if let Self::Yarn {
            original_max_position_embeddings, attention_factor, beta_fast, beta_slow, ..
        } = *self
        {
            if original_max_position_embeddings < 1 {
                return refuse("original_max_position_embeddings must be at least 1".into());
            }
            if !(attention_factor > 0.0 && attention_factor.is_finite()) {
                return refuse(format!("attention_factor is {attention_factor}, but must be above 0"));
            }
            if !(beta_slow > 0.0 && beta_fast >= beta_slow && beta_fast.is_finite()) {
                return refuse(format!(
                    "beta_slow {beta_slow} must be above 0 and at most beta_fast {beta_fast}"
                ));
            }
        }
        Ok(())
    }

    /// The stretch of `max_position_embeddings` to the positions that the model can read.
    pub(crate) fn context_length(&self, max_position_embeddings: i64) -> usize {
        let positions = max_position_embeddings as f64;
        let stretched = match *self {
            Self::None | Self::Llama3 { .. } => positions,
            Self::Linear { factor } | Self::Dynamic { factor } => positions * factor,
            // Some files count the stretch in `max_position_embeddings`, others do not.
            Self::Yarn { factor, original_max_position_embeddings, .. } => {
                positions.max(original_max_position_embeddings as f64 * factor)
            }
        };
        stretched as usize
    }
}

/// Settings of the rotation of queries and keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeConfig {
    pub(crate) theta: f64,
    /// Width of a head, even.
    pub(crate) head_dim: i64,
    pub(crate) scaling: RopeScaling,
    pub(crate) max_position_embeddings: i64,
}

impl RopeConfig {
    /// Whether a position's angle depends on how long its text is.
    pub(crate) fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. })
    }

    /// `theta^(2 i / head_dim)` for `i` below `head_dim / 2`: the radians in which each pair of elements turns once.
    fn periods(&self) -> Result<Tensor> {
        let even = Tensor::f_arange_start_step(0, self.head_dim, 2, (Kind::Float, Device::Cpu))?;
        Ok(Tensor::f_pow_scalar(self.theta, &even.f_div_scalar(self.head_dim)?)?)
    }

    /// Radians per position, `[head_dim / 2]` `f32` on the CPU, for texts of up to `max_position_embeddings` tokens.
    ///
    /// # Reference behaviour
    /// transformers works in `f32` and divides a number by a tensor as the tensor's reciprocal times the number. Every operation here
    /// stands in its order: angles at position 8000 differ visibly otherwise.
    pub(crate) fn frequencies(&self) -> Result<Tensor> {
        let periods = self.periods()?;
        let frequencies = periods.f_reciprocal()?;
        match self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => Ok(frequencies),
            RopeScaling::Linear { factor } => Ok(frequencies.f_div_scalar(factor)?),
            RopeScaling::Llama3 {
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
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => {
                let (dim, old) = (self.head_dim as f64, original_max_position_embeddings as f64);
                // The dimension whose frequency makes so many rotations over the original positions.
                let dimension =
                    |rotations: f64| dim * (old / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let ramp = Tensor::f_arange(self.head_dim / 2, (Kind::Float, Device::Cpu))?;
                let ramp = ramp.f_sub_scalar(low)?.f_div_scalar(high - low)?.f_clamp(0, 1)?;
                // 1 for frequencies that stay, 0 for those that are divided.
                let stays = ramp.f_neg()?.f_add_scalar(1.0)?;
                let divided = periods.f_mul_scalar(factor)?.f_reciprocal()?;
                let divided = divided.f_mul(&stays.f_neg()?.f_add_scalar(1.0)?)?;
                Ok(divided.f_add(&frequencies.f_mul(&stays)?)?)
            }
        }
    }

    /// Radians per position in texts of `lengths` `[...]` tokens: `[..., head_dim / 2]`, or `[head_dim / 2]` where the length does
    /// not matter.
    fn frequencies_at(&self, lengths: &Tensor) -> Result<Tensor> {
        let RopeScaling::Dynamic { factor } = self.scaling else {
            return self.frequencies()?.f_to_device(lengths.device()).map_err(Into::into);
        };
        let (dim, positions) = (self.head_dim as f64, self.max_position_embeddings);
        let lengths = lengths.f_clamp_min(positions)?.f_to_kind(Kind::Float)?;
        let growth =
            lengths.f_mul_scalar(factor)?.f_div_scalar(positions as f64)?.f_sub_scalar(factor - 1.0)?;
        let base = growth.f_pow_tensor_scalar(dim / (dim - 2.0))?.f_mul_scalar(self.theta)?;
        let even = Tensor::f_arange_start_step(0, self.head_dim, 2, (Kind::Float, lengths.device()))?;
        Ok(base.f_unsqueeze(-1)?.f_pow(&even.f_div_scalar(self.head_dim)?)?.f_reciprocal()?)
    }

    /// Cosines and sines `[..., head_dim]` `f32` of `i64` positions `[...]`, in the layout where element `i` turns with element
    /// `i + head_dim / 2`: both halves are the same. `lengths`, broadcast to the positions, counts the tokens of their texts.
    pub(crate) fn cos_sin(&self, positions: &Tensor, lengths: &Tensor) -> Result<(Tensor, Tensor)> {
        let frequencies = self.frequencies_at(lengths)?;
        let angles = positions.f_to_kind(Kind::Float)?.f_unsqueeze(-1)?.f_mul(&frequencies)?;
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?;
        let (cos, sin) = (angles.f_cos()?, angles.f_sin()?);
        Ok(match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => {
                (cos.f_mul_scalar(attention_factor)?, sin.f_mul_scalar(attention_factor)?)
            }
            _ => (cos, sin),
        })
    }
}

/// Cosines and sines of some positions, in the model's precision.
#[derive(Debug)]
pub(crate) struct Rope {
    /// `[1 or rows, time, 1, head_dim]`.
    cos: Tensor,
    /// Sines in the layout of `cos`; those of the first half are negated.
    sin: Tensor,
}

impl Clone for Rope {
    fn clone(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }
}

impl Rope {
    /// Tables of positions `[1 or rows, time]` in texts of `lengths` tokens, broadcast to the positions.
    pub(crate) fn new(config: &RopeConfig, positions: &Tensor, lengths: &Tensor, kind: Kind) -> Result<Self> {
        let (cos, sin) = config.cos_sin(positions, lengths)?;
        let first = sin.f_narrow(-1, 0, config.head_dim / 2)?;
        first.shallow_clone().f_copy_(&first.f_neg()?)?;
        let shaped = |t: &Tensor| t.f_unsqueeze(2)?.f_to_kind(kind);
        Ok(Self { cos: shaped(&cos)?, sin: shaped(&sin)? })
    }

    /// Rotates `x` `[tokens, heads, head_dim]`, the rows of a pass one behind the other.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, heads, width) = x.size3()?;
        let time = self.cos.size()[1];
        let rotated = ruminate_torch::rope(&x.f_view_([-1, time, heads, width])?, &self.cos, &self.sin)?;
        Ok(rotated.f_view_([tokens, heads, width])?)
    }

    /// The tables of some positions, one for each row, `[rows]`, out of those of all positions from 0 on.
    pub(crate) fn of_rows(&self, positions: &Tensor) -> Result<Self> {
        let take = |t: &Tensor| t.f_index_select(1, positions)?.f_transpose(0, 1);
        Ok(Self { cos: take(&self.cos)?, sin: take(&self.sin)? })
    }

    /// The tables of one position for all rows.
    pub(crate) fn at(&self, position: i64) -> Result<Self> {
        Ok(Self { cos: self.cos.f_narrow(1, position, 1)?, sin: self.sin.f_narrow(1, position, 1)? })
    }

    /// Cosines and sines.
    pub(crate) fn tables(&self) -> (&Tensor, &Tensor) {
        (&self.cos, &self.sin)
    }
}
