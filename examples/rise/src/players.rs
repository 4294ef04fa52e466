//! Who answers: local models, and the teacher's service.

use std::path::Path;

use ruminate::algorithms::Precision;
use ruminate::algorithms::rwr::LocalModel;
use ruminate::datasets::chat::ChatTemplate;
use ruminate::datasets::rise::TeacherAnswerer;
use ruminate::datasets::teacher::{Sampling as TeacherSampling, Teacher};
use ruminate::models::{GenerationConfig, Llama, Sampling, Strategy, Tokenizer};
use ruminate::run::{LlamaModelConfig, TeacherConsole, Worker};
use tch::{Device, Kind};

use crate::config::{GenerationSection, RiseConfig};

/// A model with all that it takes to answer.
pub(crate) struct Local {
    llama: Llama,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    generation: GenerationSection,
}

impl Local {
    pub(crate) fn open(
        model: &LlamaModelConfig,
        template: &str,
        generation: &GenerationSection,
        seed: u64,
        device: Device,
    ) -> anyhow::Result<Self> {
        let kind = match generation.precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        let template = ChatTemplate::select(template, &model.tokenizer_folder())?;
        let (llama, tokenizer) = model.open(seed, kind, device)?;
        Ok(Self { llama, tokenizer, template, generation: generation.clone() })
    }

    pub(crate) fn answerer(&self) -> LocalModel<'_, Llama> {
        let GenerationSection { temperature, max_new_tokens, context_length, clean_up, .. } = self.generation;
        // Without a limit, nothing has to be sorted.
        let top_p = Some(self.generation.top_p).filter(|&share| share < 1.0);
        let context = match context_length {
            0 => self.llama.config().context_length(),
            tokens => tokens,
        };
        let strategy = Strategy::Sample(Sampling { temperature, top_p, top_k: None });
        LocalModel::new(&self.llama, &self.tokenizer, &self.template, context)
            .generation(GenerationConfig { strategy, max_new_tokens, ..GenerationConfig::default() })
            .clean_up(clean_up)
    }
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
