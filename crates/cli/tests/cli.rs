//! The program as a user runs it, with a T5 of the bundled world that has random parameters.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const WORLD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/world/t5");

fn ruminate(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ruminate"));
    command.current_dir(folder).args(args);
    command
}

fn run(folder: &Path, args: &[&str]) -> Output {
    ruminate(folder, args).output().unwrap()
}

/// The last line of a call that must succeed.
fn json_of(folder: &Path, args: &[&str]) -> Value {
    let output = run(folder, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// The exit code of a call that must fail, and its message.
fn failure(folder: &Path, args: &[&str]) -> (i32, String) {
    let output = run(folder, args);
    assert!(!output.status.success(), "{args:?}");
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn lines(path: &Path, rows: impl IntoIterator<Item = Value>) {
    let text: String = rows.into_iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(path, text).unwrap();
}

const NAMES: [&str; 8] = ["Ada", "Ben", "Cora", "Dora", "Emil", "Flora", "Gavin", "Hugo"];

fn question(name: &str) -> String {
    format!("What is the weather where {name} lives?")
}

/// A folder with data of each kind.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, row: &dyn Fn(&str) -> Value| {
        lines(&folder.path().join(name), (0..24).map(|i| row(&format!("{} {i}", NAMES[i % NAMES.len()]))));
    };
    write("sft.jsonl", &|name| json!({"prompt": question(name), "completion": "is rainy."}));
    write(
        "pairs.jsonl",
        &|name| json!({"prompt": question(name), "chosen": "is rainy.", "rejected": "It is sunny."}),
    );
    write("prompts.jsonl", &|name| json!({"prompt": question(name), "answer": "rainy"}));
    write("rated.jsonl", &|name| json!({"prompt": question(name), "completion": "is rainy.", "reward": 0.5}));
    std::fs::write(
        folder.path().join("reward.sh"),
        "while read -r line; do case $line in *'\"completion\":\"'*rainy*'\"prompt\"'*) echo 1;; *) echo 0;; esac; done\n",
    )
    .unwrap();
    let rewards = "[[reward]]\nname = \"rainy\"\nkind.command = { run = [\"sh\", \"reward.sh\"] }\n";
    std::fs::write(folder.path().join("rewards.toml"), rewards).unwrap();
    folder
}

/// A new model in place of a pretrained one.
fn new_model() -> [String; 2] {
    ["--set".into(), format!("model.config={}", json!(format!("{WORLD}/config.json")))]
}

fn train(folder: &Path, command: &str, data: &str, further: &[&str]) -> Value {
    let [set, model] = new_model();
    let out = format!("runs/{command}");
    let args = [&[command, &set, &model, "--data", data, "--out", &out, "--json", "-q"], further].concat();
    json_of(folder, &args)
}

fn checkpoint(result: &Value, folder: &Path) -> PathBuf {
    folder.join(result["last"].as_str().unwrap())
}

#[test]
fn from_a_file_of_rows_to_a_model_that_answers() {
    let folder = folder();
    let at = folder.path();
    let fast = ["--set", "trainer.lr=3e-3", "--set", "epochs=40"];
    let result = train(at, "sft", "sft.jsonl", &fast);
    assert_eq!((result["command"].as_str(), &result["data"]["rows"]["train"]), (Some("sft"), &json!(23)));
    let model = checkpoint(&result, at);
    let model = model.to_str().unwrap();

    let asked = question("Ida");
    let output = run(at, &["generate", "--model", model, "--prompt", &asked, "-q"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "is rainy.");
    let several = json_of(
        at,
        &[
            "generate",
            "--model",
            model,
            "--prompt",
            &asked,
            "--samples",
            "3",
            "--temperature",
            "2",
            "--json",
            "-q",
        ],
    );
    assert_eq!(several["completions"].as_array().unwrap().len(), 3);
    // Prompts from the standard input.
    let mut piped = ruminate(at, &["generate", "--model", model, "-q"]);
    piped.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut piped = piped.spawn().unwrap();
    std::io::Write::write_all(&mut piped.stdin.take().unwrap(), format!("{asked}\n\n{asked}\n").as_bytes())
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&piped.wait_with_output().unwrap().stdout).lines().count(), 2);
    // Into a folder.
    let written = json_of(
        at,
        &["generate", "--model", model, "--data", "prompts.jsonl", "--out", "written", "--json", "-q"],
    );
    assert_eq!(written["rows"], 24);
    let first = std::fs::read_to_string(at.join("written/completions.jsonl")).unwrap();
    let first: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!((&first["completion"], &first["answer"]), (&json!("is rainy."), &json!("rainy")));

    let scored = json_of(at, &["score", "--model", model, "--data", "sft.jsonl", "--json", "-q"]);
    assert!(scored["perplexity"].as_f64().unwrap() < 1.2, "{scored}");
    let judged = json_of(
        at,
        &[
            "evaluate",
            "--model",
            model,
            "--data",
            "prompts.jsonl",
            "--config",
            "rewards.toml",
            "--out",
            "judged",
            "--json",
            "-q",
        ],
    );
    assert_eq!(judged["rewards"]["rainy"]["mean"], 1.0);
    assert!(at.join("judged/results.json").exists() && !at.join("judged/texts.jsonl").exists());
}

