//! The trainer and Crystal's parts with tiny models.

mod accumulation;
mod checkpoints;
mod config;
mod crystal;
mod distributed;
mod dpo;
mod early_stopping;
mod failures;
mod learning;
mod mario;
mod observing;
mod pairs;
mod phases;
mod ppo;
mod quark;
mod resume;
mod rwr;
mod supervised;
mod support;
mod tinythinker;
