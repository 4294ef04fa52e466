//! Requests for another sender, and its answers.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Serialize;
use ureq::http::Uri;

use super::file::{AnswerFile, Exchange, ids, numbered};
use super::request::{Body, WireBody};
use super::{Answer, Message, Request, Result, TeacherConfig, TeacherError};

/// The form of a file of requests for another sender. Either has a request per line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RequestForm {
    /// OpenAI's batch interface, and what takes its files: `{"custom_id", "method", "url", "body"}`.
    #[default]
    Batch,
    /// The bodies alone, `{"model", "messages", ...}`, as TinyThinker's published sender takes them.
    Bodies,
}

#[derive(Serialize)]
struct BatchLine<'a> {
    custom_id: &'a str,
    method: &'static str,
    url: &'a str,
    body: WireBody<'a>,
}

/// Writes requests for another sender. The answers come back through [`AnswerFile::import`], or [`match_answers`](super::match_answers).
///
/// # Example
/// ```
/// use ruminate_datasets::teacher::{Message, Request, RequestForm, TeacherConfig, write_requests};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("requests.jsonl");
/// let requests = [Request::new("ice", vec![Message::new("user", "Is ice cold?")])];
/// write_requests(&path, &TeacherConfig::default(), &requests, RequestForm::Batch)?;
/// let line = std::fs::read_to_string(&path).unwrap();
/// assert!(line.starts_with(r#"{"custom_id":"ice","method":"POST","url":"/v1/chat/completions","body":{"#));
/// # Ok::<(), ruminate_datasets::teacher::TeacherError>(())
/// ```
///
/// # Errors
/// [`TeacherError::DuplicateId`], and when the file cannot be written.
pub fn write_requests(
    path: &Path,
    config: &TeacherConfig,
    requests: &[Request],
    form: RequestForm,
) -> Result<()> {
    ids(requests)?;
    let url = config.url();
    let url = url.parse::<Uri>().map_or_else(|_| "/v1/chat/completions".into(), |uri| uri.path().to_owned());
    let bodies: Vec<Body> = requests.iter().map(|request| Body::new(&config.model, request)).collect();
    let wire = bodies.iter().map(|body| body.wire(config.token_limit, config.endpoint));
    match form {
        RequestForm::Batch => {
            let ids = requests.iter().map(|request| request.id.as_str());
            let line = |(custom_id, body)| BatchLine { custom_id, method: "POST", url: &url, body };
            let lines: Vec<BatchLine<'_>> = ids.zip(wire).map(line).collect();
            crate::json::write_lines(path, &lines)?;
        }
        RequestForm::Bodies => crate::json::write_lines(path, &wire.collect::<Vec<_>>())?,
    }
    Ok(())
}

/// Counts of answers from another sender.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// Answers that were stored.
    pub answered: usize,
    /// Answers to requests that had one.
    pub known: usize,
    /// Requests that failed, with file, line and reason.
    pub failed: Vec<(String, String)>,
    /// Requests that no file tells of.
    pub missing: Vec<String>,
}

impl AnswerFile {
    /// Takes the answers of another sender to `requests`: lines of a batch's output, `[request, response]`, or lines of another answer file.
    /// A request that failed there is stored as failed. Nothing is stored when a line is wrong.
    ///
    /// # Errors
    /// A file that cannot be read, a damaged line, [`TeacherError::SecondAnswer`], [`TeacherError::NotAsked`] and
    /// [`TeacherError::RequestChanged`], with file and line; and whatever keeps this file from being written.
    pub fn import(&mut self, files: &[PathBuf], model: &str, requests: &[Request]) -> Result<Imported> {
        let by_id = ids(requests)?;
        let mut by_messages: HashMap<&[Message], Vec<usize>> = HashMap::new();
        for (index, request) in requests.iter().enumerate() {
            by_messages.entry(&request.messages).or_default().push(index);
        }
        let mut found: BTreeMap<usize, std::result::Result<Answer, String>> = BTreeMap::new();
        // A sender without ids may have tried again after a failure, so that a failed request is still one of those that a line may tell of.
        let unanswered = |found: &BTreeMap<usize, std::result::Result<Answer, String>>,
                          messages: &[Message]| {
            let same = by_messages.get(messages)?;
            same.iter().copied().find(|index| !matches!(found.get(index), Some(Ok(_))))
        };
        for path in files {
            for (line, Exchange { id, messages, outcome, .. }) in numbered(path)? {
                let index = match &id {
                    Some(id) => by_id.get(id.as_str()).copied(),
                    None => unanswered(&found, &messages),
                };
                let Some(index) = index else {
                    return Err(TeacherError::NotAsked { path: path.clone(), line, id });
                };
                let id = &requests[index].id;
                if !messages.is_empty() && messages != requests[index].messages {
                    let (path, id) = (path.clone(), id.clone());
                    return Err(TeacherError::RequestChanged { path, line, id, field: "messages" });
                }
                match (found.get(&index), &outcome) {
                    (Some(Ok(_)), Ok(_)) => {
                        return Err(TeacherError::SecondAnswer { path: path.clone(), line, id: id.clone() });
                    }
                    // An answer stands, whatever failed before or after it.
                    (Some(Ok(_)), Err(_)) => {}
                    _ => {
                        let place = |reason| format!("{}: line {line}: {reason}", path.display());
                        found.insert(index, outcome.map_err(place));
                    }
                }
            }
        }
        let stored = self.answers(model, requests)?;
        let mut imported = Imported::default();
        for (index, request) in requests.iter().enumerate() {
            let body = || Body::new(model, request);
            match found.remove(&index) {
                _ if stored[index].is_some() => imported.known += 1,
                Some(Ok(answer)) => {
                    self.write(&request.id, body(), Ok(&answer), 0)?;
                    imported.answered += 1;
                }
                Some(Err(reason)) => {
                    if !self.has_failed(&request.id) {
                        self.write(&request.id, body(), Err(&reason), 0)?;
                    }
                    imported.failed.push((request.id.clone(), reason));
                }
                None if self.has_failed(&request.id) => {}
                None => imported.missing.push(request.id.clone()),
            }
        }
        self.sync()?;
        Ok(imported)
    }

