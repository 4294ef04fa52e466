//! The tokenizer of the bundled world.

use proptest::prelude::*;
use ruminate_models::{Tokenizer, Truncate};

use crate::support::{cases, chain, refused, world};

const EOS: i64 = 1;

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&world()).unwrap()
}

/// The ids of some words, straight from the vocabulary in the file.
fn ids(words: &str) -> Vec<i64> {
    let text = std::fs::read_to_string(world().join("tokenizer.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    words.split(' ').map(|word| json["model"]["vocab"][word].as_i64().unwrap()).collect()
}

#[test]
fn encoding_adds_the_end_token_and_decoding_takes_it_away() {
    let tokenizer = tokenizer();
    let plain = tokenizer.encode_plain("Ada Adam .").unwrap();
    assert_eq!(plain, ids("Ada Adam ."));
    let encoded = tokenizer.encode("Ada Adam .").unwrap();
    assert_eq!(encoded, [plain, vec![EOS]].concat());
    assert_eq!(tokenizer.tokens("Ada Adam .").unwrap(), ["Ada", "Adam", ".", "</s>"]);
    assert_eq!(tokenizer.decode_clean(&encoded).unwrap(), "Ada Adam.");
    assert!(tokenizer.decode(&encoded, false).unwrap().contains("</s>"));
    assert!(!tokenizer.decode(&encoded, true).unwrap().contains("</s>"));
    assert_eq!((tokenizer.token_id("Ada"), tokenizer.token_id("no such word")), (Some(ids("Ada")[0]), None));
}

#[test]
fn a_vocabulary_larger_than_the_embedding_is_refused() {
    let tokenizer = tokenizer();
    let size = tokenizer.vocab_size() as i64;
    tokenizer.check_fits(size).unwrap();
    tokenizer.check_fits(size + 100).unwrap();
    let text = refused(tokenizer.check_fits(size - 1), &["vocab_size"]);
    assert!(text.contains(&(size - 1).to_string()), "{text}");
    refused(tokenizer.check_fits(0), &["0 embeddings"]);
}

#[test]
fn the_largest_id_counts_not_the_number_of_entries() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(world().join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["model"]["vocab"]["Ada"] = 1000.into();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let gap = Tokenizer::open(folder.path()).unwrap();
    refused(gap.check_fits(gap.vocab_size() as i64), &["1000"]);
    gap.check_fits(1001).unwrap();
}

#[test]
fn truncation_keeps_the_end_token() {
    let tokenizer = tokenizer();
    let cut = |max, side| tokenizer.encode_truncated("Ada Adam Agnes Alan", max, side).unwrap();
    for side in [Truncate::End, Truncate::Start] {
        assert_eq!(cut(10, side), ids("Ada Adam Agnes Alan </s>"));
        assert_eq!(cut(5, side), ids("Ada Adam Agnes Alan </s>"));
        assert_eq!(cut(1, side), [EOS]);
    }
    assert_eq!(cut(3, Truncate::End), ids("Ada Adam </s>"));
    assert_eq!(cut(3, Truncate::Start), ids("Agnes Alan </s>"));
    let error = tokenizer.encode_truncated("Ada", 0, Truncate::End).unwrap_err();
    assert!(error.to_string().contains("no room"), "{}", chain(&error));
}

#[test]
fn ids_outside_the_vocabulary_are_left_out() {
    let tokenizer = tokenizer();
    let size = tokenizer.vocab_size() as i64;
    let known = ids("Ada Adam .");
    let with_others = [known[0], size, known[1], size + 17, -1, -100, i64::MAX, i64::MIN, 1 << 32, known[2]];
    assert_eq!(tokenizer.decode(&with_others, true).unwrap(), tokenizer.decode(&known, true).unwrap());
    assert_eq!(tokenizer.decode(&[], true).unwrap(), "");
}

#[test]
fn settings_stored_in_the_file_do_not_interfere() {
    let folder = tempfile::tempdir().unwrap();
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(world().join("tokenizer.json")).unwrap()).unwrap();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<pad>",
    });
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("Ada Adam Agnes").unwrap(), ids("Ada Adam Agnes </s>"));
}

