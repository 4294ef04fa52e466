//! The configuration file.

use std::collections::BTreeMap;
use std::path::Path;

use ruminate::algorithms::rwr::{CollectionConfig, EvaluationConfig, FinetuneConfig, IterationConfig};
use ruminate::datasets::chat::{ChatTemplate, Date, OtherTemplate};
use ruminate::datasets::environments::Problem;
use ruminate::datasets::rise::{ChatConfig, ConversionConfig, PlayerConfig, RiseData, ServiceSampling};
use ruminate::datasets::teacher::TeacherConfig;
use ruminate::run::program::{Configuration, enter};
use ruminate::run::{
    ConfigError, FlagKeys, ModelSection, Player, Rollout, RunArgs, RunDir, RunDirError, Worker, config,
};
use serde::{Deserialize, Serialize};

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Collect,
    Convert,
    Finetune,
    Evaluate,
    Iterate,
}

/// Everything that a run depends on. `configs/published.toml` explains each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RiseConfig {
    /// What the run does; written by the command.
    pub(crate) phase: Option<Phase>,
    /// Seed of a new model's parameters.
    pub(crate) seed: u64,
    pub(crate) data: RiseData,
    pub(crate) chat: ChatConfig,
    pub(crate) model: ModelSection,
    pub(crate) teacher: TeacherConfig,
    /// Who takes turns besides the student and the teacher, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) players: BTreeMap<String, PlayerConfig>,
    pub(crate) collection: CollectionConfig,
    pub(crate) conversion: ConversionConfig,
    pub(crate) finetune: FinetuneConfig,
    pub(crate) evaluation: EvaluationConfig,
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
        let check = || -> ruminate::algorithms::Result<()> {
            self.collection.validate(self.data.compat)?;
            self.evaluation.validate(self.data.compat)?;
            self.iteration.validate()?;
            self.finetune.training.validate()?;
            self.finetune.trainer.validate()
        };
        check().map_err(ConfigError::invalid)?;
        let invalid = |key: String, reason: String| ConfigError::invalid(format!("{key}: {reason}"));
        let tau = self.conversion.settings.validate();
        tau.map_err(|(key, reason)| invalid(format!("conversion.settings.{key}"), reason))?;
        let teacher = self.collection.teacher_template.as_ref();
        let templates =
            [("chat.template", Some(&self.chat.template)), ("collection.teacher_template", teacher)];
        for (key, name) in templates.into_iter().filter_map(|(key, name)| Some((key, name?))) {
            ChatConfig::check(name).map_err(|reason| invalid(key.into(), reason))?;
        }
        for (name, player) in &self.players {
            let key = |key| format!("players.{name}.{key}").trim_end_matches('.').to_owned();
            player.validate(name).map_err(|(field, reason)| invalid(key(field), reason))?;
        }
        let named =
            self.collection.models.iter().chain([&self.iteration.last]).chain(&self.evaluation.player);
        named.map(|name| self.player(name).map(drop)).collect::<Result<(), _>>()?;
        self.model.validate("model")
    }
}

impl RiseConfig {
    /// The configuration of a run that writes to a folder, unless it is only planned.
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

    /// Says what the run does, and refuses to go on with a run that does something else.
    pub(crate) fn begin(&mut self, phase: Phase, args: &RunArgs) -> Result<(), ConfigError> {
        enter(&mut self.phase, phase, |phase| format!("rise {}", format!("{phase:?}").to_lowercase()))?;
        self.fix_date(args)
    }

    /// Fixes the day that a checkpoint's own template is told: today for a new run, and that of the run's folder for one that goes on, so
    /// that all prompts of a run agree.
    pub(crate) fn fix_date(&mut self, args: &RunArgs) -> Result<(), ConfigError> {
        let players = self.players.values().filter_map(|player| player.template.as_ref());
        let mut templates = players.chain(&self.collection.teacher_template).chain([&self.chat.template]);
        if self.chat.date.is_none() && templates.any(|name| name == ChatTemplate::JINJA) {
            let resumed = args.out.as_deref().filter(|_| args.resumes()).and_then(RunDir::stored_config);
            self.chat.date = match resumed {
                Some(stored) => config::load::<Self>(Some(&stored), &[])?.chat.date,
                None => Some(Date::today()),
            };
        }
        Ok(())
    }

