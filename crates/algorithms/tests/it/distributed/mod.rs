//! Several real processes over Gloo: this test binary starts itself once for each rank.

mod as_one;
mod divided;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use approx::relative_eq;
use ruminate_algorithms::dpo::{Dpo, DpoConfig, PreferenceLoss, Reference, ShuffledPairs, WeightedLoss};
use ruminate_algorithms::{
    Collective, Curriculum, Ending, Evaluation, Fitted, Metrics, Objective, Observer, Result, Sft, Trainer,
    TrainerConfig, mean_loss,
};
use ruminate_datasets::{Cursor, Order, Shard, TrainBatches};
use ruminate_models::{Example, Policy};
use ruminate_torch::dist::Sharding;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::support::{Recorder, alone, chain, examples, model, short, tokenizer};

/// The test that is one of several processes.
const RANK: &str = "distributed::rank";
const SETUP: &str = "RUMINATE_TEST_SETUP";
const STEPS: u64 = 20;
const ROWS: usize = 8;
/// About once in five hundred times Gloo does not notice while it sends that a peer is gone; then this ends the wait,
/// in less than the minute in which a job has to end.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What all ranks of a test do.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Setup {
    method: Method,
    accumulate: usize,
    sharding: Sharding,
    /// Activations are made again, so that backward passes run within the backward pass.
    checkpointing: bool,
    dropout: f64,
    steps: u64,
    /// The best validation is that before step 8, and training ends after so many that are not better; 0 for neither.
    early_stopping: u64,
    /// This rank asks to stop after a step.
    stop: Option<(usize, u64)>,
    /// This rank is gone after a step.
    abort: Option<(usize, u64)>,
    /// This rank's model has another shape.
    odd: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Method {
    Sft,
    Dpo,
    /// With a running mean of rewards.
    Bco,
    Ppo,
    Rwr,
    Quark,
    /// TinyThinker's phases.
    Acquire,
    Reflect,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            method: Method::Sft,
            accumulate: 1,
            sharding: Sharding::None,
            checkpointing: false,
            dropout: 0.0,
            steps: STEPS,
            early_stopping: 0,
            stop: None,
            abort: None,
            odd: None,
        }
    }
}

/// Rows of very different lengths for two objectives, of which the second trains on some rows only.
struct Uneven {
    examples: Vec<Example>,
    batches: TrainBatches,
    batch: usize,
    /// The step of the best score, instead of that with the least loss.
    peak: Option<u64>,
}

impl Uneven {
    fn new(batch: usize, peak: Option<u64>) -> Self {
        let mut examples = examples(24);
        for (i, example) in examples.iter_mut().enumerate() {
            example.target = (0..[1, 1, 9, 2, 1, 12, 3][i % 7]).map(|j| 60 + 5 * j).collect();
        }
        Self { batches: Self::batches(batch, Shard::SINGLE), examples, batch, peak }
    }

    fn batches(batch: usize, shard: Shard) -> TrainBatches {
        TrainBatches::new(Order::reshuffled(24, 5), batch, shard).unwrap()
    }
}

impl<P: Policy> Curriculum<P> for Uneven {
    fn distribute(&mut self, collective: &Collective) -> Result<()> {
        self.batches = Self::batches(self.batch, collective.shard()?);
        Ok(())
    }

    fn next(&mut self, _: u64) -> Result<Vec<Objective>> {
        let rows = self.batches.next().unwrap();
        let of = |rows: &[usize]| rows.iter().map(|&i| self.examples[i].clone()).collect();
        let few: Vec<usize> = rows.iter().copied().filter(|i| i % 7 == 2).collect();
        let mut objectives = vec![Objective { name: "all_loss", weight: 1.0, examples: of(&rows) }];
        if !few.is_empty() {
            objectives.push(Objective { name: "few_loss", weight: 0.25, examples: of(&few) });
        }
        Ok(objectives)
    }

    fn evaluate(&mut self, policy: &P, step: u64, _: &mut dyn Observer) -> Result<Evaluation> {
        let loss = mean_loss(policy, &self.examples)?;
        let score = self.peak.map_or(-loss, |peak| -(step.abs_diff(peak) as f64));
        Ok(Evaluation { metrics: vec![("eval/loss".into(), loss)], score })
    }

    fn state(&self) -> serde_json::Value {
        serde_json::to_value(self.batches.cursor()).unwrap()
    }

    fn load_state(&mut self, state: serde_json::Value) -> Result<()> {
        let cursor: Cursor = serde_json::from_value(state).unwrap();
        Ok(self.batches.resume(cursor)?)
    }
}

