#![doc = include_str!("../README.md")]

pub mod choices;

pub use choices::{ChoiceError, Ensemble, EnsembleConfig, Expert, Judgement};
