//! Rewards that look at texts, and settings.

use ruminate_datasets::rows::PromptRow;
use ruminate_rewards::configured::{RewardConfig, WeightedRewards};
use ruminate_rewards::{Reward, Rewarded, Sample};
use serde_json::{Value, json};

use super::{reward, rewards, row, told};

#[test]
fn exact_matches_and_contents() {
    let plain = json!({"exact_match": {"ignore_case": true, "ignore_punctuation": true}});
    for (kind, answer, text, expected) in [
        (json!("exact_match"), "Paris", " Paris\n", 1.0),
        (json!("exact_match"), "Paris", "paris", 0.0),
        (json!("exact_match"), "Paris", "Paris.", 0.0),
        (json!("exact_match"), "", " \n", 1.0),
        (json!("exact_match"), "\u{1f41d}\u{200d}", "\u{1f41d}\u{200d}", 1.0),
        (plain.clone(), "Paris.", "PARIS!", 1.0),
        (plain.clone(), "salt and pepper", "Salt, and  (pepper)", 1.0),
        (plain.clone(), "STRASSE", "straße", 0.0),
        (plain.clone(), "ÉTÉ", "été", 1.0),
        // A vowel sign is no punctuation.
        (plain.clone(), "\u{915}\u{93f}", "\u{915}", 0.0),
        (plain.clone(), "\u{3c}5\u{3e}", "5", 1.0),
        (plain, "«oui»", "oui", 1.0),
        (json!("contains"), "bees", "Wild bees do.", 1.0),
        (json!("contains"), "bees", "", 0.0),
        (json!({"contains": {"text": "Bees", "ignore_case": true}}), "", "wild bees", 1.0),
        (json!({"contains": {"text": "a\nb"}}), "", "xa\nby", 1.0),
    ] {
        assert_eq!(
            reward(&rewards(kind.clone()), Some(answer), text),
            Ok(expected),
            "{kind} {answer:?} {text:?}"
        );
    }
}

#[test]
fn numbers_patterns_and_mathematics() {
    let gsm8k = "She has 3 * 4 = 12 apples.\n#### 12";
    for (kind, answer, text, expected) in [
        (json!("number"), "1,000", "That makes 10 * 100 = 1000.", 1.0),
        (json!("number"), "7", "seven", 0.0),
        (json!("number"), "7", "", 0.0),
        (json!("number"), "-5 °C", "It is \u{2212}5 degrees.", 1.0),
        (json!("number"), "0.5", "that is 1/2", 1.0),
        (json!("number"), "1e5", "100000", 1.0),
        (json!("number"), "5", "1e5", 0.0),
        (json!({"number": {"tolerance": 0.1}}), "3.14", "About 3.2", 1.0),
        (json!({"number": {"tolerance": 0.1}}), "3.14", "About 3.3", 0.0),
        (
            json!({"regex": {"pattern": "(?i)answer is (\\w+)"}}),
            "b",
            "The Answer is a. No, the answer is b.",
            1.0,
        ),
        (json!({"regex": {"pattern": "answer is (\\w+)"}}), "b", "no idea", 0.0),
        // A group that is not part of the match captures nothing.
        (json!({"regex": {"pattern": "x|(y)"}}), "", "x", 0.0),
        (json!({"regex": {"pattern": "^<think>"}}), "", "<think>hm</think>", 1.0),
        (json!({"regex": {"pattern": "^<think>"}}), "", "hm", 0.0),
        (json!({"regex": {"pattern": "(?:a|b)c"}}), "", "bc", 1.0),
        (json!("math"), r"\frac{1}{2}", r"so $\boxed{\frac12}$", 1.0),
        (json!("math"), r"Thus \boxed{3}", r"\boxed{3}", 1.0),
        (json!("math"), "9500", r"\boxed{9{,}500}", 1.0),
        (json!("math"), "18", r"\boxed{18.0}", 1.0),
        (json!("math"), "18", r"\boxed{18} or \boxed{19}", 0.0),
        (json!("math"), "x+1", r"\boxed{x + 1}", 1.0),
        (json!("math"), "3", "3", 0.0),
        (json!("math"), "3", r"\boxed{3", 0.0),
        (json!("math"), "3", "", 0.0),
        (json!("gsm8k"), gsm8k, "#### 12", 1.0),
        (json!("gsm8k"), gsm8k, "#### 12.00", 1.0),
        (json!("gsm8k"), "12", r"It is \boxed{12}.", 1.0),
        (json!("gsm8k"), "1,200", "#### 1200", 1.0),
        (json!("gsm8k"), gsm8k, "It is 12.", 0.0),
        (json!("gsm8k"), gsm8k, "#### twelve", 0.0),
    ] {
        assert_eq!(
            reward(&rewards(kind.clone()), Some(answer), text),
            Ok(expected),
            "{kind} {answer:?} {text:?}"
        );
    }
}

