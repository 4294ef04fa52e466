//! Mistakes get a message that names the place, an exit code, and leave nothing behind.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::support::{Workplace, crystal, root, succeed, write_t5};

/// Runs a command line that must fail and must not write.
#[track_caller]
pub(crate) fn refused(place: &Workplace, args: &[&str], code: i32, needles: &[&str]) {
    let before = place.snapshot();
    let finished = crystal(args);
    let stderr = &finished.stderr;
    assert_eq!(finished.code, Some(code), "{args:?}\n{stderr}");
    assert_eq!(finished.stdout, "", "{args:?}");
    for needle in needles {
        assert!(stderr.contains(needle), "{args:?}: `{needle}` is missing from\n{stderr}");
    }
    assert!(place.snapshot() == before, "{args:?} wrote files");
}

/// `imitate` with the test's configuration and one more setting.
#[track_caller]
fn imitate_refused(place: &Workplace, set: &str, code: i32, needles: &[&str]) {
    let (config, out) = (place.path("config.toml"), place.path("new/run"));
    refused(place, &["imitate", "--config", &config, "--out", &out, "--set", set], code, needles);
}

#[test]
fn data_that_is_missing_or_malformed() {
    let place = Workplace::new();
    let knowledge = place.path("{split}.{task}.json");
    let missing = place.path("train.lives.json");
    let set = format!("data.knowledge_path={knowledge}");
    imitate_refused(&place, &set, 1, &["task `lives` has no train file", &missing]);

    let silver = |knowledges: &str| {
        format!(
            r#"[{{"query": "Q \\n (A) x (B) y", "answer": "x", "knowledges": ["k"]}},
                {{"query": "Q \\n (A) x (B) y", "answer": "y", "knowledges": {knowledges}}}]"#
        )
    };
    place.write("dev.lives.json", &silver(r#"["k"]"#));
    place.write("train.lives.json", &silver("7"));
    imitate_refused(&place, &set, 1, &[&missing, "item 1", "knowledges"]);
    place.write("train.lives.json", "[]");
    imitate_refused(&place, &set, 1, &[&missing, "empty"]);
    place.write("train.lives.json", &silver("[]"));
    let one_task = "data.train_tasks=[\"lives\"]";
    let (config, out) = (place.path("config.toml"), place.path("new/run"));
    let args = ["imitate", "--config", &config, "--out", &out, "--set", &set, "--set", one_task];
    refused(&place, &args, 1, &["1", "32"]); // One instance does not fill a batch of 32.

    imitate_refused(&place, "data.train_tasks=[\"twohopp\"]", 2, &["unknown task `twohopp`", "`twohop`"]);
    imitate_refused(&place, "data.train_tasks=[]", 2, &["data.train_tasks", "is empty"]);
    imitate_refused(&place, "data.knowledge_path=a/{tsak}.json", 2, &["{tsak} is none of", "{task}"]);
}

#[test]
fn settings_that_are_wrong() {
    let place = Workplace::new();
    imitate_refused(&place, "trainer.stesp=5", 2, &["trainer.stesp", "did you mean `trainer.steps`?"]);
    imitate_refused(&place, "trainer.steps=many", 2, &["--set trainer.steps=many", "u64"]);
    imitate_refused(&place, "trainer.steps=0", 2, &["steps", "at least 1"]);
    imitate_refused(&place, "imitation.qk_weight=-1", 2, &["qk_weight", "negative"]);
    imitate_refused(&place, "imitation.best_by=accurcy", 2, &["did you mean `accuracy`?"]);
    imitate_refused(&place, "model.dropout=1.5", 2, &["model.dropout"]);
    imitate_refused(&place, "trainer.keep=0", 2, &["keep", "at least 1"]);
    imitate_refused(&place, "evaluation.sampling.top_p=nan", 2, &["sampling", "top_p"]);

    let file = fs::read_to_string(place.path("config.toml")).unwrap();
    let out = place.path("new/run");
    let line = |needle: &str| file.lines().position(|line| line.starts_with(needle)).unwrap() + 1;
    let unknown = place.write("unknown.toml", &file.replacen("lr = ", "learning_rate = ", 1));
    let at = format!("unknown.toml:{}: unknown key `trainer.learning_rate`", line("lr = "));
    refused(&place, &["imitate", "--config", &unknown, "--out", &out], 2, &[&at]);
    let near = place.write("near.toml", &file.replace("log_every", "log_evry"));
    let needles = ["near.toml", "did you mean `trainer.log_every`?"];
    refused(&place, &["imitate", "--config", &near, "--out", &out], 2, &needles);
    let wrong = place.write("wrong.toml", &file.replace("num_samples = 2", "num_samples = \"two\""));
    let at = format!("wrong.toml:{}: `evaluation.num_samples`", line("num_samples"));
    refused(&place, &["imitate", "--config", &wrong, "--out", &out], 2, &[&at, "string \"two\""]);
    let broken = place.write("broken.toml", &file.replace("[trainer]", "[trainer"));
    let at = format!("broken.toml:{}: not valid TOML", line("[trainer]"));
    refused(&place, &["imitate", "--config", &broken, "--out", &out], 2, &[&at]);
    let absent = place.path("absent.toml");
    refused(&place, &["imitate", "--config", &absent, "--out", &out], 2, &[&absent]);

    let config = place.path("config.toml");
    for device in ["tpu", "cuda:x"] {
        let args = ["imitate", "--config", &config, "--out", &out, "--device", device];
        refused(&place, &args, 2, &[device, "auto, cpu, cuda or cuda:N"]);
    }
    let args = ["imitate", "--config", &config, "--out", &out, "--device", "cuda:99"];
    refused(&place, &args, 2, &["--device cuda:99", "no"]);
    refused(&place, &["imitate", "--config", &config], 2, &["--out"]);
    let demo = place.path("demo");
    refused(&place, &["demo", "--world", &place.path("none"), "--out", &demo], 2, &["--world", "none"]);
    refused(&place, &["demo", "--out", &demo, "--set", "trainer.stesp=1"], 2, &["`trainer.steps`"]);
    refused(&place, &["demo", "--out", &demo, "--seeds", "18446744073709551615"], 2, &["--seeds"]);
}

#[test]
fn models_that_cannot_be_used() {
    let place = Workplace::new();
    let both = "exactly one of model.pretrained";
    imitate_refused(&place, "model.pretrained=somewhere", 2, &[both, "model.config"]);
    refused(&place, &["imitate", "--out", &place.path("new/run")], 2, &[both]);
    imitate_refused(&place, "model.config=absent.json", 1, &["absent.json"]);
    imitate_refused(&place, "model.tokenizer=absent", 1, &["tokenizer absent"]);
    imitate_refused(&place, "model.tokenizer=README.md", 1, &["README.md"]);

    let small = place.path("small.json");
    let vocabulary = json!({ "vocab_size": 16 });
    write_t5(&root().join("fixtures/world/t5/config.json"), Path::new(&small), vocabulary);
    let needles = ["tokenizer fixtures/world/t5", "16 embeddings", "vocab_size"];
    imitate_refused(&place, &format!("model.config={small}"), 1, &needles);

    // A folder that was not copied to its end, to train on and to evaluate.
    let trained = place.trained();
    let copy = place.path("copy");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(&trained).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), Path::new(&copy).join(entry.file_name())).unwrap();
    }
    let weights = place.path("copy/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let config = place.path("config.toml");
    let pretrained =
        fs::read_to_string(&config).unwrap().replace("config = ", "pretrained = ").replace("t5.json", "copy");
    let pretrained = place.write("pretrained.toml", &pretrained);
    for size in [0, 5, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&weights, &bytes[..size]).unwrap();
        let out = place.path("new/run");
        refused(&place, &["imitate", "--config", &pretrained, "--out", &out], 1, &[&weights]);
        refused(&place, &["evaluate", "--model", &copy, "--config", &config, "--out", &out], 1, &[&weights]);
    }
    fs::remove_file(&weights).unwrap();
    refused(&place, &["imitate", "--config", &pretrained, "--out", &place.path("new/run")], 1, &[&copy]);
    let nowhere = pretrained.replace("pretrained.toml", "nowhere");
    let set = format!("model.pretrained={nowhere}");
    let args = ["imitate", "--config", &pretrained, "--out", &place.path("new/run"), "--set", &set];
    refused(&place, &args, 2, &["model.pretrained", &nowhere]);
}

