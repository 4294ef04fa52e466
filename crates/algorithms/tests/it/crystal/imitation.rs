//! Stage I: what is trained when, and how it is validated.

use approx::abs_diff_eq;
use ruminate_algorithms::crystal::{BestBy, Imitation, ImitationConfig};
use ruminate_algorithms::{
    Curriculum, Ending, Error, Evaluation, NullObserver, Objective, Sft, Trainer, TrainerConfig, mean_loss,
};
use ruminate_datasets::prompts::{ANSWER_SEPARATOR, KNOWLEDGE_SEPARATOR};
use ruminate_datasets::{Annotated, Instances, Order, Question, Split};
use ruminate_models::{Example, Policy, ScoreOptions, T5};
use serde_json::json;

use super::{TASKS, encoder, silver, with_choices};
use crate::support::{Recorder, alone, model, short, tokenizer};

const QA_ONLY: [f64; 3] = [0.0, 1.0, 0.0];
const PUBLISHED: [f64; 3] = [1.0, 0.0, 1.0];
const ALL: [f64; 3] = [1.0, 0.5, 0.25];

fn config(weights: [f64; 3]) -> ImitationConfig {
    let [qk_weight, qa_weight, qka_weight] = weights;
    ImitationConfig {
        qk_weight,
        qa_weight,
        qka_weight,
        qk_and_qka_steps: 5,
        qk_steps: 3,
        batch_size: 7,
        eval_batch_size: 9,
        shuffle_seed: 3,
        ..ImitationConfig::default()
    }
}

fn tasks() -> Vec<String> {
    TASKS.map(String::from).into()
}

fn new(config: ImitationConfig, train: Vec<Annotated>, dev: Vec<Annotated>) -> Result<Imitation, Error> {
    Imitation::new(config, encoder(), train, dev, tasks())
}

pub(crate) fn imitation(config: ImitationConfig, engine: &str) -> Imitation {
    new(config, silver(engine, Split::Train), silver(engine, Split::Dev)).unwrap()
}

fn next(imitation: &mut Imitation, step: u64) -> Vec<Objective> {
    Curriculum::<T5>::next(imitation, step).unwrap()
}

fn evaluate(imitation: &mut Imitation, t5: &T5, step: u64) -> Evaluation {
    imitation.evaluate(t5, step, &mut NullObserver).unwrap()
}

/// What a prompt should be: the whole text in one piece. The world's words do not run into each other, so that this
/// gives what assembly from ids must give.
fn text(text: &str) -> Vec<i64> {
    tokenizer().encode(text).unwrap()
}

fn qk(question: &Question, statement: &str) -> Example {
    Example { prompt: text(&format!("{}{KNOWLEDGE_SEPARATOR}", question.question)), target: text(statement) }
}

fn qa(question: &Question) -> Example {
    let prompt = text(&format!("{}{ANSWER_SEPARATOR}", question.question));
    Example { prompt, target: text(&question.answer) }
}

fn qka(question: &Question, statement: &str) -> Example {
    let with = format!("{}{KNOWLEDGE_SEPARATOR}{statement}{ANSWER_SEPARATOR}", question.question);
    Example { prompt: text(&with), target: text(&question.answer) }
}

#[test]
fn batches_follow_the_one_shuffle_and_drop_its_rest() {
    let instances = Instances::new(silver("noisy", Split::Train));
    // There is a rest to drop.
    let batch_size = (7..).find(|&size| !instances.len().is_multiple_of(size)).unwrap();
    let mut imitation = imitation(ImitationConfig { batch_size, ..config(QA_ONLY) }, "noisy");
    assert_eq!(imitation.instances(), instances.len());
    let per_epoch = instances.len() / batch_size;
    let order = Order::shuffled(instances.len(), 3).indices(0);
    for step in 0..2 * per_epoch {
        let at = step % per_epoch * batch_size;
        let expected: Vec<Example> =
            order[at..at + batch_size].iter().map(|&i| qa(instances.get(i).unwrap().0)).collect();
        let objectives = next(&mut imitation, step as u64);
        let [Objective { name: "qa_loss", weight: 1.0, examples }] = &objectives[..] else {
            panic!("{objectives:?}");
        };
        assert_eq!(*examples, expected, "step {step}");
    }
}

