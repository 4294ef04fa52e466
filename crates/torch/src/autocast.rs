//! Automatic bfloat16 for matrix products.

use std::ffi::c_int;

use tch::Device;

use crate::Result;
use crate::ffi;

/// Runs `body` with autocast to bfloat16 on the device: matrix products run in bfloat16, sums and norms in
/// float32, weights stay as they are. The previous setting comes back afterwards.
///
/// # Errors
/// When libtorch refuses the switch. The body's own result is passed through.
pub fn autocast<T>(device: Device, body: impl FnOnce() -> T) -> Result<T> {
    let cuda = matches!(device, Device::Cuda(_));
    let was = swap(cuda, Setting { enabled: 1, kind: -1 })?;
    let restore = Restore { cuda, was };
    let value = body();
    drop(restore);
    Ok(value)
}

/// As the shim has it: whether autocast is on, and the number of its kind.
#[derive(Clone, Copy)]
struct Setting {
    enabled: c_int,
    kind: c_int,
}

struct Restore {
    cuda: bool,
    was: Setting,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // Switching back to a setting that was in force cannot fail.
        let _ = swap(self.cuda, self.was);
    }
}

/// Puts a setting in force and returns the one that was.
fn swap(cuda: bool, mut setting: Setting) -> Result<Setting> {
    // SAFETY: the pointers are valid for the call.
    ffi::call("autocast", |error| unsafe {
        ffi::ruminate_swap_autocast(cuda.into(), &mut setting.enabled, &mut setting.kind, error)
    })?;
    Ok(setting)
}
