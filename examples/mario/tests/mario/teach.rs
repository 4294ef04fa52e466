//! Silver data from a teacher, from files and from a local model, and data sets of one's own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use serde_json::{Value, json};

use crate::real_data::data;
use crate::support::{Teacher, Workplace, lines, mario, root, succeed};

/// A prompt for QuaRel and one for a data set of one's own.
fn prompts() -> String {
    let text = |dataset: &str| {
        json!({
            "dataset": dataset, "variant": "i2ro", "prefix": "Q: Sun? (A) sunny (B) rainy\nA: It shines. So the answer is (A).\n\nQ: ",
            "suffix": "\nA: ",
        })
    };
    json!([text("quarel"), text("weather")]).to_string()
}

/// Flags of a workplace whose training questions are asked.
fn flags(place: &Workplace) -> Vec<String> {
    let few_shot = place.write("prompts.json", &prompts());
    let sets = [
        "data.dataset=quarel".to_owned(),
        format!("teaching.few_shot={few_shot}"),
        format!("teaching.questions={}", place.path("data/quarel/raw/{split}.jsonl")),
    ];
    sets.into_iter().flat_map(|set| ["--set".into(), set]).collect()
}

fn teach(place: &Workplace, out: &str, more: &[&[String]]) -> Vec<String> {
    let first = ["teach".to_owned(), "--out".into(), place.path(out)];
    [&first[..], &flags(place), &more.concat()].concat()
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn run(args: &[String]) -> Value {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    succeed(&[&args[..], &["--json", "-q"]].concat()).json()
}

fn rows(path: &str) -> Vec<Value> {
    lines(path).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_teacher_is_asked_once_for_each_question_and_what_is_right_is_kept() {
    let place = Workplace::new();
    // Half of the questions have this answer. To the first question, an answer comes only when it is asked again.
    let teacher = Teacher::start(0, move |prompt| {
        static ASKED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        if prompt.contains("Ada lives") && !ASKED.swap(true, std::sync::atomic::Ordering::SeqCst) {
            return "I do not know.".into();
        }
        " The city has\nsunny weather. So the answer is: (A)".into()
    });
    let args = teach(&place, "mine", &[&teacher.flags()]);
    let plan = run(&[&args[..], &strings(&["--dry-run"])].concat());
    assert_eq!((&plan["to_ask"], &plan["completion_tokens"]), (&24.into(), &2400.into()), "{plan}");
    assert!(teacher.prompts().is_empty() && !Path::new(&place.path("mine")).exists());

    let result = run(&args);
    assert_eq!(teacher.prompts().len(), 25);
    assert!(teacher.prompts()[0].starts_with("Q: Sun?") && teacher.prompts()[0].ends_with("\nA: "));
    assert_eq!((&result["counts"]["rows"], &result["failed"]), (&24.into(), &0.into()), "{result}");
    assert_eq!((&result["counts"]["correct"], &result["counts"]["accuracy"]), (&12.into(), &50.0.into()));
    assert_eq!(result["kept"], json!({ "train": 12, "dev": 12 }));
    let responses = rows(&place.path("mine/quarel/gpt3/train_gpt3_responses.jsonl"));
    assert_eq!(responses[0]["predicted_label"], "(a)");
    assert_eq!(responses[0]["predicted_rationale"], "The city has sunny weather.");
    let train = rows(&place.path("mine/quarel/raw/train.jsonl"));
    assert!(train.iter().all(|row| row["answer"] == "(A)") && train.len() == 12);
    assert_eq!(rows(&place.path("mine/quarel/raw/test.jsonl")).len(), 12);

    // Nothing is asked twice, and the answers serve without a server too.
    let again = run(&args);
    assert_eq!((teacher.prompts().len(), &again["counts"]), (25, &result["counts"]));
    let answers = place.path("mine/answers_train.jsonl");
    let elsewhere = run(&teach(&place, "elsewhere", &[&strings(&["--answers", &answers])]));
    assert_eq!(elsewhere["counts"], result["counts"]);

    // What it wrote trains a model.
    let (config, path) = (place.path("config.toml"), place.path("mine/{dataset}/raw/{split}.jsonl"));
    let path = format!("data.path={path}");
    let plan = succeed(&["sft", "--config", &config, "--set", &path, "--dry-run", "--json"]).json();
    assert_eq!(plan["plan"]["steps"], 6, "{plan}");
}

#[test]
fn a_killed_teaching_asks_for_the_rest() {
    let place = Workplace::new();
    let teacher = Teacher::start(40, |_| "It is so. So the answer is (B).".into());
    let one = strings(&["--set", "teacher.concurrency=1", "--set", "teaching.samples=2"]);
    let args = teach(&place, "mine", &[&teacher.flags(), &one]);
    let mut killed = Command::new(cargo_bin!("mario"));
    let killed = killed.current_dir(root()).args(&args).stdout(Stdio::null()).stderr(Stdio::null());
    let mut killed = killed.spawn().unwrap();
    let (answers, started) = (place.path("mine/answers_train.jsonl"), Instant::now());
    while fs::read_to_string(&answers).unwrap_or_default().lines().count() < 5 {
        assert!(killed.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(5));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let stored = fs::read_to_string(&answers).unwrap().lines().count();
    assert!(stored < 48, "it was too fast to be killed");
    let result = run(&args);
    assert_eq!(
        (&result["counts"]["rows"], &result["counts"]["questions"]),
        (&48.into(), &24.into()),
        "{result}"
    );
    // Whatever was under way when it was killed is asked again.
    let asked = teacher.prompts().len();
    assert!((48..=50).contains(&asked), "{asked}");
}

#[test]
fn the_silver_filter_gives_the_released_rows() {
    let Some(data) = data() else { return };
    let place = Workplace::new();
    let questions = format!("teaching.questions={}", data.join("{dataset}/raw/{split}.jsonl").display());
    for (dataset, kept) in [("strategyqa", 129), ("quarel", 165), ("numersense", 84)] {
        let responses = data.join(dataset).join("gpt3/train_gpt3_responses.jsonl").display().to_string();
        let set = format!("data.dataset={dataset}");
        let args = [
            "teach",
            "--responses",
            &responses,
            "--out",
            &place.path("mine"),
            "--set",
            &set,
            "--set",
            &questions,
        ];
        let result = succeed(&[&args[..], &["--json"]].concat()).json();
        assert_eq!(result["kept"]["train"], kept, "{result}");
        let train = rows(&place.path(&format!("mine/{dataset}/raw/train.jsonl")));
        let released = fs::read_to_string(data.join(dataset).join("raw/train.jsonl")).unwrap();
        let released: Value = serde_json::from_str(&released).unwrap();
        // Plain comparisons, so that a failure prints no real text.
        assert!((0..kept).all(|row| train[row] == released[row.to_string()]), "{dataset}");
    }
}

#[test]
fn a_local_model_answers_alone_or_in_several_processes() {
    let place = Workplace::new();
    let config = place.path("config.toml");
    let trained = succeed(&[
        "sft",
        "--config",
        &config,
        "--out",
        &place.path("sft"),
        "--set",
        "sft.training.max_length=24",
        "--json",
        "-q",
    ]);
    let model = trained.json()["last"].as_str().unwrap().to_owned();
    let local = strings(&[
        "--split",
        "test",
        "--model",
        &model,
        "--name",
        "tiny",
        "--set",
        "teaching.local.max_length=24",
    ]);
    let one = run(&teach(&place, "one", &[&local]));
    let two = run(&teach(&place, "two", &[&local, &strings(&["--nproc", "2"])]));
    assert_eq!(one["counts"], two["counts"]);
    assert_eq!(one["counts"]["rows"], 12);
    let read =
        |out: &str| fs::read(place.path(&format!("{out}/quarel/tiny/test_tiny_responses.jsonl"))).unwrap();
    assert_eq!(read("one"), read("two"));
    assert!(!Path::new(&place.path("one/texts.jsonl")).exists());
    // Responses of a model are judged as those of GPT-3 are.
    let responses = place.path("one/quarel/tiny/test_tiny_responses.jsonl");
    let gold = place.path("data/quarel/raw/test.jsonl");
    let args = [
        "evaluate",
        "--dataset",
        "quarel",
        "--gold",
        &gold,
        "--responses",
        &responses,
        "--out",
        &place.path("judged"),
    ];
    let judged = succeed(&[&args[..], &["--json"]].concat()).json();
    assert_eq!(judged["accuracy"]["mean"], one["counts"]["accuracy"]);
}

#[test]
fn a_data_set_of_ones_own_is_described_in_the_configuration() {
    let place = Workplace::new();
    let config = place.path("config.toml");
    for split in ["train", "dev", "test"] {
        let text = fs::read_to_string(place.path(&format!("data/quarel/raw/{split}.jsonl"))).unwrap();
        let text = text.replace(" (A) sunny (B) rainy", "").replace("(A)", "sunny").replace("(B)", "rainy");
        place.write(&format!("data/weather/raw/{split}.jsonl"), &text);
    }
    let dataset = "data.dataset={name=\"weather\",labels=[\"sunny\",\"rainy\"],options_in_question=false}";
    let out = place.path("ir2o");
    let train = ["reward-model", "--mode", "ir2o", "--config", &config, "--out", &out, "--set", dataset];
    let trained =
        succeed(&[&train[..], &["--set", "ir2o.training.epochs=20", "--json", "-q"]].concat()).json();
    assert_eq!(trained["best"]["score"], 100.0, "{trained}");
    let model = trained["last"].as_str().unwrap();
    let models = [format!("rewards.i2o={model}"), format!("rewards.ir2o={model}")];
    let args =
        ["evaluate", "--gold-data", "--config", &config, "--out", &out, "--name", "gold", "--set", dataset];
    let judged = succeed(&[&args[..], &["--set", &models[0], "--set", &models[1], "--json"]].concat()).json();
    assert_eq!((&judged["dataset"], &judged["accuracy"]["mean"]), (&"weather".into(), &100.0.into()));
    assert!(judged["scores"]["weather-rationale-quality-continuous"]["mean"].is_number(), "{judged}");
    let wrong = mario(&[&args[..], &["--set", "data.dataset={name=\"weather\",labels=[\"x\"]}"]].concat());
    assert!(wrong.code == Some(2) && wrong.stderr.contains("two labels"), "{}", wrong.stderr);
}

#[test]
fn wrong_input_is_explained() {
    let place = Workplace::new();
    let bad_answers = place.write("answers.jsonl", "{\"id\": 3}\n");
    let bad_rows = place.write("rows.jsonl", "{\"question\": \"Q\", \"gold_label\": \"(z)\", \"predicted_label\": \"\", \"predicted_rationale\": \"\"}\n");
    let no_prompts = place.write("other.json", "[]");
    let no_prompts = format!("teaching.few_shot={no_prompts}");
    let cases: [(&[&str], i32, &str); 10] = [
        (&["--answers", &bad_answers], 1, "answers.jsonl"),
        (&["--responses", &bad_rows], 1, "the labels of quarel"),
        (&["--responses", &bad_rows, "--dry-run"], 2, "--dry-run"),
        (&["--model", "nowhere"], 1, "nowhere"),
        (&["--set", &no_prompts], 1, "\"i2ro\" for quarel"),
        (&["--set", "teaching.few_shot=nowhere.json"], 1, "nowhere.json"),
        (&["--set", "teaching.samples=0"], 2, "teaching.samples"),
        (&["--name", "a/b"], 2, "without slashes"),
        (&["--set", "teacher.base_url=somewhere"], 2, "base_url"),
        (&["--split", "all"], 2, "--split"),
    ];
    for (more, code, reason) in cases {
        let args = teach(&place, "out", &[&strings(more)]);
        let finished = mario(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(finished.code, Some(code), "{more:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(reason), "{more:?}: {}", finished.stderr);
    }
    assert!(!Path::new(&place.path("out")).exists());
    // A teacher that states nothing fails question by question, and leaves nothing to train on.
    let teacher = Teacher::start(0, |_| "Well.".into());
    let args = teach(
        &place,
        "out",
        &[&teacher.flags(), &strings(&["--set", "teacher.give_up_after=0", "--set", "teaching.limit=2"])],
    );
    let finished = mario(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(finished.code == Some(1) && finished.stderr.contains("raw/train.jsonl"), "{}", finished.stderr);
    assert_eq!(teacher.prompts().len(), 6);
}
