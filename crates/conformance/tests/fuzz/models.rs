use std::path::Path;

use ruminate_models::checkpoint::{read_tensors, write_model};
use ruminate_models::{
    Example, Generate, GenerationConfig, Llama, LlamaConfig, NetworkConfig, Policy, ScoreOptions, T5,
    T5Config, Tokenizer,
};
use tch::{Device, Kind};

use crate::{Boxed, Fuzz, folder, world};

pub(crate) fn tiny() -> T5 {
    let config = T5Config {
        d_model: 16,
        d_kv: 8,
        d_ff: 32,
        num_heads: 2,
        num_layers: 1,
        num_decoder_layers: 1,
        ..T5Config::open(&world("t5/config.json")).unwrap()
    };
    T5::new(config, Kind::Float, Device::Cpu, 1).unwrap()
}

/// A model folder with one file of weights, or with shards.
fn model(shard_bytes: u64) -> tempfile::TempDir {
    let folder = folder();
    let t5 = tiny();
    t5.config().save(folder.path()).unwrap();
    write_model(folder.path(), t5.parameters(), shard_bytes).unwrap();
    folder
}

/// Loads a folder and uses what was loaded.
fn load(path: &Path) -> Result<(), Boxed> {
    let t5 = T5::load(path.parent().unwrap(), Kind::Float, Device::Cpu)?;
    let example = Example { prompt: vec![5, 7, 1], target: vec![9, 1] };
    t5.score(&[example], ScoreOptions::default())?;
    Ok(())
}

/// Damages a file of a model folder.
fn damage(folder: tempfile::TempDir, file: &str, inputs: u64, places: &[&str]) {
    let seed = std::fs::read(folder.path().join(file)).unwrap();
    Fuzz { places, ..Fuzz::new(file, vec![seed], inputs) }.run(folder, load);
}

#[test]
fn configurations() {
    damage(model(u64::MAX), "config.json", 500, &["model.safetensors"]);
}

/// A Llama folder with everything that its configuration can say.
fn llama() -> tempfile::TempDir {
    let folder = folder();
    let keys = serde_json::json!({
        "model_type": "mistral", "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 3, "eos_token_id": [1, 2],
        "pad_token_id": 0, "rope_theta": 5e5, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    });
    let config = LlamaConfig::from_json(keys.as_object().unwrap().clone(), "config.json".as_ref()).unwrap();
    Llama::new(config, Kind::Float, Device::Cpu, 1).unwrap().save(folder.path()).unwrap();
    let defaults = serde_json::json!({
        "eos_token_id": [1, 3], "do_sample": true, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "max_length": 30,
        "repetition_penalty": 1.1, "bad_words_ids": [[4], [5, 6]], "sequence_bias": [[[7], -1.5]], "suppress_tokens": [8],
        "forced_eos_token_id": 3, "guidance_scale": 1.0, "num_beams": 1, "early_stopping": false,
    });
    std::fs::write(folder.path().join("generation_config.json"), defaults.to_string()).unwrap();
    folder
}

fn load_llama(path: &Path) -> Result<(), Boxed> {
    let llama = Llama::load(path.parent().unwrap(), Kind::Float, Device::Cpu)?;
    let config = GenerationConfig { max_new_tokens: 3, ..GenerationConfig::default() };
    llama.generate(&[vec![5, 7, 1, 4], vec![9]], &config, &[])?;
    llama.generation_config()?;
    Ok(())
}

#[test]
fn configurations_of_llama() {
    for (file, places) in [("config.json", "model.safetensors"), ("generation_config.json", "config.json")] {
        let folder = llama();
        let seed = std::fs::read(folder.path().join(file)).unwrap();
        Fuzz { places: &[places], ..Fuzz::new(file, vec![seed], 500) }.run(folder, load_llama);
    }
}

#[test]
fn weights() {
    damage(model(u64::MAX), "model.safetensors", 400, &[]);
}

#[test]
fn indices_of_shards() {
    damage(model(20_000), "model.safetensors.index.json", 300, &[".safetensors", "ruminate-fuzz-"]);
}

#[test]
fn shards() {
    let folder = model(20_000);
    let last = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("model-"))
        .max()
        .unwrap();
    assert!(last.as_str() > "model-00002", "{last}");
    damage(folder, &last, 300, &["model.safetensors.index.json"]);
}

/// Sizes stay within the file, whatever its header says.
#[test]
fn tensors() {
    let seed = std::fs::read(model(u64::MAX).path().join("model.safetensors")).unwrap();
    let small = {
        let folder = folder();
        let path = folder.path().join("t.safetensors");
        let tensors = [tch::Tensor::from_slice(&[1f32, 2.0]), tch::Tensor::from_slice2(&[[1i64, 2], [3, 4]])];
        let named = ["a", "b"].into_iter().zip(&tensors);
        ruminate_models::checkpoint::write_tensors(&path, named).unwrap();
        std::fs::read(path).unwrap()
    };
    Fuzz::new("any.safetensors", vec![seed, small.clone(), small], 1000).run(folder(), |path| {
        let tensors = read_tensors(path, Device::Cpu)?;
        let read: usize = tensors.values().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum();
        assert!(read as u64 <= std::fs::metadata(path).unwrap().len());
        Ok(())
    });
}

#[test]
fn tokenizers() {
    let seed = std::fs::read(world("t5/tokenizer.json")).unwrap();
    let saved = folder();
    Fuzz::new("tokenizer.json", vec![seed], 300).run(folder(), |path| {
        let tokenizer = Tokenizer::open(path)?;
        let use_it = || -> ruminate_models::Result<()> {
            let text = "Where does Ann live? \u{e9}\u{1f980}\u{0} </s> <pad>";
            let ids = tokenizer.encode(text)?;
            tokenizer.encode_truncated(text, 5, ruminate_models::Truncate::Start)?;
            tokenizer.tokens(text)?;
            tokenizer.decode_clean(&ids)?;
            tokenizer.decode(&(-1..300).collect::<Vec<_>>(), false)?;
            tokenizer.save(saved.path())
        };
        // That such a tokenizer fails is said by it, not by the file that was read long ago.
        if let Err(error) = use_it() {
            assert!(crate::chain(&error).starts_with("tokenizer: "), "{error}");
        }
        Ok(())
    });
}
