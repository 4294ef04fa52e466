//! Several processes train as one.

use std::fs;
use std::path::Path;

use ruminate::models::checkpoint::read_tensors;
use tch::Device;

use crate::support::{Finished, Workplace, lines, succeed};

/// Every parameter of the last checkpoints agrees to a millionth of its largest number.
fn same_model(a: &str, b: &str) {
    let read = |run: &str| {
        read_tensors(&Path::new(run).join("checkpoints/last/model.safetensors"), Device::Cpu).unwrap()
    };
    let (of_one, of_two) = (read(a), read(b));
    for (name, one) in &of_one {
        let difference =
            (one - &of_two[name]).abs().max().double_value(&[]) / one.abs().max().double_value(&[]);
        assert!(difference <= 1e-6, "{b}, {name}: {difference:e}");
    }
}

fn train(
    place: &Workplace,
    command: &[&str],
    out: &str,
    sets: &[String],
    more: &[&str],
) -> (Finished, String) {
    let (config, out) = (place.path("config.toml"), place.path(out));
    let mut args = [command, &["--config", &config, "--out", &out, "--json", "-q"]].concat();
    sets.iter().for_each(|set| args.extend(["--set", set]));
    (succeed(&[&args, more].concat()), out)
}

#[test]
fn two_processes_write_and_rank_as_one() {
    let place = Workplace::new();
    let two_processes = ["--nproc", "2"];
    let mut trained = vec![];
    for (stage, command) in [("sft", &["sft"][..]), ("ir2o", &["reward-model", "--mode", "ir2o"])] {
        let sets = |batch: usize| {
            let sets = [format!("{stage}.training.batch_size={batch}"), format!("{stage}.training.epochs=1")];
            let short = (stage == "sft").then(|| "sft.training.max_length=16".to_string());
            sets.into_iter().chain(short).collect::<Vec<_>>()
        };
        let (one, whole) = train(&place, command, &format!("{stage}-one"), &sets(8), &[]);
        let (two, parts) = train(&place, command, &format!("{stage}-two"), &sets(4), &two_processes);
        // As many rows make as many steps.
        assert_eq!(one.json()["steps"], two.json()["steps"]);
        assert_eq!(one.json()["best"]["score"], two.json()["best"]["score"]);
        same_model(&whole, &parts);
        // Rank 0 alone writes lines about validations.
        let log = if stage == "sft" { "op_scores_val_greedy.txt" } else { "op_scores_val.txt" };
        assert_eq!(lines(&format!("{whole}/{log}")), lines(&format!("{parts}/{log}")));
        trained.push(whole);
    }

    let reference = format!("{}/checkpoints/last", trained[0]);
    let sets = |batch: usize| {
        vec![
            format!("quark.model={{pretrained=\"{reference}\"}}"),
            format!("quark.reference={reference}"),
            format!("quark.training.batch_size={batch}"),
            "quark.training.sample_interval=3".into(),
            "quark.training.sampling.batch_size=8".into(),
            "quark.training.sampling.lengths.max_length=12".into(),
            "quark.training.eval_lengths.max_length=12".into(),
            "quark.training.kl_vocab=200".into(),
            "quark.training.control.rewards=[{name=\"accuracy\",buckets=\"correctness\"},{name=\"diversity\"}]"
                .into(),
            "quark.trainer.steps=6".into(),
            "quark.trainer.lr=1e-4".into(),
            "quark.trainer.warmup_steps=0".into(),
            "quark.trainer.eval_every=3".into(),
        ]
    };
    let (_, one) = train(&place, &["train"], "quark-one", &sets(8), &[]);
    let (_, two) = train(&place, &["train"], "quark-two", &sets(4), &two_processes);
    same_model(&one, &two);
    // The pool is the same, and so is what is written down about every response.
    let read = |run: &str, file: &str| fs::read(Path::new(run).join(file)).unwrap();
    let files = fs::read_dir(Path::new(&one).join("reward")).unwrap();
    let files: Vec<String> = files
        .map(|file| format!("reward/{}", file.unwrap().file_name().to_string_lossy()))
        .chain(["checkpoints/last/pool.jsonl".into()])
        .collect();
    assert!(files.len() > 8, "{files:?}");
    for file in files {
        assert!(read(&one, &file) == read(&two, &file), "{file} differs");
    }

    // An evaluation in two processes gives the same files, and both know the same steps.
    let evaluate = |out: &str, more: &[&str]| {
        let out = place.path(out);
        let args = [
            "evaluate",
            "--model",
            &one,
            "--checkpoints",
            "all",
            "--split",
            "dev,test",
            "--out",
            &out,
            "--json",
            "-q",
        ];
        (succeed(&[&args[..], more].concat()).json(), out)
    };
    let (alone, whole) = evaluate("eval-one", &[]);
    let (shared, parts) = evaluate("eval-two", &two_processes);
    let steps: Vec<&str> =
        alone["results"].as_array().unwrap().iter().map(|result| result["name"].as_str().unwrap()).collect();
    assert!(steps.len() >= 4 && steps[..2] == ["0", "0"] && steps.ends_with(&["6", "6"]), "{alone}");
    assert_eq!(alone["results"].as_array().unwrap().len(), shared["results"].as_array().unwrap().len());
    let mut files = 0;
    for file in fs::read_dir(&whole).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(read(&whole, &name) == read(&parts, &name), "{name} differs");
        files += 1;
    }
    assert!(files >= 6, "{files}");
    let error = crate::support::mario(&["evaluate", "--model", &one, "--checkpoints", "5"]);
    assert!(error.code == Some(2) && error.stderr.contains("there is no step 5"), "{}", error.stderr);
}
