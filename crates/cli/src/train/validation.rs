//! Validation by rewards of the model's own responses, for methods that train on given texts.

use std::path::PathBuf;

use ruminate::algorithms::{RewardEvaluation, RewardEvaluationConfig};
use ruminate::datasets::rows::{Columns, PromptRow, read_prompts};
use ruminate::rewards::configured::{PolicyRewards, RewardConfig};
use ruminate::run::ConfigError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ppo::rewards;
use crate::chat::Encoder;

/// Validation by rewards of answers to rows.
pub(crate) type ByRewards = RewardEvaluation<PromptRow, PolicyRewards>;

/// Prompts that validation answers: the section `[validation]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ValidationSection {
    /// Files of prompts. The mean of their responses' rewards then chooses the best checkpoint. Without any, the loss does.
    pub(crate) prompts: Vec<PathBuf>,
    /// The writing of responses, which is greedy.
    pub(crate) writing: RewardEvaluationConfig,
}

impl ValidationSection {
    /// Checks that prompts and rewards go together.
    pub(crate) fn validate(&self, configs: &[RewardConfig]) -> Result<(), ConfigError> {
        self.writing.validate().map_err(ConfigError::invalid)?;
        match (self.prompts.is_empty(), configs.is_empty()) {
            (true, false) => {
                let reason = "there are rewards but no validation.prompts to judge the responses to; name a file of prompts";
                Err(ConfigError::invalid(reason))
            }
            (false, true) => {
                let reason =
                    "there are validation.prompts but no [[reward]] to judge the responses by; add one";
                Err(ConfigError::invalid(reason))
            }
            _ => Ok(()),
        }
    }

    /// The evaluation, where the settings ask for one.
    pub(crate) fn evaluation(
        &self,
        configs: &[RewardConfig],
        columns: &Columns,
        encoder: &Encoder,
    ) -> anyhow::Result<Option<ByRewards>> {
        if self.prompts.is_empty() {
            return Ok(None);
        }
        let mut prompts = vec![];
        for file in &self.prompts {
            for row in read_prompts(file, columns)? {
                prompts.push(encoder.prompt_of(row)?);
            }
        }
        let tokenizer = encoder.tokenizer.clone();
        let reward = rewards(configs)?.with_tokenizer(tokenizer.clone());
        Ok(Some(RewardEvaluation::new(prompts, reward, tokenizer, self.writing.clone())?))
    }
}