    /// The requests that are neither answered nor failed.
    ///
    /// # Errors
    /// Those of [`answers`](Self::answers).
    pub fn open_requests(&self, model: &str, requests: &[Request]) -> Result<Vec<Request>> {
        let answers = self.answers(model, requests)?;
        let open = |(request, answer): &(&Request, Option<Answer>)| {
            answer.is_none() && !self.has_failed(&request.id)
        };
        Ok(requests.iter().zip(answers).filter(open).map(|(request, _)| request.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Sampling, TokenLimit, match_answers, read_answers};
    use super::*;

    fn requests(ids: &[&str]) -> Vec<Request> {
        let request = |id: &&str| Request {
            sampling: Sampling { max_tokens: Some(9), n: Some(2), ..Sampling::default() },
            ..Request::new(*id, vec![Message::new("user", format!("About {id}?"))])
        };
        ids.iter().map(request).collect()
    }

    fn result(id: &str, status: u16, body: Value) -> String {
        json!({"id": "b", "custom_id": id, "response": {"status_code": status, "body": body}, "error": null})
            .to_string()
    }

    fn says(text: &str) -> Value {
        json!({"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}],
               "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn file(&self, name: &str, lines: &[String]) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, lines.join("\n") + "\n").unwrap();
            path
        }
    }

    #[test]
    fn both_forms_hold_what_a_server_is_sent() {
        let place = Place(tempfile::tempdir().unwrap());
        let path = place.0.path().join("requests.jsonl");
        let config = TeacherConfig {
            base_url: "http://localhost:8000/openai/v1/".into(),
            token_limit: TokenLimit::MaxCompletionTokens,
            ..TeacherConfig::default()
        };
        let lines = |form| -> Vec<Value> {
            write_requests(&path, &config, &requests(&["1/0", "2/0"]), form).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let (batch, bodies) = (lines(RequestForm::Batch), lines(RequestForm::Bodies));
        assert_eq!((&batch[1]["custom_id"], &batch[1]["method"]), (&json!("2/0"), &json!("POST")));
        assert_eq!(batch[1]["url"], "/openai/v1/chat/completions");
        assert_eq!(batch[1]["body"], bodies[1]);
        let expected = json!({"model": config.model, "n": 2, "max_completion_tokens": 9,
            "messages": [{"role": "user", "content": "About 2/0?"}]});
        assert_eq!(bodies[1], expected);
        let twice = write_requests(&path, &config, &requests(&["1", "1"]), RequestForm::Batch);
        assert!(matches!(twice, Err(TeacherError::DuplicateId(_))));
    }

    #[test]
    fn answers_are_imported_once_and_what_is_missing_is_named() {
        let place = Place(tempfile::tempdir().unwrap());
        let requests = requests(&["a", "b", "c", "d"]);
        let limit = json!({"error": {"message": "too many", "code": "rate_limit"}});
        let first = place.file("first.jsonl", &[result("c", 200, says("C")), result("b", 429, limit)]);
        let expired = json!({"custom_id": "d", "response": null, "error": {"code": "batch_expired", "message": "late"}});
        let body = json!({"model": "m", "messages": requests[0].messages});
        let second = [json!([body, says("A")]).to_string(), expired.to_string(), String::new()];
        let second = place.file("second.jsonl", &second);
        let path = place.0.path().join("answers.jsonl");
        let mut file = AnswerFile::open(&path).unwrap();
        let imported = file.import(std::slice::from_ref(&first), "m", &requests).unwrap();
        assert_eq!(
            (imported.answered, imported.known, &imported.missing[..]),
            (1, 0, &["a".into(), "d".into()][..])
        );
        let (id, reason) = &imported.failed[0];
        assert!(id == "b" && reason.contains("first.jsonl: line 2: status 429: too many"), "{reason}");
        let open: Vec<String> =
            file.open_requests("m", &requests).unwrap().into_iter().map(|request| request.id).collect();
        assert_eq!(open, ["a", "d"]);
        let imported = file.import(&[first, second], "m", &requests).unwrap();
        assert_eq!((imported.answered, imported.known, imported.failed.len()), (1, 1, 2));
        assert!(imported.missing.is_empty() && imported.failed[1].1.contains("second.jsonl: line 2: late"));
        drop(file);
        // It is a file as those of a server, and what is in it is not imported again.
        let file = AnswerFile::open(&path).unwrap();
        assert!(file.open_requests("m", &requests).unwrap().is_empty());
        let texts: Vec<Option<String>> = file
            .answers("m", &requests)
            .unwrap()
            .iter()
            .map(|a| a.as_ref().map(|a| a.text().into()))
            .collect();
        assert_eq!(texts, [Some("A".into()), None, Some("C".into()), None]);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4);
    }

    #[test]
    fn a_sender_without_ids_may_have_tried_again() {
        let place = Place(tempfile::tempdir().unwrap());
        let requests = requests(&["a"]);
        let body = json!({"model": "m", "messages": requests[0].messages});
        let line = |reply: Value| json!([body, reply]).to_string();
        let tries = [line(json!(["a time-out"])), line(json!(["another"])), line(says("A"))];
        let mut file = AnswerFile::open(&place.0.path().join("answers.jsonl")).unwrap();
        let imported = file.import(&[place.file("tries.jsonl", &tries)], "m", &requests).unwrap();
        assert_eq!((imported.answered, imported.failed.len(), imported.missing.len()), (1, 0, 0));
        let twice = [line(says("A")), line(says("B"))];
        let error =
            file.import(&[place.file("twice.jsonl", &twice)], "m", &requests).unwrap_err().to_string();
        assert!(error.contains("twice.jsonl: line 2: nobody asked"), "{error}");
    }

    #[test]
    fn wrong_lines_are_named_and_nothing_is_stored() {
        let place = Place(tempfile::tempdir().unwrap());
        let requests = requests(&["a", "b"]);
        let good = result("a", 200, says("A"));
        let other = json!([{"model": "m", "messages": [{"role": "user", "content": "?"}]}, says("A")]);
        for (line, wanted) in [
            (good.clone(), "line 2: a second answer to `a`"),
            (result("z", 200, says("Z")), "line 2: nobody asked `z`"),
            (other.to_string(), "line 2: nobody asked a request with these messages"),
            (result("b", 200, json!({"choices": 3})), "line 2: `b`: response.body: "),
            (json!({"custom_id": "b"}).to_string(), "line 2: `b`: expected either `response` or `error`"),
            (
                json!({"custom_id": "b", "response": {"body": {}}}).to_string(),
                "line 2: `b`: response: missing field `status_code`",
            ),
            (json!({"custom_id": 7, "response": {}}).to_string(), "line 2"),
            ("{\"custom_id\": \"b\", ".into(), "line 2"),
        ] {
            let path = place.file("results.jsonl", &[good.clone(), line.clone(), String::new()]);
            let answers = place.0.path().join("answers.jsonl");
            let mut file = AnswerFile::open(&answers).unwrap();
            let error = file.import(std::slice::from_ref(&path), "m", &requests).unwrap_err().to_string();
            assert!(error.contains("results.jsonl") && error.contains(wanted), "{line}\n{error}");
            assert_eq!(std::fs::read(&answers).unwrap(), b"");
        }
    }

    #[test]
    fn a_batch_is_read_without_an_answer_file_too() {
        let place = Place(tempfile::tempdir().unwrap());
        let path =
            place.file("results.jsonl", &[result("b", 200, says("B")), result("a", 500, json!("down"))]);
        let answers = match_answers(&path, read_answers(&path).unwrap(), &requests(&["a", "b"])).unwrap();
        assert_eq!((answers[0].as_ref(), answers[1].as_ref().map(Answer::text)), (None, Some("B")));
    }
}