#[test]
fn a_saved_tokenizer_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    tokenizer.save(folder.path()).unwrap();
    let back = Tokenizer::open(&folder.path().join("tokenizer.json")).unwrap();
    assert_eq!(back.vocab_size(), tokenizer.vocab_size());
    for text in ["Ada Adam . unheard", "", "  Agnes?"] {
        assert_eq!(back.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    }
}

#[test]
fn files_that_are_no_tokenizer_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    refused(Tokenizer::open(folder.path()), &["cannot read", file.to_str().unwrap()]);
    for bytes in [&b""[..], b"{}", b"[1, 2]", b"spiece model", &[0xff, 0xfe, 0]] {
        std::fs::write(&file, bytes).unwrap();
        refused(Tokenizer::open(folder.path()), &[file.to_str().unwrap(), "not a tokenizer file"]);
        refused(Tokenizer::open(&file), &[file.to_str().unwrap()]);
    }
}

#[test]
fn a_damaged_tokenizer_file_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(world().join("tokenizer.json")).unwrap();
    for end in [1, text.len() / 2, text.find("WordPiece").unwrap(), text.len() - 3] {
        std::fs::write(&file, &text[..end]).unwrap();
        refused(Tokenizer::open(&file), &[file.to_str().unwrap(), "EOF"]);
    }
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["normalizer"] = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    std::fs::write(&file, json.to_string()).unwrap();
    refused(Tokenizer::open(&file), &[file.to_str().unwrap(), "not a tokenizer file"]);
}

/// Any text, and text of known words.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), r"(Ada|Adam|</s>|<pad>|\.|\?|\(A\)| |\n|x){0,20}"]
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn any_text_is_encoded_within_the_limit(text in text(), max in 1usize..20) {
        let tokenizer = tokenizer();
        let full = tokenizer.encode(&text).unwrap();
        let size = tokenizer.vocab_size() as i64;
        prop_assert!(full.iter().all(|&id| (0..size).contains(&id)));
        prop_assert_eq!(full.last(), Some(&EOS));
        let body = tokenizer.encode_plain(&text).unwrap();
        prop_assert_eq!(&full[..full.len() - 1], &body[..]);
        prop_assert_eq!(tokenizer.tokens(&text).unwrap().len(), full.len());
        for side in [Truncate::End, Truncate::Start] {
            let cut = tokenizer.encode_truncated(&text, max, side).unwrap();
            let kept = body.len().min(max - 1);
            let expected = match side {
                Truncate::End => &body[..kept],
                Truncate::Start => &body[body.len() - kept..],
            };
            prop_assert_eq!(cut.len(), kept + 1);
            prop_assert_eq!(&cut[..kept], expected);
            prop_assert_eq!(cut[kept], EOS);
        }
    }

    #[test]
    fn any_ids_are_decoded(ids in prop::collection::vec(prop_oneof![any::<i64>(), -3i64..250], 0..12)) {
        let tokenizer = tokenizer();
        tokenizer.decode(&ids, true).unwrap();
        tokenizer.decode_clean(&ids).unwrap();
    }
}

#[test]
fn an_id_far_beyond_the_vocabulary_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(world().join("tokenizer.json")).unwrap();
    for (from, to) in [("\"a\": 38", "\"a\": 2147483647"), ("\"id\": 2", "\"id\": 4294967295")] {
        assert!(text.contains(from));
        std::fs::write(&file, text.replace(from, to)).unwrap();
        let error = Tokenizer::open(&file).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        let id = to.rsplit(' ').next().unwrap();
        assert!(error.to_string().contains("tokenizer.json") && source.contains(id), "{error}: {source}");
    }
}

/// A tokenizer of bytes with two markers, which puts a begin token before every text.
fn with_begin_token(trim_offsets: bool) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for token in ["<s>", "</s>"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    // The alphabet of byte-level tokenizers: printable bytes stand for themselves, the others for what follows them.
    let mut next = 256;
    for byte in 0u32..256 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let c = if printable { byte } else { next };
        next += u32::from(!printable);
        let c = char::from_u32(c).unwrap();
        vocab.insert(c.to_string(), vocab.len().into());
    }
    let marker = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let bytes = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": trim_offsets, "use_regex": false});
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [marker(0, "<s>"), marker(1, "</s>")],
        "pre_tokenizer": bytes,
        "decoder": bytes,
        "post_processor": {"type": "Sequence", "processors": [bytes, {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        }]},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::open(folder.path()).unwrap()
}

