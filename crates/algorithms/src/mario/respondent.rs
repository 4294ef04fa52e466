//! Trained models that answer questions by themselves.

use std::path::{Path, PathBuf};

use ruminate_datasets::mario::{GivenResponse, MarioDataset, MarioRow};
use ruminate_models::{Generate, Model, Policy, Tokenizer};
use tch::{Device, Kind};

use super::{Asking, answers};
use crate::quark::{Condition, ControlTokens, QuarkConfig, StageSchedule};
use crate::trainer::{TrainerState, verify};
use crate::{Error, Observer, Result};

/// A checkpoint of the supervised stage or of [`Distillation`](super::Distillation), with all that its responses depend on.
#[derive(Debug)]
pub struct Respondent {
    /// The model.
    pub model: Model,
    /// The checkpoint's folder.
    pub folder: PathBuf,
    /// Its step, or the name of its folder.
    pub name: String,
    tokenizer: Tokenizer,
    config: QuarkConfig,
    asking: Asking,
}

impl Respondent {
    /// Loads a checkpoint. A model without control tokens writes without them; others are asked for the best, unless `condition` says
    /// otherwise.
    ///
    /// # Errors
    /// The checkpoint is damaged, its control tokens are not those of the configuration, or nothing tells which of them are in use.
    pub fn open(
        folder: &Path,
        config: QuarkConfig,
        dataset: MarioDataset,
        condition: Option<Condition>,
        device: Device,
    ) -> Result<Self> {
        verify(folder)?;
        let model = Model::load(folder, Kind::Float, device)?;
        let tokenizer = Tokenizer::open(folder)?;
        let controlled = ControlTokens::of_model(&tokenizer, &config.control)?;
        let condition = condition.or(controlled.map(|_| Condition::Best));
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let name = name.strip_prefix("step-").unwrap_or(&name).to_string();
        let known = name.parse().ok().or_else(|| TrainerState::of_model(folder).map(|state| state.step));
        let step = match known {
            Some(step) => step,
            // All tokens are in use.
            None if condition.is_none() || config.control.stages == StageSchedule::Classic => u64::MAX,
            None => {
                let reason = format!(
                    "the control tokens of {} were added step by step, and nothing tells its step; call the folder step-N",
                    folder.display()
                );
                return Err(Error::config("--model", reason));
            }
        };
        let asking = Asking { condition, step, dataset };
        Ok(Self { model, folder: folder.into(), name, tokenizer, config, asking })
    }

    /// The condition that its control tokens state, if it has any.
    #[must_use]
    pub fn condition(&self) -> Option<Condition> {
        self.asking.condition
    }

    /// Greedy responses to the questions of some rows. `model` is [`Self::model`], or something that writes as it does.
    ///
    /// # Errors
    /// When the tokenizer lacks the control tokens, or the model or the observer fails.
    pub fn answers<P: Policy + Generate>(
        &self,
        model: &P,
        rows: &[MarioRow],
        observer: &mut dyn Observer,
    ) -> Result<Vec<GivenResponse>> {
        answers(&self.config, model, &self.tokenizer, self.asking, rows, observer)
    }
}