#[test]
fn pairs_and_rated_rows_are_trained_on() {
    let folder = folder();
    let at = folder.path();
    let result = train(at, "dpo", "pairs.jsonl", &["--set", "trainer.lr=1e-3", "--set", "epochs=10"]);
    assert!(result["best"]["score"].as_f64().unwrap() > -0.6, "{result}");
    let result = train(at, "rwr", "rated.jsonl", &["--set", "epochs=1", "--set", "trainer.accumulate=2"]);
    assert_eq!(result["steps"], 2);
    let orpo = "dpo.terms=[{loss=\"orpo\"}]";
    let [set, model] = new_model();
    let args =
        ["dpo", &set, &model, "--data", "pairs.jsonl", "--out", "runs/orpo", "--json", "-q", "--set", orpo];
    assert_eq!(json_of(at, &args)["command"], "dpo");
}

#[test]
fn rewards_of_responses_choose_the_best_checkpoint() {
    let folder = folder();
    let at = folder.path();
    let rewards = std::fs::read_to_string(at.join("rewards.toml")).unwrap();
    let validation = "[validation]\nprompts = [\"prompts.jsonl\"]\nwriting = { max_new_tokens = 8 }\n";
    std::fs::write(at.join("validated.toml"), format!("{validation}{rewards}")).unwrap();
    for (command, data) in [("sft", "sft.jsonl"), ("dpo", "pairs.jsonl"), ("rwr", "rated.jsonl")] {
        let further = ["--config", "validated.toml", "--set", "epochs=8", "--set", "trainer.lr=3e-3"];
        let result = train(at, command, data, &further);
        let metrics = std::fs::read_to_string(at.join(format!("runs/{command}/metrics.jsonl"))).unwrap();
        let rewards: Vec<f64> = metrics
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["eval/reward"].as_f64())
            .collect();
        assert!(rewards.len() >= 3, "{command}: {rewards:?}");
        let best = rewards.iter().copied().fold(f64::MIN, f64::max);
        assert_eq!(result["best"]["score"], best, "{command}: {rewards:?}");
    }
    // One without the other.
    let [set, model] = new_model();
    for (config, part) in [("rewards.toml", "validation.prompts"), ("validation.toml", "[[reward]]")] {
        std::fs::write(at.join("validation.toml"), validation).unwrap();
        let args = ["sft", &set, &model, "--data", "sft.jsonl", "--out", "o", "--config", config];
        let (code, error) = failure(at, &args);
        assert!(code == 2 && error.contains(part), "{error}");
    }
}

#[test]
fn the_policy_itself_may_be_asked() {
    let folder = folder();
    let at = folder.path();
    let rows = (0..16)
        .map(|i| json!({"prompt": question(NAMES[i % 8]), "answer": "rainy", "choices": ["rainy", "sunny"]}));
    lines(&at.join("choices.jsonl"), rows);
    std::fs::write(at.join("helps.toml"), "[[reward]]\nname = \"helps\"\nkind = \"self_feedback\"\n")
        .unwrap();
    let further = ["--config", "helps.toml", "--set", "epochs=0", "--set", "trainer.steps=2"];
    let ppo = ["--set", "ppo.batch_size=8", "--set", "ppo.rollout.max_new_tokens=4"];
    assert_eq!(train(at, "ppo", "choices.jsonl", &[&further[..], &ppo].concat())["steps"], 2);
    let quark = ["--config", "helps.toml", "--set", "trainer.steps=2", "--set", "quark.batch_size=4"];
    assert_eq!(train(at, "quark", "choices.jsonl", &quark)["steps"], 2);
}

