//! From the metadata of a GGUF file to `config.json`, and from its tensor names to Hugging Face's.

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::reader::{Gguf, RawTensor};
use super::tokenizer::SpecialTokens;
use crate::Result;

/// An architecture that can be read, by llama.cpp's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
}

/// The network's configuration, as the file states it.
#[derive(Debug)]
pub(super) struct ModelConfig {
    architecture: Architecture,
    pub(super) context_length: i64,
    /// Rows of the embedding.
    pub(super) vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    layers: i64,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
    rms_norm_eps: f64,
    rope_theta: f64,
    rope_scaling: Value,
    sliding_window: Option<i64>,
    tied: bool,
    attention_bias: bool,
    mlp_bias: bool,
}

/// A tensor under its name in a Hugging Face folder.
#[derive(Debug)]
pub(super) struct NamedTensor<'a> {
    pub(super) name: String,
    pub(super) raw: RawTensor<'a>,
    /// Heads whose rows are in the order of llama.cpp's rotary positions.
    pub(super) rotary_heads: Option<usize>,
}

/// Keys that change what the model computes, unless they are 0 or false.
const NOT_IMPLEMENTED: [&str; 12] = [
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.temperature_length",
    "attention.temperature_scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_count",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "use_parallel_residual",
];

/// Keys that are read, or that change nothing.
const KNOWN: [&str; 26] = [
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
    "vocab_size",
];

/// Factors of Llama 3's rotary frequencies.
const ROPE_FREQS: &str = "rope_freqs.weight";

