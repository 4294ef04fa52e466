//! The configuration file, and the rollouts that it describes.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use ruminate::algorithms::rwr::{
    CollectionConfig, EvaluationConfig, FinetuneConfig, GenerationSettings, IterationConfig,
};
use ruminate::datasets::chat::{ChatTemplate, Date};
use ruminate::datasets::environments::{Benchmark, Problem};
use ruminate::datasets::rise::{ChatConfig, ConversionConfig, PlayerConfig, RiseData, ServiceSampling};
use ruminate::datasets::teacher::TeacherConfig;
use ruminate::run::program::{Configuration, enter};
use ruminate::run::{
    ConfigError, FlagKeys, ModelSection, Player, Rollout, RunArgs, RunDir, RunDirError, Worker, config,
    resolve_link, tell,
};
use serde::{Deserialize, Serialize};

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Plays episodes.
    Collect,
    /// Makes examples of them.
    Convert,
    /// Trains on examples.
    Finetune,
    /// Lets a model try several times.
    Evaluate,
    /// All of these, again and again.
    Iterate,
}

/// Everything that a run of RISE depends on. `examples/rise/configs/published.toml` explains each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RiseConfig {
    /// What the run does; written by the command.
    pub(crate) phase: Option<Phase>,
    /// Seed of a new model's parameters.
    pub(crate) seed: u64,
    /// Problems to learn from, and how answers are judged.
    pub(crate) data: RiseData,
    /// How dialogues become text.
    pub(crate) chat: ChatConfig,
    /// The model that is trained.
    pub(crate) model: ModelSection,
    /// The service that answers for the teacher.
    pub(crate) teacher: TeacherConfig,
    /// Who takes turns besides the student and the teacher, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) players: BTreeMap<String, PlayerConfig>,
    /// Episodes to learn from.
    pub(crate) collection: CollectionConfig,
    /// From episodes to examples.
    pub(crate) conversion: ConversionConfig,
    /// Training.
    pub(crate) finetune: FinetuneConfig,
    /// Evaluation.
    pub(crate) evaluation: EvaluationConfig,
    /// The whole loop.
    pub(crate) iteration: IterationConfig,
}

impl Default for RiseConfig {
    fn default() -> Self {
        // The published client: 6 attempts with waits of 1 to 60 seconds, 20 seconds each.
        let teacher =
            TeacherConfig { model: "gpt-3.5-turbo".into(), timeout_secs: 20.0, ..TeacherConfig::default() };
        Self {
            phase: None,
            seed: 42,
            data: RiseData::default(),
            chat: ChatConfig::default(),
            model: ModelSection::default(),
            teacher,
            players: BTreeMap::new(),
            collection: CollectionConfig::default(),
            conversion: ConversionConfig::default(),
            finetune: FinetuneConfig::default(),
            evaluation: EvaluationConfig::default(),
            iteration: IterationConfig::default(),
        }
    }
}

impl Configuration for RiseConfig {
    const FLAGS: FlagKeys = FlagKeys {
        seed: &[
            "seed",
            "collection.seed",
            "conversion.settings.seed",
            "finetune.training.shuffle_seed",
            "evaluation.seed",
            "evaluation.metrics.seed",
        ],
        precision: &[
            "collection.generation.precision",
            "finetune.trainer.precision",
            "evaluation.generation.precision",
        ],
    };

    fn validate(&self) -> Result<(), ConfigError> {
        let Self { data, chat, collection, evaluation, iteration, finetune, players, .. } = self;
        let check = || -> ruminate::algorithms::Result<()> {
            collection.validate(data.compat)?;
            evaluation.validate(data.compat)?;
            iteration.validate()?;
            finetune.training.validate()?;
            finetune.trainer.validate()
        };
        check().map_err(ConfigError::invalid)?;
        let invalid = |key: &str, reason: String| ConfigError::invalid(format!("{key}: {reason}"));
        let conversion = self.conversion.settings.validate();
        conversion.map_err(|(key, reason)| invalid(&format!("conversion.settings.{key}"), reason))?;
        let teacher = ("collection.teacher_template", collection.teacher_template.as_ref());
        for (key, name) in [("chat.template", Some(&chat.template)), teacher] {
            name.map_or(Ok(()), |name| ChatConfig::check(name)).map_err(|reason| invalid(key, reason))?;
        }
        for (name, player) in players {
            let checked = player.validate(name);
            checked.map_err(|(key, reason)| invalid(&format!("players.{name}.{key}"), reason))?;
        }
        let mut named = collection.models.iter().chain([&iteration.last]).chain(&evaluation.player);
        named.try_for_each(|name| self.player(name).map(drop))?;
        self.model.validate("model")
    }
}

