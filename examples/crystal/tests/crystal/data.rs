//! Where data come from: the check of files, and silver knowledge by a teacher.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::stub::{Act, Stub};
use crate::support::{Workplace, crystal, lines, names, succeed};

const PROMPT: &str =
    "Input: Is ice cold?\nKnowledge: Ice is frozen water.\n\nInput: {question}\nKnowledge:\n";

#[test]
fn files_are_checked_before_they_are_trained_on() {
    let place = Workplace::new();
    let config = place.path("config.toml");
    let check = |more: &[&str]| crystal(&[&["check", "--config", &config, "--json"], more].concat());
    let good = check(&[]);
    assert_eq!(good.code, Some(0), "{}", good.stderr);
    let result = good.json();
    assert_eq!(result["problems"], 0);
    let files = result["files"].as_array().unwrap();
    assert_eq!(files.len(), 8, "{result}");
    let of = |task: &str, split: &str, kind: &str| {
        files.iter().find(|f| f["task"] == task && f["split"] == split && f["kind"] == kind).unwrap()
    };
    assert_eq!(of("lives", "train", "questions")["rows"], 432);
    assert_eq!(of("twohop", "train", "knowledge")["statements"], 96);

    // Silver knowledge of other questions, a bad row, and a file that is not there.
    let folder = "fixtures/world/crystal";
    let root = crate::support::root();
    for task in ["lives", "twohop"] {
        for split in ["train", "dev"] {
            let read = |file: String| fs::read_to_string(root.join(folder).join(file)).unwrap();
            place.write(&format!("d/uqa/{task}/{split}.tsv"), &read(format!("uqa/{task}/{split}.tsv")));
            let silver = format!("knowledge/knowledge_gkp_gpt3clean.{split}.{task}.json");
            place.write(&format!("d/{silver}"), &read(silver));
        }
    }
    let file = place.path("d/uqa/lives/train.tsv");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{}no question\n", text.split_once('\n').unwrap().1)).unwrap();
    fs::remove_file(place.path("d/uqa/twohop/dev.tsv")).unwrap();
    let sets = [
        "--set",
        &format!("data.data_path={}", place.path("d/{datapath}/{split}.tsv")),
        "--set",
        &format!(
            "data.knowledge_path={}",
            place.path("d/knowledge/knowledge_gkp_gpt3{engine}.{split}.{task}.json")
        ),
    ];
    let bad = check(&sets);
    assert_eq!(bad.code, Some(1));
    let result = bad.json();
    assert_eq!(result["problems"], 2, "{result}");
    let files = result["files"].as_array().unwrap();
    let of = |task: &str, split: &str, kind: &str| {
        files.iter().find(|f| f["task"] == task && f["split"] == split && f["kind"] == kind).unwrap()
    };
    assert_eq!(of("lives", "train", "questions")["bad_rows"], 1);
    let problem = |file: &Value| file["problem"].as_str().unwrap_or_default().to_owned();
    assert!(problem(of("lives", "train", "knowledge")).contains("not those of the question file"));
    assert!(problem(of("twohop", "dev", "questions")).contains("twohop/dev.tsv"));
    let shown = crystal(&[&["check", "--config", &config], &sets[..]].concat());
    assert!(shown.stdout.contains("cannot be used"), "{}", shown.stdout);
}

