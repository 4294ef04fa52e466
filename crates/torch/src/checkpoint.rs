//! Activation checkpointing.

use std::any::Any;
use std::ffi::{c_int, c_void};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Error, ffi};

/// Runs `body` on `inputs` without keeping the activations that its backward pass needs; they are made again, by a
/// second run of `body`, when the backward pass comes there. So memory holds those of one checkpoint at a time, at the
/// price of a second forward pass.
///
/// Gradients reach the inputs and every parameter that `body` uses. The second run draws the same random numbers and
/// runs under the same autocast as the first, so that values and gradients are those of `body` called directly; where
/// it uses an input several times, sums of gradients may differ in rounding. It may happen on another thread. Where
/// gradients are off, `body` is simply called.
///
/// An input that changes in place between the passes is an error in the backward pass, as elsewhere in libtorch;
/// second derivatives are not supported.
///
/// # Errors
/// Those of `body`; a panic in it is one too. In the backward pass they are errors of `backward`.
///
/// # Example
/// ```
/// use ruminate_torch::checkpoint;
/// use tch::{Device, Kind, Tensor};
/// let w = Tensor::full([3], 2.0, (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let x = Tensor::ones([3], (Kind::Float, Device::Cpu));
/// let weight = w.shallow_clone();
/// let y = checkpoint(&[&x], move |inputs| -> ruminate_torch::Result<Tensor> {
///     Ok((&inputs[0] * &weight).f_square()?)
/// })?;
/// y.sum(Kind::Float).backward();
/// assert_eq!(w.grad().double_value(&[0]), 4.0);
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
pub fn checkpoint<E, F>(inputs: &[&Tensor], body: F) -> Result<Tensor, E>
where
    E: Display + From<Error> + Send + 'static,
    F: FnMut(&[Tensor]) -> Result<Tensor, E> + Send + 'static,
{
    let failure = Arc::new(Mutex::new(None));
    let closure = Box::into_raw(Box::new(Closure { body, failure: failure.clone() }));
    let inputs = ffi::pointers(inputs.iter().copied());
    // SAFETY: the inputs outlive the call. The shim owns the closure from here on and drops it once; `Send` allows that
    // to happen on another thread, and libtorch runs a node of its graph on one thread at a time.
    let out = ffi::call_tensor("activation checkpoint", |out, error| unsafe {
        let (call, drop) = (call::<E, F> as ffi::Body, drop::<E, F> as unsafe extern "C" fn(*mut c_void));
        ffi::ruminate_checkpoint(inputs.as_ptr(), inputs.len(), closure.cast(), call, drop, out, error)
    });
    // The closure's own error says more than the text that went through C++.
    out.map_err(|error| lock(&failure).take().unwrap_or_else(|| error.into()))
}

struct Closure<E, F> {
    body: F,
    /// Where an error waits for the caller of the first run.
    failure: Arc<Mutex<Option<E>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

unsafe extern "C" fn call<E, F>(
    closure: *mut c_void,
    inputs: *const *mut C_tensor,
    count: usize,
    out: *mut *mut C_tensor,
    message: *mut c_void,
) -> c_int
where
    E: Display + Send + 'static,
    F: FnMut(&[Tensor]) -> Result<Tensor, E> + Send + 'static,
{
    let ran = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the shim hands over the closure that it was given, `count` new tensors, which are ours now, and a
        // place for the result.
        let (closure, inputs) = unsafe {
            let closure = &mut *closure.cast::<Closure<E, F>>();
            let pointers = if count == 0 { &[] } else { std::slice::from_raw_parts(inputs, count) };
            (closure, pointers.iter().map(|&p| Tensor::from_ptr(p)).collect::<Vec<_>>())
        };
        (closure.body)(&inputs).map_err(|error| {
            let text = error.to_string();
            *lock(&closure.failure) = Some(error);
            text
        })
    }));
    let text = match ran {
        Ok(Ok(mut tensor)) => {
            // SAFETY: `out` is valid for the call; the tensor's ownership goes to the shim.
            unsafe { *out = tensor.as_mut_ptr() };
            std::mem::forget(tensor);
            return 0;
        }
        Ok(Err(text)) => text,
        Err(panic) => format!("the closure panicked: {}", words(panic.as_ref())),
    };
    // SAFETY: `message` is what the shim gave us for this purpose, and the text outlives the call.
    unsafe { ffi::ruminate_set_message(message, text.as_ptr(), text.len()) };
    1
}

unsafe extern "C" fn drop<E, F>(closure: *mut c_void) {
    // SAFETY: the shim hands back, once, what `Box::into_raw` made.
    let closure = unsafe { Box::from_raw(closure.cast::<Closure<E, F>>()) };
    // What a captured value does when it is dropped must not unwind into C++.
    let _ = catch_unwind(AssertUnwindSafe(|| std::mem::drop(closure)));
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without words")
}
