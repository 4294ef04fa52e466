//! Rotary positions (arXiv 2104.09864) and their scaling.

use std::f64::consts::TAU;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::config::{LlamaConfig, refuse};
use crate::Result;

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

/// `rope_scaling` or `rope_parameters`, in all spellings.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<i64>,
    partial_rotary_factor: Option<f64>,
}

impl RopeScaling {
    /// Base of the frequencies and scaling, from `rope_parameters`, or from `rope_theta` and `rope_scaling`. Both may be
    /// there if they agree.
    pub(super) fn from_config(json: &Map<String, Value>) -> Result<(f64, Self)> {
        let read = |key: &str| -> Result<Option<(Option<f64>, Self)>> {
            match json.get(key).filter(|value| !value.is_null()) {
                Some(value) => Self::from_json(key, value).map(Some),
                None => Ok(None),
            }
        };
        let theta = match json.get("rope_theta").filter(|value| !value.is_null()) {
            Some(value) => {
                let theta = value.as_f64();
                Some(theta.ok_or_else(|| refuse("rope_theta", format!("is {value}, not a number")))?)
            }
            None => None,
        };
        let (new, old) = (read("rope_parameters")?, read("rope_scaling")?);
        if let (Some((_, new)), Some((_, old))) = (&new, &old)
            && new != old
        {
            return Err(refuse("rope_scaling", "contradicts rope_parameters".into()));
        }
        let (inner, scaling) = new.or(old).unwrap_or((None, Self::None));
        if let (Some(theta), Some(inner)) = (theta, inner)
            && theta != inner
        {
            return Err(refuse("rope_theta", format!("is {theta} and, in rope_parameters, {inner}")));
        }
        Ok((inner.or(theta).unwrap_or(10_000.0), scaling))
    }

    fn from_json(key: &str, value: &Value) -> Result<(Option<f64>, Self)> {
        let refuse = |reason: String| refuse(key, reason);
        let file = File::deserialize(value).map_err(|error| refuse(error.to_string()))?;
        if let (Some(new), Some(old)) = (&file.rope_type, &file.old_type)
            && new != old
        {
            return Err(refuse(format!("rope_type `{new}` contradicts type `{old}`")));
        }
        if file.partial_rotary_factor.is_some_and(|share| share != 1.0) {
            return Err(refuse("partial_rotary_factor is not implemented".into()));
        }
        let name = file.rope_type.or(file.old_type).unwrap_or_else(|| "default".into());
        let needed = |value: Option<f64>, field: &str| {
            value.ok_or_else(|| refuse(format!("type `{name}` needs {field}")))
        };
        let scaling = match name.as_str() {
            "default" => Self::None,
            "linear" => Self::Linear { factor: needed(file.factor, "factor")? },
            "llama3" => Self::Llama3 {
                factor: needed(file.factor, "factor")?,
                low_freq_factor: needed(file.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: needed(file.high_freq_factor, "high_freq_factor")?,
                original_max_position_embeddings: file
                    .original_max_position_embeddings
                    .ok_or_else(|| refuse("type `llama3` needs original_max_position_embeddings".into()))?,
            },
            other => {
                let reason =
                    format!("type `{other}` is not implemented; known are default, linear and llama3");
                return Err(refuse(reason));
            }
        };
        Ok((file.rope_theta, scaling))
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

    /// What becomes of a frequency in radians per position.
    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings,
            } => {
                let turns = original_max_position_embeddings as f64 * frequency / TAU;
                // 1 for frequencies that stay, 0 for those that are stretched.
                let stays = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - stays) * frequency / factor + stays * frequency
            }
        }
    }
}

impl LlamaConfig {
    /// Angles per position in radians, `head_dim / 2` of them, after scaling.
    #[must_use]
    pub fn rotary_frequencies(&self) -> Vec<f32> {
        let pairs = self.head_dim / 2;
        let base = |i: i64| self.rope_theta.powf(-(i as f64) / pairs as f64);
        (0..pairs).map(|i| self.rope_scaling.apply(base(i)) as f32).collect()
    }

    /// Cosines and sines `[..., head_dim]` of `i64` positions `[...]`, `f32`, in the layout where element `i` turns with
    /// element `i + head_dim / 2`: both halves are the same.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn rotary(&self, positions: &Tensor) -> Result<(Tensor, Tensor)> {
        let frequencies =
            Tensor::f_from_slice(&self.rotary_frequencies())?.f_to_device(positions.device())?;
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
