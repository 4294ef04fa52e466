//! Plain supervised fine-tuning on prompts with completions and on dialogues.

use std::cell::Cell;
use std::rc::Rc;

use approx::assert_relative_eq;
use ruminate_algorithms::dpo::{
    Dpo, DpoConfig, PolicyEvaluation, PreferenceLoss, Reference, ShuffledPairs, WeightedLoss,
};
use ruminate_algorithms::ppo::Prompt;
use ruminate_algorithms::rwr::{Rwr, WeightedExample};
use ruminate_algorithms::{
    Algorithm, Evaluation, NullObserver, RewardEvaluation, RewardEvaluationConfig, Sft, SupervisedData,
    Trainer, TrainerConfig, encode_supervised,
};
use ruminate_datasets::SupervisedExample;
use ruminate_datasets::chat::{ChatTemplate, NamedTemplate};
use ruminate_datasets::teacher::Message;
use ruminate_models::{Example, Generate, GenerationConfig, IGNORED, Model, ModelConfig, T5, Tokenizer};
use ruminate_rewards::{Reward, RewardError, Rewarded, Sample};
use tch::{Device, Kind};

use crate::support::{Recorder, alone, examples, model, short, world};

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

/// A reward: the number of the prompt's item and the share of even tokens, less `fall` with each call.
struct Even {
    fall: f32,
    calls: Rc<Cell<u32>>,
}

impl<P> Reward<P, f32> for Even {
    fn rewards(&self, _: &P, samples: &[Sample<'_, f32>]) -> std::result::Result<Vec<Rewarded>, RewardError> {
        let calls = self.calls.replace(self.calls.get() + 1) as f32;
        let judge = |sample: &Sample<'_, f32>| {
            let even = even_share(sample.response);
            Rewarded { value: sample.item + even - self.fall * calls, parts: vec![("even".into(), even)] }
        };
        Ok(samples.iter().map(judge).collect())
    }
}

fn even_share(response: &[i64]) -> f32 {
    response.iter().filter(|&&id| id % 2 == 0).count() as f32 / response.len() as f32
}

fn prompts(count: i64) -> Vec<Prompt<f32>> {
    let prompt = |(i, example): (usize, Example)| Prompt {
        ids: example.prompt,
        text: format!("prompt {i}"),
        task: String::new(),
        item: i as f32,
    };
    examples(count).into_iter().enumerate().map(prompt).collect()
}

/// Judges eleven prompts, four at a time.
pub(crate) fn judged(fall: f32) -> RewardEvaluation<f32, impl Reward<T5, f32>> {
    let config =
        RewardEvaluationConfig { max_new_tokens: 5, batch_size: 4, samples: 3, ..Default::default() };
    let reward = Even { fall, calls: Rc::default() };
    RewardEvaluation::new(prompts(11), reward, crate::support::tokenizer(), config).unwrap()
}

/// Fine-tuning that is validated by a reward alone.
pub(crate) fn rewarded(fall: f32) -> SupervisedData<T5> {
    SupervisedData::new(examples(8), vec![], 2, 1).unwrap().evaluated_by(judged(fall))
}

fn metric(found: &Evaluation, name: &str) -> f64 {
    found.metrics.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{:?}", found.metrics)).1
}

#[test]
fn a_reward_judges_greedy_responses() {
    let _alone = alone();
    let policy = model(0.0, 1);
    let mut seen = Recorder::default();
    let found = PolicyEvaluation::evaluate(&mut judged(0.0), &policy, 7, &mut seen).unwrap();
    let generation = GenerationConfig { max_new_tokens: 5, ..GenerationConfig::default() };
    let even: Vec<f64> = prompts(11)
        .into_iter()
        .map(|prompt| {
            f64::from(even_share(&policy.generate(&[prompt.ids], &generation, &[1]).unwrap()[0][0].ids))
        })
        .collect();
    let even = even.iter().sum::<f64>() / 11.0;
    // The mean of 0 to 10 is 5.
    assert_relative_eq!(metric(&found, "eval/reward"), 5.0 + even, max_relative = 1e-6);
    assert_relative_eq!(metric(&found, "eval/reward/even"), even, epsilon = 1e-6);
    assert_eq!((found.metrics.len(), found.score), (2, metric(&found, "eval/reward")));
    assert_eq!(seen.means.len(), 2);
    for (name, value) in &found.metrics {
        assert_relative_eq!(seen.means[&(7, name.clone())], *value, max_relative = 1e-9);
    }
    assert_eq!(seen.events, ["validation 4 of 11", "validation 8 of 11", "validation 11 of 11", "samples 7"]);
}

