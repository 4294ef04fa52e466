//! Which model a run trains: a section of its configuration.

use std::path::{Path, PathBuf};

use ruminate_algorithms::trainer::verify;
use ruminate_models::{Llama, LlamaConfig, T5, T5Config, Tokenizer};
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

/// The shape of a model that may be missing, for `--dry-run`.
#[derive(Debug)]
pub struct PlannedShape<S> {
    /// The shape.
    pub shape: S,
    /// What is missing for a real run.
    pub missing: Option<ModelError>,
}

/// Which T5.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A Hugging Face folder to start from.
    pub pretrained: Option<PathBuf>,
    /// Or the `config.json` of a new model.
    pub config: Option<PathBuf>,
    /// `tokenizer.json` or its folder; by default that of the model's folder.
    pub tokenizer: Option<PathBuf>,
    /// Dropout rate in training, whatever the model's own configuration says.
    pub dropout: f64,
}

impl ModelConfig {
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
    pub fn open(&self, seed: u64, device: Device) -> Result<(T5, Tokenizer), ModelError> {
        self.build(self.shape()?, seed, device)
    }

    /// The encoder of the model alone.
    ///
    /// # Errors
    /// Whatever is wrong with section, model or tokenizer.
    pub fn open_encoder(&self, seed: u64, device: Device) -> Result<(T5, Tokenizer), ModelError> {
        self.build(T5Config { is_encoder_decoder: false, ..self.shape()? }, seed, device)
    }

    fn build(&self, shape: T5Config, seed: u64, device: Device) -> Result<(T5, Tokenizer), ModelError> {
        let tokenizer = self.tokenizer(&shape)?;
        let t5 = match &self.pretrained {
            Some(folder) => T5::load_with(shape, folder, Kind::Float, device)?,
            None => T5::new(shape, Kind::Float, device, seed as i64)?,
        };
        tch::manual_seed(seed as i64);
        Ok((t5, tokenizer))
    }

    /// The tokenizer that belongs to the model.
    ///
    /// # Errors
    /// It cannot be read, or has more tokens than the model.
    pub fn tokenizer(&self, shape: &T5Config) -> Result<Tokenizer, ModelError> {
        open_tokenizer(&self.tokenizer, &self.pretrained, &self.config, shape.vocab_size)
    }

    /// The shape of the model to train.
    ///
    /// # Errors
    /// The section does not name one model, its folder is not there or damaged, or its configuration is not supported.
    pub fn shape(&self) -> Result<T5Config, ModelError> {
        let path = location(&self.pretrained, &self.config)?;
        Ok(T5Config { dropout_rate: self.dropout, ..T5Config::open(path)? })
    }

    /// The shape, and what is missing for a real run. A published model need not be there.
    ///
    /// # Errors
    /// There is neither a model nor a published one of the folder's name.
    pub fn planned(&self) -> Result<PlannedShape<T5Config>, ModelError> {
        let published =
            |name: &str| Some(T5Config { dropout_rate: self.dropout, ..T5Config::published(name)? });
        planned(self.shape(), &self.pretrained, published)
    }
}

/// Which Llama or Mistral.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LlamaModelConfig {
    /// A Hugging Face folder to start from.
    pub pretrained: Option<PathBuf>,
    /// Or the `config.json` of a new model.
    pub config: Option<PathBuf>,
    /// `tokenizer.json` or its folder; by default that of the model's folder.
    pub tokenizer: Option<PathBuf>,
}

impl LlamaModelConfig {
    /// The model of a folder.
    #[must_use]
    pub fn of_folder(folder: &Path) -> Self {
        Self { pretrained: Some(folder.into()), ..Self::default() }
    }

    /// Loads the model to start from, or makes a new one, and its tokenizer.
    ///
    /// # Errors
    /// Whatever is wrong with section, model or tokenizer.
    pub fn open(&self, seed: u64, kind: Kind, device: Device) -> Result<(Llama, Tokenizer), ModelError> {
        let shape = self.shape()?;
        let tokenizer = self.tokenizer(&shape)?;
        let mut llama = match &self.pretrained {
            Some(folder) => Llama::load(folder, kind, device)?,
            None => Llama::new(shape, kind, device, seed as i64)?,
        };
        llama.set_tokenizer(tokenizer.clone());
        tch::manual_seed(seed as i64);
        Ok((llama, tokenizer))
    }

    /// The tokenizer that belongs to the model.
    ///
    /// # Errors
    /// It cannot be read, or has more tokens than the model.
    pub fn tokenizer(&self, shape: &LlamaConfig) -> Result<Tokenizer, ModelError> {
        open_tokenizer(&self.tokenizer, &self.pretrained, &self.config, shape.vocab_size)
    }

    /// The folder that has the tokenizer, and the files that go with it.
    #[must_use]
    pub fn tokenizer_folder(&self) -> PathBuf {
        let path = tokenizer_path(&self.tokenizer, &self.pretrained, &self.config);
        if path.is_file() { path.parent().map(PathBuf::from).unwrap_or_default() } else { path }
    }

    /// The shape of the model to train.
    ///
    /// # Errors
    /// The section does not name one model, its folder is not there or damaged, or its configuration is not supported.
    pub fn shape(&self) -> Result<LlamaConfig, ModelError> {
        Ok(LlamaConfig::open(location(&self.pretrained, &self.config)?)?)
    }

    /// The shape, and what is missing for a real run. A published model need not be there.
    ///
    /// # Errors
    /// There is neither a model nor a published one of the folder's name.
    pub fn planned(&self) -> Result<PlannedShape<LlamaConfig>, ModelError> {
        planned(self.shape(), &self.pretrained, LlamaConfig::published)
    }
}

/// The one file or folder that describes the model.
fn location<'a>(
    pretrained: &'a Option<PathBuf>,
    config: &'a Option<PathBuf>,
) -> Result<&'a Path, ModelError> {
    match (pretrained, config) {
        (Some(folder), None) if !folder.is_dir() => {
            let reason = format!(
                "pretrained: there is no folder {}; name one with config.json, model.safetensors and tokenizer.json, \
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

fn tokenizer_path(
    tokenizer: &Option<PathBuf>,
    pretrained: &Option<PathBuf>,
    config: &Option<PathBuf>,
) -> PathBuf {
    let beside = config.as_ref().and_then(|path| path.parent().map(PathBuf::from));
    tokenizer.clone().or_else(|| pretrained.clone()).or(beside).unwrap_or_default()
}

fn open_tokenizer(
    tokenizer: &Option<PathBuf>,
    pretrained: &Option<PathBuf>,
    config: &Option<PathBuf>,
    vocab_size: i64,
) -> Result<Tokenizer, ModelError> {
    let path = tokenizer_path(tokenizer, pretrained, config);
    let open = || {
        let tokenizer = Tokenizer::open(&path)?;
        tokenizer.check_fits(vocab_size)?;
        Ok(tokenizer)
    };
    open().map_err(|source| ModelError::Tokenizer { path: path.clone(), source })
}

/// A shape, or that of the published model of the folder's name.
fn planned<S>(
    shape: Result<S, ModelError>,
    pretrained: &Option<PathBuf>,
    published: impl FnOnce(&str) -> Option<S>,
) -> Result<PlannedShape<S>, ModelError> {
    let name = pretrained.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    match shape {
        Ok(shape) => Ok(PlannedShape { shape, missing: None }),
        Err(error) => match name.and_then(published) {
            Some(shape) => Ok(PlannedShape { shape, missing: Some(error) }),
            None => Err(error),
        },
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
