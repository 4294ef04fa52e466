//! The `rise` binary as users run it.

mod bad_input;
mod commands;
mod distributed;
mod judges;
mod players;
mod real_data;
mod stops;
#[path = "../../../../crates/datasets/tests/teacher/stub.rs"]
#[allow(dead_code, reason = "it also serves other tests")]
mod stub;
mod support;
mod templates;
