//! Plain supervised fine-tuning on prompts with completions and on dialogues.

use ruminate_algorithms::{
    Algorithm, NullObserver, Sft, SupervisedData, Trainer, TrainerConfig, encode_supervised,
};
use ruminate_datasets::SupervisedExample;
use ruminate_datasets::chat::{ChatTemplate, NamedTemplate};
use ruminate_datasets::teacher::Message;
use ruminate_models::{Example, IGNORED, Model, ModelConfig, Tokenizer};
use tch::{Device, Kind};

use crate::support::world;

fn completion(prompt: &str, completion: &str) -> SupervisedExample {
    SupervisedExample::Completion { prompt: prompt.into(), completion: completion.into() }
}

/// The folders of the bundled models of both families, and rows that their vocabularies hold.
fn families() -> [(&'static str, [SupervisedExample; 4]); 2] {
    [
        ("t5", [("Ada", "Ben ."), ("Ben", "Cora ."), ("Cora", "Ada ."), ("Ada Ben", "Cora .")]),
        ("rise/llama", [("8 + 6 = ", "14 ."), ("7 + 2 = ", "9 ."), ("5 - 1 = ", "4 ."), ("3 + 3 = ", "6 .")]),
    ]
    .map(|(folder, rows)| (folder, rows.map(|(prompt, text)| completion(prompt, text))))
}

fn tokenizer(folder: &str) -> Tokenizer {
    Tokenizer::open(&world(folder)).unwrap()
}

#[test]
fn the_loss_is_on_completions_with_their_end() {
    for (family, rows) in families() {
        let tokenizer = tokenizer(family);
        let (_, end) = tokenizer.end_token().unwrap();
        for (row, encoded) in rows.iter().zip(encode_supervised(&tokenizer, None, &rows, 64).unwrap()) {
            let SupervisedExample::Completion { completion, .. } = row else { unreachable!() };
            assert_eq!(encoded.target.last(), Some(&end), "{family}");
            assert!(!encoded.target.contains(&IGNORED), "{family}");
            assert_eq!(encoded.prompt.contains(&end), family == "t5", "{family}");
            let digits = |text: &str| text.replace([' ', '.'], "");
            let written = tokenizer.decode(&encoded.target, true).unwrap();
            assert_eq!(digits(&written), digits(completion), "{family}");
        }
    }
}

#[test]
fn only_the_assistant_is_trained_in_dialogues() {
    let tokenizer = tokenizer("rise/llama");
    let template = ChatTemplate::Named(NamedTemplate::Llama2);
    let messages = [("user", "8 + 6"), ("assistant", "14"), ("user", "7"), ("assistant", "9")]
        .map(|(role, text)| Message::new(role, text))
        .to_vec();
    let text = |example: &Example| {
        let ids: Vec<_> = example.target.iter().copied().filter(|&id| id != IGNORED).collect();
        tokenizer.decode(&ids, true).unwrap()
    };
    let all = SupervisedExample::Dialogue { messages: messages.clone() };
    let last =
        SupervisedExample::Answer { prompt: messages[..3].to_vec(), completion: messages[3..].to_vec() };
    let encoded = encode_supervised(&tokenizer, Some(&template), &[all.clone(), last], 512).unwrap();
    let (both, one) = (text(&encoded[0]), text(&encoded[1]));
    assert!(both.contains('4') && both.contains('9') && !both.contains(['8', '7']), "{both}");
    assert!(one.contains('9') && !one.contains(['4', '8', '7']), "{one}");
    let error = encode_supervised(&tokenizer, None, &[all], 512).unwrap_err().to_string();
    assert!(error.contains("template"), "{error}");
    let silent = SupervisedExample::Dialogue { messages: messages[..1].to_vec() };
    let error = encode_supervised(&tokenizer, Some(&template), &[silent], 512).unwrap_err().to_string();
    assert!(error.contains("number 0"), "{error}");
}

#[test]
fn a_model_of_either_family_learns_a_file() {
    for (family, rows) in families() {
        let tokenizer = tokenizer(family);
        let mut config = ModelConfig::open(&world(family).join("config.json")).unwrap();
        config.set_dropout(0.0);
        let model = Model::new(config, Kind::Float, Device::Cpu, 1).unwrap();
        let encoded = encode_supervised(&tokenizer, None, &rows, 64).unwrap();
        let data = SupervisedData::new(encoded.clone(), encoded, 4, 1).unwrap();
        let mut sft = Sft::new(model, data, tokenizer);
        let before = sft.evaluate(0, &mut NullObserver).unwrap();
        let runs = tempfile::tempdir().unwrap();
        let trainer = TrainerConfig { steps: 40, lr: 2e-3, eval_every: 20, ..TrainerConfig::default() };
        let fitted = Trainer::new(trainer, runs.path()).unwrap().fit(&mut sft, &mut NullObserver).unwrap();
        let after = sft.evaluate(40, &mut NullObserver).unwrap();
        assert!(after.score > before.score / 4.0, "{family}: {} {}", before.score, after.score);
        assert_eq!(after.metrics.len(), 2, "{family}");
        let back = Model::load(&fitted.best.path, Kind::Float, Device::Cpu).unwrap();
        assert!(back.tokenizer().is_some(), "{family}");
    }
}