#[test]
fn the_reward_chooses_the_best_checkpoint() {
    let _alone = alone();
    // A reward that falls and one that rises with each validation.
    for (fall, best) in [(1.0, 0), (-1.0, 4)] {
        let mut sft = Sft::new(model(0.0, 1), rewarded(fall), crate::support::tokenizer());
        let runs = tempfile::tempdir().unwrap();
        let trainer = TrainerConfig { eval_every: 2, ..short(4) };
        let fitted = Trainer::new(trainer, runs.path()).unwrap().fit(&mut sft, &mut NullObserver).unwrap();
        assert_eq!(fitted.best.step, best);
    }
}

#[test]
fn all_that_trains_on_something_else_takes_a_reward() {
    let _alone = alone();
    let tokenizer = crate::support::tokenizer;
    let orpo = WeightedLoss { loss: PreferenceLoss::Orpo, weight: 1.0 };
    let dpo = DpoConfig { terms: vec![orpo], ..DpoConfig::default() };
    let source = ShuffledPairs::new(crate::dpo::pairs(7), 2, 3).unwrap();
    let mut dpo = Dpo::new(dpo, model(0.0, 1), Reference::None, source, crate::dpo::pairs(5), tokenizer())
        .unwrap()
        .evaluated_by(judged(0.0));
    let weighted: Vec<_> =
        examples(6).into_iter().map(|example| WeightedExample::new(example, 1.0)).collect();
    let mut rwr = Rwr::new(model(0.0, 1), weighted.clone(), weighted, 2, 1, tokenizer())
        .unwrap()
        .evaluated_by(judged(0.0));
    let held_out = SupervisedData::new(examples(8), examples(3), 2, 1).unwrap().evaluated_by(judged(0.0));
    let mut sft = Sft::new(model(0.0, 1), held_out, tokenizer());
    let evaluations = [
        dpo.evaluate(0, &mut NullObserver).unwrap(),
        rwr.evaluate(0, &mut NullObserver).unwrap(),
        sft.evaluate(0, &mut NullObserver).unwrap(),
    ];
    for found in evaluations {
        // Beside the loss of what is held out.
        assert!(metric(&found, "eval/loss").is_finite());
        assert_eq!(found.score, metric(&found, "eval/reward"));
        assert_eq!(found.score, metric(&evaluation(), "eval/reward"));
    }
}

fn evaluation() -> Evaluation {
    PolicyEvaluation::evaluate(&mut judged(0.0), &model(0.0, 1), 0, &mut NullObserver).unwrap()
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let refused = |prompts: Vec<Prompt<f32>>, config: RewardEvaluationConfig| {
        let reward = Even { fall: 0.0, calls: Rc::default() };
        let found = RewardEvaluation::new(prompts, reward, crate::support::tokenizer(), config);
        found.unwrap_err().to_string()
    };
    let good = RewardEvaluationConfig::default;
    for (key, prompts, config) in [
        ("`prompts`", vec![], good()),
        ("`batch_size`", prompts(2), RewardEvaluationConfig { batch_size: 0, ..good() }),
        ("`max_new_tokens`", prompts(2), RewardEvaluationConfig { max_new_tokens: 0, ..good() }),
    ] {
        let error = refused(prompts, config);
        assert!(error.contains(key), "{error}");
    }
}
