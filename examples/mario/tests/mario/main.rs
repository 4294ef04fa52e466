//! The binary as its users run it.

mod guide;
mod quark;
mod real_data;
mod support;
mod training;
