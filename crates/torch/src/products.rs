//! Matrix products on the faster of libtorch's two CPU libraries.
//!
//! In float32 libtorch calls MKL, which on processors of other makers than Intel leaves half of the vector unit unused;
//! these functions call oneDNN, which libtorch holds too, and on Intel's do so for results as wide as a vocabulary. Elsewhere (small products, other kinds, CUDA, autocast) they do what
//! libtorch does. Results agree up to the order of summation.

use tch::Tensor;

use crate::{Result, ffi};

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
#[derive(Debug)]
pub struct Packed(Tensor);

impl Packed {
    /// Packs weights `[n_i, k]`, one below the other: their products come out side by side.
    ///
    /// # Errors
    /// When their widths differ or memory is short.
    pub fn new(weights: &[&Tensor]) -> Result<Self> {
        let pointers = ffi::pointers(weights.iter().copied());
        // SAFETY: the tensors outlive the call.
        let packed = ffi::call_tensor("packing a weight", |out, error| unsafe {
            ffi::ruminate_pack(pointers.as_ptr(), pointers.len(), out, error)
        })?;
        Ok(Self(packed))
    }

    /// `x` `[..., k]` times the transposed weights: `[..., n_0 + n_1 + ...]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn linear(&self, x: &Tensor) -> Result<Tensor> {
        // SAFETY: the tensors outlive the call.
        ffi::call_tensor("linear", |out, error| unsafe {
            ffi::ruminate_packed_linear(x.as_ptr(), self.0.as_ptr(), out, error)
        })
    }
}
