use ruminate_algorithms::crystal::{
    CrystalData, EvaluationConfig, ImitationConfig, Lengths, ReinforcementConfig,
};
use ruminate_algorithms::{Observer, StepReport, TrainerConfig};
use ruminate_datasets::Compat;
use ruminate_datasets::teacher::TeacherConfig;
use ruminate_run::{RunDir, RunObserver, StopFlag, Verbosity, config};
use serde::{Deserialize, Serialize};

use crate::{Boxed, Fuzz, folder};

/// What the binaries' configurations are made of.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    seed: u32,
    compat: Compat,
    model: toml::Table,
    lengths: Lengths,
    data: CrystalData,
    imitation: ImitationConfig,
    trainer: TrainerConfig,
    reinforcement: ReinforcementConfig,
    evaluation: EvaluationConfig,
    teacher: TeacherConfig,
    teaching: toml::Table,
}

/// A configuration that passes every check can be stored, and read again when the run is resumed.
fn check(config: &Config) -> Result<(), Boxed> {
    let valid = config.imitation.validate().and(config.trainer.validate());
    let valid = valid.and(config.reinforcement.validate()).and(config.evaluation.validate());
    if valid.is_ok() {
        match config::to_toml(config) {
            Ok(text) => assert_eq!(config::load_text::<Config>("stored", &text, &[])?, *config),
            // Integers above those of TOML are refused before a run starts.
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    valid.map_err(Into::into)
}

const LARGE: &str = include_str!("../../../../examples/crystal/configs/large.toml");

#[test]
fn files() {
    let seeds = vec![LARGE.into(), config::to_toml(&Config::default()).unwrap().into_bytes()];
    // What has the right type and is out of its range is known by its key.
    Fuzz { places: &["setting `", "` has no value"], ..Fuzz::new("config.toml", seeds, 1000) }
        .run(folder(), |path| check(&config::load(Some(path), &[])?));
}

#[test]
fn overrides() {
    let seeds = [
        "trainer.lr=1e-5",
        "trainer.schedule={cosine = {cycles = 0.5}}",
        "trainer.betas=[0.9, 0.99]",
        "data.eval_tasks=[\"obqa\",\"csqa\"]",
        "data.tasks.quarel.dir=uqa/quarel",
        "evaluation.num_samples=10",
        "imitation.best_by=accuracy",
    ];
    let seeds = seeds.map(|set| set.as_bytes().to_vec()).to_vec();
    let known = ["--set", "setting `", "` has no value", "`"];
    Fuzz { places: &known, ..Fuzz::new("set", seeds, 2000) }.run(folder(), |path| {
        let set = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
        check(&config::load_text("config.toml", LARGE, &[set])?)
    });
}

/// What is left of a run's records after a crash: the resumed run goes on behind whole lines, or names the broken one.
#[test]
fn records() {
    let line =
        |step: u64| format!("{{\"kind\":\"train\",\"step\":{step},\"time\":{step}.5,\"train/loss\":0.25}}\n");
    let seed: String = (0..6).map(line).collect();
    Fuzz::new("metrics.jsonl", vec![seed.into_bytes()], 500).run(folder(), |path| {
        let folder = path.parent().unwrap();
        if RunDir::stored_config(folder).is_none() {
            std::fs::write(folder.join("config.toml"), "")?;
        }
        let dir = RunDir::resume(folder, &toml::Table::new())?;
        let mut observer = RunObserver::new(&dir, tch::Device::Cpu, Verbosity::Quiet, StopFlag::default())?;
        let boxed = |error: ruminate_algorithms::ObserverError| -> Boxed { error };
        observer.started(4, 9).map_err(boxed)?;
        let metrics = vec![("train/loss".into(), 0.5)];
        let report = StepReport { step: 4, total_steps: 9, metrics: &metrics, tokens: 1, secs: 0.1 };
        observer.step(&report).map_err(boxed)?;
        let text = std::fs::read_to_string(path)?;
        for line in text.lines() {
            assert!(serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64() <= Some(4));
        }
        assert!(text.ends_with("\"train/loss\":0.5}\n"));
        Ok(())
    });
}
