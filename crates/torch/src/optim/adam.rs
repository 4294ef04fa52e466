//! Adam and AdamW, fused.

use tch::{Kind, Tensor};

use super::Optimizer;
use crate::Result;
use crate::ffi;

/// How weight decay enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// AdamW (arXiv 1711.05101): parameters shrink by `lr * weight_decay` before the moment update.
    Decoupled,
    /// Adam's original form: the decay is added to the gradient.
    L2,
}

/// Which parameters decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecayOn {
    /// Every parameter, as `torch.optim` does.
    All,
    /// Only parameters with two or more dimensions: matrices and embeddings, but no norms and biases.
    Matrices,
}

/// Settings of [`Adam`]; the defaults are PyTorch's, with no weight decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the denominator after the bias-corrected square root.
    pub eps: f64,
    /// Weight decay, 0 for none.
    pub weight_decay: f64,
    /// How weight decay enters.
    pub decay: Decay,
    /// Which parameters decay.
    pub decay_on: DecayOn,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decay: Decay::Decoupled,
            decay_on: DecayOn::All,
        }
    }
}

/// Adam and AdamW in libtorch's fused form: one kernel for all parameters, no temporaries.
///
/// The state can be saved under the parameters' names and restored bit for bit.
///
/// # Example
/// ```
/// use ruminate_torch::optim::{Adam, AdamConfig, Optimizer, clip_grad_norm};
/// use tch::{Device, Kind, Tensor};
/// let w = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let mut adam = Adam::new(vec![("w".into(), w.shallow_clone())], AdamConfig::default())?;
/// (&w * 3.0).sum(Kind::Float).backward();
/// let norm = clip_grad_norm(adam.parameters(), 1.0)?;
/// assert!((f64::try_from(norm)? - 18f64.sqrt()).abs() < 1e-5);
/// adam.step(0.1)?;
/// assert!((w.double_value(&[0]) - 0.9).abs() < 1e-5);
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    steps: Vec<Tensor>,
    /// Index of the first parameter without decay: parameters are kept in the order decayed, not decayed.
    decayed: usize,
}

impl Adam {
    /// An optimizer with zero moments for the named parameters. The tensors are shared, not copied.
    ///
    /// # Errors
    /// When the moments cannot be allocated.
    pub fn new(parameters: Vec<(String, Tensor)>, config: AdamConfig) -> Result<Self> {
        let decays = |t: &Tensor| config.decay_on == DecayOn::All || t.dim() >= 2;
        let (with, without): (Vec<_>, Vec<_>) = parameters.into_iter().partition(|(_, t)| decays(t));
        let decayed = with.len();
        let (names, params): (Vec<_>, Vec<_>) = with.into_iter().chain(without).unzip();
        let zeros = || params.iter().map(Tensor::f_zeros_like).collect::<std::result::Result<Vec<_>, _>>();
        let step = |t: &Tensor| Tensor::f_zeros([0i64; 0], (Kind::Float, t.device()));
        Ok(Self {
            exp_avgs: zeros()?,
            exp_avg_sqs: zeros()?,
            steps: params.iter().map(step).collect::<std::result::Result<_, _>>()?,
            config,
            names,
            params,
            decayed,
        })
    }

    fn step_range(&mut self, range: std::ops::Range<usize>, lr: f64, weight_decay: f64) -> Result<()> {
        let params = ffi::pointers(&self.params[range.clone()]);
        let exp_avgs = ffi::pointers(&self.exp_avgs[range.clone()]);
        let exp_avg_sqs = ffi::pointers(&self.exp_avg_sqs[range.clone()]);
        let steps = ffi::pointers(&self.steps[range]);
        let AdamConfig { beta1, beta2, eps, decay, .. } = self.config;
        // SAFETY: the four arrays have the same length and point to tensors that outlive the call.
        ffi::call("fused Adam step", |error| unsafe {
            ffi::ruminate_adam_step(
                params.as_ptr(),
                exp_avgs.as_ptr(),
                exp_avg_sqs.as_ptr(),
                steps.as_ptr(),
                params.len(),
                lr,
                beta1,
                beta2,
                weight_decay,
                eps,
                (decay == Decay::Decoupled).into(),
                error,
            )
        })
    }

    fn parts(&self) -> [(&'static str, &Vec<Tensor>); 3] {
        [("exp_avg", &self.exp_avgs), ("exp_avg_sq", &self.exp_avg_sqs), ("step", &self.steps)]
    }
}

impl Optimizer for Adam {
    fn parameters(&self) -> &[Tensor] {
        &self.params
    }

    fn step(&mut self, lr: f64) -> Result<()> {
        self.step_range(0..self.decayed, lr, self.config.weight_decay)?;
        self.step_range(self.decayed..self.params.len(), lr, 0.0)
    }

    /// Moments and step counters, named `<parameter>.{exp_avg,exp_avg_sq,step}`.
    fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::with_capacity(3 * self.names.len());
        for (i, name) in self.names.iter().enumerate() {
            for (part, tensors) in self.parts() {
                state.push((format!("{name}.{part}"), tensors[i].shallow_clone()));
            }
        }
        state
    }
}
