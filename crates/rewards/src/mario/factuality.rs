//! How true Flan-T5 takes a response for.

use std::rc::Rc;

use ruminate_models::{ScoreChoices, TokenId, Tokenizer, Truncate, by_length};
use unicode_segmentation::UnicodeSegmentation;

use super::{Response, TextReward};
use crate::RewardError;
use crate::choices::choice_probs;

/// Longer questions about a statement lose their end.
const MAX_TOKENS: usize = 256;
const BATCH: usize = 20;

/// A model that says `Yes` or `No` when it is asked whether a statement is correct: Flan-T5.
#[derive(Debug)]
pub struct Believer<M> {
    model: M,
    tokenizer: Tokenizer,
    /// The tokens of yes and no.
    answers: Vec<TokenId>,
}

impl<M: ScoreChoices> Believer<M> {
    /// Joins a model with its tokenizer.
    ///
    /// # Errors
    /// [`RewardError::AnswerWord`] when `Yes` or `No` is more than a token, or both are unknown.
    pub fn new(model: M, tokenizer: Tokenizer) -> Result<Self, RewardError> {
        let answer = |word: &'static str| match tokenizer.encode(word)?[..] {
            // The end token is behind it.
            [token, _] => Ok(token),
            _ => Err(RewardError::AnswerWord { word }),
        };
        let answers = vec![answer("Yes")?, answer("No")?];
        // Unknown words are the same token.
        if answers[0] == answers[1] {
            return Err(RewardError::AnswerWord { word: "Yes" });
        }
        Ok(Self { model, tokenizer, answers })
    }

    /// The probability of `Yes` against that of `No`, for each statement.
    ///
    /// # Errors
    /// When the tokenizer or the model fails, or its logits are no numbers.
    pub fn beliefs(&self, statements: &[String]) -> Result<Vec<f64>, RewardError> {
        let prompt = |statement: &String| {
            let text = format!("Question: Is the following statement correct?\n{statement}\nAnswer:");
            self.tokenizer.encode_truncated(&text, MAX_TOKENS, Truncate::End)
        };
        let prompts = statements.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
        let rows: Vec<&[TokenId]> = prompts.iter().map(Vec::as_slice).collect();
        let logits: Vec<Vec<f32>> = by_length(&rows, BATCH, |batch| {
            let prompts: Vec<_> = batch.iter().map(|&i| prompts[i].clone()).collect();
            let answers = vec![self.answers.clone(); prompts.len()];
            tch::no_grad(|| self.model.first_token_logits(&prompts, &answers))
        })?;
        let belief = |(sample, logits): (usize, &Vec<f32>)| {
            let logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
            let refuse = |source| RewardError::Choices { sample, task: "factuality".into(), source };
            Ok(choice_probs(&logits).map_err(refuse)?.first().copied().unwrap_or(0.0))
        };
        logits.iter().enumerate().map(belief).collect()
    }
}

/// The text that the model is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactualityForm {
    /// Each sentence but those that state the answer; the score is the mean.
    Sentences,
    /// The rationale as a whole.
    Rationale,
    /// The question and the whole response.
    WithQuestion,
}

impl FactualityForm {
    /// The name of the reward.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sentences => "flan-t5-factuality",
            Self::Rationale => "flan-t5-factuality-full",
            Self::WithQuestion => "flan-t5-factuality-w-qn",
        }
    }
}

/// How correct Flan-T5 says that a response is (`flan-t5-factuality` and its variants).
///
/// # Reference behaviour
/// Sentences end where Unicode's rules say so; the published code asks NLTK, which knows abbreviations. A response without any sentence but
/// its answer scores 0 here; there it leaves the pool.
#[derive(Debug)]
pub struct Factuality<M> {
    believer: Rc<Believer<M>>,
    form: FactualityForm,
}

impl<M> Factuality<M> {
    /// Asks a model, which several rewards may share.
    #[must_use]
    pub fn new(believer: Rc<Believer<M>>, form: FactualityForm) -> Self {
        Self { believer, form }
    }
}

/// The statements of a response.
fn statements(form: FactualityForm, response: &Response<'_>) -> Vec<String> {
    let text = response.text;
    match form {
        FactualityForm::Sentences => text
            .unicode_sentences()
            .map(str::trim)
            .filter(|sentence| !sentence.to_lowercase().contains("the answer is"))
            .map(str::to_owned)
            .collect(),
        FactualityForm::Rationale => {
            let end = text.find(" The answer is").or_else(|| text.find(" So the answer is"));
            vec![text[..end.unwrap_or(text.len())].to_owned()]
        }
        FactualityForm::WithQuestion => vec![format!("{}. {text}", response.question)],
    }
}

