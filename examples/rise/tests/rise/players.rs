//! Whoever takes turns has a name: checkpoints on this machine, and models of servers.

use std::path::Path;

use serde_json::{Value, json};

use crate::stub::{Act, Seen, Stub};
use crate::support::{kill, lines, rise, succeed};

const WORLD: &str = "examples/rise/configs/world.toml";

fn args(command: &str, out: &Path, sets: &[&str]) -> Vec<String> {
    let out = out.display().to_string();
    let mut args: Vec<String> =
        [command, "--config", WORLD, "-q", "--json", "--out", &out].map(String::from).to_vec();
    args.extend(sets.iter().flat_map(|set| ["--set".to_string(), (*set).to_string()]));
    args
}

/// A model that has hardly learnt anything, with a template of its own.
fn model(out: &Path, template: &str) -> String {
    let sets = ["finetune.source=solutions", "data.limit=64", "finetune.training.epochs=1.0"];
    let flags = ["--template".to_string(), template.into()];
    succeed(&[args("finetune", out, &sets), flags.into()].concat()).json()["last"].as_str().unwrap().into()
}

/// A server whose models answer nothing that is right.
fn stub() -> Stub {
    Stub::start(|seen: &Seen| {
        let asked = seen.body["n"].as_u64().unwrap_or(1);
        let texts: Vec<String> = (0..asked).map(|i| format!(r"\boxed{{-{i}7}}")).collect();
        Act::slow(10, Act::say(&texts.iter().map(String::as_str).collect::<Vec<_>>()))
    })
}

#[test]
fn any_number_of_checkpoints_and_servers_take_turns() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (student, other) = (model(&path("student"), "llama-2"), model(&path("other"), "mistral-instruct"));
    let (one, two) = (stub(), stub());
    let best = Path::new(&other).with_file_name("best").display().to_string();
    let sets = [
        "data.limit=12".to_string(),
        "collection.batch=4".into(),
        format!("collection.student={student}"),
        format!("teacher={{base_url=\"{}\",model=\"large\",key=\"none\",concurrency=2}}", one.address()),
        format!("players.mistral={{model=\"{best}\",template=\"mistral-instruct\"}}"),
        format!("players.gpt={{model=\"small\",base_url=\"{}\"}}", two.address()),
        "collection.models=[\"student\",\"mistral\",\"gpt\",\"teacher\"]".into(),
        "collection.samples=[1,1,3,1]".into(),
    ];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let collect = args("collect", &path("whole"), &sets);
    let planned = succeed(&[&collect[..], &["--dry-run".into()]].concat()).json();
    let plan = &planned["plan"]["collect"];
    let names = |of: &Value| -> Vec<String> {
        of.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (names(&plan["models"]), plan["problems"].clone()),
        (vec!["student".into(), "mistral".into()], json!([]))
    );
    let expected = json!({"name": "gpt", "base_url": two.address(), "model": "small", "requests": 12, "answers": 36, "tokens": 36 * 512});
    assert_eq!(
        (names(&plan["services"]), &plan["services"][0]),
        (vec!["gpt".into(), "teacher".into()], &expected)
    );
    assert!(one.seen().is_empty() && !path("whole").exists());

    let whole = succeed(&collect).json();
    assert_eq!((&whole["problems"], &whole["warnings"]), (&json!(12), &json!([])));
    assert_eq!(whole["turns"].as_array().unwrap().len(), 4);
    let asked = |stub: &Stub, model: &str| {
        let seen = stub.seen();
        assert!(seen.iter().all(|seen| seen.body["model"] == model && !seen.head.contains("uthorization")));
        seen.len()
    };
    let open = |turn: usize| whole["turns"][turn]["problems"].as_u64().unwrap() as usize;
    assert_eq!((asked(&two, "small"), asked(&one, "large")), (open(2), open(3)));
    assert_eq!(lines(&path("whole/player-gpt.jsonl")).len(), lines(&path("whole/teacher.jsonl")).len());
    // The run keeps the checkpoint that the link named.
    assert!(std::fs::read_to_string(path("whole/config.toml")).unwrap().contains(&other));

    // Killed in the midst of it, nobody is asked twice, except for what was under way.
    two.forget();
    let collect = args("collect", &path("killed"), &sets);
    kill(&collect, || lines(&path("killed/player-gpt.jsonl")).len() >= 6);
    succeed(&[&collect[..], &["--resume".into()]].concat());
    assert!(two.seen().len() <= open(2) + 2, "{} requests", two.seen().len());
    let log = |run: &str| std::fs::read(path(run).join("4_turns.json")).unwrap();
    assert!(log("whole") == log("killed"));

    // Without its own template, the checkpoint is warned of.
    let confused = format!("players.mistral={{model=\"{other}\"}}");
    let finished =
        succeed(&args("collect", &path("confused"), &[&sets[..], &["data.limit=2", &confused]].concat()));
    let expected = json!([{ "model": other, "trained": "mistral-instruct", "used": "llama-2" }]);
    assert_eq!(finished.json()["warnings"], expected);
    assert!(finished.stderr.contains("warning: "), "{}", finished.stderr);
}

