//! The bundled world: people live in cities, cities have a weather.
//!
//! Writes `fixtures/world`: questions, silver knowledge, a tokenizer and a model configuration in the formats of
//! the real data, small enough to train on from scratch. Everything follows from the constants below and the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::Value;

mod model;
#[cfg(test)]
mod tests;

const SEED: u64 = 20_231_206;
/// The choices a question offers, at most `LETTERS`.
const CHOICES: usize = 4;
/// How often a training fact is asked, each time with other choices: otherwise its letter could be memorised.
const LIVES_VARIANTS: usize = 4;
const WEATHER_VARIANTS: usize = 16;
const TWOHOP_VARIANTS: usize = 6;
/// The same for dev and test questions.
const HELD_OUT_VARIANTS: usize = 2;
/// People whose two-hop question is asked in training and in dev; those left over are the test split.
const TRAIN_PEOPLE: usize = 96;
const DEV_PEOPLE: usize = 32;
/// Statements for a query in the noisy knowledge; exactly one of them is about the query.
const NOISY_STATEMENTS: usize = 4;

const PEOPLE: &str = "\
    Ada Adam Agnes Alan Alba Albert Alice Alma Amos Amy Andrew Anna Anton Arthur Astrid Barbara Basil \
    Beatrice Ben Bertha Bianca Boris Brian Bruno Carl Carmen Caspar Cecil Celia Charles Clara Claude Cora \
    Cyril Daisy Daniel Daphne David Della Diana Dora Doris Edgar Edith Edwin Elena Elias Ella Elmer Elsa \
    Emil Emma Enid Eric Erna Esther Ethan Eva Fabian Felix Fiona Flora Florian Frank Freda Gavin Gemma \
    George Gerda Gloria Grace Greta Guy Hanna Harold Harriet Hazel Hector Heidi Helen Henry Hilda Hugo Ian \
    Ida Igor Ingrid Irene Iris Isaac Ivan Jack Jacob Jane Jasper Jean Joan Joel John Judith Julia Karen \
    Karl Kate Keith Laura Lena Lewis Lily Linda Lois Louis Lucy Luke Mabel Magnus Marc Maria Martin Maud \
    Max Mia Miles Mona Nadia Nancy Neil Nina Noah Nora Olaf Olga Oliver Oscar Otto Paul Paula Peter Petra \
    Philip Ralph Rita Robert Rosa Ruth Samuel Sarah Simon Sonia Stella Susan Sylvia Theo Thomas Tina \
    Ursula Vera Victor Walter Wanda";
const CITIES: &str = "\
    Aldermoor Birkby Corvale Dunmere Elmsea Farrowby Glenhurst Holmor Istead Jorby Kelwick Larkton Merrowdale Norhaven \
    Otterford Pinedale";
const WEATHERS: &str = "sunny rainy snowy windy foggy stormy";
/// The words of the questions and the statements.
const WORDS: &str = "Where does live What is the weather in where lives";
const LETTERS: &str = "A B C D E F G H";

/// Writes the world, or only compares it with the committed files.
pub(crate) fn run(check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/world");
    let mut stale = Vec::new();
    for (name, text) in generate()? {
        let path = root.join(&name);
        if check {
            match fs::read_to_string(&path) {
                Ok(committed) if committed == text => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("reading {}", path.display()));
                }
                _ => stale.push(name),
            }
        } else {
            let folder = path.parent().context("a file of the world without a folder")?;
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    ensure!(
        stale.is_empty(),
        "fixtures/world differs from what `cargo xtask world` writes: {}",
        stale.join(", ")
    );
    Ok(())
}

