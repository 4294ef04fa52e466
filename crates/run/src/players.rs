//! Episodes of several turns in a run folder: who takes the turns, and what that takes.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use ruminate_algorithms::WritingPlan;
use ruminate_algorithms::rwr::{Divided, GenerationSettings, Kept, KeptAnswers, LocalModel};
use ruminate_datasets::chat::{ChatTemplate, OtherTemplate, TrainedOn};
use ruminate_datasets::environments::{Environment, Problem};
use ruminate_datasets::rise::{
    Answerer, Ask, ChatConfig, Episode, Failed, Log, MultiTurn, Reply, RolloutConfig, ServiceSampling,
    TeacherAnswerer, TurnHistory, dialogue,
};
use ruminate_datasets::teacher::{Prices, Teacher, TeacherConfig};
use ruminate_models::{BatchShape, GenerationConfig, Model, ModelConfig, ModelShape, Tokenizer};
use ruminate_rewards::rise::MetricOptions;
use serde_json::{Value, json};
use tch::Device;

use crate::config::ConfigError;
use crate::model::{ModelSection, PlannedShape};
use crate::output::Table;
use crate::plan::{PlanPart, decoding_memory, writing};
use crate::report::TurnReport;
use crate::rollout::RolloutConsole;
use crate::rundir::RunDir;
use crate::teacher::TeacherConsole;
use crate::worker::Worker;

/// Episodes as they come, in the order in which they end.
const EPISODES: &str = "episodes.jsonl";
/// Answers of turns that are over, of episodes that are not.
const ANSWERS: &str = "answers.jsonl";
/// Problems whose prompts are measured, evenly spread over the data.
const MEASURED: usize = 4096;

/// Somebody who takes turns.
#[derive(Debug, Clone, PartialEq)]
pub enum Player {
    /// A model on this machine.
    Local {
        /// Which one.
        model: ModelSection,
        /// The name of its chat template.
        template: String,
    },
    /// A model behind an OpenAI-compatible address.
    Service(TeacherConfig),
}

impl Player {
    /// The checkpoint in a folder.
    #[must_use]
    pub fn checkpoint(folder: &Path, template: &str) -> Self {
        Self::Local { model: ModelSection::of_folder(folder), template: template.into() }
    }

    /// Finds those who were trained with another chat template than they are used with.
    ///
    /// # Errors
    /// A checkpoint's note of its template cannot be read.
    pub fn other_templates<'a>(
        players: impl IntoIterator<Item = &'a Self>,
    ) -> ruminate_datasets::chat::Result<Vec<OtherTemplate>> {
        let mut others = vec![];
        for player in players {
            let Self::Local { model: ModelSection { pretrained: Some(folder), .. }, template } = player
            else {
                continue;
            };
            others.extend(TrainedOn::other_than(template, folder)?.filter(|other| !others.contains(other)));
        }
        Ok(others)
    }

    /// Warns of those who were trained with another chat template than they are used with, once for all processes.
    ///
    /// # Errors
    /// Those of [`other_templates`](Self::other_templates).
    pub fn warn<'a>(
        players: impl IntoIterator<Item = &'a Self>,
        worker: &Worker,
    ) -> ruminate_datasets::chat::Result<Vec<OtherTemplate>> {
        let others = Self::other_templates(players)?;
        let advice = "unless this is meant, set chat.template, or that of the player";
        let shown = others.iter().filter(|_| worker.collective.is_main_process());
        tell("warning", shown.map(|other| format!("{other}; {advice}")));
        Ok(others)
    }

    fn open(
        &self,
        name: &str,
        rollout: &Rollout<'_>,
        folder: &Path,
        worker: &Worker,
    ) -> anyhow::Result<Opened> {
        let Rollout { generation, chat, seed, prices, sampling, .. } = rollout;
        Ok(match self {
            Self::Local { model, template } => {
                let template = chat.open(template, &model.tokenizer_folder())?;
                let (model, tokenizer) = model.open(*seed, generation.kind(), worker.device)?;
                Opened::Local(Box::new(Local {
                    model,
                    tokenizer,
                    template,
                    generation: (*generation).clone(),
                }))
            }
            Self::Service(config) => {
                let mut console = TeacherConsole::new(worker.verbosity, worker.stop.clone()).as_part();
                if let Some(prices) = prices {
                    console = console.with_prices(*prices);
                }
                let file =
                    if name == "teacher" { "teacher.jsonl".into() } else { format!("player-{name}.jsonl") };
                let teacher =
                    Teacher::new(config.clone()).with_context(|| format!("{name} cannot be asked"))?;
                let answerer = TeacherAnswerer::new(teacher, folder.join(file));
                Opened::Service(Box::new(answerer.sampling(sampling.into()).watched_by(console)))
            }
        })
    }
}

