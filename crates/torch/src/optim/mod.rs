//! Optimizers and gradient clipping.

mod adafactor;
mod adam;

use tch::Tensor;

use crate::ffi;
use crate::{Error, Result};

pub use adafactor::{Adafactor, AdafactorConfig};
pub use adam::{Adam, AdamConfig, Decay, DecayOn};

/// What moves parameters along their gradients.
pub trait Optimizer: std::fmt::Debug {
    /// The parameters that this optimizer moves.
    fn parameters(&self) -> &[Tensor];

    /// Moves every parameter that has a gradient; one without is left alone, as PyTorch does.
    ///
    /// # Errors
    /// When libtorch refuses, e.g. because a gradient lies on another device.
    fn step(&mut self, lr: f64) -> Result<()>;

    /// What must survive a restart, as `<parameter>.<part>`. The tensors are shared.
    fn state(&self) -> Vec<(String, Tensor)>;

    /// The rate of the next step where `lr` is asked for: another one where the optimizer has a schedule of its own.
    fn rate(&self, lr: f64) -> f64 {
        lr
    }

    /// Forgets all gradients.
    ///
    /// # Errors
    /// When libtorch refuses.
    fn zero_grad(&mut self) -> Result<()> {
        zero_grad(self.parameters())
    }

    /// Restores what [`state`](Self::state) returned; `find` looks a tensor up by name.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape. Nothing is changed then.
    fn load_state(&mut self, find: &dyn Fn(&str) -> Option<Tensor>) -> Result<()> {
        let mut copies = Vec::new();
        for (name, target) in self.state() {
            let source = find(&name).ok_or_else(|| Error::State {
                name: name.clone(),
                reason: "missing from the saved state".into(),
            })?;
            if source.size() != target.size() {
                let reason =
                    format!("has shape {:?}, the parameter needs {:?}", source.size(), target.size());
                return Err(Error::State { name, reason });
            }
            copies.push((target, source));
        }
        tch::no_grad(|| copies.iter_mut().try_for_each(|(target, source)| target.f_copy_(source)))?;
        Ok(())
    }
}

/// Which optimizer, with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum OptimizerConfig {
    /// Adam or AdamW: two moments for every number.
    Adam(AdamConfig),
    /// Adafactor: next to no memory for matrices.
    Adafactor(AdafactorConfig),
}

impl OptimizerConfig {
    /// The optimizer for named parameters. The tensors are shared, not copied.
    ///
    /// # Errors
    /// When its state cannot be allocated.
    pub fn build(self, parameters: Vec<(String, Tensor)>) -> Result<Box<dyn Optimizer>> {
        Ok(match self {
            Self::Adam(config) => Box::new(Adam::new(parameters, config)?),
            Self::Adafactor(config) => Box::new(Adafactor::new(parameters, config)?),
        })
    }

    /// Bytes that the optimizer's state will take for `f32` parameters of these shapes, without making it.
    ///
    /// ```
    /// use ruminate_torch::optim::{AdafactorConfig, AdamConfig, OptimizerConfig};
    /// let matrix = [[300, 500]];
    /// assert_eq!(OptimizerConfig::Adam(AdamConfig::default()).state_bytes(&matrix), 2 * 300 * 500 * 4 + 4);
    /// let adafactor = OptimizerConfig::Adafactor(AdafactorConfig::default());
    /// assert_eq!(adafactor.state_bytes(&matrix), (300 + 500) * 4 + 4);
    /// ```
    pub fn state_bytes(&self, parameters: impl IntoIterator<Item: AsRef<[i64]>>) -> u64 {
        let numbers = |shape: &[i64]| shape.iter().product::<i64>().unsigned_abs();
        let of = |shape: &[i64]| match self {
            Self::Adam(_) => 2 * numbers(shape),
            Self::Adafactor(config) => config.state_shapes(shape).iter().map(|(_, part)| numbers(part)).sum(),
        };
        parameters.into_iter().map(|shape| 4 * of(shape.as_ref()) + COUNTER).sum()
    }
}

/// Bytes of a step counter.
const COUNTER: u64 = 4;

/// Scales the parameters' gradients so that their common 2-norm is at most `max_norm`, and returns the norm
/// before, as a scalar tensor on the device: nothing here waits for the device. `f64::INFINITY` only measures.
///
/// The rule is PyTorch's `clip_grad_norm_`: multiply by `max_norm / (norm + 1e-6)` where that is below 1.
///
/// # Errors
/// When libtorch refuses, e.g. because gradients lie on different devices.
pub fn clip_grad_norm(parameters: &[Tensor], max_norm: f64) -> Result<Tensor> {
    let params = ffi::pointers(parameters);
    // SAFETY: the pointers are valid for the call.
    ffi::call_tensor("clip gradient norm", |out, error| unsafe {
        ffi::ruminate_clip_grad_norm(params.as_ptr(), params.len(), max_norm, out, error)
    })
}

/// Scales gradients whose norm is known, as [`clip_grad_norm`] does. `norm` is a scalar on their device.
pub(crate) fn scale_grads(parameters: &[Tensor], norm: &Tensor, max_norm: f64) -> Result<()> {
    let params = ffi::pointers(parameters);
    // SAFETY: the pointers are valid for the call.
    ffi::call("scale gradients", |error| unsafe {
        ffi::ruminate_scale_grads(params.as_ptr(), params.len(), norm.as_ptr(), max_norm, error)
    })
}

/// Forgets the gradients of parameters.
///
/// # Errors
/// When libtorch refuses.
pub fn zero_grad(parameters: &[Tensor]) -> Result<()> {
    let params = ffi::pointers(parameters);
    // SAFETY: the pointers are valid for the call.
    ffi::call("clear gradients", |error| unsafe {
        ffi::ruminate_clear_grads(params.as_ptr(), params.len(), error)
    })
}
