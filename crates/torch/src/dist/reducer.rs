//! Gradients of several ranks become one while the backward pass runs.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::rc::Rc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{ProcessGroup, Reduce};
use crate::ffi;
use crate::{Error, Result};

/// What the ranks of a group divide among them, instead of each having all of it. Every parameter then belongs to one rank
/// ([`owners`]), which alone moves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sharding {
    /// Nothing: plain data parallelism.
    #[default]
    None,
    /// The optimizer's states: stage 1 of ZeRO (arXiv 1910.02054).
    Optimizer,
    /// The gradients too: stage 2. With accumulation they travel after every micro-batch instead of once per step.
    Gradients,
}

/// The rank that owns each parameter, by their sizes: the largest first, each to the rank that has least so far.
///
/// ```
/// use ruminate_torch::dist::owners;
/// assert_eq!(owners(&[3, 9, 4, 1], 2), [1, 0, 1, 1]);
/// assert_eq!(owners(&[3, 9], 1), [0, 0]);
/// ```
#[must_use]
pub fn owners(sizes: &[u64], ranks: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(sizes[i]));
    let mut filled = vec![0u64; ranks.max(1)];
    let mut owners = vec![0; sizes.len()];
    for i in order {
        let least = (0..filled.len()).min_by_key(|&rank| filled[rank]).unwrap_or(0);
        filled[least] += sizes[i];
        owners[i] = least;
    }
    owners
}

/// Parameters whose gradients travel together, from the last to the first: the order of the backward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Their indices.
    pub members: Vec<usize>,
    /// The rank that gets the sum; `None` for all.
    pub owner: Option<usize>,
    /// Their gradients' size.
    pub bytes: u64,
    kind: Kind,
}

impl Bucket {
    /// A bucket is full with this many bytes, as in PyTorch.
    pub const BYTES: u64 = 25 << 20;
    /// The first one is full sooner, so that sending starts early.
    pub const FIRST_BYTES: u64 = 1 << 20;
    /// With [`Sharding`], so many are in memory at the same time, besides the gradients themselves.
    pub const IN_FLIGHT: usize = 4;

    /// Puts parameters of these kinds and numbers of scalars into buckets, in the order in which they are full, for so many ranks.
    /// `None` stands for a parameter without gradient.
    #[must_use]
    pub fn fill(parameters: &[Option<(Kind, u64)>], sharding: Sharding, ranks: usize) -> Vec<Self> {
        let owners = (sharding != Sharding::None).then(|| owners(&sizes(parameters), ranks));
        let (mut full, mut open): (Vec<Self>, Vec<Self>) = (vec![], vec![]);
        for (index, &parameter) in parameters.iter().enumerate().rev() {
            let Some((kind, numbers)) = parameter else { continue };
            let owner = owners.as_ref().map(|owners| owners[index]);
            let at = open.iter().position(|b| b.owner == owner && b.kind == kind).unwrap_or_else(|| {
                open.push(Self { members: vec![], owner, bytes: 0, kind });
                open.len() - 1
            });
            open[at].members.push(index);
            open[at].bytes += numbers * kind.elt_size_in_bytes() as u64;
            if open[at].bytes >= if full.is_empty() { Self::FIRST_BYTES } else { Self::BYTES } {
                full.push(open.remove(at));
            }
        }
        full.extend(open);
        full
    }
}

fn sizes(parameters: &[Option<(Kind, u64)>]) -> Vec<u64> {
    parameters.iter().map(|p| p.map_or(0, |(_, numbers)| numbers)).collect()
}

/// Sums the gradients of parameters over all ranks, as PyTorch's `DistributedDataParallel` does: in buckets of 25 MiB that are sent as
/// soon as the backward pass is through with all that is in them, while it goes on. With [`Sharding`], a sum goes to the
/// parameter's owner alone.
///
/// Unlike libtorch's own, it takes parameters that a loss does not use, ranks that have no micro-batch, and parameters that a
/// backward pass meets several times.
///
/// # Example
/// ```no_run
/// # use ruminate_torch::dist::{ProcessGroup, Reducer, Sharding};
/// # use tch::Tensor;
/// # fn step(group: std::rc::Rc<ProcessGroup>, parameters: &[Tensor], loss: Tensor) -> ruminate_torch::Result<()> {
/// let mut reducer = Reducer::new(group, parameters, Sharding::None)?;
/// reducer.begin();
/// loss.f_backward()?; // what is there is sent
/// reducer.finish(true)?; // gradients are sums over all ranks now
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Reducer {
    raw: NonNull<ffi::Reducer>,
    group: Rc<ProcessGroup>,
    sharding: Sharding,
    /// Whether this rank moves each parameter.
    owned: Vec<bool>,
}

