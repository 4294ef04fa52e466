#![doc = include_str!("../README.md")]

mod autocast;
mod checkpoint;
mod cpu;
pub mod dist;
mod dropout;
mod error;
mod ffi;
mod files;
mod fused;
mod graph;
mod info;
pub mod kernels;
mod log_probs;
mod memory;
pub mod optim;
mod products;
pub mod rng;
mod sampling;

pub use autocast::autocast;
pub use checkpoint::checkpoint;
pub use cpu::{CpuLevel, product_library};
pub use dropout::dropout;
pub use error::{Error, Result, plain};
pub use files::map_file;
pub use fused::{Gate, KvRef, append_kv, append_kv_at, attention, decode_attention, gate, rms_norm, rope};
pub use graph::Graph;
pub use info::{build_info, keep_freed_memory};
pub use log_probs::{LogProbs, cross_entropy, log_probs};
pub use memory::host_memory;
pub use products::{Packed, Prologue, fused_linear, linear, matmul};
pub use sampling::{Choice, Sampler, choose, top_p};