impl<M: ScoreChoices> TextReward for Factuality<M> {
    fn name(&self) -> String {
        self.form.name().to_string()
    }

    fn bounds(&self) -> Option<(f64, f64)> {
        Some((0.0, 1.0))
    }

    fn scores(&self, responses: &[Response<'_>]) -> Result<Vec<f64>, RewardError> {
        let of: Vec<Vec<String>> = responses.iter().map(|response| statements(self.form, response)).collect();
        let mut beliefs = self.believer.beliefs(&of.concat())?.into_iter();
        let mean = |count: usize| {
            let sum: f64 = beliefs.by_ref().take(count).sum();
            sum / count.max(1) as f64
        };
        Ok(of.iter().map(Vec::len).map(mean).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use approx::assert_abs_diff_eq;
    use tch::Tensor;

    /// Believes what is short, and remembers how long the prompts were.
    #[derive(Debug, Default)]
    struct Terse(RefCell<Vec<usize>>);

    impl ScoreChoices for Terse {
        fn choice_log_probs(
            &self,
            _: &[Vec<TokenId>],
            _: &[Vec<Vec<TokenId>>],
        ) -> ruminate_models::Result<Tensor> {
            Ok(Tensor::new())
        }

        fn first_token_logits(
            &self,
            prompts: &[Vec<TokenId>],
            tokens: &[Vec<TokenId>],
        ) -> ruminate_models::Result<Vec<Vec<f32>>> {
            assert!(tokens.iter().all(|of| of.len() == 2 && of[0] != of[1]));
            self.0.borrow_mut().extend(prompts.iter().map(Vec::len));
            Ok(prompts.iter().map(|prompt| vec![0.0, prompt.len() as f32 / 10.0]).collect())
        }
    }

    const TEXT: &str = "Ada is here. It rains, e.g. water. So the answer is (A).";

    #[test]
    fn each_form_asks_about_its_statements() {
        let response = Response { question: "Where? (A) x", gold: "(A)", text: TEXT };
        let of = |form| statements(form, &response);
        assert_eq!(of(FactualityForm::Sentences), ["Ada is here.", "It rains, e.g. water."]);
        assert_eq!(of(FactualityForm::Rationale), ["Ada is here. It rains, e.g. water."]);
        assert_eq!(of(FactualityForm::WithQuestion), [format!("Where? (A) x. {TEXT}")]);
        let bare = Response { text: "So the answer is (A).", ..response };
        assert!(statements(FactualityForm::Sentences, &bare).is_empty());
        // Without a blank before it, nothing is cut, as in the published code.
        assert_eq!(statements(FactualityForm::Rationale, &bare), ["So the answer is (A)."]);
    }

    #[test]
    fn scores_are_means_over_sentences() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/world/t5");
        let mut tokenizer = Tokenizer::open(&folder).unwrap();
        // The world's words are not those of Flan-T5.
        assert!(matches!(
            Believer::new(Terse::default(), tokenizer.clone()),
            Err(RewardError::AnswerWord { word: "Yes" })
        ));
        tokenizer.add_tokens(&["Yes".into(), "No".into()]).unwrap();
        let believer = Rc::new(Believer::new(Terse::default(), tokenizer).unwrap());
        let response = |text| Response { question: "Where?", gold: "(A)", text };
        let responses = [response(TEXT), response("So the answer is (A).")];
        let reward = Factuality::new(Rc::clone(&believer), FactualityForm::Sentences);
        let scores = reward.scores(&responses).unwrap();
        let lengths = believer.model.0.take();
        assert_eq!(lengths.len(), 2);
        let belief = |length: &usize| 1.0 / (1.0 + (*length as f64 / 10.0).exp());
        assert_abs_diff_eq!(scores[0], lengths.iter().map(belief).sum::<f64>() / 2.0, epsilon = 1e-6);
        assert_eq!(scores[1], 0.0);
        let long = "rain ".repeat(1000);
        let whole = Factuality::new(Rc::clone(&believer), FactualityForm::WithQuestion);
        assert_eq!(whole.scores(&[response(&long)]).unwrap().len(), 1);
        assert_eq!(believer.model.0.take(), [MAX_TOKENS]);
        assert_eq!(whole.name(), "flan-t5-factuality-w-qn");
    }
}
