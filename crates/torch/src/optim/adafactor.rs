//! Adafactor.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::Optimizer;
use crate::Result;
use crate::ffi;

/// Settings of [`Adafactor`], with the names of transformers. The defaults are those with which its `Trainer` calls it:
/// the rate is that of the step, not the optimizer's own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdafactorConfig {
    /// Added to the squared gradient, and the least size of a parameter in `scale_parameter`.
    pub eps: [f64; 2],
    /// Root mean square above which an update is scaled down.
    pub clip_threshold: f64,
    /// The second moment's decay at step `t` (from 1) is `1 - t^decay_rate`.
    pub decay_rate: f64,
    /// Decay rate of a first moment of the updates; none without.
    pub beta1: Option<f64>,
    /// Decoupled weight decay, 0 for none.
    pub weight_decay: f64,
    /// Multiply the rate by the root mean square of each parameter.
    pub scale_parameter: bool,
    /// Use `min(1e-2, 1 / sqrt(t))` as the rate, whatever rate a step asks for.
    pub relative_step: bool,
    /// With `relative_step`: a rate that begins at `1e-6 t` instead of `1e-2`.
    pub warmup_init: bool,
}

impl Default for AdafactorConfig {
    fn default() -> Self {
        Self {
            eps: [1e-30, 1e-3],
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta1: None,
            weight_decay: 0.0,
            scale_parameter: false,
            relative_step: false,
            warmup_init: false,
        }
    }
}

impl AdafactorConfig {
    /// Names and shapes of a parameter's state, its step counter aside.
    pub(super) fn state_shapes(&self, parameter: &[i64]) -> Vec<(&'static str, Vec<i64>)> {
        let mut shapes = match parameter {
            [outer @ .., rows, columns] => {
                let with = |last: i64| outer.iter().copied().chain([last]).collect();
                vec![("exp_avg_sq_row", with(*rows)), ("exp_avg_sq_col", with(*columns))]
            }
            _ => vec![("exp_avg_sq", parameter.to_vec())],
        };
        if self.beta1.is_some() {
            shapes.push(("exp_avg", parameter.to_vec()));
        }
        shapes
    }

    /// The rate of step `t`, counted from 1, before the scale of the parameter.
    fn rate(&self, lr: f64, t: f64) -> f64 {
        if !self.relative_step {
            return lr;
        }
        let least = if self.warmup_init { 1e-6 * t } else { 1e-2 };
        least.min(1.0 / t.sqrt())
    }
}

/// Adafactor (arXiv 1804.04235) as transformers computes it: of the squared gradient of a matrix, only the means of rows
/// and columns are kept. States and arithmetic are `f32`, whatever the parameters are.
///
/// # Example
/// ```
/// use ruminate_torch::optim::{Adafactor, AdafactorConfig, Optimizer};
/// use tch::{Device, Kind, Tensor};
/// let w = Tensor::ones([2, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let mut adafactor = Adafactor::new(vec![("w".into(), w.shallow_clone())], AdafactorConfig::default())?;
/// (&w * 3.0).sum(Kind::Float).backward();
/// adafactor.step(0.1)?;
/// assert!((w.double_value(&[0, 0]) - 0.9).abs() < 1e-6);
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
#[derive(Debug)]
pub struct Adafactor {
    config: AdafactorConfig,
    names: Vec<String>,
    params: Vec<Tensor>,
    /// Of each parameter, in the order of `state_shapes`.
    states: Vec<Vec<Tensor>>,
    /// Steps taken by each parameter; on the CPU, where rates are computed.
    steps: Vec<Tensor>,
}

impl Adafactor {
    /// An optimizer with zero moments for the named parameters. The tensors are shared, not copied.
    ///
    /// # Errors
    /// When the moments cannot be allocated.
    pub fn new(parameters: Vec<(String, Tensor)>, config: AdafactorConfig) -> Result<Self> {
        let (names, params): (Vec<_>, Vec<_>) = parameters.into_iter().unzip();
        let zeros = |t: &Tensor| {
            let shapes = config.state_shapes(&t.size());
            shapes.iter().map(|(_, shape)| Tensor::f_zeros(shape, (Kind::Float, t.device()))).collect()
        };
        let step = |_: &Tensor| Tensor::f_zeros([0i64; 0], (Kind::Float, Device::Cpu));
        Ok(Self {
            config,
            names,
            states: params.iter().map(zeros).collect::<std::result::Result<_, _>>()?,
            steps: params.iter().map(step).collect::<std::result::Result<_, _>>()?,
            params,
        })
    }
}

impl Optimizer for Adafactor {
    fn parameters(&self) -> &[Tensor] {
        &self.params
    }

    fn step(&mut self, lr: f64) -> Result<()> {
        let moved: Vec<usize> = (0..self.params.len()).filter(|&i| self.params[i].grad().defined()).collect();
        let (mut rates, mut decays) = (vec![], vec![]);
        for &i in &moved {
            let _ = self.steps[i].f_add_scalar_(1.0)?;
            let t = self.steps[i].f_double_value(&[])?;
            rates.push(self.config.rate(lr, t));
            decays.push(1.0 - t.powf(self.config.decay_rate));
        }
        let params = ffi::pointers(moved.iter().map(|&i| &self.params[i]));
        // Three places each: two for the second moment of a matrix or one for that of a vector, one for the first.
        let mut states = Vec::with_capacity(3 * moved.len());
        for &i in &moved {
            let mut parts = ffi::pointers(&self.states[i]).into_iter();
            let second = if self.params[i].dim() < 2 { 1 } else { 2 };
            let mut place = |there: bool| {
                states.push(if there { parts.next().unwrap_or(std::ptr::null()) } else { std::ptr::null() });
            };
            place(true);
            place(second == 2);
            place(self.config.beta1.is_some());
        }
        let AdafactorConfig { eps, clip_threshold, beta1, weight_decay, scale_parameter, .. } = self.config;
        // SAFETY: the arrays have `moved.len()` entries, `states` three times as many; all tensors outlive the call.
        ffi::call("Adafactor step", |error| unsafe {
            ffi::ruminate_adafactor_step(
                params.as_ptr(),
                states.as_ptr(),
                moved.len(),
                rates.as_ptr(),
                decays.as_ptr(),
                eps[0],
                if scale_parameter { eps[1] } else { -1.0 },
                clip_threshold,
                beta1.unwrap_or(0.0),
                weight_decay,
                error,
            )
        })
    }

    /// Second moments `<parameter>.{exp_avg_sq_row,exp_avg_sq_col}` of matrices and `<parameter>.exp_avg_sq` of others,
    /// first moments `<parameter>.exp_avg`, and step counters `<parameter>.step`.
    fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = vec![];
        for (i, name) in self.names.iter().enumerate() {
            let parts = self.config.state_shapes(&self.params[i].size());
            for ((part, _), tensor) in parts.iter().zip(&self.states[i]) {
                state.push((format!("{name}.{part}"), tensor.shallow_clone()));
            }
            state.push((format!("{name}.step"), self.steps[i].shallow_clone()));
        }
        state
    }

    fn rate(&self, lr: f64) -> f64 {
        let taken = self.steps.iter().filter_map(|t| t.f_double_value(&[]).ok()).fold(0.0, f64::max);
        self.config.rate(lr, taken + 1.0)
    }
}