#[test]
fn forms_and_lengths() {
    let tags = json!({"format": {"parts": ["<a>", "</a>"]}});
    let twice = json!({"format": {"parts": ["#", "#"]}});
    let whole = json!({"format": {"pattern": "<think>.*</think>\\s*\\S+"}});
    for (kind, text, expected) in [
        (tags.clone(), "x <a> y </a>", 1.0),
        (tags.clone(), "</a> <a>", 0.0),
        (tags.clone(), "<a></a><a>", 0.0),
        (tags.clone(), "<a>", 0.0),
        (tags, "", 0.0),
        (twice.clone(), "# #", 1.0),
        (twice.clone(), "#", 0.0),
        (twice, "###", 0.0),
        (whole.clone(), "<think>two\nlines</think>\n42\n", 1.0),
        (whole.clone(), "so <think></think> 42", 0.0),
        (whole, "<think></think> 42 is it", 0.0),
        // All of the response, also where an earlier alternative is shorter.
        (json!({"format": {"pattern": "a|ab"}}), "ab", 1.0),
        (json!({"length": {"max": 2}}), "one two", 1.0),
        (json!({"length": {"max": 2}}), "one two three", 0.0),
        (json!({"length": {"max": 2}}), "", 1.0),
        (json!({"length": {"max": 2, "tolerance": 4}}), "one two three", 0.75),
        (json!({"length": {"min": 3, "tolerance": 4}}), "one", 0.5),
        (json!({"length": {"min": 3, "tolerance": 2}}), "", 0.0),
        (json!({"length": {"min": 3}}), "a\u{a0}b\tc", 1.0),
        (json!({"length": {"min": 2, "max": 2, "tolerance": 2}}), "one two three", 0.5),
        (json!({"length": {"unit": "characters", "min": 2, "max": 2}}), "éü", 1.0),
        (json!({"length": {"unit": "characters", "min": 1, "max": 1}}), "e\u{301}", 0.0),
    ] {
        assert_eq!(reward(&rewards(kind.clone()), None, text), Ok(expected), "{kind} {text:?}");
    }
}

#[test]
fn values_are_weighted_sums_and_parts_have_names() {
    let entries = json!([
        {"name": "right", "kind": "number"},
        {"name": "brief", "weight": -0.5, "kind": {"length": {"unit": "tokens", "max": 2, "tolerance": 2}}},
    ]);
    let rewards =
        WeightedRewards::new(&serde_json::from_value::<Vec<RewardConfig>>(entries).unwrap()).unwrap();
    assert_eq!(rewards.names(), ["right", "brief"]);
    assert!(!rewards.asks_policy());
    let row = row(Some("7"));
    let sample = |text, response| Sample { task: "", item: &row, response, text };
    let judged = rewards.rewards(&(), &[sample("7", &[1, 2, 3]), sample("8", &[1])]).unwrap();
    let parts = |right, brief| vec![("right".into(), right), ("brief".into(), brief)];
    assert_eq!(judged[0], Rewarded { value: 0.75, parts: parts(1.0, 0.5) });
    assert_eq!(judged[1], Rewarded { value: -0.5, parts: parts(0.0, 1.0) });
    assert!(Reward::<(), PromptRow>::rewards(&rewards, &(), &[]).unwrap().is_empty());
    let uneven = rewards.judge(&[&row], &[]).unwrap_err().to_string();
    assert!(uneven.contains("1 samples"), "{uneven}");
    let entry = json!([{"name": "huge", "weight": 1e300, "kind": "number"}]);
    let huge = WeightedRewards::new(&serde_json::from_value::<Vec<RewardConfig>>(entry).unwrap()).unwrap();
    let error = told(&huge.judge(&[&row], &["7"]).unwrap_err());
    assert!(error.contains("sample 0 is 1000"), "{error}");
}

#[test]
fn what_a_row_lacks_is_named() {
    let judged = rewards(json!("number")).judge(&[&row(Some("1")), &row(None)], &["1", "1"]);
    let error = told(&judged.unwrap_err());
    assert!(error.contains("reward `r`, sample 1: the row has no `answer`"), "{error}");
    for kind in [
        json!("exact_match"),
        json!("math"),
        json!("gsm8k"),
        json!("contains"),
        json!({"regex": {"pattern": "(x)"}}),
    ] {
        let error = reward(&rewards(kind.clone()), None, "1").unwrap_err();
        assert!(error.contains("sample 0: the row has no `answer`"), "{kind} {error}");
    }
    let ignored = json!({"exact_match": {"ignore_punctuation": true}});
    for (kind, answer, part) in [
        (json!("number"), "none", "the answer \"none\" has no number"),
        (json!("gsm8k"), "none", "the answer \"none\" is no number"),
        (json!("math"), "", "the answer \"\" is no expression"),
        (json!("math"), "{3", "a brace is not closed"),
        (json!("contains"), " ", "`answer` is empty"),
        (ignored, "?!", "nothing but punctuation"),
    ] {
        let error = reward(&rewards(kind.clone()), Some(answer), "1").unwrap_err();
        assert!(error.contains(part), "{kind} {error}");
    }
    let error = reward(&rewards(json!({"length": {"unit": "tokens", "max": 3}})), None, "1").unwrap_err();
    assert!(error.contains("count words or characters"), "{error}");
}

