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
    // Each answer is a target of its own, behind all that was said before; no token of a prompt is hidden from the model.
    assert_eq!(encoded.len(), 3);
    for (example, (answer, said)) in encoded.iter().zip([('4', "86"), ('9', "86147"), ('9', "86147")]) {
        let target = text(example);
        assert!(target.contains(answer) && !target.contains(['8', '7']), "{target}");
        assert!(!example.target.contains(&IGNORED));
        let prompt = tokenizer.decode(&example.prompt, true).unwrap();
        assert!(said.chars().all(|digit| prompt.contains(digit)), "{prompt}");
    }
    assert_eq!(encoded[1], encoded[2]);
    let error = encode_supervised(&tokenizer, None, &[all], 512).unwrap_err().to_string();
    assert!(error.contains("template"), "{error}");
    let silent = SupervisedExample::Dialogue { messages: messages[..1].to_vec() };
    let error = encode_supervised(&tokenizer, Some(&template), &[silent], 512).unwrap_err().to_string();
    assert!(error.contains("number 0"), "{error}");
}

#[test]
fn long_texts_are_cut_where_it_is_said() {
    let [(t5, rows), (llama, sums)] = families();
    let tokenizer_of = tokenizer;
    let tokenizer = tokenizer_of(t5);
    let (_, end) = tokenizer.end_token().unwrap();
    let cut = encode_supervised(&tokenizer, None, &rows, 2).unwrap();
    assert!(cut.iter().all(|row| row.prompt.len() <= 2 && row.prompt.last() == Some(&end)));
    assert!(cut.iter().all(|row| row.target.len() == 2 && row.target.last() == Some(&end)));
    // Of a single text, the target is at the end.
    let error = encode_supervised(&tokenizer_of(llama), None, &sums, 3).unwrap_err().to_string();
    assert!(error.contains("number 0") && error.contains("max_length"), "{error}");
}

#[test]
fn without_held_out_examples_the_last_checkpoint_is_the_best() {
    let (family, rows) = &families()[0];
    let tokenizer = tokenizer(family);
    let config = ModelConfig::open(&world(family).join("config.json")).unwrap();
    let model = Model::new(config, Kind::Float, Device::Cpu, 1).unwrap();
    let encoded = encode_supervised(&tokenizer, None, rows, 64).unwrap();
    let mut sft = Sft::new(model, SupervisedData::new(encoded, vec![], 2, 1).unwrap(), tokenizer);
    let runs = tempfile::tempdir().unwrap();
    let trainer = TrainerConfig { steps: 4, eval_every: 2, ..TrainerConfig::default() };
    let fitted = Trainer::new(trainer, runs.path()).unwrap().fit(&mut sft, &mut NullObserver).unwrap();
    assert_eq!(fitted.best.step, 4);
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
