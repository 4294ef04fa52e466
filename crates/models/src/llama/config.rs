//! `config.json` of Llama and Mistral.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::rope::RopeScaling;
use crate::checkpoint::{read_json, write_json};
use crate::{Error, Result, TokenId};

/// The two architectures, which differ in their defaults and in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LlamaFamily {
    /// `llama`: Llama 2, 3 and 3.1, DeepSeek and all others of that form.
    Llama,
    /// `mistral`: with a sliding window, where the configuration says so.
    Mistral,
}

impl LlamaFamily {
    const ALL: [Self; 2] = [Self::Llama, Self::Mistral];

    fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
        }
    }

    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
        }
    }
}

/// What `config.json` says about a Llama or Mistral; the field names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Which of the two it is.
    pub family: LlamaFamily,
    /// Rows of the embedding; at least the size of the tokenizer.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width of the feed-forward layer.
    pub intermediate_size: i64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Attention heads of the queries.
    pub num_attention_heads: i64,
    /// Attention heads of keys and values, each shared by equally many consecutive query heads.
    pub num_key_value_heads: i64,
    /// Width of one attention head, even. `num_attention_heads * head_dim` may differ from `hidden_size`.
    pub head_dim: i64,
    /// Positions that the model was made for; nothing stops at them.
    pub max_position_embeddings: i64,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched to longer texts.
    pub rope_scaling: RopeScaling,
    /// How many tokens a token sees, itself included; `None` stands for all before it.
    pub sliding_window: Option<i64>,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// Dropout rate on attention probabilities in training mode; 0 in all published models.
    pub attention_dropout: f64,
    /// Standard deviation of a new model's parameters.
    pub initializer_range: f64,
    /// Fills up rows. Where the file names it, its row of the embedding gets no gradient, as in transformers. Published
    /// models seldom name one.
    pub pad_token_id: Option<TokenId>,
    /// Begins a text.
    pub bos_token_id: Option<TokenId>,
    /// The tokens that end a text, at least one.
    pub eos_token_ids: Vec<TokenId>,
}

/// One id or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(TokenId),
    Many(Vec<TokenId>),
}

impl Ids {
    fn list(self) -> Vec<TokenId> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

/// The keys that describe the model, as they stand in the file. Unlike elsewhere, `null` may mean something else than a
/// missing key.
#[derive(Deserialize)]
struct File {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    hidden_act: Option<String>,
    max_position_embeddings: Option<i64>,
    rms_norm_eps: Option<f64>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    attention_dropout: Option<f64>,
    initializer_range: Option<f64>,
    tie_word_embeddings: Option<bool>,
    sliding_window: Option<i64>,
    pad_token_id: Option<TokenId>,
    bos_token_id: Option<TokenId>,
    eos_token_id: Option<Ids>,
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
}

/// Keys of [`File`] that have no default.
const REQUIRED: [&str; 5] =
    ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"];

/// The other keys of [`File`], and those of the rotary embedding.
const KNOWN: [&str; 19] = [
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "attention_dropout",
    "initializer_range",
    "tie_word_embeddings",
    "sliding_window",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "model_type",
    "architectures",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
];

/// Keys that change nothing in what the model computes: bookkeeping, generation defaults (ours come from the caller), and
/// `pretraining_tp`, which only cuts products into slices.
const HARMLESS: [&str; 24] = [
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation_autoset",
    "auto_map",
    "chunk_size_feed_forward",
    "do_sample",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "max_length",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "temperature",
    "tokenizer_class",
    "top_p",
    "torch_dtype",
    "transformers_version",
    "unsloth_version",
    "use_cache",
];

impl LlamaConfig {
    /// Reads `config.json` of a model folder, or a configuration file of any name.
    ///
    /// # Errors
    /// When the file cannot be read, or asks for something that this crate does not know.
    pub fn open(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
        Self::from_json(read_json(&file)?, &file)
    }

