//! Dropout without a stored mask.

use tch::Tensor;

use crate::{Result, ffi};

/// Dropout in training: zeroes elements with probability `rate` and divides the others by `1 - rate`.
///
/// In float32 on the CPU the mask is a function of the position and of one draw from the default generator, so that it
/// is cheap and the backward pass makes it again instead of keeping it. Elsewhere it is libtorch's dropout.
///
/// # Errors
/// When the rate is not in `[0, 1]`.
pub fn dropout(x: &Tensor, rate: f64) -> Result<Tensor> {
    // SAFETY: the tensor outlives the call.
    ffi::call_tensor("dropout", |out, error| unsafe { ffi::ruminate_dropout(x.as_ptr(), rate, out, error) })
}
