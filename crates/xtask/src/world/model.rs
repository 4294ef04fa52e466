//! The tokenizer and the configuration of a model for the world.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{CITIES, LETTERS, PEOPLE, WEATHERS, WORDS, mario, words};

const SPECIAL: [&str; 3] = ["<pad>", "</s>", "<unk>"];

/// The tokens whose embeddings hold a verifier's last layer.
const VERIFIER: [&str; 3] = ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"];

/// All tokens, in the order of their ids. The separator is the two characters backslash and n.
pub(super) fn vocabulary() -> Vec<String> {
    let mut tokens: Vec<String> = SPECIAL.map(String::from).into();
    tokens.extend(["\\n", "Knowledge:", "Answer:"].map(String::from));
    tokens.extend(words(LETTERS).map(|letter| format!("({letter})")));
    let lists = [LETTERS, ". ?", WORDS, PEOPLE, CITIES, WEATHERS];
    tokens.extend(lists.into_iter().flat_map(words).map(String::from));
    // Later ones come last, so that the ids of the others stay.
    let later: Vec<String> =
        words(mario::WORDS).map(String::from).filter(|word| !tokens.contains(word)).collect();
    tokens.extend(later);
    tokens.extend(VERIFIER.map(String::from));
    tokens
}

/// A word-level tokenizer in the format of Hugging Face `tokenizers`; `marks` are tokens of their own wherever they stand.
pub(super) fn tokenizer(vocabulary: &[String], marks: &str) -> Value {
    let split =
        json!({ "type": "Split", "pattern": { "Regex": marks }, "behavior": "Isolated", "invert": false });
    let mut value = word_level(vocabulary, &[0, 1, 2], "<unk>", split);
    let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let eos = json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } });
    value["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [sequence("A"), eos],
        "pair": [sequence("A"), eos, sequence("B"), eos],
        "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } },
    });
    value
}

/// A word-level tokenizer without a post-processor. Texts are split at blanks and then by `split`.
pub(super) fn word_level(vocabulary: &[String], special: &[usize], unknown: &str, split: Value) -> Value {
    let ids: BTreeMap<&String, usize> =
        vocabulary.iter().enumerate().map(|(id, token)| (token, id)).collect();
    let added: Vec<Value> = special
        .iter()
        .map(|&id| {
            json!({
                "id": id, "content": vocabulary[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [{ "type": "WhitespaceSplit" }, split] },
        // For its clean-up only, which takes the blank before a full stop away: no token starts with the prefix.
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordLevel", "vocab": ids, "unk_token": unknown },
    })
}

pub(super) fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": false,
    })
}

/// A T5 v1.0 of about one million parameters.
pub(super) fn model_config(tokens: usize) -> Value {
    json!({
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": true,
        "vocab_size": tokens.next_multiple_of(32),
        "d_model": 128,
        "d_kv": 32,
        "d_ff": 512,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "relu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.0,
        "layer_norm_epsilon": 1e-6,
        "initializer_factor": 1.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    })
}
