//! Scores of targets.

use std::path::Path;

use tch::{Device, Tensor};

use super::T5;
use super::layers::{Layout, Rectangle, causal_mask, padding_mask};
use crate::batch::{check_ids, check_rows};
use crate::packing::{groups, push, spare, unpack};
use crate::policy::{
    check_targets, label_cross_entropy, label_scores, logit_statistics, targets_of_each, tokens_of,
};
use crate::{
    Batch, CrossEntropy, Example, IGNORED, Interrupt, Labels, LogitStatistics, Parameters, Policy, Result,
    Side, TokenId, TokenScores, Want,
};

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

    fn end_token_ids(&self) -> &[TokenId] {
        &self.config().eos_token_ids
    }

    fn set_training(&mut self, training: bool) {
        self.set_training(training);
    }

    fn has_dropout(&self) -> bool {
        self.config().dropout_rate > 0.0
    }

    fn set_gradient_checkpointing(&mut self, on: bool) -> Result<()> {
        self.set_gradient_checkpointing(on);
        Ok(())
    }

    fn score(&self, examples: &[Example], want: Want) -> Result<TokenScores> {
        Interrupt::check()?;
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
        let (states, labels) = self.target_states(prompts, targets)?;
        let (log_probs, entropy) = label_scores(&states, self.output_projection(), &labels, want.entropy)?;
        let tokens = tokens_of(prompts, &labels);
        Ok(TokenScores { log_probs, entropy, states: want.states.then_some(states), labels, tokens })
    }

    fn cross_entropy(&self, examples: &[Example]) -> Result<CrossEntropy> {
        Interrupt::check()?;
        let prompts: Vec<&[TokenId]> = examples.iter().map(|e| e.prompt.as_slice()).collect();
        let targets: Vec<&[TokenId]> = examples.iter().map(|e| e.target.as_slice()).collect();
        let (states, labels) = self.target_states(&prompts, &targets)?;
        let sum = label_cross_entropy(&states, self.output_projection(), &labels)?;
        Ok(CrossEntropy { sum, count: labels.count, tokens: tokens_of(&prompts, &labels) })
    }

    fn states(&self, examples: &[Example]) -> Result<Option<Tensor>> {
        Interrupt::check()?;
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
    /// The decoder's states `[rows, time, d_model]` from which each target token is predicted, and the targets. Prompts and
    /// targets of different lengths are hardly padded.
    pub(crate) fn target_states(
        &self,
        prompts: &[&[TokenId]],
        targets: &[&[TokenId]],
    ) -> Result<(Tensor, Labels)> {
        let each = targets_of_each(prompts.len(), targets.len())?;
        let config = self.config();
        check_rows(prompts)?;
        check_ids(config.vocab_size, prompts)?;
        check_targets(config.vocab_size, targets)?;
        let labels = Labels::new(targets, self.device())?;
        let decoder = self.decoder()?;

        // A target without tokens has its row all the same.
        let longest = |of: &[&[TokenId]]| of.iter().map(|row| row.len() as i64).max().unwrap_or(0).max(1);
        let sizes: Vec<[i64; 2]> = prompts
            .iter()
            .zip(targets.chunks(each))
            .map(|(prompt, targets)| [prompt.len() as i64, each as i64 * longest(targets)])
            .collect();
        let groups = groups(&sizes, spare(self.block_parameters(), self.device()));
        let encoder_bias = self.encoder.position_bias.full(longest(prompts))?;
        let time = longest(targets);
        let causal = causal_mask(time, (self.kind(), self.device()))?;
        let decoder_bias = decoder.position_bias.full(time)?.f_add(&causal)?;
        let corner = |bias: &Tensor, time: i64| bias.f_narrow(2, 0, time)?.f_narrow(3, 0, time);

        let (mut source, mut inputs) = (vec![], vec![]);
        let (mut encoding, mut decoding) =
            (Layout { own: vec![], cross: vec![] }, Layout { own: vec![], cross: vec![] });
        let (mut begins, mut ends) = (vec![0; targets.len()], vec![0; targets.len()]);
        for group in groups {
            let batch = group.len() as i64;
            let rows = batch * each as i64;
            let members: Vec<&[TokenId]> = group.iter().map(|&i| prompts[i]).collect();
            let keys = longest(&members);
            let time = group.iter().map(|&i| sizes[i][1] / each as i64).max().unwrap_or(1);
            for prompt in &members {
                push(&mut source, prompt.iter().copied(), keys, config.pad_token_id);
            }
            for row in group.iter().flat_map(|&i| i * each..(i + 1) * each) {
                begins[row] = inputs.len() as i64;
                ends[row] = begins[row] + time;
                let read = targets[row].iter().take(targets[row].len().saturating_sub(1));
                let read = read.map(|&id| if id == IGNORED { config.pad_token_id } else { id });
                let start = std::iter::once(config.decoder_start_token_id);
                push(&mut inputs, start.chain(read), time, config.pad_token_id);
            }
            let mut own = corner(&encoder_bias, keys)?;
            let mut mask = None;
            if members.iter().any(|prompt| prompt.len() as i64 != keys) {
                let batch = Batch::new(&members, config.pad_token_id, Side::Right, self.device())?;
                let hidden = padding_mask(&batch.mask, self.kind())?;
                own = own.f_add(&hidden)?;
                mask = Some(hidden);
            }
            encoding.own.push(Rectangle::own(batch, keys, own));
            decoding.own.push(Rectangle::own(rows, time, corner(&decoder_bias, time)?));
            decoding.cross.push(Rectangle { rows, time, batch, keys, bias: mask });
        }
        let dropout = self.dropout();
        // Looked up together: each look-up has a gradient of the embedding's size.
        let sizes = [source.len() as i64, inputs.len() as i64];
        let ids = Tensor::f_from_slice(&[source, inputs].concat())?.f_to_device(self.device())?;
        let mut embedded = self.embed(&ids)?.f_split_with_sizes(sizes, 0)?;
        let (inputs, source) = (embedded.remove(1), embedded.remove(0));
        let encoded = self.encoder.forward(source, None, &encoding, dropout, None)?;
        let states = decoder.forward(inputs, Some(&encoded), &decoding, dropout, None)?;
        Ok((unpack(&states, &begins, &ends, labels.ids.size()[1])?, labels))
    }

    /// Parameters of a block, on average.
    fn block_parameters(&self) -> i64 {
        let config = self.config();
        let all = self.parameters().count() as i64 - config.vocab_size * config.d_model;
        all / (config.num_layers + config.num_decoder_layers).max(1)
    }
}
