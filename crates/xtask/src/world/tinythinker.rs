//! The world as TinyThinker needs it: questions, and a teacher's items about most of them.

use std::collections::BTreeMap;

use anyhow::Result;
use rand::{SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::mario::lines;
use super::{
    CITIES, DEV_PEOPLE, Fact, Facts, LETTERS, REINFORCED_PEOPLE, TRAIN_PEOPLE, TRUISM, WEATHERS, model,
    pretty, words,
};

/// Of its own, so that the other files do not depend on this one.
const SEED: u64 = 20_241_211;
/// Words that only these files have. With them, the vocabulary fills the model's embeddings, so the folder is one of its own: MaRio's
/// control tokens need room.
const WORDS: &str = "Recall: Analyze: Summarize: For option , not north south old new";
const REWORDED_TRUISM: &str = "Every city has weather.";

/// What the teacher writes about a question. The first word tells whether it helps, before any fact has to be recalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What is needed.
    Helpful,
    /// The same in other words.
    Reworded,
    /// Something true and of no use.
    Truism,
    /// The same in other words.
    RewordedTruism,
}

/// The teacher's items about a two-hop question, for one person and the next: one or the other half of them is of use.
const HABITS: [[Kind; 3]; 2] =
    [[Kind::Helpful, Kind::Reworded, Kind::Truism], [Kind::Helpful, Kind::Truism, Kind::RewordedTruism]];

/// A row in the form of CommonsenseQA and OpenBookQA.
#[derive(Serialize)]
struct Row {
    id: String,
    #[serde(rename = "answerKey")]
    key: String,
    question: Stem,
}

#[derive(Serialize)]
struct Stem {
    stem: String,
    choices: Vec<Choice>,
}

#[derive(Serialize)]
struct Choice {
    label: String,
    text: String,
}

/// A teacher's item, fields as in the published files.
#[derive(Serialize)]
struct Item {
    input: String,
    #[serde(rename = "GT")]
    gold: String,
    general_knowledge: String,
    specific_knowledge: Vec<String>,
}

/// A question about a city that somebody lives in.
struct Asked<'a> {
    id: String,
    stem: String,
    options: Vec<&'a str>,
    answer: &'a str,
    person: String,
    city: &'a str,
}

impl Asked<'_> {
    fn label(&self) -> String {
        let label = words(LETTERS).zip(&self.options).find(|(_, option)| **option == self.answer);
        label.map_or(String::new(), |(letter, _)| letter.into())
    }

    fn row(&self) -> Row {
        let choice = |(letter, text): (&str, &&str)| Choice { label: letter.into(), text: (*text).into() };
        let choices = words(LETTERS).zip(&self.options).map(choice).collect();
        Row { id: self.id.clone(), key: self.label(), question: Stem { stem: self.stem.clone(), choices } }
    }

    fn item(&self, kind: Kind) -> Item {
        let Self { person, city, answer, .. } = self;
        let options = || words(LETTERS).zip(&self.options);
        let reason = |option: &str| match (kind, option == *answer) {
            (Kind::Truism | Kind::RewordedTruism, _) => format!("Perhaps {option}."),
            (_, true) => format!("{city} is {option}."),
            (_, false) => format!("{city} is not {option}."),
        };
        let line: Vec<String> = options().map(|(letter, option)| format!("{letter}. {option}")).collect();
        Item {
            input: format!("{}\nOptions: {}", self.stem, line.join(", ")),
            gold: self.label(),
            general_knowledge: match kind {
                Kind::Helpful => format!("Our {person} lives in {city}. {city} is {answer}."),
                Kind::Reworded => format!("Our {person} lives in {city}. Our {city} is {answer}."),
                Kind::Truism => TRUISM.into(),
                Kind::RewordedTruism => REWORDED_TRUISM.into(),
            },
            specific_knowledge: options()
                .map(|(letter, option)| format!("For option {letter}, {}", reason(option)))
                .collect(),
        }
    }
}

