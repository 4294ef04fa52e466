//! How one question was answered, with knowledge and without.

use super::{ChoiceError, Combined, Ensemble, argmax, choice_probs};
use ruminate_datasets::{InferenceItem, KnowledgeItem, Question};
use serde::{Deserialize, Serialize};

/// Who answers, and how the answers are combined. The default is that of Crystal's published evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnsembleConfig {
    /// How the experts are combined (default: `max`).
    pub ensembling: Ensemble,
    /// Leave the bare question out of the experts where there is a statement (default: true).
    pub no_knowless_expert: bool,
}

impl Default for EnsembleConfig {
    fn default() -> Self {
        Self { ensembling: Ensemble::Max, no_knowless_expert: true }
    }
}

/// One of those who answer a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expert {
    /// The question without knowledge.
    BareQuestion,
    /// The question with this statement.
    Statement(usize),
}

/// How one question was answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Those who were asked, in order.
    pub experts: Vec<Expert>,
    /// Their raw scores, `[expert][choice]`.
    pub scores: Vec<Vec<f64>>,
    /// Their probabilities.
    pub probs: Vec<Vec<f64>>,
    /// What they say together.
    pub combined: Combined,
    /// The choice predicted from the bare question.
    pub prediction_knowless: usize,
    /// The right choice.
    pub gold: usize,
}

impl Judgement {
    /// Judges the scores of a question's real choices: of the bare question, and of the question with each
    /// statement (`[statement][choice]`).
    ///
    /// # Errors
    /// [`ChoiceError::GoldOutOfRange`], and those of [`choice_probs`] and [`Ensemble::combine`].
    pub fn new(
        bare: &[f64],
        statements: &[Vec<f64>],
        gold: usize,
        config: EnsembleConfig,
    ) -> Result<Self, ChoiceError> {
        choice_probs(bare)?;
        if gold >= bare.len() {
            return Err(ChoiceError::GoldOutOfRange { gold, choices: bare.len() });
        }
        let without_bare = config.no_knowless_expert && !statements.is_empty();
        let (experts, scores): (Vec<_>, Vec<_>) = std::iter::once((Expert::BareQuestion, bare.to_vec()))
            .chain(statements.iter().enumerate().map(|(ix, s)| (Expert::Statement(ix), s.clone())))
            .skip(usize::from(without_bare))
            .unzip();
        for (expert, scores) in statements.iter().enumerate() {
            if scores.len() != bare.len() {
                let (found, expected) = (scores.len(), bare.len());
                return Err(ChoiceError::Ragged { expert: expert + 1, found, expected });
            }
        }
        let probs: Vec<Vec<f64>> =
            scores.iter().map(|scores| choice_probs(scores)).collect::<Result<_, _>>()?;
        let combined = config.ensembling.combine(&probs)?;
        Ok(Self { experts, scores, probs, combined, prediction_knowless: argmax(bare), gold })
    }

    /// Was the question answered correctly?
    pub fn correct(&self) -> bool {
        self.combined.prediction == self.gold
    }

    /// Was it answered correctly without knowledge?
    pub fn correct_knowless(&self) -> bool {
        self.prediction_knowless == self.gold
    }

    /// 1 if knowledge mended the answer, -1 if it broke it, else 0.
    pub fn rectified(&self) -> i8 {
        i8::from(self.correct()) - i8::from(self.correct_knowless())
    }

    /// The expert that decided, where a single one does.
    pub fn selected(&self) -> Option<Expert> {
        self.combined.best_expert.and_then(|ix| self.experts.get(ix).copied())
    }

