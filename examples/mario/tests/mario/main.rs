//! The binary as its users run it.

mod quark;
mod real_data;
mod support;
mod training;
