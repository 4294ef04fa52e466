//! Whatever a file holds, reading it ends in a value or an error.

use std::path::Path;

use proptest::prelude::*;
use ruminate_models::checkpoint::{read_tensors, write_tensors};
use ruminate_models::{NetworkConfig, T5Config, Tokenizer};
use serde_json::{Map, Value, json};
use tch::{Device, Tensor};

use crate::support::{cases, keys, world};

/// Bytes with a few of them replaced, or cut short.
fn damaged(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = bytes.len();
    (prop::collection::vec((0..length, any::<u8>()), 0..4), 0..=length, any::<bool>()).prop_map(
        move |(changes, end, cut)| {
            let mut bytes = bytes.clone();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes.truncate(if cut { end } else { length });
            bytes
        },
    )
}

fn small_file() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t");
    let (a, b) = (Tensor::from_slice(&[1f32, 2.0]), Tensor::from_slice2(&[[1i64, 2], [3, 4]]));
    write_tensors(&file, [("a", &a), ("b", &b)]).unwrap();
    std::fs::read(&file).unwrap()
}

/// A file with a header that looks right: one tensor of any type, shape and place.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let dtype = prop::sample::select(vec![
        "F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "U64", "F8_E5M2", "F4", "C64",
    ]);
    let size = prop_oneof![0u64..5, any::<u64>(), Just(1 << 63), Just(u64::MAX)];
    let offset = || prop_oneof![0u64..40, any::<u64>()];
    (dtype, prop::collection::vec(size, 0..4), offset(), offset(), 0usize..64).prop_map(
        |(dtype, shape, start, end, data)| {
            let tensor = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
            let header = json!({"x": tensor}).to_string();
            let length = (header.len() as u64).to_le_bytes();
            [&length[..], header.as_bytes(), &vec![1; data]].concat()
        },
    )
}

/// No data, so that any shape with a zero in it has the right size.
fn empty() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![Just(0u64), any::<u64>()], 1..4).prop_map(|shape| {
        let header = json!({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
    })
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3i64..50).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0.0..1.0).prop_map(|x: f64| Value::from(x)),
        prop::sample::select(vec!["relu", "gated-gelu", "gelu_new", "t5", "T5EncoderModel"])
            .prop_map(Value::from),
        ".{0,5}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(".{0,3}", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Known keys with any value, and a few unknown ones.
fn map() -> impl Strategy<Value = Map<String, Value>> {
    let known = vec![
        "vocab_size",
        "d_model",
        "d_kv",
        "d_ff",
        "num_layers",
        "num_decoder_layers",
        "num_heads",
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        "dropout_rate",
        "layer_norm_epsilon",
        "initializer_factor",
        "feed_forward_proj",
        "dense_act_fn",
        "is_gated_act",
        "tie_word_embeddings",
        "scale_decoder_outputs",
        "is_encoder_decoder",
        "is_decoder",
        "pad_token_id",
        "eos_token_id",
        "decoder_start_token_id",
        "model_type",
        "architectures",
        "torch_dtype",
        "use_cache",
    ];
    let key = prop_oneof![20 => prop::sample::select(known).prop_map(String::from), 1 => ".{0,8}".boxed()];
    prop::collection::vec((key, value()), 0..5).prop_map(|pairs| pairs.into_iter().collect())
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn safetensors(bytes in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        damaged(small_file()),
        plausible(),
        empty(),
    ]) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model.safetensors");
        std::fs::write(&file, &bytes).unwrap();
        match read_tensors(&file, Device::Cpu) {
            Ok(tensors) => {
                let read: usize = tensors.values().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum();
                prop_assert!(read <= bytes.len());
            }
            Err(error) => prop_assert!(error.to_string().contains("model.safetensors"), "{}", error),
        }
    }

    #[test]
    fn configurations(changes in map(), bare in prop::bool::weighted(0.1)) {
        let mut json = if bare { Map::new() } else { keys() };
        json.extend(changes);
        match T5Config::from_json(json, Path::new("config.json")) {
            Ok(config) => {
                prop_assert!(config.num_heads.checked_mul(config.d_kv).is_some());
                let Value::Object(json) = config.to_json() else { panic!("not an object") };
                prop_assert_eq!(T5Config::from_json(json, Path::new("config.json")).unwrap(), config);
            }
            Err(error) => prop_assert!(error.to_string().contains("config.json"), "{}", error),
        }
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn tokenizers(bytes in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        damaged(std::fs::read(world().join("tokenizer.json")).unwrap()),
    ]) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), bytes).unwrap();
        if let Err(error) = Tokenizer::open(folder.path()) {
            prop_assert!(error.to_string().contains("tokenizer.json"), "{}", error);
        }
    }
}