#[test]
fn prompts_and_targets_belong_to_one_instance() {
    let instances = Instances::new(silver("noisy", Split::Train));
    let order = Order::shuffled(instances.len(), 3).indices(0);
    let of = |step: usize| order[7 * step..7 * step + 7].iter().map(|&i| instances.get(i).unwrap());
    let objective = |name, weight, examples| Objective { name, weight, examples };

    let mut all = imitation(config(ALL), "noisy");
    for step in 0..3 {
        let expected = [
            objective("qk_loss", 1.0, of(step).map(|(q, k)| qk(q, k)).collect()),
            objective("qa_loss", 0.5, of(step).map(|(q, _)| qa(q)).collect()),
            objective("qka_loss", 0.25, of(step).map(|(q, k)| qka(q, k)).collect()),
        ];
        assert_eq!(next(&mut all, step as u64), expected);
    }
    let mut blocks = imitation(config(PUBLISHED), "noisy");
    for (step, name) in
        ["qk_loss", "qk_loss", "qk_loss", "qka_loss", "qka_loss", "qk_loss"].iter().enumerate()
    {
        let examples = match *name {
            "qk_loss" => of(step).map(|(q, k)| qk(q, k)).collect(),
            _ => of(step).map(|(q, k)| qka(q, k)).collect(),
        };
        assert_eq!(next(&mut blocks, step as u64), [objective(name, 1.0, examples)]);
    }
}

#[test]
fn a_position_is_found_again() {
    let mut first = imitation(config(QA_ONLY), "clean");
    for step in 0..50 {
        next(&mut first, step);
    }
    let state = Curriculum::<T5>::state(&first);
    let mut second = imitation(config(QA_ONLY), "clean");
    Curriculum::<T5>::load_state(&mut second, state.clone()).unwrap();
    for step in 50..100 {
        assert_eq!(next(&mut first, step), next(&mut second, step), "step {step}");
    }
    assert_ne!(Curriculum::<T5>::state(&first), state);

    let load = |imitation: &mut Imitation, state| Curriculum::<T5>::load_state(imitation, state).unwrap_err();
    let mut other = imitation(config(QA_ONLY), "noisy");
    let error = load(&mut other, state.clone()).to_string();
    let reason = format!("{} instances, but the data now has {}", first.instances(), other.instances());
    assert!(first.instances() != other.instances() && error.contains(&reason), "{error}");
    let error = load(&mut second, json!({ "at": 3 }));
    assert!(matches!(&error, Error::Config { key, .. } if key == "checkpoint"), "{error}");
    let mut behind = state;
    let position = first.instances() + 1;
    behind["cursor"]["position"] = position.into();
    let error = load(&mut second, behind).to_string();
    assert!(error.contains(&format!("{position} lies behind the end of the data")), "{error}");
}

