//! What is wrong is said, with its place, and nothing is written.

use std::fs;

use crate::support::tinythinker;

#[test]
fn mistakes_are_named_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let world = "examples/tinythinker/configs/world.toml";
    let record = r#"{"input": "q?\n(A) x (B) y\nRecall:", "GT": "A"}"#;
    write(
        "torn/recall_analyze_summarize/valid.json",
        &format!("[{record}, {{\"input\": \"q?\", \"GT\": \"A\"}}]"),
    );
    write("empty/recall_analyze_summarize/valid.json", &format!("[{record}]"));
    write(
        "items.json",
        r#"[{"input": "q?", "GT": "A", "general_knowledge": "k", "specific_knowledge": []}]"#,
    );
    let (torn, empty) = (format!("data.records={}", path("torn")), format!("data.records={}", path("empty")));
    let missing = format!("data.records={}", path("nowhere"));
    let items = path("items.json");
    for (args, wanted) in [
        (vec!["acquire", "--set", &missing], vec!["data.records", "tinythinker teach"]),
        (vec!["acquire", "--set", &torn], vec!["valid.json", "item 1", "input"]),
        (vec!["acquire", "--set", &empty], vec!["recall.json", "recall_analyze_summarize"]),
        (vec!["acquire", "--set", "acquisition.training.interval=0"], vec!["interval"]),
        (vec!["acquire", "--set", "acquisition.training.machin=1"], vec!["machin", "machine"]),
        (vec!["reflect", "--set", &empty], vec!["reflection.start", "tinythinker acquire"]),
        (vec!["reflect", "--dry-run"], vec!["--dry-run"]),
        (vec!["reflect", "--set", "reflection.training.held_out=1.5"], vec!["held_out"]),
        (vec!["teach", "--items", &items], vec!["items.json", "item 0", "input"]),
        (vec!["teach", "--items", &items, "--dry-run"], vec!["--dry-run"]),
        (vec!["teach", "--items", &items, "--export", "x.jsonl"], vec!["--export"]),
        (vec!["pairs", "--set", &empty], vec!["reflection.start", "tinythinker acquire"]),
        (vec!["pairs", "--round", "0"], vec!["--round"]),
        (vec!["dpo", "--set", &empty], vec!["reflection.start", "tinythinker acquire"]),
        (
            vec![
                "infer",
                "--model",
                "crates",
                "--set",
                "inference.generation.temperature_increase=-1",
                "--set",
                "inference.runs=2",
            ],
            vec!["temperature_increase"],
        ),
        (vec!["teach", "--set", "teacher.base_url=\"localhost\""], vec!["base_url"]),
        (vec!["infer", "--model", "nowhere"], vec!["--model", "nowhere"]),
    ] {
        let out = path("out");
        let mut all: Vec<String> = args.iter().map(|arg| (*arg).to_string()).collect();
        all.extend(["--config".into(), world.into(), "--out".into(), out.clone(), "-q".into()]);
        let finished = tinythinker(&all);
        assert!(matches!(finished.code, Some(1 | 2)), "{args:?}: {:?}", finished.code);
        for part in wanted {
            assert!(finished.stderr.contains(part), "{args:?} should name {part}:\n{}", finished.stderr);
        }
        assert!(finished.stdout.is_empty(), "{}", finished.stdout);
        assert!(!folder.path().join("out/checkpoints").exists(), "{args:?} wrote something");
    }
}
