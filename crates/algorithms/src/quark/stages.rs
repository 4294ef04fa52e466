//! When control tokens come into use.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// At which end of the code tokens are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AddTo {
    /// The first tokens come first.
    #[default]
    Right,
    /// The last tokens come first.
    Left,
}

/// Which of the control tokens are in use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StageSchedule {
    /// All, from the start.
    #[default]
    Classic,
    /// One more (or one group more) every so many steps. A reward whose token is not in use yet does not filter.
    Additive {
        /// Steps of a stage.
        interval: u64,
        /// Where tokens are added.
        #[serde(default)]
        add_to: AddTo,
        /// Sizes of groups of tokens that are added together, from the left to the right of the code; empty adds
        /// one after another.
        #[serde(default)]
        groups: Vec<usize>,
    },
}

impl StageSchedule {
    /// The part of `len` tokens (or rewards) that is in use in the update of step `step`.
    #[must_use]
    pub fn training(&self, step: u64, len: usize) -> Range<usize> {
        match self {
            Self::Classic => 0..len,
            Self::Additive { interval, .. } => self.stage(step / (*interval).max(1) + 1, len),
        }
    }

    /// The part of `len` tokens that the policy is given when it writes before the update of step `step`: where a stage
    /// begins, its new token is not trained yet.
    #[must_use]
    pub fn sampling(&self, step: u64, len: usize) -> Range<usize> {
        match self {
            Self::Classic => 0..len,
            Self::Additive { .. } => self.training(step.saturating_sub(1), len),
        }
    }

    fn stage(&self, stage: u64, len: usize) -> Range<usize> {
        let Self::Additive { add_to, groups, .. } = self else { return 0..len };
        let stage = usize::try_from(stage).unwrap_or(usize::MAX);
        let size = |groups: &mut dyn Iterator<Item = &usize>| groups.take(stage).sum::<usize>();
        let active = match (groups.is_empty(), add_to) {
            (true, _) => stage,
            (false, AddTo::Right) => size(&mut groups.iter()),
            (false, AddTo::Left) => size(&mut groups.iter().rev()),
        };
        match (add_to, active.min(len)) {
            (AddTo::Right, active) => 0..active,
            (AddTo::Left, active) => len - active..len,
        }
    }

    pub(super) fn validate(&self, rewards: usize) -> Result<()> {
        let refuse = |reason: String| Err(Error::config("control.stages", reason));
        match self {
            Self::Additive { interval: 0, .. } => {
                refuse("has an interval of 0 steps, but must have at least 1".into())
            }
            Self::Additive { groups, .. } if groups.contains(&0) => {
                refuse(format!("has the groups {groups:?}, but a group must have a token"))
            }
            Self::Additive { groups, .. }
                if !groups.is_empty() && groups.iter().sum::<usize>() != rewards =>
            {
                refuse(format!("has the groups {groups:?}, which do not add up to {rewards} rewards"))
            }
            _ => Ok(()),
        }
    }
}
