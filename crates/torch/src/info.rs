//! What libtorch says about itself.

use std::ffi::{CStr, c_char};

use crate::Result;
use crate::ffi::{call, ruminate_build_info, ruminate_free_message, ruminate_keep_freed_memory};

/// How the libtorch that this program runs on was built, and what it found on this machine: libraries of linear algebra,
/// OpenMP, the vector instructions in use, CUDA, and its version as `TORCH_VERSION=`. Lines for people, as PyTorch's
/// `torch.__config__.show()` has them; a last one says whether the loops of this library share the work among threads.
///
/// ```
/// assert!(ruminate_torch::build_info()?.contains("TORCH_VERSION=2."));
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
///
/// # Errors
/// When libtorch refuses.
pub fn build_info() -> Result<String> {
    let mut out: *mut c_char = std::ptr::null_mut();
    // SAFETY: both pointers outlive the call.
    call("build_info", |error| unsafe { ruminate_build_info(&mut out, error) })?;
    if out.is_null() {
        return Ok(String::new());
    }
    // SAFETY: on success the shim returned a NUL-terminated string that we own until we hand it back here.
    Ok(unsafe {
        let text = CStr::from_ptr(out).to_string_lossy().into_owned();
        ruminate_free_message(out);
        text
    })
}

/// Lets the C library keep what this process frees, for its next allocations, instead of giving large blocks back to the system and
/// taking them again, page by page, in each training step; and asks for huge pages, with which a processor finds its way through
/// gigabytes of weights faster. For programs that train or generate, before they do. Half the machine's memory is reserved in
/// addresses, which cost nothing until they are used. Neither happens where the environment already says how `malloc` should
/// behave. Tensors on the CPU then lie in plain blocks of the C library, since it reuses aligned ones badly, and MKL keeps no buffers of
/// its own. Nothing at all happens where the C library is not glibc.
pub fn keep_freed_memory() {
    // SAFETY: the shim reads the environment, sets numbers of the C library and of MKL, and libtorch's pointer to its allocator, which
    // every tensor remembers for itself; libtorch reads the environment without locks, too.
    unsafe { ruminate_keep_freed_memory() }
}
