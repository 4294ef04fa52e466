//! Who answers: local models, and the teacher's service.

use std::path::{Path, PathBuf};

use ruminate::algorithms::Precision;
use ruminate::algorithms::rwr::LocalModel;
use ruminate::datasets::chat::{ChatTemplate, OtherTemplate, TrainedOn};
use ruminate::datasets::rise::TeacherAnswerer;
use ruminate::datasets::teacher::{Sampling as TeacherSampling, Teacher};
use ruminate::models::{GenerationConfig, Model, Sampling, Strategy, Tokenizer};
use ruminate::run::{ModelSection, TeacherConsole, Worker, decoding_memory};
use tch::{Device, Kind};

use crate::config::{ChatConfig, GenerationSection, Phase, Player, RiseConfig};

/// The models of the configured phase that were trained with another chat template than they are used with.
pub(crate) fn other_templates(config: &RiseConfig) -> anyhow::Result<Vec<OtherTemplate>> {
    let RiseConfig { model, collection, iteration, evaluation, .. } = config;
    let template = &config.chat.template;
    let teachers = collection.teacher_template.as_ref().unwrap_or(template);
    let base = (&model.pretrained, template);
    let student =
        (if collection.student.is_some() { &collection.student } else { &model.pretrained }, template);
    let teacher = (&collection.teacher_model, teachers);
    let used: Vec<(&Option<PathBuf>, &String)> = match config.phase {
        Some(Phase::Collect) => {
            let of = |player: &Player| if *player == Player::Student { student } else { teacher };
            collection.models.iter().map(of).collect()
        }
        Some(Phase::Finetune) => vec![base],
        Some(Phase::Evaluate) => vec![(&evaluation.model, template)],
        Some(Phase::Iterate) if iteration.last == Player::Student => {
            vec![base, (&iteration.boosted, template)]
        }
        Some(Phase::Iterate) => vec![base, (&iteration.boosted, template), teacher],
        Some(Phase::Convert) | None => vec![],
    };
    let mut others = vec![];
    for (model, template) in used {
        let Some(model) = model else { continue };
        others.extend(TrainedOn::other_than(template, model)?.filter(|other| !others.contains(other)));
    }
    Ok(others)
}

/// Tells of them on the terminal, once.
#[expect(clippy::print_stderr, reason = "what a user should know about the models goes to the terminal")]
pub(crate) fn warn(config: &RiseConfig, worker: &Worker) -> anyhow::Result<Vec<OtherTemplate>> {
    let others = other_templates(config)?;
    for other in others.iter().filter(|_| worker.collective.is_main_process()) {
        eprintln!(
            "warning: {other}; unless this is meant, set chat.template, or collection.teacher_template"
        );
    }
    Ok(others)
}

/// A model with all that it takes to answer.
pub(crate) struct Local {
    model: Model,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    generation: GenerationSection,
}

/// Tokens of a dialogue that a model without a limit reads, where `context_length` says nothing.
pub(crate) const UNLIMITED: usize = 8192;

impl Local {
    pub(crate) fn open(
        model: &ModelSection,
        (chat, template): (&ChatConfig, &str),
        generation: &GenerationSection,
        seed: u64,
        device: Device,
    ) -> anyhow::Result<Self> {
        let kind = match generation.precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        let template = chat.open(template, &model.tokenizer_folder())?;
        let (model, tokenizer) = model.open(seed, kind, device)?;
        Ok(Self { model, tokenizer, template, generation: generation.clone() })
    }

    pub(crate) fn answerer(&self) -> LocalModel<'_, Model> {
        let GenerationSection { context_length, clean_up, .. } = self.generation;
        let context = match context_length {
            0 => self.model.config().context_length().unwrap_or(UNLIMITED),
            tokens => tokens,
        };
        LocalModel::new(&self.model, &self.tokenizer, &self.template, context)
            .generation(generation(&self.generation, self.model.device()))
            .clean_up(clean_up)
    }
}

/// How a local model writes on a device.
pub(crate) fn generation(section: &GenerationSection, device: Device) -> GenerationConfig {
    let GenerationSection { temperature, top_p, max_new_tokens, .. } = *section;
    // Without a limit, nothing has to be sorted.
    let top_p = Some(top_p).filter(|&share| share < 1.0);
    let strategy = Strategy::Sample(Sampling { temperature, top_p, ..Sampling::default() });
    let max_memory = decoding_memory(device);
    GenerationConfig { strategy, max_new_tokens, max_memory, ..GenerationConfig::default() }
}

/// The teacher's service, whose answers are kept in a folder.
pub(crate) fn service(
    config: &RiseConfig,
    folder: &Path,
    worker: &Worker,
) -> anyhow::Result<TeacherAnswerer> {
    let mut console = TeacherConsole::new(worker.verbosity, worker.stop.clone()).as_part();
    if let Some(prices) = config.collection.prices {
        console = console.with_prices(prices);
    }
    let sampling = &config.collection.teacher_sampling;
    let sampling = TeacherSampling {
        max_tokens: Some(sampling.max_tokens),
        temperature: Some(sampling.temperature),
        top_p: Some(sampling.top_p),
        ..TeacherSampling::default()
    };
    let teacher = Teacher::new(config.teacher.clone())?;
    Ok(TeacherAnswerer::new(teacher, folder.join("teacher.jsonl")).sampling(sampling).watched_by(console))
}