#[test]
fn folders_that_cannot_be_used() {
    let place = Workplace::new();
    let trained = place.trained();
    let (config, run) = (place.path("config.toml"), place.path("runs/tiny"));

    // A run is neither overwritten nor resumed by accident or with other settings.
    let set = "trainer.steps=1";
    let again = ["imitate", "--config", &config, "--out", &run, "--set", set];
    refused(&place, &again, 2, &["runs/tiny` already holds a run", "--resume"]);
    let longer = ["imitate", "--out", &run, "--resume", "--set", "trainer.steps=2"];
    refused(&place, &longer, 2, &["trainer.steps: stored 1, now 2"]);
    let empty = place.path("empty");
    refused(
        &place,
        &["imitate", "--config", &config, "--out", &empty, "--resume"],
        2,
        &["holds no run to resume"],
    );
    refused(&place, &["imitate", "--config", &config, "--resume"], 2, &["--out"]);

    // Not to be read before it is known to be whole.
    let weights = place.path("runs/tiny/checkpoints/step-1/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&weights, flipped).unwrap();
    let step0 = place.path("runs/tiny/checkpoints/step-0");
    let offer = format!(
        "intact is {step0}: train on from it with `--resume --resume-from step-0`, or evaluate it with"
    );
    let resume = ["imitate", "--out", &run, "--resume"];
    refused(&place, &resume, 1, &[&weights, "its BLAKE3 hash differs", &offer]);
    for link in ["last", "best"] {
        let model = place.path(&format!("runs/tiny/checkpoints/{link}"));
        refused(&place, &["evaluate", "--model", &model], 1, &[&weights, "its BLAKE3 hash differs", &offer]);
    }
    let pretrained = format!("model.pretrained={trained}");
    let file = fs::read_to_string(&config).unwrap();
    let line = file.lines().find(|line| line.starts_with("config = ")).unwrap();
    let bare = place.write("bare.toml", &file.replace(line, ""));
    let new = place.path("new");
    let args = ["imitate", "--config", &bare, "--out", &new, "--set", &pretrained];
    refused(&place, &args, 1, &["model.safetensors", "its BLAKE3 hash differs"]);
    let from = |step| [&resume[..], &["--resume-from", step]].concat();
    refused(&place, &from("step-1"), 1, &[&weights, "its BLAKE3 hash differs", &offer]);
    refused(&place, &from("step-7"), 1, &["step-7", "there is none; there are step-0, step-1"]);
    refused(&place, &["imitate", "--out", &run, "--resume-from", "step-0"], 2, &["--resume"]);
    succeed(&from("step-0"));
    assert!(fs::read(&weights).unwrap() == bytes, "the step that was taken again gave other weights");

    // Below a regular file nothing can be created, whoever runs the test.
    let below = place.path("config.toml/run");
    let args = ["imitate", "--config", &config, "--out", &below];
    refused(&place, &args, 1, &["cannot create", &below, "Not a directory"]);
    let args = ["evaluate", "--model", &trained, "--out", &below];
    refused(&place, &args, 1, &["cannot create", &below, "Not a directory"]);
}

#[test]
fn evaluations_that_cannot_be_made() {
    let place = Workplace::new();
    let trained = place.trained();
    let refused = |args: &[&str], code, needles: &[&str]| {
        let args = [&["evaluate"], args].concat();
        refused(&place, &args, code, needles);
    };
    refused(&["--model", &place.path("none")], 2, &["--model", "none"]);
    refused(&["--model", &trained, "--split", "valid"], 2, &["valid", "train, dev and test"]);
    refused(&["--model", &trained, "--resume", "--out", &place.path("o")], 2, &["--resume has no effect"]);
    refused(&["--model", &trained, "--precision", "bf16"], 2, &["--precision has no effect"]);
    let one_task = "data.eval_tasks=[\"lives\"]";
    let needles = ["`lives` has no test file", "fixtures/world/crystal/uqa/lives/test.tsv"];
    refused(&["--model", &trained, "--split", "test", "--set", one_task], 1, &needles);
    refused(
        &["--model", &trained, "--set", "data.eval_tasks=[\"live\"]"],
        2,
        &["unknown task `live`", "`lives`"],
    );
    refused(&["--model", &trained, "--set", "data.data_path=absent.json"], 1, &["absent.json"]);

    let template = format!("data.data_path={}", place.path("data/{task}.{split}.tsv"));
    let wrong = place.write("data/lives.dev.tsv", "Q \\n (A) x (B) y\tx\nQ \\n (A) x (B) y\tx\tx\n");
    let given = ["--model", &trained, "--set", one_task, "--set", &template];
    refused(&given, 1, &[&wrong, "line 2", "expected 2 tab-separated columns", "found 3", "--skip-bad-rows"]);
    let out = place.path("skipped");
    let skip = [&["evaluate"], &given[..], &["--out", &out, "--skip-bad-rows"]].concat();
    let finished = succeed(&skip);
    assert!(
        finished.stderr.contains("lives (dev): 1 row was left out, the first: line 2"),
        "{}",
        finished.stderr
    );
    place.write("data/lives.dev.tsv", "Q \\n (A) x (B) y\tz\n");
    refused(&given, 1, &[&wrong, "line 1", "answer"]);
    place.write("data/lives.dev.tsv", "");
    refused(&given, 1, &[&wrong, "empty"]);
    fs::write(place.path("data/lives.dev.tsv"), b"Q \xff \\n (A) x (B) y\tx\n").unwrap();
    refused(&given, 1, &[&wrong, "line 1", "UTF-8"]);

    // A checkpoint outside of a run does not tell where results belong.
    let moved = place.path("moved");
    fs::rename(fs::canonicalize(&trained).unwrap(), &moved).unwrap();
    let config = place.path("config.toml");
    refused(&["--model", &moved, "--config", &config], 2, &["cannot tell the run from --model", "--out"]);
    // Nor how it was trained.
    refused(
        &["--model", &moved, "--out", &place.path("o")],
        2,
        &["--model", "how it was trained", "--config"],
    );
}
