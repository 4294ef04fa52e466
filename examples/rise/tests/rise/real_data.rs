//! GSM8K from the first attempts to a new student, killed on the way. The data lies beside the project, or the tests say that they are
//! skipped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use approx::abs_diff_eq;
use ruminate_datasets::BadRows;
use ruminate_datasets::environments::{Benchmark, Compat, gold_number};
use serde_json::Value;

use crate::stub::{Act, Seen, Stub};
use crate::support::{kill, lines, root, succeed};

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn data() -> Option<PathBuf> {
    let folder = root().join("../shared/data/rise");
    if !folder.is_dir() || !root().join("../shared/golden/models").is_dir() {
        eprintln!("skipped: ../shared/data/rise or ../shared/golden/models is not there");
        return None;
    }
    Some(folder)
}

/// Command lines below a folder.
struct Runs {
    folder: tempfile::TempDir,
}

impl Runs {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn args(&self, command: &str, out: &str, sets: &[String]) -> Vec<String> {
        let mut args: Vec<String> = [command, "--config", "examples/rise/configs/tiny.toml", "-q", "--json"]
            .map(String::from)
            .to_vec();
        args.extend(["--out".into(), self.path(out).display().to_string()]);
        args.extend(sets.iter().flat_map(|set| ["--set".to_string(), set.clone()]));
        args
    }

    fn same(&self, file: &str, [a, b]: [&str; 2]) {
        let read = |run: &str| std::fs::read(self.path(run).join(file)).unwrap();
        assert!(read(a) == read(b), "{file} of {a} and {b} differ");
    }

    fn same_checkpoint(&self, runs: [&str; 2]) {
        for file in
            ["model.safetensors", "trainer.safetensors", "state.json", "config.json", "tokenizer.json"]
        {
            self.same(&format!("checkpoints/last/{file}"), runs);
        }
    }
}

fn resumed(args: &[String]) -> Value {
    succeed(&[args, &["--resume".to_string()]].concat()).json()
}

fn stepped(run: &Path, step: &str) -> bool {
    lines(&run.join("metrics.jsonl")).iter().any(|line| line.contains(&format!("\"step\":{step},")))
}

/// A teacher that knows the answers, and is wrong about some.
fn teacher(data: &Path) -> Stub {
    let problems = Benchmark::Gsm8k
        .read(&data.join("gsm8k/train.jsonl"), BadRows::Refuse, Compat::Fixed)
        .unwrap()
        .problems;
    let gold = |solution: &str| gold_number(solution, Compat::Fixed).unwrap();
    let answers: BTreeMap<String, String> =
        problems.iter().map(|problem| (problem.question.clone(), gold(&problem.solution))).collect();
    Stub::start(move |seen: &Seen| {
        let prompt = seen.prompt().to_string();
        let question = prompt.split_once("Here's the question: ").unwrap().1;
        let answer = if question.len().is_multiple_of(4) { "0" } else { &answers[question] };
        Act::slow(20, Act::say(&[&format!(r"It is easy. \boxed{{{answer}}}")]))
    })
}