fn config(setup: &Setup) -> TrainerConfig {
    let Setup { steps, accumulate, sharding, checkpointing: gradient_checkpointing, method, .. } = *setup;
    // Of an entry whose gradient is next to nothing, Adam would otherwise learn its rounding.
    let eps = match method {
        Method::Rwr => 1e-4,
        Method::Quark => 1e-5,
        _ => 1e-8,
    };
    TrainerConfig {
        steps,
        accumulate,
        sharding,
        gradient_checkpointing,
        eps,
        lr: 1e-3,
        max_grad_norm: 1.0,
        eval_every: 8,
        early_stopping: setup.early_stopping,
        log_every: 2,
        ..short(steps)
    }
}

/// One process: the only one, or one of a group.
fn fit(setup: &Setup, folder: &Path, collective: &Collective) -> Result<(Fitted, Recorder)> {
    let (rank, size) = (collective.rank(), collective.size());
    tch::manual_seed(3);
    // Rank 0 gives its parameters to the others.
    let mut policy = model(setup.dropout, 1 + rank as i64);
    if setup.odd == Some(rank) {
        let config = ruminate_models::T5Config { d_ff: 48, ..crate::support::tiny(0.0) };
        policy = ruminate_models::T5::new(config, tch::Kind::Float, Device::Cpu, 1).unwrap();
    }
    let trainer = Trainer::across(config(setup), folder, collective)?;
    let mut recorder = Recorder::default();
    if let Some((_, step)) = setup.stop.filter(|(who, _)| *who == rank) {
        recorder.stop_after = Some(step);
    }
    if let Some((_, step)) = setup.abort.filter(|(who, _)| *who == rank) {
        recorder.abort_after = Some(step);
    }
    let (batch, whole) = (ROWS / size / setup.accumulate, ROWS / size);
    let fitted = match setup.method {
        Method::Sft => {
            let peak = (setup.early_stopping > 0).then_some(8);
            trainer.fit(&mut Sft::new(policy, Uneven::new(batch, peak), tokenizer()), &mut recorder)?
        }
        method @ (Method::Dpo | Method::Bco) => {
            let mut config = DpoConfig { rpo_alpha: 0.5, beta: 0.5, ..DpoConfig::default() };
            if method == Method::Bco {
                config.terms =
                    vec![WeightedLoss { loss: PreferenceLoss::BcoPair { shift: true }, weight: 1.0 }];
            }
            let source = ShuffledPairs::new(crate::dpo::pairs(24), batch, 3)?;
            let reference = Reference::Model(model(0.0, 7));
            let held_out = crate::dpo::pairs(37);
            trainer.fit(
                &mut Dpo::new(config, policy, reference, source, held_out, tokenizer())?,
                &mut recorder,
            )?
        }
        Method::Rwr => trainer.fit(&mut crate::rwr::of_ranks(policy, batch)?, &mut recorder)?,
        // What follows is cut into micro-batches, so a rank's part does not depend on how many they are.
        Method::Ppo => trainer.fit(&mut crate::ppo::of_ranks(policy, whole)?, &mut recorder)?,
        Method::Quark => trainer.fit(&mut crate::quark::of_ranks(1 + rank as i64, whole)?, &mut recorder)?,
        Method::Acquire => {
            let mut sft = crate::tinythinker::acquisition_of_ranks(whole, setup.accumulate)?;
            trainer.fit(&mut sft, &mut recorder)?
        }
        Method::Reflect => {
            let (round, batch) = (folder.join("round"), (whole, setup.accumulate));
            let mut dpo =
                crate::tinythinker::reflection_of_ranks(&round, batch, collective, &mut Recorder::default())?;
            trainer.fit(&mut dpo, &mut recorder)?
        }
    };
    Ok((fitted, recorder))
}

/// One rank; started by the tests of this file.
#[test]
#[ignore = "a process of the tests below"]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "that is how it tells its parent")]
fn rank() {
    tch::set_num_threads(1);
    let setup: Setup = serde_json::from_str(&std::env::var(SETUP).unwrap()).unwrap();
    let collective = Collective::from_env(Device::Cpu, TIMEOUT).unwrap();
    let folder = std::env::var("RUMINATE_TEST_FOLDER").unwrap();
    std::fs::write(joined(Path::new(&folder), collective.rank()), "").unwrap();
    match fit(&setup, Path::new(&folder), &collective) {
        Ok((fitted, recorder)) => {
            let ending = if fitted.ending == Ending::Stopped { "stopped" } else { "finished" };
            let record = Record {
                metrics: recorder.metrics,
                validations: recorder.validations,
                events: recorder.events,
            };
            let record = serde_json::json!(record);
            println!("\nRECORD {record}\n{ending} after {}", fitted.steps);
        }
        Err(error) => {
            eprintln!("{}", chain(&error));
            std::process::exit(1);
        }
    }
}