#[test]
fn settings_are_checked() {
    let message = |config: Value| match serde_json::from_value::<Vec<RewardConfig>>(config) {
        Ok(configs) => told(&WeightedRewards::new(&configs).unwrap_err()),
        Err(error) => error.to_string(),
    };
    for (config, part) in [
        (json!([]), "there is none"),
        (json!([{"name": "a", "kind": "number"}, {"name": "a", "kind": "number"}]), "names must differ"),
        (json!([{"name": "reward", "kind": "number"}]), "which is the sum"),
        (json!([{"name": "a", "kind": "numbr"}]), "unknown variant `numbr`, expected one of `exact_match`"),
        (json!([{"name": "a", "kind": {"number": {"tol": 1}}}]), "unknown field `tol`"),
        (json!([{"name": "a", "kind": {"number": {"tolerance": -1}}}]), "must not be negative"),
        (json!([{"name": "a", "kind": "regex"}]), "pattern is empty"),
        (json!([{"name": "a", "kind": {"regex": {"pattern": "("}}}]), "unclosed group"),
        (json!([{"name": "a", "kind": "length"}]), "neither min nor max"),
        (json!([{"name": "a", "kind": {"length": {"min": 3, "max": 2}}}]), "more than max"),
        (json!([{"name": "a", "kind": "format"}]), "neither parts nor pattern"),
        (json!([{"name": "a", "kind": {"format": {"parts": [""]}}}]), "none may be empty"),
        (json!([{"name": "a", "kind": {"format": {"parts": ["x"], "pattern": "x"}}}]), "give one of them"),
        (json!([{"name": "a", "kind": {"format": {"pattern": "a)|(b"}}}]), "unopened group"),
        (json!([{"name": "a", "kind": {"contains": {"text": ""}}}]), "every response contains"),
        (json!([{"name": "a", "kind": "command"}]), "name a program"),
        (
            json!([{"name": "a", "kind": {"command": {"run": ["x"], "timeout_s": 0}}}]),
            "timeout_s must be at least 1",
        ),
        (
            json!([{"name": "a", "kind": {"http": {"url": "localhost"}}}]),
            "\"localhost\": is no address such as",
        ),
        (json!([{"name": "a", "kind": {"http": {"url": "http://u:secret@x"}}}]), "no user and no password"),
        (json!([{"name": "a", "kind": {"http": {"url": "http://x", "batch": 0}}}]), "at least 1"),
        (
            json!([{"name": "a", "kind": {"http": {"url": "http://x", "headers": {"X-API-Key": "k"}}}}]),
            "use kind.http.key",
        ),
        (
            json!([{"name": "a", "kind": {"http": {"url": "http://x", "headers": {"a b": "k"}}}}]),
            "is no name of a header",
        ),
        (
            json!([{"name": "a", "kind": {"http": {"url": "http://x", "key": {"env": "RUMINATE_NO_SUCH_KEY"}}}}]),
            "the environment variable RUMINATE_NO_SUCH_KEY is not set",
        ),
        (json!([{"name": "a", "kind": "plausibility"}]), "model is empty; name a folder"),
        (
            json!([{"name": "a", "kind": {"plausibility": {"model": "no-such"}}}]),
            "there is no no-such/config.json",
        ),
        (
            json!([{"name": "a", "kind": {"plausibility": {"model": "x", "device": "tpu"}}}]),
            "must be auto, cpu, cuda",
        ),
        (
            json!([{"name": "a", "kind": {"self_feedback": {"with": "{prompt}"}}}]),
            "with must hold {completion}",
        ),
        (json!([{"name": "a", "kind": {"self_feedback": {"shape": 8}}}]), "there is no reward shape 8"),
        (json!([{"name": "a", "weight": "much", "kind": "number"}]), "invalid type"),
        (json!([{"name": "a", "wight": 1, "kind": "number"}]), "wight"),
    ] {
        let message = message(config.clone());
        assert!(message.contains(part), "{config}: {message}");
    }
    // An address may have the sign behind its host.
    rewards(json!({"http": {"url": "http://127.0.0.1:1/@model"}}));
}

#[test]
fn a_configuration_is_written_as_it_is_read() {
    let entry = json!({"name": "a", "weight": 0.5, "kind": {"length": {"max": 2}}});
    let config: RewardConfig = serde_json::from_value(entry).unwrap();
    let again = serde_json::from_value(json!(config)).unwrap();
    assert_eq!(config, again);
    // Defaults are written out.
    assert_eq!(json!(config)["kind"]["length"], json!({"unit": "words", "min": 0, "max": 2, "tolerance": 0}));
    let word: RewardConfig = serde_json::from_value(json!({"name": "a", "kind": "number"})).unwrap();
    assert_eq!(serde_json::from_value::<RewardConfig>(json!(word)).unwrap(), word);
}