impl Architecture {
    const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

impl ModelConfig {
    /// Reads and checks the keys of the architecture.
    pub(super) fn read(gguf: &Gguf<'_>) -> Result<Self> {
        const ARCHITECTURE: &str = "general.architecture";
        let name = gguf.text(ARCHITECTURE)?.ok_or_else(|| gguf.refuse(ARCHITECTURE, "is missing"))?;
        let Some(architecture) = Architecture::ALL.into_iter().find(|known| known.name() == name) else {
            let reason = format!("`{name}` is not implemented; known are `llama`, `qwen2` and `qwen3`");
            return Err(gguf.refuse(ARCHITECTURE, reason));
        };
        let keys = Keys { gguf, name: architecture.name() };
        keys.check_known()?;
        let (hidden_size, heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
        let kv_heads = keys.optional_size("attention.head_count_kv")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            let reason = format!("is {kv_heads}, which {heads} query heads cannot share evenly");
            return Err(keys.refuse("attention.head_count_kv", reason));
        }
        let head_dim = match keys.optional_size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                let reason = format!("is missing, and {heads} heads do not share {hidden_size} evenly");
                return Err(keys.refuse("attention.key_length", reason));
            }
        };
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(other) = keys.optional_size(key)?.filter(|&other| other != head_dim) {
                let reason = format!(
                    "is {other}, but a head has a width of {head_dim}: two widths are not implemented"
                );
                return Err(keys.refuse(key, reason));
            }
        }
        if head_dim % 2 != 0 {
            let reason = format!("is {head_dim}, but rotary positions need an even width");
            return Err(keys.refuse("attention.key_length", reason));
        }
        let sliding_window = keys.optional_size("attention.sliding_window")?;
        if sliding_window.is_some() && architecture != Architecture::Llama {
            return Err(keys.refuse("attention.sliding_window", "is not implemented for this architecture"));
        }
        let context_length = keys.size("context_length")?;
        let embedding = gguf.tensors.get("token_embd.weight");
        let vocab_size = embedding.map(|tensor| tensor.shape[0]);
        let biased = |parts: &[&str]| {
            parts.iter().any(|part| gguf.tensors.contains_key(format!("blk.0.{part}.bias").as_str()))
        };
        Ok(Self {
            architecture,
            context_length,
            vocab_size: vocab_size.ok_or_else(|| gguf.refuse("token_embd.weight", "is missing"))?,
            hidden_size,
            intermediate_size: keys.size("feed_forward_length")?,
            layers: keys.size("block_count")?,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: keys
                .positive("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| keys.refuse("attention.layer_norm_rms_epsilon", "is missing".to_string()))?,
            rope_theta: keys.positive("rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: keys.rope_scaling(head_dim, context_length)?,
            sliding_window,
            tied: !gguf.tensors.contains_key("output.weight"),
            attention_bias: biased(&["attn_q", "attn_k", "attn_v", "attn_output"]),
            mlp_bias: biased(&["ffn_gate", "ffn_up", "ffn_down"]),
        })
    }

    /// The keys of `config.json`.
    pub(super) fn to_json(&self, special: &SpecialTokens<'_>, dtype: Dtype) -> Value {
        let mistral = self.sliding_window.is_some();
        let (model_type, class) = match self.architecture {
            Architecture::Llama if mistral => ("mistral", "MistralForCausalLM"),
            Architecture::Llama => ("llama", "LlamaForCausalLM"),
            Architecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Architecture::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
        };
        let mut json = json!({
            "architectures": [class],
            "model_type": model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": self.context_length,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "tie_word_embeddings": self.tied,
            "attention_dropout": 0.0,
            "bos_token_id": special.bos,
            "eos_token_id": special.eos,
            "pad_token_id": special.pad,
            "torch_dtype": match dtype {
                Dtype::F16 => "float16",
                Dtype::BF16 => "bfloat16",
                _ => "float32",
            },
        });
        // Qwen2 has the key only where its heads are not the usual ones.
        if self.architecture != Architecture::Qwen2 || self.head_dim * self.heads != self.hidden_size {
            json["head_dim"] = json!(self.head_dim);
        }
        match self.architecture {
            Architecture::Llama if mistral => json["sliding_window"] = json!(self.sliding_window),
            Architecture::Llama => {
                json["attention_bias"] = json!(self.attention_bias);
                json["mlp_bias"] = json!(self.mlp_bias);
            }
            Architecture::Qwen2 => json["use_sliding_window"] = json!(false),
            Architecture::Qwen3 => {
                json["attention_bias"] = json!(self.attention_bias);
                json["use_sliding_window"] = json!(false);
            }
        }
        json
    }

    /// All tensors under Hugging Face's names. A tensor that is missing, unexpected or misshapen is an error.
    pub(super) fn tensors<'a>(&self, gguf: &Gguf<'a>) -> Result<Vec<NamedTensor<'a>>> {
        let mut left = gguf.tensors.clone();
        left.remove(ROPE_FREQS);
        let mut out = vec![];
        let mut take = |name: String, part: &Part| {
            let shape: Vec<i64> = part.shape.iter().copied().filter(|&n| n > 0).collect();
            match left.remove(name.as_str()) {
                Some(raw) if raw.shape == shape => {
                    out.push(NamedTensor { name: part.name.clone(), raw, rotary_heads: part.rotary_heads });
                    Ok(())
                }
                Some(raw) => {
                    let reason =
                        format!("has the shape {:?}, but the metadata asks for {shape:?}", raw.shape);
                    Err(gguf.refuse(&name, reason))
                }
                None => Err(gguf.refuse(&name, format!("{shape:?} is missing"))),
            }
        };
        let whole = [
            ("token_embd.weight", "model.embed_tokens.weight", [self.vocab_size, self.hidden_size]),
            ("output_norm.weight", "model.norm.weight", [self.hidden_size, 0]),
            ("output.weight", "lm_head.weight", [self.vocab_size, self.hidden_size]),
        ];
        for (from, to, shape) in
            whole.into_iter().filter(|(from, ..)| !(self.tied && *from == "output.weight"))
        {
            take(from.into(), &Part { name: to.into(), shape, rotary_heads: None })?;
        }
        for layer in 0..self.layers {
            for (from, part) in self.layer_parts() {
                let part = Part { name: format!("model.layers.{layer}.{}", part.name), ..part };
                take(format!("blk.{layer}.{from}"), &part)?;
            }
        }
        match left.keys().next() {
            Some(name) => Err(gguf
                .refuse(name, "is unexpected: it changes what the model computes, and is not implemented")),
            None => Ok(out),
        }
    }

    /// The parts of a layer: llama.cpp's names, and Hugging Face's with the shape.
    fn layer_parts(&self) -> Vec<(String, Part)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let rotary = |heads: i64| (self.architecture == Architecture::Llama).then_some(heads as usize);
        let (attention, output, mlp) = match self.architecture {
            Architecture::Qwen2 => (true, false, false),
            _ => (self.attention_bias, self.attention_bias, self.mlp_bias),
        };
        let linear = [
            ("attn_q", "self_attn.q_proj", [queries, hidden], rotary(self.heads), attention),
            ("attn_k", "self_attn.k_proj", [keys, hidden], rotary(self.kv_heads), attention),
            ("attn_v", "self_attn.v_proj", [keys, hidden], None, attention),
            ("attn_output", "self_attn.o_proj", [hidden, queries], None, output),
            ("ffn_gate", "mlp.gate_proj", [inner, hidden], None, mlp),
            ("ffn_up", "mlp.up_proj", [inner, hidden], None, mlp),
            ("ffn_down", "mlp.down_proj", [hidden, inner], None, mlp),
        ];
        let mut parts = vec![];
        for (from, to, [rows, columns], rotary_heads, bias) in linear {
            let weight = Part { name: format!("{to}.weight"), shape: [rows, columns], rotary_heads };
            parts.push((format!("{from}.weight"), weight));
            if bias {
                let bias = Part { name: format!("{to}.bias"), shape: [rows, 0], rotary_heads };
                parts.push((format!("{from}.bias"), bias));
            }
        }
        let mut norms =
            vec![("attn_norm", "input_layernorm", hidden), ("ffn_norm", "post_attention_layernorm", hidden)];
        if self.architecture == Architecture::Qwen3 {
            norms.push(("attn_q_norm", "self_attn.q_norm", self.head_dim));
            norms.push(("attn_k_norm", "self_attn.k_norm", self.head_dim));
        }
        parts.extend(norms.into_iter().map(|(from, to, width)| {
            (
                format!("{from}.weight"),
                Part { name: format!("{to}.weight"), shape: [width, 0], rotary_heads: None },
            )
        }));
        parts
    }
}

