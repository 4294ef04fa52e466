//! Lesser processors: tests under each level of vector units that this machine has, and programs on emulated processors.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ruminate_libtorch::Problem;
use serde_json::Value;

use crate::Cuda;
use crate::cargo::cargo;

/// The emulator of user programs that Debian's package `qemu-user` brings.
const EMULATOR: &str = "qemu-x86_64";
/// Emulated processors: the last before AVX, and one with AVX2 but without AVX-512; and the level that each must find.
const PROCESSORS: [(&str, &str); 2] = [("Nehalem", "baseline"), ("Haswell", "avx2")];
/// Golden vectors that run there: one folder of each family.
const GOLDEN: [&str; 2] = ["t5_v10_tied", "llama_gqa_tied"];
/// Below `target`: what emulated programs read and write.
const FOLDER: &str = "target/emulated";

/// Test programs and programs of the workspace, as one build of all tests makes them: any other choice of packages would have other
/// features, and so compile everything anew.
struct Built {
    golden: PathBuf,
    smoke: PathBuf,
    crystal: PathBuf,
    /// Test programs of the crate with the loops, with the folder that cargo starts them in.
    torch_tests: Vec<PathBuf>,
    torch_folder: PathBuf,
    environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
}

impl Built {
    fn new(root: &Path, cuda: Cuda) -> Result<Self> {
        let mut cargo = cargo(root, cuda)?;
        cargo.args(["test", "--release", "--workspace", "--no-run", "--quiet"]);
        cargo.args(["--message-format", "json-render-diagnostics"]).stdout(Stdio::piped());
        let environment =
            cargo.get_envs().filter_map(|(name, value)| Some((name.into(), value?.into()))).collect();
        let output = cargo.spawn().and_then(Child::wait_with_output).context("starting cargo")?;
        ensure!(output.status.success(), "the tests do not compile");
        let artifacts: Vec<Value> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["reason"] == "compiler-artifact" && message["executable"].is_string())
            .collect();
        let executable =
            |artifact: &Value| PathBuf::from(artifact["executable"].as_str().unwrap_or_default());
        let program = |name: &str| {
            let found = artifacts.iter().find(|artifact| {
                artifact["target"]["name"] == name
                    && artifact["target"]["kind"][0] == "bin"
                    && artifact["profile"]["test"] == false
            });
            found.map(executable).with_context(|| format!("cargo built no program {name}"))
        };
        let torch_folder = root.join("crates/torch");
        let manifest = torch_folder.join("Cargo.toml");
        let of_torch = |artifact: &&Value| {
            artifact["manifest_path"].as_str().is_some_and(|path| Path::new(path) == manifest)
                && artifact["profile"]["test"] == true
                && artifact["target"]["kind"][0] == "test"
        };
        let torch_tests: Vec<PathBuf> = artifacts.iter().filter(of_torch).map(executable).collect();
        ensure!(!torch_tests.is_empty(), "cargo built no tests of {}", manifest.display());
        Ok(Self {
            golden: program("golden")?,
            smoke: program("smoke")?,
            crystal: program("crystal")?,
            torch_tests,
            torch_folder,
            environment,
        })
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The levels that this process may use, the least first.
    fn levels(&self) -> Result<Vec<String>> {
        Ok(output(self.command(&self.smoke).arg("--levels"))?.lines().map(String::from).collect())
    }
}

