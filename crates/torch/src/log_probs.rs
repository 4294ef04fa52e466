//! Log-probabilities straight from hidden states.

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Error, Result, ffi};

/// Logits that exist at the same time, in elements: 10 Mi of them are 40 MiB. So large a buffer is a mapping of its own,
/// which goes back to the system at once.
const LOGITS: i64 = 10 << 20;

/// What [`log_probs`] returns, `f32`.
#[derive(Debug)]
pub struct LogProbs {
    /// Log-probability of each target `[rows]`.
    pub log_probs: Tensor,
    /// Entropy of each distribution in nats `[rows]`, where it was asked for.
    pub entropy: Option<Tensor>,
}

/// Log-probabilities of targets under `softmax(scale * hidden * weight^T)`, with gradients for `hidden` and `weight`.
///
/// `hidden` is `[rows, width]`, `weight` `[vocab, width]`, `targets` `[rows]` `i64`. Logits are made for some rows at a
/// time, and made again in the backward pass, so that the `[rows, vocab]` logits never exist as a whole. On the CPU there are first
/// derivatives only; asking for second ones is an error of the backward pass.
///
/// # Errors
/// When shapes or devices do not fit or a target is outside the vocabulary.
///
/// # Example
/// ```
/// use ruminate_torch::log_probs;
/// use tch::{Kind, Tensor};
/// let hidden = Tensor::from_slice(&[1f32, 0.0]).view([1, 2]);
/// let weight = Tensor::from_slice(&[1f32, 0.0, 0.0, 1.0]).view([2, 2]);
/// let scores = log_probs(&hidden, &weight, &Tensor::from_slice(&[0i64]), 1.0, true)?;
/// let expected = hidden.matmul(&weight.tr()).log_softmax(-1, Kind::Float).double_value(&[0, 0]);
/// assert!((scores.log_probs.double_value(&[0]) - expected).abs() < 1e-6);
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
pub fn log_probs(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    scale: f64,
    with_entropy: bool,
) -> Result<LogProbs> {
    let chunk = chunk(hidden, weight, targets)?;
    let (mut chosen, mut entropy): (*mut C_tensor, *mut C_tensor) =
        (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the tensors outlive the call, and the out-pointers are valid for it.
    ffi::call("chunked log-probabilities", |error| unsafe {
        ffi::ruminate_log_probs(
            hidden.as_ptr(),
            weight.as_ptr(),
            targets.as_ptr(),
            scale,
            chunk,
            with_entropy.into(),
            &mut chosen,
            &mut entropy,
            error,
        )
    })?;
    // SAFETY: on success both hold new tensors whose ownership passes to us.
    let (log_probs, entropy) = unsafe { (Tensor::from_ptr(chosen), Tensor::from_ptr(entropy)) };
    Ok(LogProbs { log_probs, entropy: with_entropy.then_some(entropy) })
}

/// The sum of `-log p` over all targets under the distribution of [`log_probs`], a scalar `f32`.
///
/// All targets count the same, so gradients are worked out while the logits exist, and the backward pass has only to scale them: that is
/// a quarter of the products less than with [`log_probs`]. In exchange they can be taken once, as first derivatives.
///
/// # Errors
/// As [`log_probs`].
///
/// # Example
/// ```
/// use ruminate_torch::cross_entropy;
/// use tch::{Kind, Tensor};
/// let hidden = Tensor::from_slice(&[1f32, 0.0]).view([1, 2]).set_requires_grad(true);
/// let weight = Tensor::from_slice(&[1f32, 0.0, 0.0, 1.0]).view([2, 2]);
/// let loss = cross_entropy(&hidden, &weight, &Tensor::from_slice(&[0i64]), 1.0)?;
/// let log_p = hidden.matmul(&weight.tr()).log_softmax(-1, Kind::Float).double_value(&[0, 0]);
/// assert!((loss.double_value(&[]) + log_p).abs() < 1e-6);
/// loss.backward();
/// assert!((hidden.grad().double_value(&[0, 0]) - (log_p.exp() - 1.0)).abs() < 1e-6);
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
pub fn cross_entropy(hidden: &Tensor, weight: &Tensor, targets: &Tensor, scale: f64) -> Result<Tensor> {
    let chunk = chunk(hidden, weight, targets)?;
    // SAFETY: the tensors outlive the call.
    ffi::call_tensor("cross-entropy", |out, error| unsafe {
        let (hidden, weight, targets) = (hidden.as_ptr(), weight.as_ptr(), targets.as_ptr());
        ffi::ruminate_cross_entropy(hidden, weight, targets, scale, chunk, out, error)
    })
}

/// Rows whose logits exist at the same time.
fn chunk(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> Result<i64> {
    let (&[rows, width], &[vocab, columns]) = (&hidden.size()[..], &weight.size()[..]) else {
        return Err(shape(hidden, weight, targets));
    };
    if width != columns || targets.size() != [rows] {
        return Err(shape(hidden, weight, targets));
    }
    // In chunks of one size: the largest takes the memory.
    let last = rows.max(1) - 1;
    let chunks = last / (LOGITS / vocab.max(1)).max(1) + 1;
    Ok(last / chunks + 1)
}

fn shape(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> Error {
    Error::Libtorch {
        op: "chunked log-probabilities",
        message: format!(
            "hidden {:?}, weight {:?} and targets {:?} do not fit; they should be [rows, width], [vocab, width] and [rows]",
            hidden.size(),
            weight.size(),
            targets.size()
        ),
    }
}