/// Is there once the rank is among the others.
fn joined(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("joined-{rank}"))
}

/// Starts a test of this binary that is one of `size` processes.
fn start(test: &str, setup: &Setup, folder: &Path, size: usize) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let setup = serde_json::to_string(setup).unwrap();
    let rank = |rank: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .envs([(SETUP, setup.as_str()), ("MASTER_ADDR", "127.0.0.1"), ("OMP_NUM_THREADS", "1")])
            .envs([("RANK", rank.to_string()), ("WORLD_SIZE", size.to_string())])
            .env("MASTER_PORT", port.to_string())
            .env("RUMINATE_TEST_FOLDER", folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    (0..size).map(rank).collect()
}

/// What each rank printed, and whether it succeeded.
fn finish(ranks: Vec<Child>) -> Vec<(bool, String)> {
    let text = |child: Child| {
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.success(), text.concat())
    };
    ranks.into_iter().map(text).collect()
}

/// What each rank printed; all succeed.
fn run(setup: &Setup, folder: &Path, size: usize) -> Vec<String> {
    let ranks = finish(start(RANK, setup, folder, size));
    ranks
        .into_iter()
        .map(|(succeeded, text)| {
            assert!(succeeded, "{text}");
            text
        })
        .collect()
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    metrics: BTreeMap<u64, Metrics>,
    validations: BTreeMap<u64, Metrics>,
    events: Vec<String>,
}

fn record(text: &str) -> Record {
    let line = text.lines().find_map(|line| line.strip_prefix("RECORD ")).unwrap();
    serde_json::from_str(line).unwrap()
}

/// The tensors of a file of the last checkpoint, by name.
fn tensors(folder: &Path, file: &str) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(folder.join("last").join(file)).unwrap().into_iter().collect()
}

fn weights(folder: &Path) -> BTreeMap<String, Tensor> {
    tensors(folder, "model.safetensors")
}

/// Every parameter agrees to a millionth of its largest number.
fn same_model(a: &Path, b: &Path) {
    for ((name, a), b) in weights(a).iter().zip(weights(b).values()) {
        let difference = (a - b).abs().max().double_value(&[]) / b.abs().max().double_value(&[]);
        assert!(difference <= 1e-6, "{name}: {difference:e}");
    }
}

#[test]
fn a_rank_that_asks_stops_all_and_a_resumed_run_is_the_same_bit_for_bit() {
    let _alone = alone();
    // With dropout, so that the generators of all ranks have to survive.
    let setup = Setup { dropout: 0.2, ..Setup::default() };
    let [through, halved] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    run(&setup, through.path(), 2);
    for text in run(&Setup { stop: Some((1, 12)), ..setup.clone() }, halved.path(), 2) {
        assert!(text.contains("stopped after 13"), "{text}");
    }
    for text in run(&setup, halved.path(), 2) {
        assert_eq!(record(&text).events[0], "started 13 of 20");
    }
    for ((name, a), b) in weights(through.path()).iter().zip(weights(halved.path()).values()) {
        assert_eq!(a, b, "{name}");
    }
}

/// States that four ranks saved in parts go on in two ranks and in one, also whole, and back.
#[test]
fn divided_states_go_on_with_another_number_of_ranks() {
    let _alone = alone();
    let [through, moved] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (_, single) = fit(&Setup::default(), through.path(), &Collective::default()).unwrap();
    let sharded = Setup { sharding: Sharding::Optimizer, ..Setup::default() };
    let mut losses = vec![];
    let mut part = |setup: Setup, size: usize| {
        let texts = run(&setup, moved.path(), size);
        losses.extend(record(&texts[0]).metrics);
    };
    part(Setup { stop: Some((0, 4)), ..sharded.clone() }, 4);
    assert_eq!(files(moved.path()), [1, 2, 3, 4].map(|i| format!("trainer-0000{i}-of-00004.safetensors")));
    part(Setup { stop: Some((0, 8)), sharding: Sharding::Gradients, ..Setup::default() }, 2);
    assert_eq!(files(moved.path()), [1, 2].map(|i| format!("trainer-0000{i}-of-00002.safetensors")));
    part(Setup { stop: Some((0, 12)), ..sharded.clone() }, 1);
    part(Setup { stop: Some((0, 16)), ..Setup::default() }, 2);
    assert_eq!(files(moved.path()), ["trainer.safetensors"]);
    part(sharded, 4);
    same_model(through.path(), moved.path());
    let loss = |metrics: &[(String, f64)]| metrics.iter().find(|(name, _)| name == "train/loss").map(|m| m.1);
    for (step, metrics) in losses {
        let (found, expected) = (loss(&metrics), loss(&single.metrics[&step]));
        if let (Some(found), Some(expected)) = (found, expected) {
            assert!(
                relative_eq!(found, expected, epsilon = 0.0, max_relative = 1e-5),
                "step {step}: {found}, not {expected}"
            );
        }
    }
}

