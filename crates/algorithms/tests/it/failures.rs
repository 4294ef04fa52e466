//! Runs that cannot go on say why, and what was saved stays as it was.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ruminate_algorithms::trainer::{Checkpoints, Damage, MANIFEST, file_hash, seal, verify};
use ruminate_algorithms::{Error, NullObserver, OptimizerChoice, Schedule, Trainer, TrainerConfig};
use ruminate_torch::optim::AdafactorConfig;

use crate::support::{Drill, Recorder, alone, chain, examples, fit, names, short, target};

fn drill() -> Drill {
    Drill::new(examples(4), 2)
}

fn poisoned(from: u64) -> Drill {
    Drill { poisoned: Some(from), ..drill() }
}

/// Every file below a folder with its bytes.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    names(folder)
        .into_iter()
        .flat_map(|name| match folder.join(&name) {
            path if path.is_dir() => {
                contents(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)).collect()
            }
            path => vec![(name, fs::read(path).unwrap())],
        })
        .collect()
}

#[test]
fn a_loss_that_is_no_number_ends_the_run() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let config = TrainerConfig { save_every: 1, ..short(8) };
    let mut observer = Recorder::default();
    match fit(folder.path(), &config, poisoned(3), &mut observer) {
        Err(Error::NotFinite { name, value, step }) => {
            assert!(value.is_nan() && step == 3 && ["loss", "grad_norm"].contains(&name.as_str()));
        }
        other => panic!("{:?}", other.map(|(fitted, _)| fitted)),
    }
    assert_eq!(observer.events.last().map(String::as_str), Some("checkpoint 3"));
    assert_eq!(target(folder.path(), "last"), "step-3");
    // A remedy can go on from there.
    let (fitted, _) = fit(folder.path(), &config, drill(), &mut NullObserver).unwrap();
    assert!(fitted.best.score.is_finite());
}

#[test]
fn no_checkpoint_holds_what_is_no_number() {
    // The losses are looked at rarely, the saves come often; each way to a checkpoint is tried.
    let _alone = alone();
    let rarely = TrainerConfig { log_every: 100, ..short(8) };
    let saving = TrainerConfig { save_every: 1, ..rarely.clone() };
    let validating = TrainerConfig { eval_every: 1, ..rarely.clone() };
    let stopping = TrainerConfig { save_every: 3, ..rarely };
    for (config, stop_after) in [(saving, None), (validating, None), (stopping, Some(4))] {
        let folder = tempfile::tempdir().unwrap();
        let mut drill = poisoned(3);
        // A score that does not notice, as an accuracy.
        drill.scores = (0..9).map(|step| (step, 1.0)).collect();
        let mut observer = Recorder { stop_after, ..Recorder::default() };
        let result = fit(folder.path(), &config, drill, &mut observer);
        match result.map(|(fitted, _)| fitted) {
            Err(Error::NotFinite { step, .. }) => assert!((3..=5).contains(&step), "{step}"),
            other => panic!("{config:?}: {other:?}"),
        }
        assert_eq!(target(folder.path(), "last"), "step-3", "{config:?}");
        // The error keeps its promise: what is there goes on.
        fit(folder.path(), &config, self::drill(), &mut NullObserver).unwrap();
    }
}

#[test]
fn a_score_that_is_no_number_ends_the_run() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut drill = drill();
    drill.scores.insert(2, f64::NAN);
    let config = TrainerConfig { eval_every: 2, ..short(4) };
    let error = fit(folder.path(), &config, drill, &mut NullObserver).unwrap_err();
    assert!(
        matches!(&error, Error::NotFinite { name, step: 2, .. } if name == "validation score"),
        "{error}"
    );
    assert_eq!(names(folder.path()), ["best", "last", "step-0"]);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), b"").unwrap();
    let root = folder.path().join("file/checkpoints");
    let error = Trainer::new(short(1), &root).unwrap_err();
    assert!(matches!(&error, Error::Io { action: "create", path, .. } if *path == root), "{error}");
    assert!(error.to_string().contains(&root.display().to_string()));
}

#[test]
fn a_save_that_fails_names_its_place_and_keeps_the_last() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    /// Puts something in the way of the next checkpoint.
    struct Obstacle<'a>(&'a Path);
    impl ruminate_algorithms::Observer for Obstacle<'_> {
        fn checkpoint(&mut self, step: u64, _: &Path) -> Result<(), ruminate_algorithms::ObserverError> {
            Ok(fs::write(self.0.join(format!(".tmp-step-{}", step + 2)), b"")?)
        }
    }
    let config = TrainerConfig { save_every: 2, ..short(6) };
    let error = fit(folder.path(), &config, drill(), &mut Obstacle(folder.path())).unwrap_err();
    assert!(chain(&error).contains(&folder.path().join(".tmp-step-4").display().to_string()), "{error}");
    assert_eq!(target(folder.path(), "last"), "step-2");
    // The next process clears the way.
    fit(folder.path(), &config, drill(), &mut NullObserver).unwrap();
    assert_eq!(target(folder.path(), "last"), "step-6");
}