#[test]
fn columns_of_other_names_do_not_hide_the_prompt() {
    let folder = folder();
    let at = folder.path();
    let model = checkpoint(&train(at, "sft", "sft.jsonl", &["--set", "epochs=1"]), at);
    lines(
        &at.join("named.jsonl"),
        [json!({"question": "What?", "prompt": "mine", "gold": "x", "answer": "mine"})],
    );
    let columns = ["--set", "columns.prompt=question", "--set", "columns.answer=gold"];
    let args = ["generate", "--model", model.to_str().unwrap(), "--data", "named.jsonl", "--json", "-q"];
    let row = json_of(at, &[&args[..], &columns].concat());
    assert_eq!((&row["prompt"], &row["answer"]), (&json!("What?"), &json!("x")));
    // Two processes write what one does.
    let model = model.to_str().unwrap();
    let evaluate =
        ["evaluate", "--model", model, "--data", "prompts.jsonl", "--config", "rewards.toml", "--json", "-q"];
    let alone = json_of(at, &evaluate);
    let two = json_of(at, &[&evaluate[..], &["--nproc", "2"]].concat());
    assert_eq!(alone, two);
}

const REINFORCE: [&str; 12] = [
    "--config",
    "rewards.toml",
    "--set",
    "trainer.lr=3e-3",
    "--set",
    "ppo.rollout.max_new_tokens=8",
    "--set",
    "epochs=0",
    "--set",
    "ppo.batch_size=16",
    "--set",
    "ppo.kl={fixed={coef=0.02}}",
];

#[test]
fn a_script_of_ones_own_is_what_ppo_learns_from() {
    let folder = folder();
    let at = folder.path();
    let steps = ["--set", "trainer.steps=40", "--set", "trainer.eval_every=40"];
    train(at, "ppo", "prompts.jsonl", &[&REINFORCE[..], &steps].concat());
    let metrics = std::fs::read_to_string(at.join("runs/ppo/metrics.jsonl")).unwrap();
    let rewards: Vec<f64> = metrics
        .lines()
        .filter_map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["eval/reward_weighted"].as_f64()
        })
        .collect();
    assert!(rewards.len() >= 2 && rewards[rewards.len() - 1] > rewards[0] + 0.5, "{rewards:?}");
}

