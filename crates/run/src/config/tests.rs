use std::path::PathBuf;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    seed: u64,
    model: String,
    rewards: Vec<String>,
    ppo: Ppo,
    strategy: Strategy,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Ppo {
    clip: f64,
    kl_coef: f32,
    epochs: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
enum Strategy {
    Greedy,
    TopK { k: usize },
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Required {
    #[serde(default)]
    split: String,
    data: String,
}

impl Default for Config {
    fn default() -> Self {
        let ppo = Ppo::default();
        let rewards = vec!["accuracy".into()];
        Self { seed: 1, model: "t5-large".into(), rewards, ppo, strategy: Strategy::Greedy }
    }
}

impl Default for Ppo {
    fn default() -> Self {
        Self { clip: 0.2, kl_coef: 0.1, epochs: 4 }
    }
}

fn with_sets(sets: &[&str]) -> Result<Config, ConfigError> {
    load(None, &sets.iter().map(|set| set.to_string()).collect::<Vec<_>>())
}

fn with_file(text: &str, sets: &[&str]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    load(Some(&path), &sets)
        .map_err(|error| error.to_string().replace(&path.display().to_string(), "run.toml"))
}

#[test]
fn nothing_given_means_defaults() {
    assert_eq!(with_sets(&[]).unwrap(), Config::default());
}

#[test]
fn overrides_win_over_the_file_and_the_last_one_wins() {
    let config =
        with_file("seed = 3\n[ppo]\nclip = 0.3\nepochs = 2\n", &["ppo.clip=0.4", "ppo.clip=0.5"]).unwrap();
    assert_eq!(config.seed, 3);
    assert_eq!(config.ppo, Ppo { clip: 0.5, epochs: 2, ..Ppo::default() });
}

#[test]
fn override_values_are_toml_or_bare_strings() {
    let config = with_sets(&[
        "model=google/t5-v1.1", // not TOML: a bare string
        "ppo.clip=1",           // an integer where a float is expected
        "ppo.kl_coef = 1e-3",
        "rewards=[\"a\", \"b\"]",
        "strategy={ kind = \"top_k\", k = 5 }",
    ])
    .unwrap();
    assert_eq!(config.model, "google/t5-v1.1");
    assert_eq!((config.ppo.clip, config.ppo.kl_coef), (1.0, 1e-3));
    assert_eq!(config.rewards, ["a", "b"]);
    assert_eq!(config.strategy, Strategy::TopK { k: 5 });
    // `=` belongs to the value from the first one on, and a value is one value, never several lines of TOML.
    assert_eq!(with_sets(&["model=a=b"]).unwrap().model, "a=b");
    assert_eq!(with_sets(&["model=\"a\"\nseed = 9"]).unwrap().seed, 1);
}

#[test]
fn unknown_keys_name_the_path_the_place_and_the_nearest_key() {
    let message = with_sets(&["ppo.klcoef=1"]).unwrap_err().to_string();
    assert_eq!(message, "--set ppo.klcoef=1: unknown key `ppo.klcoef`; did you mean `ppo.kl_coef`?");

    let message = with_file("seed = 1\n\n[ppo]\nclip = 0.1\nepoch = 3\n", &[]).unwrap_err();
    assert_eq!(message, "run.toml:5: unknown key `ppo.epoch`; did you mean `ppo.epochs`?");

    let message = with_file("sead = 1\n", &["ppo.clip=1"]).unwrap_err();
    assert_eq!(message, "run.toml:1: unknown key `sead`; did you mean `seed`?");

    // The right key in the wrong place.
    let message = with_sets(&["clip=0.1"]).unwrap_err().to_string();
    assert_eq!(message, "--set clip=0.1: unknown key `clip`; did you mean `ppo.clip`?");

    let message = with_sets(&["ppo.zzz.deep=1"]).unwrap_err().to_string();
    assert_eq!(
        message,
        "--set ppo.zzz.deep=1: unknown key `ppo.zzz`; known keys: `ppo.clip`, `ppo.kl_coef`, `ppo.epochs`"
    );
}

#[test]
fn unknown_keys_of_a_type_without_defaults_are_explained_too() {
    let error = load::<Required>(None, &["dat=x".into()]).unwrap_err().to_string();
    assert_eq!(error, "--set dat=x: unknown key `dat`; did you mean `data`?");
}

#[test]
fn wrong_types_name_the_path_and_the_place() {
    let message = with_file("[ppo]\nclip = \"high\"\n", &[]).unwrap_err();
    assert_eq!(message, "run.toml:2: `ppo.clip`: invalid type: string \"high\", expected f64");

    let message = with_file("rewards = [\n  \"a\",\n  2,\n]\n", &[]).unwrap_err();
    assert!(message.starts_with("run.toml:3: `rewards.1`: invalid type: integer `2`"), "{message}");

    let message = with_sets(&["ppo.epochs=-1"]).unwrap_err().to_string();
    assert!(
        message.starts_with("--set ppo.epochs=-1: `ppo.epochs`: invalid value: integer `-1`"),
        "{message}"
    );

    let message = with_sets(&["model=5"]).unwrap_err().to_string();
    assert!(message.contains("quote it: --set 'model=\"...\"'"), "{message}");
    assert_eq!(with_sets(&["model=\"5\""]).unwrap().model, "5");
}

#[test]
fn unknown_variants_get_a_suggestion() {
    let message = with_sets(&["strategy.kind=gredy"]).unwrap_err().to_string();
    assert!(message.starts_with("--set strategy.kind=gredy: `strategy"), "{message}");
    assert!(message.ends_with("did you mean `greedy`?"), "{message}");
    let message =
        load_text::<Stages>("stages.toml", "[penalty.fixd]\ncoef = 0.3", &[]).unwrap_err().to_string();
    assert_eq!(
        message,
        "stages.toml:1: `penalty`: unknown variant `fixd`, expected one of `none`, `fixed`, `adaptive`; did you mean `fixed`?"
    );
}

#[test]
fn missing_values_say_how_to_give_them() {
    let message = load::<Required>(None, &[]).unwrap_err().to_string();
    assert_eq!(message, "`data` has no value; give it one in the --config file or with --set data=VALUE");
}

#[test]
fn malformed_overrides_are_refused() {
    for set in ["seed", "=1", "ppo..clip=1", "ppo.=1", ""] {
        let error = with_sets(&[set]).unwrap_err();
        assert!(matches!(error, ConfigError::Set { .. }), "{error}");
    }
    let message = with_file("seed = 1\n", &["seed.low=2"]).unwrap_err();
    assert_eq!(
        message,
        "--set seed.low=2: `seed` is of type integer, not a table, so nothing can be set below it"
    );
}

#[test]
fn unreadable_and_malformed_files_are_reported() {
    let error = load::<Config>(Some(&PathBuf::from("no/such.toml")), &[]).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration `no/such.toml`");
    let message = with_file("seed = 1\nseed 2\n", &[]).unwrap_err();
    assert!(message.starts_with("run.toml:2: not valid TOML: "), "{message}");
}

#[test]
fn resolved_configurations_are_read_back_unchanged() {
    let config = with_sets(&["ppo.kl_coef=0.3", "strategy={kind=\"top_k\",k=3}", "seed=7"]).unwrap();
    assert_eq!(with_file(&to_toml(&config).unwrap(), &[]).unwrap(), config);
    // Beyond what TOML can read back.
    to_toml(&Config { seed: u64::MAX, ..config }).unwrap_err();
}

proptest! {
    #[test]
    fn nothing_that_a_user_types_panics(text in ".*", set in "(ppo|seed|strategy|rewards)?[.=a-z0-9\\[{\"' ]*|.*") {
        let _ = with_file(&text, &[]);
        if let Err(error) = with_sets(&[&set]) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn quoted_strings_arrive_unchanged(text in ".*") {
        let set = format!("model={}", Value::String(text.clone()));
        prop_assert_eq!(with_sets(&[&set]).unwrap().model, text);
    }
}

/// The same type in two places, with other defaults in one of them.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Stages {
    first: Ppo,
    second: Ppo,
    penalty: Penalty,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Penalty {
    None,
    Fixed { coef: f64, floor: f64 },
    Adaptive { target: f64 },
}

impl Default for Stages {
    fn default() -> Self {
        let second = Ppo { clip: 0.9, epochs: 7, ..Ppo::default() };
        Self { first: Ppo::default(), second, penalty: Penalty::Fixed { coef: 0.2, floor: 0.1 } }
    }
}

#[test]
fn a_section_with_one_key_keeps_the_other_defaults_of_its_place() {
    let load = |text: &str| load_text::<Stages>("stages.toml", text, &[]).unwrap();
    let stages = load("[first]\nkl_coef = 0.5\n[second]\nkl_coef = 0.5");
    assert_eq!(stages.first, Ppo { kl_coef: 0.5, ..Ppo::default() });
    assert_eq!(stages.second, Ppo { kl_coef: 0.5, ..Stages::default().second });
    assert_eq!(load("").penalty, Stages::default().penalty);
    // A variant with the default's name is filled up, another one is not.
    assert_eq!(load("[penalty.fixed]\ncoef = 0.3").penalty, Penalty::Fixed { coef: 0.3, floor: 0.1 });
    assert_eq!(load("[penalty.adaptive]\ntarget = 6.0").penalty, Penalty::Adaptive { target: 6.0 });
    assert_eq!(load("penalty = \"none\"").penalty, Penalty::None);
    assert_eq!(load("[penalty.none]").penalty, Penalty::None);
}

#[test]
fn keys_of_variants_are_checked_too() {
    let message = |text: &str| load_text::<Stages>("a.toml", text, &[]).unwrap_err().to_string();
    assert_eq!(
        message("[penalty.fixed]\nkoef = 0.3"),
        "a.toml:2: unknown key `penalty.fixed.koef`; did you mean `penalty.fixed.coef`?"
    );
    assert_eq!(
        message("[penalty.fixed]\n[penalty.adaptive]\ntarget = 1.0"),
        "a.toml:1: `penalty`: expected one variant, found [\"adaptive\", \"fixed\"]"
    );
    assert!(message("penalty = 3").contains("`penalty`: invalid type: integer `3`"));
    assert_eq!(
        message("[penalty.adaptive]"),
        "`penalty.adaptive.target` has no value; give it one in the --config file or with --set penalty.adaptive.target=VALUE"
    );
}
