//! The commands that the paper's page sets beside those of the original, in their order, as they stand there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::stub::{Act, Seen, Stub};
use crate::support::{command, root};

const PAGE: &str = include_str!("../../../../docs/papers/rise.md");
/// The server that the page names.
const SERVER: &str = "http://localhost:8000/v1";
/// `rise.toml` of the page, for models that know nothing.
const CONFIG: &str = r#"
[data]
problems = "data/gsm8k/train.jsonl"
demonstration = false
[model]
MODEL
[teacher]
base_url = "http://localhost:8000/v1"
model = "large"
key = "none"
[collection.generation]
max_new_tokens = 16
precision = "f32"
[finetune.training]
epochs = 1.0
batch_size = 2
max_length = 256
[finetune.trainer]
accumulate = 1
precision = "f32"
gradient_checkpointing = false
[evaluation]
problems = "data/gsm8k/test.jsonl"
generation = { max_new_tokens = 16, precision = "f32" }
[iteration]
iterations = 1
"#;

/// The commands in the table's right column, as words.
fn commands() -> Vec<Vec<String>> {
    let section = PAGE.split_once("## The commands of the original").unwrap().1;
    let table = section.split("\n## ").next().unwrap();
    let cell = |line: &'static str| Some(line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?.1);
    let code = table.lines().filter_map(cell).flat_map(|cell| cell.split('`').skip(1).step_by(2));
    code.filter(|code| code.starts_with("rise ")).map(words).collect()
}

/// The words of a command line, as a shell takes them.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    assert!(!quoted, "{line}");
    words
}

/// Writes the first lines of a file below a folder.
fn copy(folder: &Path, from: PathBuf, to: &str, lines: usize) {
    let text = fs::read_to_string(&from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    let first: Vec<&str> = text.lines().take(lines).collect();
    fs::create_dir_all(folder.join(to).parent().unwrap()).unwrap();
    fs::write(folder.join(to), first.join("\n")).unwrap();
}

#[test]
fn every_command_of_the_page_does_what_it_says() {
    let stub = Stub::start(|seen: &Seen| {
        let text = r"It is \boxed{7}.";
        Act::say(&vec![text; seen.body["n"].as_u64().unwrap_or(1) as usize])
    });
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    // The first real problems where they lie beside the project, or else those of the bundled world.
    let (world, data) = (root().join("fixtures/world/rise"), root().join("../shared/data/rise"));
    let (mut config, mut tokenizer) = (world.join("llama/config.json"), world.join("llama"));
    let real = root().join("../shared/golden/models/llama_gqa_tied");
    if data.is_dir() && real.is_dir() {
        (config, tokenizer) = (root().join("examples/rise/configs/tiny-llama.json"), real);
        copy(folder, data.join("gsm8k/train.jsonl"), "data/gsm8k/train.jsonl", 6);
        copy(folder, data.join("gsm8k/test.jsonl"), "data/gsm8k/test.jsonl", 3);
        copy(folder, data.join("math/test.jsonl"), "data/math/train.jsonl", 6);
    } else {
        copy(folder, world.join("train.jsonl"), "data/gsm8k/train.jsonl", 6);
        copy(folder, world.join("test.jsonl"), "data/gsm8k/test.jsonl", 3);
        fs::create_dir_all(folder.join("data/math")).unwrap();
        let problem = r#"{"problem": "2 + 3 ?", "solution": "It is \\boxed{5}."}"#;
        fs::write(folder.join("data/math/train.jsonl"), format!("{problem}\n{problem}\n")).unwrap();
    }
    let settings = CONFIG.replace(SERVER, stub.address());
    let new = format!("config = \"{}\"\ntokenizer = \"{}\"", config.display(), tokenizer.display());
    fs::write(folder.join("new.toml"), settings.replace("MODEL", &new)).unwrap();
    fs::write(folder.join("rise.toml"), settings.replace("MODEL", "pretrained = \"base\"")).unwrap();
    let run = |words: &[String]| {
        let args: Vec<String> = words[1..].iter().map(|word| word.replace(SERVER, stub.address())).collect();
        let output = command(&args).current_dir(folder).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        // A machine need not be as the doctor wants it.
        let fine = output.status.success() || words[1] == "doctor" && output.status.code() == Some(1);
        assert!(fine && !stderr.contains("panicked"), "{words:?}\n{stderr}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&words("rise finetune --config new.toml --set finetune.source=solutions --out new -q"));
    fs::rename(
        folder.join("new/checkpoints").join(fs::read_link(folder.join("new/checkpoints/last")).unwrap()),
        folder.join("base"),
    )
    .unwrap();

    let commands = commands();
    assert!(commands.len() >= 15, "{commands:?}");
    let mut tables = std::collections::BTreeMap::new();
    for words in &commands {
        let out = words.iter().skip_while(|word| *word != "--out").nth(1).cloned().unwrap_or_default();
        tables.insert(out, run(words));
    }
    for file in [
        "log/gsm8k/2_turns.json",
        "log/gsm8k/teacher.jsonl",
        "log/math/2_turns.json",
        "log/named/player-gpt-4.jsonl",
        "dataset/examples.json",
        "dataset/report.html",
        "runs/iteration-1/report.html",
        "runs/vicuna/checkpoints/best/model.safetensors",
        "log/sequential/5_turns.json",
        "log/parallel/1_turns.json",
        "log/oracle/metrics.json",
        "log/gpt/teacher.jsonl",
        "log/greedy/metrics.json",
        "runs/rise/iteration-1/iteration.json",
    ] {
        let there = folder.join(file);
        assert!(there.is_file(), "{file} is not there");
    }
    for (out, part) in [
        ("log/gsm8k", "solved"),
        ("dataset", "longer than 256"),
        ("runs/iteration-1", "best"),
        ("log/sequential", "m1@t5"),
        ("log/parallel", "pass5@t1"),
        ("runs/rise", "iteration 1"),
    ] {
        assert!(tables[out].contains(part), "{out}: {}", tables[out]);
    }
    let examples: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("dataset/conversion.json")).unwrap()).unwrap();
    let lengths = &examples["lengths"];
    let number = |part: &str, key: &str| lengths[part][key].as_f64().unwrap();
    assert!(
        number("total", "mean") >= number("prompt", "mean") + number("response", "mean") - 1e-9,
        "{lengths}"
    );
    assert!(
        number("total", "p50") <= number("total", "p99") && number("total", "p99") <= number("total", "max")
    );
    assert_eq!(lengths["max_length"], 256);
}