#[test]
fn a_begin_token_is_never_doubled() {
    let tokenizer = with_begin_token(false);
    let once = tokenizer.encode_with_offsets("<s>a</s>").unwrap();
    assert_eq!((once.ids[0], once.ids[2]), (0, 1));
    assert_eq!(once.offsets, [0..3, 3..4, 4..8]);
    let added = tokenizer.encode_with_offsets("a</s>").unwrap();
    assert_eq!(added.ids, once.ids);
    assert_eq!(added.offsets, [0..0, 0..1, 1..5]);
    // The end token that the world's tokenizer adds is left out, the one that is written stays.
    let plain = self::tokenizer().encode_with_offsets("Ada Adam").unwrap();
    assert_eq!((plain.ids, plain.offsets), (ids("Ada Adam"), vec![0..3, 4..8]));
    let empty = self::tokenizer().encode_with_offsets("").unwrap();
    assert!(empty.ids.is_empty() && empty.offsets.is_empty());
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn offsets_cover_the_text(text in "(<s>|</s>|[a-c é€]| ){0,12}", trim: bool) {
        let encoded = with_begin_token(trim).encode_with_offsets(&text).unwrap();
        prop_assert_eq!(encoded.ids.len(), encoded.offsets.len());
        let covered = |byte: usize| encoded.offsets.iter().any(|range| range.contains(&byte));
        prop_assert!((0..text.len()).all(covered), "{:?}", encoded.offsets);
        prop_assert_eq!(encoded.ids.iter().filter(|&&id| id == 0).count(), text.matches("<s>").count()
            + usize::from(!text.is_empty() && !text.starts_with("<s>")));
    }
}

#[test]
fn the_end_token_is_what_the_files_beside_it_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::copy(world().join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let mut alone = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(alone.end_token(), None);
    refused(alone.set_end_token("no such word"), &["no such word"]);
    alone.set_end_token("</s>").unwrap();
    assert_eq!(alone.end_token(), Some(("</s>", EOS)));
    write("special_tokens_map.json", r#"{"eos_token": {"content": "</s>", "lstrip": false}}"#);
    assert_eq!(Tokenizer::open(folder.path()).unwrap().end_token(), Some(("</s>", EOS)));
    write("tokenizer_config.json", "\u{feff}{\"eos_token\": \"Ada\"}");
    assert_eq!(Tokenizer::open(folder.path()).unwrap().end_token(), Some(("Ada", ids("Ada")[0])));
    assert!(alone.is_special(EOS) && !alone.is_special(ids("Ada")[0]) && !alone.is_special(-1));
}

#[test]
fn a_target_has_its_end_token_and_no_begin_token() {
    let own = tokenizer();
    assert_eq!(own.added_tokens().unwrap(), (0, 1));
    assert_eq!(own.encode_target("Ada Adam").unwrap(), [ids("Ada Adam"), vec![EOS]].concat());
    let text = std::fs::read_to_string(world().join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<pad>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let mut begins = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(begins.added_tokens().unwrap(), (1, 0));
    refused(begins.encode_target("Ada"), &["end token", "tokenizer_config.json"]);
    begins.set_end_token("</s>").unwrap();
    for text in ["Ada Adam", "Ada Adam</s>"] {
        assert_eq!(begins.encode_target(text).unwrap(), [ids("Ada Adam"), vec![EOS]].concat(), "{text}");
    }
}

#[test]
fn other_tokenizer_files_are_named_with_the_command_that_converts_them() {
    for name in ["spiece.model", "tokenizer.model", "vocab.json"] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), "x").unwrap();
        let here = folder.path().to_str().unwrap();
        refused(
            Tokenizer::open(folder.path()),
            &["tokenizer.json", name, "AutoTokenizer", "python3 -c", here],
        );
    }
    let folder = tempfile::tempdir().unwrap();
    refused(Tokenizer::open(folder.path()), &["cannot read", "tokenizer.json"]);
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n").unwrap();
    refused(Tokenizer::open(folder.path()), &["tokenizer.json", "Git LFS", "lfs pull"]);
    let text = std::fs::read_to_string(world().join("tokenizer.json")).unwrap();
    std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    Tokenizer::open(folder.path()).unwrap();
}
