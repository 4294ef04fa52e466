//! Automatic bfloat16 for matrix products.

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
    let was = switch(cuda, true)?;
    let restore = Restore { cuda, was };
    let value = body();
    drop(restore);
    Ok(value)
}

struct Restore {
    cuda: bool,
    was: bool,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // Switching back to a setting that was in force cannot fail.
        let _ = switch(self.cuda, self.was);
    }
}

fn switch(cuda: bool, enabled: bool) -> Result<bool> {
    let mut was = 0;
    // SAFETY: `was` and the error pointer are valid for the call.
    ffi::call("autocast", |error| unsafe {
        ffi::ruminate_set_autocast(cuda.into(), enabled.into(), &mut was, error)
    })?;
    Ok(was != 0)
}
