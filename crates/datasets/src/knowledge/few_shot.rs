//! Silver knowledge by few-shot prompts, as the published code had GPT-3 write it.

use std::path::{Path, PathBuf};

use crate::teacher::{Answer, Message, Request, Sampling};
use crate::{Error, Result};

use super::SilverItem;

/// A prompt for statements about questions: some demonstrations, and the place of the question.
///
/// The file is plain text with `{question}` in it, once. The published prompts have five demonstrations of two lines, `Input:` and
/// `Knowledge:`, and end with `Input: {question}` and `Knowledge:`.
///
/// # Example
/// ```
/// use ruminate_datasets::knowledge::FewShotPrompt;
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("csqa.txt");
/// std::fs::write(&path, "Input: Is ice cold?\nKnowledge: Ice is frozen.\n\nInput: {question}\nKnowledge:\n")?;
/// let prompt = FewShotPrompt::open(&path)?;
/// assert!(prompt.text("Do bees sting?").ends_with("Input: Do bees sting?\nKnowledge:"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FewShotPrompt {
    before: String,
    after: String,
}

const QUESTION: &str = "{question}";

impl FewShotPrompt {
    /// Reads a prompt. Line breaks around it are left out.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::NotUtf8`]; [`Error::Prompt`] when the place of the question is missing or there are several.
    pub fn open(path: &Path) -> Result<Self> {
        let text = crate::text::read_to_string(path)?;
        match text.trim_matches(['\n', '\r']).split(QUESTION).collect::<Vec<_>>()[..] {
            [before, after] => Ok(Self { before: before.into(), after: after.into() }),
            ref parts => Err(Error::Prompt { path: path.into(), found: parts.len() - 1 }),
        }
    }

    /// The prompt for a question.
    #[must_use]
    pub fn text(&self, question: &str) -> String {
        format!("{}{question}{}", self.before, self.after)
    }

    /// The request for statements about an item. `name` tells it from those of other files.
    #[must_use]
    pub fn request(&self, name: &str, item: &SilverItem, sampling: &Sampling) -> Request {
        let message = Message::new("user", self.text(item.query.trim()));
        Request { id: name.into(), messages: vec![message], sampling: sampling.clone() }
    }
}

/// How the published code drew statements: 20 of them, at temperature 1 from the tokens with half of the probability, each a line of at most
/// 64 tokens.
#[must_use]
pub fn published_sampling() -> Sampling {
    Sampling {
        max_tokens: Some(64),
        n: Some(20),
        temperature: Some(1.0),
        top_p: Some(0.5),
        stop: vec!["\n".into()],
        ..Sampling::default()
    }
}

/// The statements of an answer, in their order; duplicates stay, as in the published files, and empty ones go. A statement ends at its
/// first line break, also where a server ignored `stop`.
#[must_use]
pub fn statements(answer: &Answer) -> Vec<String> {
    let lines =
        answer.choices.iter().map(|choice| choice.content.trim_start().lines().next().unwrap_or_default());
    lines.filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

/// The name of a file of silver knowledge: `knowledge_gkp_gpt3davinci.train.csqa.json`, for the engine `davinci`.
#[must_use]
pub fn silver_file(folder: &Path, engine: &str, split: crate::Split, task: &str) -> PathBuf {
    folder.join(format!("knowledge_gkp_gpt3{engine}.{split}.{task}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::teacher::Completion;

    #[test]
    fn a_prompt_has_one_place_for_the_question() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.txt");
        for (text, found) in [("Input:", 0), ("{question} and {question}", 2)] {
            std::fs::write(&path, text).unwrap();
            let error = FewShotPrompt::open(&path).unwrap_err().to_string();
            assert!(error.contains("p.txt") && error.contains(&format!("found {found}")), "{error}");
        }
        std::fs::write(&path, b"\n\r\nQ: {question}\nK:\n\n").unwrap();
        let prompt = FewShotPrompt::open(&path).unwrap();
        assert_eq!(prompt.text("a {b}"), "Q: a {b}\nK:");
        let item = SilverItem { query: " a \\n (A) x ".into(), answer: "x".into(), knowledges: vec![] };
        let request = prompt.request("csqa/train/0", &item, &published_sampling());
        assert_eq!(request.messages[0].content, "Q: a \\n (A) x\nK:");
    }

    #[test]
    fn statements_are_single_lines() {
        let choice = |content: &str| Completion { content: content.into(), finish_reason: "stop".into() };
        let choices = [" Ice is cold.", "\n", "Ice is cold.\nInput: more", "  ", "Fire is hot. "].map(choice);
        let answer = Answer { choices: choices.into(), ..Answer::default() };
        assert_eq!(statements(&answer), ["Ice is cold.", "Ice is cold.", "Fire is hot. "]);
    }
}