/// A player who can be asked.
enum Opened {
    Local(Box<Local>),
    Service(Box<TeacherAnswerer>),
}

struct Local {
    model: Model,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    generation: GenerationSettings,
}

impl Answerer for Opened {
    fn answer(&self, asks: &[Ask]) -> Result<Vec<Reply>, Failed> {
        match self {
            Self::Local(local) => {
                let Local { model, tokenizer, template, generation } = &**local;
                let context = generation.context(model.config().context_length());
                LocalModel::new(model, tokenizer, template, context)
                    .generation(generation.config(decoding_memory(model.device())))
                    .clean_up(generation.clean_up)
                    .answer(asks)
            }
            Self::Service(service) => service.answer(asks),
        }
    }

    fn role(&self) -> &str {
        match self {
            Self::Local(_) => "agent",
            Self::Service(service) => service.role(),
        }
    }
}

/// A rollout that runs in a folder: all that its episodes depend on, and who takes their turns.
pub struct Rollout<'a> {
    /// The unit of the progress bar, such as `problems`.
    pub unit: &'static str,
    /// How problems are asked and answers judged.
    pub environment: Box<dyn Environment>,
    /// How episodes are played.
    pub config: RolloutConfig,
    /// Who answers in each turn, with their names.
    pub players: Vec<(String, Player)>,
    /// How dialogues become text.
    pub chat: &'a ChatConfig,
    /// How local models write.
    pub generation: &'a GenerationSettings,
    /// How services are asked to write.
    pub sampling: ServiceSampling,
    /// Prices of services, to show what they cost.
    pub prices: Option<Prices>,
    /// Problems that each process asks about at a time.
    pub batch: usize,
    /// Seed of a new model's parameters.
    pub seed: u64,
}

impl std::fmt::Debug for Rollout<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { unit, config, players, .. } = self;
        f.debug_struct("Rollout")
            .field("unit", unit)
            .field("config", config)
            .field("players", players)
            .finish_non_exhaustive()
    }
}

