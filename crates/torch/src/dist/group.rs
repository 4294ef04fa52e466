//! Operations that all ranks do together.

use std::ffi::{CString, c_char, c_int};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::World;
use crate::ffi::{self, Group};
use crate::{Error, Result};

/// How values of several ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// Their sum.
    Sum,
    /// Their mean; for floating-point tensors.
    Mean,
    /// The largest.
    Max,
}

/// The processes of a [`World`], connected; leaves when it is dropped.
///
/// Every operation is called by all ranks, in the same order, with tensors of the same shape and kind on the group's device.
/// It returns when it is done: [`Error::Collective`] if a rank is gone, or does not come within the time-out.
#[derive(Debug)]
pub struct ProcessGroup {
    raw: NonNull<Group>,
    world: World,
    device: Device,
    timeout: Duration,
}

impl ProcessGroup {
    /// How long a rank waits for the others if nothing else is said: longer than it takes to write a checkpoint.
    pub const TIMEOUT: Duration = Duration::from_secs(600);

    /// Joins the other ranks, over Gloo for the CPU and over NCCL for CUDA, and waits until all are there.
    ///
    /// Gloo uses the interface of the host's name, the loopback if rank 0's address is there, or that of
    /// `GLOO_SOCKET_IFNAME`; NCCL looks for itself (`NCCL_SOCKET_IFNAME`).
    ///
    /// # Errors
    /// When the port is taken, not all ranks come within the time-out, or this build has no NCCL.
    pub fn join(world: &World, device: Device, timeout: Duration) -> Result<Self> {
        let host = CString::new(world.master_addr.as_str()).map_err(|_| Error::World {
            variable: "MASTER_ADDR",
            reason: format!("is {:?}, which is no host", world.master_addr),
        })?;
        // As PyTorch names them, so that a new attempt does not read what the last one wrote.
        let prefix = world.attempt.map_or(String::new(), |attempt| format!("/worker/attempt_{attempt}"));
        let prefix = CString::new(prefix).unwrap_or_default();
        let serve = world.attempt.is_none() && world.rank == 0;
        let index = match device {
            Device::Cuda(index) => index as c_int,
            _ => -1,
        };
        let mut raw: *mut Group = std::ptr::null_mut();
        let millis = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
        let (rank, size) = (world.rank as c_int, world.size as c_int);
        collective(world, timeout, "joining the group", |error| {
            // SAFETY: the strings and both out-pointers outlive the call.
            unsafe {
                ffi::ruminate_group_join(
                    host.as_ptr(),
                    world.master_port,
                    serve.into(),
                    prefix.as_ptr(),
                    rank,
                    size,
                    index,
                    millis,
                    &mut raw,
                    error,
                )
            }
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::Libtorch {
            op: "join",
            message: "it returned neither a group nor an error".into(),
        })?;
        let group = Self { raw, world: world.clone(), device, timeout };
        // NCCL connects at the first operation, and a peer that is not there shows only then.
        group.barrier()?;
        Ok(group)
    }

    /// This process, counted from 0.
    pub fn rank(&self) -> usize {
        self.world.rank
    }

    /// All processes.
    pub fn size(&self) -> usize {
        self.world.size
    }

    /// Where the tensors of all operations lie.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Reduces a tensor of each rank to one that all have, in place.
    ///
    /// # Errors
    /// [`Error::Collective`]; the tensor is lost then.
    pub fn all_reduce(&self, tensor: &mut Tensor, reduce: Reduce) -> Result<()> {
        // SAFETY: group and tensor outlive the call; so in all that follow.
        self.run("all-reduce", |error| unsafe {
            ffi::ruminate_all_reduce(self.raw.as_ptr(), tensor.as_ptr(), code(reduce), error)
        })
    }

    /// Gives all ranks the tensor of rank `from`, in place.
    ///
    /// # Errors
    /// [`Error::Collective`].
    pub fn broadcast(&self, tensor: &mut Tensor, from: usize) -> Result<()> {
        // SAFETY: as above.
        self.run("broadcast", |error| unsafe {
            ffi::ruminate_broadcast(self.raw.as_ptr(), tensor.as_ptr(), from as c_int, error)
        })
    }

    /// The tensors of all ranks, stacked: `[size, ...]`.
    ///
    /// # Errors
    /// [`Error::Collective`].
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        let mut out = std::ptr::null_mut();
        // SAFETY: as above.
        self.run("all-gather", |error| unsafe {
            ffi::ruminate_all_gather(self.raw.as_ptr(), tensor.as_ptr(), &mut out, error)
        })?;
        // SAFETY: on success the shim stored a new tensor in `out` whose ownership passes to us.
        Ok(unsafe { Tensor::from_ptr(out) })
    }

