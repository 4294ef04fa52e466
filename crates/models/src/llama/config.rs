//! `config.json` of Llama, Mistral, Qwen2 and Qwen3.

use std::path::Path;

use serde_json::{Map, Value, json};
use tch::Tensor;

use crate::config::{Keys, UNIMPLEMENTED, Unimplemented, end_tokens_json, refuse};
use crate::layers::RopeScaling;
use crate::network::NetworkConfig;
use crate::{Result, TokenId};

/// The families, which differ in defaults and in details of the attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LlamaFamily {
    /// `llama`: Llama 2, 3 and 3.1, SmolLM2, DeepSeek and all others of that form.
    Llama,
    /// `mistral`: with a sliding window, where the configuration says so.
    Mistral,
    /// `qwen2`: Qwen2 and Qwen2.5, with biases on queries, keys and values; a window in the upper layers is possible.
    Qwen2,
    /// `qwen3`: with norms over the heads of queries and keys; a window as in Qwen2.
    Qwen3,
}

impl LlamaFamily {
    const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The family of that `model_type`.
    pub(crate) fn of_model_type(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == name)
    }

    /// Whether the projections to queries, keys and values have biases.
    pub(super) fn has_qkv_bias(self) -> bool {
        self == Self::Qwen2
    }

    /// Whether each head of queries and keys is normalised before the rotation.
    pub(super) fn has_qk_norm(self) -> bool {
        self == Self::Qwen3
    }

    fn is_qwen(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Qwen3)
    }
}

/// The `config.json` of a Llama, Mistral, Qwen2 or Qwen3; the field names are Hugging Face's.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Which of the families it is.
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
    /// The first layer that the sliding window limits; layers before it see all tokens. 0 in Mistral.
    pub max_window_layers: i64,
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

/// Those that it reads for some families only: biases of the projections.
const ATTENTION_BIAS: Unimplemented = ("attention_bias", no_bias);
const MLP_BIAS: Unimplemented = ("mlp_bias", no_bias);

fn no_bias(value: &Value) -> bool {
    value.is_null() || *value == false
}

impl LlamaConfig {
    /// Reads `config.json` of a model folder, or a configuration file of any name; see [`NetworkConfig::open`].
    ///
    /// # Errors
    /// Those of [`NetworkConfig::open`].
    pub fn open(path: &Path) -> Result<Self> {
        NetworkConfig::open(path)
    }

    /// Checks and reads the keys of a `config.json`; see [`NetworkConfig::from_json`].
    ///
    /// # Errors
    /// Those of [`NetworkConfig::from_json`].
    pub fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self> {
        let mut keys = Keys::new(json, path);
        let family = LlamaFamily::read(&mut keys)?;
        let (mistral, qwen) = (family == LlamaFamily::Mistral, family.is_qwen());
        keys.unimplemented(&UNIMPLEMENTED)?;
        keys.unimplemented(&UNIMPLEMENTED_HERE)?;
        match family {
            LlamaFamily::Llama => keys.unimplemented(&[ATTENTION_BIAS, MLP_BIAS])?,
            LlamaFamily::Qwen3 => keys.unimplemented(&[ATTENTION_BIAS])?,
            LlamaFamily::Mistral | LlamaFamily::Qwen2 => {}
        }
        if let Some(activation) = keys.optional::<String>("hidden_act")?.filter(|a| a != "silu") {
            return Err(refuse("hidden_act", format!("`{activation}` is not implemented; known is `silu`")));
        }
        let hidden_size: i64 = keys.required("hidden_size")?;
        let heads: i64 = keys.required("num_attention_heads")?;
        let missing = (family == LlamaFamily::Qwen3).then_some(128);
        let head_dim = match keys.nullable("head_dim", missing)? {
            Some(width) => width,
            None if heads > 0 && hidden_size % heads == 0 => hidden_size / heads,
            None => {
                let reason = format!("is missing, and {heads} heads do not share hidden_size evenly");
                return Err(refuse("head_dim", reason));
            }
        };
        let positions = match family {
            LlamaFamily::Llama => 2048,
            LlamaFamily::Mistral => 131_072,
            LlamaFamily::Qwen2 | LlamaFamily::Qwen3 => 32_768,
        };
        let positions = keys.or("max_position_embeddings", positions)?;
        let num_hidden_layers = keys.required("num_hidden_layers")?;
        let (sliding_window, max_window_layers) = read_window(family, &mut keys, num_hidden_layers)?;
        let (rope_theta, rope_scaling) = RopeScaling::read(&mut keys, positions)?;
        let config = Self {
            family,
            vocab_size: keys.required("vocab_size")?,
            hidden_size,
            intermediate_size: keys.required("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: match family {
                LlamaFamily::Llama => keys.nullable("num_key_value_heads", None)?,
                // Mistral's defaults are those of its first model.
                LlamaFamily::Mistral => keys.nullable("num_key_value_heads", Some(8))?,
                LlamaFamily::Qwen2 | LlamaFamily::Qwen3 => keys.nullable("num_key_value_heads", Some(32))?,
            }
            .unwrap_or(heads),
            head_dim,
            max_position_embeddings: positions,
            rms_norm_eps: keys.or("rms_norm_eps", 1e-6)?,
            rope_theta,
            rope_scaling,
            sliding_window,
            max_window_layers,
            tie_word_embeddings: keys.or("tie_word_embeddings", false)?,
            attention_dropout: match mistral || qwen {
                true => keys.or("attention_dropout", 0.0)?,
                false => keys.nullable("attention_dropout", None)?.unwrap_or(0.0),
            },
            initializer_range: keys.or("initializer_range", 0.02)?,
            pad_token_id: keys.nullable("pad_token_id", None)?,
            bos_token_id: keys.nullable("bos_token_id", (!qwen).then_some(1))?,
            eos_token_ids: keys.end_tokens(if qwen { &[] } else { &[2] })?,
        };
        config.check()?;
        keys.finish();
        Ok(config)
    }

