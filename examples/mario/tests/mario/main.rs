//! The binary as its users run it.

mod distributed;
mod guide;
mod page;
mod quark;
mod real_data;
mod support;
mod teach;
mod training;
