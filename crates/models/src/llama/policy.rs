//! Scores of targets and choices.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::layers::{KeyValues, Pass, Rectangle};
use super::rope::Rotation;
use super::{Llama, LlamaConfig};
use crate::batch::check_ids;
use crate::packing::{groups, push, spare, unpack};
use crate::policy::{
    check_targets, label_cross_entropy, label_scores, logit_statistics, targets_of_each, tokens_of,
};
use crate::scoring::{check_choices, padded_targets, padded_tokens};
use crate::{
    CrossEntropy, Error, Example, IGNORED, Interrupt, Labels, LogitStatistics, Parameters, Policy, Result,
    ScoreChoices, Side, TokenId, TokenScores, Want,
};

impl Policy for Llama {
    fn parameters(&self) -> &Parameters {
        self.parameters()
    }

    fn device(&self) -> Device {
        self.device
    }

    fn hidden_size(&self) -> i64 {
        self.config.hidden_size
    }

    fn pad_token_id(&self) -> TokenId {
        self.pad()
    }

    fn output_weight(&self) -> Option<&Tensor> {
        Some(self.output())
    }

    fn end_token_ids(&self) -> &[TokenId] {
        &self.config.eos_token_ids
    }

    fn set_training(&mut self, training: bool) {
        self.set_training(training);
    }

    fn has_dropout(&self) -> bool {
        self.config().attention_dropout > 0.0
    }

    fn set_gradient_checkpointing(&mut self, on: bool) -> Result<()> {
        self.set_gradient_checkpointing(on);
        Ok(())
    }

    /// Prompt and target are read in one row. A target's [`IGNORED`] position is read as the padding token; tokens that are
    /// to be read without loss belong to the prompt.
    fn score(&self, examples: &[Example], want: Want) -> Result<TokenScores> {
        Interrupt::check()?;
        let prompts: Vec<&[TokenId]> = examples.iter().map(|e| e.prompt.as_slice()).collect();
        let targets: Vec<&[TokenId]> = examples.iter().map(|e| e.target.as_slice()).collect();
        self.score_alternatives(&prompts, &targets, want)
    }

    /// Several targets of a prompt share one pass over it, unless activations are checkpointed.
    fn score_alternatives(
        &self,
        prompts: &[&[TokenId]],
        targets: &[&[TokenId]],
        want: Want,
    ) -> Result<TokenScores> {
        let (states, labels) = self.target_states(prompts, targets)?;
        let (log_probs, entropy) = label_scores(&states, (self.output(), 1.0), &labels, want.entropy)?;
        let tokens = tokens_of(prompts, &labels);
        Ok(TokenScores { log_probs, entropy, states: want.states.then_some(states), labels, tokens })
    }

    fn cross_entropy(&self, examples: &[Example]) -> Result<CrossEntropy> {
        Interrupt::check()?;
        let prompts: Vec<&[TokenId]> = examples.iter().map(|e| e.prompt.as_slice()).collect();
        let targets: Vec<&[TokenId]> = examples.iter().map(|e| e.target.as_slice()).collect();
        let (states, labels) = self.target_states(&prompts, &targets)?;
        let sum = label_cross_entropy(&states, (self.output(), 1.0), &labels)?;
        Ok(CrossEntropy { sum, count: labels.count, tokens: tokens_of(&prompts, &labels) })
    }

    fn states(&self, examples: &[Example]) -> Result<Option<Tensor>> {
        Interrupt::check()?;
        let prompts: Vec<&[TokenId]> = examples.iter().map(|e| e.prompt.as_slice()).collect();
        let targets: Vec<&[TokenId]> = examples.iter().map(|e| e.target.as_slice()).collect();
        Ok(Some(self.target_states(&prompts, &targets)?.0))
    }

    fn logit_statistics(&self, states: &Tensor, labels: &Labels) -> Result<LogitStatistics> {
        logit_statistics(states, (self.output(), 1.0), labels)
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.save(folder)
    }
}

