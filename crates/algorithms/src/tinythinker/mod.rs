//! TinyThinker (arXiv 2412.08024): which stage trains at which step.

mod interval;

pub use interval::{
    Interval, IntervalState, Machine, Turn, preference_limits, steps_in, supervised_limits, warmup_steps,
};
