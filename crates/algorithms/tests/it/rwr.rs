//! Reward-weighted regression of tiny models.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use approx::{assert_abs_diff_eq, assert_relative_eq};
use proptest::prelude::*;
use ruminate_algorithms::rwr::{
    EncodedExamples, LocalModel, Rwr, RwrConfig, RwrData, TooLong, WeightedExample, Weighting, encode_texts,
    trainer_config,
};
use ruminate_algorithms::{Algorithm, Ending, NullObserver, Result, Trainer, TrainerConfig};
use ruminate_datasets::chat::{ChatTemplate, Message, NamedTemplate};
use ruminate_datasets::environments::{Compat, Gsm8k, Problem, QuestionOnly};
use ruminate_datasets::rise::{Answerer, Ask, MultiTurn, RolloutConfig, TrainingText};
use ruminate_models::{
    Example, Generate, Generated, GenerationConfig, IGNORED, Llama, LlamaConfig, Parameters, Policy,
    Sampling, ScoreOptions, Strategy, T5, TokenId, TokenScores, Tokenizer,
};
use tch::{Device, Kind};

use crate::support::{Recorder, alone, examples, model, short, tokenizer};

/// Examples of different lengths and weights, some with a gap in their target.
fn weighted(count: i64) -> Vec<WeightedExample> {
    let weights = [12.18f32, 1.0, 0.08];
    let example = |(i, mut example): (usize, Example)| {
        if i % 2 == 1 && example.target.len() > 2 {
            example.target[1] = IGNORED;
        }
        let mut weighted = WeightedExample::new(example, weights[i % 3]);
        if i % 4 == 2 && weighted.trained.len() > 1 {
            weighted.trained[0] = false;
        }
        weighted
    };
    examples(count).into_iter().enumerate().map(example).collect()
}

fn rwr(seed: i64, held_out: Vec<WeightedExample>) -> Rwr<T5> {
    Rwr::new(model(0.0, seed), weighted(7), held_out, 2, 3, tokenizer()).unwrap()
}

/// RWR on `batch_size` examples of one process.
pub(crate) fn of_ranks(policy: T5, batch_size: usize) -> Result<Rwr<T5>> {
    Rwr::new(policy, weighted(24), weighted(37), batch_size, 3, tokenizer())
}

/// Weight times mean negative log-likelihood of one example alone.
fn naive(model: &T5, WeightedExample { example, trained, weight }: &WeightedExample) -> f64 {
    let scores = model.score(std::slice::from_ref(example), ScoreOptions::default()).unwrap();
    let log_probs: Vec<Vec<f64>> = Vec::try_from(scores.log_probs).unwrap();
    let labels = example.target.iter().zip(trained);
    let counted: Vec<f64> = { labels.zip(&log_probs[0]) }
        .filter(|&((&id, &trained), _)| trained && id != IGNORED)
        .map(|(_, &log_prob)| log_prob)
        .collect();
    -f64::from(*weight) * counted.iter().sum::<f64>() / counted.len() as f64
}

#[test]
fn every_example_counts_alike_however_batches_are_cut() {
    let _alone = alone();
    let mut rwr = rwr(1, vec![]);
    let batch = weighted(6);
    let want: f64 = batch.iter().map(|example| naive(rwr.policy(), example)).sum();
    for size in [1, 2, 6] {
        let mut sum = 0.0;
        let mut count = 0;
        for part in batch.chunks(size) {
            count += rwr.terms(&part.to_vec())[0].count;
            sum += rwr.losses(&part.to_vec()).unwrap().sums[0].double_value(&[]);
        }
        assert_eq!(count, 6);
        assert_relative_eq!(sum, want, epsilon = 0.0, max_relative = 1e-4);
    }
    let metrics = rwr.metrics().unwrap();
    let mean: f64 = batch.iter().map(|example| f64::from(example.weight)).sum::<f64>() / 6.0;
    assert!(metrics.iter().any(|(name, value)| name == "weight" && (value - mean).abs() < 1e-6));
    assert!(rwr.metrics().unwrap().is_empty(), "they were taken");
}