impl Reducer {
    /// Watches parameters, given in the order in which the model uses them, the same on all ranks. The tensors are shared.
    ///
    /// # Errors
    /// When one of them is no parameter, but computed.
    pub fn new(group: Rc<ProcessGroup>, parameters: &[Tensor], sharding: Sharding) -> Result<Self> {
        let of = |p: &Tensor| p.requires_grad().then(|| (p.kind(), p.numel() as u64));
        let kinds: Vec<_> = parameters.iter().map(of).collect();
        let buckets = Bucket::fill(&kinds, sharding, group.size());
        let owners = owners(&sizes(&kinds), group.size());
        let owned = owners.iter().map(|&rank| sharding == Sharding::None || rank == group.rank()).collect();
        let members: Vec<usize> = buckets.iter().flat_map(|bucket| bucket.members.iter().copied()).collect();
        let sizes: Vec<usize> = buckets.iter().map(|bucket| bucket.members.len()).collect();
        let ranks: Vec<c_int> =
            buckets.iter().map(|bucket| bucket.owner.map_or(-1, |rank| rank as c_int)).collect();
        let pointers = ffi::pointers(parameters);
        let mut raw: *mut ffi::Reducer = std::ptr::null_mut();
        // SAFETY: `sizes` and `ranks` have an entry for each bucket, `members` those of all of them, which are indices of
        // `pointers`; all outlive the call. The group is kept.
        ffi::call("watch gradients", |error| unsafe {
            ffi::ruminate_reducer_new(
                group.raw(),
                pointers.as_ptr(),
                pointers.len(),
                members.as_ptr(),
                sizes.as_ptr(),
                ranks.as_ptr(),
                buckets.len(),
                Bucket::IN_FLIGHT,
                &mut raw,
                error,
            )
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::Libtorch {
            op: "watch gradients",
            message: "it returned neither a reducer nor an error".into(),
        })?;
        Ok(Self { raw, group, sharding, owned })
    }

    /// Whether this rank moves the parameter of that index: all of them without [`Sharding`].
    #[must_use]
    pub fn owns(&self, index: usize) -> bool {
        self.owned.get(index).copied().unwrap_or(false)
    }

    /// What is divided.
    #[must_use]
    pub fn sharding(&self) -> Sharding {
        self.sharding
    }

    /// Before a backward pass whose gradients are to travel, with those that earlier ones left.
    pub fn begin(&mut self) {
        // SAFETY: the reducer lives as long as `self`.
        unsafe { ffi::ruminate_reducer_begin(self.raw.as_ptr()) }
    }

    /// After it: waits until everything has arrived. A rank without a micro-batch calls [`begin`](Self::begin) and this.
    ///
    /// After the `last` of several rounds, gradients are the sums of all rounds and ranks: where a parameter had one on some ranks
    /// only, the others count as zeros; one that had none anywhere, or that another rank owns, has none.
    ///
    /// # Errors
    /// [`Error::Collective`].
    pub fn finish(&mut self, last: bool) -> Result<()> {
        // SAFETY: as in `begin`.
        self.group.run("all-reduce of gradients", |error| unsafe {
            ffi::ruminate_reducer_finish(self.raw.as_ptr(), last.into(), error)
        })
    }

    /// The 2-norm of the gradients of all ranks together, on the device, after scaling them down to `max_norm`; the rule is that of
    /// [`clip_grad_norm`](crate::optim::clip_grad_norm).
    ///
    /// # Errors
    /// [`Error::Collective`].
    pub fn clip_grad_norm(&self, own: &[Tensor], max_norm: f64) -> Result<Tensor> {
        if self.sharding == Sharding::None {
            return crate::optim::clip_grad_norm(own, max_norm);
        }
        let norm = crate::optim::clip_grad_norm(own, f64::INFINITY)?;
        let mut square = norm.f_to_kind(Kind::Float)?.f_square()?.f_to_device(self.group.device())?;
        self.group.all_reduce(&mut square, Reduce::Sum)?;
        let norm = square.f_sqrt()?;
        crate::optim::scale_grads(own, &norm, max_norm)?;
        Ok(norm)
    }

    /// After the owners have moved their parameters, gives them to all. Nothing to do without [`Sharding`].
    ///
    /// # Errors
    /// [`Error::Collective`].
    pub fn publish(&mut self) -> Result<()> {
        if self.sharding == Sharding::None {
            return Ok(());
        }
        // SAFETY: as in `begin`.
        self.group.run("broadcast of parameters", |error| unsafe {
            ffi::ruminate_reducer_publish(self.raw.as_ptr(), error)
        })
    }

    /// Bytes that this rank gave to collective operations so far. What goes over the wire depends on the operation: an all-reduce of `n`
    /// bytes among `k` ranks sends `2 n (k - 1) / k` from each.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // SAFETY: as in `begin`.
        unsafe { ffi::ruminate_reducer_bytes(self.raw.as_ptr()) }.unsigned_abs()
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `ruminate_reducer_new` and is not used again.
        unsafe { ffi::ruminate_reducer_free(self.raw.as_ptr()) }
    }
}
