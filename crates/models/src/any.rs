//! The families that are known, and the model of a folder whatever its family.

use std::path::Path;

use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use crate::checkpoint::Weights;
use crate::config::refuse;
use crate::generation::{Prefill, Started};
use crate::layers::{Decoding, Embeddings};
use crate::llama::LlamaFamily;
use crate::network::{Context, Network, NetworkConfig, TargetRows};
use crate::parameters::Builder;
use crate::{
    BatchShape, LanguageModel, Llama, LlamaConfig, LlamaNetwork, ModelShape, Result, T5, T5Config, T5Network,
    TokenId,
};

/// The model of a folder, whatever its family; see [`ModelConfig`].
pub type Model = LanguageModel<AnyNetwork>;

/// The configuration of any model, told apart by `model_type`: `t5` and `mt5`; `llama`, `mistral`, `qwen2` and `qwen3`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModelConfig {
    /// An encoder and a decoder.
    T5(T5Config),
    /// A decoder.
    Llama(LlamaConfig),
}

impl ModelConfig {
    /// Every `model_type` that is known.
    pub const MODEL_TYPES: [&str; 6] = ["t5", "mt5", "llama", "mistral", "qwen2", "qwen3"];

    /// Reads `config.json` of a model folder, or a configuration file of any name.
    ///
    /// # Errors
    /// When a file cannot be read, names another `model_type` or none, or asks for something that this crate does not know.
    ///
    /// # Example
    /// ```
    /// use ruminate_models::ModelConfig;
    /// # let folder = tempfile::tempdir()?;
    /// let file = folder.path().join("config.json");
    /// std::fs::write(&file, r#"{"model_type": "gpt2"}"#)?;
    /// let error = ModelConfig::open(folder.path()).unwrap_err().to_string();
    /// assert!(error.contains("gpt2") && error.contains("qwen3"), "{error}");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn open(path: &Path) -> Result<Self> {
        NetworkConfig::open(path)
    }

    /// The configuration of a published model, by its name on the hub in lower case; see [`T5Config::published`] and
    /// [`LlamaConfig::published`].
    #[must_use]
    pub fn published(name: &str) -> Option<Self> {
        let llama = || LlamaConfig::published(name).map(Self::Llama);
        T5Config::published(name).map(Self::T5).or_else(llama)
    }

    /// Whether the model reads the prompt in an encoder.
    #[must_use]
    pub fn has_encoder(&self) -> bool {
        matches!(self, Self::T5(_))
    }

    /// Tokens that the model can read, where there is a limit.
    #[must_use]
    pub fn context_length(&self) -> Option<usize> {
        match self {
            // Its positions are relative.
            Self::T5(_) => None,
            Self::Llama(config) => Some(config.context_length()),
        }
    }

    /// Sets every dropout rate of training.
    pub fn set_dropout(&mut self, rate: f64) {
        match self {
            Self::T5(config) => config.dropout_rate = rate,
            Self::Llama(config) => config.attention_dropout = rate,
        }
    }
}

impl From<T5Config> for ModelConfig {
    fn from(config: T5Config) -> Self {
        Self::T5(config)
    }
}

impl From<LlamaConfig> for ModelConfig {
    fn from(config: LlamaConfig) -> Self {
        Self::Llama(config)
    }
}

/// Evaluates an expression with the configuration of the family.
macro_rules! each {
    ($self:expr, $inner:ident => $body:expr) => {
        match $self {
            Self::T5($inner) => $body,
            Self::Llama($inner) => $body,
        }
    };
}

impl ModelShape for ModelConfig {
    fn width(&self) -> i64 {
        each!(self, config => config.width())
    }

    fn vocab_size(&self) -> i64 {
        each!(self, config => config.vocab_size())
    }

    fn dropout_rate(&self) -> f64 {
        each!(self, config => config.dropout_rate())
    }

    fn parameter_shapes(&self) -> Vec<Vec<i64>> {
        each!(self, config => config.parameter_shapes())
    }

    fn forward_flops(&self, batch: BatchShape) -> f64 {
        each!(self, config => config.forward_flops(batch))
    }

    fn activation_bytes(&self, batch: BatchShape, bf16: bool) -> f64 {
        each!(self, config => config.activation_bytes(batch, bf16))
    }

    fn decoding_bytes(&self, prompts: usize, longest: usize, rows: usize, new: usize, kind: Kind) -> u64 {
        each!(self, config => config.decoding_bytes(prompts, longest, rows, new, kind))
    }

    fn blocks(&self) -> [i64; 2] {
        each!(self, config => config.blocks())
    }
}

impl NetworkConfig for ModelConfig {
    fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self> {
        let model_type = json.get("model_type").and_then(Value::as_str);
        let reason = match model_type {
            Some("t5" | "mt5") => return T5Config::from_json(json, path).map(Self::T5),
            Some(name) if LlamaFamily::of_model_type(name).is_some() => {
                return LlamaConfig::from_json(json, path).map(Self::Llama);
            }
            Some(other) => format!("`{other}` in {} is not implemented", path.display()),
            None => format!("is missing in {}", path.display()),
        };
        Err(refuse("model_type", format!("{reason}; known are {}", Self::MODEL_TYPES.join(", "))))
    }