impl ScoreChoices for Llama {
    fn choice_log_probs(&self, prompts: &[Vec<TokenId>], choices: &[Vec<Vec<TokenId>>]) -> Result<Tensor> {
        Interrupt::check()?;
        let capacity = check_choices(prompts, choices)?;
        let targets = padded_targets(choices, capacity)?;
        check_targets(self.config.vocab_size, &targets)?;
        let labels = Labels::new(&targets, self.device)?;
        let prompts: Vec<&[TokenId]> = prompts.iter().map(Vec::as_slice).collect();
        let states = self.shared_states(&prompts, &labels)?;
        let (log_probs, _) = label_scores(&states, (self.output(), 1.0), &labels, false)?;
        Ok(log_probs.f_view_([prompts.len() as i64, capacity as i64, -1])?)
    }

    fn first_token_logits(&self, prompts: &[Vec<TokenId>], tokens: &[Vec<TokenId>]) -> Result<Vec<Vec<f32>>> {
        Interrupt::check()?;
        let capacity = check_choices(prompts, tokens)?;
        check_targets(self.config.vocab_size, &tokens.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        let ids = padded_tokens(tokens, capacity, self.device)?;
        let prompts: Vec<&[TokenId]> = prompts.iter().map(Vec::as_slice).collect();
        let (states, _) = self.read_prompts(&prompts)?;
        let (batch, n) = ids.size2()?;
        let rows = self.output().f_index_select(0, &ids.f_reshape([-1])?)?.f_view_([batch, n, -1])?;
        let logits = rows.f_matmul(&states.f_unsqueeze(2)?)?.f_squeeze_dim(2)?.f_to_kind(Kind::Float)?;
        let mut logits: Vec<Vec<f32>> = Vec::try_from(logits)?;
        logits.iter_mut().zip(tokens).for_each(|(row, tokens)| row.truncate(tokens.len()));
        Ok(logits)
    }
}

/// What is left of reading prompts.
struct Prefix {
    /// Of every block.
    layers: Vec<KeyValues>,
    /// Tokens of each prompt `[prompts]`.
    lengths: Tensor,
    /// Score offsets `[prompts, 1, 1, time]` that hide padding.
    hidden: Tensor,
}

impl Llama {
    /// The states from which each target token is predicted, `[rows, time, hidden_size]`, and the targets.
    fn target_states(&self, prompts: &[&[TokenId]], targets: &[&[TokenId]]) -> Result<(Tensor, Labels)> {
        let each = targets_of_each(prompts.len(), targets.len())?;
        check_prompts(prompts)?;
        check_targets(self.config.vocab_size, targets)?;
        let labels = Labels::new(targets, self.device)?;
        let states = match each > 1 && !self.stack.recompute {
            true => self.shared_states(prompts, &labels)?,
            false => self.joined_states(prompts, each, targets, labels.ids.size()[1])?,
        };
        Ok((states, labels))
    }

    /// Each prompt in one row with its target. Rows of different lengths are hardly padded, and on the right, where no real token
    /// sees it.
    fn joined_states(
        &self,
        prompts: &[&[TokenId]],
        each: usize,
        targets: &[&[TokenId]],
        time: i64,
    ) -> Result<Tensor> {
        check_ids(self.config.vocab_size, prompts)?;
        // The last token of a target predicts nothing that is asked for.
        let read = |target: &[TokenId]| target.len().saturating_sub(1);
        let sizes: Vec<[i64; 2]> = targets
            .iter()
            .enumerate()
            .map(|(row, target)| [(prompts[row / each].len() + read(target)) as i64, 0])
            .collect();
        let groups = groups(&sizes, spare(self.block_parameters(), self.device));
        let (mut ids, mut positions) = (vec![], vec![]);
        let (mut begins, mut ends) = (vec![0; targets.len()], vec![0; targets.len()]);
        let mut rectangles = vec![];
        for group in groups {
            let width = group.iter().map(|&row| sizes[row][0]).max().unwrap_or(0);
            for &row in &group {
                let (prompt, target) = (prompts[row / each], targets[row]);
                let first = ids.len() as i64;
                begins[row] = first + prompt.len() as i64 - 1;
                ends[row] = first + width;
                let target = target[..read(target)].iter();
                let target = target.map(|&id| if id == IGNORED { self.pad() } else { id });
                push(&mut ids, prompt.iter().copied().chain(target), width, self.pad());
                positions.extend(0..width);
            }
            let mask = self.plain_mask(group.len() as i64, width, self.dropout())?;
            rectangles.push(Rectangle { rows: group.len() as i64, time: width, mask });
        }
        let row = |flat: &[i64]| Tensor::f_from_slice(flat)?.f_unsqueeze(0)?.f_to_device(self.device);
        let rotation = Rotation::new(&self.config, &row(&positions)?, self.kind)?;
        let pass = Pass { rotation, mask: None, dropout: self.dropout(), rectangles };
        let states = self.stack.forward(self.look_up(&row(&ids)?)?, &pass, None)?;
        unpack(&states.f_squeeze_dim(0)?, &begins, &ends, time)
    }

