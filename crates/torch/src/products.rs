//! Matrix products on the faster of libtorch's two CPU libraries.
//!
//! In float32 libtorch calls MKL, which on processors with AVX-512 of other makers than Intel leaves half of the vector unit unused;
//! there these functions call oneDNN, which libtorch holds too, and on Intel's do so for results as wide as a vocabulary. Elsewhere
//! (without AVX-512, for small products, other kinds, CUDA, autocast) they do what libtorch does. Results agree up to the order of
//! summation.

use tch::Tensor;

use crate::fused::{Gate, gate, rms_norm};
use crate::{Error, Result, ffi};

/// `x` `[..., k]` times the transposed weight `[n, k]`, with gradients for both.
///
/// # Errors
/// When shapes do not fit.
///
/// # Example
/// ```
/// use tch::Tensor;
/// let x = Tensor::from_slice(&[1f32, 2.0]).view([1, 2]);
/// let weight = Tensor::from_slice(&[3f32, 4.0]).view([1, 2]);
/// assert_eq!(ruminate_torch::linear(&x, &weight)?.double_value(&[0, 0]), 11.0);
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    // SAFETY: the tensors outlive the call.
    ffi::call_tensor("linear", |out, error| unsafe {
        ffi::ruminate_linear(x.as_ptr(), weight.as_ptr(), out, error)
    })
}

/// `a` `[..., m, k]` times `b` `[..., k, n]`, with gradients for both.
///
/// # Errors
/// When shapes do not fit.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // SAFETY: the tensors outlive the call.
    ffi::call_tensor("matrix product", |out, error| unsafe {
        ffi::ruminate_matmul(a.as_ptr(), b.as_ptr(), out, error)
    })
}

/// A weight laid out for many products with few rows each, as in decoding. A copy: later changes of the weight do not
/// reach it. It knows no gradients.
///
/// On the CPU, in float32 and bfloat16, each output is summed in float32 and in the order of its inputs: a row's numbers do not depend
/// on how many rows there are. Made under autocast, it holds the weight in autocast's kind.
#[derive(Debug)]
pub struct Packed {
    weight: Tensor,
    /// Outputs, where the weight lies in our own blocks.
    outputs: Option<i64>,
}

/// A function that a product applies to its input, in the same pass over memory.
#[derive(Debug, Clone, Copy)]
pub enum Prologue<'a> {
    /// Nothing.
    None,
    /// A [root-mean-square norm](crate::rms_norm).
    Norm {
        /// `[k]`.
        weight: &'a Tensor,
        /// Added to the mean square.
        eps: f64,
    },
    /// `max(x, 0)`.
    Relu,
    /// [`gate`](crate::gate) of the first half of each row and the second: the input is `[..., 2 k]`.
    Gate(Gate),
}

/// Several weights `[n_i, k]` times `prologue(x)` for the same `x` `[..., k]`, as one product, which is faster than one each:
/// `[..., n_0 + n_1 + ...]`. Of a norm on the CPU only its input is kept for the backward pass (then for first derivatives only).
///
/// # Errors
/// When shapes do not fit or there is no weight.
///
/// # Example
/// ```
/// use ruminate_torch::{Prologue, fused_linear};
/// use tch::Tensor;
/// let x = Tensor::from_slice(&[-1f32, 2.0]).view([1, 2]);
/// let [a, b] = [3f32, 5.0].map(|w| Tensor::from_slice(&[1.0, w]).view([1, 2]));
/// let both = fused_linear(Prologue::Relu, &x, &[&a, &b])?;
/// assert_eq!(Vec::<f32>::try_from(both.view(-1)).unwrap(), [6.0, 10.0]);
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
pub fn fused_linear(prologue: Prologue<'_>, x: &Tensor, weights: &[&Tensor]) -> Result<Tensor> {
    let (x, norm, eps) = match prologue {
        Prologue::Norm { weight, eps } => (x.shallow_clone(), weight.as_ptr(), eps),
        other => (other.apply(x)?, std::ptr::null(), 0.0),
    };
    let pointers = ffi::pointers(weights.iter().copied());
    // SAFETY: the tensors outlive the call.
    ffi::call_tensor("linear", |out, error| unsafe {
        ffi::ruminate_fused_linear(x.as_ptr(), norm, eps, pointers.as_ptr(), pointers.len(), out, error)
    })
}

