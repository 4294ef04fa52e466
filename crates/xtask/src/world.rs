//! The bundled world: people live in cities, cities have a weather.
//!
//! Writes `fixtures/world`: questions, silver knowledge, a tokenizer and a model configuration in the formats of
//! the real data, small enough to train on from scratch. Everything follows from the constants below and the seed.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use anyhow::{Context as _, Result, ensure};
use rand::{SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::Value;

mod mario;
mod model;
mod rise;
#[cfg(test)]
mod tests;
mod tinythinker;

const SEED: u64 = 20_231_206;
/// How often training asks about the weather of a city. There are few cities, and without repetition their facts would
/// drown among those about people.
const WEATHER_REPEATS: usize = 8;
/// The task whose questions are those for reinforcement.
const REINFORCED: &str = "twohop_more";
/// People whose two-hop question is asked in imitation, in reinforcement and in dev; those left over are the test split.
const TRAIN_PEOPLE: usize = 96;
const REINFORCED_PEOPLE: usize = 48;
const DEV_PEOPLE: usize = 24;
/// How often the file for reinforcement asks each of its questions, so that it fills batches.
const REINFORCED_REPEATS: usize = 4;
/// What the noisy knowledge says beside the helpful statement about every two-hop question: true, and of no use.
const TRUISM: &str = "Every city has a weather.";
/// How often, for one helpful statement.
const TRUISMS: usize = 4;

const PEOPLE: &str = "\
    Abel Ada Adam Adele Agnes Alan Alba Albert Alice Aline Alma Amos Amy Andrew Anita Anna Anton Arno Arthur \
    Astrid Axel Barbara Basil Beatrice Ben Bertha Betty Bianca Blanche Boris Brian Bridget Bruno Camilla Carl \
    Carla Carmen Caspar Cecil Cedric Celia Charles Chloe Clara Claude Conrad Cora Cyril Dagmar Daisy Daniel \
    Daphne David Della Denis Derek Diana Donald Dora Doris Edgar Edith Edwin Eileen Elena Elias Eliza Ella \
    Elmer Elsa Emil Emma Enid Eric Erna Ernest Esther Ethan Eugene Eva Ezra Fabian Felix Ferdinand Fiona Flora \
    Florian Frank Freda Frida Gavin Gemma George Gerald Gerda Gilbert Gloria Grace Greta Gustav Guy Hanna \
    Harold Harriet Hazel Hector Heidi Helen Helga Henry Herbert Hilda Horace Hugo Ian Ida Igor Ingrid Irene \
    Iris Irma Isaac Isabel Ivan Jack Jacob Jane Jasper Jean Joan Joel John Jonas Josef Judith Julia Karen Karl \
    Kate Keith Kurt Laura Leah Lena Leo Leonard Lewis Lily Linda Lois Lorna Louis Lucy Luke Lydia Mabel Magnus \
    Malcolm Marc Margot Maria Martin Matilda Maud Maurice Max Mia Mildred Miles Mona Monica Nadia Nancy Neil \
    Nigel Nina Noah Nora Norman Olaf Olga Oliver Oscar Oswald Otto Owen Paul Paula Peter Petra Philip Phoebe \
    Rachel Ralph Raymond Rita Robert Roland Rosa Rufus Ruth Samuel Sarah Simon Sonia Stella Susan Sylvia Theo \
    Thomas Tina Ursula Vera Victor Walter Wanda";
/// As many as there are letters.
const CITIES: &str = "Aldermoor Birkby Corvale Dunmere Elmsea Farrowby Glenhurst Holmor";
const WEATHERS: &str = "sunny rainy snowy windy";
/// The words of the questions and the statements.
const WORDS: &str = "Where does live What is the weather in where lives Our Every city has a";
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
    let (reinforced, rest) = rest.split_at(REINFORCED_PEOPLE);
    let (dev, test) = rest.split_at(DEV_PEOPLE);
    let mut sample = facts.lives.clone();
    sample.shuffle(&mut rng);
    sample.truncate(DEV_PEOPLE);

    let sets = [
        ("lives", "train", &facts.lives[..], &cities, 1),
        ("lives", "dev", &sample, &cities, 1),
        ("weather", "train", &facts.weather, &weathers, WEATHER_REPEATS),
        ("weather", "dev", &facts.weather, &weathers, 1),
        ("twohop", "train", train, &weathers, 1),
        (REINFORCED, "train", reinforced, &weathers, REINFORCED_REPEATS),
        ("twohop", "dev", dev, &weathers, 1),
        (REINFORCED, "dev", dev, &weathers, 1),
        ("twohop", "test", test, &weathers, 1),
    ];
    let mut files = BTreeMap::new();
    let mut counts = Vec::new();
    for (task, split, asked, options, repeats) in sets {
        let mut rows: Vec<&Fact> = asked.iter().flat_map(|fact| std::iter::repeat_n(fact, repeats)).collect();
        rows.shuffle(&mut rng);
        let tsv = rows.iter().map(|fact| format!("{}\t{}\n", fact.query(options), fact.answer)).collect();
        files.insert(format!("crystal/uqa/{task}/{split}.tsv"), tsv);
        // Reinforcement has the model's own statements.
        let engines: &[&str] = if task == REINFORCED { &[] } else { &["clean", "noisy"] };
        for &engine in engines {
            let name = format!("crystal/knowledge/knowledge_gkp_gpt3{engine}.{split}.{task}.json");
            let items: Vec<Item<'_>> = rows
                .iter()
                .map(|fact| Item {
                    query: fact.query(options),
                    answer: fact.answer,
                    knowledges: knowledge(fact, engine == "noisy" && task == "twohop", &mut rng),
                })
                .collect();
            files.insert(name, indented(&items)?);
        }
        counts.push(format!("| {task} | {split} | {} | {} |", asked.len(), rows.len()));
    }
    let vocabulary = model::vocabulary();
    files.extend(mario::files(&facts)?);
    files.extend(tinythinker::files(&facts)?);
    files.extend(rise::files()?);
    files.insert("t5/tokenizer.json".into(), pretty(&model::tokenizer(&vocabulary, "[.?]"))?);
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

impl Fact {
    /// The left field of a line: the question and all choices, always in the same order.
    fn query(&self, options: &[&str]) -> String {
        let choices: Vec<String> =
            words(LETTERS).zip(options).map(|(letter, choice)| format!("({letter}) {choice}")).collect();
        format!("{} \\n {}", self.question, choices.join(" "))
    }
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
            let lives = format!("Our {person} lives in {city}.");
            facts.twohop.push(Fact {
                question: format!("What is the weather where {person} lives?"),
                answer: facts.weather[home].answer,
                statement: format!("{lives} {}", facts.weather[home].statement),
            });
            for question in
                [format!("Where does {person} live?"), format!("What is the city where {person} lives?")]
            {
                facts.lives.push(Fact { question, answer: city, statement: lives.clone() });
            }
        }
        facts
    }
}

