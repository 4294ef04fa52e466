//! The `tinythinker` binary as users run it.

mod bad_input;
mod commands;
mod demo;
mod distributed;
mod pairs;
mod real_data;
#[path = "../../../../crates/datasets/tests/teacher/stub.rs"]
#[allow(dead_code, reason = "it also serves other tests")]
mod stub;
mod support;
