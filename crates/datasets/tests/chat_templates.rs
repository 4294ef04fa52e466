//! Chat templates, against transformers' own renderer: `chat_templates/make.py` says how the expected texts were made.

use ruminate_datasets::chat::{Date, JinjaTemplate, Message};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<(String, String)>,
    open: bool,
}

#[derive(Deserialize)]
struct Expected {
    results: Vec<Rendered>,
}

#[derive(Deserialize)]
struct Rendered {
    name: String,
    text: Option<String>,
}

#[test]
fn templates_render_as_in_transformers() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("chat_templates/templates.json")).unwrap();
    let expected: Expected = serde_json::from_str(include_str!("chat_templates/expected.json")).unwrap();
    assert!(cases.len() == expected.results.len() && cases.len() >= 80);
    let date: Date = "2026-11-30".parse().unwrap();
    let mut different = vec![];
    for (case, want) in cases.iter().zip(&expected.results) {
        assert_eq!(case.name, want.name);
        let messages: Vec<Message> =
            case.messages.iter().map(|(role, content)| Message::new(role, content)).collect();
        let rendered = JinjaTemplate::new(&case.template, &[("bos_token", "<s>"), ("eos_token", "</s>")])
            .map(|template| template.at(Some(date.start())))
            .and_then(|template| template.render(&messages, case.open));
        // What transformers refuses is refused, in other words.
        if rendered.as_ref().ok() != want.text.as_ref() {
            let cause = rendered.as_ref().err().and_then(std::error::Error::source).map(ToString::to_string);
            different.push(format!("{}\n  got  {rendered:?} {cause:?}\n  want {:?}", case.name, want.text));
        }
    }
    assert!(different.is_empty(), "{} of {} differ:\n{}", different.len(), cases.len(), different.join("\n"));
}
