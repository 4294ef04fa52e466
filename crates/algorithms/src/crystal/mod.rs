//! Crystal (arXiv 2310.04921): one T5 that first writes a statement of knowledge about a question and then picks a
//! choice with the statement in its input.
//!
//! [`Imitation`] is Stage I, supervised imitation of a large model's statements; [`Reinforcement`] is Stage II, PPO on the
//! model's own statements, rewarded by how much they help it to answer; [`evaluate`] samples statements and
//! combines the answers that they lead to.

mod data;
mod encoder;
mod evaluation;
mod imitation;
mod plan;
mod reinforcement;

pub use data::{
    CrystalData, DataFile, Notice, ReadItems, check_files, read_columns, read_eval, read_questions,
    read_silver,
};
pub use encoder::{Lengths, QuestionEncoder};
pub use evaluation::{
    EnsembleAccuracy, EvaluationConfig, EvaluationReport, KnowledgeSource, TaskAccuracy, evaluate,
    evaluation_folder, write_evaluation,
};
pub use imitation::{BestBy, Imitation, ImitationConfig};
pub use plan::TaskCount;
pub use reinforcement::{
    Reinforcement, ReinforcementConfig, ReinforcementData, ReinforcementModels, reinforcement,
    reward_normalization,
};

use ruminate_datasets::Annotated;

/// The largest number of choices of a question.
pub(crate) fn most_choices<'a>(questions: impl Iterator<Item = &'a Annotated>) -> usize {
    questions.map(|item| item.question.choices.len()).max().unwrap_or(0)
}