#[test]
fn every_step_survives_a_kill_on_real_problems() {
    let Some(data) = data() else { return };
    let runs = Runs { folder: tempfile::tempdir().unwrap() };
    let stub = teacher(&data);
    let sets: Vec<String> = [
        format!("teacher.base_url={}", stub.address()),
        "teacher.concurrency=2".into(),
        "teacher.backoff_secs=0.01".into(),
    ]
    .to_vec();

    // Episodes, with a teacher behind an address: no answer is paid for twice, except those under way.
    let whole = succeed(&runs.args("collect", "collected", &sets)).json();
    assert_eq!(whole["problems"], 24);
    let solved = whole["turns"][1]["solved"].as_u64().unwrap();
    assert!((10..24).contains(&solved), "{whole}");
    stub.forget();
    let collect = runs.args("collect", "killed", &sets);
    kill(&collect, || lines(&runs.path("killed/teacher.jsonl")).len() >= 11);
    assert!((8..16).contains(&(lines(&runs.path("killed/episodes.jsonl")).len() - 1)));
    assert_eq!(resumed(&collect)["turns"], whole["turns"]);
    runs.same("2_turns.json", ["collected", "killed"]);
    assert!(stub.seen().len() <= 24 + 2, "{} requests", stub.seen().len());

    // The same with local models, of which the teacher has a template of its own, and the published demonstration.
    let sets = |more: &[&str]| -> Vec<String> { more.iter().map(|set| (*set).to_string()).collect() };
    let local = sets(&[
        "collection.teacher_model=../shared/golden/models/mistral_window",
        "collection.teacher_template=mistral-instruct",
        "collection.samples=[1,3]",
        "data.demonstration=true",
        "data.limit=10",
        "collection.batch=2",
    ]);
    assert_eq!(succeed(&runs.args("collect", "local", &local)).json()["problems"], 10);
    let collect = runs.args("collect", "local-killed", &local);
    kill(&collect, || lines(&runs.path("local-killed/episodes.jsonl")).len() >= 4);
    resumed(&collect);
    runs.same("2_turns.json", ["local", "local-killed"]);

    // Examples. The command is over too soon to be killed, so what it would have left is taken away.
    let log = format!("conversion.logs=[\"{}\"]", runs.path("collected/2_turns.json").display());
    let converted = succeed(&runs.args("convert", "converted", std::slice::from_ref(&log))).json();
    let examples = converted["examples"].as_u64().unwrap();
    assert!(examples > 24, "{converted}");
    assert_eq!(converted["counts"]["weights"].as_array().unwrap().last().unwrap()["examples"], solved);
    let again = runs.args("convert", "converted-again", &[log]);
    succeed(&again);
    for file in ["examples.json", "conversion.json"] {
        std::fs::remove_file(runs.path("converted-again").join(file)).unwrap();
    }
    resumed(&again);
    runs.same("examples.json", ["converted", "converted-again"]);

    // Training.
    let examples = format!("finetune.examples=[\"{}\"]", runs.path("converted/examples.json").display());
    let sets = [examples, "finetune.training.held_out=0.2".into()];
    let trained = succeed(&runs.args("finetune", "trained", &sets)).json();
    assert_eq!(trained["steps"], 50);
    assert!(trained["data"]["held_out"].as_u64().unwrap() > 4, "{trained}");
    let loss = |line: &String| serde_json::from_str::<Value>(line).unwrap().get("eval/nll")?.as_f64();
    let losses: Vec<f64> = lines(&runs.path("trained/metrics.jsonl")).iter().filter_map(loss).collect();
    assert!(losses[losses.len() - 1] < 0.8 * losses[0], "{losses:?}");
    let finetune = runs.args("finetune", "trained-killed", &sets);
    kill(&finetune, || stepped(&runs.path("trained-killed"), "23"));
    assert_eq!(resumed(&finetune)["steps"], 50);
    runs.same_checkpoint(["trained", "trained-killed"]);

    // Evaluation, with the template and the settings of the model's run.
    let model = runs.path("trained/checkpoints/best").display().to_string();
    let evaluate = |out: &str| -> Vec<String> {
        let out = runs.path(out).display().to_string();
        ["evaluate", "--model", &model, "--out", &out, "-q", "--json"].map(String::from).to_vec()
    };
    let metrics = succeed(&evaluate("evaluated")).json();
    assert_eq!((&metrics["problems"], metrics["metrics"]["m1@t3"].is_f64()), (&12.into(), true));
    let killed = evaluate("evaluated-killed");
    kill(&killed, || lines(&runs.path("evaluated-killed/episodes.jsonl")).len() >= 5);
    assert_eq!(resumed(&killed)["metrics"], metrics["metrics"]);
    for file in ["3_turns.json", "metrics.json"] {
        runs.same(file, ["evaluated", "evaluated-killed"]);
    }
    let setting = |name: &str| [evaluate(name), vec!["--setting".into(), name.into()]].concat();
    let parallel = succeed(&setting("parallel")).json();
    assert!(parallel["metrics"]["pass5@t1"].is_f64() && parallel["metrics"].get("acc@t2").is_none());
    let oracle = succeed(&setting("oracle")).json();
    assert!(oracle["metrics"]["p1@t3"].is_f64());
}

