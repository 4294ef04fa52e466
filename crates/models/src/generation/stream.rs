//! Tokens that are told while they are written.

use std::cell::RefCell;
use std::sync::mpsc::Sender;

use super::{Generate, Generated, GenerationConfig, Strategy};
use crate::{Error, LanguageModel, Network, Result, TokenId};

thread_local! {
    static LISTENER: RefCell<Option<Sender<TokenId>>> = const { RefCell::new(None) };
}

impl<N: Network> LanguageModel<N> {
    /// Continues one prompt as [`generate`](Generate::generate) does, and sends each token as soon as it is chosen, to a thread that shows it,
    /// say. The tokens are those of the result. A receiver that is gone is no error; an [`Interrupt`](super::Interrupt) ends the writing.
    ///
    /// # Errors
    /// Those of [`generate`](Generate::generate), and when more than one sequence is asked for, or beam search, which changes its mind.
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
        if config.samples_per_prompt != 1 || matches!(config.strategy, Strategy::Beam(_)) {
            let reason = "streaming needs samples_per_prompt = 1, and no beam search";
            return Err(Error::invalid("generation", reason));
        }
        /// Ends the listening, also when the work panics.
        struct Listening;
        impl Drop for Listening {
            fn drop(&mut self) {
                LISTENER.set(None);
            }
        }
        LISTENER.set(Some(tokens));
        let _listening = Listening;
        let written = self.generate(&[prompt.to_vec()], config, &[seed])?;
        let one = written.into_iter().flatten().next();
        one.ok_or_else(|| Error::invalid("generation", "nothing was written"))
    }
}

/// True if somebody listens on this thread.
pub(super) fn is_heard() -> bool {
    LISTENER.with_borrow(Option::is_some)
}

/// Tells a token to whom listens on this thread.
pub(super) fn tell(token: TokenId) {
    LISTENER.with_borrow(|listener| listener.as_ref().map(|listener| listener.send(token)));
}