    /// Checks and reads the keys of a `config.json`; `path` is for error messages.
    ///
    /// # Errors
    /// When a key is missing, unknown, or has a value that this crate does not implement.
    pub fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self> {
        for (key, value) in &json {
            let key = key.as_str();
            let known = REQUIRED.contains(&key) || KNOWN.contains(&key) || HARMLESS.contains(&key);
            if !known && !value.is_null() {
                let reason = format!(
                    "unknown option {value}; it may change what the model computes, so the model is \
                                      not loaded. If it has no effect, take it out of {}",
                    path.display()
                );
                return Err(refuse(key, reason));
            }
        }
        if let Some(key) = REQUIRED.into_iter().find(|&key| json.get(key).is_none_or(Value::is_null)) {
            return Err(refuse(key, format!("is missing in {}", path.display())));
        }
        // The two keys for which a missing one stands for Mistral's default, and `null` for none.
        let given = ["num_key_value_heads", "sliding_window"].map(|key| json.contains_key(key));
        let (rope_theta, rope_scaling) = RopeScaling::from_config(&json)?;
        let file: File = serde_path_to_error::deserialize(Value::Object(json)).map_err(|error| {
            let key = error.path().iter().next().map(ToString::to_string);
            refuse(&key.unwrap_or_default(), error.into_inner().to_string())
        })?;
        file.check(given, rope_theta, rope_scaling)
    }

    /// Writes `config.json` so that transformers 4 and 5 read the same model.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub fn save(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join("config.json"), &self.to_json())
    }

    /// The keys of `config.json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "architectures": [self.family.architecture()],
            "model_type": self.family.model_type(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling.to_json(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_dropout": self.attention_dropout,
            "initializer_range": self.initializer_range,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": match &self.eos_token_ids[..] {
                [id] => json!(id),
                ids => json!(ids),
            },
        });
        if self.family == LlamaFamily::Mistral {
            json["sliding_window"] = json!(self.sliding_window);
        }
        json
    }

    /// Tokens that the model can read. `max_position_embeddings` counts a stretch already, except for a linear one.
    ///
    /// ```
    /// use ruminate_models::{LlamaConfig, RopeScaling};
    /// let llama = LlamaConfig::published("llama-2-7b").ok_or("unknown")?;
    /// let stretched = LlamaConfig { rope_scaling: RopeScaling::Linear { factor: 2.0 }, ..llama.clone() };
    /// assert_eq!([llama, stretched].map(|llama| llama.context_length()), [4096, 8192]);
    /// # Ok::<(), &'static str>(())
    /// ```
    #[must_use]
    pub fn context_length(&self) -> usize {
        let stretch = match self.rope_scaling {
            RopeScaling::Linear { factor } => factor,
            RopeScaling::None | RopeScaling::Llama3 { .. } => 1.0,
        };
        (self.max_position_embeddings as f64 * stretch) as usize
    }

    /// Takes over the end tokens of a `generation_config.json`, where it names some.
    pub(super) fn take_end_tokens(&mut self, generation: Map<String, Value>) -> Result<()> {
        if let Some(ids) = generation.get("eos_token_id").filter(|ids| !ids.is_null()) {
            let refuse =
                |_| refuse("eos_token_id", format!("{ids} in generation_config.json is no token id"));
            self.eos_token_ids = Ids::deserialize(ids).map_err(refuse)?.list();
        }
        self.check()
    }
}

