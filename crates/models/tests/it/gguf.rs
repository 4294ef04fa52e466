//! GGUF files become model folders, or errors that name the key or the tensor.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use ruminate_models::checkpoint::{WEIGHTS, convert_gguf, read_json, read_tensors};
use ruminate_models::{Error, Llama, LlamaConfig, Result, Tokenizer};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::support::{VOCAB, cases, entries, llama, refused};

/// A GGUF file in the making, as llama.cpp's converter writes it.
#[derive(Clone)]
struct File {
    version: u32,
    /// Key, type and encoded value.
    metadata: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    name: String,
    /// Rows first.
    shape: Vec<u64>,
    kind: u32,
    data: Vec<u8>,
}

fn encoded(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl File {
    fn new(architecture: &str) -> Self {
        let mut file = Self { version: 3, metadata: vec![], tensors: vec![] };
        file.text("general.architecture", architecture);
        file
    }

    fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        self.unset(key);
        self.metadata.push((key.into(), kind, value));
    }

    fn unset(&mut self, key: &str) {
        self.metadata.retain(|(other, ..)| other != key);
    }

    fn text(&mut self, key: &str, value: &str) {
        self.set(key, 8, encoded(value));
    }

    fn size(&mut self, key: &str, value: u32) {
        self.set(key, 4, value.to_le_bytes().to_vec());
    }

    fn float(&mut self, key: &str, value: f32) {
        self.set(key, 6, value.to_le_bytes().to_vec());
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.set(key, 7, vec![value.into()]);
    }

    fn list(&mut self, key: &str, kind: u32, values: &[Vec<u8>]) {
        let head = [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.set(key, 9, [head, values.concat()].concat());
    }

    fn texts(&mut self, key: &str, values: &[impl AsRef<str>]) {
        self.list(key, 8, &values.iter().map(|text| encoded(text.as_ref())).collect::<Vec<_>>());
    }

    fn tensor(&mut self, name: &str, tensor: &Tensor) {
        let data = Vec::<f32>::try_from(tensor.contiguous().view([-1])).unwrap();
        let shape = tensor.size().iter().map(|&n| n as u64).collect();
        let data = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.push(Entry { name: name.into(), shape, kind: 0, data });
    }

    fn entry(&mut self, name: &str) -> &mut Entry {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.metadata {
            bytes.extend(encoded(key));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        let mut data: Vec<u8> = vec![];
        for tensor in &self.tensors {
            bytes.extend(encoded(&tensor.name));
            bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend((data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        [bytes, data].concat()
    }

    fn convert(&self) -> Result<Folder> {
        Folder::of(&self.bytes(), Kind::Float)
    }
}

/// The folder that a file became.
struct Folder {
    root: tempfile::TempDir,
}

impl Folder {
    fn of(bytes: &[u8], kind: Kind) -> Result<Self> {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("model.gguf");
        fs::write(&file, bytes).unwrap();
        convert_gguf(&file, &root.path().join("hf"), kind)?;
        Ok(Self { root })
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("hf")
    }

    fn json(&self, name: &str) -> Value {
        read_json(&self.path().join(name)).unwrap()
    }

    fn tensors(&self) -> BTreeMap<String, Tensor> {
        read_tensors(&self.path().join(WEIGHTS), Device::Cpu).unwrap()
    }

    fn tokenizer(&self) -> Tokenizer {
        Tokenizer::open(&self.path()).unwrap()
    }
}

/// llama.cpp's order of the rows of a projection for rotary positions, as its converter makes it.
fn permuted(tensor: &Tensor, heads: i64) -> Tensor {
    let size = tensor.size();
    let split = [&[heads, 2, size[0] / heads / 2][..], &size[1..]].concat();
    tensor.reshape(split).swapaxes(1, 2).reshape(size)
}

const LAYER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

fn gguf_name(name: &str) -> String {
    for (ours, theirs) in
        [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")]
    {
        if let Some(rest) = name.strip_prefix(ours) {
            return format!("{theirs}{rest}");
        }
    }
    let (layer, part) = name.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
    let (part, kind) = part.rsplit_once('.').unwrap();
    let (theirs, _) = LAYER.iter().find(|(_, ours)| *ours == part).unwrap();
    format!("blk.{layer}.{theirs}.{kind}")
}

/// A tokenizer of SentencePiece as Llama's: three markers, bytes, then pieces with scores.
fn sentencepiece(file: &mut File, vocab: usize) {
    let pieces = ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "bc", "abc", "<tool>"];
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend(pieces.map(String::from));
    tokens.extend((tokens.len()..vocab).map(|i| format!("[PAD{i}]")));
    let types: Vec<i32> = (0..tokens.len())
        .map(|id| match id {
            0 => 2,
            1 | 2 => 3,
            12 => 4,
            13.. => 5,
            _ => 1,
        })
        .collect();
    let scores: Vec<f32> = (0..tokens.len()).map(|id| if id < 3 { 0.0 } else { -(id as f32) }).collect();
    file.text("tokenizer.ggml.model", "llama");
    file.text("tokenizer.ggml.pre", "default");
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.list("tokenizer.ggml.scores", 6, &scores.map_bytes(f32::to_le_bytes));
    file.list("tokenizer.ggml.token_type", 5, &types.map_bytes(i32::to_le_bytes));
    for (key, id) in [("bos", 1), ("eos", 2), ("unknown", 0)] {
        file.size(&format!("tokenizer.ggml.{key}_token_id"), id);
    }
    file.text(
        "tokenizer.chat_template",
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    );
}

trait MapBytes<T> {
    fn map_bytes<const N: usize>(&self, encode: fn(T) -> [u8; N]) -> Vec<Vec<u8>>;
}

impl<T: Copy> MapBytes<T> for Vec<T> {
    fn map_bytes<const N: usize>(&self, encode: fn(T) -> [u8; N]) -> Vec<Vec<u8>> {
        self.iter().map(|&x| encode(x).to_vec()).collect()
    }
}

/// A letter for every byte, as GPT-2 writes them.
fn byte_letters() -> Vec<String> {
    let mut others = 256u32..;
    let printable = |b: u32| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let letter = |b: u32| if printable(b) { b } else { others.next().unwrap() };
    (0..256).map(letter).map(|c| char::from_u32(c).unwrap().to_string()).collect()
}

/// A tokenizer of bytes: a marker, the bytes, the results of merges.
fn byte_level(file: &mut File, pre: &str, merges: &[(&str, &str)]) {
    let mut tokens = vec!["<|end|>".to_string()];
    tokens.extend(byte_letters());
    tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let types: Vec<i32> = (0..tokens.len()).map(|id| if id == 0 { 3 } else { 1 }).collect();
    file.text("tokenizer.ggml.model", "gpt2");
    file.text("tokenizer.ggml.pre", pre);
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.list("tokenizer.ggml.token_type", 5, &types.map_bytes(i32::to_le_bytes));
    file.texts("tokenizer.ggml.merges", &merges.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>());
    file.size("tokenizer.ggml.eos_token_id", 0);
    ["bos", "unknown"].iter().for_each(|key| file.unset(&format!("tokenizer.ggml.{key}_token_id")));
    file.unset("tokenizer.ggml.scores");
}

/// The file that llama.cpp makes of a model.
fn file_of(llama: &Llama) -> File {
    let config = llama.config();
    let mut file = File::new("llama");
    for (key, size) in [
        ("block_count", config.num_hidden_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab_size),
    ] {
        file.size(&format!("llama.{key}"), size as u32);
    }
    file.float("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps as f32);
    file.float("llama.rope.freq_base", config.rope_theta as f32);
    if let Some(window) = config.sliding_window {
        file.size("llama.attention.sliding_window", window as u32);
    }
    sentencepiece(&mut file, config.vocab_size as usize);
    for (name, tensor) in llama.parameters().iter() {
        let heads = [("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)];
        let heads = heads.iter().find(|(part, _)| name.contains(part));
        let tensor = heads.map_or(tensor.shallow_clone(), |(_, heads)| permuted(tensor, *heads));
        file.tensor(&gguf_name(name), &tensor.detach());
    }
    file
}

fn tiny() -> File {
    file_of(&llama(json!({"num_key_value_heads": 2})))
}

/// A file like [`tiny`] of another architecture, with the tensors that its layers have besides.
fn qwen(architecture: &str, parts: &[(&str, &[u64])]) -> File {
    let mut file = tiny();
    for (key, ..) in &mut file.metadata {
        *key = key.replace("llama.", &format!("{architecture}."));
    }
    file.text("general.architecture", architecture);
    for layer in 0..2 {
        for (name, shape) in parts {
            let count = shape.iter().product::<u64>();
            let data = (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect();
            let entry = Entry { name: format!("blk.{layer}.{name}"), shape: shape.to_vec(), kind: 0, data };
            file.tensors.push(entry);
        }
    }
    file
}

#[test]
fn models_are_what_they_were() {
    for changes in [
        json!({}),
        json!({"num_key_value_heads": 2, "tie_word_embeddings": true, "rope_theta": 5e5}),
        json!({"num_key_value_heads": 1, "rms_norm_eps": 1e-5, "head_dim": 6}),
        json!({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 5}),
    ] {
        let llama = llama(changes.clone());
        let folder = file_of(&llama).convert().unwrap();
        let files =
            ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"];
        assert_eq!(entries(&folder.path()), files);
        let back = Llama::load(&folder.path(), Kind::Float, Device::Cpu).unwrap();
        let expected = LlamaConfig { initializer_range: 0.02, ..llama.config().clone() };
        assert_eq!(*back.config(), expected, "{changes}");
        for ((name, a), (other, b)) in llama.parameters().iter().zip(back.parameters().iter()) {
            assert_eq!(name, other);
            assert!(a.equal(b), "{changes}: {name}");
        }
    }
}

#[test]
fn numbers_are_rounded_where_that_is_asked_for() {
    let file = tiny();
    let exact = file.convert().unwrap().tensors();
    for kind in [Kind::BFloat16, Kind::Half] {
        let folder = Folder::of(&file.bytes(), kind).unwrap();
        for (name, tensor) in folder.tensors() {
            assert_eq!(tensor.kind(), kind);
            assert!(tensor.equal(&exact[&name].to_kind(kind)), "{name}");
        }
    }
    refused(Folder::of(&file.bytes(), Kind::Int), &["kind", "Int"]);
}

#[test]
fn qwen_has_its_own_tensors() {
    let biases: &[(&str, &[u64])] = &[("attn_q.bias", &[16]), ("attn_k.bias", &[8]), ("attn_v.bias", &[8])];
    let folder = qwen("qwen2", biases).convert().unwrap();
    let config = folder.json("config.json");
    assert_eq!(config["architectures"], json!(["Qwen2ForCausalLM"]));
    assert_eq!((&config["model_type"], &config["use_sliding_window"]), (&json!("qwen2"), &json!(false)));
    let tensors = folder.tensors();
    let bias = &tensors["model.layers.1.self_attn.q_proj.bias"];
    assert!(bias.equal(&Tensor::arange(16, (Kind::Float, Device::Cpu))), "not permuted");

    let norms: &[(&str, &[u64])] = &[("attn_q_norm.weight", &[4]), ("attn_k_norm.weight", &[4])];
    let folder = qwen("qwen3", norms).convert().unwrap();
    let config = folder.json("config.json");
    assert_eq!((&config["model_type"], &config["head_dim"]), (&json!("qwen3"), &json!(4)));
    assert_eq!(config["attention_bias"], json!(false));
    assert_eq!(folder.tensors()["model.layers.0.self_attn.k_norm.weight"].size(), [4]);
    // Rows of projections are Hugging Face's already.
    let llama = tiny().convert().unwrap().tensors();
    let name = "model.layers.0.self_attn.q_proj.weight";
    assert!(folder.tensors()[name].equal(&permuted(&llama[name], 4)));

    refused(qwen("qwen2", &biases[..2]).convert(), &["blk.0.attn_v.bias", "is missing"]);
    refused(qwen("qwen3", &norms[..1]).convert(), &["blk.0.attn_k_norm.weight", "is missing"]);
    refused(qwen("llama", norms).convert(), &["attn_k_norm.weight", "is unexpected"]);
}

#[test]
fn quantised_tensors_are_read() {
    let mut file = file_of(&llama(json!({"hidden_size": 32, "intermediate_size": 64})));
    let tensor = file.entry("blk.1.ffn_gate.weight");
    // One block for each row: scale 0.5, values 0 to 31.
    let block: Vec<u8> = [0x00, 0x38].into_iter().chain(0..32).collect();
    (tensor.kind, tensor.data) = (8, block.repeat(64));
    let gate = &file.convert().unwrap().tensors()["model.layers.1.mlp.gate_proj.weight"];
    let row = Tensor::arange(32, (Kind::Float, Device::Cpu)) * 0.5;
    assert!(gate.equal(&row.expand([64, 32], false)));
}

#[test]
fn rotary_scaling_is_translated() {
    let scaling = |change: &dyn Fn(&mut File)| {
        let mut file = tiny();
        change(&mut file);
        Ok::<_, Error>(file.convert()?.json("config.json")["rope_scaling"].clone())
    };
    assert_eq!(scaling(&|_| {}).unwrap(), Value::Null);
    let linear = json!({"type": "linear", "rope_type": "linear", "factor": 2.5});
    let with = |kind: &'static str, factor: f32| {
        move |file: &mut File| {
            file.text("llama.rope.scaling.type", kind);
            file.float("llama.rope.scaling.factor", factor);
        }
    };
    assert_eq!(scaling(&with("linear", 2.5)).unwrap(), linear);
    assert_eq!(scaling(&|file| file.float("llama.rope.scale_linear", 2.5)).unwrap(), linear);
    assert_eq!(scaling(&with("none", 2.5)).unwrap(), Value::Null);
    let yarn = scaling(&|file| {
        with("yarn", 4.0)(file);
        file.size("llama.rope.scaling.original_context_length", 512);
    });
    let expected =
        json!({"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512});
    assert_eq!(yarn.unwrap(), expected);
    refused(scaling(&with("longrope", 2.0)), &["llama.rope.scaling.type", "longrope"]);

    // Llama 3.1's factors, as llama.cpp's converter computes them.
    let factors = |theta: f64, factor: f64| -> Vec<f32> {
        let frequency = |i: usize| theta.powf(-(i as f64) / 32.0);
        let of = |wavelength: f64| {
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            if wavelength < 2048.0 {
                1.0
            } else if wavelength > 8192.0 {
                factor
            } else {
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        (0..32).map(|i| of(std::f64::consts::TAU / frequency(i)) as f32).collect()
    };
    let wide = json!({"hidden_size": 128, "num_attention_heads": 2, "rope_theta": 500_000.0});
    let llama3 = |factors: Vec<f32>| {
        let mut file = file_of(&llama(wide.clone()));
        file.tensor("rope_freqs.weight", &Tensor::from_slice(&factors));
        file.convert()
    };
    let right = factors(500_000.0, 8.0);
    assert!(right.contains(&1.0) && right.contains(&8.0));
    let folder = llama3(right.clone()).unwrap();
    let expected = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    assert_eq!(folder.json("config.json")["rope_scaling"], expected);
    let config = LlamaConfig::open(&folder.path()).unwrap();
    let plain = LlamaConfig { rope_scaling: ruminate_models::RopeScaling::None, ..config.clone() };
    let frequencies = config.rotary_frequencies().unwrap();
    for ((scaled, plain), factor) in frequencies.iter().zip(plain.rotary_frequencies().unwrap()).zip(&right) {
        assert!((scaled * factor / plain - 1.0).abs() < 1e-5, "{scaled} {plain} {factor}");
    }
    refused(llama3(factors(10_000.0, 8.0)), &["rope_freqs.weight", "not those of Llama 3"]);
    refused(llama3(vec![8.0; 4]), &["rope_freqs.weight", "32 frequencies"]);
    let ones = llama3(vec![1.0; 32]).unwrap();
    assert_eq!(ones.json("config.json")["rope_scaling"], Value::Null);
}

#[test]
fn a_sentencepiece_vocabulary_merges_by_score() {
    let folder = tiny().convert().unwrap();
    let tokenizer = folder.tokenizer();
    assert_eq!(tokenizer.tokens("abc").unwrap(), ["<s>", "▁ab", "c"]);
    assert_eq!(tokenizer.tokens("bc<tool>a</s>").unwrap(), ["<s>", "▁", "bc", "<tool>", "a", "</s>"]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("abc bc").unwrap(), true).unwrap(), "abc bc");
    assert!(tokenizer.is_special(1) && tokenizer.is_special(0) && !tokenizer.is_special(12));
    assert_eq!(tokenizer.end_token(), Some(("</s>", 2)));
    let config = folder.json("tokenizer_config.json");
    assert_eq!((&config["bos_token"], &config["unk_token"]), (&json!("<s>"), &json!("<unk>")));
    assert!(config["chat_template"].as_str().unwrap().starts_with("{{ bos_token }}"));

    let mut file = tiny();
    file.flag("tokenizer.ggml.add_space_prefix", false);
    file.flag("tokenizer.ggml.add_bos_token", false);
    file.flag("tokenizer.ggml.add_eos_token", true);
    let tokenizer = file.convert().unwrap().tokenizer();
    assert_eq!(tokenizer.tokens("abc").unwrap(), ["abc", "</s>"]);
    // Merges that the file lists take the place of scores.
    file.texts("tokenizer.ggml.merges", &["b c"]);
    assert_eq!(file.convert().unwrap().tokenizer().tokens("abc").unwrap(), ["a", "bc", "</s>"]);
}

#[test]
fn every_kind_of_bytes_cuts_text_into_words_as_its_model_does() {
    let merges = [("1", "2"), ("Ġ", "Ġ"), ("a", "b"), ("Ġ", "a")];
    let words = |pre: &str, text: &str| {
        let mut file = file_of(&llama(json!({"vocab_size": 300})));
        byte_level(&mut file, pre, &merges);
        let tokenizer = file.convert().unwrap().tokenizer();
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap(), false).unwrap(), text);
        tokenizer.tokens(text).unwrap().join("|")
    };
    let text = "ab  12 a<|end|>";
    assert_eq!(words("gpt-2", text), "ab|Ġ|Ġ|12|Ġa|<|end|>");
    assert_eq!(words("default", text), "ab|Ġ|Ġ|12|Ġa|<|end|>");
    assert_eq!(words("smollm", text), "ab|ĠĠ|1|2|Ġa|<|end|>");
    assert_eq!(words("llama-bpe", text), "ab|Ġ|Ġ|12|Ġa|<|end|>");
    assert_eq!(words("qwen2", text), "ab|Ġ|Ġ|1|2|Ġa|<|end|>");
    assert_eq!(words("tekken", text), "ab|Ġ|Ġ|1|2|Ġa|<|end|>");

    let mut file = file_of(&llama(json!({"vocab_size": 300})));
    byte_level(&mut file, "qwen2", &merges);
    let folder = file.convert().unwrap();
    let composed = folder.tokenizer().encode("\u{e9}").unwrap();
    assert_eq!(folder.tokenizer().encode("e\u{301}").unwrap(), composed, "NFC");
    assert_eq!(folder.tokenizer().end_token(), Some(("<|end|>", 0)));
    assert_eq!(folder.json("generation_config.json")["eos_token_id"], json!(0));
    file.size("tokenizer.ggml.eot_token_id", 5);
    assert_eq!(file.convert().unwrap().json("generation_config.json")["eos_token_id"], json!([0, 5]));
    // A word that no merge leads to stays whole where the model wants that.
    let mut tokens: Vec<String> = ["<|end|>".to_string()].into_iter().chain(byte_letters()).collect();
    tokens.push("word".into());
    for (pre, expected) in [("llama-bpe", 1), ("qwen2", 4)] {
        byte_level(&mut file, pre, &[]);
        file.texts("tokenizer.ggml.tokens", &tokens);
        file.list("tokenizer.ggml.token_type", 5, &vec![1i32; tokens.len()].map_bytes(i32::to_le_bytes));
        assert_eq!(file.convert().unwrap().tokenizer().encode("word").unwrap().len(), expected, "{pre}");
    }
}

type Change = (fn(&mut File), &'static [&'static str]);

#[test]
fn what_is_wrong_is_named() {
    let changes: &[Change] = &[
        (|f| f.version = 1, &["version", "is 1"]),
        (|f| f.version = 4, &["version", "is 4", "newer"]),
        (|f| f.version = 3 << 24, &["version", "big-endian"]),
        (|f| f.unset("general.architecture"), &["general.architecture", "missing"]),
        (|f| f.text("general.architecture", "mamba"), &["general.architecture", "mamba", "qwen2"]),
        (|f| f.size("general.alignment", 24), &["general.alignment", "24"]),
        (|f| f.size("general.alignment", 128), &["multiple of 128"]),
        (|f| f.size("split.count", 2), &["split.count", "--merge"]),
        (|f| f.size("general.architecture", 7), &["general.architecture", "text"]),
        (|f| f.unset("llama.block_count"), &["llama.block_count", "missing"]),
        (|f| f.size("llama.block_count", 3), &["blk.2.", "missing"]),
        (|f| f.size("llama.block_count", u32::MAX), &["llama.block_count", "4294967295"]),
        (|f| f.size("llama.block_count", 1), &["blk.1.", "unexpected"]),
        (|f| f.text("llama.block_count", "2"), &["llama.block_count", "integer"]),
        (|f| f.size("llama.attention.head_count", 0), &["llama.attention.head_count", "missing"]),
        (|f| f.size("llama.attention.head_count_kv", 3), &["llama.attention.head_count_kv", "share"]),
        (|f| f.size("llama.attention.key_length", 5), &["value_length"]),
        (|f| f.size("llama.rope.dimension_count", 2), &["llama.rope.dimension_count", "two widths"]),
        (|f| f.float("llama.attention.layer_norm_rms_epsilon", 0.0), &["rms_epsilon", "above 0"]),
        (|f| f.float("llama.rope.freq_base", f32::NAN), &["llama.rope.freq_base", "finite"]),
        (|f| f.size("llama.expert_count", 8), &["llama.expert_count", "not implemented"]),
        (|f| f.float("llama.logit_scale", 0.5), &["llama.logit_scale", "not implemented"]),
        (|f| f.flag("llama.attention.causal", false), &["llama.attention.causal"]),
        (
            |f| f.list("llama.attention.head_count", 4, &[4u32, 2].map(|n| n.to_le_bytes().to_vec())),
            &["llama.attention.head_count", "layer to layer"],
        ),
        (|f| f.entry("output_norm.weight").kind = 16, &["output_norm.weight", "IQ2_XXS", "llama-quantize"]),
        (|f| f.entry("output_norm.weight").kind = 99, &["output_norm.weight", "number 99"]),
        (|f| f.entry("output_norm.weight").kind = 8, &["output_norm.weight", "shape [16]", "Q8_0"]),
        (|f| f.entry("output_norm.weight").shape = vec![8], &["output_norm.weight", "[8]", "[16]"]),
        (|f| f.entry("output_norm.weight").shape = vec![0], &["output_norm.weight", "[0]"]),
        (|f| f.entry("output_norm.weight").shape = vec![1 << 62], &["output_norm.weight", "shape"]),
        (|f| f.entry("output_norm.weight").shape = vec![1 << 40], &["output_norm.weight", "cut short"]),
        (|f| f.entry("output_norm.weight").shape = vec![1 << 32; 4], &["output_norm.weight", "shape"]),
        (|f| f.entry("output_norm.weight").shape = vec![1; 5], &["output_norm.weight", "5 dimensions"]),
        (|f| f.entry("output_norm.weight").name = "x".into(), &["output_norm.weight", "missing"]),
        (|f| f.entry("output_norm.weight").name = "output.weight".into(), &["output.weight", "twice"]),
        (|f| f.entry("token_embd.weight").name = "x".into(), &["token_embd.weight", "missing"]),
        (|f| f.unset("tokenizer.ggml.tokens"), &["tokenizer.ggml.tokens", "missing"]),
        (|f| f.unset("tokenizer.ggml.model"), &["tokenizer.ggml.model", "missing"]),
        (|f| f.text("tokenizer.ggml.model", "bert"), &["tokenizer.ggml.model", "bert"]),
        (|f| f.unset("tokenizer.ggml.scores"), &["tokenizer.ggml.scores", "missing"]),
        (|f| f.list("tokenizer.ggml.scores", 6, &[]), &["tokenizer.ggml.scores", "0 elements", "40 tokens"]),
        (|f| f.size("tokenizer.ggml.eos_token_id", 40), &["eos_token_id", "40"]),
        (|f| f.texts("tokenizer.ggml.merges", &["a b", "ab"]), &["tokenizer.ggml.merges", "element 1"]),
        (|f| f.texts("tokenizer.ggml.merges", &["a q"]), &["tokenizer.json", "not a tokenizer"]),
        (|f| sentencepiece(f, 41), &["tokenizer", "ids up to 40", "40 embeddings"]),
        (|f| byte_level(f, "deepseek-llm", &[]), &["tokenizer.ggml.pre", "deepseek-llm"]),
        (
            |f| {
                byte_level(f, "qwen2", &[]);
                f.unset("tokenizer.ggml.merges");
            },
            &["tokenizer.ggml.merges", "missing"],
        ),
        (|f| f.set("general.name", 13, vec![]), &["general.name", "type 13"]),
        (|f| f.set("general.name", 8, vec![0xFF; 8]), &["byte", "cut short"]),
        (
            |f| f.set("general.tags", 9, [8, 0, 0, 0].into_iter().chain([0xFF; 8]).collect()),
            &["byte", "cut short"],
        ),
        (
            |f| f.set("general.tags", 9, [10, 0, 0, 0].into_iter().chain([0xFF; 8]).collect()),
            &["byte", "cut short"],
        ),
        (|f| f.list("general.tags", 9, &[vec![4, 0, 0, 0], vec![0; 8]]), &["general.tags", "list of lists"]),
    ];
    for (i, (change, parts)) in changes.iter().enumerate() {
        let mut file = tiny();
        change(&mut file);
        let message = refused(file.convert(), parts);
        assert!(message.contains("model.gguf") || message.contains("tokenizer"), "{i}: {message}");
    }
    let mut file = tiny();
    file.metadata.push(file.metadata[1].clone());
    refused(file.convert(), &["llama.block_count", "twice"]);
    refused(Folder::of(b"", Kind::Float), &["model.gguf"]);
    refused(Folder::of(b"PK\x03\x04 and more", Kind::Float), &["no GGUF file"]);
    refused(Folder::of(b"version https://git-lfs.github.com/spec/v1\n", Kind::Float), &["Git LFS"]);
    refused(convert_gguf(Path::new("none.gguf"), Path::new("none"), Kind::Float), &["none.gguf"]);
}

#[test]
fn counts_beyond_the_file_take_neither_memory_nor_time() {
    let bytes = tiny().bytes();
    for at in [8, 16] {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = Folder::of(&bytes, Kind::Float).err().unwrap();
        assert!(matches!(error, Error::Gguf { .. }), "{error}");
    }
    // A tensor in the place of another.
    let mut file = tiny();
    file.entry("blk.0.attn_q.weight").data.clear();
    refused(file.convert(), &["inside of another tensor"]);
}

/// Bytes with a few of them replaced, or cut short.
fn damaged(bytes: Vec<u8>, header: usize) -> impl Strategy<Value = Vec<u8>> {
    let length = bytes.len();
    let number = prop::sample::select(vec![0u64, 1, 31, 33, 1 << 31, 1 << 40, u64::MAX >> 1, u64::MAX]);
    let change = prop_oneof![
        (0..header, any::<u8>()).prop_map(|(at, byte)| (at, vec![byte])),
        (0..header - 8, number.clone()).prop_map(|(at, n)| (at, n.to_le_bytes().to_vec())),
        (0..header - 8, number).prop_map(|(at, n)| (at, (n as u32).to_le_bytes().to_vec())),
    ];
    (prop::collection::vec(change, 0..4), 0..=length, 0..4).prop_map(move |(changes, end, cut)| {
        let mut bytes = bytes.clone();
        for (at, new) in changes {
            bytes[at..at + new.len()].copy_from_slice(&new);
        }
        bytes.truncate(if cut == 0 { end } else { length });
        bytes
    })
}

proptest! {
    #![proptest_config(cases(400))]
    #[test]
    fn damaged_files_end_in_a_folder_or_an_error(bytes in {
        let file = tiny();
        let header = file.bytes().len() - file.tensors.iter().map(|t| t.data.len().next_multiple_of(32)).sum::<usize>();
        damaged(file.bytes(), header)
    }) {
        match Folder::of(&bytes, Kind::BFloat16) {
            Ok(folder) => assert!(folder.path().join("config.json").exists()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

#[test]
fn a_conversion_loses_no_model_and_leaves_none_that_looks_complete() {
    let root = tempfile::tempdir().unwrap();
    let (file, folder) = (root.path().join("model.gguf"), root.path().join("hf"));
    let mut gguf = tiny();
    fs::write(&file, gguf.bytes()).unwrap();
    convert_gguf(&file, &folder, Kind::Float).unwrap();
    let mut tokens: Vec<String> = (0..VOCAB).map(|i| format!("<{i}>")).collect();
    tokens.push("one too many".into());
    gguf.texts("tokenizer.ggml.tokens", &tokens);
    gguf.list("tokenizer.ggml.scores", 6, &vec![0f32; tokens.len()].map_bytes(f32::to_le_bytes));
    gguf.unset("tokenizer.ggml.token_type");
    let weights = fs::read(folder.join("model.safetensors")).unwrap();
    refused(convert_gguf(&file, &folder, Kind::BFloat16), &["hf", "not empty", "new folder"]);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);

    fs::write(&file, gguf.bytes()).unwrap();
    let failed = root.path().join("failed");
    refused(convert_gguf(&file, &failed, Kind::Float), &["ids up to 40"]);
    assert!(!failed.join("config.json").exists());
}
