//! `config.json` of Llama and Mistral.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::rope::RopeScaling;
use crate::checkpoint::{read_json, write_json};
use crate::config::{Keys, UNIMPLEMENTED, Unimplemented, end_tokens_json, generation_end_tokens, refuse};
use crate::{Result, TokenId};

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
    /// The tokens that end a text. Without any, every text goes on to the limit of its length.
    pub eos_token_ids: Vec<TokenId>,
}

/// The keys that transformers reads for these model types and that are not implemented here.
const UNIMPLEMENTED_HERE: [Unimplemented; 2] = [
    // Whether a token sees those behind it; a missing key stands for yes.
    ("is_causal", |value| *value == true),
    ("is_encoder_decoder", |value| value.is_null() || *value == false),
];

/// Those that it reads for `llama` only: biases of the projections.
const UNIMPLEMENTED_IN_LLAMA: [Unimplemented; 2] = [("attention_bias", no_bias), ("mlp_bias", no_bias)];

fn no_bias(value: &Value) -> bool {
    value.is_null() || *value == false
}

impl LlamaConfig {
    /// Reads `config.json` of a model folder, or a configuration file of any name. Where `generation_config.json` of the folder
    /// names end tokens, they take the place of those in `config.json`, as in transformers.
    ///
    /// # Errors
    /// When a file cannot be read, or asks for something that this crate does not know.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::from_json(read_json(path)?, path);
        }
        let file = path.join("config.json");
        let mut config = Self::from_json(read_json(&file)?, &file)?;
        if let Some(ids) = generation_end_tokens(path)? {
            config.eos_token_ids = ids;
            config.check()?;
        }
        Ok(config)
    }

    /// Checks and reads the keys of a `config.json`; `path` is for messages.
    ///
    /// Keys that transformers' implementation of the `model_type` does not read change nothing: they are named once through the
    /// crate `log`, at level `info`.
    ///
    /// # Errors
    /// When a key is missing, or has a value that changes what the model computes and that is not implemented.
    pub fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self> {
        let mut keys = Keys::new(json, path);
        let family = LlamaFamily::read(&mut keys)?;
        let mistral = family == LlamaFamily::Mistral;
        keys.unimplemented(&UNIMPLEMENTED)?;
        keys.unimplemented(&UNIMPLEMENTED_HERE)?;
        if !mistral {
            keys.unimplemented(&UNIMPLEMENTED_IN_LLAMA)?;
        }
        if let Some(activation) = keys.optional::<String>("hidden_act")?.filter(|a| a != "silu") {
            return Err(refuse("hidden_act", format!("`{activation}` is not implemented; known is `silu`")));
        }
        let hidden_size: i64 = keys.required("hidden_size")?;
        let heads: i64 = keys.required("num_attention_heads")?;
        let head_dim = match keys.nullable("head_dim", None)? {
            Some(width) => width,
            None if heads > 0 && hidden_size % heads == 0 => hidden_size / heads,
            None => {
                let reason = format!("is missing, and {heads} heads do not share hidden_size evenly");
                return Err(refuse("head_dim", reason));
            }
        };
        let positions = keys.or("max_position_embeddings", if mistral { 131_072 } else { 2048 })?;
        let (rope_theta, rope_scaling) = RopeScaling::read(&mut keys, positions)?;
        let config = Self {
            family,
            vocab_size: keys.required("vocab_size")?,
            hidden_size,
            intermediate_size: keys.required("intermediate_size")?,
            num_hidden_layers: keys.required("num_hidden_layers")?,
            num_attention_heads: heads,
            // Mistral's defaults are those of its first model.
            num_key_value_heads: keys.nullable("num_key_value_heads", mistral.then_some(8))?.unwrap_or(heads),
            head_dim,
            max_position_embeddings: positions,
            rms_norm_eps: keys.or("rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_scaling,
            sliding_window: if mistral { keys.nullable("sliding_window", Some(4096))? } else { None },
            tie_word_embeddings: keys.or("tie_word_embeddings", false)?,
            attention_dropout: match mistral {
                true => keys.or("attention_dropout", 0.0)?,
                false => keys.nullable("attention_dropout", None)?.unwrap_or(0.0),
            },
            initializer_range: keys.or("initializer_range", 0.02)?,
            pad_token_id: keys.nullable("pad_token_id", None)?,
            bos_token_id: keys.nullable("bos_token_id", Some(1))?,
            eos_token_ids: keys.end_tokens(&[2])?,
        };
        config.check()?;
        keys.finish();
        Ok(config)
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
            "eos_token_id": end_tokens_json(&self.eos_token_ids),
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
}

impl LlamaFamily {
    fn read(keys: &mut Keys) -> Result<Self> {
        let model_type: Option<String> = keys.nullable("model_type", None)?;
        let architectures: Vec<String> = keys.nullable("architectures", None)?.unwrap_or_default();
        let known = |family: Self| {
            model_type.as_deref().is_none_or(|name| name == family.model_type())
                && architectures.iter().all(|name| name == family.architecture())
        };
        // A file that names neither is a Llama.
        Self::ALL.into_iter().find(|&family| known(family)).ok_or_else(|| {
            let reason = format!(
                "model_type {:?} with architectures {architectures:?} is not implemented; known are `llama` with \
                 `LlamaForCausalLM` and `mistral` with `MistralForCausalLM`",
                model_type.as_deref().unwrap_or_default()
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
