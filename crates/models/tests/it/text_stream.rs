//! Text that is made while ids come.

use std::path::Path;

use proptest::prelude::*;
use ruminate_models::{TextStream, TokenId, Tokenizer};
use serde_json::{Value, json};

use crate::support::{cases, world};

/// A tokenizer of a vocabulary in this order; the first token is special.
fn tokenizer(vocabulary: &[String], decoder: Value) -> Tokenizer {
    let vocab: serde_json::Map<String, Value> =
        vocabulary.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": decoder,
        "added_tokens": [{"id": 0, "content": vocabulary[0], "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false, "special": true}],
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": vocabulary[0]},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::open(folder.path()).unwrap()
}

fn words() -> Vec<String> {
    ["<s>", "▁", "▁a", "b", "▁▁", "▁Ünder", "é", "\n", ".", "▁'s", "##", "<0x>", "�"]
        .map(str::to_string)
        .to_vec()
}

/// Every byte, as Llama's sentencepiece vocabularies hold them.
fn with_bytes() -> Vec<String> {
    let bytes = [0xE2u8, 0x82, 0xAC, 0xC3, 0xA9, 0x41, 0xFF, 0x0A, 0xF0, 0x9F, 0x98, 0x80];
    words().into_iter().chain(bytes.map(|byte| format!("<0x{byte:02X}>"))).collect()
}

fn fixture(name: &str) -> Tokenizer {
    Tokenizer::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// A tokenizer for each way of decoding.
fn tokenizers() -> Vec<(&'static str, Tokenizer)> {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let llama = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    vec![
        ("t5's sentencepiece", tokenizer(&words(), metaspace)),
        ("llama's sentencepiece", tokenizer(&with_bytes(), llama)),
        ("byte-level", fixture("../algorithms/tests/pairs/byte_level")),
        ("no decoder", fixture("../algorithms/tests/pairs/metaspace")),
        ("word pieces", Tokenizer::open(&world()).unwrap()),
    ]
}

/// The pieces of some ids until the stream stops or they end, and how many ids were taken.
fn pieces(mut stream: TextStream<'_>, ids: &[TokenId]) -> (Vec<String>, usize) {
    let (mut pieces, mut taken) = (vec![], 0);
    for &id in ids {
        pieces.push(stream.push(id).unwrap());
        taken += 1;
        if stream.is_stopped() {
            break;
        }
    }
    pieces.push(stream.finish().unwrap());
    assert_eq!(stream.finish().unwrap(), "", "the rest comes once");
    (pieces, taken)
}

/// The ids up to the first that completes a stop string in the text of them all, and that text before it.
fn stopped(tokenizer: &Tokenizer, ids: &[TokenId], stops: &[String]) -> (String, usize) {
    for taken in 1..=ids.len() {
        let text = tokenizer.decode(&ids[..taken], true).unwrap();
        if let Some(at) = stops.iter().filter_map(|stop| text.find(stop.as_str())).min() {
            return (text[..at].to_string(), taken);
        }
    }
    (tokenizer.decode(ids, true).unwrap(), ids.len())
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn pieces_are_the_text_of_all_ids(numbers in prop::collection::vec(0..10_000i64, 0..40)) {
        for (name, tokenizer) in tokenizers() {
            // One id beyond the vocabulary has no text.
            let size = tokenizer.vocab_size() as i64 + 1;
            let ids: Vec<TokenId> = numbers.iter().map(|number| number % size).collect();
            let (pieces, _) = pieces(TextStream::new(&tokenizer, &[]), &ids);
            prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids, true).unwrap(), "{}: {:?}", name, ids);
        }
    }

    #[test]
    fn pieces_end_before_the_first_stop_string(
        numbers in prop::collection::vec(0..10_000i64, 1..30),
        (from, length, other) in (0..20usize, 1..6usize, 0..20usize),
    ) {
        for (name, tokenizer) in tokenizers() {
            let size = tokenizer.vocab_size() as i64;
            let ids: Vec<TokenId> = numbers.iter().map(|number| number % size).collect();
            // Bytes that decode in another way with those that follow may hold a string for a while.
            let text: Vec<char> = tokenizer.decode(&ids, true).unwrap().replace('\u{fffd}', "").chars().collect();
            let part = |from: usize, length| text.iter().skip(from).take(length).collect::<String>();
            let stops: Vec<String> =
                [part(from, length), part(other, 2)].into_iter().filter(|stop| !stop.is_empty()).collect();
            let (expected, end) = stopped(&tokenizer, &ids, &stops);
            let (pieces, taken) = pieces(TextStream::new(&tokenizer, &stops), &ids);
            prop_assert_eq!((pieces.concat(), taken), (expected, end), "{}: {:?} {:?}", name, ids, stops);
        }
    }
}

#[test]
fn text_comes_as_soon_as_it_is_certain() {
    let (_, byte_level) = tokenizers().remove(2);
    // Three bytes of one character, each a token of its own.
    let ids = byte_level.encode_plain("ab€c").unwrap();
    let (pieces, _) = pieces(TextStream::new(&byte_level, &[]), &ids);
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 1, "{pieces:?}");
    assert_eq!(pieces.last().unwrap(), "", "nothing was held back to the end: {pieces:?}");
}

#[test]
fn what_may_begin_a_stop_string_waits() {
    let (_, t5) = tokenizers().remove(0);
    let id = |token: &str| t5.token_id(token).unwrap();
    let ids = ["b", "\n", ".", "\n", "b", "é"].map(id);
    let stops = ["\nb\n".to_string(), "\nbé".to_string()];
    let (pieces, taken) = pieces(TextStream::new(&t5, &stops), &ids);
    assert_eq!(pieces, ["b", "", "\n.", "", "", "", ""]);
    assert_eq!(taken, 6);
}

#[test]
fn a_stop_string_before_the_minimum_does_not_count() {
    let (_, t5) = tokenizers().remove(0);
    let id = |token: &str| t5.token_id(token).unwrap();
    let ids = ["b", "\n", "b", "\n", "b"].map(id);
    let stream = |min| TextStream::new(&t5, &["\n".to_string()]).with_min_tokens(min);
    assert_eq!(pieces(stream(2), &ids), (vec!["b".into(), String::new(), String::new()], 2));
    assert_eq!(pieces(stream(3), &ids).0.concat(), "b\nb");
    assert_eq!(pieces(stream(9), &ids).0.concat(), "b\nb\nb");
}