#[test]
fn the_loop_goes_on_wherever_it_was_killed() {
    if data().is_none() {
        return;
    }
    let runs = Runs { folder: tempfile::tempdir().unwrap() };
    let short = [
        "data.limit=8",
        "finetune.trainer.steps=20",
        "evaluation.limit=4",
        "finetune.training.max_length=256",
    ];
    let sets = |more: &[String]| -> Vec<String> {
        short.iter().map(|set| (*set).to_string()).chain(more.iter().cloned()).collect()
    };
    let boost = succeed(&runs.args("finetune", "boost", &sets(&["finetune.source=solutions".into()]))).json();
    assert_eq!((&boost["data"]["texts"], &boost["data"]["mean_weight"]), (&8.into(), &1.0.into()));
    let iterate = |out: &str| {
        let base = format!("model.pretrained={}", runs.path("boost/checkpoints/best").display());
        // As for `rise finetune`, the new model has its own section.
        let mut args = runs.args(
            "iterate",
            out,
            &sets(&[
                base,
                "iteration.last=student".into(),
                "iteration.last_samples=3".into(),
                "iteration.merge=true".into(),
            ]),
        );
        let config = std::fs::read_to_string(root().join("examples/rise/configs/tiny.toml")).unwrap();
        let path = runs.path("loop.toml");
        std::fs::write(&path, config.replace("config = ", "# config = ")).unwrap();
        args[2] = path.display().to_string();
        args
    };
    let whole = succeed(&iterate("whole")).json();
    assert_eq!(whole["iterations"].as_array().unwrap().len(), 2);
    let examples = |i: usize| whole["iterations"][i]["examples"].as_u64().unwrap();
    assert!(examples(1) > examples(0), "earlier data is not there");
    let args = iterate("parts");
    let again = [&args[..], &["--resume".to_string()]].concat();
    let parts = |file: &str| runs.path("parts").join(file);
    kill(&args, || lines(&parts("iteration-1/collect/episodes.jsonl")).len() >= 2);
    kill(&again, || stepped(&parts("iteration-1/finetune"), "12"));
    kill(&again, || lines(&parts("iteration-2/evaluate/sequential/episodes.jsonl")).len() >= 2);
    let parts = resumed(&args);
    for i in 0..2 {
        for key in ["metrics", "examples", "problems"] {
            assert_eq!(whole["iterations"][i][key], parts["iterations"][i][key]);
        }
        let step = |run: &str, step: &str| format!("{run}/iteration-{}/{step}", i + 1);
        for (folder, file) in [
            ("collect", format!("{}_turns.json", i + 2)),
            ("convert", "examples.json".into()),
            ("evaluate/sequential", "3_turns.json".into()),
        ] {
            runs.same(&file, [&step("whole", folder), &step("parts", folder)]);
        }
        runs.same_checkpoint([&step("whole", "finetune"), &step("parts", "finetune")]);
    }
    assert!(runs.path("parts/report.html").is_file());
}

#[test]
fn a_published_log_gives_its_metrics() {
    let Some(data) = data() else { return };
    let log = data.join("logs/eval_gsm8k_5_turns.json").display().to_string();
    let args = ["evaluate", "--log", &log, "--json"].map(String::from);
    let result = succeed(&args).json();
    // Of the 15 problems that are at hand; the specification's shares are those of 29.
    for (name, right) in [
        ("acc@t1", 10.0),
        ("acc@t2", 8.0),
        ("acc@t3", 7.0),
        ("acc@t4", 8.0),
        ("acc@t5", 7.0),
        ("m1@t5", 9.0),
        ("p1@t5", 11.0),
    ] {
        let value = result["metrics"][name].as_f64().unwrap();
        assert!(abs_diff_eq!(value, right / 15.0, epsilon = 1e-9), "{name} is {value}");
        let interval = &result["intervals"][name];
        assert!(interval["low"].as_f64().unwrap() < value && value < interval["high"].as_f64().unwrap());
    }
}
