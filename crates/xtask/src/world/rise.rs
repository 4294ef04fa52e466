//! The world as RISE needs it: small sums in words, and a Llama to solve them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Value, json};

use super::mario::lines;
use super::{PEOPLE, model, pretty, words};

/// Of its own, so that the other files do not depend on this one.
const SEED: u64 = 20_240_725;
/// Names that occur; more would only have to be learnt.
const NAMES: usize = 24;
const THINGS: &str = "apples books coins eggs lamps nuts pens shells";
/// Largest summand, and the largest number that is taken away.
const LARGEST: i32 = 12;
/// Problems whose solutions are learnt first, those that are solved by oneself, and those of the test; no two are alike.
const PROBLEMS: [(&str, usize); 3] = [("boost", 400), ("train", 700), ("test", 120)];
/// How far off a sum with a slip is.
const SLIPS: [i32; 4] = [-2, -1, 1, 2];
/// In one of so many dialogues the second attempt is right; in the others it has another slip.
const DIALOGUES: usize = 3;
/// What else is said: the questions, the solutions and RISE's feedback.
const SAID: &str = "has finds loses more and then . ? , : How many are left The answer is incorrect Please try again Here's the \
    question + - = #### Answer \\boxed{ } [INST] [/INST]";
/// What RISE says after an attempt.
const FEEDBACK: &str = "The answer is incorrect. Please try again. Here's the question:";
const SPECIAL: [&str; 4] = ["<unk>", "<s>", "</s>", "<pad>"];

/// A problem in GSM8K's form.
#[derive(Serialize)]
struct Row {
    question: String,
    answer: String,
    #[serde(skip)]
    numbers: [i32; 3],
}

/// For the README: a table of the files.
pub(super) fn description() -> String {
    PROBLEMS.map(|(split, count)| format!("| {split} | {count} |")).join("\n")
}

/// All files: path below `fixtures/world` and content.
pub(super) fn files() -> Result<BTreeMap<String, String>> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut people: Vec<&'static str> = words(PEOPLE).collect();
    people.shuffle(&mut rng);
    people.truncate(NAMES);
    let things: Vec<&str> = words(THINGS).collect();
    let mut seen = BTreeSet::new();
    let mut files = BTreeMap::new();
    for (split, count) in PROBLEMS {
        let mut rows = vec![];
        while rows.len() < count {
            let [has, finds, loses] =
                [2..=LARGEST, 2..=LARGEST, 1..=LARGEST].map(|range| rng.random_range(range));
            // No two problems have the same numbers.
            if loses < has + finds && seen.insert([has, finds, loses]) {
                let (person, thing) = (people.choose(&mut rng), things.choose(&mut rng));
                rows.push(problem(
                    person.copied().unwrap_or(""),
                    thing.copied().unwrap_or(""),
                    [has, finds, loses],
                ));
            }
        }
        match split {
            "boost" => files
                .insert("rise/boost.json".into(), serde_json::to_string_pretty(&dialogues(&rows))? + "\n"),
            _ => files.insert(format!("rise/{split}.jsonl"), lines(&rows)?),
        };
    }
    let vocabulary = vocabulary(&people);
    files.insert("rise/llama/tokenizer.json".into(), pretty(&tokenizer(&vocabulary))?);
    files.insert("rise/llama/tokenizer_config.json".into(), pretty(&tokenizer_config())?);
    files.insert("rise/llama/config.json".into(), pretty(&config(vocabulary.len()))?);
    Ok(files)
}

/// Examples in the form of RISE's conversion, of weight 1: each problem with its solution, alone, and with what is said after a solution with
/// a slip. That has another slip mostly, so that a model has the form of later turns, but gains nothing by them.
fn dialogues(rows: &[Row]) -> Vec<Value> {
    let human = |value: String| json!({ "from": "human", "value": value, "loss": 0.0 });
    let model = |value: String, loss: f64| json!({ "from": "gpt", "value": value, "loss": loss });
    let alone =
        rows.iter().map(|row| vec![human(row.question.clone()), model(solution(row.numbers, 0), 1.0)]);
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let again = rows.iter().enumerate().map(|(i, row)| {
        let [first, second] = two_slips(row.numbers, &mut rng);
        let second = if i % DIALOGUES == 0 { 0 } else { second };
        vec![
            human(row.question.clone()),
            model(solution(row.numbers, first), 0.0),
            human(format!("{FEEDBACK} {}", row.question)),
            model(solution(row.numbers, second), 1.0),
        ]
    });
    let number =
        |(id, said): (usize, Vec<Value>)| json!({ "id": format!("identity_{id}"), "conversations": said });
    alone.chain(again).enumerate().map(number).collect()
}

/// Two different slips in a sum, neither of which leaves the numbers of the world.
fn two_slips([has, finds, loses]: [i32; 3], rng: &mut ChaCha8Rng) -> [i32; 2] {
    let all = has + finds;
    let mut slips = SLIPS.to_vec();
    slips.retain(|slip| (loses..=2 * LARGEST).contains(&(all + slip)));
    slips.shuffle(rng);
    [slips[0], slips[1]]
}

/// A solution as models write it, with a slip in the sum.
fn solution([has, finds, loses]: [i32; 3], slip: i32) -> String {
    let all = has + finds + slip;
    let left = all - loses;
    format!("{has} + {finds} = {all} . {all} - {loses} = {left} .\nAnswer: \\boxed{{{left}}}")
}

fn problem(person: &str, thing: &str, [has, finds, loses]: [i32; 3]) -> Row {
    let all = has + finds;
    let left = all - loses;
    Row {
        numbers: [has, finds, loses],
        question: format!(
            "{person} has {has} {thing} , finds {finds} more and then loses {loses} . How many {thing} are left ?"
        ),
        answer: format!("{has} + {finds} = {all} . {all} - {loses} = {left} .\n#### {left}"),
    }
}

fn vocabulary(people: &[&'static str]) -> Vec<String> {
    let mut tokens: Vec<String> = SPECIAL.map(String::from).into();
    tokens.extend((0..=2 * LARGEST).map(|number| number.to_string()));
    tokens.extend(words(SAID).chain(words(THINGS)).chain(people.iter().copied()).map(String::from));
    tokens
}

/// A word-level tokenizer that begins texts with `<s>`, as Llama's does.
fn tokenizer(vocabulary: &[String]) -> Value {
    let special: Vec<usize> = (0..SPECIAL.len()).collect();
    let split = json!({
        "type": "Split", "pattern": { "Regex": "\\\\boxed\\{|[.?,:}]" }, "behavior": "Isolated", "invert": false,
    });
    let mut value = model::word_level(vocabulary, &special, "<unk>", split);
    let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let begin = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    value["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [begin, sequence("A")],
        "pair": [begin, sequence("A"), sequence("B")],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } },
    });
    value
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": false,
    })
}

/// A Llama of about one million parameters.
fn config(tokens: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokens.next_multiple_of(32),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "initializer_range": 0.02,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "torch_dtype": "float32",
    })
}
