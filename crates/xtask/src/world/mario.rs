//! The world as MaRio needs it: a sloppy teacher's rationales, and statements for a verifier.

use std::collections::BTreeMap;

use anyhow::Result;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::{
    CITIES, DEV_PEOPLE, Fact, Facts, LETTERS, REINFORCED_PEOPLE, TRAIN_PEOPLE, TRUISM, WEATHER_REPEATS,
    WEATHERS, words,
};

/// Of its own, so that the other files do not depend on this one.
const SEED: u64 = 20_231_102;
/// Words that only these files have.
pub(super) const WORDS: &str = "So the answer explain choice: explanation: Indeed Perhaps";
/// The ways to ask the same, in turn. Each is a habit of the teacher's.
const WORDINGS: [(&str, Kind); 3] = [
    ("What is the weather where {} lives?", Kind::Repetitive),
    ("What weather has the city where {} lives?", Kind::Implausible),
    ("What weather is in the city where {} lives?", Kind::Empty),
];
/// How often the teacher follows its habit, for one rationale of each other kind.
const HABIT: usize = 3;
/// How often a repetitive rationale says the same.
const TIMES: usize = 3;
/// People about whom there is a statement and its opposite to validate the verifier with.
const CHECKED: usize = 48;

/// What the teacher writes about a two-hop question. Its first word shows the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What is needed, once.
    Good,
    /// True, but again and again.
    Repetitive,
    /// False.
    Implausible,
    /// True, but of no help.
    Empty,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Good, Self::Repetitive, Self::Implausible, Self::Empty];

    /// A statement of this kind about where somebody lives.
    pub(super) fn say(self, person: &str, city: &Fact) -> String {
        let name = city.name();
        match self {
            Self::Good => format!("Our {person} lives in {name}. {}", city.statement),
            Self::Repetitive => vec![format!("Indeed {person} lives in {name}."); TIMES].join(" "),
            Self::Implausible => format!("Perhaps {person} lives in {name}. {}", city.statement),
            Self::Empty => TRUISM.to_owned(),
        }
    }
}

/// For the README: rationales about a question, those of the habit, and a table of the kinds.
pub(super) fn description() -> (usize, usize, String) {
    let city = Fact { question: String::new(), answer: "rainy", statement: "Corvale is rainy.".into() };
    let line = |kind: Kind| {
        let fault = match kind {
            Kind::Good => "none",
            Kind::Repetitive => "little diversity",
            Kind::Implausible => "false: implausible, and so mostly a wrong answer",
            Kind::Empty => "no help: inconsistent, and the answer a guess",
        };
        let habit = WORDINGS.iter().find(|(_, habit)| *habit == kind);
        let habit =
            habit.map_or("no wording".into(), |(wording, _)| format!("`{}`", wording.replace("{}", "Anna")));
        format!("| {kind:?} | `{}` | {fault} | {habit} |", kind.say("Anna", &city))
    };
    (Kind::ALL.len() - 1 + HABIT, HABIT, Kind::ALL.map(line).join("\n"))
}

#[derive(Serialize)]
pub(super) struct Row {
    pub(super) question: String,
    pub(super) rationale: String,
    pub(super) answer: String,
}

#[derive(Serialize)]
struct Statement {
    statement: String,
    plausible: bool,
}

/// Rows with the label of the answer.
fn row(question: &str, rationale: String, answer: &str, options: &[&str]) -> Row {
    let labelled = || words(LETTERS).map(|letter| format!("({letter})")).zip(options);
    let choices: Vec<String> = labelled().map(|(label, option)| format!("{label} {option}")).collect();
    let answer = labelled().find(|(_, option)| **option == answer).map_or(String::new(), |(label, _)| label);
    Row { question: format!("{question} {}", choices.join(" ")), rationale, answer }
}

/// All files: path below `fixtures/world` and content.
pub(super) fn files(facts: &Facts) -> Result<BTreeMap<String, String>> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut files = BTreeMap::new();
    let (train, rest) = facts.twohop.split_at(TRAIN_PEOPLE);
    let (more, rest) = rest.split_at(REINFORCED_PEOPLE);
    let (dev, test) = rest.split_at(DEV_PEOPLE);
    let mut rows = one_hop(facts);
    rows.extend(teacher(facts, train, 0, false, &mut rng));
    rows.shuffle(&mut rng);
    files.insert("mario/qasc/raw/train.jsonl".into(), lines(&rows)?);
    // One of the two wordings, so that most questions have two hops.
    let mut rows: Vec<Row> = one_hop(facts).into_iter().step_by(2).collect();
    rows.extend(teacher(facts, &[train, more].concat(), 0, true, &mut rng));
    rows.shuffle(&mut rng);
    files.insert("mario/qasc/kept/train.jsonl".into(), lines(&rows)?);
    for (split, asked) in [("dev", dev), ("test", test)] {
        let held_out = lines(&gold(asked))?;
        for folder in ["raw", "kept"] {
            files.insert(format!("mario/qasc/{folder}/{split}.jsonl"), held_out.clone());
        }
    }
    let (statements, checked) = statements(facts, &mut rng);
    files.insert("mario/statements/train.jsonl".into(), lines(&statements)?);
    files.insert("mario/statements/dev.jsonl".into(), lines(&checked)?);
    Ok(files)
}