impl RiseConfig {
    /// The configuration of a run that writes to a folder, unless it is only planned.
    ///
    /// # Errors
    /// There is no folder, a flag has no use, or the configuration is wrong or another command's.
    pub(crate) fn of_run(args: &RunArgs, phase: Phase) -> anyhow::Result<Self> {
        if args.resume_from.is_some() {
            return Err(ConfigError::UselessFlag { flag: "--resume-from" }.into());
        }
        if args.out.is_none() && !args.dry_run {
            return Err(RunDirError::NoFolder.into());
        }
        let mut config = Self::load(args)?;
        config.begin(phase, args)?;
        Ok(config)
    }

    /// Says what the run does.
    ///
    /// # Errors
    /// The configuration is that of a run that does something else.
    pub(crate) fn begin(&mut self, phase: Phase, args: &RunArgs) -> Result<(), ConfigError> {
        enter(&mut self.phase, phase, |phase| format!("rise {}", format!("{phase:?}").to_lowercase()))?;
        self.fix_date(args)
    }

    /// Fixes the day that a checkpoint's own template is told: today for a new run, and that of the run's folder for one that goes on, so
    /// that all prompts of a run agree.
    ///
    /// # Errors
    /// The configuration of the run that goes on cannot be read.
    pub(crate) fn fix_date(&mut self, args: &RunArgs) -> Result<(), ConfigError> {
        let others = self.players.values().filter_map(|player| player.template.as_ref());
        let mut templates = others.chain(&self.collection.teacher_template).chain([&self.chat.template]);
        if self.chat.date.is_none() && templates.any(|name| name == ChatTemplate::JINJA) {
            let resumed = args.out.as_deref().filter(|_| args.resumes()).and_then(RunDir::stored_config);
            self.chat.date = match resumed {
                Some(stored) => config::load::<Self>(Some(&stored), &[])?.chat.date,
                None => Some(Date::today()),
            };
        }
        Ok(())
    }

    /// Names the checkpoints of whoever takes turns by their steps, where they are named as `best` or `last`.
    pub(crate) fn resolve_players(&mut self) {
        for path in [&mut self.collection.student, &mut self.collection.teacher_model] {
            *path = path.as_deref().map(resolve_link);
        }
        for player in self.players.values_mut().filter(|player| player.base_url.is_none()) {
            player.model = resolve_link(Path::new(&player.model)).display().to_string();
        }
    }

    /// Joins the other processes, and takes the day of rank 0.
    ///
    /// # Errors
    /// Those of [`RunArgs::worker`].
    pub(crate) fn worker(&mut self, args: &RunArgs) -> anyhow::Result<Worker> {
        let worker = args.worker()?;
        self.chat.date = worker.collective.first(|| anyhow::Ok(self.chat.date))?;
        Ok(worker)
    }

    /// Who takes turns under a name: `student`, `teacher`, or one of the others.
    ///
    /// # Errors
    /// Nobody has the name.
    pub(crate) fn player(&self, name: &str) -> Result<Player, ConfigError> {
        let CollectionConfig { student, teacher_model, teacher_template, .. } = &self.collection;
        let own = &self.chat.template;
        Ok(match (name, self.players.get(name)) {
            ("student", _) => match student {
                Some(folder) => Player::checkpoint(folder, own),
                None => Player::Local { model: self.model.clone(), template: own.clone() },
            },
            ("teacher", _) => match teacher_model {
                Some(folder) => Player::checkpoint(folder, teacher_template.as_ref().unwrap_or(own)),
                None => Player::Service(self.teacher.clone()),
            },
            (_, Some(other)) => match other.service(&self.teacher) {
                Some(service) => Player::Service(service),
                None => Player::checkpoint(Path::new(&other.model), other.template.as_ref().unwrap_or(own)),
            },
            (_, None) => {
                let others = self.players.keys().map(|name| format!(", {name}")).collect::<String>();
                let reason = format!(
                    "nobody is called `{name}`; there are student, teacher{others}; [players] names others"
                );
                return Err(ConfigError::invalid(reason));
            }
        })
    }

