#![doc = include_str!("../README.md")]

pub use ruminate_algorithms as algorithms;
pub use ruminate_datasets as datasets;
pub use ruminate_models as models;
pub use ruminate_rewards as rewards;
#[cfg(feature = "run")]
pub use ruminate_run as run;
#[cfg(feature = "serve")]
pub use ruminate_serve as serve;
pub use ruminate_torch as torch;
/// The bindings to libtorch that ruminate is built on: tensors, devices, kinds.
pub use tch;

/// The examples of the project's README, so that they keep compiling.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ProjectReadme;

/// The examples of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guide/fine-tuning.md")]
struct FineTuning;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/guide/generation.md")]
struct Generation;

#[cfg(all(doctest, feature = "run"))]
#[doc = include_str!("../../../docs/guide/your-own-method.md")]
struct YourOwnMethod;
