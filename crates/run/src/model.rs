//! Which model a run trains: a section of its configuration.

use std::path::{Path, PathBuf};

use ruminate_algorithms::trainer::verify;
use ruminate_models::{LanguageModel, Model, ModelConfig, ModelShape, Network, T5, T5Config, Tokenizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::ConfigError;

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The section does not say which one.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder's checkpoint is damaged.
    #[error(transparent)]
    Checkpoint(#[from] ruminate_algorithms::Error),
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] ruminate_models::Error),
    /// The tokenizer cannot be read or does not fit.
    #[error("cannot use the tokenizer {}", path.display())]
    Tokenizer {
        /// The file or its folder.
        path: PathBuf,
        /// Why not.
        source: ruminate_models::Error,
    },
}

/// The configuration of a model that may be missing, for `--dry-run`.
#[derive(Debug)]
pub struct PlannedShape {
    /// The configuration.
    pub shape: ModelConfig,
    /// The reason why a real run would fail.
    pub missing: Option<ModelError>,
}

/// Which model: the section `[model]` of a configuration. Any family that [`Model`] knows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// A Hugging Face folder to start from.
    pub pretrained: Option<PathBuf>,
    /// Or the `config.json` of a new model.
    pub config: Option<PathBuf>,
    /// `tokenizer.json` or its folder; by default that of the model's folder.
    pub tokenizer: Option<PathBuf>,
    /// Dropout rate in training, whatever the model's own configuration says.
    pub dropout: f64,
}

impl ModelSection {
    /// The model of a folder.
    #[must_use]
    pub fn of_folder(folder: &Path) -> Self {
        Self { pretrained: Some(folder.into()), ..Self::default() }
    }

    /// Checks what can be checked before any file is read; `section` is the name in the configuration.
    ///
    /// # Errors
    /// The dropout rate is no rate.
    pub fn validate(&self, section: &str) -> Result<(), ConfigError> {
        if !(0.0..1.0).contains(&self.dropout) {
            let reason = format!("{section}.dropout is {}, but must be in [0, 1)", self.dropout);
            return Err(ConfigError::invalid(reason));
        }
        Ok(())
    }

    /// Loads the model to start from, or makes a new one, and its tokenizer.
    ///
    /// # Errors
    /// Whatever is wrong with section, model or tokenizer.
    pub fn open(&self, seed: u64, kind: Kind, device: Device) -> Result<(Model, Tokenizer), ModelError> {
        self.build(self.shape()?, seed, kind, device)
    }

    /// The encoder of the model alone.
    ///
    /// # Errors
    /// Whatever is wrong with section, model or tokenizer; also when the model has no encoder.
    pub fn open_encoder(&self, seed: u64, device: Device) -> Result<(T5, Tokenizer), ModelError> {
        let ModelConfig::T5(shape) = self.shape()? else {
            let reason = "this part reads whole texts in an encoder, which only the families t5 and mt5 have; \
                          name a model of these";
            return Err(ConfigError::invalid(reason).into());
        };
        self.build(T5Config { is_encoder_decoder: false, ..shape }, seed, Kind::Float, device)
    }

    fn build<N: Network>(
        &self,
        shape: N::Config,
        seed: u64,
        kind: Kind,
        device: Device,
    ) -> Result<(LanguageModel<N>, Tokenizer), ModelError> {
        let tokenizer = self.tokenizer(&shape)?;
        let mut model = match &self.pretrained {
            Some(folder) => LanguageModel::load_with(shape, folder, kind, device)?,
            None => LanguageModel::new(shape, kind, device, seed as i64)?,
        };
        model.set_tokenizer(tokenizer.clone());
        tch::manual_seed(seed as i64);
        Ok((model, tokenizer))
    }

    /// The tokenizer that belongs to the model.
    ///
    /// # Errors
    /// It cannot be read, or has more tokens than the model.
    pub fn tokenizer(&self, shape: &dyn ModelShape) -> Result<Tokenizer, ModelError> {
        let path = self.tokenizer_path();
        let open = || {
            let tokenizer = Tokenizer::open(&path)?;
            tokenizer.check_fits(shape.vocab_size())?;
            Ok(tokenizer)
        };
        open().map_err(|source| ModelError::Tokenizer { path: path.clone(), source })
    }

    /// The tokenizer alone, whatever model it is for; none where no file of it is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn tokenizer_if_there(&self) -> Result<Option<Tokenizer>, ModelError> {
        let path = self.tokenizer_path();
        let named = !path.as_os_str().is_empty();
        if !named || !path.is_file() && !path.join("tokenizer.json").is_file() {
            return Ok(None);
        }
        let open = Tokenizer::open(&path).map(Some);
        open.map_err(|source| ModelError::Tokenizer { path, source })
    }

    /// `tokenizer.json` or its folder.
    #[must_use]
    pub fn tokenizer_path(&self) -> PathBuf {
        let beside = self.config.as_ref().and_then(|path| path.parent().map(PathBuf::from));
        self.tokenizer.clone().or_else(|| self.pretrained.clone()).or(beside).unwrap_or_default()
    }

    /// The folder that has the tokenizer, and the files that go with it.
    #[must_use]
    pub fn tokenizer_folder(&self) -> PathBuf {
        let path = self.tokenizer_path();
        if path.is_file() { path.parent().map(PathBuf::from).unwrap_or_default() } else { path }
    }

    /// The configuration of the model to train.
    ///
    /// # Errors
    /// The section does not name one model, its folder is not there or damaged, or its configuration is not supported.
    pub fn shape(&self) -> Result<ModelConfig, ModelError> {
        let mut shape = ModelConfig::open(self.location()?)?;
        shape.set_dropout(self.dropout);
        Ok(shape)
    }

    /// The configuration, and what is missing for a real run. A published model need not be there.
    ///
    /// # Errors
    /// There is neither a model nor a published one of the folder's name.
    pub fn planned(&self) -> Result<PlannedShape, ModelError> {
        let error = match self.shape() {
            Ok(shape) => return Ok(PlannedShape { shape, missing: None }),
            Err(error) => error,
        };
        let name = self.pretrained.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        match name.and_then(ModelConfig::published) {
            Some(mut shape) => {
                shape.set_dropout(self.dropout);
                Ok(PlannedShape { shape, missing: Some(error) })
            }
            None => Err(error),
        }
    }

    /// The one file or folder that describes the model.
    fn location(&self) -> Result<&Path, ModelError> {
        match (&self.pretrained, &self.config) {
            (Some(folder), None) if !folder.is_dir() => {
                let reason = format!(
                    "model.pretrained: there is no folder {}; name one with config.json, model.safetensors and tokenizer.json, \
                     as Hugging Face's hub has them",
                    folder.display()
                );
                Err(ConfigError::invalid(reason).into())
            }
            (Some(folder), None) => {
                verify(folder)?;
                Ok(folder)
            }
            (None, Some(path)) => Ok(path),
            _ => {
                let reason = "name exactly one of model.pretrained (a Hugging Face folder to start from) and \
                              model.config (the config.json of a new model), in the section of what is trained";
                Err(ConfigError::invalid(reason).into())
            }
        }
    }
}

/// Resolves `best` and `last` to the checkpoint that they name now. The links move on, but a run keeps the models it began with.
#[must_use]
pub fn resolve_link(model: &Path) -> PathBuf {
    let model: PathBuf = model.components().collect();
    match (model.read_link(), model.parent()) {
        (Ok(target), Some(folder)) => folder.join(target),
        _ => model,
    }
}
