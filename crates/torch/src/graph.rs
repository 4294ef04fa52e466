//! CUDA graphs.

use std::ptr::NonNull;

use tch::Device;

use crate::{Error, Result, ffi};

/// Work on a CUDA device that was recorded once and is started again by a single call, so that the host need not name its hundreds of
/// operations again.
///
/// It reads and writes the device's memory where the tensors lay that it was recorded with: new inputs are copied into the old ones before
/// [`replay`](Self::replay). They have to live as long as the graph does; where one was dropped, a replay reads and writes what has come to
/// lie there instead.
#[derive(Debug)]
pub struct Graph(NonNull<ffi::Graph>);

impl Graph {
    /// Records what `body` does on the current device's stream, without doing it. Shapes must be the same in every replay, nothing may wait
    /// for the device or depend on its numbers on the host, and what is first done here may not be possible while recording: so do it
    /// once before. What `body` returns is overwritten by every replay.
    ///
    /// # Errors
    /// Those of `body`, when something in it cannot be recorded, or when the device is none of CUDA's or this build has none.
    pub fn record<T, E: From<Error>>(
        device: Device,
        body: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(Self, T), E> {
        let Device::Cuda(index) = device else {
            let message = format!("{device:?} has no graphs");
            return Err(Error::Libtorch { op: "recording a graph", message }.into());
        };
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer outlives the call.
        ffi::call("recording a graph", |error| unsafe {
            ffi::ruminate_graph_begin(index as i32, &mut raw, error)
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::Libtorch {
            op: "recording a graph",
            message: "it returned neither a graph nor an error".into(),
        })?;
        let graph = Self(raw);
        let out = body()?;
        // SAFETY: the graph is there.
        ffi::call("recording a graph", |error| unsafe { ffi::ruminate_graph_end(raw.as_ptr(), error) })?;
        Ok((graph, out))
    }

    /// Starts all of it on the current stream.
    ///
    /// # Errors
    /// When CUDA refuses.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: the graph is there.
        ffi::call("replaying a graph", |error| unsafe { ffi::ruminate_graph_replay(self.0.as_ptr(), error) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `ruminate_graph_begin` and is not used again.
        unsafe { ffi::ruminate_graph_free(self.0.as_ptr()) }
    }
}