    /// The element of an inference file that says all this. `statements` are the judged ones, empty ones included.
    ///
    /// # Reference behaviour
    /// Empty statements are dropped from the file but stay among the experts, of which the first `1 + n` are
    /// listed for `n` statements that are left. The index of the selected statement counts those that are left; an
    /// empty statement that decides is the bare question, -1, since both give the same prompt.
    ///
    /// # Errors
    /// [`ChoiceError::Mismatch`] if the question or the statements are not the judged ones.
    pub fn inference_item<S: AsRef<str>>(
        &self,
        question: &Question,
        statements: &[S],
    ) -> Result<InferenceItem, ChoiceError> {
        let check = |what, expected, found| {
            if expected == found { Ok(()) } else { Err(ChoiceError::Mismatch { what, expected, found }) }
        };
        let judged = self.experts.iter().filter(|expert| matches!(expert, Expert::Statement(_))).count();
        check("statements", judged, statements.len())?;
        check("choices", self.probs[0].len(), question.choices.len())?;

        let is_empty = |ix: usize| statements[ix].as_ref().is_empty();
        let selected_knowledge_ix = self.selected().map(|expert| match expert {
            Expert::Statement(ix) if !is_empty(ix) => (0..ix).filter(|&ix| !is_empty(ix)).count() as i64,
            _ => -1,
        });
        let knowledge = KnowledgeItem::new(question, statements);
        let listed = self.experts.len().min(1 + knowledge.knowledges.len());
        Ok(InferenceItem {
            knowledge,
            scores_: self.scores[..listed].to_vec(),
            probs_: self.probs[..listed].to_vec(),
            probs: self.combined.scores.clone(),
            pred: self.combined.prediction,
            ok: self.correct().into(),
            pred_knowless: self.prediction_knowless,
            ok_knowless: self.correct_knowless().into(),
            rectified: self.rectified(),
            selected_knowledge_ix,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruminate_datasets::question::parse_line;
    use ruminate_datasets::{Origin, Split};

    const BARE: [f64; 2] = [2.0, 0.0];

    fn question() -> Question {
        let line = parse_line("Which sinks? \\n (A) cork (B) iron\tiron").unwrap();
        Question::new(&Origin::new("made_up", 0, Split::Dev), line)
    }

    fn judge(statements: &[Vec<f64>], ensembling: Ensemble, no_knowless_expert: bool) -> Judgement {
        Judgement::new(&BARE, statements, 1, EnsembleConfig { ensembling, no_knowless_expert }).unwrap()
    }

    #[test]
    fn knowledge_can_mend_an_answer() {
        let judgement = judge(&[vec![0.0, 1.0], vec![0.0, 3.0]], Ensemble::Max, true);
        assert!(judgement.correct() && !judgement.correct_knowless());
        assert_eq!(judgement.rectified(), 1);
        assert_eq!(judgement.selected(), Some(Expert::Statement(1)));
        let item = judgement.inference_item(&question(), &["a", "b"]).unwrap();
        assert_eq!(
            (item.pred, item.ok, item.pred_knowless, item.ok_knowless, item.rectified),
            (1, 1, 0, 0, 1)
        );
        assert_eq!(item.selected_knowledge_ix, Some(1));
        assert_eq!(item.scores_.len(), 2);
    }

    #[test]
    fn the_selected_statement_is_found_whoever_is_asked() {
        let statements = [vec![0.0, 0.1], vec![0.0, 1.0]];
        // The bare question is the most confident expert where it is asked.
        let judgement = judge(&statements, Ensemble::Max, false);
        assert_eq!(judgement.selected(), Some(Expert::BareQuestion));
        let item = judgement.inference_item(&question(), &["a", "b"]).unwrap();
        assert_eq!((item.selected_knowledge_ix, item.scores_.len()), (Some(-1), 3));
        // A dropped statement does not shift the index.
        let judgement = judge(&statements, Ensemble::Max, true);
        let item = judgement.inference_item(&question(), &["", "b"]).unwrap();
        assert_eq!((item.selected_knowledge_ix, item.knowledge.knowledges.len()), (Some(0), 1));
        let item = judgement.inference_item(&question(), &["a", ""]).unwrap();
        assert_eq!(item.selected_knowledge_ix, Some(-1));
        // Nobody alone decides by vote.
        let item =
            judge(&statements, Ensemble::Majority, true).inference_item(&question(), &["a", "b"]).unwrap();
        assert_eq!((item.selected_knowledge_ix, item.probs), (None, None));
    }

    #[test]
    fn without_statements_the_bare_question_answers() {
        let judgement = judge(&[], Ensemble::Max, true);
        assert_eq!(judgement.experts, [Expert::BareQuestion]);
        assert_eq!((judgement.rectified(), judgement.combined.prediction), (0, 0));
        let item = judgement.inference_item::<&str>(&question(), &[]).unwrap();
        assert_eq!((item.scores_, item.selected_knowledge_ix), (vec![BARE.to_vec()], Some(-1)));
    }

    #[test]
    fn mistakes_are_refused() {
        let config = EnsembleConfig::default();
        let gold = Judgement::new(&BARE, &[], 2, config);
        assert!(matches!(gold, Err(ChoiceError::GoldOutOfRange { gold: 2, choices: 2 })));
        let ragged = Judgement::new(&BARE, &[vec![1.0]], 0, config);
        assert!(matches!(ragged, Err(ChoiceError::Ragged { expert: 1, .. })));
        let item = judge(&[], Ensemble::Max, true).inference_item(&question(), &["a"]);
        assert!(matches!(item, Err(ChoiceError::Mismatch { what: "statements", .. })));
    }
}