impl Prologue<'_> {
    /// The result for `x`, on its own.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Prologue::None => x.shallow_clone(),
            Prologue::Norm { weight, eps } => rms_norm(x, weight, eps)?,
            Prologue::Relu => x.f_relu()?,
            Prologue::Gate(activation) => {
                let halves = x.f_chunk(2, -1)?;
                let [first, second] = &halves[..] else {
                    let message = format!("the input of a gate is {:?}, which has no two halves", x.size());
                    return Err(Error::Libtorch { op: "gate", message });
                };
                gate(activation, first, second)?
            }
        })
    }
}

impl Packed {
    /// Packs weights `[n_i, k]`, one below the other: their products come out side by side.
    ///
    /// # Errors
    /// When their widths differ or memory is short.
    pub fn new(weights: &[&Tensor]) -> Result<Self> {
        let pointers = ffi::pointers(weights.iter().copied());
        let mut blocks = 0;
        // SAFETY: the tensors outlive the call.
        let weight = ffi::call_tensor("packing a weight", |out, error| unsafe {
            ffi::ruminate_pack(pointers.as_ptr(), pointers.len(), out, &raw mut blocks, error)
        })?;
        let outputs = (blocks != 0).then(|| weights.iter().map(|weight| weight.size()[0]).sum());
        Ok(Self { weight, outputs })
    }

    /// `x` `[..., k]` times the transposed weights: `[..., n_0 + n_1 + ...]`, in the weights' kind.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn linear(&self, x: &Tensor) -> Result<Tensor> {
        self.fused_linear(Prologue::None, x, None)
    }

    /// [`linear`](Self::linear) of `prologue(x)`, added to `residual` where there is one, whose kind the result then
    /// has.
    ///
    /// # Errors
    /// When shapes do not fit.
    ///
    /// # Example
    /// ```
    /// use ruminate_torch::{Prologue, Packed};
    /// use tch::Tensor;
    /// let weight = Packed::new(&[&Tensor::from_slice(&[2f32, 3.0]).view([1, 2])])?;
    /// let x = Tensor::from_slice(&[-1f32, 4.0]).view([1, 2]);
    /// let residual = Tensor::from_slice(&[0.5f32]).view([1, 1]);
    /// let sum = weight.fused_linear(Prologue::Relu, &x, Some(&residual))?;
    /// assert_eq!(sum.double_value(&[0, 0]), 12.5);
    /// # Ok::<(), ruminate_torch::Error>(())
    /// ```
    pub fn fused_linear(
        &self,
        prologue: Prologue<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        if let Some(outputs) = self.outputs {
            let null = std::ptr::null;
            let (code, norm, eps) = match prologue {
                Prologue::None => (0, null(), 0.0),
                Prologue::Norm { weight, eps } => (1, weight.as_ptr(), eps),
                Prologue::Relu => (2, null(), 0.0),
                Prologue::Gate(Gate::Silu) => (3, null(), 0.0),
                Prologue::Gate(Gate::GeluTanh) => (4, null(), 0.0),
            };
            let residual = residual.map_or(null(), |residual| residual.as_ptr());
            // SAFETY: the tensors outlive the call.
            return ffi::call_tensor("linear", |out, error| unsafe {
                let (x, weight) = (x.as_ptr(), self.weight.as_ptr());
                ffi::ruminate_packed_linear(x, weight, outputs, code, norm, eps, residual, out, error)
            });
        }
        let product = prologue.apply(x)?.f_linear(&self.weight, None::<&Tensor>)?;
        Ok(match residual {
            // A shape of its own would be broadcast.
            Some(residual) => residual.f_reshape(product.size())?.f_add(&product)?,
            None => product,
        })
    }
}
