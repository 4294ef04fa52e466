//! Vera (arXiv 2305.03695): how plausible a statement is.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::network::Network;
use crate::{Error, Result, T5, TokenId, Tokenizer, Truncate};

/// Statements in one pass of the encoder.
const BATCH: usize = 40;
/// Longer statements lose their end, but not the end token.
const MAX_TOKENS: usize = 128;

/// A T5 encoder with a linear layer on the state of the last token.
///
/// The published checkpoint (`liujch1998/vera`) hides the layer in its embedding matrix: the row of `<extra_id_0>` is the
/// weight, the first number in the row of `<extra_id_1>` the bias, that of `<extra_id_2>` the temperature.
///
/// # Example
/// ```no_run
/// use ruminate_models::Vera;
/// use tch::{Device, Kind};
/// let vera = Vera::load("vera".as_ref(), Kind::Float, Device::cuda_if_available())?;
/// let scores = vera.score(&["Birds have wings.", "Stones have wings."])?;
/// assert!(scores[0].calibrated > scores[1].calibrated);
/// # Ok::<(), ruminate_models::Error>(())
/// ```
#[derive(Debug)]
pub struct Vera {
    t5: T5,
    tokenizer: Tokenizer,
    head: VeraHead,
    max_tokens: usize,
}

/// The linear layer of [`Vera`] and its calibration.
#[derive(Debug)]
pub struct VeraHead {
    /// `[d_model]`, `f32`.
    pub weight: Tensor,
    /// Added to the product.
    pub bias: f64,
    /// Logits are divided by this before they become calibrated probabilities; above 0.
    pub temperature: f64,
}

impl VeraHead {
    /// The tokens whose rows of the embedding hold weight, bias and temperature.
    pub const TOKENS: [&str; 3] = ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"];

    /// Logits `[rows]` of the last tokens' states, `[rows, d_model]` `f32`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let (shape, width) = (states.size(), self.weight.size());
        if shape.len() != 2 || shape[1..] != width[..] {
            let reason = format!("{shape:?} for a weight {width:?}, but must be [rows, d_model]");
            return Err(Error::invalid("states", reason));
        }
        Ok(states.f_mv(&self.weight)?.f_add_scalar(self.bias)?)
    }

    /// What a logit says.
    #[must_use]
    pub fn plausibility(&self, logit: f64) -> Plausibility {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        Plausibility { logit, raw: sigmoid(logit), calibrated: sigmoid(logit / self.temperature) }
    }
}

/// What [`Vera`] says of a statement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plausibility {
    /// The linear layer's output.
    pub logit: f64,
    /// Probability `sigmoid(logit)`.
    pub raw: f64,
    /// Probability `sigmoid(logit / temperature)`, which is the score to use.
    pub calibrated: f64,
}

impl Vera {
    /// Loads a Hugging Face folder with weights, `config.json` and `tokenizer.json`.
    ///
    /// # Errors
    /// As [`T5::load`] and [`Tokenizer::open`]; and when the tokenizer lacks the three tokens whose rows hold the layer,
    /// or the temperature is not above 0.
    pub fn load(folder: &Path, kind: Kind, device: Device) -> Result<Self> {
        let t5 = T5::load(folder, kind, device)?;
        let tokenizer = Tokenizer::open(folder)?;
        tokenizer.check_fits(t5.config().vocab_size)?;
        let refuse = |reason: String| Error::invalid("Vera", format!("{}: {reason}", folder.display()));
        let row = |token: &str| -> Result<Tensor> {
            let id = tokenizer.token_id(token).ok_or_else(|| {
                refuse(format!("the tokenizer has no {token}, whose embedding holds a part of the scorer"))
            })?;
            Ok(t5.network.embeddings().row(id)?.f_to_kind(Kind::Float)?)
        };
        let first = |token: &str| Ok::<_, Error>(row(token)?.f_double_value(&[0])?);
        let [weight, bias, temperature] = VeraHead::TOKENS;
        let (weight, bias, temperature) = (row(weight)?, first(bias)?, first(temperature)?);
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(refuse(format!(
                "the temperature in the embedding of <extra_id_2> is {temperature}; is this a checkpoint of Vera?"
            )));
        }
        Ok(Self { t5, tokenizer, head: VeraHead { weight, bias, temperature }, max_tokens: MAX_TOKENS })
    }

    /// Reads at most this many tokens of a statement, the end token included; 128 unless told otherwise.
    #[must_use]
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = max_tokens;
        self
    }

    /// The ids that the encoder reads, the end token included. A longer statement loses its end.
    ///
    /// # Errors
    /// When the tokenizer library fails.
    pub fn tokens(&self, statement: &str) -> Result<Vec<TokenId>> {
        self.tokenizer.encode_truncated(statement, self.max_tokens, Truncate::End)
    }

    /// Scores statements, one for each, in their order. An empty one is scored on its end token.
    ///
    /// # Errors
    /// When the tokenizer or libtorch fails.
    pub fn score<S: AsRef<str>>(&self, statements: &[S]) -> Result<Vec<Plausibility>> {
        let rows = statements.iter().map(|s| self.tokens(s.as_ref())).collect::<Result<Vec<_>>>()?;
        // Neighbours of similar length need little padding.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&i| rows[i].len());
        let mut logits = vec![0.0; rows.len()];
        for batch in order.chunks(BATCH) {
            let batch_rows: Vec<&[TokenId]> = batch.iter().map(|&i| rows[i].as_slice()).collect();
            let scores: Vec<f32> = Vec::try_from(tch::no_grad(|| self.logits(&batch_rows))?)?;
            batch.iter().zip(scores).for_each(|(&i, logit)| logits[i] = f64::from(logit));
        }
        Ok(logits.into_iter().map(|logit| self.head.plausibility(logit)).collect())
    }

    /// Logits `[rows]`, `f32`, on the CPU.
    fn logits(&self, rows: &[&[TokenId]]) -> Result<Tensor> {
        let pooled = last_states(&self.t5, rows)?;
        Ok(self.head.logits(&pooled)?.f_to_device(Device::Cpu)?)
    }
}

/// The encoder's states of the rows' last tokens, `[rows, d_model]` `f32`: what [`VeraHead::logits`] reads.
///
/// # Errors
/// When a row is empty, a token is outside the vocabulary, or libtorch fails.
pub fn last_states<R: AsRef<[TokenId]>>(t5: &T5, rows: &[R]) -> Result<Tensor> {
    Ok(t5.last_states(rows)?.f_to_kind(Kind::Float)?)
}
