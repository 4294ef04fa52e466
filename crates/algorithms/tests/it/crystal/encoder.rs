//! What a tokenizer must be able to do, and what it makes of a question.

use ruminate_algorithms::Error;
use ruminate_algorithms::crystal::{Lengths, QuestionEncoder};
use ruminate_datasets::Compat;
use ruminate_models::{LlamaConfig, T5Config, Tokenizer};

use super::{encoder, questions, statement};
use crate::support::{tiny, tokenizer, world};

const LENGTHS: Lengths = Lengths { max_question_len: 8, max_knowledge_len: 4, max_answer_len: 2 };

fn refusal(tokenizer: Tokenizer, config: &T5Config, lengths: Lengths) -> Error {
    QuestionEncoder::new(tokenizer, &config.clone().into(), lengths, Compat::Reference).unwrap_err()
}

/// The world's tokenizer, which does not know some words.
fn without(words: &[&str]) -> Tokenizer {
    let text = std::fs::read_to_string(world("t5/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    words.iter().for_each(|&word| assert!(vocab.remove(word).is_some()));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json.to_string()).unwrap();
    Tokenizer::open(file.path()).unwrap()
}

#[test]
fn texts_are_cut_to_their_length_and_keep_their_end() {
    let encoder = QuestionEncoder::new(tokenizer(), &tiny(0.0).into(), LENGTHS, Compat::Reference).unwrap();
    let question = &questions()[0].question.question;
    let full = tokenizer().encode(question).unwrap();
    assert!(full.len() > 8);
    let cut = encoder.question(question).unwrap();
    assert_eq!(cut[..7], full[..7]);
    assert_eq!((cut.len(), cut[7]), (8, encoder.eos));
    assert_eq!(encoder.statement(&statement()).unwrap().len(), 4);
    let label = |letter: &str| vec![tokenizer().token_id(letter).unwrap(), encoder.eos];
    assert_eq!(encoder.label("A").unwrap(), label("A"));
    assert_eq!(encoder.labels(&["B".into(), "D".into()]).unwrap(), [label("B"), label("D")]);
}

/// A model without an encoder has a tokenizer that adds nothing to a text.
#[test]
fn prompts_end_open_where_there_is_no_encoder() {
    let text = std::fs::read_to_string(world("t5/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["post_processor"] = serde_json::Value::Null;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json.to_string()).unwrap();
    let mut plain = Tokenizer::open(file.path()).unwrap();
    let config = serde_json::json!({
        "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "eos_token_id": 1, "bos_token_id": null,
    });
    let config = LlamaConfig::from_json(config.as_object().unwrap().clone(), "config.json".as_ref()).unwrap();
    let new = |tokenizer: &Tokenizer, config: &LlamaConfig| {
        QuestionEncoder::new(tokenizer.clone(), &config.clone().into(), LENGTHS, Compat::Reference)
    };
    // It does not say with which token a text ends.
    assert!(new(&plain, &config).is_err());
    plain.set_end_token("</s>").unwrap();
    let encoder = new(&plain, &config).unwrap();

    let text = &questions()[0].question.question;
    let (question, knowledge) = (encoder.question(text).unwrap(), encoder.statement(&statement()).unwrap());
    assert_eq!((question.len(), question.last()), (8, Some(&encoder.eos)));
    assert_eq!((knowledge.len(), knowledge.last()), (4, Some(&encoder.eos)));
    assert_eq!(encoder.label("A").unwrap(), [plain.token_id("A").unwrap(), encoder.eos]);
    let prompts = [
        encoder.prompts.qk(&question),
        encoder.prompts.qa(&question),
        encoder.prompts.qka(&question, &knowledge),
    ];
    for prompt in &prompts {
        assert!(prompt.starts_with(&question[..7]) && !prompt.contains(&encoder.eos), "{prompt:?}");
    }
    assert_eq!(prompts[2].len(), prompts[0].len() + 3 + prompts[1].len() - 7);
    // Its end token is none of the model's.
    assert!(new(&plain, &LlamaConfig { eos_token_ids: vec![2], ..config }).is_err());
}

#[test]
fn statements_become_text_without_special_tokens() {
    let encoder = encoder();
    let ids = encoder.statement(&statement()).unwrap();
    assert_eq!(encoder.statement_text(&ids).unwrap(), statement());
    assert_eq!(encoder.statement_text(&[encoder.pad, encoder.eos]).unwrap(), "");
    // The model has spare embeddings for which there is no word.
    let spare = tiny(0.0).vocab_size - 1;
    assert!(spare >= tokenizer().vocab_size() as i64);
    let first = statement().split(' ').next().map(String::from);
    assert_eq!(Some(encoder.statement_text(&[ids[0], spare, encoder.eos]).unwrap()), first);
}

#[test]
fn letters_must_be_told_apart() {
    let encoder = |words: &[&str]| {
        QuestionEncoder::new(without(words), &tiny(0.0).into(), LENGTHS, Compat::Reference).unwrap()
    };
    // Two letters are both unknown; the choices' markers are words of their own.
    let same = encoder(&["C", "H"]);
    let error = same.check_letters(8).unwrap_err();
    assert!(matches!(&error, Error::Config { key, .. } if key == "tokenizer"), "{error}");
    assert!(error.to_string().contains("always score the same"), "{error}");
    // As many letters are checked as there are choices, and one unknown letter still differs from the others.
    same.check_letters(7).unwrap();
    encoder(&["H"]).check_letters(8).unwrap();
}

#[test]
fn lengths_need_room_for_a_token() {
    type Change = fn(&mut Lengths);
    let changes: [(&str, Change); 3] = [
        ("max_question_len", |l| l.max_question_len = 1),
        ("max_knowledge_len", |l| l.max_knowledge_len = 0),
        ("max_answer_len", |l| l.max_answer_len = 1),
    ];
    for (expected, change) in changes {
        let mut lengths = LENGTHS;
        change(&mut lengths);
        let error = refusal(tokenizer(), &tiny(0.0), lengths);
        assert!(matches!(&error, Error::Config { key, .. } if key == expected), "{expected}: {error}");
    }
}

#[test]
fn the_vocabulary_must_fit_the_model() {
    let largest = tokenizer().vocab_size() as i64 - 1;
    let config = |vocab_size| T5Config { vocab_size, ..tiny(0.0) };
    let error = refusal(tokenizer(), &config(largest), LENGTHS).to_string();
    assert!(
        error.contains(&format!("ids up to {largest}, but the model has {largest} embeddings")),
        "{error}"
    );
    QuestionEncoder::new(tokenizer(), &config(largest + 1).into(), LENGTHS, Compat::Reference).unwrap();
}
