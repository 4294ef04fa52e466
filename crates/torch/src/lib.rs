#![doc = include_str!("../README.md")]

mod autocast;
mod error;
mod ffi;
mod files;
pub mod optim;
pub mod rng;

pub use autocast::autocast;
pub use error::{Error, Result};
pub use files::map_file;
