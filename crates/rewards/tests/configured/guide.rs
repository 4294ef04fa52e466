//! The examples of the guide.

use std::process::{Command, Stdio};

use ruminate_rewards::configured::RewardConfig;
use serde::Deserialize;
use serde_json::json;

use super::{reward, rewards};

const GUIDE: &str = include_str!("../../../../docs/guide/rewards.md");

/// The blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let begin = format!("```{language}\n");
    GUIDE.split(&begin).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entries {
    reward: Vec<RewardConfig>,
}

#[test]
fn configurations_of_the_guide_are_read() {
    let blocks = blocks("toml");
    assert!(blocks.len() >= 2);
    for block in blocks {
        let entries: Entries = toml::from_str(block).unwrap_or_else(|error| panic!("{error}\n{block}"));
        assert!(entries.reward.len() >= 3, "{block}");
    }
}

#[test]
fn the_guide_has_every_kind_with_its_settings() {
    let unknown = serde_json::from_value::<RewardConfig>(json!({"name": "a", "kind": "none"})).unwrap_err();
    let unknown = unknown.to_string();
    let (_, kinds) = unknown.split_once("expected one of ").unwrap();
    for kind in kinds.split(", ").map(|kind| kind.trim_matches('`')) {
        let row = GUIDE.lines().find(|line| line.starts_with(&format!("| `{kind}` |")));
        let row = row.unwrap_or_else(|| panic!("the guide has no row for {kind}"));
        let config: RewardConfig = serde_json::from_value(json!({"name": "a", "kind": kind})).unwrap();
        let config = json!(config);
        for setting in config["kind"][kind].as_object().unwrap().keys() {
            assert!(row.contains(&format!("`{setting}")), "{kind}: the guide does not name {setting}\n{row}");
        }
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn the_program_of_the_guide_judges() {
    let python = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
    if !python.is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no python3");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("reward.py");
    let program = blocks("python")[0];
    assert!(program.lines().filter(|line| !line.is_empty()).count() <= 10);
    std::fs::write(&file, program).unwrap();
    let python = rewards(json!({"command": {"run": ["python3", file]}}));
    assert_eq!(reward(&python, Some("7"), "It is 7 ."), Ok(1.1));
    assert_eq!(reward(&python, Some("7"), "no no"), Ok(0.05));
    let error = reward(&python, None, "It is 7 .").unwrap_err();
    assert!(error.contains("exit status: 1") && error.contains("KeyError: 'answer'"), "{error}");
}
