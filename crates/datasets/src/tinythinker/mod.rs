//! TinyThinker's data (arXiv 2412.08024): questions, what a teacher is asked and answers, training records of the three
//! stages, answers and their votes, preference pairs. Texts only, no tensors.

mod answers;
mod items;
mod pairs;
mod question;
mod records;
mod sources;
mod stages;
mod teacher;
mod teaching;

pub use crate::teacher::{Completion, Message};
pub use answers::{NoAnswer, accuracy_percent, answer, answer_of, vote};
pub use items::{
    Candidate, Checked, Extraction, Item, LabelPolicy, Rejected, Retry, check_all, check_candidate, diverse,
    edit_distance, extract, far_from_all, items_of, vote_on,
};
pub use pairs::{
    AnalyzeRun, Backup, PairCounts, PairOptions, RecallPairs, Run, analyze_pairs, read_pairs, recall_pairs,
};
pub use question::{Choice, Question};
pub use records::{
    AnalysisOrder, Reasoned, Record, RecordCounts, StageRecords, Variant, questions_of, teacher_runs,
};
pub use sources::{Source, SplitIds, Splits, read_items};
pub use stages::{Draft, Stage, StageText, with_full_stop};
pub use teacher::{FewShot, TeacherRequest, read_instruction, system_message, user_message};
pub use teaching::{Exchanged, TaughtCounts, Teaching, TeachingConfig, TeachingSection, read_few_shot};