impl File {
    fn check(
        self,
        [heads_given, window_given]: [bool; 2],
        rope_theta: f64,
        rope_scaling: RopeScaling,
    ) -> Result<LlamaConfig> {
        let family = self.family()?;
        let mistral = family == LlamaFamily::Mistral;
        if let Some(activation) = self.hidden_act.filter(|a| a != "silu") {
            return Err(refuse("hidden_act", format!("`{activation}` is not implemented; known is `silu`")));
        }
        for (key, bias) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            if bias == Some(true) {
                return Err(refuse(key, "a bias is not implemented".into()));
            }
        }
        if !mistral && self.sliding_window.is_some() {
            let reason = "only `mistral` has a window; transformers ignores it for `llama`. Take it out";
            return Err(refuse("sliding_window", reason.into()));
        }
        let heads = self.num_attention_heads;
        let head_dim = match self.head_dim {
            Some(width) => width,
            None if heads > 0 && self.hidden_size % heads == 0 => self.hidden_size / heads,
            None => {
                let reason = format!("is missing, and {heads} heads do not share hidden_size evenly");
                return Err(refuse("head_dim", reason));
            }
        };
        // Mistral's defaults are those of its first model.
        let (key_value_heads, window) = match mistral {
            true => (if heads_given { heads } else { 8 }, (!window_given).then_some(4096)),
            false => (heads, None),
        };
        let config = LlamaConfig {
            family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(key_value_heads),
            head_dim,
            max_position_embeddings: self.max_position_embeddings.unwrap_or(if mistral {
                131_072
            } else {
                2048
            }),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            sliding_window: self.sliding_window.or(window),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            attention_dropout: self.attention_dropout.unwrap_or(0.0),
            initializer_range: self.initializer_range.unwrap_or(0.02),
            pad_token_id: self.pad_token_id,
            bos_token_id: self.bos_token_id,
            eos_token_ids: self.eos_token_id.map_or(vec![2], Ids::list),
        };
        config.check()?;
        Ok(config)
    }

    fn family(&self) -> Result<LlamaFamily> {
        let architectures = self.architectures.as_deref().unwrap_or_default();
        let known = |family: LlamaFamily| {
            self.model_type.as_deref().is_none_or(|name| name == family.model_type())
                && architectures.iter().all(|name| name == family.architecture())
        };
        // A file that names neither is a Llama.
        LlamaFamily::ALL.into_iter().find(|&family| known(family)).ok_or_else(|| {
            let reason = format!(
                "model_type {:?} with architectures {architectures:?} is not implemented; known are `llama` with \
                 `LlamaForCausalLM` and `mistral` with `MistralForCausalLM`",
                self.model_type.as_deref().unwrap_or_default()
            );
            refuse("model_type", reason)
        })
    }
}

impl LlamaConfig {
    pub(super) fn check(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ];
        // So that products of two sizes are numbers, too.
        const LARGEST: i64 = i32::MAX as i64;
        if let Some((key, value)) = sizes.into_iter().find(|(_, value)| !(1..=LARGEST).contains(value)) {
            return Err(refuse(key, format!("is {value}, but must be between 1 and {LARGEST}")));
        }
        let (heads, shared) = (self.num_attention_heads, self.num_key_value_heads);
        if heads % shared != 0 {
            let reason = format!("is {shared}, which {heads} query heads cannot share evenly");
            return Err(refuse("num_key_value_heads", reason));
        }
        if self.head_dim % 2 != 0 {
            let reason = format!("is {}, but rotary positions need an even one", self.head_dim);
            return Err(refuse("head_dim", reason));
        }
        if !(0.0..1.0).contains(&self.attention_dropout) {
            let reason = format!("is {}, but must be in [0, 1)", self.attention_dropout);
            return Err(refuse("attention_dropout", reason));
        }
        let positive = [("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)];
        if let Some((key, value)) = positive.into_iter().find(|(_, x)| !(*x > 0.0 && x.is_finite())) {
            return Err(refuse(key, format!("is {value}, but must be above 0")));
        }
        self.rope_scaling.check()?;
        if self.eos_token_ids.is_empty() {
            return Err(refuse("eos_token_id", "is an empty list; no text would end".into()));
        }
        let ids = [("pad_token_id", self.pad_token_id), ("bos_token_id", self.bos_token_id)]
            .into_iter()
            .filter_map(|(key, id)| Some((key, id?)))
            .chain(self.eos_token_ids.iter().map(|&id| ("eos_token_id", id)));
        match { ids }.find(|&(_, id)| id < 0 || id >= self.vocab_size) {
            Some((key, id)) => {
                Err(refuse(key, format!("is {id}, outside the vocabulary of {}", self.vocab_size)))
            }
            None => Ok(()),
        }
    }
}

pub(super) fn refuse(key: &str, reason: String) -> Error {
    Error::Config { key: key.to_string(), reason }
}