/// A run of six steps that was stopped after four, with the checkpoints 0, 2 and 4.
fn stopped(folder: &Path) -> TrainerConfig {
    let config = TrainerConfig { eval_every: 2, keep: 3, ..short(6) };
    let mut drill = drill();
    // The best is not in the way of what is tested: it is the last.
    drill.scores = [(0, 0.0), (2, 1.0), (4, 2.0), (6, 3.0)].into();
    fit(folder, &config, drill, &mut Recorder::failing_at("step 4 of 6")).unwrap_err();
    assert_eq!(names(folder), ["best", "last", "step-0", "step-2", "step-4"]);
    config
}

#[test]
fn a_damaged_checkpoint_is_named_and_left_alone() {
    let _alone = alone();
    for file in
        ["trainer.safetensors", "state.json", "model.safetensors", "config.json", "tokenizer.json", MANIFEST]
    {
        let folder = tempfile::tempdir().unwrap();
        let config = stopped(folder.path());
        let path = folder.path().join("last").join(file);
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() > 100, "{file}");
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 4;
        for (what, content) in [
            ("cut short", Some(&bytes[..100])),
            ("empty", Some(&bytes[..0])),
            ("flipped", Some(&flipped)),
            ("missing", None),
        ] {
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let before = contents(folder.path());
            let error = fit(folder.path(), &config, drill(), &mut NullObserver).unwrap_err();
            let Error::Damaged { folder: damaged, file: named, damage, intact } = &error else {
                panic!("{file}, {what}: {error}");
            };
            assert_eq!(*damaged, folder.path().join("step-4"));
            assert_eq!(*intact, Some(folder.path().join("step-2")));
            if file != MANIFEST {
                let expected = match what {
                    "flipped" => Damage::Content,
                    "missing" => Damage::Missing,
                    _ => Damage::Size {
                        expected: bytes.len() as u64,
                        found: content.map_or(0, <[u8]>::len) as u64,
                    },
                };
                assert_eq!((named.as_str(), damage), (file, &expected), "{what}");
            } else if what != "flipped" {
                // One bit may also turn a digit of a hash into another.
                assert_eq!(named, MANIFEST, "{what}");
            }
            let message = error.to_string();
            for needle in [named, "step-4", "step-2: train on from it with `--resume --resume-from step-2`"] {
                assert!(message.contains(needle), "{needle}: {message}");
            }
            assert!(verify(&folder.path().join("last")).is_err());
            assert!(contents(folder.path()) == before, "{file}: something was changed");
        }
        fs::write(&path, &bytes).unwrap();
        fit(folder.path(), &config, drill(), &mut NullObserver).unwrap();
    }
}

