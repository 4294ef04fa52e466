//! Several processes that work as one: c10d, the engine of PyTorch's own distributed training.
//!
//! The processes are called ranks. Each learns from its launcher which one it is ([`World`]) and joins the others
//! ([`ProcessGroup`]): over Gloo where it computes on the CPU, over NCCL where it computes on CUDA. All ranks do the same
//! operations in the same order; one that waits for others waits no longer than the group's time-out.

mod group;
mod reducer;
mod world;

pub use group::{ProcessGroup, Reduce};
pub use reducer::{Bucket, Reducer, Sharding, owners};
pub use world::World;