#[test]
fn a_server_is_evaluated_as_a_checkpoint_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let stub = Stub::start(|_: &Seen| Act::say(&[r"It is \boxed{5}."]));
    let teacher = format!("teacher={{base_url=\"{}\",model=\"large\",key=\"none\"}}", stub.address());
    let sets =
        ["evaluation.limit=6", "evaluation.turns=3", "evaluation.generation.temperature=0.0", &teacher];
    let evaluate = |out: &str, player: &str, more: &[&str]| {
        [args("evaluate", &path(out), &[&sets[..], more].concat()), vec!["--player".into(), player.into()]]
            .concat()
    };
    let report = succeed(&evaluate("teacher", "teacher", &[])).json();
    assert_eq!((&report["problems"], report["metrics"]["m1@t3"].is_f64()), (&json!(6), true));
    let seen = stub.seen();
    assert_eq!(seen.len(), 18);
    assert!(seen.iter().all(|seen| seen.body["temperature"] == 0.0 && seen.body["max_tokens"] == 24));
    assert_eq!(seen[0].body["model"], "large");
    let stored = std::fs::read_to_string(path("teacher/config.toml")).unwrap();
    assert!(stored.contains("player = \"teacher\""), "{stored}");
    // It goes on without being asked again.
    let again = [evaluate("teacher", "teacher", &[]), vec!["--resume".into()]].concat();
    assert_eq!(
        (succeed(&again).json()["metrics"].clone(), stub.seen().len()),
        (report["metrics"].clone(), 18)
    );

    let named = format!("players.gpt={{model=\"small\",base_url=\"{}\"}}", stub.address());
    succeed(&evaluate("named", "gpt", &[&named]));
    assert_eq!(stub.seen()[18].body["model"], "small");
    let planned = [evaluate("planned", "gpt", &[&named]), vec!["--dry-run".into()]].concat();
    let plan = succeed(&planned).json()["plan"]["evaluate"].clone();
    assert_eq!((&plan["services"][0]["answers"], plan["models"].as_array().unwrap().len()), (&json!(18), 0));
}

#[test]
fn a_greedy_evaluation_does_not_depend_on_the_seed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let model = model(&path("model"), "llama-2");
    let evaluate = |out: &str, temperature: f64, seed: &str| {
        let temperature = format!("evaluation.generation.temperature={temperature:?}");
        let sets = ["evaluation.limit=6", "evaluation.turns=2", &temperature, seed];
        succeed(&[args("evaluate", &path(out), &sets), vec!["--model".into(), model.clone()]].concat());
        std::fs::read(path(out).join("2_turns.json")).unwrap()
    };
    let [first, second] = ["evaluation.seed=1", "evaluation.seed=2"];
    assert!(evaluate("greedy-1", 0.0, first) == evaluate("greedy-2", 0.0, second));
    assert!(evaluate("drawn-1", 1.0, first) != evaluate("drawn-2", 1.0, second));
}

#[test]
fn mistakes_about_players_are_named_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&folder.path().join("model"), "llama-2");
    let out = folder.path().join("out");
    let greedy = "collection.generation.temperature=0.0";
    let alone = ["collection.models=[\"student\"]", "collection.samples=[2]"];
    for (command, sets, flags, wanted) in [
        (
            "collect",
            vec!["collection.models=[\"student\",\"gtp\"]", "players.gpt={model=\"m\"}"],
            vec![],
            vec!["gtp", "gpt", "[players]"],
        ),
        (
            "collect",
            vec!["players.student={model=\"m\"}"],
            vec![],
            vec!["players.student", "collection.student"],
        ),
        ("collect", vec!["players.gpt={base_url=\"http://localhost/v1\"}"], vec![], vec!["players", "model"]),
        (
            "collect",
            vec!["players.gpt={model=\"m\",base_url=\"http://localhost/v1\",template=\"zephyr\"}"],
            vec![],
            vec!["players.gpt.template"],
        ),
        ("collect", vec!["players.gpt={model=\"m\",key=\"none\"}"], vec![], vec!["players.gpt.key"]),
        ("collect", vec!["players.gpt={model=\"m\",url=\"x\"}"], vec![], vec!["url", "base_url"]),
        (
            "collect",
            vec![
                "players.gpt={model=\"m\",base_url=\"localhost\"}",
                "collection.models=[\"student\",\"gpt\"]",
            ],
            vec![],
            vec!["base_url"],
        ),
        ("collect", [&alone[..], &[greedy]].concat(), vec![], vec!["student", "2 answers", "temperature"]),
        ("evaluate", vec![greedy], vec!["--player", "nobody"], vec!["nobody", "student, teacher"]),
        ("evaluate", vec![], vec!["--player", "teacher", "--model", &model], vec!["--player", "--model"]),
        (
            "evaluate",
            vec!["evaluation.generation.temperature=0.0"],
            vec!["--model", &model, "--setting", "parallel"],
            vec!["5 answers"],
        ),
        ("evaluate", vec![], vec!["--model", &model, "--setting", "serial"], vec!["serial", "sequential"]),
        ("evaluate", vec![], vec!["--model", &model, "--template", "llama2"], vec!["llama2", "llama-2"]),
        ("collect", vec![], vec!["--benchmark", "aqua"], vec!["aqua", "gsm8k and math"]),
        ("collect", vec![], vec!["--benchmark", "math"], vec!["train.jsonl", "problem"]),
        ("iterate", vec!["iteration.last=gpt"], vec![], vec!["gpt", "student, teacher"]),
    ] {
        let flags = flags.iter().map(|flag| (*flag).to_string()).collect();
        let finished = rise(&[args(command, &out, &sets), flags].concat());
        assert!(matches!(finished.code, Some(1 | 2)), "{sets:?}: {:?}", finished.code);
        for part in wanted {
            assert!(
                finished.stderr.contains(part),
                "{command} {sets:?} should name {part}:\n{}",
                finished.stderr
            );
        }
        assert!(finished.stdout.is_empty() && !out.exists(), "{command} {sets:?}: {}", finished.stdout);
    }
}