/// Data files are hashed for the record of a run, and may be written by somebody meanwhile.
#[test]
fn a_file_may_be_shortened_while_it_is_hashed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    let long = vec![7; (16 << 20) + 5];
    fs::write(&path, &long).unwrap();
    assert_eq!(file_hash(&path).unwrap(), blake3::hash(&long).to_hex().as_str());
    assert!(file_hash(folder.path()).is_err() && file_hash(&folder.path().join("gone")).is_err());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::write(&path, &long[..1 << 20]).unwrap();
            }
        });
        for _ in 0..300 {
            file_hash(&path).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_manifest_that_lies_is_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    stopped(folder.path());
    let step = folder.path().join("step-4");
    let manifest = step.join(MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    let entry = r#""files": {"#;
    let extra =
        |name: &str| text.replace(entry, &format!(r#"{entry} "{name}": {{ "bytes": 3, "blake3": "00" }},"#));
    for (content, file, reason) in [
        (extra("gone.json"), "gone.json", "is missing"),
        (extra("../step-2/config.json"), MANIFEST, "../step-2/config.json"),
        (extra("/etc/passwd"), MANIFEST, "cannot be a file of the checkpoint"),
        (extra(""), MANIFEST, "cannot be a file of the checkpoint"),
        (text.replace("bytes", "octets"), MANIFEST, "unknown field `octets`"),
        (text.replace("state.json", "state.jsom"), "state.jsom", "is missing"),
        (text[..text.len() / 2].to_string(), MANIFEST, "is not a manifest"),
    ] {
        fs::write(&manifest, content).unwrap();
        let message = verify(&step).unwrap_err().to_string();
        assert!(
            message.contains(&step.join(file).display().to_string()) && message.contains(reason),
            "{message}"
        );
    }
    fs::write(&manifest, &text).unwrap();
    verify(&step).unwrap();
    // Notes do not disturb; weights that a reader would prefer do.
    fs::write(step.join("notes.txt"), "a good one").unwrap();
    verify(&step).unwrap();
    fs::write(step.join("model.safetensors.index.json"), "{}").unwrap();
    assert!(matches!(verify(&step), Err(Error::Damaged { damage: Damage::Unlisted, .. })));
    // What is meant can be said.
    seal(&step).unwrap();
    verify(&step).unwrap();
}

#[test]
fn a_model_folder_needs_no_manifest_and_a_checkpoint_does() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    stopped(folder.path());
    let step = folder.path().join("step-4");
    fs::remove_file(step.join(MANIFEST)).unwrap();
    assert!(matches!(verify(&step), Err(Error::Damaged { damage: Damage::Missing, .. })));
    for file in ["trainer.safetensors", "state.json"] {
        fs::remove_file(step.join(file)).unwrap();
    }
    verify(&step).unwrap();
}

#[test]
fn a_run_goes_on_from_an_earlier_checkpoint_when_it_is_told_to() {
    let _alone = alone();
    let undisturbed = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = stopped(undisturbed.path());
    stopped(folder.path());
    fit(undisturbed.path(), &config, drill(), &mut NullObserver).unwrap();

    fs::write(folder.path().join("last/model.safetensors"), "rotten").unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    let message = checkpoints.rewind(3).unwrap_err().to_string();
    assert!(message.ends_with("there is none; there are step-0, step-2, step-4"), "{message}");
    assert!(matches!(checkpoints.rewind(4), Err(Error::Damaged { .. })));
    assert_eq!(target(folder.path(), "last"), "step-4");
    checkpoints.rewind(2).unwrap();
    let mut observer = Recorder::default();
    let mut drill = drill();
    drill.scores = [(4, 2.0)].into();
    fit(folder.path(), &config, drill, &mut observer).unwrap();
    assert_eq!(observer.events[0], "started 2 of 6");
    for file in ["model.safetensors", "trainer.safetensors"] {
        let read = |root: &Path| fs::read(root.join("last").join(file)).unwrap();
        assert!(read(folder.path()) == read(undisturbed.path()), "{file}");
    }
    assert_eq!(names(folder.path()), names(undisturbed.path()));
}

#[test]
fn a_folder_that_was_copied_without_links_goes_on_from_its_newest_checkpoint() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let config = stopped(folder.path());
    for link in ["last", "best"] {
        fs::remove_file(folder.path().join(link)).unwrap();
    }
    let mut observer = Recorder::failing_at("step 4 of 6");
    fit(folder.path(), &config, drill(), &mut observer).unwrap_err();
    assert_eq!(observer.events[0], "started 4 of 6");
    assert_eq!(
        (target(folder.path(), "last"), target(folder.path(), "best")),
        ("step-4".into(), "step-4".into())
    );
    // A link to elsewhere is nobody's guess.
    fs::remove_file(folder.path().join("last")).unwrap();
    std::os::unix::fs::symlink("elsewhere", folder.path().join("last")).unwrap();
    let error = fit(folder.path(), &config, drill(), &mut NullObserver).unwrap_err().to_string();
    assert!(error.contains("last") && error.contains("elsewhere"), "{error}");
}

#[test]
fn a_checkpoint_of_another_model_is_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    fit(folder.path(), &short(2), drill(), &mut NullObserver).unwrap();
    let root = folder.path().join("step-2");
    // The weights fit, the optimizer's state does not.
    let path = root.join("trainer.safetensors");
    let mut tensors = ruminate_models::checkpoint::read_tensors(&path, tch::Device::Cpu).unwrap();
    let (name, _) = tensors.pop_last().unwrap();
    ruminate_models::checkpoint::write_tensors(&path, tensors.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
    seal(&root).unwrap();
    let before = contents(folder.path());
    let error = fit(folder.path(), &short(4), drill(), &mut NullObserver).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint { path: p, .. } if *p == path), "{error}");
    assert!(error.to_string().contains(&name) && error.to_string().contains("another model"), "{error}");
    assert!(contents(folder.path()) == before);
    // Nor is a generator state invented.
    fit(&folder.path().join("other"), &short(2), drill(), &mut NullObserver).unwrap();
    let path = folder.path().join("other/step-2/trainer.safetensors");
    let mut tensors = ruminate_models::checkpoint::read_tensors(&path, tch::Device::Cpu).unwrap();
    assert!(tensors.remove("rng.cpu").is_some());
    ruminate_models::checkpoint::write_tensors(&path, tensors.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
    seal(path.parent().unwrap()).unwrap();
    let error = fit(&folder.path().join("other"), &short(4), drill(), &mut NullObserver).unwrap_err();
    assert!(error.to_string().contains("`rng.cpu` is missing"), "{error}");

    let other = ruminate_models::T5Config { d_ff: 48, ..crate::support::tiny(0.0) };
    let t5 = ruminate_models::T5::new(other, tch::Kind::Float, tch::Device::Cpu, 1).unwrap();
    let mut sft = ruminate_algorithms::Sft::new(t5, drill(), crate::support::tokenizer());
    let error = Trainer::new(short(4), folder.path()).unwrap().fit(&mut sft, &mut NullObserver).unwrap_err();
    let error = chain(&error);
    assert!(error.contains("model.safetensors") && error.contains("wi.weight"), "{error}");
}