#[test]
fn a_killed_run_goes_on_to_the_same_parameters() {
    let folder = folder();
    let at = folder.path();
    let steps = ["--set", "trainer.steps=8", "--set", "trainer.save_every=2", "--threads", "1"];
    let further = [&REINFORCE[..], &steps].concat();
    let whole = train(at, "ppo", "prompts.jsonl", &further);
    let [set, model] = new_model();
    let args = [
        &["ppo", &set, &model, "--data", "prompts.jsonl", "--out", "runs/killed", "--json", "-q"],
        &further[..],
    ]
    .concat();
    let mut killed = ruminate(at, &args).stdout(std::process::Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    while !at.join("runs/killed/checkpoints/step-2").exists() && begin.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let resumed = json_of(at, &["ppo", "--out", "runs/killed", "--resume", "--json", "-q", "--threads", "1"]);
    assert_eq!(resumed["steps"], 8);
    let weights = |result: &Value| std::fs::read(checkpoint(result, at).join("model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&resumed));
}

#[test]
fn control_tokens_are_learnt_from_the_same_rewards() {
    let folder = folder();
    let further = [
        "--config",
        "rewards.toml",
        "--set",
        "trainer.steps=4",
        "--set",
        "quark.sample_interval=2",
        "--set",
        "quark.batch_size=8",
    ];
    assert_eq!(train(folder.path(), "quark", "prompts.jsonl", &further)["steps"], 4);
}

#[test]
fn what_is_wrong_is_told_before_training() {
    let folder = folder();
    let at = folder.path();
    lines(&at.join("other.jsonl"), [json!({"question": "q", "completion": "c"})]);
    std::fs::write(at.join("empty.jsonl"), "").unwrap();
    std::fs::write(
        at.join("dying.toml"),
        "[[reward]]\nname = \"r\"\nkind.command = { run = [\"sh\", \"-c\", \"echo no >&2; exit 3\"] }\n",
    )
    .unwrap();
    std::fs::write(at.join("typo.toml"), "[[reward]]\nname = \"r\"\nkind = \"numbr\"\n").unwrap();
    let [set, model] = new_model();
    let model = [set.as_str(), model.as_str()];
    let call = |head: &[&str], tail: &[&str]| failure(at, &[head, &model, tail].concat());
    for ((code, error), expected, parts) in [
        (failure(at, &["sft", "--data", "sft.jsonl", "--out", "o1"]), 2, &["--model"][..]),
        (
            failure(at, &["sft", "--model", "none", "--data", "sft.jsonl", "--out", "o1"]),
            2,
            &["there is no folder none"],
        ),
        (call(&["sft"], &["--out", "o1"]), 2, &["--data FILE"]),
        (call(&["sft"], &["--data", "sft.jsonl"]), 2, &["--out"]),
        (call(&["sft"], &["--data", "none.jsonl", "--out", "o1"]), 1, &["cannot read none.jsonl"]),
        (call(&["sft"], &["--data", "empty.jsonl", "--out", "o1"]), 1, &["has no rows", "looks like"]),
        (call(&["sft"], &["--data", "other.jsonl", "--out", "o1"]), 1, &["line 1", "`prompt`", "question"]),
        (call(&["sft"], &["--data", "sft.jsonl", "--out", "o1", "--set", "trainer.l=1"]), 2, &["trainer.l"]),
        (call(&["dpo"], &["--data", "sft.jsonl", "--out", "o1"]), 1, &["`chosen`"]),
        (
            call(&["ppo"], &["--data", "prompts.jsonl", "--out", "o1"]),
            2,
            &["[[reward]]", "docs/guide/rewards.md"],
        ),
        (
            call(&["ppo"], &["--data", "prompts.jsonl", "--out", "o1", "--config", "typo.toml"]),
            2,
            &["numbr", "number"],
        ),
        (
            call(&["ppo"], &["--data", "prompts.jsonl", "--out", "o2", "--config", "dying.toml"]),
            1,
            &["exit status: 3", "no", "sample 0"],
        ),
        (call(&["rwr"], &["--data", "sft.jsonl", "--out", "o1"]), 1, &["`reward`"]),
        (
            call(&["sft"], &["--data", "sft.jsonl", "--out", "o1", "--set", "chat.wrap=true"]),
            2,
            &["chat.template"],
        ),
    ] {
        assert_eq!(code, expected, "{error}");
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    // Nothing was begun.
    assert!(!at.join("o1").exists());
}

#[test]
fn a_plan_costs_nothing() {
    let folder = folder();
    let at = folder.path();
    let [set, model] = new_model();
    for (command, data) in
        [("sft", "sft"), ("dpo", "pairs"), ("ppo", "prompts"), ("rwr", "rated"), ("quark", "prompts")]
    {
        let data = format!("{data}.jsonl");
        let mut args = vec![command, &set, &model, "--data", &data, "--dry-run", "--json"];
        if ["ppo", "quark"].contains(&command) {
            args.extend(["--config", "rewards.toml"]);
        }
        let plan = json_of(at, &args);
        assert!(
            plan["parameters"].as_u64().or_else(|| plan["plan"]["parameters"].as_u64()).is_some(),
            "{plan}"
        );
    }
    // What validation needs is looked at, too.
    let args = ["sft", &set, &model, "--data", "sft.jsonl", "--dry-run", "--config", "rewards.toml"];
    let (code, error) = failure(at, &[&args[..], &["--set", "validation.prompts=[\"none.jsonl\"]"]].concat());
    assert!(code != 0 && error.contains("none.jsonl"), "{error}");
    assert!(!at.join("runs").exists());
}

#[test]
fn a_run_is_not_resumed_by_another_command() {
    let folder = folder();
    let at = folder.path();
    train(at, "sft", "sft.jsonl", &["--set", "epochs=1"]);
    let (code, error) = failure(at, &["rwr", "--out", "runs/sft", "--resume"]);
    assert_eq!(code, 2, "{error}");
}

/// A model that was trained a little.
fn trained(at: &Path) -> String {
    checkpoint(&train(at, "sft", "sft.jsonl", &["--set", "epochs=1"]), at).to_str().unwrap().to_owned()
}

#[test]
fn a_server_answers_until_it_is_told_to_end() {
    use std::io::{BufRead, BufReader, Read, Write};
    let folder = folder();
    let at = folder.path();
    let model = trained(at);
    let refused = |further: &[&str], message: &str| {
        let (code, error) = failure(at, &[&["serve", "--model", &model], further].concat());
        assert!(code == 2 && error.contains(message), "{further:?}: {code} {error}");
    };
    refused(&["--host", "0.0.0.0"], "api_key_env");
    refused(&["--api-key-env", "RUMINATE_NO_SUCH_VARIABLE"], "RUMINATE_NO_SUCH_VARIABLE");
    refused(&["--set", "server.max_rows=0"], "max_rows is 0");
    refused(&["--set", "server.prot=1"], "`server.prot`");
    refused(&["--out", "x"], "--out has no effect");

    let mut server = ruminate(at, &["serve", "--model", &model, "--name", "tiny", "--port", "0", "--json"]);
    let mut server = server.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let address =
        ready["url"].as_str().unwrap().strip_prefix("http://").unwrap().strip_suffix("/v1").unwrap();
    let body = json!({"model": "tiny", "prompt": question("Ida"), "max_tokens": 5}).to_string();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("text_completion"), "{answer}");
    let ended = Command::new("kill").arg(server.id().to_string()).status().unwrap();
    assert!(ended.success() && server.wait().unwrap().success());
}

#[test]
fn runs_are_written_for_mlflow() {
    let folder = folder();
    let at = folder.path();
    trained(at);
    let written = json_of(at, &["sync", "runs/sft", "--experiment", "mine", "--json"]);
    let run = PathBuf::from(written["mlflow"][0].as_str().unwrap());
    assert_eq!(std::fs::read_to_string(run.join("params/batch_size")).unwrap(), "8");
    assert!(run.join("metrics/train").is_dir() && run.join("artifacts/report.html").is_file());
    let (code, error) = failure(at, &["sync", "runs", "--json"]);
    assert!(code == 2 && error.contains("holds no run"), "{code} {error}");
}

#[test]
fn files_and_completions_are_printed() {
    let folder = folder();
    let at = folder.path();
    let output = run(at, &["config", "sft"]);
    std::fs::write(at.join("sft.toml"), &output.stdout).unwrap();
    let result = train(at, "sft", "sft.jsonl", &["--config", "sft.toml", "--set", "trainer.lr=1e-4"]);
    assert!(result["steps"].as_u64().unwrap() > 0);
    let schema: Value = serde_json::from_slice(&run(at, &["config", "serve", "--schema"]).stdout).unwrap();
    assert_eq!(schema["properties"]["precision"]["default"], "f32");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = run(at, &["completions", shell]).stdout;
        assert!(String::from_utf8(script).unwrap().contains("sft"), "{shell}");
    }
}

/// In a real terminal, where the line editor has its own ideas of Ctrl-C.
#[test]
fn ctrl_c_stops_an_answer_and_not_the_dialogue() {
    let folder = folder();
    let at = folder.path();
    let model = trained(at);
    // An answer that would take minutes.
    let long = "generation={max_new_tokens=20000, min_new_tokens=20000}";
    let args = ["chat", "--model", &model, "--set", "chat.template=zephyr", "--set", long];
    let args = [&args[..], &["--temperature", "3", "-q"]].concat();
    let mut terminal = rexpect::session::spawn_command(ruminate(at, &args), Some(60_000)).unwrap();
    for question in ["Who is Ida?", "And now?"] {
        terminal.exp_string("> ").unwrap();
        terminal.send_line(question).unwrap();
        // The editor ends, and the first words of the answer follow.
        terminal.exp_regex(r"2004l\r\n[^\r\n]*[a-z.]").unwrap();
        terminal.send_control('c').unwrap();
        terminal.exp_string("[stopped]").unwrap();
    }
    // At the prompt, Ctrl-C drops the line.
    terminal.exp_string("> ").unwrap();
    terminal.send("not meant").unwrap();
    terminal.send_control('c').unwrap();
    terminal.exp_string("> ").unwrap();
    terminal.send_control('d').unwrap();
    terminal.exp_eof().unwrap();
}
