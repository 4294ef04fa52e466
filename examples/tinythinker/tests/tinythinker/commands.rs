//! The commands that the paper's page gives for those of the original, in their order, on the bundled world with a stub for a teacher.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::stub::{Act, Seen, Stub, completion};
use crate::support::{lines, root, tinythinker_in};

const PAGE: &str = include_str!("../../../../docs/papers/tinythinker.md");

/// The commands in the table of the original's.
fn commands() -> Vec<String> {
    let (_, table) = PAGE.split_once("| Command of the original | Command here |").unwrap();
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let spans = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    spans.filter(|span| span.starts_with("tinythinker ")).map(String::from).collect()
}

/// Writes what a good teacher would about a prompt, as often as it is asked to.
fn texts(prompt: &str, n: u64) -> Vec<String> {
    let verdicts = prompt.split_once("Explanations: ").unwrap().1;
    let reasons: Vec<String> = verdicts.lines().map(|verdict| format!("{verdict} that is so.")).collect();
    let text = |number| format!("Key Information: Fact {number}.\nExplanations: {}", reasons.join("\n"));
    (0..n).map(text).collect()
}

fn reply(body: &Value) -> Value {
    let messages = body["messages"].as_array().unwrap();
    let texts = texts(messages[1]["content"].as_str().unwrap(), body["n"].as_u64().unwrap());
    completion(&texts.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Answers the exported requests as the published sender does, and as OpenAI's batch interface.
fn send(folder: &Path) {
    let answer = |line: &String| {
        let request: Value = serde_json::from_str(line).unwrap();
        match request.get("custom_id") {
            None => json!([request, reply(&request)]),
            Some(id) => {
                assert_eq!(
                    (&request["method"], &request["url"]),
                    (&"POST".into(), &"/v1/chat/completions".into())
                );
                let response = json!({"status_code": 200, "body": reply(&request["body"])});
                json!({"id": "batch_req_1", "custom_id": id, "response": response, "error": null})
            }
        }
    };
    let answers: Vec<String> =
        lines(&folder.join("requests.jsonl")).iter().map(|line| answer(line).to_string()).collect();
    fs::write(folder.join("results.jsonl"), answers.join("\n") + "\n").unwrap();
}

#[test]
fn every_command_for_one_of_the_original_works() {
    let stub = Stub::start(|seen: &Seen| Act::Reply(200, "", reply(&seen.body).to_string()));
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let world = root().join("fixtures/world/tinythinker");
    let mut student: Value =
        serde_json::from_str(&fs::read_to_string(world.join("t5/config.json")).unwrap()).unwrap();
    let small = json!({
        "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1,
    });
    student.as_object_mut().unwrap().extend(small.as_object().unwrap().clone());
    fs::write(folder.join("t5.json"), student.to_string()).unwrap();
    fs::write(folder.join("request.json"), r#"{"Key": "Explain."}"#).unwrap();
    let example = json!([{"Q": "Is ice cold?", "Options": "A. yes, B. no", "Key Information": "Ice is frozen water.",
        "Explanations": ["A is correct. Because ice is frozen.", "B is incorrect. Because ice is not warm."]}]);
    fs::write(folder.join("few_shot.json"), example.to_string()).unwrap();
    let config = format!(
        r#"
[data]
dataset = "custom"
original = "{world}"
records = "runs/teach/sft"
[teacher]
base_url = "{address}"
model = "stub"
key = "none"
[teaching]
instruction = "request.json"
few_shot = "few_shot.json"
questions = 8
settings = {{ candidates = 2 }}
[model]
config = "t5.json"
tokenizer = "{world}/t5"
[acquisition.training]
epochs = 1
batch_size = 16
interval = 1
generation = {{ max_length = 8 }}
[acquisition.trainer]
eval_every = 1000
[reflection]
iterations = 1
[reflection.training]
generation_times = 2
batch_size = 8
blocks = 1
generation = {{ max_length = 8 }}
[inference]
generation = {{ max_length = 8 }}
"#,
        world = world.display(),
        address = stub.address(),
    );
    fs::write(folder.join("my.toml"), config).unwrap();
    let commands = commands();
    assert!(commands.len() >= 15, "{commands:?}");
    let mut seen = std::collections::BTreeSet::new();
    for command in &commands {
        let mut args: Vec<String> = command.split_whitespace().skip(1).map(String::from).collect();
        seen.insert(args[0].clone());
        args.extend(["--json".into(), "-q".into()]);
        let finished = tinythinker_in(folder, &args);
        assert_eq!(finished.code, Some(0), "{command}\n{}", finished.stderr);
        let result = finished.json();
        if command.contains("--export") {
            assert_eq!((&result["round"], &result["open"]), (&0.into(), &8.into()), "{command}: {result}");
            send(folder);
        } else if args[0] == "teach" {
            assert_eq!(result["items"], 16, "{command}: {result}");
        }
    }
    let all = ["acquire", "dpo", "infer", "pairs", "reflect", "teach"];
    assert!(all.iter().all(|command| seen.contains(*command)), "{seen:?}");
}

#[test]
fn another_senders_answers_go_through_all_rounds() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let world = root().join("fixtures/world/tinythinker");
    fs::write(folder.join("request.json"), r#"{"Key": "Explain."}"#).unwrap();
    fs::write(folder.join("few_shot.json"), "[]").unwrap();
    let config = format!(
        "[data]\ndataset = \"custom\"\noriginal = \"{}\"\n[teaching]\ninstruction = \"request.json\"\nfew_shot = \"few_shot.json\"\n\
         questions = 4\nsettings = {{ candidates = 2, rounds = 2 }}\n",
        world.display()
    );
    fs::write(folder.join("my.toml"), config).unwrap();
    let teach = |flags: &[&str]| {
        let mut args: Vec<String> =
            ["teach", "--config", "my.toml", "--out", "out", "--json", "-q"].map(String::from).to_vec();
        args.extend(flags.iter().map(|flag| (*flag).to_string()));
        tinythinker_in(folder, &args)
    };
    let requests = || -> Vec<Value> {
        let lines = lines(&folder.join("requests.jsonl"));
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let exported = teach(&["--export", "requests.jsonl"]).json();
    assert_eq!((&exported["round"], &exported["open"]), (&0.into(), &4.into()), "{exported}");
    let first = requests();
    let id = |i: usize| first[i]["custom_id"].as_str().unwrap();
    // One answer is in order, one is half in order, one request has failed, one is missing.
    let ok = |id: &str, body: Value| json!({"custom_id": id, "response": {"status_code": 200, "body": body}, "error": null});
    let mut half = reply(&first[1]["body"]);
    half["choices"][1]["message"]["content"] = json!("I would rather not say.");
    let late = json!({"custom_id": id(2), "response": null, "error": {"code": "batch_expired", "message": "too late"}});
    let results = [ok(id(0), reply(&first[0]["body"])), ok(id(1), half), late].map(|line| line.to_string());
    fs::write(folder.join("results.jsonl"), results.join("\n") + "\n").unwrap();
    let imported = teach(&["--resume", "--import", "results.jsonl", "--export", "requests.jsonl"]);
    let told = imported.json();
    assert_eq!(
        (&told["round"], &told["open"], &told["imported"]["answered"]),
        (&0.into(), &1.into(), &2.into())
    );
    assert_eq!(told["imported"]["missing"], json!([id(3)]));
    assert!(
        imported.stderr.contains(id(2)) && imported.stderr.contains("line 3: too late"),
        "{}",
        imported.stderr
    );
    assert!(imported.stderr.contains(&format!("`{}` has no answer", id(3))), "{}", imported.stderr);
    // What is missing is exported again, in the same round; then the next round begins with what failed or was not in order.
    assert_eq!(requests()[0]["custom_id"], id(3));
    fs::write(folder.join("results.jsonl"), ok(id(3), reply(&first[3]["body"])).to_string() + "\n").unwrap();
    let told = teach(&["--resume", "--import", "results.jsonl", "--export", "requests.jsonl"]).json();
    assert_eq!((&told["round"], &told["open"]), (&1.into(), &2.into()), "{told}");
    let second = requests();
    let asked =
        |i: usize| (second[i]["custom_id"].as_str().unwrap(), second[i]["body"]["n"].as_u64().unwrap());
    assert_eq!((asked(0).1, asked(1).1), (1, 2));
    assert_eq!(asked(1).0, id(2).replace("/0", "/1"));
    // Damaged files and answers to nothing change nothing.
    let before = fs::read(folder.join("out/answers_1.jsonl")).unwrap();
    let bad = ok(asked(0).0, json!({"choices": "none"})).to_string();
    for (line, wanted) in [
        (bad, vec!["results.jsonl", "line 1", asked(0).0, "response.body"]),
        (ok(id(0), reply(&first[0]["body"])).to_string(), vec!["line 1", id(0), "another round"]),
        ("{\"custom_id\": 3}".into(), vec!["results.jsonl", "line 1"]),
    ] {
        fs::write(folder.join("results.jsonl"), line + "\n").unwrap();
        let finished = teach(&["--resume", "--import", "results.jsonl"]);
        assert_eq!(finished.code, Some(1), "{}", finished.stderr);
        assert!(wanted.iter().all(|part| finished.stderr.contains(part)), "{wanted:?}\n{}", finished.stderr);
    }
    assert_eq!(fs::read(folder.join("out/answers_1.jsonl")).unwrap(), before);
    let results: Vec<String> = second
        .iter()
        .map(|request| ok(request["custom_id"].as_str().unwrap(), reply(&request["body"])).to_string())
        .collect();
    fs::write(folder.join("results.jsonl"), results.join("\n") + "\n").unwrap();
    let taught = teach(&["--resume", "--import", "results.jsonl"]).json();
    assert_eq!((&taught["items"], &taught["counts"]["unanswered"]), (&8.into(), &1.into()), "{taught}");
    assert!(folder.join("out/sft/recall_analyze_summarize/recall.json").is_file());
}