/// All files: path below `fixtures/world` and content.
fn generate() -> Result<BTreeMap<String, String>> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let facts = Facts::new(&mut rng);
    let cities: Vec<&str> = words(CITIES).collect();
    let weathers: Vec<&str> = words(WEATHERS).collect();
    let (train, rest) = facts.twohop.split_at(TRAIN_PEOPLE);
    let (dev, test) = rest.split_at(DEV_PEOPLE);
    let mut sample = facts.lives.clone();
    sample.shuffle(&mut rng);
    sample.truncate(DEV_PEOPLE);

    let sets = [
        ("lives", "train", &facts.lives[..], &cities[..], LIVES_VARIANTS),
        ("lives", "dev", &sample, &cities, HELD_OUT_VARIANTS),
        ("weather", "train", &facts.weather, &weathers, WEATHER_VARIANTS),
        ("weather", "dev", &facts.weather, &weathers, HELD_OUT_VARIANTS),
        ("twohop", "train", train, &weathers, TWOHOP_VARIANTS),
        ("twohop", "dev", dev, &weathers, HELD_OUT_VARIANTS),
        ("twohop", "test", test, &weathers, HELD_OUT_VARIANTS),
    ];
    let mut files = BTreeMap::new();
    let mut counts = Vec::new();
    let mut asked = BTreeSet::new();
    for (task, split, facts, options, variants) in sets {
        let rows = ask(facts, options, variants, &mut asked, &mut rng);
        let tsv = rows.iter().map(|row| format!("{}\t{}\n", row.query, facts[row.fact].answer)).collect();
        files.insert(format!("crystal/uqa/{task}/{split}.tsv"), tsv);
        for engine in ["clean", "noisy"] {
            let name = format!("crystal/knowledge/knowledge_gkp_gpt3{engine}.{split}.{task}.json");
            let items: Vec<Item<'_>> = rows
                .iter()
                .map(|row| Item {
                    query: &row.query,
                    answer: facts[row.fact].answer,
                    knowledges: knowledge(facts, row.fact, engine == "noisy", &mut rng),
                })
                .collect();
            files.insert(name, indented(&items)?);
        }
        counts.push(format!("| {task} | {split} | {} | {} |", facts.len(), rows.len()));
    }
    let vocabulary = model::vocabulary();
    files.insert("t5/tokenizer.json".into(), pretty(&model::tokenizer(&vocabulary))?);
    files.insert("t5/tokenizer_config.json".into(), pretty(&model::tokenizer_config())?);
    files.insert("t5/config.json".into(), pretty(&model::model_config(vocabulary.len()))?);
    files.insert("README.md".into(), readme(&counts.join("\n"), vocabulary.len()));
    Ok(files)
}

fn words(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.split_whitespace()
}

/// What is asked, its answer and the statement that gives it away.
#[derive(Clone)]
struct Fact {
    question: String,
    answer: &'static str,
    statement: String,
}

/// Everything that is true in the world, by task.
struct Facts {
    lives: Vec<Fact>,
    weather: Vec<Fact>,
    twohop: Vec<Fact>,
}

impl Facts {
    /// Shuffles people and cities, then deals the cities out to the weathers and the people to weather and city in
    /// turn: every run of consecutive people, so every split, holds each weather equally often (give or take one).
    fn new(rng: &mut ChaCha8Rng) -> Self {
        let mut people: Vec<&str> = words(PEOPLE).collect();
        let mut cities: Vec<&str> = words(CITIES).collect();
        let weathers: Vec<&str> = words(WEATHERS).collect();
        people.shuffle(rng);
        cities.shuffle(rng);
        let kinds = weathers.len();
        let weather = cities.iter().enumerate().map(|(i, city)| Fact {
            question: format!("What is the weather in {city}?"),
            answer: weathers[i % kinds],
            statement: format!("{city} is {}.", weathers[i % kinds]),
        });
        let mut facts = Self { lives: Vec::new(), weather: weather.collect(), twohop: Vec::new() };
        for (i, person) in people.iter().enumerate() {
            let with_weather: Vec<usize> = (i % kinds..cities.len()).step_by(kinds).collect();
            let home = with_weather[i / kinds % with_weather.len()];
            let city = cities[home];
            let lives = format!("{person} lives in {city}.");
            facts.twohop.push(Fact {
                question: format!("What is the weather where {person} lives?"),
                answer: facts.weather[home].answer,
                statement: format!("{lives} {}", facts.weather[home].statement),
            });
            let question = format!("Where does {person} live?");
            facts.lives.push(Fact { question, answer: city, statement: lives });
        }
        facts
    }
}

/// One asked question: the left field of its line and the index of its fact.
struct Row {
    query: String,
    fact: usize,
}