#[test]
fn settings_that_train_nothing_are_refused() {
    type Change = fn(&mut ImitationConfig);
    let changes: [(&str, [f64; 3], Change); 13] = [
        ("qk_weight", [0.0; 3], |_| {}),
        ("qk_weight", [-1.0, 0.0, 1.0], |_| {}),
        ("qa_weight", [0.0, f64::NAN, 1.0], |_| {}),
        ("qka_weight", [1.0, 0.0, f64::INFINITY], |_| {}),
        ("qa_weight", [1.0, 1.0, 0.0], |_| {}),
        ("qa_weight", [0.0, 1.0, 1.0], |_| {}),
        ("batch_size", ALL, |c| c.batch_size = 0),
        ("eval_batch_size", ALL, |c| c.eval_batch_size = 0),
        ("qk_steps", PUBLISHED, |c| c.qk_steps = 0),
        ("qk_steps", PUBLISHED, |c| c.qk_steps = c.qk_and_qka_steps),
        ("qk_steps", PUBLISHED, |c| c.qk_steps = c.qk_and_qka_steps + 1),
        ("qk_steps", PUBLISHED, |c| c.qk_and_qka_steps = 0),
        ("qk_steps", PUBLISHED, |c| (c.qk_steps, c.qk_and_qka_steps) = (1, 1)),
    ];
    for (expected, weights, change) in changes {
        let mut config = config(weights);
        change(&mut config);
        let error =
            new(config.clone(), silver("clean", Split::Train), silver("clean", Split::Dev)).unwrap_err();
        assert!(matches!(&error, Error::Config { key, .. } if key == expected), "{config:?}: {error}");
    }
    // Without alternation the blocks do not matter.
    for weights in [QA_ONLY, ALL, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]] {
        ImitationConfig { qk_steps: 0, ..config(weights) }.validate().unwrap();
    }
}

#[test]
fn data_that_cannot_be_trained_on_is_refused() {
    let (train, dev) = (|| silver("clean", Split::Train), || silver("clean", Split::Dev));
    let with = |mut items: Vec<Annotated>, item| {
        items.push(item);
        items
    };
    for split in [Split::Train, Split::Dev] {
        let build = |choices| match split {
            Split::Train => new(config(ALL), with(train(), with_choices(choices, split)), dev()),
            _ => new(config(ALL), train(), with(dev(), with_choices(choices, split))),
        };
        build(8).unwrap();
        let error = build(9).unwrap_err().to_string();
        assert!(error.contains("has 9 choices but a batch holds 8"), "{split}: {error}");
    }
    let batch_size = Instances::new(train()).len() + 1;
    let error = new(ImitationConfig { batch_size, ..config(ALL) }, train(), dev()).unwrap_err().to_string();
    assert!(error.contains("instances do not fill one step"), "{error}");
    let silent = dev().into_iter().map(|item| Annotated { knowledges: vec![], ..item }).collect();
    for dev in [vec![], silent] {
        let error = new(config(ALL), train(), dev).unwrap_err().to_string();
        assert!(error.contains("no validation question has a statement"), "{error}");
    }
    assert!(new(config(ALL), vec![], dev()).is_err());
}

/// A model that has seen a little, so that its answers are neither all right nor all the same.
fn half_taught() -> T5 {
    let folder = tempfile::tempdir().unwrap();
    let mut sft = Sft::new(model(0.0, 1), imitation(config(ALL), "clean"), tokenizer());
    Trainer::new(short(25), folder.path()).unwrap().fit(&mut sft, &mut NullObserver).unwrap();
    sft.into_policy()
}

/// The choice whose label, end token included, is the most probable per token.
fn predicted(t5: &T5, prompt: &[i64], question: &Question) -> usize {
    let mean = |label: &String| {
        let example = Example { prompt: prompt.to_vec(), target: text(label) };
        let scores = tch::no_grad(|| t5.score(&[example], ScoreOptions::default())).unwrap();
        scores.log_probs.sum(tch::Kind::Double).double_value(&[]) / scores.labels.count as f64
    };
    let scores: Vec<f64> = question.choices.iter().map(mean).collect();
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap()
}

