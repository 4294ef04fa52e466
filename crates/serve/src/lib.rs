#![doc = include_str!("../README.md")]

mod answer;
mod config;
mod engine;
mod error;
mod fields;
mod http;
mod log_line;
mod places;
mod request;
mod rows;
mod scores;
mod server;
mod stream;

pub use config::ServeConfig;
pub use error::{Error, Result};
pub use server::serve;
