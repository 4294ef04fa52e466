//! Rewards with a model behind them.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use ruminate_datasets::rows::{PromptRow, TextOrMessages};
use ruminate_models::{ScoreChoices, T5, T5Config, TokenId, Tokenizer, Vera, VeraHead};
use ruminate_rewards::configured::WeightedRewards;
use ruminate_rewards::{Reward, RewardError, Sample};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::{reward, rewards, told};

fn world(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/world").join(folder)
}

/// A scorer with random weights and the vocabulary of the bundled world.
fn write_vera(folder: &Path) {
    let text = std::fs::read_to_string(world("t5").join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    VeraHead::TOKENS.iter().for_each(|token| drop(vocab.remove(*token)));
    let next = vocab.values().filter_map(Value::as_i64).max().unwrap() + 1;
    for (id, token) in (next..).zip(VeraHead::TOKENS) {
        vocab.insert(token.into(), json!(id));
    }
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = T5Config {
        d_model: 16,
        d_kv: 8,
        d_ff: 24,
        num_heads: 2,
        is_encoder_decoder: false,
        vocab_size: next + 3,
        ..T5Config::open(&world("t5").join("config.json")).unwrap()
    };
    let t5 = T5::new(config, Kind::Float, Device::Cpu, 3).unwrap();
    tch::no_grad(|| {
        let _ = t5.parameters().get("shared.weight").unwrap().get(next + 2).fill_(2.0);
    });
    t5.save(folder).unwrap();
}

#[test]
fn plausibility_is_that_of_the_statement() {
    let folder = tempfile::tempdir().unwrap();
    write_vera(folder.path());
    let vera = Vera::load(folder.path(), Kind::Float, Device::Cpu).unwrap();
    let settings = |statement: &str| {
        rewards(json!({"plausibility": {"model": folder.path(), "device": "cpu", "statement": statement}}))
    };
    let text = "People in the city live in Corvale.";
    for (template, statement) in [
        ("{completion}", text.to_owned()),
        ("{prompt}: {completion} ({level})", format!("q: {text} (3)")),
        // Other braces are texts.
        ("{ {completion}", format!("{{ {text}")),
    ] {
        let expected = vera.score(&[statement]).unwrap()[0].calibrated as f32;
        assert_eq!(reward(&settings(template), None, text), Ok(expected), "{template}");
    }
    let error = reward(&settings("{context} {completion}"), None, text).unwrap_err();
    assert!(
        error.contains("sample 0: the row has no `context`") && error.contains("answer, level"),
        "{error}"
    );
    let error = reward(&settings("{answer} {completion}"), None, text).unwrap_err();
    assert!(error.contains("the row has no `answer`"), "{error}");
    if !tch::Cuda::is_available() {
        let elsewhere = rewards(json!({"plausibility": {"model": folder.path(), "device": "cuda:7"}}));
        let error = reward(&elsewhere, None, text).unwrap_err();
        assert!(error.contains("`cuda:7`, which this machine does not have"), "{error}");
    }
}

/// Prefers the second choice where a prompt says `Corvale` or `Gemma`; remembers what it was asked.
struct Policy {
    tokenizer: Tokenizer,
    asked: RefCell<Vec<Asked>>,
}

impl ScoreChoices for Policy {
    fn choice_log_probs(
        &self,
        prompts: &[Vec<TokenId>],
        choices: &[Vec<Vec<TokenId>>],
    ) -> ruminate_models::Result<Tensor> {
        let capacity = choices.iter().map(Vec::len).max().unwrap();
        let time = choices.iter().flatten().map(Vec::len).max().unwrap();
        let mut log_probs = vec![0f32; prompts.len() * capacity * time];
        for (i, (prompt, choices)) in prompts.iter().zip(choices).enumerate() {
            let text = self.tokenizer.decode(prompt, false)?;
            let decoded = choices.iter().map(|choice| self.tokenizer.decode(choice, false));
            for (j, choice) in choices.iter().enumerate() {
                let helped = text.contains("Corvale") || text.contains("Gemma");
                let score = if j == 1 && helped { 1.0 } else { 0.0 };
                let row = (i * capacity + j) * time;
                log_probs[row..row + choice.len()].fill((score - 5.0) / choice.len() as f32);
            }
            self.asked.borrow_mut().push((text, decoded.collect::<Result<_, _>>()?));
        }
        let shape = [prompts.len() as i64, capacity as i64, time as i64];
        Ok(Tensor::from_slice(&log_probs).view(shape))
    }

    fn first_token_logits(
        &self,
        _: &[Vec<TokenId>],
        _: &[Vec<TokenId>],
    ) -> ruminate_models::Result<Vec<Vec<f32>>> {
        unreachable!("only whole choices are scored")
    }
}

fn question(choices: Value, answer: Option<&str>) -> PromptRow {
    let fields = json!({ "choices": choices }).as_object().unwrap().clone();
    let prompt = TextOrMessages::Text("Where does Ada live?".into());
    PromptRow { prompt, answer: answer.map(Into::into), fields }
}

/// A prompt and its choices, as texts.
type Asked = (String, Vec<String>);

/// Judges one text for each row, and tells what the policy was asked.
fn feedback(
    folder: &str,
    settings: Value,
    rows: &[PromptRow],
    texts: &[&str],
) -> Result<(Vec<f32>, Vec<Asked>), String> {
    let tokenizer = Tokenizer::open(&world(folder)).unwrap();
    let policy = Policy { tokenizer: tokenizer.clone(), asked: RefCell::default() };
    let rewards = rewards(json!({ "self_feedback": settings }));
    assert!(rewards.asks_policy());
    let samples: Vec<_> =
        rows.iter().zip(texts).map(|(item, text)| Sample { task: "", item, response: &[1], text }).collect();
    let judged =
        rewards.with_tokenizer(tokenizer).rewards(&policy, &samples).map_err(|error| told(&error))?;
    Ok((judged.iter().map(|of| of.value).collect(), policy.asked.into_inner()))
}

#[test]
fn self_feedback_is_the_gain_of_the_answer() {
    // An encoder with a decoder, and a decoder alone.
    for (folder, prompt, labels, help, none) in [
        ("t5", "Where does Ada live?", ["(A)", "(B)", "(C)"], "Ada lives in Corvale.", "Nobody knows."),
        ("rise/llama", "How many apples are left ?", ["7", "8", "9"], "Gemma has 8 apples .", "Max ?"),
    ] {
        let asking = |choices: &[&str], answer: &str| PromptRow {
            prompt: TextOrMessages::Text(prompt.into()),
            ..question(json!(choices), Some(answer))
        };
        let rows =
            [asking(&labels[..2], labels[1]), asking(&labels[..2], labels[0]), asking(&labels, labels[1])];
        let (values, asked) = feedback(folder, json!({}), &rows, &[help, help, none]).unwrap();
        let half = 0.5 * 1f32.tanh();
        for (value, expected) in values.iter().zip([half, -half, 0.0]) {
            assert!((value - expected).abs() < 1e-6, "{folder}: {values:?} {asked:?}");
        }
        // The first two rows ask the same questions.
        assert_eq!(asked.len(), 4, "{folder}: {asked:?}");
        let decoded = |text: &str| {
            let tokenizer = Tokenizer::open(&world(folder)).unwrap();
            tokenizer.decode(&tokenizer.encode_plain(text).unwrap(), false).unwrap()
        };
        let with = decoded(&format!("{prompt}\n{help}\nAnswer:"));
        let (with, choices) = asked.iter().find(|(text, _)| text.contains(&with)).unwrap();
        assert_eq!(with.contains("</s>"), folder == "t5", "{with}");
        for (choice, label) in choices.iter().zip(labels) {
            let label = decoded(label);
            assert!(choice.trim().starts_with(&label) && choice.ends_with("</s>"), "{folder}: {choices:?}");
        }
        let gain = json!({"shape": 0, "with": "{completion}", "without": "?", "batch": 1});
        let (values, _) = feedback(folder, gain, &rows[..1], &[help]).unwrap();
        let expected = 1f32.exp() / (1.0 + 1f32.exp()) - 0.5;
        assert!((values[0] - expected).abs() < 1e-6, "{folder}: {values:?}");
    }
}

#[test]
fn what_self_feedback_lacks_is_named() {
    for (choices, answer, part) in [
        (json!(null), Some("(A)"), "the row has no list `choices`"),
        (json!(["(A)", 3]), Some("(A)"), "`choices` holds something that is no text"),
        (json!(["(A)", ""]), Some("(A)"), "`choices` holds something that is no text"),
        (json!(["(A)", "(B)"]), None, "the row has no `answer`"),
        (json!(["(A)", "(B)"]), Some("(C)"), "the answer \"(C)\" is none of the row's `choices`"),
    ] {
        let rows = [question(json!(["(A)", "(B)"]), Some("(B)")), question(choices, answer)];
        let error = feedback("t5", json!({}), &rows, &["x", "y"]).unwrap_err();
        assert!(error.contains("reward `r`, sample 1: ") && error.contains(part), "{error}");
    }
    let mut dialogue = question(json!(["(A)", "(B)"]), Some("(B)"));
    dialogue.prompt = TextOrMessages::Messages(vec![]);
    let error = feedback("t5", json!({}), &[dialogue], &["x"]).unwrap_err();
    assert!(error.contains("`prompt` is a dialogue"), "{error}");
}

#[test]
fn without_a_policy_self_feedback_is_an_error() {
    let rewards: WeightedRewards = rewards(json!("self_feedback"));
    let row = question(json!(["(A)", "(B)"]), Some("(B)"));
    let error: RewardError = rewards.judge(&[&row], &["x"]).unwrap_err();
    assert!(
        told(&error).contains("there is none here to ask: it works in training and its validation only"),
        "{}",
        told(&error)
    );
}
