//! No work: see Cargo.toml.

fn main() {}