impl Rollout<'_> {
    /// Checks who takes the turns, before anything is opened.
    ///
    /// # Errors
    /// A service's settings are wrong, or a local model is to write several answers to a prompt without drawing them.
    pub fn check(&self) -> anyhow::Result<()> {
        for ((name, player), &samples) in self.players.iter().zip(&self.config.samples) {
            match player {
                Player::Service(config) => {
                    config.validate().with_context(|| format!("{name} cannot be asked"))?;
                }
                Player::Local { .. } if self.generation.is_greedy() && samples > 1 => {
                    let reason = format!(
                        "{name} is asked for {samples} answers to a prompt, but at temperature 0 all of them are the same; ask for one, \
                         or raise generation.temperature"
                    );
                    return Err(ConfigError::invalid(reason).into());
                }
                Player::Local { .. } => {}
            }
        }
        Ok(())
    }

    /// Checks who takes the turns, and warns of those who were trained with another chat template.
    ///
    /// # Errors
    /// Those of [`check`](Self::check), and a checkpoint's note of its template that cannot be read.
    pub fn ready(&self, worker: &Worker) -> anyhow::Result<Vec<OtherTemplate>> {
        self.check()?;
        Ok(Player::warn(self.players.iter().map(|(_, player)| player), worker)?)
    }

    /// Plays problems into a folder as [`play`](Self::play) does, and writes the metrics of the log.
    ///
    /// # Errors
    /// Those of [`play`](Self::play) and [`TurnReport::of`]; also when the metrics cannot be written.
    pub fn evaluate(
        &self,
        problems: &[Problem],
        options: MetricOptions,
        dir: &RunDir,
        worker: &Worker,
    ) -> anyhow::Result<Option<TurnReport>> {
        let Some(log) = self.play(problems, dir, worker)? else { return Ok(None) };
        let mut report = TurnReport::of(&log, &*self.environment, options)?;
        report.warnings = Player::other_templates(self.players.iter().map(|(_, player)| player))?;
        if worker.collective.is_main_process() {
            report.write(dir.path())?;
        }
        Ok(Some(report))
    }

    /// Plays problems into a folder and writes the log; `None` when the user asked to stop before the last one. Processes divide what local
    /// models are asked; a service is asked by rank 0. A rollout that was stopped or killed goes on behind the last turn that was answered.
    ///
    /// # Errors
    /// A player cannot be opened or asked, or a file of the folder not be used.
    pub fn play(&self, problems: &[Problem], dir: &RunDir, worker: &Worker) -> anyhow::Result<Option<Log>> {
        let collective = &worker.collective;
        let [path, episodes] = [&self.config.file_name(), EPISODES].map(|name| dir.path().join(name));
        let played = |(episode, problem): (&Episode, &Problem)| {
            (episode.task_id, &episode.query, &episode.answer)
                == (problem.row, &problem.question, &problem.solution)
        };
        let complete =
            |log: &Log| log.episodes.len() == problems.len() && log.episodes.iter().zip(problems).all(played);
        let stored = collective.first(|| -> anyhow::Result<_> {
            let log = path.is_file().then(|| Log::read(&path)).transpose()?;
            Ok(log.filter(complete).map(|log| log.episodes))
        })?;
        if let Some(episodes) = stored {
            return Ok(Some(Log { episodes }));
        }
        let mut opened: BTreeMap<&str, Opened> = BTreeMap::new();
        for (name, player) in &self.players {
            if !opened.contains_key(name.as_str()) {
                opened.insert(name, player.open(name, self, dir.path(), worker)?);
            }
        }
        let divided = |(name, _): &(String, Player)| match &opened[name.as_str()] {
            local @ Opened::Local(_) => Divided::new(local, collective),
            service @ Opened::Service(_) => Divided::by_first(service, collective),
        };
        let divided: Vec<Divided<'_>> = self.players.iter().map(divided).collect();
        let kept = KeptAnswers::open(&dir.path().join(ANSWERS), collective)?;
        let answerers: Vec<Kept<'_>> = divided.iter().map(|answerer| kept.of(answerer)).collect();
        let answerers: Vec<&dyn Answerer> = answerers.iter().map(|of| of as &dyn Answerer).collect();
        let turns = MultiTurn::new(&*self.environment, self.config.clone(), &answerers)?
            .batch(self.batch * collective.size());
        let mut console = RolloutConsole::of(worker, self.unit);
        // The others play what rank 0 plays, and write nothing.
        let finished = collective.first(|| anyhow::Ok(turns.finished(problems, &episodes)?))?;
        let log = worker.stop.interrupt().during(|| {
            if collective.is_main_process() {
                return turns.play(problems, Some(&episodes), &mut console);
            }
            let open: Vec<_> = problems.iter().filter(|p| !finished.contains(&p.row)).cloned().collect();
            turns.play(&open, None, &mut console)
        })?;
        let log = Log { episodes: collective.first(|| anyhow::Ok(log.episodes))? };
        if log.episodes.len() < problems.len() {
            return Ok(None);
        }
        if collective.is_main_process() {
            log.write(&path)?;
        }
        kept.remove()?;
        Ok(Some(log))
    }

    /// Estimates memory, answers and time, for `--dry-run`. Where problems or a tokenizer are missing, prompts are as long as they may be.
    ///
    /// # Errors
    /// There is neither a model nor a published one of its folder's name.
    pub fn plan(
        &self,
        name: &str,
        problems: anyhow::Result<Vec<Problem>>,
        benchmark: &str,
        device: Device,
    ) -> anyhow::Result<PlanPart> {
        let (problems, mut problem) = match problems {
            Ok(problems) => (problems, None),
            Err(error) => (vec![], Some(error)),
        };
        problem = problem.or(self.check().err());
        let mut asked: Vec<(&str, &Player, Vec<usize>)> = vec![];
        for ((name, player), &samples) in self.players.iter().zip(&self.config.samples) {
            match asked.iter_mut().find(|(known, ..)| known == name) {
                Some((.., of)) => of.push(samples),
                None => asked.push((name, player, vec![samples])),
            }
        }
        let (mut plans, mut services) = (vec![], vec![]);
        for (name, player, samples) in asked {
            match player {
                Player::Local { model, template } => {
                    let PlannedShape { shape, missing } = model.planned()?;
                    let tokenizer = model.tokenizer(&shape).map_err(anyhow::Error::from);
                    let folder = model.tokenizer_folder();
                    let first = tokenizer
                        .and_then(|tokenizer| self.first_prompt(template, &folder, &tokenizer, &problems));
                    let longest = first.as_ref().ok().copied();
                    problem = problem.or(missing.map(Into::into)).or(first.err());
                    plans.push(self.local_plan(name, &shape, &samples, problems.len(), longest, device));
                }
                Player::Service(config) => {
                    services.push(self.service_plan(name, config, &samples, problems.len()))
                }
            }
        }
        let mut shown = writing(&plans, self.generation.precision, device);
        shown.json["problems"] = json!(problem.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>());
        shown.json["data"] = json!({ "benchmark": benchmark, "problems": problems.len() });
        let mut data = Table::new(["benchmark", "problems"]);
        data.row([benchmark.to_owned(), problems.len().to_string()]);
        shown.tables.insert(0, data);
        if !services.is_empty() {
            let mut table = Table::new(["service", "model", "requests, at most", "answers", "new tokens"]);
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
            for service in &services {
                table.row(["name", "model", "requests", "answers", "tokens"].map(|key| text(&service[key])));
            }
            shown.tables.insert(1, table);
            shown.json["services"] = services.into();
        }
        Ok(PlanPart { name: name.into(), shown, problem })
    }

    /// Tokens of the longest first prompt.
    fn first_prompt(
        &self,
        template: &str,
        folder: &Path,
        tokenizer: &Tokenizer,
        problems: &[Problem],
    ) -> anyhow::Result<usize> {
        let template = self.chat.open(template, folder)?;
        let tokens = |problem: &Problem| -> anyhow::Result<usize> {
            let messages =
                dialogue(&*self.environment, problem, &TurnHistory::default(), "agent", &self.config);
            Ok(tokenizer.encode_with_offsets(&template.prompt(&messages)?)?.ids.len())
        };
        let every = problems.len().div_ceil(MEASURED).max(1);
        let tokens = problems.iter().step_by(every).map(tokens).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(tokens.into_iter().max().unwrap_or(0))
    }

    fn local_plan(
        &self,
        name: &str,
        shape: &ModelConfig,
        samples: &[usize],
        problems: usize,
        first_prompt: Option<usize>,
        device: Device,
    ) -> WritingPlan {
        let kind = self.generation.kind();
        let most = samples.iter().copied().max().unwrap_or(0).max(1);
        let new = self.generation.max_new_tokens;
        let config = self.generation.config(decoding_memory(device));
        let config = GenerationConfig { samples_per_prompt: most, ..config };
        // Each turn adds an answer, and the question again.
        let room = self.generation.context(shape.context_length()).saturating_sub(new + 1);
        let turns = self.players.len();
        let longest = first_prompt.map_or(room, |first| room.min(first + (turns - 1) * (new + first)));
        let batch = if problems == 0 { self.batch } else { self.batch.min(problems) };
        let bytes = |prompts, longest, rows, new| shape.decoding_bytes(prompts, longest, rows, new, kind);
        let (rows_in_flight, decoding) = config.rows_in_flight(batch, longest, device == Device::Cpu, &bytes);
        let answers = problems * samples.iter().sum::<usize>();
        let prompts = BatchShape {
            rows: (problems * samples.len()) as f64,
            source: first_prompt.unwrap_or(longest) as f64,
            target: 0.0,
        };
        let written = BatchShape { rows: answers as f64, source: 0.0, target: new as f64 };
        WritingPlan {
            name: name.into(),
            parameters: shape.parameter_count(),
            weights: shape.parameter_count() * kind.elt_size_in_bytes() as u64,
            answers: answers as u64,
            tokens: (answers * new) as u64,
            rows: batch * most,
            rows_in_flight,
            decoding,
            flops: shape.forward_flops(prompts) + shape.forward_flops(written),
        }
    }

    fn service_plan(&self, name: &str, config: &TeacherConfig, samples: &[usize], problems: usize) -> Value {
        let answers = problems * samples.iter().sum::<usize>();
        json!({
            "name": name, "base_url": config.base_url, "model": config.model, "requests": problems * samples.len(),
            "answers": answers, "tokens": answers as u64 * u64::from(self.sampling.max_tokens),
        })
    }
}

/// Tells on stderr what a user should know about data and models.
#[expect(clippy::print_stderr, reason = "notes and warnings go to the terminal")]
pub fn tell(kind: &str, messages: impl IntoIterator<Item = String>) {
    messages.into_iter().for_each(|message| eprintln!("{kind}: {message}"));
}
