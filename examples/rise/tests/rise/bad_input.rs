//! What is wrong is said, with its place, and nothing is written.

use std::fs;

use crate::support::rise;

/// A configuration of a model that cannot be loaded: all that is wrong here shows before.
const CONFIG: &str = r#"
[data]
problems = "PROBLEMS"
demonstration = false
[model]
config = "examples/rise/configs/tiny-llama.json"
tokenizer = "fixtures/world/t5"
[collection]
models = ["student"]
samples = [1]
[evaluation]
problems = "PROBLEMS"
"#;

#[test]
fn mistakes_are_named_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let good = r#"{"question": "1+1?", "answer": "It is #### 2"}"#;
    write("good.jsonl", good);
    write("torn.jsonl", &format!("{good}\n{{\"question\": \"q?\", \"answer\": \"2\"}}\n"));
    write("empty.jsonl", "");
    write("rise.toml", &CONFIG.replace("PROBLEMS", &path("good.jsonl")));
    write(
        "log.json",
        r#"{"0": {"task_id": 1, "query": "q", "answer": "a", "max_reward": 0, "turn_history": {}}}"#,
    );
    write("none.json", "{}");
    write(
        "examples.json",
        r#"[{"id": "identity_0", "conversations": [{"from": "system", "value": "s", "loss": 0.0}]}]"#,
    );
    let set = |key: &str, file: &str| format!("{key}={}", path(file));
    let examples = |file: &str| format!("finetune.examples=[\"{}\"]", path(file));
    let (torn, empty) = (set("data.problems", "torn.jsonl"), set("data.problems", "empty.jsonl"));
    let (missing, strange) = (examples("nowhere.json"), examples("examples.json"));
    let (log, none, away) = (path("log.json"), path("none.json"), path("nowhere"));
    for (args, wanted) in [
        (vec!["collect", "--set", &torn], vec!["torn.jsonl", "line 2", "answer", "gold number"]),
        (vec!["collect", "--set", &empty], vec!["empty.jsonl", "no problems"]),
        (vec!["convert", "--dry-run"], vec!["--dry-run"]),
        (vec!["evaluate", "--log", &none, "--dry-run"], vec!["--dry-run"]),
        (
            vec!["collect", "--set", "collection.samples=[1,1]"],
            vec!["collection.models", "collection.samples"],
        ),
        (vec!["collect", "--set", "collection.samples=[0]"], vec!["collection.samples"]),
        (vec!["collect", "--set", "collection.models=[\"nobody\"]"], vec!["nobody", "student"]),
        (vec!["collect", "--set", "collection.generation.top_p=0.0"], vec!["collection.generation", "top_p"]),
        (
            vec!["collect", "--set", "chat.template=llama2"],
            vec!["chat.template", "llama2", "llama-2", "jinja"],
        ),
        (vec!["collect", "--set", "chat.templat=jinja"], vec!["templat", "chat.template"]),
        (vec!["collect", "--set", "collection.student=nowhere"], vec!["nowhere"]),
        (
            vec![
                "collect",
                "--set",
                "collection.models=[\"teacher\"]",
                "--set",
                "teacher.base_url=\"localhost\"",
            ],
            vec!["base_url"],
        ),
        (vec!["convert"], vec!["--log", "rise collect"]),
        (vec!["convert", "--log", &log], vec!["log.json", "turn_history"]),
        (vec!["convert", "--log", &away], vec!["nowhere"]),
        (vec!["convert", "--set", "conversion.settings.tau=0.0"], vec!["conversion.settings.tau"]),
        (vec!["finetune"], vec!["finetune.examples", "rise convert", "solutions"]),
        (vec!["finetune", "--set", &missing], vec!["nowhere.json"]),
        (vec!["finetune", "--set", &strange], vec!["message 0", "system", "human"]),
        (vec!["finetune", "--set", "finetune.training.max_length=8192"], vec!["max_length", "8192", "4096"]),
        (vec!["finetune", "--set", "finetune.training.weighting=log"], vec!["weighting", "exp"]),
        (vec!["evaluate"], vec!["--model", "--log"]),
        (vec!["evaluate", "--model", "nowhere"], vec!["--model", "nowhere"]),
        (vec!["evaluate", "--log", &none], vec!["no episodes"]),
        (
            vec!["evaluate", "--log", &none, "--set", "evaluation.context_window=0"],
            vec!["evaluation.context_window"],
        ),
        (vec!["iterate"], vec!["model.pretrained"]),
        (vec!["iterate", "--set", "iteration.iterations=0"], vec!["iteration.iterations"]),
    ] {
        let mut all: Vec<String> = args.iter().map(|arg| (*arg).to_string()).collect();
        all.extend(["--config".into(), path("rise.toml"), "--out".into(), path("out"), "-q".into()]);
        let finished = rise(&all);
        assert!(matches!(finished.code, Some(1 | 2)), "{args:?}: {:?}", finished.code);
        for part in wanted {
            assert!(finished.stderr.contains(part), "{args:?} should name {part}:\n{}", finished.stderr);
        }
        assert!(finished.stdout.is_empty(), "{}", finished.stdout);
        for file in ["checkpoints", "1_turns.json", "examples.json", "metrics.json"] {
            assert!(!folder.path().join("out").join(file).exists(), "{args:?} wrote {file}");
        }
    }
}
