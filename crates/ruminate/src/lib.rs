//! The facade: re-exports of every ruminate crate.