fn adafactor(change: fn(&mut AdafactorConfig)) -> OptimizerChoice {
    let mut config = AdafactorConfig::default();
    change(&mut config);
    OptimizerChoice::Adafactor(config)
}

#[test]
fn settings_out_of_range_are_named() {
    type Change = fn(&mut TrainerConfig);
    let changes: [(&str, Change); 27] = [
        ("lr", |c| c.lr = 0.0),
        ("lr", |c| c.lr = f64::NAN),
        ("lr", |c| c.lr = f64::INFINITY),
        ("betas", |c| c.betas = [1.0, 0.9]),
        ("betas", |c| c.betas = [0.9, -0.1]),
        ("eps", |c| c.eps = -1e-8),
        ("weight_decay", |c| c.weight_decay = f64::NAN),
        ("max_grad_norm", |c| c.max_grad_norm = -1.0),
        ("steps", |c| c.steps = 0),
        ("accumulate", |c| c.accumulate = 0),
        ("log_every", |c| c.log_every = 0),
        ("schedule", |c| c.schedule = Schedule::Cosine { cycles: f64::NAN }),
        ("schedule", |c| c.schedule = Schedule::Cosine { cycles: 0.0 }),
        ("schedule", |c| c.schedule = Schedule::Cosine { cycles: -0.5 }),
        ("schedule", |c| c.schedule = Schedule::CosineWithRestarts { cycles: 0 }),
        ("schedule", |c| c.schedule = Schedule::Polynomial { lr_end: c.lr, power: 1.0 }),
        ("schedule", |c| c.schedule = Schedule::Polynomial { lr_end: 0.0, power: 0.0 }),
        ("schedule", |c| c.schedule = Schedule::InverseSqrt { timescale: Some(0) }),
        ("weight_decay", |c| (c.weight_decay, c.optimizer) = (0.1, adafactor(|_| ()))),
        ("optimizer.adafactor.eps", |c| c.optimizer = adafactor(|a| a.eps[1] = f64::NAN)),
        ("optimizer.adafactor.clip_threshold", |c| c.optimizer = adafactor(|a| a.clip_threshold = 0.0)),
        ("optimizer.adafactor.decay_rate", |c| c.optimizer = adafactor(|a| a.decay_rate = 0.8)),
        ("optimizer.adafactor.beta1", |c| c.optimizer = adafactor(|a| a.beta1 = Some(1.0))),
        ("optimizer.adafactor.weight_decay", |c| c.optimizer = adafactor(|a| a.weight_decay = -1.0)),
        ("optimizer.adafactor.warmup_init", |c| c.optimizer = adafactor(|a| a.warmup_init = true)),
        ("optimizer.adafactor.relative_step", |c| {
            (c.warmup_steps, c.optimizer) = (5, adafactor(|a| a.relative_step = true));
        }),
        ("optimizer.adafactor.relative_step", |c| {
            (c.schedule, c.optimizer) = (Schedule::Linear, adafactor(|a| a.relative_step = true));
        }),
    ];
    TrainerConfig::default().validate().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (expected, change) in changes {
        let mut config = short(1);
        change(&mut config);
        let error = Trainer::new(config, &folder.path().join("run")).unwrap_err();
        assert!(matches!(&error, Error::Config { key, .. } if key == expected), "{expected}: {error}");
        assert!(error.to_string().starts_with(&format!("setting `{expected}`")), "{error}");
    }
    assert!(names(folder.path()).is_empty(), "a wrong setting leaves no folder behind");
}
