//! What is made of texts alone: rewards and prompts.

use std::path::Path;

use ruminate_datasets::chat::{ChatTemplate, Message, NamedTemplate};
use ruminate_datasets::environments::{
    Compat, DEMONSTRATION, Environment, Gsm8k, Math, Problem, boxed_answer, boxed_integer, equivalent,
    gold_number, is_success, normalise,
};
use serde::Deserialize;

use super::MODES;
use crate::Outcome;
use crate::compare::{Check, equal};
use crate::file::{GoldenError, GoldenFile};

/// A response to a gold solution, and what it is worth.
#[derive(Deserialize)]
struct Response {
    gold: String,
    response: String,
    reward: f64,
    success: bool,
    #[serde(default)]
    fixed_reward: Option<f64>,
}

impl Response {
    fn check(&self, environment: &dyn Environment, compat: Compat, mode: &str) -> Check {
        let problem = Problem { solution: self.gold.clone(), ..Problem::default() };
        let got = environment.judge(&problem, &self.response);
        equal("success", is_success(self.reward), self.success)?;
        let want = match (compat, self.fixed_reward) {
            (Compat::Reference, _) => self.reward,
            (Compat::Fixed, Some(fixed)) => fixed,
            (Compat::Fixed, None) if self.read_alike() => self.reward,
            (Compat::Fixed, None) => return Ok(()),
        };
        equal(&format!("reward ({mode})"), got.reward, want)?;
        equal(&format!("success ({mode})"), got.success(), is_success(want))
    }

    /// Do both modes read the same answer? Files state a reward of the fixed mode only where gold numbers or nested braces differ; it
    /// also knows forms of numbers that the published rule reads as text or not at all, compares numbers exactly, and gives nothing for
    /// two missing answers.
    fn read_alike(&self) -> bool {
        let Some(answer) = boxed_answer(&self.response, Compat::Reference) else {
            return boxed_answer(&self.gold, Compat::Reference).is_some();
        };
        let plain = answer.trim();
        let digits = plain.strip_prefix('-').unwrap_or(plain);
        let integer = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        integer && digits.len() <= 15
    }
}

pub(super) fn gsm8k_reward(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Case {
        extracted: Option<String>,
        #[serde(flatten)]
        response: Response,
    }
    #[derive(Deserialize)]
    struct Gold {
        tail: String,
        reference_gold: Option<String>,
        full_gold: Option<String>,
    }
    let file = GoldenFile::read(path)?;
    let mut cases = file.cases("responses", |case: Case| {
        equal("extracted", boxed_integer(&case.response.response), case.extracted)?;
        MODES.into_iter().try_for_each(|(compat, mode)| case.response.check(&Gsm8k { compat }, compat, mode))
    })?;
    cases.extend(file.cases("gold_numbers", |case: Gold| {
        equal("reference_gold", gold_number(&case.tail, Compat::Reference), case.reference_gold)?;
        match case.full_gold {
            // Rows without an agreed value.
            None => Ok(()),
            // Ours has one form for each value: `+5` is 5.
            Some(full) => {
                let form = gold_number(&format!("#### {full}"), Compat::Fixed);
                equal("full_gold", gold_number(&case.tail, Compat::Fixed), form)
            }
        }
    })?);
    Ok(Outcome { cases, ..Outcome::default() })
}

pub(super) fn math_answers(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Extract {
        text: String,
        extracted: Option<String>,
        // There is a difference between a field that is missing and one that is null.
        #[serde(default, deserialize_with = "present")]
        balanced: Option<Option<String>>,
    }
    #[derive(Deserialize)]
    struct Normalize {
        r#in: String,
        out: Option<String>,
    }
    #[derive(Deserialize)]
    struct Pair {
        a: Option<String>,
        b: Option<String>,
        equiv: bool,
    }
    let file = GoldenFile::read(path)?;
    let mut cases = file.cases("extract", |case: Extract| {
        let got = |compat| boxed_answer(&case.text, compat).map(str::to_owned);
        equal("extracted", &got(Compat::Reference), &case.extracted)?;
        // A last box that is never closed was no answer once; by the corrected rule the last closed one is.
        let balanced = case.balanced.filter(Option::is_some).unwrap_or(case.extracted);
        equal("balanced", got(Compat::Fixed), balanced)
    })?;
    cases.extend(
        file.cases("normalize", |case: Normalize| equal("out", normalise(&case.r#in).ok(), case.out))?,
    );
    cases.extend(file.cases("equivalence", |case: Pair| {
        equal("equiv", equivalent(case.a.as_deref(), case.b.as_deref()), case.equiv)
    })?);
    cases.extend(file.cases("reward", |case: Response| {
        MODES.into_iter().try_for_each(|(compat, mode)| case.check(&Math { compat }, compat, mode))
    })?);
    Ok(Outcome { cases, ..Outcome::default() })
}

/// A field that is there, be it null.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

pub(super) fn prompts(path: &Path) -> Result<Outcome, GoldenError> {
    #[derive(Deserialize)]
    struct Demo {
        user: String,
        assistant: String,
    }
    #[derive(Deserialize)]
    struct Template {
        template: String,
        stop_str: Option<String>,
        stop_token_ids: Option<Vec<i64>>,
    }
    #[derive(Deserialize)]
    struct Prompt {
        template: String,
        add_generation_prompt: bool,
        messages: Vec<(String, String)>,
        #[serde(default)]
        system: Option<String>,
        prompt: String,
    }
    let file = GoldenFile::read(path)?;
    let demo: Demo = file.field("demo")?;
    let mut outcome = Outcome::default();
    outcome.case("demo", equal("demo", DEMONSTRATION, [demo.user.as_str(), &demo.assistant]));
    outcome.cases.extend(file.cases("templates", |case: Template| {
        let template: NamedTemplate = case.template.parse()?;
        equal("stop_str", template.stop_strings(), &case.stop_str.into_iter().collect::<Vec<_>>()[..])?;
        equal("stop_token_ids", template.stop_ids(), &case.stop_token_ids.unwrap_or_default()[..])
    })?);
    outcome.cases.extend(file.cases("prompts", |case: Prompt| {
        let template: NamedTemplate = case.template.parse()?;
        let system = case.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> =
            system.chain(case.messages.iter().map(|(role, text)| Message::new(role, text))).collect();
        let got = template.render(&messages, case.add_generation_prompt)?;
        equal("prompt", &got.text, &case.prompt)?;
        if case.add_generation_prompt {
            equal("prompt", &ChatTemplate::from(template).prompt(&messages)?, &case.prompt)?;
        }
        Ok(())
    })?);
    Ok(outcome)
}