    /// Parameters of a block.
    fn block_parameters(&self) -> i64 {
        let LlamaConfig { hidden_size, vocab_size, num_hidden_layers, tie_word_embeddings, .. } = self.config;
        let matrices = if tie_word_embeddings { 1 } else { 2 };
        let all = self.parameters.count() as i64 - matrices * vocab_size * hidden_size;
        all / num_hidden_layers.max(1)
    }

    /// The same states where consecutive targets share a prompt, which is read once.
    fn shared_states(&self, prompts: &[&[TokenId]], labels: &Labels) -> Result<Tensor> {
        let (last, prefix) = self.read_prompts(prompts)?;
        let (rows, time) = labels.ids.size2()?;
        let each = rows / prompts.len() as i64;
        let spread = |t: &Tensor| t.f_repeat_interleave_self_int(each, 0, rows);
        let first = spread(&last)?.f_unsqueeze(1)?;
        if time == 1 {
            return Ok(first);
        }
        // The last token of a target predicts nothing that is asked for.
        let inputs = labels.ids.f_narrow(1, 0, time - 1)?;
        let inputs = inputs.f_masked_fill(&inputs.f_eq(IGNORED)?, self.pad())?;
        let given = prefix.hidden.size()[3];
        let room = prefix.hidden.f_new_zeros([rows, 1, 1, time - 1], (self.kind, self.device))?;
        let hidden = Tensor::f_cat(&[&spread(&prefix.hidden)?, &room], 3)?;
        let mask = hidden.f_add(&self.causal(time - 1, given + time - 1)?)?;
        let ahead = Tensor::f_arange(time - 1, (Kind::Int64, self.device))?;
        let positions = spread(&prefix.lengths)?.f_unsqueeze(1)?.f_add(&ahead)?;
        let rotation = Rotation::new(&self.config, &positions, self.kind)?;
        let pass = Pass { rotation, mask: Some(mask), dropout: self.dropout(), rectangles: vec![] };
        let (rest, _) = self.stack.forward_behind(self.look_up(&inputs)?, &pass, Some(&prefix.layers))?;
        Ok(Tensor::f_cat(&[first, rest], 1)?)
    }

    /// The state behind each prompt `[prompts, hidden_size]`, and what its continuations attend to.
    fn read_prompts(&self, prompts: &[&[TokenId]]) -> Result<(Tensor, Prefix)> {
        check_prompts(prompts)?;
        let batch = self.batch(prompts, Side::Left)?;
        let pass = self.pass(&batch, self.dropout())?;
        let (states, layers) = self.stack.forward_behind(self.look_up(&batch.ids)?, &pass, None)?;
        let lengths = batch.mask.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?;
        let hidden = self.hidden(&batch.mask)?;
        Ok((states.f_select(1, batch.ids.size()[1] - 1)?, Prefix { layers, lengths, hidden }))
    }
}

/// Refuses prompts without a token: there is no state from which the next one could be predicted.
pub(super) fn check_prompts<R: AsRef<[TokenId]>>(prompts: &[R]) -> Result<()> {
    match prompts.iter().position(|prompt| prompt.as_ref().is_empty()) {
        Some(i) => {
            let reason = format!("row {i} of {} has no token; begin it with the start token", prompts.len());
            Err(Error::invalid("prompts", reason))
        }
        None => Ok(()),
    }
}