    /// Reduces a tensor `[size, ...]` of each rank, and gives each rank its row `[...]` of the result.
    ///
    /// # Errors
    /// [`Error::Collective`].
    pub fn reduce_scatter(&self, tensor: &Tensor, reduce: Reduce) -> Result<Tensor> {
        let mut out = std::ptr::null_mut();
        // SAFETY: as above.
        self.run("reduce-scatter", |error| unsafe {
            ffi::ruminate_reduce_scatter(self.raw.as_ptr(), tensor.as_ptr(), code(reduce), &mut out, error)
        })?;
        // SAFETY: as in `all_gather`.
        Ok(unsafe { Tensor::from_ptr(out) })
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// [`Error::Collective`].
    pub fn barrier(&self) -> Result<()> {
        // SAFETY: as above.
        self.run("barrier", |error| unsafe { ffi::ruminate_barrier(self.raw.as_ptr(), error) })
    }

    /// The bytes of all ranks, of any lengths, by rank.
    ///
    /// # Errors
    /// [`Error::Collective`].
    pub fn all_gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let length = Tensor::f_from_slice(&[bytes.len() as i64])?.f_to_device(self.device)?;
        let lengths = Vec::<i64>::try_from(self.all_gather(&length)?.f_view([-1])?)?;
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let mut padded = bytes.to_vec();
        padded.resize(longest as usize, 0);
        let row = Tensor::f_from_slice(&padded)?.f_to_device(self.device)?;
        let rows = self.all_gather(&row)?.f_to_device(Device::Cpu)?;
        let of = |(rank, &length): (usize, &i64)| -> Result<Vec<u8>> {
            Ok(Vec::try_from(rows.f_get(rank as i64)?.f_narrow(0, 0, length)?)?)
        };
        lengths.iter().enumerate().map(of).collect()
    }

    /// The sums over all ranks of some whole numbers.
    ///
    /// # Errors
    /// [`Error::Collective`].
    pub fn sum(&self, numbers: &[i64]) -> Result<Vec<i64>> {
        let mut tensor = Tensor::f_from_slice(numbers)?.f_to_device(self.device)?;
        self.all_reduce(&mut tensor, Reduce::Sum)?;
        Ok(Vec::try_from(tensor.f_to_kind(Kind::Int64)?)?)
    }

    pub(super) fn raw(&self) -> *mut Group {
        self.raw.as_ptr()
    }

    pub(super) fn run(&self, op: &'static str, body: impl FnOnce(*mut *mut c_char) -> c_int) -> Result<()> {
        collective(&self.world, self.timeout, op, body)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `ruminate_group_join` and is not used again.
        unsafe { ffi::ruminate_group_free(self.raw.as_ptr()) }
    }
}

fn code(reduce: Reduce) -> c_int {
    match reduce {
        Reduce::Sum => 0,
        Reduce::Mean => 1,
        Reduce::Max => 2,
    }
}

/// Runs a function of the shim and says in its error who failed at what.
fn collective(
    world: &World,
    timeout: Duration,
    op: &'static str,
    body: impl FnOnce(*mut *mut c_char) -> c_int,
) -> Result<()> {
    let started = Instant::now();
    let Err(error) = ffi::call(op, body) else { return Ok(()) };
    let waited = started.elapsed();
    let advice = if waited + Duration::from_millis(500) >= timeout {
        "; not all ranks came within the time-out: one is slower, stuck or was never started, or does something else"
    } else {
        "; if another rank ended, its own message says why"
    };
    let message = match error {
        Error::Libtorch { message, .. } => message + advice,
        other => other.to_string(),
    };
    Err(Error::Collective { rank: world.rank, size: world.size, op, secs: waited.as_secs_f64(), message })
}
