//! Model files of llama.cpp.

use ruminate_models::checkpoint::convert_gguf;
use ruminate_models::{Example, Llama, Policy, ScoreOptions};
use tch::{Device, Kind};

use crate::{Fuzz, folder};

const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const TEXT: u32 = 8;
const LIST: u32 = 9;

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn list(kind: u32, values: &[Vec<u8>]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), &values.concat()].concat()
}

/// The bytes of a matrix in a type of the format.
struct Encoding {
    kind: u32,
    /// Bytes of so many weights.
    bytes: fn(usize) -> usize,
}

const F16: Encoding = Encoding { kind: 1, bytes: |n| 2 * n };
const Q8_0: Encoding = Encoding { kind: 8, bytes: |n| n / 32 * 34 };
const Q4_K: Encoding = Encoding { kind: 12, bytes: |n| n / 256 * 144 };

/// The tokenizer of SentencePiece of a few pieces.
fn pieces() -> Vec<(&'static str, u32, Vec<u8>)> {
    let tokens = ["<unk>", "<s>", "</s>", "\u{2581}", "a", "b", "\u{2581}a", "ab"];
    let scores: Vec<_> = (0..tokens.len()).map(|id| (-(id as f32)).to_le_bytes().to_vec()).collect();
    let types = [2, 3, 3, 1, 1, 1, 1, 1i32].map(|kind| kind.to_le_bytes().to_vec());
    vec![
        ("tokenizer.ggml.model", TEXT, text("llama")),
        ("tokenizer.ggml.tokens", LIST, list(TEXT, &tokens.map(text))),
        ("tokenizer.ggml.scores", LIST, list(F32, &scores)),
        ("tokenizer.ggml.token_type", LIST, list(I32, &types)),
        ("tokenizer.ggml.bos_token_id", U32, 1u32.to_le_bytes().to_vec()),
        ("tokenizer.ggml.eos_token_id", U32, 2u32.to_le_bytes().to_vec()),
        ("tokenizer.chat_template", TEXT, text("{{ bos_token }}{{ messages[0]['content'] }}")),
    ]
}

/// A tokenizer of bytes with one merge.
fn bytes() -> Vec<(&'static str, u32, Vec<u8>)> {
    let mut others = 256u32..;
    let printable = |b: u32| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let letters = (0..256).map(|b| if printable(b) { b } else { others.next().unwrap() });
    let letters = letters.map(|c| char::from_u32(c).unwrap().to_string());
    let tokens: Vec<String> = std::iter::once("<|end|>".into()).chain(letters).chain(["ab".into()]).collect();
    let types: Vec<_> =
        (0..tokens.len()).map(|id| if id == 0 { 3i32 } else { 1 }.to_le_bytes().to_vec()).collect();
    vec![
        ("tokenizer.ggml.model", TEXT, text("gpt2")),
        ("tokenizer.ggml.pre", TEXT, text("qwen2")),
        (
            "tokenizer.ggml.tokens",
            LIST,
            list(TEXT, &tokens.iter().map(|token| text(token)).collect::<Vec<_>>()),
        ),
        ("tokenizer.ggml.token_type", LIST, list(I32, &types)),
        ("tokenizer.ggml.merges", LIST, list(TEXT, &[text("a b")])),
        ("tokenizer.ggml.eos_token_id", U32, 0u32.to_le_bytes().to_vec()),
    ]
}

/// A model of one layer.
fn file(width: usize, matrices: &Encoding, tokenizer: Vec<(&'static str, u32, Vec<u8>)>) -> Vec<u8> {
    let vocab = if tokenizer[0].2 == text("llama") { 8 } else { 258 };
    let number = |n: usize| (n as u32).to_le_bytes().to_vec();
    let mut metadata = vec![
        ("general.architecture", TEXT, text("llama")),
        ("llama.block_count", U32, number(1)),
        ("llama.context_length", U32, number(64)),
        ("llama.embedding_length", U32, number(width)),
        ("llama.feed_forward_length", U32, number(width)),
        ("llama.attention.head_count", U32, number(2)),
        ("llama.attention.head_count_kv", U32, number(2)),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5f32.to_le_bytes().to_vec()),
        ("llama.rope.freq_base", F32, 1e4f32.to_le_bytes().to_vec()),
        ("llama.vocab_size", U32, number(vocab)),
    ];
    metadata.extend(tokenizer);
    let mut tensors =
        vec![("token_embd".to_string(), vec![width, vocab]), ("output_norm".into(), vec![width])];
    for name in ["attn_norm", "ffn_norm"] {
        tensors.push((format!("blk.0.{name}"), vec![width]));
    }
    for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
        tensors.push((format!("blk.0.{name}"), vec![width, width]));
    }

    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((metadata.len() as u64).to_le_bytes());
    for (key, kind, value) in metadata {
        file.extend([text(key), kind.to_le_bytes().to_vec(), value].concat());
    }
    let mut data: Vec<u8> = vec![];
    for (name, shape) in tensors {
        let count: usize = shape.iter().product();
        let (kind, length) = match shape.len() {
            1 => (0, 4 * count),
            _ => (matrices.kind, (matrices.bytes)(count)),
        };
        file.extend(text(&format!("{name}.weight")));
        file.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|&size| file.extend((size as u64).to_le_bytes()));
        file.extend(u32::to_le_bytes(kind));
        file.extend((data.len() as u64).to_le_bytes());
        data.resize((data.len() + length).next_multiple_of(32), 0x2A);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    [file, data].concat()
}

#[test]
fn model_files_of_llama_cpp() {
    let seeds = vec![file(8, &F16, pieces()), file(32, &Q8_0, pieces()), file(8, &F16, bytes())];
    convert(seeds, 400);
    // One super-block is a row.
    convert(vec![file(256, &Q4_K, pieces())], 40);
}

/// Converts damaged files and uses what they became.
fn convert(seeds: Vec<Vec<u8>>, inputs: u64) {
    let places = &["config.json", "model.safetensors", "tokenizer"];
    Fuzz { places, ..Fuzz::new("any.gguf", seeds, inputs) }.run(folder(), |path| {
        let made = tempfile::tempdir_in(path.parent().unwrap())?;
        convert_gguf(path, made.path(), Kind::BFloat16)?;
        let llama = Llama::load(made.path(), Kind::Float, Device::Cpu)?;
        llama.generation_config()?;
        // A template that Jinja does not read is refused by its own reader.
        let _ = llama.chat_template();
        llama.score(&[Example { prompt: vec![1, 3], target: vec![2] }], ScoreOptions::default())?;
        Ok(())
    });
}
