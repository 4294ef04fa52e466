//! Model folders: what is written is read back, and what is damaged is refused with a reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ruminate_models::checkpoint::{
    WEIGHTS, WEIGHTS_INDEX, read_json, read_tensors, write_json, write_model, write_tensors,
};
use ruminate_models::{Error, Example, Llama, NetworkConfig, Policy, ScoreOptions, T5, Tokenizer};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

use crate::support::{
    assert_same_parameters, config, deep, encoder_only, entries, gated, model, model_of, plain, refused,
    world,
};

const SHARD: u64 = 3000;

/// A folder with a saved model.
fn saved(t5: &T5) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    t5.save(folder.path()).unwrap();
    folder
}

fn sharded(t5: &T5) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    t5.config().save(folder.path()).unwrap();
    write_model(folder.path(), t5.parameters(), SHARD).unwrap();
    folder
}

fn load(folder: &Path) -> ruminate_models::Result<T5> {
    T5::load(folder, Kind::Float, Device::Cpu)
}

fn tensors(t5: &T5) -> BTreeMap<String, Tensor> {
    t5.parameters().iter().map(|(name, tensor)| (name.to_string(), tensor.detach())).collect()
}

/// Writes any tensors as the weights of a folder.
fn write(folder: &Path, tensors: &BTreeMap<String, Tensor>) {
    write_tensors(&folder.join(WEIGHTS), tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
        .unwrap();
}

fn problems(error: Error) -> Vec<String> {
    match error {
        Error::Weights { problems, .. } => problems,
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_saved_is_loaded() {
    for config in [plain(), gated(), deep(), encoder_only(), config(json!({"scale_decoder_outputs": false}))]
    {
        let t5 = model(config);
        let folder = saved(&t5);
        assert_eq!(entries(folder.path()), ["config.json", WEIGHTS]);
        let back = load(folder.path()).unwrap();
        assert_eq!(back.config(), t5.config());
        assert_same_parameters(&t5, &back);
        assert!(back.parameters().iter().all(|(_, p)| p.requires_grad()));
    }
}

#[test]
fn shards_are_loaded_like_one_file() {
    for t5 in [model(plain()), model(gated())] {
        let folder = sharded(&t5);
        let names = entries(folder.path());
        let shards: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
        let count = shards.len();
        assert!(count > 3 && !names.contains(&WEIGHTS.to_string()), "{names:?}");
        assert_eq!(shards[1], &format!("model-00002-of-{count:05}.safetensors"));
        let index: Value = read_json(&folder.path().join(WEIGHTS_INDEX)).unwrap();
        assert_eq!(index["metadata"]["total_size"], json!(4 * t5.parameters().count()));
        let mut found = 0;
        for shard in shards {
            let tensors = read_tensors(&folder.path().join(shard), Device::Cpu).unwrap();
            let bytes: usize = tensors.values().map(|tensor| 4 * tensor.numel()).sum();
            assert!(bytes as u64 <= SHARD || tensors.len() == 1, "{shard} holds {bytes} bytes");
            assert!(tensors.keys().all(|name| index["weight_map"][name] == json!(shard)));
            found += tensors.len();
        }
        assert_eq!(found, t5.parameters().iter().count());
        assert_same_parameters(&t5, &load(folder.path()).unwrap());
    }
}

#[test]
fn the_latest_weights_of_a_folder_count() {
    let (old, new) = (model_of(plain(), 1), model_of(plain(), 2));
    let folder = saved(&old);
    write_model(folder.path(), new.parameters(), SHARD).unwrap();
    assert_same_parameters(&new, &load(folder.path()).unwrap());
    old.save(folder.path()).unwrap();
    assert_same_parameters(&old, &load(folder.path()).unwrap());
    assert!(!entries(folder.path()).contains(&WEIGHTS_INDEX.to_string()));
}

#[test]
fn stored_half_precision_loads_as_float32() {
    let t5 = model(gated());
    for kind in [Kind::Half, Kind::BFloat16, Kind::Double] {
        let folder = saved(&t5);
        let rounded = tensors(&t5).into_iter().map(|(name, tensor)| (name, tensor.to_kind(kind))).collect();
        write(folder.path(), &rounded);
        let back = load(folder.path()).unwrap();
        for (name, tensor) in back.parameters().iter() {
            assert_eq!(tensor.kind(), Kind::Float);
            assert!(tensor.equal(&rounded[name].to_kind(Kind::Float)), "{name}");
        }
        let half = T5::load(folder.path(), Kind::BFloat16, Device::Cpu).unwrap();
        assert!(half.parameters().iter().all(|(_, p)| p.kind() == Kind::BFloat16 && p.requires_grad()));
    }
}

#[test]
fn one_error_names_every_tensor_that_does_not_fit() {
    for t5 in [model(plain()), model(encoder_only())] {
        let folder = saved(&t5);
        let mut changed = tensors(&t5);
        changed.remove("encoder.block.1.layer.0.SelfAttention.k.weight");
        changed.remove("encoder.final_layer_norm.weight");
        changed.insert(
            "encoder.block.2.layer.0.layer_norm.weight".into(),
            Tensor::ones([16], tch::kind::FLOAT_CPU),
        );
        changed.insert(
            "encoder.block.0.layer.1.layer_norm.weight".into(),
            Tensor::ones([17], tch::kind::FLOAT_CPU),
        );
        // As many numbers, but not that matrix.
        let q = "encoder.block.0.layer.0.SelfAttention.q.weight";
        changed.insert(q.into(), Tensor::ones([8, 32], tch::kind::FLOAT_CPU));
        write(folder.path(), &changed);
        let error = load(folder.path()).unwrap_err();
        assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
        let problems = problems(error);
        let expect = |name: &str, what: &str| {
            assert!(
                problems.iter().any(|p| p.contains(&format!("`{name}`")) && p.contains(what)),
                "{problems:?}"
            );
        };
        expect("encoder.block.1.layer.0.SelfAttention.k.weight", "missing");
        expect("encoder.final_layer_norm.weight", "missing");
        expect("encoder.block.2.layer.0.layer_norm.weight", "unexpected");
        expect("encoder.block.0.layer.1.layer_norm.weight", "[17]");
        expect(q, "[8, 32]");
        assert_eq!(problems.len(), 5, "{problems:?}");
    }
}

#[test]
fn files_of_transformers_5_load() {
    let t5 = model(gated());
    let folder = saved(&t5);
    let mut keys = t5.config().to_json();
    // It says "tied" of every model, and tells the truth by another key.
    keys["tie_word_embeddings"] = json!(true);
    keys["scale_decoder_outputs"] = json!(false);
    write_json(&folder.path().join("config.json"), &keys).unwrap();
    let back = load(folder.path()).unwrap();
    assert_eq!(back.config(), t5.config());
    assert_same_parameters(&t5, &back);
    let examples = [Example { prompt: vec![5, 1], target: vec![9, 3, 1] }];
    let scores = |t5: &T5| t5.score(&examples, ScoreOptions::default()).unwrap().log_probs;
    assert!(scores(&t5).equal(&scores(&back)));
}

#[test]
fn a_copy_of_the_embedding_is_no_output_matrix() {
    let t5 = model(plain());
    let folder = saved(&t5);
    let mut doubled = tensors(&t5);
    let shared = doubled["shared.weight"].copy();
    for alias in ["lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] {
        doubled.insert(alias.into(), shared.copy());
    }
    write(folder.path(), &doubled);
    let back = load(folder.path()).unwrap();
    assert!(back.config().tie_word_embeddings);
    assert_same_parameters(&t5, &back);
    // The embedding is found under its other names too.
    doubled.remove("shared.weight");
    doubled.remove("lm_head.weight");
    write(folder.path(), &doubled);
    assert_same_parameters(&t5, &load(folder.path()).unwrap());
}

#[test]
fn an_output_matrix_of_another_kind_is_compared_by_its_values() {
    let t5 = model(plain());
    let folder = saved(&t5);
    let mut mixed = tensors(&t5);
    let shared = mixed["shared.weight"].to_kind(Kind::BFloat16);
    mixed.insert("lm_head.weight".into(), shared.to_kind(Kind::Float));
    mixed.insert("shared.weight".into(), shared);
    write(folder.path(), &mixed);
    assert!(load(folder.path()).unwrap().config().tie_word_embeddings);
    mixed.insert("lm_head.weight".into(), &mixed["lm_head.weight"] + 1.0);
    write(folder.path(), &mixed);
    assert!(!load(folder.path()).unwrap().config().tie_word_embeddings);
}

#[test]
fn every_family_keeps_an_output_matrix_of_its_own() {
    // The configuration says that there is none; only a copy of the embedding is none.
    let llama = crate::support::llama(json!({"tie_word_embeddings": true}));
    let folder = tempfile::tempdir().unwrap();
    llama.save(folder.path()).unwrap();
    let path = folder.path().join(WEIGHTS);
    let mut tensors = read_tensors(&path, Device::Cpu).unwrap();
    let own = &tensors["model.embed_tokens.weight"] + 1.0;
    tensors.insert("lm_head.weight".into(), own.copy());
    write(folder.path(), &tensors);
    let back = Llama::load(folder.path(), Kind::Float, Device::Cpu).unwrap();
    assert!(!back.config().tie_word_embeddings);
    assert!(back.parameters().get("lm_head.weight").unwrap().equal(&own));
    assert!(back.output_projection().unwrap().0.equal(&own));
    // The one matrix may have the other name.
    tensors.remove("model.embed_tokens.weight");
    write(folder.path(), &tensors);
    let other = Llama::load(folder.path(), Kind::Float, Device::Cpu).unwrap();
    assert!(other.config().tie_word_embeddings);
    assert!(other.parameters().get("model.embed_tokens.weight").unwrap().equal(&own));
}

#[test]
fn what_stands_in_the_place_of_weights_is_named_with_the_way_out() {
    let folder = saved(&model(plain()));
    let path = folder.path().join(WEIGHTS);
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 990000000\n")
        .unwrap();
    refused(load(folder.path()), &[WEIGHTS, "Git LFS", "git -C", "lfs pull"]);
    fs::remove_file(&path).unwrap();
    fs::write(folder.path().join("training_args.bin"), "x").unwrap();
    refused(load(folder.path()), &["neither model.safetensors"]);
    for (name, command) in [
        ("adapter_model.safetensors", "merge_and_unload"),
        ("SmolLM2.Q4_1.gguf", "gguf_to_hf"),
        ("pytorch_model-00001-of-00002.bin", "save_pretrained"),
        ("model.bin", "save_pretrained"),
    ] {
        fs::write(folder.path().join(name), "x").unwrap();
        let here = folder.path().to_str().unwrap();
        let program = if name.ends_with(".gguf") { "cargo run" } else { "python3 -c" };
        refused(load(folder.path()), &[name, command, program, here]);
    }
}

#[test]
fn a_file_cut_short_is_refused_wherever_the_cut_is() {
    let folder = saved(&model(plain()));
    let file = folder.path().join(WEIGHTS);
    let bytes = fs::read(&file).unwrap();
    let lengths = (0..20).chain((20..bytes.len()).step_by(997)).chain([bytes.len() - 1]);
    for length in lengths {
        fs::write(&file, &bytes[..length]).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(matches!(error, Error::Safetensors { .. }), "{length}: {error}");
        refused(Err::<(), _>(error), &[WEIGHTS, "cut short"]);
    }
    let longer: Vec<u8> = bytes.iter().copied().chain([0; 8]).collect();
    fs::write(&file, longer).unwrap();
    refused(load(folder.path()), &[WEIGHTS]);
    fs::write(&file, bytes).unwrap();
    load(folder.path()).unwrap();
}

#[test]
fn a_header_of_garbage_is_refused() {
    let folder = saved(&model(plain()));
    let with_header = |header: &str| {
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), &[0; 64]].concat()
    };
    let tensor = |shape: &str, range: &str, dtype: &str| {
        with_header(&format!(r#"{{"x": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {range}}}}}"#))
    };
    let empty = |shape: &str| {
        let mut bytes = tensor(shape, "[0, 0]", "F32");
        bytes.truncate(bytes.len() - 64);
        bytes
    };
    fs::write(folder.path().join(WEIGHTS), empty("[0, 7]")).unwrap();
    assert_eq!(read_tensors(&folder.path().join(WEIGHTS), Device::Cpu).unwrap()["x"].size(), [0, 7]);
    fs::write(folder.path().join(WEIGHTS), tensor("[16]", "[0, 64]", "F32")).unwrap();
    assert_eq!(read_tensors(&folder.path().join(WEIGHTS), Device::Cpu).unwrap()["x"].size(), [16]);
    let garbage = [
        b"this is no safetensors file at all".to_vec(),
        vec![0xff; 100],
        with_header("not json"),
        with_header("[]"),
        with_header("{}"),
        tensor("[17]", "[0, 64]", "F32"),
        tensor("[16]", "[64, 0]", "F32"),
        tensor("[16]", "[8, 72]", "F32"),
        tensor("[4611686018427387904, 4]", "[0, 64]", "F32"),
        tensor("[-16]", "[0, 64]", "F32"),
        tensor("[16]", "[0, 64]", "F99"),
        empty("[9223372036854775808, 0]"),
        empty("[0, 4294967296, 4294967296]"),
    ];
    for bytes in garbage {
        fs::write(folder.path().join(WEIGHTS), bytes).unwrap();
        refused(load(folder.path()), &[WEIGHTS]);
    }
    // A type that exists, but that libtorch does not have here, is named.
    fs::write(folder.path().join(WEIGHTS), tensor("[64]", "[0, 64]", "F8_E4M3")).unwrap();
    refused(load(folder.path()), &["`x`", "F8_E4M3"]);
}

#[test]
fn an_index_that_lies_is_refused() {
    let t5 = model(plain());
    let folder = sharded(&t5);
    let file = folder.path().join(WEIGHTS_INDEX);
    let index: Value = read_json(&file).unwrap();
    let name = "encoder.final_layer_norm.weight";
    let with = |shard: &str| {
        let mut index = index.clone();
        index["weight_map"][name] = json!(shard);
        write_json(&file, &index).unwrap();
        load(folder.path())
    };
    refused(with("model-00099-of-00099.safetensors"), &["model-00099-of-00099.safetensors"]);
    for outside in ["../x", "..", ".", "/", "a/../../x", "/etc/passwd", "sub/x.safetensors", ""] {
        refused(with(outside), &[WEIGHTS_INDEX, &format!("`{outside}`")]);
    }
    // The tensor is in another shard than the index says.
    let right = index["weight_map"][name].as_str().unwrap();
    let wrong =
        index["weight_map"].as_object().unwrap().values().find(|v| v.as_str() != Some(right)).unwrap();
    let wrong = wrong.as_str().unwrap();
    refused(with(wrong), &[name, wrong]);
    // It is in both; the index decides.
    let mut both = read_tensors(&folder.path().join(wrong), Device::Cpu).unwrap();
    both.insert(name.into(), Tensor::zeros([16], tch::kind::FLOAT_CPU));
    write_tensors(&folder.path().join(wrong), both.iter().map(|(name, tensor)| (name.as_str(), tensor)))
        .unwrap();
    assert_same_parameters(&t5, &with(right).unwrap());
    let mut more = index.clone();
    more["weight_map"]["spare.weight"] = json!(right);
    write_json(&file, &more).unwrap();
    refused(load(folder.path()), &["spare.weight", right]);
    for text in ["", "[]", "{", r#"{"metadata": {}}"#, r#"{"weight_map": {"x": 3}}"#] {
        fs::write(&file, text).unwrap();
        refused(load(folder.path()), &[WEIGHTS_INDEX]);
    }
    write_json(&file, &index).unwrap();
    assert_same_parameters(&t5, &load(folder.path()).unwrap());
}

#[test]
fn a_shard_that_is_gone_is_named() {
    let folder = sharded(&model(plain()));
    let shard = entries(folder.path()).into_iter().find(|name| name.contains("00002-of")).unwrap();
    fs::remove_file(folder.path().join(&shard)).unwrap();
    refused(load(folder.path()), &[&shard]);
}

#[test]
fn pickled_weights_are_refused_with_the_command_that_converts_them() {
    for name in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        let folder = tempfile::tempdir().unwrap();
        plain().save(folder.path()).unwrap();
        fs::write(folder.path().join(name), "pickle").unwrap();
        refused(load(folder.path()), &["pytorch_model.bin", "save_pretrained", "safe_serialization=True"]);
        refused(model(plain()).parameters().restore(folder.path()), &["save_pretrained"]);
    }
}

#[test]
fn folders_without_a_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    refused(load(&missing), &["missing", "no such folder"]);
    refused(load(folder.path()), &["config.json"]);
    plain().save(folder.path()).unwrap();
    refused(load(folder.path()), &[WEIGHTS, WEIGHTS_INDEX]);
    refused(load(&folder.path().join("config.json")), &["no such folder"]);
    fs::write(folder.path().join("config.json"), "{").unwrap();
    refused(load(folder.path()), &["config.json", "EOF"]);
    let parameters = model(plain());
    refused(parameters.parameters().restore(&missing), &["missing", "no such folder"]);
}

#[test]
fn restoring_copies_into_the_same_tensors() {
    let (source, target) = (model_of(gated(), 1), model_of(gated(), 2));
    for folder in [saved(&source), sharded(&source)] {
        let shared = target.parameters().get("shared.weight").unwrap().shallow_clone();
        target.parameters().restore(folder.path()).unwrap();
        assert_same_parameters(&source, &target);
        assert!(shared.equal(source.parameters().get("shared.weight").unwrap()));
        assert!(shared.requires_grad());
        let _ = tch::no_grad(|| shared.shallow_clone().zero_());
    }
}

#[test]
fn a_failed_restore_names_the_tensors_and_changes_nothing() {
    let (source, target) = (model_of(plain(), 1), model_of(plain(), 2));
    let folder = saved(&source);
    let mut changed = tensors(&source);
    changed.remove("decoder.final_layer_norm.weight");
    changed.insert("extra".into(), Tensor::from(1f32));
    changed.insert("encoder.final_layer_norm.weight".into(), Tensor::ones([1], tch::kind::FLOAT_CPU));
    write(folder.path(), &changed);
    let problems = problems(target.parameters().restore(folder.path()).unwrap_err());
    assert_eq!(problems.len(), 3, "{problems:?}");
    for name in ["decoder.final_layer_norm.weight", "extra", "encoder.final_layer_norm.weight"] {
        assert!(problems.iter().any(|problem| problem.contains(&format!("`{name}`"))), "{problems:?}");
    }
    assert_same_parameters(&target, &model_of(plain(), 2));
}

#[test]
fn parameters_are_copied_from_a_model_of_the_same_architecture_only() {
    let (source, target) = (model_of(plain(), 1), model_of(plain(), 2));
    target.parameters().copy_from(source.parameters()).unwrap();
    assert_same_parameters(&source, &target);
    // One head would be broadcast to both, and one row to all: shapes must be equal, not compatible.
    let small = model(config(json!({"vocab_size": 40, "num_heads": 1, "d_kv": 16})));
    let text =
        refused(target.parameters().copy_from(small.parameters()), &["relative_attention_bias", "[8, 1]"]);
    assert!(!text.contains("broadcast"), "{text}");
    refused(model(gated()).parameters().copy_from(target.parameters()), &["parameters"]);
    refused(model(deep()).parameters().copy_from(target.parameters()), &["decoder.block.2"]);
    assert_same_parameters(&source, &target);
}

#[test]
fn every_kind_of_tensor_round_trips() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.safetensors");
    let base = Tensor::from_slice2(&[[1.5f64, 0.0, -3.0], [4.0, 5.0, 6.5]]);
    let kinds = [
        Kind::Float,
        Kind::Double,
        Kind::Half,
        Kind::BFloat16,
        Kind::Int64,
        Kind::Int,
        Kind::Int16,
        Kind::Int8,
        Kind::Uint8,
        Kind::Bool,
    ];
    let mut tensors: BTreeMap<String, Tensor> =
        kinds.iter().map(|&kind| (format!("{kind:?}"), base.abs().to_kind(kind))).collect();
    tensors.insert("scalar".into(), Tensor::from(2.5f32));
    tensors.insert("empty".into(), Tensor::zeros([0, 3], tch::kind::FLOAT_CPU));
    tensors.insert("transposed".into(), base.transpose(0, 1));
    tensors.insert("with gradient".into(), base.copy().set_requires_grad(true));
    write_tensors(&file, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    let back = read_tensors(&file, Device::Cpu).unwrap();
    assert_eq!(back.len(), tensors.len());
    for (name, tensor) in &tensors {
        assert_eq!(back[name].kind(), tensor.kind(), "{name}");
        assert!(back[name].equal(tensor), "{name}");
    }
    // A later file of that name replaces it.
    write_tensors(&file, [("one", &base)]).unwrap();
    assert_eq!(read_tensors(&file, Device::Cpu).unwrap().len(), 1);
    assert_eq!(entries(folder.path()), ["t.safetensors"]);
    let complex = Tensor::zeros([2], (Kind::ComplexFloat, Device::Cpu));
    refused(write_tensors(&file, [("z", &complex)]), &["ComplexFloat"]);
    assert!(read_tensors(&file, Device::Cpu).unwrap()["one"].equal(&base), "the older file is as it was");
}

#[test]
#[cfg(unix)]
fn written_files_are_readable_by_others() {
    use std::os::unix::fs::PermissionsExt;
    let folder = sharded(&model(plain()));
    for name in entries(folder.path()) {
        let mode = fs::metadata(folder.path().join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "{name}");
    }
}

#[test]
fn a_failed_write_leaves_everything_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let t5 = model(plain());
    let file = folder.path().join("file");
    fs::write(&file, "content").unwrap();
    // A path below a regular file is not writable for anybody.
    let unwritable = |error: ruminate_models::Result<()>, name: &str| {
        refused(error, &["cannot write", file.join(name).to_str().unwrap()]);
    };
    let norm = t5.parameters().get("encoder.final_layer_norm.weight").unwrap();
    unwritable(write_tensors(&file.join("t"), [("norm", norm)]), "t");
    unwritable(write_json(&file.join("j"), &1), "j");
    unwritable(write_model(&file, t5.parameters(), u64::MAX), WEIGHTS);
    unwritable(t5.config().save(&file), "config.json");
    unwritable(Policy::save(&t5, &file), "config.json");
    unwritable(Tokenizer::open(&world()).unwrap().save(&file), "tokenizer.json");
    refused(write_model(&file, t5.parameters(), SHARD), &["cannot write"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
    // Nor can a file replace a folder; no temporary file stays behind.
    for name in [WEIGHTS, "config.json"] {
        fs::create_dir_all(folder.path().join(name).join("inside")).unwrap();
    }
    refused(write_tensors(&folder.path().join(WEIGHTS), [("norm", norm)]), &["cannot write", WEIGHTS]);
    refused(write_json(&folder.path().join("config.json"), &1), &["cannot write", "config.json"]);
    assert_eq!(entries(folder.path()), ["config.json", "file", WEIGHTS]);
    assert_eq!(entries(&folder.path().join(WEIGHTS)), ["inside"]);
}
