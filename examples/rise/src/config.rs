//! The flags that all commands share.

use clap::Args;
use ruminate::datasets::environments::Benchmark;
use ruminate::run::RunArgs;

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
    use ruminate::datasets::chat::{ChatTemplate, Date};
    use ruminate::datasets::environments::Compat;
    use ruminate::datasets::rise::Layout;
    use ruminate::run::program::Configuration;
    use ruminate::run::rise::RiseConfig;
    use ruminate::run::{RunArgs, config};

    use super::suggested;

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
