//! What is asked to stop does, and goes on; what is planned fits.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{command, lines, rise, succeed};

fn args(command: &str, config: &str, sets: &[&str]) -> Vec<String> {
    let mut args: Vec<String> = [command, "--config", config, "-q", "--json"].map(String::from).to_vec();
    args.extend(sets.iter().flat_map(|set| ["--set".to_string(), (*set).to_string()]));
    args
}

/// A model that has hardly learnt anything.
fn model(folder: &Path) -> String {
    let sets = ["finetune.source=solutions", "data.limit=64", "finetune.training.epochs=1.0"];
    let mut args = args("finetune", "examples/rise/configs/world.toml", &sets);
    args.extend(["--out".to_string(), folder.join("model").display().to_string()]);
    succeed(&args).json()["last"].as_str().unwrap().to_string()
}

#[test]
fn an_evaluation_stops_at_a_signal_and_keeps_the_turns_that_are_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let model = model(folder.path());
    let evaluate = |out: &str| -> Vec<String> {
        let sets = ["evaluation.batch=8", "evaluation.turns=4"];
        let mut args = args("evaluate", "examples/rise/configs/world.toml", &sets);
        args.extend(["--model".to_string(), model.clone(), "--out".into(), path(out).display().to_string()]);
        args
    };
    let whole = succeed(&evaluate("whole")).json();
    for (signal, answers) in [("TERM", 1), ("INT", 50)] {
        let mut arguments = evaluate("stopped");
        if path("stopped").exists() {
            arguments.push("--resume".into());
        }
        let mut child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while lines(&path("stopped/answers.jsonl")).len() < answers {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it could be stopped");
            assert!(started.elapsed() < Duration::from_secs(120));
            std::thread::sleep(Duration::from_millis(1));
        }
        let kill =
            Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let asked = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal}");
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
        assert!(lines(&path("stopped/answers.jsonl")).len() >= answers);
    }
    let kept = lines(&path("stopped/answers.jsonl")).len();
    assert!(kept < 4 * whole["problems"].as_u64().unwrap() as usize, "nothing was left to do");
    let resumed = succeed(&[evaluate("stopped"), vec!["--resume".into()]].concat()).json();
    assert_eq!(resumed["metrics"], whole["metrics"]);
    assert!(!path("stopped/answers.jsonl").exists());
    let log = |run: &str| std::fs::read(path(run).join("4_turns.json")).unwrap();
    assert!(log("stopped") == log("whole"));
}

/// Exit code and plan of a dry run, which writes nothing.
fn planned(arguments: &[String]) -> (Option<i32>, Value, String) {
    let finished = rise(&[arguments, &["--dry-run".to_string()]].concat());
    assert_eq!(finished.stdout.lines().count(), 1, "{}", finished.stderr);
    let value: Value = serde_json::from_str(&finished.stdout).unwrap();
    (finished.code, value["plan"].clone(), finished.stderr)
}

#[test]
fn what_writes_is_planned_within_memory() {
    // Self-distillation as the README has it, with a model that is not there: 64 problems, 16 answers of 1000 tokens each.
    let sets = ["model.pretrained=mistral-7b-v0.1", "iteration.last=student", "iteration.last_samples=16"];
    let published = "examples/rise/configs/published.toml";
    let (code, plan, stderr) = planned(&args("iterate", published, &sets));
    assert!(matches!(code, Some(1 | 2)) && !stderr.is_empty(), "{stderr}");
    let student = &plan["collect"]["models"][0];
    let number = |key: &str| student[key].as_u64().unwrap();
    assert_eq!(
        (&student["name"], number("rows"), number("parameters")),
        (&"student".into(), 1024, 7_241_732_096)
    );
    assert_eq!(number("weights"), 2 * 7_241_732_096);
    let total = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(number("rows_in_flight") >= 1 && number("rows_in_flight") < 1024, "{student}");
    assert!(number("decoding") <= total * 1024 / 4 || number("rows_in_flight") == 1, "{student}");
    assert!(plan["finetune"]["plan"]["steps"].is_u64() && plan["sequential"]["models"][0]["rows"] == 64);

    let world = "examples/rise/configs/world.toml";
    let folder = tempfile::tempdir().unwrap();
    let (code, plan, stderr) =
        planned(&args("collect", world, &["collection.models=[\"student\"]", "collection.samples=[3]"]));
    assert_eq!(code, Some(0), "{stderr}");
    let student = &plan["collect"]["models"][0];
    assert_eq!((student["rows"].as_u64(), student["rows_in_flight"].as_u64()), (Some(192), Some(192)));
    assert_eq!(plan["collect"]["problems"], serde_json::json!([]));
    let model = model(folder.path());
    let mut evaluate = args("evaluate", world, &["evaluation.turns=2"]);
    evaluate.extend(["--model".to_string(), model.clone()]);
    let (code, plan, stderr) = planned(&evaluate);
    assert_eq!(code, Some(0), "{stderr}");
    let problems = plan["evaluate"]["data"]["problems"].as_u64().unwrap();
    assert_eq!(plan["evaluate"]["models"][0]["answers"], 2 * problems);
    let (code, plan, stderr) =
        planned(&args("iterate", world, &[&format!("model={{pretrained=\"{model}\"}}")]));
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(plan["collect"]["models"][0]["rows"], 64 * 16);
    let mut arguments = args("collect", world, &[]);
    arguments.retain(|argument| argument != "--json");
    arguments.push("--dry-run".into());
    let shown = rise(&arguments).stdout;
    assert!(shown.contains("of them written at the same time"), "{shown}");
}
