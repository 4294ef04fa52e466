//! The binary as its users run it.

mod real_data;
mod support;
mod training;
