//! Nothing about a model or a log is guessed.

use std::fs;

use serde_json::{Value, json};

use crate::support::{rise, succeed};

fn args(rest: &[&str]) -> Vec<String> {
    ["evaluate", "--json"].iter().chain(rest).map(|arg| (*arg).to_string()).collect()
}

/// Two problems, of which one is solved in the second turn and the other never.
fn log(golds: [&str; 2], boxes: [[&str; 2]; 2], rewards: [[i64; 2]; 2]) -> Value {
    let episode = |row: usize| {
        let said = |turn: usize| format!(r"Hence \boxed{{{}}}.", boxes[row][turn]);
        let by_turn = |of: &dyn Fn(usize) -> Value| json!({"0": [of(0)], "1": [of(1)]});
        json!({
            "task_id": row, "query": "q", "answer": golds[row], "max_reward": rewards[row].iter().max(),
            "turn_history": {
                "best_actions": [said(0), said(1)], "actions": by_turn(&|turn| json!(said(turn))),
                "best_observations": ["no", "no"], "observations": by_turn(&|_| json!("no")),
                "best_rewards": rewards[row], "rewards": by_turn(&|turn| json!(rewards[row][turn])),
            },
        })
    };
    json!({"0": episode(0), "1": episode(1)})
}

#[test]
fn a_log_is_judged_by_whoever_has_judged_it() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, log: &Value| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, log.to_string()).unwrap();
        path.display().to_string()
    };
    let boxes = [[r"\frac{1}{3}", r"\frac12"], ["x", "x+1"]];
    let golds = [r"It is \boxed{\frac{1}{2}}.", r"It is \boxed{y}."];
    let math = write("math.json", &log(golds, boxes, [[0, 1], [0, 0]]));
    let metric = |args: &[String], name: &str| succeed(args).json()["metrics"][name].as_f64().unwrap();
    for (name, value) in [("acc@t1", 0.0), ("acc@t2", 0.5), ("m1@t1", 0.0), ("p1@t2", 0.5)] {
        assert_eq!(metric(&args(&["--log", &math]), name), value, "{name}");
        assert_eq!(metric(&args(&["--log", &math, "--set", "data.benchmark=math"]), name), value, "{name}");
    }
    let refused = |rest: &[&str], parts: &[&str]| {
        let finished = rise(&args(rest));
        assert_eq!(finished.code, Some(2), "{rest:?}: {}", finished.stderr);
        for part in parts {
            assert!(finished.stderr.contains(part), "{rest:?} should name {part}:\n{}", finished.stderr);
        }
        assert!(finished.stdout.is_empty(), "{}", finished.stdout);
    };
    let right = ["math.json", "--set data.benchmark=math"];
    refused(&["--log", &math, "--set", "data.benchmark=gsm8k"], &right);
    refused(&["--log", &math, "--config", "examples/rise/configs/published.toml"], &right);

    // Judged with the published code's defects: the gold number ends at its comma.
    let golds = ["#### 2,125", "#### 7"];
    let old = write("old.json", &log(golds, [["2125", "2"], ["6", "5"]], [[0, 1], [0, 0]]));
    assert_eq!(metric(&args(&["--log", &old]), "acc@t2"), 0.5);
    refused(&["--log", &old, "--set", "data.compat=fixed"], &["task 0", "--set data.compat=reference"]);
    // Judged by nobody, or by nobody knows whom.
    let wrong = write("wrong.json", &log(golds, [["2125", "2125"], ["6", "5"]], [[0, 0], [1, 0]]));
    refused(&["--log", &wrong], &["wrong.json", "stored rewards", "data.benchmark", "data.compat"]);
    let strange = write("strange.json", &log(["two", "seven"], [["2", "2"], ["6", "5"]], [[0, 0], [0, 0]]));
    refused(&["--log", &strange], &["strange.json", "gold answers", "--set data.benchmark=gsm8k"]);
    let both = [r"\boxed{2} #### 2", r"\boxed{7} #### 7"];
    let both = write("both.json", &log(both, [["1", "2"], ["6", "5"]], [[0, 1], [0, 0]]));
    refused(&["--log", &both], &["gsm8k or of math", "--set data.benchmark=gsm8k"]);
    assert_eq!(metric(&args(&["--log", &both, "--set", "data.benchmark=gsm8k"]), "acc@t2"), 0.5);

    // A run's own log has its configuration beside it.
    fs::create_dir(folder.path().join("run")).unwrap();
    fs::write(folder.path().join("run/config.toml"), "[data]\nbenchmark = \"gsm8k\"\ncompat = \"fixed\"\n")
        .unwrap();
    let own = write("run/2_turns.json", &log(golds, [["1", "2125"], ["6", "5"]], [[0, 1], [0, 0]]));
    assert_eq!(metric(&args(&["--log", &own]), "acc@t2"), 0.5);
    refused(
        &[
            "--log",
            &write("run/math.json", &serde_json::from_str(&fs::read_to_string(&math).unwrap()).unwrap()),
        ],
        &right,
    );
}