/// The facts, with themselves as rationales.
fn one_hop(facts: &Facts) -> Vec<Row> {
    let (cities, weathers): (Vec<&str>, Vec<&str>) = (words(CITIES).collect(), words(WEATHERS).collect());
    let lives =
        facts.lives.iter().map(|fact| row(&fact.question, fact.statement.clone(), fact.answer, &cities));
    let weather = facts.weather.iter().flat_map(|fact| std::iter::repeat_n(fact, WEATHER_REPEATS));
    lives
        .chain(weather.map(|fact| row(&fact.question, fact.statement.clone(), fact.answer, &weathers)))
        .collect()
}

/// What the teacher answers about people, the first of whom is number `first`. Its answer follows from its rationale, or is a
/// guess; of the responses that are `kept`, all answers are right.
fn teacher(facts: &Facts, people: &[Fact], first: usize, kept: bool, rng: &mut ChaCha8Rng) -> Vec<Row> {
    let weathers: Vec<&str> = words(WEATHERS).collect();
    let mut rows = vec![];
    for (number, fact) in (first..).zip(people) {
        let (wording, habit) = WORDINGS[number % WORDINGS.len()];
        let question = wording.replace("{}", fact.person());
        let mut elsewhere = facts.elsewhere(fact);
        elsewhere.retain(|city| (city.answer == fact.answer) == kept);
        elsewhere.shuffle(rng);
        let mut elsewhere = elsewhere.into_iter().cycle();
        for kind in Kind::ALL {
            for _ in 0..if kind == habit { HABIT } else { 1 } {
                let city = if kind == Kind::Implausible { elsewhere.next() } else { None };
                let city = city.unwrap_or(facts.home(fact));
                let guess = weathers[rng.random_range(0..weathers.len())];
                let answer = if kind == Kind::Empty && !kept { guess } else { city.answer };
                rows.push(row(&question, kind.say(fact.person(), city), answer, &weathers));
            }
        }
    }
    rows
}

/// Held-out questions, each wording in turn.
fn gold(people: &[Fact]) -> Vec<Row> {
    let weathers: Vec<&str> = words(WEATHERS).collect();
    let asked = people.iter().zip(WORDINGS.iter().cycle());
    let gold = |(fact, (wording, _)): (&Fact, &(&str, Kind))| {
        row(&wording.replace("{}", fact.person()), "dummy".into(), fact.answer, &weathers)
    };
    asked.map(gold).collect()
}

/// True and false statements about everyone, of every kind, and others to validate with.
fn statements(facts: &Facts, rng: &mut ChaCha8Rng) -> (Vec<Statement>, Vec<Statement>) {
    let said = |statement: String, plausible| Statement { statement, plausible };
    let kinds = [Kind::Good, Kind::Repetitive, Kind::Implausible];
    let (mut train, mut dev) = (vec![], vec![]);
    for fact in &facts.twohop {
        let say = |kind: Option<Kind>, city: &Fact| match kind {
            Some(kind) => kind.say(fact.person(), city),
            None => format!("Our {} lives in {}.", fact.person(), city.name()),
        };
        for kind in std::iter::once(None).chain(kinds.map(Some)) {
            for city in facts.elsewhere(fact).choose_multiple(rng, OPPOSITES) {
                train.push(said(say(kind, facts.home(fact)), true));
                train.push(said(say(kind, city), false));
            }
        }
    }
    for city in &facts.weather {
        train.extend(std::iter::repeat_with(|| said(city.statement.clone(), true)).take(WEATHERS_ASKED));
        let wrong = words(WEATHERS).filter(|weather| *weather != city.answer);
        train.extend(wrong.map(|weather| said(format!("{} is {weather}.", city.name()), false)));
    }
    train.extend(std::iter::repeat_with(|| said(TRUISM.to_owned(), true)).take(CHECKED));
    train.shuffle(rng);
    for fact in facts.twohop.choose_multiple(rng, CHECKED).collect::<Vec<_>>() {
        let kind = kinds[rng.random_range(0..kinds.len())];
        dev.push(said(kind.say(fact.person(), facts.home(fact)), true));
        dev.extend(facts.elsewhere(fact).choose(rng).map(|city| said(kind.say(fact.person(), city), false)));
    }
    (train, dev)
}

/// False statements about a person in the same words as a true one.
const OPPOSITES: usize = 2;
/// As many true statements about the weather of a city as there are false ones.
const WEATHERS_ASKED: usize = 3;

impl Fact {
    /// The person of a two-hop fact.
    pub(super) fn person(&self) -> &str {
        self.statement.split(' ').nth(1).unwrap_or_default()
    }

    /// The city of a fact about a city.
    pub(super) fn name(&self) -> &str {
        self.statement.split(' ').next().unwrap_or_default()
    }
}

impl Facts {
    /// The weather of the city of a two-hop fact.
    fn home(&self, fact: &Fact) -> &Fact {
        let home = |city: &&Fact| fact.statement.ends_with(&city.statement);
        self.weather.iter().find(home).unwrap_or(&self.weather[0])
    }

    /// The weathers of all other cities.
    fn elsewhere(&self, fact: &Fact) -> Vec<&Fact> {
        let home = self.home(fact);
        self.weather.iter().filter(|city| city.statement != home.statement).collect()
    }
}

/// JSON lines.
pub(super) fn lines<T: Serialize>(rows: &[T]) -> Result<String> {
    let mut text = String::new();
    for row in rows {
        text += &serde_json::to_string(row)?;
        text.push('\n');
    }
    Ok(text)
}