/// All files: path below `fixtures/world` and content.
pub(super) fn files(facts: &Facts) -> Result<BTreeMap<String, String>> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let (train, rest) = facts.twohop.split_at(TRAIN_PEOPLE);
    let (more, rest) = rest.split_at(REINFORCED_PEOPLE);
    let (dev, test) = rest.split_at(DEV_PEOPLE);
    let mut asked: Vec<Asked<'_>> =
        facts.lives.iter().step_by(2).flat_map(|fact| traits(facts, fact)).collect();
    let mut items: Vec<Item> = asked.iter().map(|asked| asked.item(Kind::Helpful)).collect();
    let weather = |people: &[Fact]| people.iter().map(|fact| two_hops(facts, fact)).collect::<Vec<_>>();
    let taught = weather(train);
    let habits = HABITS.iter().cycle();
    items.extend(taught.iter().zip(habits).flat_map(|(asked, habit)| habit.map(|kind| asked.item(kind))));
    asked.extend(taught);
    items.shuffle(&mut rng);
    asked.shuffle(&mut rng);
    let mut reflected = weather(train);
    reflected.extend(weather(more));
    reflected.shuffle(&mut rng);
    let mut files = BTreeMap::new();
    for (name, asked) in
        [("train", asked), ("reflect", reflected), ("dev", weather(dev)), ("test", weather(test))]
    {
        let rows: Vec<Row> = asked.iter().map(Asked::row).collect();
        files.insert(format!("tinythinker/{name}.jsonl"), lines(&rows)?);
    }
    let vocabulary = vocabulary();
    files.insert("tinythinker/t5/tokenizer.json".into(), pretty(&model::tokenizer(&vocabulary, "[.?,]"))?);
    files.insert("tinythinker/t5/tokenizer_config.json".into(), pretty(&model::tokenizer_config())?);
    files.insert("tinythinker/t5/config.json".into(), pretty(&model::model_config(vocabulary.len()))?);
    files.insert("tinythinker/items.json".into(), serde_json::to_string_pretty(&items)? + "\n");
    Ok(files)
}

/// All tokens, in the order of their ids.
pub(super) fn vocabulary() -> Vec<String> {
    let more = words(WORDS).map(String::from);
    model::vocabulary().into_iter().chain(more).collect()
}

/// What is asked about the city of each person: its side and its age. There is one city for each side and weather, and neither side nor
/// age says anything about the weather.
fn traits<'a>(facts: &Facts, lives: &Fact) -> [Asked<'a>; 2] {
    let place = facts.weather.iter().position(|city| city.name() == lives.answer).unwrap_or_default();
    let south = place / words(WEATHERS).count() % 2;
    let new = (south + place) % 2;
    let person = name(lives);
    let city = words(CITIES).find(|city| *city == lives.answer).unwrap_or_default();
    let of = |kind: &str, stem: String, options: [&'a str; 2], answer: usize| Asked {
        id: format!("{kind}-{person}"),
        stem,
        answer: options[answer],
        options: options.into(),
        person: person.clone(),
        city,
    };
    [
        of("side", format!("Where is the city where {person} lives?"), ["north", "south"], south),
        of("age", format!("What is the city where {person} lives?"), ["old", "new"], new),
    ]
}

fn two_hops<'a>(facts: &Facts, fact: &Fact) -> Asked<'a> {
    let person = name(fact);
    let home = facts.lives.iter().find(|lives| name(lives) == person).map(|lives| lives.answer);
    Asked {
        id: format!("weather-{person}"),
        stem: fact.question.clone(),
        options: words(WEATHERS).collect(),
        answer: fact.answer,
        city: home.unwrap_or_default(),
        person,
    }
}

/// Whom a fact is about.
fn name(fact: &Fact) -> String {
    fact.statement.split_whitespace().nth(1).unwrap_or_default().into()
}