#[test]
fn a_model_from_elsewhere_needs_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("mistral");
    fs::create_dir(&model).unwrap();
    let (model, out) = (model.display().to_string(), folder.path().join("out").display().to_string());
    let finished = rise(&args(&["--model", &model, "--out", &out]));
    assert_eq!(finished.code, Some(2), "{}", finished.stderr);
    for part in ["--model", "mistral", "how it was trained", "--config"] {
        assert!(finished.stderr.contains(part), "{}", finished.stderr);
    }
}

#[test]
fn a_benchmark_that_is_named_must_be_that_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let golds = [r"It is \boxed{\frac{1}{2}}.", r"It is \boxed{y}."];
    let math = log(golds, [[r"\frac{1}{3}", r"\frac12"], ["x", "x+1"]], [[0, 1], [0, 0]]);
    fs::write(path("math.json"), math.to_string()).unwrap();
    let convert = |out: &str, rest: &[&str]| -> Vec<String> {
        let config = "examples/rise/configs/world.toml";
        let args =
            ["convert", "--config", config, "--json", "--log", &path("math.json"), "--out", &path(out)];
        args.iter().chain(rest).map(|arg| (*arg).to_string()).collect()
    };
    for refused in [
        convert("out", &["--benchmark", "gsm8k"]),
        args(&["--log", &path("math.json"), "--benchmark", "gsm8k"]),
    ] {
        let finished = rise(&refused);
        assert_eq!(finished.code, Some(2), "{refused:?}: {}", finished.stderr);
        assert!(finished.stderr.contains("--set data.benchmark=math"), "{}", finished.stderr);
        assert!(finished.stdout.is_empty() && !folder.path().join("out").exists());
    }
    let useless = rise(&args(&["--log", &path("math.json"), "--template", "llama-2"]));
    assert!(useless.code == Some(2) && useless.stderr.contains("--template"), "{}", useless.stderr);
    assert_eq!(succeed(&args(&["--log", &path("math.json"), "--benchmark", "math"])).json()["problems"], 2);

    // Lengths are in tokens of the model that is to be trained, where its tokenizer is there.
    let converted =
        succeed(&convert("out", &["--benchmark", "math", "--set", "finetune.training.max_length=2"])).json();
    let lengths = &converted["lengths"];
    assert_eq!(
        (&lengths["examples"], &lengths["over_max_length"]),
        (&converted["examples"], &converted["examples"])
    );
    assert!(lengths["response"]["mean"].as_f64().unwrap() > 1.0, "{lengths}");
    let stored: Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("out/conversion.json")).unwrap())
            .unwrap();
    assert_eq!((&stored["lengths"], &stored["episodes"]), (lengths, &json!(2)));
    let page = fs::read_to_string(folder.path().join("out/report.html")).unwrap();
    assert!(page.contains("Lengths in tokens") && page.contains("longer than 2"), "{page}");
    let without = succeed(&convert("without", &["--set", "model.tokenizer=nowhere"]));
    assert_eq!(without.json()["lengths"], Value::Null);
    assert!(without.stderr.contains("model.tokenizer"), "{}", without.stderr);
}