#[test]
fn a_teacher_writes_silver_knowledge_that_stage_one_reads() {
    let place = Workplace::new();
    let (config, out) = (place.path("config.toml"), place.path("silver"));
    place.write("prompts/lives.txt", PROMPT);
    place.write("prompts/twohop.txt", PROMPT);
    // Some questions fail at first; a statement goes on in a second line.
    let stub = Stub::start(|seen| {
        let prompt = seen.prompt();
        assert!(prompt.ends_with("\nKnowledge:") && prompt.contains("Ice is frozen"), "{prompt}");
        let plain = seen.body["messages"].is_null();
        assert_eq!(plain, seen.head.contains(" /v1/completions "), "{}", seen.head);
        if prompt.contains("Anna") && seen.earlier == 0 {
            return Act::Reply(400, "", String::new());
        }
        let texts =
            [" Somebody lives somewhere.", "Cities have weathers.\nInput: more", "Somebody lives somewhere."];
        if plain { Act::write(&texts) } else { Act::say(&texts) }
    });
    let base = format!("teacher.base_url={}", stub.address());
    let prompts = format!("teaching.prompts={}", place.path("prompts/{task}.txt"));
    let args = |more: &[&str]| -> Vec<String> {
        let fixed =
            ["teach", "--config", &config, "--out", &out, "--json", "--set", &base, "--set", &prompts];
        let sets = [
            "--set",
            "teacher.key=\"none\"",
            "--set",
            "teacher.requests_per_minute=0",
            "--set",
            "teacher.tokens_per_minute=0",
            "--set",
            "teaching.questions=40",
            "--set",
            "teaching.sampling.n=3",
        ];
        [&fixed[..], &sets, more].concat().into_iter().map(str::to_owned).collect()
    };
    let run = |more: &[&str]| {
        let args = args(more);
        crystal(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let planned = run(&["--dry-run"]);
    assert_eq!(planned.code, Some(0), "{}", planned.stderr);
    assert!(planned.json()["prompt_tokens"].as_u64().unwrap() > 1000 && !Path::new(&out).exists());
    assert!(stub.seen().is_empty());

    let first = run(&[]);
    assert_eq!(first.code, Some(1), "{}", first.stderr);
    assert!(
        first.stderr.contains("without an answer: ") && first.stderr.contains("--resume"),
        "{}",
        first.stderr
    );
    let asked = stub.seen().len();
    let second = run(&["--resume"]);
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert!(stub.seen().len() < asked + 20, "what is there is asked again");
    let written = names(&out);
    assert!(written.contains(&"knowledge_gkp_gpt3clean.train.twohop.json".to_owned()), "{written:?}");
    let text = fs::read_to_string(Path::new(&out).join("knowledge_gkp_gpt3clean.train.lives.json")).unwrap();
    let items: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(items.len(), 40);
    assert_eq!(
        items[0]["knowledges"],
        json!(["Somebody lives somewhere.", "Cities have weathers.", "Somebody lives somewhere."])
    );
    let silver = format!("data.knowledge_path={out}/knowledge_gkp_gpt3{{engine}}.{{split}}.{{task}}.json");
    let trained = place.path("runs/taught");
    succeed(&[
        "imitate",
        "--config",
        &config,
        "--out",
        &trained,
        "--set",
        &silver,
        "--set",
        "trainer.steps=1",
        "-q",
    ]);
    assert!(!lines(&format!("{trained}/metrics.jsonl")).is_empty());

    // Chat models are asked for the same.
    let (chat, other) = ("teacher.endpoint=chat", place.path("chat"));
    let args = args(&["--set", chat, "--tasks", "twohop", "--splits", "dev"]);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args[4] = &other;
    succeed(&args);
    assert_eq!(names(&other).iter().filter(|name| name.starts_with("knowledge_")).count(), 1);
}

#[test]
fn prompts_that_cannot_be_used_are_refused() {
    let place = Workplace::new();
    let (config, out) = (place.path("config.toml"), place.path("silver"));
    place.write("prompts/lives.txt", "Input:\nKnowledge:");
    for (prompts, code, told) in [
        (place.path("prompts/{task}.txt"), 1, "needs {question} once"),
        (place.path("prompts/all.txt"), 2, "needs {task}"),
        (place.path("none/{task}.txt"), 1, "none/lives.txt"),
    ] {
        let set = format!("teaching.prompts={prompts}");
        let finished = crystal(&["teach", "--config", &config, "--out", &out, "--set", &set]);
        assert_eq!(finished.code, Some(code), "{}", finished.stderr);
        assert!(finished.stderr.contains(told), "{}", finished.stderr);
        assert!(!Path::new(&out).exists());
    }
}

#[test]
fn all_checkpoints_of_a_run_are_evaluated_in_the_published_layout() {
    let place = Workplace::new();
    let (config, run) = (place.path("config.toml"), place.path("runs/tiny"));
    let sets = ["--set", "trainer.steps=2", "--set", "trainer.save_every=1", "--set", "trainer.keep=9", "-q"];
    succeed(&[&["imitate", "--config", &config, "--out", &run], &sets[..]].concat());
    let all = ["evaluate", "--model", &run, "--checkpoints", "all"];
    let result = succeed(&[&all[..], &["--json"]].concat()).json();
    let checkpoints = result["checkpoints"].as_array().unwrap();
    let steps: Vec<&str> = checkpoints.iter().map(|of| of["checkpoint"].as_str().unwrap()).collect();
    assert_eq!(steps, ["step-0", "step-1", "step-2"]);
    assert_eq!(names(&place.path("eval")), ["tiny_ckp-0", "tiny_ckp-1", "tiny_ckp-2"]);
    assert!(names(&place.path("eval/tiny_ckp-1")).contains(&"inference".to_owned()));
    let single = succeed(&["evaluate", "--model", &format!("{run}/checkpoints/step-1"), "--json"]).json();
    assert_eq!(single["acc_weighted"], checkpoints[1]["acc_weighted"]);
    let shown = succeed(&[&all[..], &["--out", &place.path("all")]].concat());
    assert!(shown.stdout.contains("step-2"), "{}", shown.stdout);
    assert_eq!(names(&place.path("all")), ["ckp-0", "ckp-1", "ckp-2"]);
    let none = crystal(&["evaluate", "--model", &place.path("eval"), "--checkpoints", "all"]);
    assert_eq!(none.code, Some(2), "{}", none.stderr);
    assert!(none.stderr.contains("has no checkpoints"), "{}", none.stderr);
}
