//! A crate outside of this workspace: no setting, no configuration of cargo, nothing on the loader's path.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ruminate::models::{T5, T5Config};
use ruminate::tch::{Device, Kind};

/// The workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// The first program of the README, with another folder for the model.
fn program_of_the_readme(model: &Path) -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```rust,no_run\n").unwrap();
    let (program, _) = rest.split_once("```").unwrap();
    let path = "\"models/flan-t5-base\"";
    assert!(program.contains(path), "the README's program loads another model");
    program.replace(path, &format!("{model:?}"))
}

/// A small T5 with random weights.
fn write_model(folder: &Path) {
    let world = root().join("fixtures/world/t5");
    T5::new(T5Config::open(&world).unwrap(), Kind::Float, Device::Cpu, 1).unwrap().save(folder).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(world.join(file), folder.join(file)).unwrap();
    }
}

/// A command that knows nothing of this workspace's build. A libtorch of the user's own, which may stand for the cache, is left to it.
fn clean(program: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    for variable in ["LD_LIBRARY_PATH", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_MANIFEST_DIR"] {
        command.env_remove(variable);
    }
    command.current_dir(folder);
    command
}

fn log_prob(output: &Output) -> f64 {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    let line = text.lines().find_map(|line| line.strip_prefix("log p = "));
    line.unwrap_or_else(|| panic!("no log-probability in: {text}")).parse().unwrap()
}

/// `clap = ...` as the workspace has it.
fn clap() -> String {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let line = manifest.lines().find_map(|line| line.strip_prefix("clap = { ")).unwrap();
    format!("clap = {{ optional = true, {line}")
}

#[test]
fn the_readmes_program_and_that_of_xtask_new_run_in_a_crate_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let (package, model) = (folder.path().join("answers"), folder.path().join("t5"));
    fs::create_dir_all(package.join("src/bin")).unwrap();
    fs::create_dir(&model).unwrap();
    write_model(&model);
    let template = root().join("crates/xtask/template");
    fs::write(package.join("src/main.rs"), program_of_the_readme(&model)).unwrap();
    fs::copy(template.join("src/main.rs"), package.join("src/bin/finetune.rs")).unwrap();
    let manifest = format!(
        "[package]\nname = \"answers\"\nversion = \"0.1.0\"\nedition = \"2024\"\ndefault-run = \"answers\"\n\n\
         [features]\nfinetune = [\"dep:clap\"]\n\n\
         [[bin]]\nname = \"finetune\"\nrequired-features = [\"finetune\"]\n\n\
         [dependencies]\n{}\nruminate = {{ path = {:?} }}\n",
        clap(),
        root().join("crates/ruminate")
    );
    fs::write(package.join("Cargo.toml"), manifest).unwrap();
    // The versions that were fetched for this workspace, so that no network is needed.
    fs::copy(root().join("Cargo.lock"), package.join("Cargo.lock")).unwrap();
    // Kept from one run to the next.
    let target = root().join("target/outside");
    let cargo = |arguments: &[&str]| {
        let mut cargo = clean(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), &package);
        cargo.args(["run", "--release", "--offline", "--quiet"]).args(arguments);
        cargo.env("CARGO_TARGET_DIR", &target).output().unwrap()
    };

    let through_cargo = log_prob(&cargo(&[]));
    assert!(through_cargo.is_finite() && through_cargo < 0.0, "{through_cargo}");
    let direct = log_prob(&clean(target.join("release/answers"), &package).output().unwrap());
    assert_eq!(direct, through_cargo);

    let (model, data) =
        (model.display().to_string(), template.join("data/train.jsonl").display().to_string());
    let finetune = ["--features", "finetune", "--bin", "finetune", "--", "--model", &model, "--data", &data];
    let output = cargo(&[&finetune[..], &["--steps", "2", "--batch-size", "2"]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("checkpoint: runs/sft/") && text.contains("first answer: "), "{text}");
    assert!(package.join("runs/sft/step-2/model.safetensors").is_file(), "{text}");
}
