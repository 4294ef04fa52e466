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

/// How a model is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvaluationSetting {
    /// Several turns, and nobody says which attempt is right.
    Sequential,
    /// Several turns, up to the first right attempt.
    Oracle,
    /// Several first attempts.
    Parallel,
}

impl EvaluationSetting {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sequential, Self::Oracle, Self::Parallel];

    /// The name in configurations, folders and results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Oracle => "oracle",
            Self::Parallel => "parallel",
        }
    }

    /// The metrics that tell most about so many turns or first attempts, in the order of tables.
    #[must_use]
    pub fn headline(self, turns: usize, samples: usize) -> Vec<String> {
        match self {
            Self::Sequential => {
                let of = |metric| format!("{metric}@t{turns}");
                let changes = ["improved_t1_to_last", "broken_t1_to_last"].map(String::from);
                ["m1@t1".into(), of("acc"), of("m1"), of("p1")].into_iter().chain(changes).collect()
            }
            Self::Oracle => vec![format!("p1@t{turns}")],
            Self::Parallel => vec![format!("m{samples}@t1"), format!("pass{samples}@t1")],
        }
    }
}

impl std::str::FromStr for EvaluationSetting {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|setting| setting.name() == name);
        found.ok_or_else(|| format!("unknown setting `{name}`; there are sequential, oracle and parallel"))
    }
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
