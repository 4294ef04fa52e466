//! The binary as its users run it: on settings so small that a training takes a second.

mod bad_input;
mod data;
mod demo;
mod disk_full;
mod distributed;
mod guide;
mod interruption;
mod output;
mod real_data;
mod reinforcement;
mod self_feedback;
#[path = "../../../../crates/datasets/tests/teacher/stub.rs"]
#[expect(dead_code, reason = "what other tests need")]
mod stub;
mod support;
