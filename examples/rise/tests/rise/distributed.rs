//! Several processes train and play as one.

use std::fs;
use std::path::{Path, PathBuf};

use ruminate::models::checkpoint::read_tensors;
use serde_json::{Value, json};
use tch::Device;

use crate::support::{rise, root, succeed};

/// A folder with a model as small as it gets, in the words of the bundled world.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let world = root().join("fixtures/world/rise/llama");
        fs::create_dir(place.path("llama")).unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(world.join(file), place.path("llama").join(file)).unwrap();
        }
        let config = fs::read_to_string(world.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        let small = json!({
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16,
        });
        config.as_object_mut().unwrap().extend(small.as_object().unwrap().clone());
        fs::write(place.path("llama/config.json"), config.to_string()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A command line with so many processes, which share batches of so many examples.
    fn args(
        &self,
        command: &str,
        out: &str,
        (processes, batch): (usize, usize),
        sets: &[String],
    ) -> Vec<String> {
        let out = self.path(out).display().to_string();
        let mut args: Vec<String> =
            [command, "--config", "examples/rise/configs/world.toml", "-q", "--json", "--out", &out]
                .map(String::from)
                .to_vec();
        args.extend(["--nproc".into(), processes.to_string()]);
        let batch = format!("finetune.training.batch_size={}", batch / processes);
        let sets = sets.iter().cloned().chain([batch]);
        args.extend(sets.flat_map(|set| ["--set".to_string(), set]));
        args
    }

    fn same_file(&self, file: &str, runs: [&str; 2]) {
        let [a, b] = runs.map(|run| fs::read(self.path(run).join(file)).unwrap());
        assert!(a == b, "{file} of {runs:?} differ");
    }

    /// Every parameter of the last checkpoints agrees to a millionth of its largest number.
    fn same_model(&self, runs: [&str; 2]) {
        let read = |run: &str| {
            let path = self.path(run).join("checkpoints/last/model.safetensors");
            read_tensors(&path, Device::Cpu).unwrap()
        };
        let [a, b] = runs.map(read);
        for (name, a) in &a {
            let difference = (a - &b[name]).abs().max().double_value(&[]) / a.abs().max().double_value(&[]);
            assert!(difference <= 1e-6, "{runs:?}, {name}: {difference:e}");
        }
    }
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap().lines().count()
}

#[test]
fn two_processes_learn_and_play_as_one() {
    let place = Place::new();
    let sets = |sets: &[&str]| sets.iter().map(|set| (*set).to_string()).collect::<Vec<_>>();
    let training = [
        format!("model.config={}", place.path("llama/config.json").display()),
        "finetune.examples=[\"fixtures/world/rise/boost.json\"]".into(),
    ];
    let more = sets(&["finetune.training.epochs=0.1", "finetune.training.held_out=0.05"]);
    let more = [&training[..], &more, &sets(&["finetune.trainer.eval_every=3"])].concat();
    let one = succeed(&place.args("finetune", "one", (1, 16), &more)).json();
    let two = succeed(&place.args("finetune", "two", (2, 16), &more)).json();
    // As many steps, of as many examples in all.
    assert_eq!((&one["steps"], &one["data"]), (&two["steps"], &two["data"]));
    place.same_model(["one", "two"]);
    for file in ["metrics.jsonl", "samples.jsonl"] {
        let [one, two] = ["one", "two"].map(|run| place.path(run).join(file));
        assert_eq!(lines(&one), lines(&two), "rank 0 alone writes {file}");
    }
    // Steps were counted when the run began.
    let resumed = place.path("two").display().to_string();
    let resumed = ["finetune", "--out", &resumed, "--resume", "-q", "--json"].map(String::from);
    assert_eq!(succeed(&resumed).json()["steps"], two["steps"]);

    // The whole loop, from the same student. Its folder says where the model is.
    let student = format!("model.pretrained={}", place.path("one/checkpoints/last").display());
    let config = fs::read_to_string(root().join("examples/rise/configs/world.toml")).unwrap();
    let path = place.path("loop.toml");
    fs::write(&path, config.replace("config = ", "# config = ")).unwrap();
    let iterate = |out: &str, processes: usize| {
        let short = sets(&[
            "data.limit=5",
            "evaluation.limit=5",
            "evaluation.turns=2",
            "iteration.last_samples=2",
            "iteration.evaluate=[\"sequential\"]",
            "finetune.training.epochs=0",
            "finetune.trainer.steps=4",
            "conversion.settings.criterion=\"all\"",
        ]);
        let mut args = place.args(
            "iterate",
            out,
            (processes, 4),
            &[&short[..], std::slice::from_ref(&student)].concat(),
        );
        args[2] = path.display().to_string();
        args
    };
    for (out, processes) in [("loop-one", 1), ("loop-two", 2)] {
        let finished = rise(&iterate(out, processes));
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    }
    let step = |step: &str| ["loop-one", "loop-two"].map(|run| format!("{run}/iteration-1/{step}"));
    for (of, files) in [
        ("collect", &["episodes.jsonl", "2_turns.json"][..]),
        ("convert", &["examples.json"]),
        ("evaluate/sequential", &["2_turns.json", "metrics.json"]),
    ] {
        let [one, two] = step(of);
        files.iter().for_each(|file| place.same_file(file, [&one, &two]));
    }
    let [one, two] = step("finetune");
    place.same_model([&one, &two]);
}