    /// The rollout of a collection.
    ///
    /// # Errors
    /// A turn is somebody's whom nobody knows.
    pub(crate) fn collecting(&self) -> Result<Rollout<'_>, ConfigError> {
        let Self { data, chat, collection, .. } = self;
        let players = collection.models.iter().map(|name| Ok((name.clone(), self.player(name)?)));
        Ok(Rollout {
            unit: "problems",
            environment: data.environment(),
            config: collection.rollout(data.compat),
            players: players.collect::<Result<_, ConfigError>>()?,
            chat,
            generation: &collection.generation,
            sampling: collection.teacher_sampling.clone(),
            prices: collection.prices,
            batch: collection.batch,
            seed: self.seed,
        })
    }

    /// The rollout of an evaluation. Services are told what local models are.
    ///
    /// # Errors
    /// Nobody knows who is to be evaluated.
    pub(crate) fn evaluating(&self) -> Result<Rollout<'_>, ConfigError> {
        let Self { data, chat, collection, evaluation, .. } = self;
        let config = evaluation.rollout(data.compat);
        let (name, player) = match &evaluation.player {
            Some(name) => (name.as_str(), self.player(name)?),
            None => {
                let folder = evaluation.model.as_deref().unwrap_or(Path::new(""));
                ("model", Player::checkpoint(folder, &chat.template))
            }
        };
        let GenerationSettings { temperature, top_p, max_new_tokens, .. } = evaluation.generation;
        let max_tokens = u32::try_from(max_new_tokens).unwrap_or(u32::MAX);
        Ok(Rollout {
            unit: evaluation.setting.name(),
            environment: data.environment(),
            players: vec![(name.to_owned(), player); config.samples.len()],
            config,
            chat,
            generation: &evaluation.generation,
            sampling: ServiceSampling { temperature, top_p, max_tokens },
            prices: collection.prices,
            batch: evaluation.batch,
            seed: self.seed,
        })
    }

    /// The problems to learn from.
    ///
    /// # Errors
    /// The file cannot be read, or has none.
    pub(crate) fn training_problems(&self) -> anyhow::Result<Vec<Problem>> {
        self.problems(&self.data.problems, self.data.limit)
    }

    /// The problems to evaluate on.
    ///
    /// # Errors
    /// The file cannot be read, or has none.
    pub(crate) fn test_problems(&self) -> anyhow::Result<Vec<Problem>> {
        self.problems(&self.evaluation.problems, self.evaluation.limit)
    }

    fn problems(&self, path: &Path, limit: usize) -> anyhow::Result<Vec<Problem>> {
        let loaded = self.data.read(path, limit)?;
        tell("note", loaded.skipped.iter().map(|error| format!("left out: {error}")));
        if loaded.problems.is_empty() {
            return Err(ConfigError::invalid(format!("{} has no problems", path.display())).into());
        }
        Ok(loaded.problems)
    }
}

/// The flags that all commands share.
#[derive(Debug, Clone, Args)]
pub(crate) struct RiseArgs {
    /// The form of the files of problems, and how answers are judged, instead of data.benchmark
    #[arg(long, value_name = "gsm8k|math")]
    pub(crate) benchmark: Option<Benchmark>,
    /// How dialogues become text, instead of chat.template: llama-2, mistral-instruct, zephyr, vicuna, llama-3, deepseek-math, or
    /// jinja for the checkpoint's own
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    #[command(flatten)]
    run: RunArgs,
}

impl RiseArgs {
    /// The flags of all programs, with those of this one as settings.
    pub(crate) fn run(&self) -> RunArgs {
        let mut run = self.run.clone();
        run.sets.extend(self.benchmark.map(|benchmark| format!("data.benchmark={benchmark}")));
        run.sets.extend(self.template.as_ref().map(|name| format!("chat.template={name:?}")));
        run
    }
}

#[cfg(test)]
#[path = "../../suggested.rs"]
mod suggested;

#[cfg(test)]
mod tests {
    use ruminate::datasets::environments::Compat;
    use ruminate::datasets::rise::Layout;

    use super::*;

    const PUBLISHED: &str = include_str!("../configs/published.toml");

    #[test]
    fn the_published_settings_are_the_defaults() {
        let mut config: RiseConfig = config::load_text("configs/published.toml", PUBLISHED, &[]).unwrap();
        config.validate().unwrap();
        // Which model is the user's choice.
        assert!(config.model.pretrained.take().is_some());
        assert_eq!(config, RiseConfig::default());
    }

    #[test]
    fn what_the_pages_suggest_is_taken() {
        let pages = [include_str!("../README.md"), include_str!("../../../docs/papers/rise.md")];
        assert!(suggested::all_are_taken(&pages, RiseConfig::validate) >= 8);
    }

    #[test]
    fn the_reference_has_every_quirk_switched_on() {
        let text = include_str!("../configs/reference.toml");
        let mut config: RiseConfig = config::load_text("configs/reference.toml", text, &[]).unwrap();
        config.validate().unwrap();
        let published: RiseConfig = config::load_text("configs/published.toml", PUBLISHED, &[]).unwrap();
        assert_eq!((config.data.compat, config.chat.layout), (Compat::Reference, Layout::ZephyrSystemDemo));
        assert!(config.collection.generation.clean_up && config.evaluation.generation.clean_up);
        assert!(config.collection.tries >= 1_000_000 && config.evaluation.tries >= 1_000_000);
        // All else is as published.
        (config.data.compat, config.chat.layout) = (Compat::Fixed, Layout::Dialogue);
        (config.collection.generation.clean_up, config.evaluation.generation.clean_up) = (false, false);
        (config.collection.tries, config.evaluation.tries) = (10, 10);
        config.teacher.concurrency = published.teacher.concurrency;
        assert_eq!(config, published);
    }