/// Runs a program and returns its stdout; its failure is an error.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("starting {name}"))?;
    ensure!(
        output.status.success(),
        "{name}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs the tests of the loops, and the golden vectors, under each level below the best one.
pub(crate) fn test_lesser(root: &Path, cuda: Cuda) -> Result<()> {
    let built = Built::new(root, cuda)?;
    let levels = built.levels()?;
    for level in levels.iter().take(levels.len().saturating_sub(1)) {
        eprintln!("As on a lesser processor (RUMINATE_CPU={level}):");
        let tests = built.torch_tests.iter().map(|test| {
            let mut command = built.command(test);
            command.current_dir(&built.torch_folder);
            command
        });
        for mut command in tests.chain([built.command(&built.golden)]) {
            let name = command.get_program().to_string_lossy().into_owned();
            let status = command.env("RUMINATE_CPU", level).status();
            let status = status.with_context(|| format!("starting {name}"))?;
            ensure!(status.success(), "{name} under RUMINATE_CPU={level}: {status}");
        }
    }
    Ok(())
}

/// Runs a few steps of everything, and some golden vectors, on emulated processors; the tokens must be those of this one.
pub(crate) fn emulate(root: &Path, cuda: Cuda) -> Result<u8> {
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) {
        eprintln!("skipped: the emulated processors are for Linux on x86-64");
        return Ok(0);
    }
    if Command::new(EMULATOR).arg("--version").stdout(Stdio::null()).status().is_err() {
        let mend = "sudo apt-get install qemu-user";
        return Err(Problem::new(format!("there is no {EMULATOR}"), mend).into());
    }
    let built = Built::new(root, cuda)?;
    let folder = root.join(FOLDER);
    let native = folder.join("native.json");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    fs::write(&native, output(&mut built.command(&built.smoke))?)
        .with_context(|| format!("writing {}", native.display()))?;
    let golden = golden_root(root, &folder)?;

    // A processor each, at the same time.
    let started = Instant::now();
    std::thread::scope(|scope| {
        let runs: Vec<_> = PROCESSORS
            .iter()
            .map(|&(processor, level)| {
                let (built, native, golden) = (&built, &native, &golden);
                scope.spawn(move || on_processor(built, processor, level, native, golden))
            })
            .collect();
        for (run, (processor, level)) in runs.into_iter().zip(PROCESSORS) {
            let said = run.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the thread ended")));
            let said = said.with_context(|| format!("on an emulated {processor}"))?;
            println!("emulated {processor} ({level}): {said}");
        }
        anyhow::Ok(())
    })?;
    eprintln!("Emulated processors took {:.0} s.", started.elapsed().as_secs_f64());
    Ok(0)
}

fn on_processor(built: &Built, processor: &str, level: &str, native: &Path, golden: &Path) -> Result<String> {
    let emulated = |program: &Path| {
        let mut command = built.command(EMULATOR);
        command.args(["-cpu", processor]).arg(program).env("OMP_NUM_THREADS", "1").env_remove("RUMINATE_CPU");
        command
    };
    // The emulator warns of features that it lacks, on each start.
    let quiet = |mut command: Command| {
        let output = command.stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> = errors.lines().filter(|line| !line.contains("TCG doesn't support")).collect();
        ensure!(output.status.success(), "{}\n{text}\n{}", output.status, errors.join("\n"));
        Ok(text)
    };
    let mut smoke = emulated(&built.smoke);
    smoke.arg("--expect").arg(native);
    let found: Value = serde_json::from_str(&quiet(smoke)?)?;
    ensure!(found["level"] == level, "the level found is {}", found["level"]);
    let mut doctor = emulated(&built.crystal);
    doctor.arg("doctor");
    let named = format!("our loops use {level}");
    ensure!(quiet(doctor)?.contains(&named), "doctor does not say \"{named}\"");
    let mut vectors = emulated(&built.golden);
    vectors.arg("--root").arg(golden).args(["--topic", "models"]);
    let text = quiet(vectors)?;
    Ok(format!("training, writing and scoring as here; {}", text.lines().last().unwrap_or_default()))
}

/// A root with the golden folders that run under emulation.
fn golden_root(root: &Path, folder: &Path) -> Result<PathBuf> {
    let models = root.join("fixtures/golden/models");
    let own = folder.join("golden");
    let _ = fs::remove_dir_all(&own);
    fs::create_dir_all(own.join("models"))?;
    for name in GOLDEN {
        symlink(models.join(name).canonicalize()?, own.join("models").join(name))?;
    }
    Ok(own)
}