#[test]
fn of_two_answers_the_heavier_one_is_learnt() {
    let _alone = alone();
    let prompt = examples(1)[0].prompt.clone();
    let answer = |first, weight| {
        WeightedExample::new(Example { prompt: prompt.clone(), target: vec![first, 1] }, weight)
    };
    for (heavy, light) in [(60, 90), (90, 60)] {
        let data = vec![answer(heavy, 12.18), answer(light, 1.0)];
        let mut rwr = Rwr::new(model(0.0, 1), data.clone(), data, 2, 1, tokenizer()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::default();
        Trainer::new(short(60), folder.path()).unwrap().fit(&mut rwr, &mut recorder).unwrap();
        let of = |first| -naive(rwr.policy(), &answer(first, 1.0));
        // In the limit the odds of the first token are those of the weights.
        assert!(of(heavy) > of(light) + 0.5, "{} {}", of(heavy), of(light));
        let losses = recorder.series("train/rwr_loss");
        assert!(losses.last().unwrap() < &(0.7 * losses[0]), "{losses:?}");
    }
}

fn process(folder: &Path, seed: i64, observer: &mut Recorder) -> Ending {
    let trainer = Trainer::new(short(6), folder).unwrap();
    trainer.fit(&mut rwr(seed, weighted(3)), observer).unwrap().ending
}

#[test]
fn stops_leave_no_trace() {
    let _alone = alone();
    let last = |folder: &Path| {
        ["model.safetensors", "trainer.safetensors", "state.json"]
            .map(|file| fs::read(folder.join("last").join(file)).unwrap())
    };
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    assert_eq!(process(whole.path(), 1, &mut Recorder::default()), Ending::Finished);
    assert_eq!(process(parts.path(), 1, &mut Recorder::stopping_after(3)), Ending::Stopped);
    assert_eq!(process(parts.path(), 99, &mut Recorder::default()), Ending::Finished);
    assert!(last(whole.path()) == last(parts.path()), "parameters, optimizer or state differ");
}

#[test]
fn problems_are_held_out_as_a_whole_and_steps_follow_from_the_rest() {
    let tokenizer = tokenizer();
    let text = |i: usize| TrainingText {
        text: "Ada Adam Agnes Alan".into(),
        spans: std::iter::once(9..19).collect(),
        weight: (i % 3 + 1) as f64,
    };
    let texts: Vec<TrainingText> = (0..30).map(text).collect();
    let problems: Vec<usize> = (0..30).map(|i| i / 3).collect();
    let config = RwrConfig { held_out: 0.25, epochs: 1.5, ..RwrConfig::default() };
    let data = RwrData::new(&tokenizer, &texts, &problems, &config).unwrap();
    assert_eq!((data.examples.len(), data.held_out.len()), (24, 6));
    // Each problem has one example of each weight.
    let weights = |examples: &[WeightedExample]| examples.iter().map(|e| f64::from(e.weight)).sum::<f64>();
    assert_eq!((weights(&data.examples), weights(&data.held_out)), (48.0, 12.0));
    assert_eq!((data.counts.examples, data.counts.held_out, data.counts.mean_weight), (24, 6, 2.0));
    assert_eq!(data, RwrData::new(&tokenizer, &texts, &problems, &config).unwrap());
    // An epoch of 24 examples has 3 updates of 7 and a rest, which is left out; 4 % of the steps of 1.5 epochs are one.
    let base = TrainerConfig { accumulate: 7, ..RwrConfig::trainer() };
    let trainer = data.trainer(&config, &base, 1);
    assert_eq!((trainer.steps, trainer.warmup_steps), (5, 1));
    let kept = RwrConfig { epochs: 0.0, warmup_ratio: 0.0, ..config.clone() };
    // Two processes make an update of 14.
    assert_eq!(data.trainer(&config, &base, 2).steps, 2);
    // 1000 examples on 4 devices, 16 micro-batches each, 10 epochs: as transformers' trainer counts. Without a whole update, one.
    let thousand = RwrData { examples: vec![data.examples[0].clone(); 1000], ..data.clone() };
    let steps = |data: &RwrData, batch_size, accumulate, processes| {
        let config = RwrConfig { epochs: 10.0, batch_size, ..config.clone() };
        data.trainer(&config, &TrainerConfig { accumulate, ..base.clone() }, processes).steps
    };
    assert_eq!((steps(&thousand, 1, 16, 4), steps(&thousand, 1, 64, 1)), (150, 150));
    assert_eq!((steps(&thousand, 3, 2, 1), steps(&data, 1, 64, 1)), (1670, 10));
    assert_eq!(data.trainer(&kept, &base, 2), base);
    let pass = data.passes(&config, &trainer)[0];
    assert_eq!((pass.times, pass.rows, pass.source[0] + pass.target[1]), (7.0, 1, 4.0));

    let refused =
        |config: RwrConfig| RwrData::new(&tokenizer, &texts, &problems, &config).unwrap_err().to_string();
    assert!(refused(RwrConfig { held_out: 1.0, ..config.clone() }).contains("held_out"));
    assert!(refused(RwrConfig { batch_size: 25, ..config.clone() }).contains("24 examples"));
    assert!(refused(RwrConfig { max_length: 2, ..config }).contains("30 without a trained token"));
    assert!(RwrData::new(&tokenizer, &texts, &problems[1..], &RwrConfig::default()).is_err());
}

#[test]
fn texts_become_examples_or_are_counted() {
    let tokenizer = tokenizer();
    // Words of the world, each a token; the answer is the last two.
    let text = |spans: &[(usize, usize)]| TrainingText {
        text: "Ada Adam Agnes Alan".into(),
        spans: spans.iter().map(|&(start, end)| start..end).collect(),
        weight: 2.0,
    };
    let texts = [&[(9, 19)][..], &[], &[(0, 3)], &[(4, 8)], &[(4, 6), (15, 16)]].map(text);
    let ids = tokenizer.encode_plain("Ada Adam Agnes Alan").unwrap();
    let encode = |max_length, too_long| encode_texts(&tokenizer, &texts, max_length, too_long).unwrap();
    let EncodedExamples { examples, texts: kept, cut, too_long, untrained } = encode(10, TooLong::Cut);
    assert_eq!((kept, cut, too_long, untrained), (vec![0, 3, 4], 0, 0, 2));
    assert_eq!(examples[0].example, Example { prompt: ids[..2].to_vec(), target: ids[2..].to_vec() });
    assert_eq!(examples[1].example, Example { prompt: ids[..1].to_vec(), target: ids[1..2].to_vec() });
    assert_eq!(examples[2].example.target, ids[1..]);
    assert_eq!(examples[2].trained, [true, false, true]);
    assert!(examples.iter().all(|example| example.weight == 2.0));
    let cut = encode(3, TooLong::Cut);
    assert_eq!((cut.cut, cut.untrained, cut.examples[0].example.target.len()), (5, 2, 1));
    let dropped = encode(3, TooLong::Drop);
    assert_eq!((dropped.too_long, dropped.examples.len()), (5, 0));
    assert!(encode_texts(&tokenizer, &texts, 1, TooLong::Cut).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    /// The loss of a text with several spans is that of its trained tokens in the whole text: each sees everything before it.
    #[test]
    fn spans_are_scored_as_in_the_whole_text(
        words in prop::collection::vec(0usize..4, 2..12),
        marks in prop::collection::vec(any::<bool>(), 12),
    ) {
        let _alone = alone();
        let tokenizer = tokenizer();
        // Words of the world, each a token.
        let words: Vec<&str> = words.into_iter().map(|i| ["Ada", "Adam", "Agnes", "Alan"][i]).collect();
        let text = words.join(" ");
        let mut at = 0;
        let spans = words.iter().map(|word| {
            at += word.len() + 1;
            at - 1 - word.len()..at - 1
        });
        let spans: Vec<_> = spans.zip(&marks).filter(|(_, trained)| **trained).map(|(span, _)| span).collect();
        let ids = tokenizer.encode_plain(&text).unwrap();
        prop_assert_eq!(ids.len(), words.len());
        let texts = [TrainingText { text, spans, weight: 2.0 }];
        let examples = encode_texts(&tokenizer, &texts, 50, TooLong::Cut).unwrap().examples;
        // The first token is predicted from nothing.
        let trained: Vec<bool> = marks[1..ids.len()].to_vec();
        prop_assert_eq!(examples.len(), usize::from(trained.contains(&true)));
        if examples.is_empty() {
            return Ok(());
        }
        let keys = serde_json::json!({
            "model_type": "llama", "vocab_size": tokenizer.vocab_size(), "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3,
        });
        let config = LlamaConfig::from_json(keys.as_object().unwrap().clone(), Path::new("config.json")).unwrap();
        let llama = Llama::new(config, Kind::Float, Device::Cpu, 1).unwrap();
        let whole = [Example { prompt: ids[..1].to_vec(), target: ids[1..].to_vec() }];
        let whole = llama.score(&whole, ScoreOptions::default()).unwrap().log_probs;
        let whole: Vec<Vec<f64>> = Vec::try_from(whole).unwrap();
        let spans: Vec<f64> =
            whole[0].iter().zip(&trained).filter(|(_, trained)| **trained).map(|(x, _)| -x).collect();
        let mut rwr = Rwr::new(llama, examples.clone(), examples, 1, 1, tokenizer).unwrap();
        let metrics = rwr.evaluate(1, &mut NullObserver).unwrap().metrics;
        let nll = metrics.iter().find(|(name, _)| name == "eval/nll").unwrap().1;
        assert_relative_eq!(nll, spans.iter().sum::<f64>() / spans.len() as f64, max_relative = 1e-5);
    }
}

#[test]
fn weights_can_be_centred_or_normalised() {
    let weights = [0.4f64.exp(), 2.0, 8.0, 0.1];
    let problems = ["a", "b", "b", "c"];
    let apply = |weighting: Weighting| weighting.apply(&weights, &problems).unwrap();
    assert_eq!(apply(Weighting::Exp), weights);
    assert_eq!(apply(Weighting::None), [1.0; 4]);
    let normalised = apply(Weighting::Normalized);
    assert_abs_diff_eq!(normalised.iter().sum::<f64>(), 4.0, epsilon = 1e-12);
    assert_abs_diff_eq!(normalised[2] / normalised[1], 4.0, epsilon = 1e-12);
    let centred = apply(Weighting::ExpMinusPromptMean);
    for (got, want) in centred.iter().zip([1.0, 0.5, 2.0, 1.0]) {
        assert_abs_diff_eq!(*got, want, epsilon = 1e-12);
    }
    assert!(Weighting::Exp.apply(&weights, &problems[..2]).is_err());
    assert!(Weighting::Exp.apply(&[1.0, 0.0], &["a", "b"]).is_err());
    assert!(Weighting::Exp.apply(&[f64::NAN], &["a"]).is_err());
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let _alone = alone();
    let refused = |example: WeightedExample, says: &str| {
        let error =
            Rwr::new(model(0.0, 1), vec![example], vec![], 1, 1, tokenizer()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    let example = weighted(1).remove(0);
    refused(WeightedExample { weight: f32::NAN, ..example.clone() }, "weight");
    refused(WeightedExample { trained: vec![], ..example.clone() }, "0 marks");
    let untrained = vec![false; example.trained.len()];
    refused(WeightedExample { trained: untrained, ..example.clone() }, "no trained token");
    let prompt = example.example.prompt;
    let ignored = Example { prompt, target: vec![IGNORED] };
    refused(WeightedExample::new(ignored, 1.0), "no trained token");
    assert!(Rwr::new(model(0.0, 1), vec![], vec![], 1, 1, tokenizer()).is_err());
    trainer_config(100).validate().unwrap();
    assert_eq!(trainer_config(101).warmup_steps, 5);
    // Without anything held out, the newest checkpoint is the best.
    let mut rwr = rwr(1, vec![]);
    assert_eq!(rwr.evaluate(7, &mut NullObserver).unwrap().score, 7.0);
}

#[test]
fn a_local_model_takes_turns_and_batches_do_not_show() {
    let _alone = alone();
    let (model, tokenizer) = (model(0.0, 1), tokenizer());
    let template = ChatTemplate::from(NamedTemplate::Vicuna);
    let generation = GenerationConfig {
        strategy: Strategy::Sample(Sampling::default()),
        max_new_tokens: 6,
        ..GenerationConfig::default()
    };
    let student = LocalModel::new(&model, &tokenizer, &template, 40).generation(generation.clone());
    let problem = |row| Problem {
        row,
        question: format!("Ada {}", "Adam ".repeat(row)),
        solution: "#### 1".into(),
        ..Problem::default()
    };
    let problems: Vec<Problem> = (0..5).map(problem).collect();
    let environment = Gsm8k::default();
    let play = |batch| {
        let answerers: [&dyn Answerer; 2] = [&student; 2];
        let config = RolloutConfig::collect(&[1, 3]);
        let turns = MultiTurn::new(&environment, config, &answerers).unwrap().batch(batch);
        turns.play(&problems, None, &mut NullObserver).unwrap()
    };
    let log = play(1);
    assert_eq!(play(5), log);
    let history = &log.episodes[0].turn_history;
    assert_eq!((history.actions[&0].len(), history.actions[&1].len()), (1, 3));
    assert!(log.episodes.iter().any(|episode| episode.turn_history.actions[&1][0] != history.actions[&1][0]));
    let narrow = LocalModel::new(&model, &tokenizer, &template, 7).generation(generation);
    let answerers: [&dyn Answerer; 1] = [&narrow];
    let turns = MultiTurn::new(&environment, RolloutConfig::collect(&[1]), &answerers).unwrap();
    let error = turns.play(&problems, None, &mut NullObserver).unwrap_err();
    assert!(crate::support::chain(&error).contains("no room for a prompt"), "{error:?}");
}

/// A model with several end tokens that notes what it is asked to do.
struct Noting {
    model: T5,
    ends: Vec<TokenId>,
    asked: RefCell<Vec<GenerationConfig>>,
}

impl Policy for Noting {
    fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn hidden_size(&self) -> i64 {
        self.model.hidden_size()
    }

    fn pad_token_id(&self) -> TokenId {
        self.ends[0]
    }

    fn end_token_ids(&self) -> &[TokenId] {
        &self.ends
    }

    fn set_training(&mut self, _: bool) {}

    fn score(&self, examples: &[Example], want: ScoreOptions) -> ruminate_models::Result<TokenScores> {
        self.model.score(examples, want)
    }

    fn save(&self, folder: &Path) -> ruminate_models::Result<()> {
        self.model.save(folder)
    }
}

impl Generate for Noting {
    fn generate(
        &self,
        prompts: &[Vec<TokenId>],
        config: &GenerationConfig,
        _: &[u64],
    ) -> ruminate_models::Result<Vec<Vec<Generated>>> {
        self.asked.borrow_mut().push(config.clone());
        Ok(vec![vec![]; prompts.len()])
    }
}

#[test]
fn every_end_token_ends_an_answer() {
    let _alone = alone();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pairs/byte_level");
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let id = |token: &str| tokenizer.token_id(token).unwrap();
    let (text, turn) = (id("<|end_of_text|>"), id("<|eot_id|>"));
    let stops = |ends: &[TokenId], template: &ChatTemplate, given: &[TokenId]| {
        let model = Noting { model: model(0.0, 1), ends: ends.into(), asked: RefCell::default() };
        let generation =
            GenerationConfig { stop_ids: given.into(), max_new_tokens: 4, ..GenerationConfig::default() };
        let student = LocalModel::new(&model, &tokenizer, template, 500).generation(generation);
        let messages = vec![Message::new("user", "Is it sunny?")];
        student.answer(&[Ask { row: 0, turn: 0, attempt: 0, messages, samples: 1, seed: 1 }]).unwrap();
        let asked = model.asked.borrow();
        (asked[0].stop_ids.clone(), asked[0].stop_strings.clone())
    };
    let own = ChatTemplate::open(&folder).unwrap();
    assert_eq!(own.answer_end().as_deref(), Some("<|eot_id|>"));
    // All that the checkpoint names, and what the tokenizer and the template end answers with; none twice.
    assert_eq!(stops(&[7, text], &own, &[]), (vec![7, text, turn], vec![]));
    assert_eq!(stops(&[turn, text], &own, &[]), (vec![turn, text], vec![]));
    assert_eq!(stops(&[7, text], &own, &[9]), (vec![9, turn], vec![]), "the caller's list takes their place");
    let named = ChatTemplate::from(NamedTemplate::Llama3);
    assert_eq!(stops(&[7, text], &named, &[]), (vec![7, text, turn], vec![]));
    // A padding token that ends texts may be written and learnt.
    let model = Noting { model: model(0.0, 1), ends: vec![7, 8], asked: RefCell::default() };
    assert_eq!((model.filler(), model.model.filler()), (None, Some(0)));
}

/// A tokenizer of byte level: all its tokens carry the blank before their word.
fn byte_level() -> Tokenizer {
    let vocab: serde_json::Map<String, serde_json::Value> = (0..crate::support::tiny(0.0).vocab_size)
        .map(|id| (if id == 0 { "<unk>".to_owned() } else { format!("\u{120}w{id}") }, id.into()))
        .collect();
    let text = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), text.to_string()).unwrap();
    Tokenizer::open(folder.path()).unwrap()
}

#[test]
fn a_second_turn_has_one_blank_before_the_first_answer() {
    let _alone = alone();
    let (mut model, tokenizer) = (model(0.0, 1), byte_level());
    model.set_tokenizer(byte_level());
    let generation = GenerationConfig {
        strategy: Strategy::Sample(Sampling::default()),
        max_new_tokens: 4,
        ..GenerationConfig::default()
    };
    let problem = Problem { question: "q?".into(), solution: "#### 1".into(), ..Problem::default() };
    let environment = QuestionOnly(Gsm8k::default());
    for template in NamedTemplate::ALL {
        for compat in [Compat::Fixed, Compat::Reference] {
            let chat = ChatTemplate::from(template);
            let student = LocalModel::new(&model, &tokenizer, &chat, 4000).generation(generation.clone());
            let answerers: [&dyn Answerer; 3] = [&student; 3];
            let config = RolloutConfig { compat, seed: 3, ..RolloutConfig::collect(&[1; 3]) };
            let turns = MultiTurn::new(&environment, config, &answerers).unwrap();
            let log = turns.play(std::slice::from_ref(&problem), None, &mut NullObserver).unwrap();
            let prompt = chat.prompt(log.episodes[0].dialogue.as_ref().unwrap()).unwrap();
            let stored = &log.episodes[0].turn_history.best_actions;
            assert!(stored.iter().any(|text| !text.is_empty()), "{stored:?}");
            if template.blank_before_answers() || compat == Compat::Fixed {
                assert!(stored.iter().all(|text| !text.starts_with(' ')), "{stored:?}");
                assert!(!prompt.contains("  "), "{template}: {prompt}");
            }
        }
    }
}
