//! A local model that takes turns.

use std::collections::{BTreeMap, BTreeSet};

use ruminate_datasets::chat::ChatTemplate;
use ruminate_datasets::rise::{Answerer, Ask, Failed, Reply, Stopped};
use ruminate_models::{Generate, GenerationConfig, Policy, Sampling, Strategy, TokenId, Tokenizer};

/// Answers by a model at hand. Answers end at any end token of the model, at the tokenizer's, or at what the template ends them
/// with.
#[derive(Debug)]
pub struct LocalModel<'a, M> {
    model: &'a M,
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    config: GenerationConfig,
    context_length: usize,
    clean_up: bool,
}

impl<'a, M: Generate + Policy> LocalModel<'a, M> {
    /// A model that reads at most `context_length` tokens, prompt and answer together; a longer dialogue loses its beginning. It
    /// draws as RISE's local models do, at temperature 1 with at most 1000 new tokens.
    pub fn new(
        model: &'a M,
        tokenizer: &'a Tokenizer,
        template: &'a ChatTemplate,
        context_length: usize,
    ) -> Self {
        let strategy = Strategy::Sample(Sampling::default());
        let config = GenerationConfig { strategy, max_new_tokens: 1000, ..GenerationConfig::default() };
        Self { model, tokenizer, template, config, context_length, clean_up: false }
    }

    /// Draws in another way; the number of samples comes from the rollout.
    #[must_use]
    pub fn generation(mut self, config: GenerationConfig) -> Self {
        self.config = config;
        self
    }

    /// Removes blanks before punctuation, as the published code does. Default: no.
    #[must_use]
    pub fn clean_up(mut self, on: bool) -> Self {
        self.clean_up = on;
        self
    }

    /// Settings for `samples` answers. Markers that are one token of the vocabulary end an answer as such.
    fn config(&self, samples: usize) -> Result<GenerationConfig, Failed> {
        let mut config = GenerationConfig { samples_per_prompt: samples, ..self.config.clone() };
        if config.stop_ids.is_empty() {
            config.stop_ids.extend(self.model.end_token_ids());
            config.stop_ids.extend(self.tokenizer.end_token().map(|(_, id)| id));
        }
        for &stop in self.template.stop_strings() {
            match self.tokenizer.token_id(stop) {
                Some(id) => config.stop_ids.push(id),
                None => config.stop_strings.push(stop.into()),
            }
        }
        // What a checkpoint's own template closes an answer with, where that is a special token.
        if let Some(marker) = self.template.answer_end() {
            let ids = self.tokenizer.encode_plain(marker.trim_start())?;
            config.stop_ids.extend(ids.first().filter(|&&id| self.tokenizer.is_special(id)));
        }
        let mut seen = BTreeSet::new();
        config.stop_ids.retain(|&id| seen.insert(id));
        Ok(config)
    }

    fn prompt(&self, ask: &Ask) -> Result<Vec<TokenId>, Failed> {
        let ids = self.tokenizer.encode_with_offsets(&self.template.prompt(&ask.messages)?)?.ids;
        let room = self.context_length.saturating_sub(self.config.max_new_tokens + 1);
        if room == 0 {
            let (context, new) = (self.context_length, self.config.max_new_tokens);
            return Err(format!(
                "a context of {context} tokens leaves no room for a prompt beside {new} new ones"
            )
            .into());
        }
        Ok(ids[ids.len().saturating_sub(room)..].to_vec())
    }

    fn text(&self, ids: &[TokenId]) -> Result<String, Failed> {
        let mut text = if self.clean_up {
            self.tokenizer.decode_clean(ids)?
        } else {
            self.tokenizer.decode(ids, true)?
        };
        for stop in self.template.stop_strings() {
            if let Some(at) = text.rfind(stop) {
                text.truncate(at);
            }
        }
        // Byte-level tokens carry the blank that the template writes before an answer; the next prompt would have it twice.
        if self.template.blank_before_answers() && text.starts_with(' ') {
            text.remove(0);
        }
        Ok(text)
    }
}

impl<M: Generate + Policy> Answerer for LocalModel<'_, M> {
    fn answer(&self, asks: &[Ask]) -> Result<Vec<Reply>, Failed> {
        // Asks of one turn want equally many answers; of several turns they need not.
        let mut by_samples: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, ask) in asks.iter().enumerate() {
            by_samples.entry(ask.samples).or_default().push(i);
        }
        let mut replies = vec![Reply::Texts(vec![]); asks.len()];
        for (samples, rows) in by_samples {
            let prompts = rows.iter().map(|&i| self.prompt(&asks[i])).collect::<Result<Vec<_>, _>>()?;
            let seeds: Vec<u64> = rows.iter().map(|&i| asks[i].seed).collect();
            let generated = match self.model.generate(&prompts, &self.config(samples)?, &seeds) {
                Err(ruminate_models::Error::Interrupted) => return Err(Stopped.into()),
                generated => generated?,
            };
            for (i, sequences) in rows.into_iter().zip(generated) {
                let texts = sequences.iter().map(|sequence| self.text(&sequence.ids));
                replies[i] = Reply::Texts(texts.collect::<Result<_, _>>()?);
            }
        }
        Ok(replies)
    }
}