/// A tensor that a model needs.
struct Part {
    name: String,
    /// A vector has a second size of 0.
    shape: [i64; 2],
    rotary_heads: Option<usize>,
}

/// The keys of one architecture.
struct Keys<'g, 'a> {
    gguf: &'g Gguf<'a>,
    name: &'static str,
}

impl Keys<'_, '_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn refuse(&self, key: &str, reason: impl Into<String>) -> crate::Error {
        self.gguf.refuse(&self.key(key), reason)
    }

    /// Refuses keys that change what the model computes, and names those that nobody knows.
    fn check_known(&self) -> Result<()> {
        if let Some(key) = NOT_IMPLEMENTED.into_iter().find(|key| !self.gguf.is_zero(&self.key(key))) {
            return Err(self.refuse(key, "changes what the model computes, and is not implemented"));
        }
        if self.gguf.flag(&self.key("attention.causal"))? == Some(false) {
            return Err(self.refuse("attention.causal", "is false: only models that write are implemented"));
        }
        let known = |key: &&str| !KNOWN.contains(key) && !NOT_IMPLEMENTED.contains(key);
        for key in self.gguf.keys_behind(&self.key("")).filter(known) {
            log::info!("ignored the unknown key {}", self.key(key));
        }
        Ok(())
    }

    /// A size that must be there.
    fn size(&self, key: &str) -> Result<i64> {
        self.optional_size(key)?.ok_or_else(|| self.refuse(key, "is missing"))
    }

    /// A size; 0 stands for none. The limit lets the product of two sizes be a number, too.
    fn optional_size(&self, key: &str) -> Result<Option<i64>> {
        const LARGEST: i64 = i32::MAX as i64;
        match self.gguf.integer(&self.key(key))?.filter(|&size| size != 0) {
            Some(size) if !(1..=LARGEST).contains(&size) => {
                Err(self.refuse(key, format!("is {size}, but must be between 1 and {LARGEST}")))
            }
            size => Ok(size),
        }
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.gguf.float(&self.key(key))? {
            Some(number) if number <= 0.0 => {
                Err(self.refuse(key, format!("is {number}, but must be above 0")))
            }
            number => Ok(number),
        }
    }

    /// `rope_scaling` of `config.json`.
    fn rope_scaling(&self, head_dim: i64, context_length: i64) -> Result<Value> {
        let kind = self.gguf.text(&self.key("rope.scaling.type"))?;
        let factor = match self.positive_or_zero("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.positive_or_zero("rope.scale_linear")?,
        };
        for key in ["rope.scaling.attn_factor", "rope.scaling.yarn_ext_factor"] {
            if self.gguf.float(&self.key(key))?.is_some_and(|x| x != 1.0 && x != 0.0) {
                return Err(self.refuse(key, "changes what the model computes, and is not implemented"));
            }
        }
        let scaling = match (kind, factor) {
            (Some("none"), _) => Value::Null,
            // What llama.cpp takes a missing type for.
            (None | Some("linear"), None) => Value::Null,
            (None | Some("linear"), Some(1.0)) => Value::Null,
            (None | Some("linear"), Some(factor)) => {
                json!({"type": "linear", "rope_type": "linear", "factor": factor})
            }
            (Some("yarn"), factor) => {
                let factor = factor.ok_or_else(|| self.refuse("rope.scaling.factor", "is missing"))?;
                let original = self.optional_size("rope.scaling.original_context_length")?;
                let mut json = json!({
                    "type": "yarn",
                    "rope_type": "yarn",
                    "factor": factor,
                    "original_max_position_embeddings": original.unwrap_or(context_length),
                });
                for name in ["beta_fast", "beta_slow"] {
                    if let Some(beta) = self.positive(&format!("rope.scaling.yarn_{name}"))? {
                        json[name] = json!(beta);
                    }
                }
                json
            }
            (Some(other), _) => {
                let reason = format!("`{other}` is not implemented; known are none, linear and yarn");
                return Err(self.refuse("rope.scaling.type", reason));
            }
        };
        match self.gguf.tensors.get(ROPE_FREQS) {
            None => Ok(scaling),
            Some(_) if !scaling.is_null() => {
                let reason = "holds factors of rotary frequencies, and the metadata another scaling of them: both together are \
                              not implemented";
                Err(self.gguf.refuse(ROPE_FREQS, reason))
            }
            Some(factors) => self.llama3(factors, head_dim),
        }
    }

    fn positive_or_zero(&self, key: &str) -> Result<Option<f64>> {
        match self.gguf.float(&self.key(key))? {
            Some(number) if number < 0.0 => {
                Err(self.refuse(key, format!("is {number}, but must not be below 0")))
            }
            number => Ok(number.filter(|&number| number != 0.0)),
        }
    }

    /// Llama 3's scaling from what each frequency is divided by. Several settings give the same factors; those that Meta
    /// publishes are tried.
    fn llama3(&self, factors: &RawTensor<'_>, head_dim: i64) -> Result<Value> {
        const LOW: f64 = 1.0;
        const HIGH: f64 = 4.0;
        const ORIGINAL: f64 = 8192.0;
        if factors.shape != [head_dim / 2] {
            let reason =
                format!("has the shape {:?}, but a head has {} frequencies", factors.shape, head_dim / 2);
            return Err(self.gguf.refuse(ROPE_FREQS, reason));
        }
        let factors = factors.kind.dequantize(factors.bytes);
        let factor = factors.iter().copied().fold(1.0, f32::max);
        if factors.iter().all(|&x| x == 1.0) {
            return Ok(Value::Null);
        }
        let theta = self.positive("rope.freq_base")?.unwrap_or(10_000.0);
        let expected = |i: usize| {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
            let turns = ORIGINAL / wavelength;
            if turns < LOW {
                f64::from(factor)
            } else if turns > HIGH {
                1.0
            } else {
                let smooth = (turns - LOW) / (HIGH - LOW);
                1.0 / ((1.0 - smooth) / f64::from(factor) + smooth)
            }
        };
        let agree = |(i, &x): (usize, &f32)| (f64::from(x) - expected(i)).abs() <= 1e-3 * expected(i);
        if !factor.is_finite() || !factors.iter().enumerate().all(agree) {
            let reason =
                "holds factors of rotary frequencies that are not those of Llama 3, which is not implemented";
            return Err(self.gguf.refuse(ROPE_FREQS, reason));
        }
        Ok(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL as i64,
        }))
    }
}
