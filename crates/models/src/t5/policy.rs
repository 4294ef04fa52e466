//! Scores of targets.

use std::path::Path;

use tch::{Device, Tensor};

use super::T5;
use crate::policy::{check_targets, label_scores, logit_statistics, targets_of_each};
use crate::{Example, Labels, LogitStatistics, Parameters, Policy, Result, TokenId, TokenScores, Want};

impl Policy for T5 {
    fn parameters(&self) -> &Parameters {
        self.parameters()
    }

    fn device(&self) -> Device {
        self.device()
    }

    fn hidden_size(&self) -> i64 {
        self.config().d_model
    }

    fn pad_token_id(&self) -> TokenId {
        self.config().pad_token_id
    }

    fn output_scale(&self) -> f64 {
        self.output_projection().1
    }

    fn output_weight(&self) -> Option<&Tensor> {
        Some(self.output_projection().0)
    }

    fn end_token_id(&self) -> Option<TokenId> {
        Some(self.config().eos_token_id)
    }

    fn set_training(&mut self, training: bool) {
        self.set_training(training);
    }

    fn set_gradient_checkpointing(&mut self, on: bool) -> Result<()> {
        self.set_gradient_checkpointing(on);
        Ok(())
    }

    fn score(&self, examples: &[Example], want: Want) -> Result<TokenScores> {
        let prompts: Vec<&[TokenId]> = examples.iter().map(|e| e.prompt.as_slice()).collect();
        let targets: Vec<&[TokenId]> = examples.iter().map(|e| e.target.as_slice()).collect();
        self.score_alternatives(&prompts, &targets, want)
    }

    fn score_alternatives(
        &self,
        prompts: &[&[TokenId]],
        targets: &[&[TokenId]],
        want: Want,
    ) -> Result<TokenScores> {
        targets_of_each(prompts.len(), targets.len())?;
        let (states, labels, source) = self.target_states(prompts, targets)?;
        let (log_probs, entropy) = label_scores(&states, self.output_projection(), &labels, want.entropy)?;
        let tokens = source + labels.count;
        Ok(TokenScores { log_probs, entropy, states: want.states.then_some(states), labels, tokens })
    }

    fn states(&self, examples: &[Example]) -> Result<Option<Tensor>> {
        let prompts: Vec<&[TokenId]> = examples.iter().map(|e| e.prompt.as_slice()).collect();
        let targets: Vec<&[TokenId]> = examples.iter().map(|e| e.target.as_slice()).collect();
        Ok(Some(self.target_states(&prompts, &targets)?.0))
    }

    fn logit_statistics(&self, states: &Tensor, labels: &Labels) -> Result<LogitStatistics> {
        logit_statistics(states, self.output_projection(), labels)
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.save(folder)
    }
}

impl T5 {
    /// The decoder's states `[batch, time, d_model]`, the targets, and the real tokens of the prompts.
    fn target_states(&self, prompts: &[&[TokenId]], targets: &[&[TokenId]]) -> Result<(Tensor, Labels, u64)> {
        check_targets(self.config().vocab_size, targets)?;
        let source = self.batch(prompts)?;
        let labels = Labels::new(targets, self.device())?;
        let states = self.decode(&self.encode(&source)?, &self.shift_right(&labels.ids)?)?;
        Ok((states, labels, source.tokens))
    }
}
