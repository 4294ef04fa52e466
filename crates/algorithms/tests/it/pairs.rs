//! Preference pairs for models without an encoder: the token ids of TRL 1.16, which `tests/pairs/make.py` wrote.

use std::path::{Path, PathBuf};

use ruminate_algorithms::dpo::{
    Dpo, DpoConfig, EncodedCounts, EncodedPairs, PairLengths, PromptCut, Reference as Given, ShuffledPairs,
    encode_dialogues, encode_pairs,
};
use ruminate_algorithms::{Algorithm, NullObserver, Trainer, TrainerConfig};
use ruminate_datasets::chat::{ChatTemplate, Message};
use ruminate_datasets::{DialoguePreference, PreferenceExample};
use ruminate_models::checkpoint::read_json;
use ruminate_models::{Llama, LlamaConfig, TokenId, Tokenizer};
use serde::Deserialize;
use tch::{Device, Kind};

#[derive(Deserialize)]
struct Reference {
    texts: Vec<Case<String>>,
    dialogues: Vec<Case<Vec<Message>>>,
}

#[derive(Deserialize)]
struct Case<T> {
    prompt: T,
    chosen: T,
    rejected: T,
    prompt_ids: Vec<TokenId>,
    chosen_ids: Vec<TokenId>,
    rejected_ids: Vec<TokenId>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pairs").join(name)
}

fn opened(name: &str) -> (Tokenizer, Reference) {
    let folder = folder(name);
    (Tokenizer::open(&folder).unwrap(), read_json(&folder.join("reference.json")).unwrap())
}

fn texts(reference: &Reference) -> Vec<PreferenceExample> {
    let example = |case: &Case<String>| PreferenceExample::new(&case.prompt, &case.chosen, &case.rejected);
    reference.texts.iter().map(example).collect()
}

#[test]
fn texts_have_the_token_ids_of_trl() {
    for name in ["byte_level", "metaspace"] {
        let (tokenizer, reference) = opened(name);
        let EncodedPairs { pairs, counts } =
            encode_pairs(&tokenizer, &texts(&reference), PairLengths::default()).unwrap();
        assert_eq!(pairs.len(), reference.texts.len());
        for (pair, case) in pairs.iter().zip(&reference.texts) {
            assert_eq!(pair.prompt, case.prompt_ids, "{name}: {}", case.prompt);
            assert_eq!(pair.chosen, case.chosen_ids, "{name}: {}", case.prompt);
            assert_eq!(pair.rejected, case.rejected_ids, "{name}: {}", case.prompt);
        }
        let boundaries = reference
            .texts
            .iter()
            .filter(|case| tokenizer.encode(&case.prompt).unwrap().len() > case.prompt_ids.len());
        assert_eq!(counts, EncodedCounts { boundaries: boundaries.count(), ..EncodedCounts::default() });
        assert!(counts.boundaries > 0, "{name}");
    }
}

#[test]
fn dialogues_have_the_token_ids_of_trl() {
    for name in ["byte_level", "metaspace"] {
        let (tokenizer, reference) = opened(name);
        let template = ChatTemplate::open(&folder(name)).unwrap();
        let example = |case: &Case<Vec<Message>>| {
            DialoguePreference::new(case.prompt.clone(), case.chosen.clone(), case.rejected.clone())
        };
        let examples: Vec<_> = reference.dialogues.iter().map(example).collect();
        let pairs = encode_dialogues(&tokenizer, &template, &examples, PairLengths::default()).unwrap().pairs;
        assert_eq!(pairs.len(), examples.len());
        for (pair, case) in pairs.iter().zip(&reference.dialogues) {
            assert_eq!(pair.prompt, case.prompt_ids, "{name}: {:?}", case.prompt);
            assert_eq!(pair.chosen, case.chosen_ids, "{name}: {:?}", case.prompt);
            assert_eq!(pair.rejected, case.rejected_ids, "{name}: {:?}", case.prompt);
        }
    }
}

#[test]
fn what_is_cut_keeps_the_begin_token() {
    let (tokenizer, reference) = opened("byte_level");
    let example = &texts(&reference)[..1];
    let whole = encode_pairs(&tokenizer, example, PairLengths::default()).unwrap().pairs;
    let prompt = &whole[0].prompt;
    for (cut, expected) in [
        (PromptCut::KeepStart, prompt[..4].to_vec()),
        (PromptCut::KeepEnd, [&prompt[..1], &prompt[prompt.len() - 3..]].concat()),
        (PromptCut::KeepBoth { tail: 2 }, [&prompt[..2], &prompt[prompt.len() - 2..]].concat()),
    ] {
        let lengths = PairLengths { max_prompt: 4, max_target: 3, cut };
        let EncodedPairs { pairs, counts } = encode_pairs(&tokenizer, example, lengths).unwrap();
        assert_eq!(pairs[0].prompt, expected, "{cut:?}");
        assert_eq!(pairs[0].chosen, whole[0].chosen[..3], "the end is cut off, as TRL does it");
        assert_eq!((counts.prompts_cut, counts.completions_cut), (1, 1));
    }
    for lengths in [
        PairLengths { max_prompt: 0, ..PairLengths::default() },
        PairLengths { max_target: 0, ..PairLengths::default() },
    ] {
        assert!(encode_pairs(&tokenizer, example, lengths).unwrap_err().to_string().contains("is 0"));
    }
}

#[test]
fn a_tokenizer_without_an_end_token_is_refused() {
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(folder("byte_level").join("tokenizer.json"), other.path().join("tokenizer.json")).unwrap();
    let mut tokenizer = Tokenizer::open(other.path()).unwrap();
    let examples = [PreferenceExample::new("It is", " rainy.", " sunny.")];
    let refused = encode_pairs(&tokenizer, &examples, PairLengths::default()).unwrap_err().to_string();
    assert!(refused.contains("eos_token") && refused.contains("set_end_token"), "{refused}");
    tokenizer.set_end_token("<|end_of_text|>").unwrap();
    let end = tokenizer.token_id("<|end_of_text|>");
    let pairs = encode_pairs(&tokenizer, &examples, PairLengths::default()).unwrap().pairs;
    assert_eq!(pairs[0].chosen.last().copied(), end);
}

#[test]
fn the_guide_s_program_trains_a_llama() {
    let _alone = crate::support::alone();
    let (tokenizer, reference) = opened("byte_level");
    let keys = serde_json::json!({
        "vocab_size": tokenizer.vocab_size(), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "eos_token_id": [1, 4],
    });
    let config = LlamaConfig::from_json(keys.as_object().unwrap().clone(), Path::new("c")).unwrap();
    let model = || Llama::new(config.clone(), Kind::Float, Device::Cpu, 1).unwrap();
    let train = encode_pairs(&tokenizer, &texts(&reference)[..3], PairLengths::default()).unwrap().pairs;
    let source = ShuffledPairs::new(train.clone(), 3, 1).unwrap();
    let given = Given::Model(model());
    let mut dpo = Dpo::new(DpoConfig::default(), model(), given, source, train, tokenizer).unwrap();
    let run = tempfile::tempdir().unwrap();
    let steps = TrainerConfig { eval_every: 10, ..crate::support::short(20) };
    Trainer::new(steps, run.path()).unwrap().fit(&mut dpo, &mut NullObserver).unwrap();
    let margin = dpo
        .evaluate(20, &mut NullObserver)
        .unwrap()
        .metrics
        .into_iter()
        .find(|(name, _)| name == "eval/rewards/margins");
    assert!(margin.as_ref().is_some_and(|(_, margin)| *margin > 0.05), "{margin:?}");
}