#[test]
fn validation_counts_what_it_says() {
    let _alone = alone();
    let t5 = half_taught();
    let dev = Instances::new(silver("clean", Split::Dev));
    let mut imitation = imitation(config(ALL), "clean");
    let mut observer = Recorder::default();
    let Evaluation { metrics, score } = imitation.evaluate(&t5, 25, &mut observer).unwrap();
    let names: Vec<&str> = metrics.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "eval/loss",
        "eval/qk_loss",
        "eval/qa_loss",
        "eval/qka_loss",
        "eval/acc_weighted",
        "eval/acc_unweighted",
        "eval/acc_knowful_unweighted",
        "eval/acc/lives",
        "eval/acc/weather",
        "eval/acc/twohop",
    ];
    assert_eq!(names, expected);
    let value = |name: &str| metrics.iter().find(|(n, _)| n == name).unwrap().1;
    let close = |name: &str, want: f64| {
        let got = value(name);
        assert!(abs_diff_eq!(got, want, epsilon = 1e-5), "{name}: {got} {want}");
    };

    // Losses: the mean over batches of 9 of their means, the incomplete last one included.
    let all: Vec<_> = dev.iter().collect();
    assert_ne!(all.len() % 9, 0);
    let batch_mean = |example: fn(&Question, &str) -> Example| {
        let batches: Vec<Vec<Example>> =
            all.chunks(9).map(|batch| batch.iter().map(|(q, k)| example(q, k)).collect()).collect();
        batches.iter().map(|batch| mean_loss(&t5, batch).unwrap()).sum::<f64>() / batches.len() as f64
    };
    let losses = [batch_mean(qk), batch_mean(|q, _| qa(q)), batch_mean(qka)];
    close("eval/qk_loss", losses[0]);
    close("eval/qa_loss", losses[1]);
    close("eval/qka_loss", losses[2]);
    close("eval/loss", losses[0] + 0.5 * losses[1] + 0.25 * losses[2]);
    assert_eq!(score, -value("eval/loss"));

    // Accuracies: by counting.
    let right = |example: &dyn Fn(&Question, &str) -> Example| -> Vec<f64> {
        let right = |(q, k): &(&Question, &str)| predicted(&t5, &example(q, k).prompt, q) == q.answer_ix;
        all.iter().map(|instance| f64::from(u8::from(right(instance)))).collect()
    };
    let (without, with) = (right(&|q, _| qa(q)), right(&qka));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let of_task = |right: &[f64], task: usize| {
        let chosen = all.iter().zip(right).filter(|((q, _), _)| q.task_ix == task).map(|(_, r)| *r);
        mean(&chosen.collect::<Vec<_>>())
    };
    let per_task = |right: &[f64]| [0, 1, 2].map(|task| of_task(right, task));
    assert!((0.05..0.95).contains(&mean(&without)), "{without:?}");
    close("eval/acc_weighted", mean(&without));
    close("eval/acc_unweighted", mean(&per_task(&without)));
    close("eval/acc_knowful_unweighted", mean(&per_task(&with)));
    for (task, accuracy) in TASKS.iter().zip(per_task(&without)) {
        close(&format!("eval/acc/{task}"), accuracy);
    }
    assert_ne!(value("eval/acc_weighted"), value("eval/acc_unweighted"), "tasks differ in size");
    let batches = all.len().div_ceil(9);
    let mut events: Vec<String> = (1..=batches).map(|i| format!("validation {i} of {batches}")).collect();
    events.push("samples 25".into());
    assert_eq!(observer.events, events);
}

#[test]
fn only_what_is_trained_is_validated() {
    let _alone = alone();
    let t5 = model(0.0, 1);
    let names = |weights| -> Vec<String> {
        let evaluation = evaluate(&mut imitation(config(weights), "clean"), &t5, 0);
        evaluation.metrics.into_iter().map(|(name, _)| name).take_while(|n| !n.contains("acc/")).collect()
    };
    let without = ["eval/acc_weighted", "eval/acc_unweighted"];
    let with = ["eval/acc_weighted", "eval/acc_unweighted", "eval/acc_knowful_unweighted"];
    assert_eq!(names(QA_ONLY), [&["eval/loss", "eval/qa_loss"][..], &without].concat());
    assert_eq!(names(PUBLISHED), [&["eval/loss", "eval/qk_loss", "eval/qka_loss"][..], &with].concat());
}

