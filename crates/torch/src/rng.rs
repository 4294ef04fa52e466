//! State of libtorch's random generators, for exact resume.

use tch::{Device, Tensor};

use crate::ffi;
use crate::{Error, Result};

fn index(device: Device) -> Result<i32> {
    match device {
        Device::Cpu => Ok(-1),
        Device::Cuda(n) => Ok(n as i32),
        other => Err(Error::State {
            name: "generator".into(),
            reason: format!("device {other:?} has no generator that can be saved; use the CPU or CUDA"),
        }),
    }
}

/// State of the device's default generator: a `u8` tensor on the CPU.
///
/// # Errors
/// When the device does not exist.
pub fn state(device: Device) -> Result<Tensor> {
    let device = index(device)?;
    // SAFETY: both out-pointers are valid for the call.
    ffi::call_tensor("generator state", |out, error| unsafe {
        ffi::ruminate_generator_state(device, out, error)
    })
}

/// Puts the device's default generator into a state that [`state`] returned.
///
/// # Errors
/// When the device does not exist or the tensor is not a generator state.
///
/// # Example
/// ```
/// use ruminate_torch::rng;
/// use tch::{Device, Kind, Tensor};
/// let before = rng::state(Device::Cpu)?;
/// let a = Tensor::rand([4], (Kind::Float, Device::Cpu));
/// rng::set_state(Device::Cpu, &before)?;
/// assert_eq!(a, Tensor::rand([4], (Kind::Float, Device::Cpu)));
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
pub fn set_state(device: Device, state: &Tensor) -> Result<()> {
    let device = index(device)?;
    let state = state.f_to_device(Device::Cpu)?;
    // SAFETY: `state` outlives the call.
    ffi::call("set generator state", |error| unsafe {
        ffi::ruminate_set_generator_state(device, state.as_ptr(), error)
    })
}

/// Seeds the device's default generator, and no other: `tch::manual_seed` seeds those of all devices.
///
/// # Errors
/// When the device does not exist.
pub fn seed(device: Device, seed: u64) -> Result<()> {
    let device = index(device)?;
    // SAFETY: the error pointer is valid for the call.
    ffi::call("seed generator", |error| unsafe { ffi::ruminate_seed_generator(device, seed, error) })
}