    /// Tokens that the model can read: `max_position_embeddings`, and what the scaling of rotary positions adds to it.
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
        self.rope_scaling.context_length(self.max_position_embeddings)
    }
}

/// The sliding window, and the first layer that it limits.
fn read_window(family: LlamaFamily, keys: &mut Keys, layers: i64) -> Result<(Option<i64>, i64)> {
    match family {
        LlamaFamily::Llama => return Ok((None, 0)),
        LlamaFamily::Mistral => return Ok((keys.nullable("sliding_window", Some(4096))?, 0)),
        LlamaFamily::Qwen2 | LlamaFamily::Qwen3 => {}
    }
    let on = keys.or("use_sliding_window", false)?;
    let window = keys.nullable("sliding_window", Some(4096))?.filter(|_| on);
    let mut first = keys.or("max_window_layers", 28)?;
    // transformers 5 writes which layers have the window.
    if let Some(types) = keys.nullable::<Vec<String>>("layer_types", None)? {
        let sliding: Vec<bool> = types.iter().map(|kind| kind == "sliding_attention").collect();
        let begins = sliding.iter().position(|&sliding| sliding).unwrap_or(sliding.len());
        let other =
            types.iter().find(|kind| !["sliding_attention", "full_attention"].contains(&kind.as_str()));
        let reason = if types.len() as i64 != layers {
            format!("names {} layers, but num_hidden_layers is {layers}", types.len())
        } else if let Some(other) = other {
            format!("holds `{other}`, which is not implemented")
        } else if sliding[begins..].contains(&false) {
            "has a layer without a window above one with a window, which is not implemented".into()
        } else if window.is_none() && begins < sliding.len() {
            "holds sliding_attention, but there is no sliding_window".into()
        } else {
            first = begins as i64;
            return Ok((window, first));
        };
        return Err(refuse("layer_types", reason));
    }
    Ok((window, first))
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
            let known: Vec<String> =
                Self::ALL.map(|f| format!("`{}` with `{}`", f.model_type(), f.architecture())).into();
            let reason = format!(
                "model_type {:?} with architectures {architectures:?} is not implemented; known are {}",
                model_type.as_deref().unwrap_or_default(),
                known.join(", ")
            );
            refuse("model_type", reason)
        })
    }
}

impl NetworkConfig for LlamaConfig {
    fn from_json(json: Map<String, Value>, path: &Path) -> Result<Self> {
        Self::from_json(json, path)
    }

    fn check(&self) -> Result<()> {
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
            // It may be 0.
            ("max_window_layers", self.max_window_layers.saturating_add(1)),
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

    fn to_json(&self) -> Value {
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
        if self.family != LlamaFamily::Llama {
            json["sliding_window"] = json!(self.sliding_window);
        }
        if self.family.is_qwen() {
            json["use_sliding_window"] = json!(self.sliding_window.is_some());
            json["max_window_layers"] = json!(self.max_window_layers);
        }
        json
    }

    fn has_encoder(&self) -> bool {
        false
    }

    fn pad_token_id(&self) -> TokenId {
        self.pad_token_id.or(self.eos_token_ids.first().copied()).unwrap_or(0)
    }

    fn eos_token_ids(&self) -> &[TokenId] {
        &self.eos_token_ids
    }

    fn set_eos_token_ids(&mut self, ids: Vec<TokenId>) {
        self.eos_token_ids = ids;
    }

    fn set_vocab_size(&mut self, vocab_size: i64) {
        self.vocab_size = vocab_size;
    }
}

impl LlamaConfig {
    /// Angles per position in radians, `head_dim / 2` of them, after scaling; in `f32` as transformers computes them.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn rotary_frequencies(&self) -> Result<Vec<f32>> {
        Ok(Vec::try_from(self.rope().frequencies()?)?)
    }

    /// Cosines and sines `[..., head_dim]` of `i64` positions `[...]` in a text that ends with the largest of them, `f32`, in the layout
    /// where element `i` turns with element `i + head_dim / 2`: both halves are the same.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn rotary(&self, positions: &Tensor) -> Result<(Tensor, Tensor)> {
        if positions.numel() == 0 {
            return self.rope().cos_sin(positions, positions);
        }
        self.rope().cos_sin(positions, &positions.f_max()?.f_add_scalar(1)?)
    }
}
