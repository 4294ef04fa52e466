//! Tokens that are told while they are written.

use std::ops::ControlFlow;
use std::sync::mpsc::Sender;

use super::{Generated, GenerationConfig, Listener, WrittenToken, decode};
use crate::{Error, LanguageModel, Network, Result, TokenId};

impl<N: Network> LanguageModel<N> {
    /// Continues every prompt as [`generate`](super::Generate::generate) does, and tells each token to a listener as soon as it is chosen. The same
    /// seeds give the same tokens as without a listener. Sequences that the listener ends have the tokens that were written until then.
    ///
    /// # Errors
    /// Those of [`generate`](super::Generate::generate), and when the strategy is beam search, which chooses its sequences at the end.
    ///
    /// # Example
    /// ```no_run
    /// use std::ops::ControlFlow;
    ///
    /// use ruminate_models::{GenerationConfig, Listener, Model, WrittenToken};
    ///
    /// /// Ends each sequence behind its tenth token.
    /// #[derive(Default)]
    /// struct Ten([usize; 2]);
    ///
    /// impl Listener for Ten {
    ///     fn token(&mut self, token: WrittenToken<'_>) -> ControlFlow<()> {
    ///         let written = &mut self.0[token.sequence.prompt];
    ///         *written += 1;
    ///         if *written < 10 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    ///     }
    /// }
    ///
    /// let model = Model::load("model".as_ref(), tch::Kind::Float, tch::Device::Cpu)?;
    /// let tokenizer = model.tokenizer().ok_or("the folder has no tokenizer.json")?;
    /// let prompts = [tokenizer.encode("Once")?, tokenizer.encode("Twice")?];
    /// let config = GenerationConfig::default();
    /// let written = model.generate_with_listener(&prompts, &config, &[1, 2], &mut Ten::default())?;
    /// assert!(written[0][0].ids.len() <= 10);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn generate_with_listener(
        &self,
        prompts: &[Vec<TokenId>],
        config: &GenerationConfig,
        seeds: &[u64],
        listener: &mut dyn Listener,
    ) -> Result<Vec<Vec<Generated>>> {
        decode::generate(self, prompts, config, seeds, Some(listener))
    }

    /// Continues one prompt as [`generate`](super::Generate::generate) does, and sends each token as soon as it is chosen, to a thread that shows it,
    /// say. The tokens are those of the result. A receiver that is gone is no error; an [`Interrupt`](super::Interrupt) ends the writing.
    ///
    /// # Errors
    /// Those of [`generate`](super::Generate::generate), and when more than one sequence is asked for, or beam search.
    ///
    /// # Example
    /// ```no_run
    /// use ruminate_models::{GenerationConfig, Model};
    ///
    /// let mut model = Model::load("model".as_ref(), tch::Kind::Float, tch::Device::Cpu)?;
    /// let tokenizer = model.tokenizer().ok_or("the folder has no tokenizer.json")?.clone();
    /// let (sender, tokens) = std::sync::mpsc::channel();
    /// let shown = std::thread::spawn(move || tokens.iter().count());
    /// let written =
    ///     model.generate_streaming(&tokenizer.encode("Once")?, &GenerationConfig::default(), 1, sender)?;
    /// assert_eq!(shown.join().ok(), Some(written.ids.len()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn generate_streaming(
        &self,
        prompt: &[TokenId],
        config: &GenerationConfig,
        seed: u64,
        tokens: Sender<TokenId>,
    ) -> Result<Generated> {
        if config.samples_per_prompt != 1 {
            return Err(Error::invalid("generation", "streaming to a channel needs samples_per_prompt = 1"));
        }
        let prompts = [prompt.to_vec()];
        let written = self.generate_with_listener(&prompts, config, &[seed], &mut Channel(tokens))?;
        let one = written.into_iter().flatten().next();
        one.ok_or_else(|| Error::invalid("generation", "nothing was written"))
    }
}

/// Sends the tokens of one sequence.
struct Channel(Sender<TokenId>);

impl Listener for Channel {
    fn token(&mut self, token: WrittenToken<'_>) -> ControlFlow<()> {
        let _ = self.0.send(token.id);
        ControlFlow::Continue(())
    }
}
