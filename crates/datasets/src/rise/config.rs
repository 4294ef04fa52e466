//! How episodes are played.

use serde::{Deserialize, Serialize};

use crate::environments::Compat;

/// Settings of a rollout. The defaults are those of the published code for collecting data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// Attempts asked for in each turn; as many turns as entries. Default: 5 turns of 1.
    pub samples: Vec<usize>,
    /// Who knows which attempts are right. Default: [`Setting::Oracle`].
    pub setting: Setting,
    /// Messages after the demonstration beyond which only the last ones are sent. Default: 20.
    pub dialogue_limit: usize,
    /// From this turn on, only the question and the last attempts are sent, one less than this number; none sends all. Default:
    /// none.
    pub context_window: Option<usize>,
    /// Times that a turn is sampled when nothing but degenerate text comes, before it counts as blocked. Default: 10; the
    /// published code tries for ever.
    pub tries: usize,
    /// What all samples follow from.
    pub seed: u64,
    /// Fixed, or as published.
    pub compat: Compat,
}

/// What the course of an episode may depend on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// Feedback tells the truth, an episode ends with its first right attempt, and degenerate text is dropped. So data is
    /// collected; as an evaluation it tells how often one of the turns is right.
    #[default]
    Oracle,
    /// The model is told after each attempt that it was wrong, up to the last turn, so nothing leaks. Nothing is dropped, and
    /// the log holds no dialogue.
    NoOracle,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            samples: vec![1; 5],
            setting: Setting::Oracle,
            dialogue_limit: 20,
            context_window: None,
            tries: 10,
            seed: 0,
            compat: Compat::Fixed,
        }
    }
}

impl RolloutConfig {
    /// Collects data: iteration `n` of RISE has `n` turns of 1 and a last one of as many attempts as the teacher is to make.
    #[must_use]
    pub fn collect(samples: &[usize]) -> Self {
        Self { samples: samples.to_vec(), ..Self::default() }
    }

    /// Evaluates one attempt a turn without an oracle, with the context of `window` turns.
    #[must_use]
    pub fn sequential(turns: usize, window: usize) -> Self {
        let (setting, context_window) = (Setting::NoOracle, Some(window));
        Self { samples: vec![1; turns], setting, context_window, ..Self::default() }
    }

    /// Evaluates several first attempts.
    #[must_use]
    pub fn parallel(samples: usize) -> Self {
        Self { samples: vec![samples], setting: Setting::NoOracle, ..Self::default() }
    }

    /// The name of the log.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}_turns.json", self.samples.len())
    }

    /// Checks all settings.
    ///
    /// # Errors
    /// The first setting that is wrong, and what would be right.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if self.samples.is_empty() || self.samples.contains(&0) {
            return Err(("samples", "must have one number above 0 for each turn".into()));
        }
        if self.dialogue_limit == 0 {
            return Err(("dialogue_limit", "is 0, but the question must be sent".into()));
        }
        if self.context_window == Some(0) {
            return Err(("context_window", "is 0; 1 sends the question only".into()));
        }
        if self.tries == 0 {
            return Err(("tries", "is 0, but must be at least 1".into()));
        }
        // The best of several is the truly best one, which nobody but an oracle can know.
        let several = self.samples.len() > 1 && self.samples.iter().any(|&n| n > 1);
        if self.setting == Setting::NoOracle && several && self.compat == Compat::Fixed {
            let reason = "several attempts in one of several turns need an oracle that chooses the best: setting = \"oracle\"";
            return Err(("samples", reason.into()));
        }
        Ok(())
    }
}