    /// Takes the day of rank 0, which all prompts share, and warns of those who use another template than they were trained with.
    pub(crate) fn share<'a>(
        &mut self,
        players: impl IntoIterator<Item = &'a Player>,
        worker: &Worker,
    ) -> anyhow::Result<Vec<OtherTemplate>> {
        self.chat.date = worker.collective.first(|| anyhow::Ok(self.chat.date))?;
        let others = Player::other_templates(players)?;
        let advice = "unless this is meant, set chat.template, or collection.teacher_template";
        let shown = others.iter().filter(|_| worker.collective.is_main_process());
        tell("warning", shown.map(|other| format!("{other}; {advice}")));
        Ok(others)
    }

    /// Who takes turns under a name.
    pub(crate) fn player(&self, name: &str) -> Result<Player, ConfigError> {
        let CollectionConfig { student, teacher_model, teacher_template, .. } = &self.collection;
        let template = &self.chat.template;
        Ok(match (name, self.players.get(name)) {
            ("student", _) => match student {
                Some(folder) => Player::checkpoint(folder, template),
                None => Player::Local { model: self.model.clone(), template: template.clone() },
            },
            ("teacher", _) => match teacher_model {
                Some(folder) => Player::checkpoint(folder, teacher_template.as_ref().unwrap_or(template)),
                None => Player::Service(self.teacher.clone()),
            },
            (_, Some(player)) => match player.service(&self.teacher) {
                Some(service) => Player::Service(service),
                None => {
                    let template = player.template.as_ref().unwrap_or(template);
                    Player::checkpoint(Path::new(&player.model), template)
                }
            },
            (_, None) => {
                let known: Vec<&str> = ["student", "teacher"]
                    .into_iter()
                    .chain(self.players.keys().map(String::as_str))
                    .collect();
                let known = known.join(", ");
                let reason =
                    format!("nobody is called `{name}`; there are {known}, and whom [players] names");
                return Err(ConfigError::invalid(reason));
            }
        })
    }

    /// The rollout of a collection.
    pub(crate) fn collecting(&self) -> Result<Rollout<'_>, ConfigError> {
        let section = &self.collection;
        let players = section.models.iter().map(|name| Ok((name.clone(), self.player(name)?)));
        Ok(Rollout {
            unit: "problems",
            environment: self.data.environment(),
            config: section.rollout(self.data.compat),
            players: players.collect::<Result<_, ConfigError>>()?,
            chat: &self.chat,
            generation: &section.generation,
            sampling: section.teacher_sampling.clone(),
            prices: section.prices,
            batch: section.batch,
            seed: self.seed,
        })
    }

    /// The rollout of an evaluation.
    pub(crate) fn evaluating(&self) -> Result<Rollout<'_>, ConfigError> {
        let section = &self.evaluation;
        let config = section.rollout(self.data.compat);
        let (name, player) = match &section.player {
            Some(name) => (name.as_str(), self.player(name)?),
            None => {
                let folder = section.model.as_deref().unwrap_or(Path::new(""));
                ("model", Player::checkpoint(folder, &self.chat.template))
            }
        };
        Ok(Rollout {
            unit: section.setting.name(),
            players: vec![(name.to_owned(), player); config.samples.len()],
            config,
            sampling: ServiceSampling {
                temperature: section.generation.temperature,
                top_p: section.generation.top_p,
                max_tokens: section.generation.max_new_tokens.try_into().unwrap_or(u32::MAX),
            },
            generation: &section.generation,
            batch: section.batch,
            ..self.collecting()?
        })
    }

    /// The first problems of a file; all of them for a `limit` of 0.
    pub(crate) fn problems(&self, path: &Path, limit: usize) -> anyhow::Result<Vec<Problem>> {
        let loaded = self.data.read(path, limit)?;
        tell("note", loaded.skipped.iter().map(|error| format!("left out: {error}")));
        if loaded.problems.is_empty() {
            return Err(ConfigError::invalid(format!("{} has no problems", path.display())).into());
        }
        Ok(loaded.problems)
    }

    /// The problems to learn from.
    pub(crate) fn training_problems(&self) -> anyhow::Result<Vec<Problem>> {
        self.problems(&self.data.problems, self.data.limit)
    }

    /// The problems to evaluate on.
    pub(crate) fn test_problems(&self) -> anyhow::Result<Vec<Problem>> {
        self.problems(&self.evaluation.problems, self.evaluation.limit)
    }
}

/// Tells on the terminal what a user should know about data and models.
#[expect(clippy::print_stderr, reason = "notes and warnings go to the terminal")]
pub(crate) fn tell(kind: &str, messages: impl Iterator<Item = String>) {
    messages.for_each(|message| eprintln!("{kind}: {message}"));
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
}