#[test]
fn samples_show_what_was_predicted() {
    struct Samples(Vec<serde_json::Value>);
    impl ruminate_algorithms::Observer for Samples {
        fn samples(
            &mut self,
            _: u64,
            s: &[serde_json::Value],
        ) -> Result<(), ruminate_algorithms::ObserverError> {
            self.0.extend_from_slice(s);
            Ok(())
        }
    }
    let _alone = alone();
    let t5 = half_taught();
    let mut samples = Samples(vec![]);
    imitation(config(PUBLISHED), "clean").evaluate(&t5, 25, &mut samples).unwrap();
    let dev = silver("clean", Split::Dev);
    // Spread over the data, so that each task can have one.
    let shown: Vec<&Annotated> = (0..6).map(|number| &dev[number * dev.len() / 6]).collect();
    assert_eq!(samples.0.len(), shown.len());
    assert!(shown.iter().any(|item| item.question.task_ix > 0), "all of the first task");
    for (sample, Annotated { question, knowledges }) in samples.0.iter().zip(shown) {
        assert_eq!(sample["question"], question.question);
        assert_eq!(sample["statement"], knowledges[0]);
        assert_eq!((&sample["step"], &sample["answer"]), (&json!(25), &json!(question.answer)));
        let choice = |example: Example| &question.choices[predicted(&t5, &example.prompt, question)];
        assert_eq!(sample["predicted_without"], *choice(qa(question)));
        assert_eq!(sample["predicted_with"], *choice(qka(question, &knowledges[0])));
    }
}

#[test]
fn the_best_can_be_chosen_by_accuracy() {
    let _alone = alone();
    let t5 = half_taught();
    for (weights, accuracy) in [(PUBLISHED, "eval/acc_knowful_unweighted"), (QA_ONLY, "eval/acc_unweighted")]
    {
        let config = ImitationConfig { best_by: BestBy::Accuracy, ..config(weights) };
        let Evaluation { metrics, score } = evaluate(&mut imitation(config, "clean"), &t5, 0);
        let (_, value) = metrics.iter().find(|(name, _)| name == accuracy).unwrap();
        assert!(score == *value && score > 0.0, "{score} {value}");
    }
}

#[test]
fn a_stopped_run_goes_on_in_its_phase() {
    let _alone = alone();
    // Over the border of the blocks, with two micro-batches a step.
    let config_of = || TrainerConfig { accumulate: 2, eval_every: 4, ..short(8) };
    let run = |folder: &std::path::Path, seed, observer: &mut Recorder| {
        let mut sft = Sft::new(model(0.2, seed), imitation(config(PUBLISHED), "clean"), tokenizer());
        tch::manual_seed(seed);
        Trainer::new(config_of(), folder).unwrap().fit(&mut sft, observer).unwrap()
    };
    let last = |folder: &std::path::Path| {
        ["model.safetensors", "trainer.safetensors", "state.json"]
            .map(|file| std::fs::read(folder.join("last").join(file)).unwrap())
    };
    let (straight, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut observer = Recorder::default();
    run(straight.path(), 1, &mut observer);
    let trained =
        |name: &str| observer.metrics.values().map(|m| m.iter().any(|(n, _)| n == name)).collect::<Vec<_>>();
    assert_eq!(trained("train/qk_loss"), [true, true, true, false, false, true, true, true]);
    assert_eq!(trained("train/qka_loss"), [false, false, false, true, true, false, false, false]);
    for (seed, step) in [(1, 1), (2, 3), (3, 5)] {
        assert_eq!(run(stopped.path(), seed, &mut Recorder::stopping_after(step)).ending, Ending::Stopped);
    }
    assert_eq!(run(stopped.path(), 4, &mut Recorder::default()).ending, Ending::Finished);
    assert!(last(straight.path()) == last(stopped.path()));
}