/// The statements for one query.
fn knowledge<'a>(asked: &'a Fact, noisy: bool, rng: &mut ChaCha8Rng) -> Vec<&'a str> {
    let mut statements = vec![asked.statement.as_str()];
    if noisy {
        statements.extend([TRUISM; TRUISMS]);
        statements.shuffle(rng);
    }
    statements
}

/// One item of a silver knowledge file, fields in the order of the original files.
#[derive(Serialize)]
struct Item<'a> {
    query: String,
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
    let test = people - TRAIN_PEOPLE - REINFORCED_PEOPLE - DEV_PEOPLE;
    let statements = 1 + TRUISMS;
    let chance = 100 / weathers;
    let (rows, habit, kinds) = mario::description();
    let problems = rise::description();
    format!(
        r#"# The bundled world

{people} people live in {cities} cities, and every city has one of {weathers} weathers. The text is our own. All files here,
this one included, are written by `cargo xtask world` from the constants and the seed in `crates/xtask/src/world.rs`;
`cargo xtask world --check` tells whether they are up to date.

## Why it needs knowledge

Names say nothing about cities or weathers: they are paired at random, and the people of each two-hop split are spread
evenly over the weathers. So the best guess from a two-hop question alone is chance ({chance} %). The facts have to be
learnt from the training questions and statements:

* `lives`: `Where does Anna live?` and `What is the city where Anna lives?`, asked in training about everyone;
* `weather`: `What is the weather in Corvale?`, asked in training about every city;
* `twohop`: `What is the weather where Anna lives?`, asked in training about {TRAIN_PEOPLE} people, in dev about {DEV_PEOPLE} others and in
  test about {test} more;
* `{REINFORCED}`: the same about the remaining {REINFORCED_PEOPLE}, for reinforcement. There are no statements for these questions: the
  model brings its own.

A held-out two-hop answer is never seen, but both facts behind it are. A model that first writes them down, as in
`Our Anna lives in Corvale. Corvale is rainy.`, only has to look up the letter of the last word; one that answers
directly has to join two facts in its head.

The choices of a question are all there are, always in the same order: a model this small had not learnt to find a
word among shuffled choices after six thousand steps, and that is not what the world is about.

## Questions

`crystal/uqa/<task>/<split>.tsv` is in UnifiedQA's layout.

| task | split | facts | questions |
|---|---|---|---|
{counts}

The dev questions of `lives` and `weather` are asked in training too: they show whether the facts are known.

## Silver knowledge

`crystal/knowledge/knowledge_gkp_gpt3<engine>.<split>.<task>.json` has one item per question of the same task and split,
in the same order. There are two engines:

* `clean`: one statement per question, the helpful one;
* `noisy`: about the one-hop questions the same, but {statements} statements about every two-hop question, in random order. One is
  the helpful one; the others say `{TRUISM}`, which is true and of no use.

With `clean`, imitation aims at helpful knowledge only. With `noisy`, a model that imitates perfectly writes a helpful
statement about one two-hop question in {statements}; it can read a helpful one all the same, so reinforcement has something to gain.
A statement shows with its first word whether it is helpful, before any fact has to be recalled: what reinforcement
changes there, it changes about everyone.

## Rationales of a sloppy teacher

`mario/qasc/<folder>/<split>.jsonl` has the rows of MaRio's data, with the labels of QASC, `(A)` to `(H)`. The two-hop question comes
in three wordings, one for each person in turn, and the teacher has a habit for each: of {rows} rationales about a question, {habit} are of
the habit's kind, and one of each other kind.

| kind | rationale | fault | habit of |
|---|---|---|---|
{kinds}

The first word shows the kind, before any fact has to be recalled. The teacher's answer follows from its rationale; with a truism it
guesses.

* `raw/train`: the one-hop questions, and everything that the teacher answers about {TRAIN_PEOPLE} people, right or wrong: for the supervised
  stage and the reward models. If only right answers were kept here, a model this small would learn them by heart, because most
  rationales do not give them away;
* `kept/train`: one wording of each one-hop question, and about those and {REINFORCED_PEOPLE} more people what has the right answer: for the training with
  rewards. An implausible rationale then names another city with the same weather;
* `dev` and `test`, in both folders: the held-out people, without rationales.

`mario/statements/{{train,dev}}.jsonl` has true and false statements about everyone, in the words of all kinds, for a verifier: a word
that shows the kind says nothing about the truth here.

## Items of a teacher that is of use half of the time

`tinythinker/` has rows as those of CommonsenseQA and OpenBookQA, and a teacher's items in the published form, for TinyThinker.

* `train` asks about everyone: `Where is the city where Anna lives?` (north or south) and `What is the city where Anna lives?` (old or new).
  There is one city for each side and weather, and neither trait says anything about the weather. It also asks
  `What is the weather where Anna lives?` about {TRAIN_PEOPLE} people;
* `items.json` has one item about each trait, and three about each weather: for one person two of them are helpful, for the next one is;
* `reflect` has the weather questions about these people, and about {REINFORCED_PEOPLE} more whom the teacher has not explained;
* `dev` and `test` have those about {DEV_PEOPLE} and {test} others.

| knowledge | analyses |
|---|---|
| `Our Anna lives in Corvale. Corvale is rainy.`, or `Our Corvale is rainy.` | `Corvale is not sunny.`, `Corvale is rainy.` and so on |
| `Every city has a weather.`, or `Every city has weather.` | `Perhaps sunny.`, `Perhaps rainy.` and so on |

`t5/` there is the model folder below with a few more tokens. The label is right all the same: about the people of `train` a student can learn it by heart, about others it has to guess. Again the first
word decides.

## Sums in words

`rise/` has problems in GSM8K's form, for RISE, and a folder of a Llama of 0.8 million parameters to be trained from scratch, with a
word-level tokenizer.

| problems | |
|---|---|
{problems}

`Anna has 7 eggs , finds 5 more and then loses 3 . How many eggs are left ?` is solved by `7 + 5 = 12 . 12 - 3 = 9 .`. No two
problems have the same numbers, so answers cannot be learnt by heart. `boost.json` has the solutions of its problems as examples in the
form of RISE's conversion: each alone, and again with what comes after a solution with a slip, when that has been called incorrect. In two of
three such dialogues this is another slip, in one it is the solution. A model that has seen them for a while has the form of all turns and some of
the sums, and its attempts are wrong in different ways; but told that it was wrong it mostly slips again, so that a vote over its turns is worse
than its first attempt. It is made so: that a later attempt can be better is what is left to be learnt.

## Model folder

`t5/` looks like a Hugging Face model folder without weights: a configuration of about one million parameters, to be
trained from scratch, and a word-level tokenizer of {tokens} tokens.
"#
    )
}
