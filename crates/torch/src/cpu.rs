//! The processor's vector unit, which decides the loops and the product library that run.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;

use crate::ffi::{
    call, ruminate_cpu_levels, ruminate_free_message, ruminate_onednn_refusal, ruminate_set_cpu_level,
};
use crate::{Error, Result};

/// Classes of processors by their vector units, from the least to the best.
///
/// The environment variable `RUMINATE_CPU` makes a program behave as on a lesser processor: it limits the loops of this library and,
/// unless their own variables are set, libtorch's ATen, oneDNN and MKL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuLevel {
    /// SSE2, which every x86-64 processor has, and all other architectures: `baseline`.
    Baseline,
    /// 256-bit vectors with fused multiplication and addition: `avx2`.
    Avx2,
    /// 512-bit vectors: `avx512`.
    Avx512,
    /// 512-bit vectors with products of bfloat16: `avx512_bf16`.
    Avx512Bf16,
    /// Tiles of bfloat16: `amx`.
    Amx,
}

impl CpuLevel {
    /// All levels, from the least on.
    pub const ALL: [Self; 5] = [Self::Baseline, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The best level of this processor.
    ///
    /// # Errors
    /// When `RUMINATE_CPU` names a level that this processor lacks.
    pub fn detected() -> Result<Self> {
        Ok(levels()?.0)
    }

    /// The level in use.
    ///
    /// ```
    /// use ruminate_torch::CpuLevel;
    /// assert!(CpuLevel::in_use()? <= CpuLevel::detected()?);
    /// # Ok::<(), ruminate_torch::Error>(())
    /// ```
    ///
    /// # Errors
    /// When `RUMINATE_CPU` names a level that this processor lacks.
    pub fn in_use() -> Result<Self> {
        Ok(levels()?.1)
    }

    /// Uses this level from now on, in the whole process: for tests that compare levels. It changes this library's loops and its
    /// choice between product libraries; what libtorch's libraries use is fixed before (see `RUMINATE_CPU`).
    ///
    /// # Errors
    /// When this processor lacks the level.
    pub fn set(self) -> Result<()> {
        // SAFETY: the shim checks the number.
        call("cpu level", |error| unsafe { ruminate_set_cpu_level(self as c_int, error) })
    }

    /// The name that `RUMINATE_CPU` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512_bf16",
            Self::Amx => "amx",
        }
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn levels() -> Result<(CpuLevel, CpuLevel)> {
    let (mut detected, mut used): (c_int, c_int) = (0, 0);
    // SAFETY: all pointers outlive the call.
    call("cpu level", |error| unsafe { ruminate_cpu_levels(&raw mut detected, &raw mut used, error) })?;
    let level = |code: c_int| {
        usize::try_from(code)
            .ok()
            .and_then(|code| CpuLevel::ALL.get(code).copied())
            .ok_or_else(|| Error::Libtorch { op: "cpu level", message: format!("there is no level {code}") })
    };
    Ok((level(detected)?, level(used)?))
}

/// The library that multiplies float32 matrices in training and scoring, in words, with the reason. Products with few rows, as in
/// decoding, are this library's own.
///
/// # Errors
/// When `RUMINATE_CPU` names a level that this processor lacks.
pub fn product_library() -> Result<String> {
    let mut out: *mut c_char = std::ptr::null_mut();
    // SAFETY: both pointers outlive the call.
    call("product library", |error| unsafe { ruminate_onednn_refusal(&raw mut out, error) })?;
    // SAFETY: on success the shim returned a NUL-terminated string that we own until we hand it back here.
    let refusal = unsafe {
        let text = CStr::from_ptr(out).to_string_lossy().into_owned();
        ruminate_free_message(out);
        text
    };
    Ok(match (refusal.as_str(), CpuLevel::in_use()?) {
        ("", CpuLevel::Avx512 | CpuLevel::Avx512Bf16 | CpuLevel::Amx) => {
            "oneDNN, or MKL where it is faster".into()
        }
        ("", _) => "libtorch's default (MKL), which is the faster one without AVX-512".into(),
        (refusal, _) => format!("libtorch's default (MKL); oneDNN does not take them: {refusal}"),
    })
}