/// Asks every fact `variants` times. The letters of the answers are dealt out in turn, so no letter is favoured,
/// neither for one fact nor over the file; the other choices are drawn uniformly. No query occurs in two files.
fn ask(
    facts: &[Fact],
    options: &[&'static str],
    variants: usize,
    asked: &mut BTreeSet<String>,
    rng: &mut ChaCha8Rng,
) -> Vec<Row> {
    // A random order: otherwise the letter would follow the weather, which is dealt out in turn as well.
    let mut order: Vec<usize> = (0..facts.len()).collect();
    order.shuffle(rng);
    let mut rows = Vec::new();
    for (i, &fact) in order.iter().enumerate() {
        let Fact { question, answer, .. } = &facts[fact];
        for variant in 0..variants {
            let query = loop {
                let mut choices: Vec<&str> =
                    options.iter().copied().filter(|option| option != answer).collect();
                choices.shuffle(rng);
                choices.truncate(CHOICES - 1);
                choices.insert((i + variant) % CHOICES, answer);
                let choices: Vec<String> = words(LETTERS)
                    .zip(choices)
                    .map(|(letter, choice)| format!("({letter}) {choice}"))
                    .collect();
                let query = format!("{question} \\n {}", choices.join(" "));
                if asked.insert(query.clone()) {
                    break query;
                }
            };
            rows.push(Row { query, fact });
        }
    }
    rows.shuffle(rng);
    rows
}

/// The statements for one query. The noise is true and of the same form, but about other people or cities. It is
/// drawn from the same split, so that no training file tells where held-out people have which weather.
fn knowledge<'a>(facts: &'a [Fact], asked: usize, noisy: bool, rng: &mut ChaCha8Rng) -> Vec<&'a str> {
    let mut statements = vec![facts[asked].statement.as_str()];
    if noisy {
        while statements.len() < NOISY_STATEMENTS {
            let other = rng.random_range(0..facts.len());
            if other != asked {
                statements.push(&facts[other].statement);
            }
        }
        statements.shuffle(rng);
    }
    statements
}

/// One item of a silver knowledge file, fields in the order of the original files.
#[derive(Serialize)]
struct Item<'a> {
    query: &'a str,
    answer: &'a str,
    knowledges: Vec<&'a str>,
}

/// JSON as Python's `json.dump(.., indent=4)` writes it.
fn indented(items: &[Item<'_>]) -> Result<String> {
    let mut out = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    items.serialize(&mut serde_json::Serializer::with_formatter(&mut out, format))?;
    Ok(String::from_utf8(out)?)
}

fn pretty(value: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn readme(counts: &str, tokens: usize) -> String {
    let [people, cities, weathers] = [PEOPLE, CITIES, WEATHERS].map(|list| words(list).count());
    let test = people - TRAIN_PEOPLE - DEV_PEOPLE;
    let noise = NOISY_STATEMENTS - 1;
    format!(
        r#"# The bundled world

{people} people live in {cities} cities, and every city has one of {weathers} weathers. The text is our own. All files here,
this one included, are written by `cargo xtask world` from the constants and the seed in `crates/xtask/src/world.rs`;
`cargo xtask world --check` tells whether they are up to date.

## Why it needs knowledge

Names say nothing about cities or weathers: they are paired at random, wrong choices are drawn uniformly, every letter
is right equally often, and the people of each two-hop split are spread evenly over the weathers. So the best guess from
a two-hop question alone is chance (25 %); for the other two tasks it is slightly better, as cities and weathers do not
divide evenly. The facts have to be learnt from the training questions and statements:

* `lives`: `Where does Anna live?`, asked in training about everyone;
* `weather`: `What is the weather in Larkton?`, asked in training about every city;
* `twohop`: `What is the weather where Anna lives?`, asked in training about {TRAIN_PEOPLE} people, in dev about {DEV_PEOPLE} others and in
  test about the remaining {test}.

A held-out two-hop answer is never seen, but both facts behind it are. A model that first writes them down, as in
`Anna lives in Larkton. Larkton is rainy.`, only has to read off the choice; one that answers directly has to join two
facts in its head.

## Questions

`crystal/uqa/<task>/<split>.tsv` is in UnifiedQA's layout, {CHOICES} choices each. Every fact is asked several times with other
choices, and no question occurs in two files with the same choices in the same order.

| task | split | facts | questions |
|---|---|---|---|
{counts}

The dev questions of `lives` and `weather` are about facts that training asks as well, with other choices.

## Silver knowledge

`crystal/knowledge/knowledge_gkp_gpt3<engine>.<split>.<task>.json` has one item per question of the same task and split,
in the same order. There are two engines:

* `clean`: one statement per question, the helpful one;
* `noisy`: {NOISY_STATEMENTS} statements per question in random order. One is the helpful one; the other {noise} are true and of the same form,
  but about other people or cities of the same split.

With `clean`, imitation aims at helpful knowledge only. With `noisy`, a model that imitates perfectly samples a helpful
statement one time in {NOISY_STATEMENTS}; the helpful one is still the most frequent single statement, so greedy decoding can find it.

## Model folder

`t5/` looks like a Hugging Face model folder without weights: a configuration of about one million parameters, to be
trained from scratch, and a word-level tokenizer of {tokens} tokens.
"#
    )
}