    #[test]
    fn a_run_keeps_the_day_that_its_template_is_told() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            run: RunArgs,
        }
        let folder = tempfile::tempdir().unwrap();
        let args = |more: &[&str]| {
            let out = folder.path().to_str().unwrap();
            let words = ["rise", "--out", out].into_iter().chain(more.iter().copied());
            <Command as clap::Parser>::parse_from(words).run
        };
        let mut named = RiseConfig::default();
        named.fix_date(&args(&[])).unwrap();
        assert_eq!(named, RiseConfig::default());
        let jinja = || {
            let mut config = RiseConfig::default();
            config.chat.template = ChatTemplate::JINJA.into();
            config
        };
        let mut new = jinja();
        new.fix_date(&args(&[])).unwrap();
        assert_eq!(new.chat.date, Some(Date::today()));
        // A day later, the run goes on with the day that is in its folder, whatever file is named.
        let mut begun = jinja();
        begun.chat.date = Some("2024-02-29".parse().unwrap());
        std::fs::write(folder.path().join("config.toml"), config::to_toml(&begun).unwrap()).unwrap();
        let mut resumed = jinja();
        resumed.fix_date(&args(&["--resume"])).unwrap();
        assert_eq!(resumed, begun);
    }

    #[test]
    fn the_published_settings_name_and_explain_every_key() {
        assert_eq!(config::unexplained_keys(PUBLISHED, &RiseConfig::default()), [""; 0]);
    }

    fn config(sets: &[&str]) -> RiseConfig {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_string()).collect();
        config::load_text("test.toml", "model = { pretrained = \"base\" }", &sets).unwrap()
    }

    #[test]
    fn names_say_who_takes_turns() {
        let local = |folder: &str, template: &str| Player::checkpoint(Path::new(folder), template);
        let plain = config(&[]);
        assert_eq!(plain.player("student").unwrap(), local("base", "llama-2"));
        assert_eq!(plain.player("teacher").unwrap(), Player::Service(plain.teacher.clone()));
        let named = config(&[
            "collection.student=boosted",
            "collection.teacher_model=large",
            "collection.teacher_template=zephyr",
            "players.own={model=\"small\",template=\"jinja\"}",
            "players.same={model=\"tiny\"}",
            "players.far={model=\"gpt\",base_url=\"http://far/v1\"}",
            "collection.models=[\"own\",\"far\"]",
            "evaluation.player=far",
            "evaluation.turns=2",
            "evaluation.generation.temperature=0.0",
        ]);
        named.validate().unwrap();
        assert_eq!(named.player("student").unwrap(), local("boosted", "llama-2"));
        assert_eq!(named.player("teacher").unwrap(), local("large", "zephyr"));
        assert_eq!(named.player("own").unwrap(), local("small", "jinja"));
        assert_eq!(named.player("same").unwrap(), local("tiny", "llama-2"));
        let Player::Service(far) = named.player("far").unwrap() else { panic!("it is a server's") };
        assert_eq!((&*far.base_url, &*far.model, far.timeout_secs), ("http://far/v1", "gpt", 20.0));
        let error = format!("{:?}", named.player("fa").unwrap_err());
        assert!(error.contains("`fa`") && error.contains("far, own, same"), "{error}");

        let names =
            |rollout: Rollout<'_>| rollout.players.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(named.collecting().unwrap()), ["own", "far"]);
        let evaluating = named.evaluating().unwrap();
        // A server is told what a checkpoint would be.
        assert_eq!((evaluating.sampling.temperature, evaluating.sampling.max_tokens), (0.0, 1000));
        evaluating.check().unwrap();
        assert_eq!(names(evaluating), ["far", "far"]);
    }

    #[test]
    fn several_greedy_answers_of_a_checkpoint_are_refused() {
        let greedy = "collection.generation.temperature=0.0";
        let several = config(&[greedy, "collection.models=[\"student\"]", "collection.samples=[2]"]);
        let error = format!("{:?}", several.collecting().unwrap().check().unwrap_err());
        assert!(error.contains("student") && error.contains("2 answers"), "{error}");
        let one = config(&[greedy, "collection.models=[\"student\"]", "collection.samples=[1]"]);
        one.collecting().unwrap().check().unwrap();
    }
}
