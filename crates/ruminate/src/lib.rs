#![doc = include_str!("../README.md")]

pub use ruminate_algorithms as algorithms;
pub use ruminate_datasets as datasets;
pub use ruminate_models as models;
pub use ruminate_rewards as rewards;
pub use ruminate_run as run;
pub use ruminate_torch as torch;

/// The examples of the project's README, so that they keep compiling.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ProjectReadme;
