//! Kernels for CUDA, compiled by NVRTC when they are first used, and kept in `$XDG_CACHE_HOME/ruminate` (or `~/.cache/ruminate`).
//!
//! Each stands for operations of libtorch, to which tests hold it by emulation on the CPU. All are off, for none has been measured
//! on a GPU yet: [`turn_on`] is for who measures.

use std::ffi::CString;

use crate::{Error, Result, ffi};

/// What there is a kernel for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Log-probabilities, entropies and their gradients from the chunks of logits of [`log_probs`](crate::log_probs).
    LogProbs,
    /// [`top_p`](crate::top_p).
    TopP,
    /// [`decode_attention`](crate::decode_attention), up to 8192 keys.
    DecodeAttention,
    /// [`rope`](crate::rope), where the tables are of the kind of what is turned.
    Rope,
    /// [`gate`](crate::gate).
    Gate,
    /// [`attention`](crate::attention) by libtorch's `scaled_dot_product_attention`, which keeps no probabilities. Of bfloat16, it takes a
    /// bias in bfloat16.
    Attention,
    /// No kernel, but all of a decoding step's in one: a CUDA [`Graph`](crate::Graph). On the CPU, steps of the shapes that a graph needs,
    /// which gains nothing and shows that they give the same.
    Graphs,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::LogProbs,
        Self::TopP,
        Self::DecodeAttention,
        Self::Rope,
        Self::Gate,
        Self::Attention,
        Self::Graphs,
    ];

    /// As the command line knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::LogProbs => "log_probs",
            Self::TopP => "top_p",
            Self::DecodeAttention => "decode_attention",
            Self::Rope => "rope",
            Self::Gate => "gate",
            Self::Attention => "attention",
            Self::Graphs => "graphs",
        }
    }

    /// Whether it is [on](turn_on).
    pub fn is_on(self) -> bool {
        // SAFETY: it reads a number.
        unsafe { ffi::ruminate_kernels_on() & self.bit() != 0 }
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// From here on, float32 and bfloat16 tensors on CUDA go through these kernels, and through no others.
///
/// # Errors
/// When this build has no kernels.
pub fn turn_on(kernels: &[Kernel]) -> Result<()> {
    let bits = kernels.iter().fold(0, |bits, kernel| bits | kernel.bit());
    // SAFETY: it stores a number.
    ffi::call("turning kernels on", |error| unsafe { ffi::ruminate_turn_on_kernels(bits, error) })
}

/// Compiles a kernel for an architecture such as `sm_90`, which needs no GPU, and gives the bytes of the result; none where NVRTC is not
/// installed, and of what is libtorch's own.
///
/// # Errors
/// What the compiler says.
///
/// # Example
/// ```
/// use ruminate_torch::kernels::{Kernel, compile};
/// match compile(Kernel::Gate, "sm_90")? {
///     Some(bytes) => println!("{bytes} bytes"),
///     None => println!("there is no NVRTC here"),
/// }
/// # Ok::<(), ruminate_torch::Error>(())
/// ```
pub fn compile(kernel: Kernel, architecture: &str) -> Result<Option<usize>> {
    let name = CString::new(architecture).map_err(|_| Error::Libtorch {
        op: "compiling a kernel",
        message: format!("{architecture:?} is no architecture"),
    })?;
    let mut bytes = -1;
    // SAFETY: name and number outlive the call.
    ffi::call("compiling a kernel", |error| unsafe {
        ffi::ruminate_compile_kernel(kernel as i32, name.as_ptr(), &mut bytes, error)
    })?;
    Ok(usize::try_from(bytes).ok())
}