    fn check(&self) -> Result<()> {
        each!(self, config => NetworkConfig::check(config))
    }

    fn to_json(&self) -> Value {
        each!(self, config => config.to_json())
    }

    fn has_encoder(&self) -> bool {
        self.has_encoder()
    }

    fn pad_token_id(&self) -> TokenId {
        each!(self, config => config.pad_token_id())
    }

    fn eos_token_ids(&self) -> &[TokenId] {
        each!(self, config => &config.eos_token_ids)
    }

    fn set_eos_token_ids(&mut self, ids: Vec<TokenId>) {
        each!(self, config => config.eos_token_ids = ids);
    }

    fn set_vocab_size(&mut self, vocab_size: i64) {
        each!(self, config => config.vocab_size = vocab_size);
    }
}

/// The network of a folder, whatever its family.
#[derive(Debug)]
pub struct AnyNetwork {
    config: ModelConfig,
    family: Family,
}

#[derive(Debug)]
enum Family {
    T5(T5Network),
    Llama(LlamaNetwork),
}

/// Evaluates an expression with the network of the family.
macro_rules! family {
    ($self:expr, $network:ident => $body:expr) => {
        match $self {
            Family::T5($network) => $body,
            Family::Llama($network) => $body,
        }
    };
}

#[allow(private_interfaces, reason = "as the trait's")]
impl Network for AnyNetwork {
    type Config = ModelConfig;

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn set_config(&mut self, config: ModelConfig) {
        match (&mut self.family, &config) {
            (Family::T5(network), ModelConfig::T5(config)) => network.set_config(config.clone()),
            (Family::Llama(network), ModelConfig::Llama(config)) => network.set_config(config.clone()),
            // The family of a network never changes.
            _ => return,
        }
        self.config = config;
    }

    fn build(config: ModelConfig, builder: &mut Builder) -> Result<Self> {
        let family = match config.clone() {
            ModelConfig::T5(config) => Family::T5(T5Network::build(config, builder)?),
            ModelConfig::Llama(config) => Family::Llama(LlamaNetwork::build(config, builder)?),
        };
        Ok(Self { config, family })
    }

    fn adapt(config: &mut ModelConfig, weights: &mut Weights) -> Result<()> {
        match config {
            ModelConfig::T5(config) => T5Network::adapt(config, weights),
            ModelConfig::Llama(config) => LlamaNetwork::adapt(config, weights),
        }
    }

    fn embeddings(&self) -> &Embeddings {
        family!(&self.family, network => network.embeddings())
    }

    fn embeddings_mut(&mut self) -> &mut Embeddings {
        family!(&mut self.family, network => network.embeddings_mut())
    }

    fn set_gradient_checkpointing(&mut self, on: bool) {
        family!(&mut self.family, network => network.set_gradient_checkpointing(on));
    }

    fn target_states(&self, context: Context, rows: &TargetRows<'_>) -> Result<Tensor> {
        family!(&self.family, network => network.target_states(context, rows))
    }

    fn prefill(&self, context: Context, prefill: Prefill<'_>) -> Result<Started<Decoding<'_>>> {
        family!(&self.family, network => network.prefill(context, prefill))
    }
}

impl Model {
    /// The model as a [`T5`], for what needs an encoder; the model itself where it has none.
    ///
    /// # Errors
    /// Gives the model back when it is of another family.
    pub fn into_t5(self) -> std::result::Result<T5, Box<Self>> {
        let Self { network, context, parameters, tokenizer, folder, generation_defaults } = self;
        match network.family {
            Family::T5(network) => {
                Ok(LanguageModel { network, context, parameters, tokenizer, folder, generation_defaults })
            }
            family @ Family::Llama(_) => {
                let network = AnyNetwork { family, ..network };
                Err(Box::new(Self { network, context, parameters, tokenizer, folder, generation_defaults }))
            }
        }
    }
}

impl From<T5> for Model {
    fn from(model: T5) -> Self {
        let LanguageModel { network, context, parameters, tokenizer, folder, generation_defaults } = model;
        let config = ModelConfig::T5(network.config().clone());
        let network = AnyNetwork { config, family: Family::T5(network) };
        Self { network, context, parameters, tokenizer, folder, generation_defaults }
    }
}

impl From<Llama> for Model {
    fn from(model: Llama) -> Self {
        let LanguageModel { network, context, parameters, tokenizer, folder, generation_defaults } = model;
        let config = ModelConfig::Llama(network.config().clone());
        let network = AnyNetwork { config, family: Family::Llama(network) };
        Self { network, context, parameters, tokenizer, folder, generation_defaults }
    }
}
