//! TinyThinker (arXiv 2412.08024): a student that recalls knowledge, analyzes each option and then answers.
//!
//! Phase 1, [`Acquisition`], trains its stages in turn on a teacher's texts. Phase 2 repeats: [`Student::make_pairs`] samples runs and pairs
//! right ones with wrong ones, and [`Reflection`] trains on the pairs; [`ReflectionRound`] does both. [`Student::respond`] lets it answer.

mod acquisition;
mod batches;
mod data;
mod evaluation;
mod generation;
mod interval;
mod reflection;
mod round;
mod sampling;
mod sections;

pub use acquisition::{Acquisition, AcquisitionConfig};
pub use data::{ReflectionData, TinyThinkerData};
pub use evaluation::{Accuracy, ResponseLine, published_name, write_responses};
pub use generation::{Asked, Decoding, GenerationSettings, InferenceConfig, Response, Student};
pub use interval::{
    Interval, IntervalState, Machine, Turn, preference_limits, steps_in, supervised_limits, warmup_steps,
};
pub use reflection::{Reflected, Reflection, ReflectionConfig, StagePairs};
pub use round::{FinishedRound, Learner, ReflectionRound};
pub use sampling::{PairFiles, PairSummary, Round, RoundPairs};
pub use sections::{AcquisitionSection, ReflectionSection};