/// The files of optimizer states in the last checkpoint.
fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder.join("last"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("trainer"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_part_of_the_states_that_is_missing_is_an_error() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup { sharding: Sharding::Optimizer, steps: 2, ..Setup::default() };
    run(&setup, folder.path(), 2);
    std::fs::remove_file(folder.path().join("last/trainer-00002-of-00002.safetensors")).unwrap();
    for (succeeded, text) in finish(start(RANK, &Setup { steps: 4, ..setup }, folder.path(), 2)) {
        assert!(!succeeded);
        assert!(text.contains("trainer-00002-of-00002.safetensors") && text.contains("missing"), "{text}");
    }
}

#[test]
fn ranks_draw_different_dropout() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    run(&Setup { dropout: 0.5, steps: 1, ..Setup::default() }, folder.path(), 2);
    let states = tensors(folder.path(), "trainer.safetensors");
    assert_ne!(states["rng.cpu"], states["rng.cpu.1"]);
    assert!(!states.contains_key("rng.cpu.2"));
}

#[test]
fn a_rank_that_dies_ends_the_others_and_the_run_resumes() {
    let _alone = alone();
    let [through, broken] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    fit(&Setup::default(), through.path(), &Collective::default()).unwrap();
    for dying in [0, 1] {
        let step = 10 + dying as u64;
        let started = Instant::now();
        let ranks = start(RANK, &Setup { abort: Some((dying, step)), ..Setup::default() }, broken.path(), 2);
        let texts = finish(ranks);
        assert!(texts.iter().all(|(succeeded, _)| !succeeded));
        let other = 1 - dying;
        let text = &texts[other].1;
        assert!(text.contains(&format!("rank {other} of 2: ")) && text.contains(" failed after "), "{text}");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
    for text in run(&Setup::default(), broken.path(), 2) {
        assert_eq!(record(&text).events[0], "started 8 of 20");
    }
    same_model(through.path(), broken.path());
}

/// Twenty times one of two ranks is killed, at any moment, while they train, validate and write divided checkpoints.
#[test]
fn killed_twenty_times_a_run_ends_as_an_undisturbed_one() {
    let _alone = alone();
    let [through, broken] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let setup = Setup { dropout: 0.2, steps: 800, sharding: Sharding::Optimizer, ..Setup::default() };
    run(&setup, through.path(), 2);
    for life in 0..20 {
        let _ = [0, 1].map(|rank| std::fs::remove_file(joined(broken.path(), rank)));
        let mut ranks = start(RANK, &setup, broken.path(), 2);
        // Every second time something has been gained before.
        let last = || std::fs::read_link(broken.path().join("last")).ok();
        let (before, waiting) = (last(), Instant::now());
        while !(0..2).all(|rank| joined(broken.path(), rank).exists()) || life % 2 == 0 && last() == before {
            assert!(waiting.elapsed() < Duration::from_secs(120), "life {life} gained nothing");
            std::thread::sleep(Duration::from_millis(2));
        }
        let random = ruminate_models::derive_seed(8, &[life]);
        std::thread::sleep(Duration::from_millis(random % 60));
        let killed = (random >> 32) as usize % 2;
        ranks[killed].kill().unwrap();
        let started = Instant::now();
        let texts = finish(ranks);
        assert!(started.elapsed() < Duration::from_secs(60));
        let (succeeded, text) = &texts[1 - killed];
        assert!(!succeeded, "life {life} reached the end: {text}");
        assert!(text.contains(&format!("rank {} of 2: ", 1 - killed)), "{text}");
        assert!(text.contains(" failed after "), "{text}");
    }
    let texts = run(&setup, broken.path(), 2);
    assert!(!record(&texts[0]).events[0].starts_with("started 0 "), "nothing was kept");
    for ((name, a), b) in weights(through.path()).iter().zip(weights(broken.path()).values()) {
        assert_eq!(a, b, "{name}");
    }
}

#[test]
fn another_model_on_a_rank_is_an_error_of_all() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for (succeeded, text) in
        finish(start(RANK, &Setup { odd: Some(1), ..Setup::default() }, folder.path(), 2))
    {
        assert!(!succeeded);
        assert!(
            text.contains("the ranks of this run do not fit together: rank 1 has the parameter"),
            "{text}"
        );
        assert!(text.contains("[48, 16] where rank 0 has") && text.contains("[32, 16]"), "{text}");
    }
}
