//! The commands of the paper's page, on slices of real data.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use ruminate::models::{Model, Tokenizer};
use tch::{Device, Kind};

use crate::real_data::{data, tiny_model};
use crate::support::{Teacher, Workplace, mario_in, root};

/// Settings with which everything is small and quick; in place of those of the published commands.
const TINY: &str = r#"
[data]
dataset = "quarel"
path = "data/{dataset}/raw/{split}.jsonl"
[vera.training]
path = "{split}.jsonl"
batch_size = 2
[vera.trainer]
steps = 2
eval_every = 0
[quark.training]
batch_size = 16
sample_interval = 4
kl_vocab = 500
[quark.training.sampling]
batch_size = 50
drop_last = false
lengths = { max_length = 16, min_length = 4 }
[quark.training.eval_lengths]
max_length = 16
min_length = 4
[quark.trainer]
steps = 6
eval_every = 3
save_every = 1
keep = 1000
warmup_steps = 0
[evaluation]
resamples = 10
[teaching]
questions = "data/{dataset}/raw/{split}.jsonl"
"#;

/// The steps of the page are those of a long run.
const STEPS: [(&str, &str); 3] = [("step-4000", "step-4"), ("1000,2000", "3,6"), ("greedy_1000", "greedy_6")];

#[test]
fn every_command_of_the_page_runs() {
    let Some(real) = data() else { return };
    let place = Workplace::new();
    tiny_model(&place);
    let folder = place.path("");
    let folder = Path::new(&folder);
    fs::remove_dir_all(folder.join("data")).unwrap();
    fs::create_dir(folder.join("data")).unwrap();
    for name in ["quarel", "strategyqa", "few_shot_prompts.json"] {
        symlink(real.join(name).canonicalize().unwrap(), folder.join("data").join(name)).unwrap();
    }
    let said = |truth: bool| {
        format!(
            "{{\"statement\":\"Lead is {}.\",\"plausible\":{truth}}}\n",
            if truth { "heavy" } else { "light" }
        )
    };
    let statements = [said(true), said(false)].concat();
    place.write("train.jsonl", &statements);
    place.write("dev.jsonl", &statements);
    let tokenizer = root().join("../shared/golden/models/t5_v10_tied").canonicalize().unwrap();
    let model = format!("config = \"{}\"\ntokenizer = \"{}\"\n", place.path("t5.json"), tokenizer.display());
    let mut config = TINY.to_owned();
    for stage in ["sft", "i2o", "ir2o"] {
        let lengths = if stage == "sft" { "max_length = 16\nmin_length = 4\n" } else { "" };
        config += &format!(
            "[{stage}.model]\n{model}[{stage}.training]\nepochs = 0\n{lengths}[{stage}.trainer]\nsteps = 3\neval_every = 0\n"
        );
    }
    for stage in ["vera", "quark"] {
        config += &format!("[{stage}.model]\n{model}");
    }
    let published = "examples/mario/configs/published.toml";
    place.write(published, &config);

    let run = |args: &[&str]| {
        let finished = mario_in(folder, args);
        assert_eq!(finished.code, Some(0), "{args:?}\n{}", finished.stderr);
    };
    run(&["reward-model", "--mode", "vera", "--config", published, "--out", "runs/vera", "-q"]);
    symlink(folder.join("runs/vera/checkpoints/last").canonicalize().unwrap(), folder.join("vera")).unwrap();
    run(&["sft", "--config", published, "--out", "runs/first", "-q"]);
    let first = folder.join("runs/first/checkpoints/last");
    symlink(first.canonicalize().unwrap(), folder.join("flan-t5-large")).unwrap();
    // This one can say yes and no.
    let mut flan = Model::load(&first, Kind::Float, Device::Cpu).unwrap();
    let mut tokenizer = Tokenizer::open(&first).unwrap();
    let ids = tokenizer.add_tokens(&["Yes".into(), "No".into()]).unwrap();
    flan.add_tokens(ids[0]..ids[1] + 1, 1).unwrap();
    fs::create_dir(folder.join("flan-t5-xxl")).unwrap();
    tokenizer.save(&folder.join("flan-t5-xxl")).unwrap();
    ruminate::models::Policy::save(&flan, &folder.join("flan-t5-xxl")).unwrap();

    let teacher = Teacher::start(0, |_| "It is dense. So the answer is: (A)".into());
    let page = fs::read_to_string(root().join("docs/papers/mario.md")).unwrap();
    let rows = page.lines().skip_while(|line| !line.starts_with("| Command of the original")).skip(2);
    let mut commands = 0;
    for row in rows.take_while(|row| row.starts_with('|')) {
        let Some((_, command)) = row.rsplit_once(" | `mario ") else { continue };
        let mut command = command.trim_end_matches(['`', ' ', '|']).to_owned();
        STEPS.iter().for_each(|(long, short)| command = command.replace(long, short));
        let mut args: Vec<String> = command.split_whitespace().map(String::from).collect();
        if args[0] == "teach" {
            args.extend(["--set".into(), "teaching.limit=4".into()]);
            args.extend(teacher.flags());
        }
        args.push("-q".into());
        run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        commands += 1;
    }
    assert!(commands >= 20, "{commands}");

    // The published layout: a line and a table for each checkpoint, the reference as step 0, and no line twice.
    let reward = folder.join("runs/mario/reward");
    let log = fs::read_to_string(reward.join("eval_reward_scores_test_greedy.txt")).unwrap();
    let steps: Vec<&str> = log.lines().map(|line| line.split(' ').nth(1).unwrap()).collect();
    let mut sorted = steps.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert!(sorted.len() == steps.len() && steps.contains(&"0") && steps.contains(&"6"), "{steps:?}");
    assert!(log.lines().all(|line| line.contains(" - diversity: ") && line.contains("num_words: ")), "{log}");
    for split in ["val", "test"] {
        for step in [0, 3, 6] {
            assert!(reward.join(format!("eval_output{split}_greedy_{step}.csv")).is_file());
            assert!(reward.join(format!("eval_output{split}_greedy_{step}.jsonl")).is_file());
        }
    }
    assert!(reward.join("random_eval_reward_scores_test_greedy.txt").is_file());
    assert!(!reward.join("texts.jsonl").exists());
    let gold = fs::read_to_string(folder.join("eval/gold/eval_reward_scores_other_outputs.txt")).unwrap();
    assert!(gold.contains(" - factuality: ") && gold.contains(" factuality-full: "), "{gold}");
}
