#![doc = include_str!("../README.md")]

mod autocast;
mod checkpoint;
mod error;
mod ffi;
mod files;
mod info;
mod log_probs;
pub mod optim;
pub mod rng;

pub use autocast::autocast;
pub use checkpoint::checkpoint;
pub use error::{Error, Result};
pub use files::map_file;
pub use info::build_info;
pub use log_probs::{LogProbs, log_probs};
