//! Crystal (arXiv 2310.04921): a T5 that writes knowledge about a question before it answers.

mod config;
mod demo;
mod plan;
mod reinforce;
mod results;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use ruminate::algorithms::crystal::{
    EvaluationConfig, Imitation, KnowledgeSource, Notice, QuestionEncoder, ReadItems, evaluate,
    evaluation_folder, read_eval, read_silver, write_evaluation,
};
use ruminate::algorithms::{Collective, Fitted, KeptTexts, Observer, Sft, Trainer};
use ruminate::datasets::Split;
use ruminate::datasets::knowledge::DataForm;
use ruminate::run::{
    ConfigError, ConsoleObserver, FlagKeys, Outcome, RunArgs, RunDir, RunDirError, SharedCommand, StopFlag,
    Table, exit_code, print_json, resolve_link,
};
use serde_json::json;

use config::{CrystalConfig, FLAGS};
use results::{print_report, summary};

/// Crystal: write knowledge about a question, then answer with it (arXiv 2310.04921).
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Stage I: imitate silver knowledge, and learn to answer with it
    ///
    /// Writes checkpoints, metrics and the resolved configuration to --out. `--set imitation.qk_weight=0 --set
    /// imitation.qka_weight=0 --set imitation.qa_weight=1` trains the direct-QA baseline instead.
    Imitate(ImitateArgs),
    /// Stage II: reinforce the knowledge by the model's own confidence in its answers
    ///
    /// Starts from a checkpoint of Stage I, with the configuration of its run unless --config names another. The scale of
    /// the rewards is measured first and kept in OUT/reward.
    Reinforce(reinforce::ReinforceArgs),
    /// Sample knowledge, answer with it, and combine the answers
    ///
    /// Writes the reference's knowledge and inference files. The configuration is that of the model's run, unless
    /// --config names another. `data.data_path` may also name statements made elsewhere.
    #[command(
        mut_arg("config", |arg| arg.help("Configuration file. Default: the configuration of the model's run")),
        mut_arg("out", |arg| arg.help("Folder for the results, which replace those of an earlier evaluation. Default: \
            the run's folder with `runs` replaced by `eval` and with the checkpoint's step, such as eval/my-run_ckp-500")),
        mut_arg("resume", |arg| arg.hide(true)),
        mut_arg("resume_from", |arg| arg.hide(true)),
        mut_arg("dry_run", |arg| arg.hide(true)),
        mut_arg("precision", |arg| arg.hide(true))
    )]
    Evaluate(EvaluateArgs),
    /// Train Stage I and the direct-QA baseline on the bundled world, and compare them
    Demo(demo::DemoArgs),
    #[command(flatten)]
    Shared(SharedCommand),
}

#[derive(clap::Args)]
struct ImitateArgs {
    /// Leave out rows that are not questions, and tell how many, instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(clap::Args)]
struct EvaluateArgs {
    /// Checkpoint folder, e.g. runs/my-run/checkpoints/best
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Which questions: train, dev or test
    #[arg(long, default_value = "dev")]
    split: Split,
    /// Skip the pass without knowledge
    #[arg(long)]
    no_baseline: bool,
    /// Leave out rows that are not questions, and tell how many, instead of refusing the file
    #[arg(long)]
    skip_bad_rows: bool,
    #[command(flatten)]
    run: RunArgs,
}

fn main() -> ExitCode {
    exit_code(match Cli::parse().command {
        Command::Imitate(args) => run_imitate(&args),
        Command::Reinforce(args) => reinforce::run(&args),
        Command::Evaluate(args) => run_evaluate(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Shared(command) => command.run().map_err(Into::into),
    })
}

/// The common flags, with those of this program as settings.
fn with_settings(run: &RunArgs, skip_bad_rows: bool) -> RunArgs {
    let mut run = run.clone();
    run.sets.extend(skip_bad_rows.then(|| "data.skip_bad_rows=true".to_string()));
    run
}

fn run_imitate(args: &ImitateArgs) -> anyhow::Result<Outcome> {
    let args = with_settings(&args.run, args.skip_bad_rows);
    if args.out.is_none() && !args.dry_run {
        return Err(RunDirError::NoFolder.into());
    }
    reinforce::check_stage(&args, false)?;
    let config: CrystalConfig = args.load(FLAGS)?;
    config.validate()?;
    if args.dry_run {
        return plan::imitation(&config, &args);
    }
    if let Some(outcome) = args.launch()? {
        return Ok(outcome);
    }
    let worker = args.worker()?;
    // Everything that can be wrong with the data or the model shows before the run folder is touched.
    let (imitation, notices) = prepare(&config, worker.device)?;
    let dir = args.open(&config)?;
    show(&notices, args.quiet || !worker.collective.is_main_process());
    let mut observer = worker.observer(&dir)?;
    let (fitted, _) = imitate(&config, imitation, &worker.collective, &dir, observer.as_mut())?;
    drop(observer);
    if worker.collective.is_main_process() {
        print_fitted(&fitted, "imitation", args.json)?;
    }
    Ok(fitted.ending.into())
}

/// Says where the checkpoints of a run are.
fn print_fitted(fitted: &Fitted, stage: &str, as_json: bool) -> std::io::Result<()> {
    if as_json {
        return print_json(&json!({
            "system": "crystal", "stage": stage, "steps": fitted.steps, "last": fitted.last,
            "best": fitted.best,
        }));
    }
    let mut table = Table::new(["checkpoint", "step", "folder"]);
    table.row(["last", &fitted.steps.to_string(), &fitted.last.display().to_string()]);
    table.row(["best", &fitted.best.step.to_string(), &fitted.best.path.display().to_string()]);
    table.print()
}

type Imitating = Sft<ruminate::models::Model, Imitation>;

/// Reads model and data, and joins them.
fn prepare(config: &CrystalConfig, device: tch::Device) -> anyhow::Result<(Imitating, Vec<Notice>)> {
    let (t5, encoder) = config.build(device)?;
    let tokenizer = encoder.tokenizer().clone();
    let (imitation, notices) = imitation(config, encoder)?;
    Ok((Sft::new(t5, imitation, tokenizer), notices))
}

/// Reads the data of Stage I.
fn imitation(config: &CrystalConfig, encoder: QuestionEncoder) -> anyhow::Result<(Imitation, Vec<Notice>)> {
    let ReadItems { items: train, mut notices } = read_silver(&config.data, Split::Train)?;
    let ReadItems { items: dev, notices: more } = read_silver(&config.data, Split::Dev)?;
    notices.extend(more);
    let tasks = config.data.train_tasks.clone();
    let imitation = Imitation::new(config.imitation.clone(), encoder, train, dev, tasks)?;
    Ok((imitation, notices))
}

/// Trains to the end, or goes on where the run folder's last checkpoint stands.
fn imitate(
    config: &CrystalConfig,
    mut sft: Imitating,
    collective: &Collective,
    dir: &RunDir,
    observer: &mut dyn Observer,
) -> anyhow::Result<(Fitted, Imitating)> {
    let trainer = Trainer::across(config.trainer.clone(), &dir.checkpoints(), collective)?;
    Ok((trainer.fit(&mut sft, observer)?, sft))
}

/// Statements of an evaluation that is not over.
const TEXTS: &str = "texts.jsonl";

fn run_evaluate(args: &EvaluateArgs) -> anyhow::Result<Outcome> {
    let flags = FlagKeys { precision: &[], ..FLAGS };
    for (flag, given) in [("--resume", args.run.resume), ("--dry-run", args.run.dry_run)] {
        if given {
            return Err(ConfigError::UselessFlag { flag }.into());
        }
    }
    if !args.model.is_dir() {
        let reason = format!("--model: there is no checkpoint folder {}", args.model.display());
        return Err(ConfigError::invalid(reason).into());
    }
    let run = with_settings(&args.run, args.skip_bad_rows).configured_as(&args.model)?;
    let mut config: CrystalConfig = run.load(flags)?;
    config.validate()?;
    let device = run.setup()?;
    let form = DataForm::of(&config.data.data_path);
    if form != DataForm::Questions {
        config.evaluation.knowledge = KnowledgeSource::Given;
    }
    let unknown =
        || ConfigError::invalid("cannot tell the run from --model; name a folder for the results with --out");
    let out = run.out.clone().or_else(|| evaluation_folder(&args.model)).ok_or_else(unknown)?;
    let (t5, encoder) = config.open(&args.model, device)?;
    let ReadItems { items: questions, notices } = read_eval(&config.data, args.split)?;
    show(&notices, run.quiet);
    // Now, and not after hours of work.
    std::fs::create_dir_all(&out)
        .with_context(|| format!("cannot create {}; choose another --out", out.display()))?;
    let given = (form != DataForm::Questions).then(|| file_name(&config.data.data_path));
    // What has been written when somebody asks to stop need not be written again.
    let kept = KeptTexts::open(&t5, &resolve_link(&args.model), &out.join(TEXTS))?;
    let mut observer = ConsoleObserver::new(run.verbosity());
    let evaluated = StopFlag::on_ctrl_c()?.interrupt().during(|| -> ruminate::algorithms::Result<_> {
        let report = evaluate(&kept, &encoder, &questions, &config.evaluation, &mut observer)?;
        let bare = EvaluationConfig { knowledge: KnowledgeSource::None, ..config.evaluation.clone() };
        let baseline = || evaluate(&kept, &encoder, &questions, &bare, &mut observer);
        Ok((report, (!args.no_baseline).then(baseline).transpose()?))
    });
    drop(observer);
    let (report, baseline) = match evaluated {
        Err(error) if ruminate::algorithms::Error::is_interruption(&error) => {
            return Ok(Outcome::Interrupted);
        }
        evaluated => evaluated?,
    };
    let mut written = vec![];
    if let Some(baseline) = &baseline {
        written.extend(write_evaluation(&out, baseline, -1, given.as_deref())?);
    }
    written.extend(write_evaluation(&out, &report, 0, given.as_deref())?);
    kept.remove()?;
    if run.json {
        print_json(&summary(&report, &written))?;
    } else {
        print_report(&report, &written)?;
    }
    Ok(Outcome::Done)
}

fn file_name(path: &str) -> String {
    Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[expect(clippy::print_stderr, reason = "what a user should know about the data goes to the terminal")]
fn show(notices: &[Notice], quiet: bool) {
    for notice in notices.iter().filter(|_| !quiet) {
        eprintln!("note: {} ({}): {}", notice.task, notice.split, notice.text);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    /// With UPDATE_EXPECT=1, the page is written.
    #[test]
    fn the_reference_page_is_that_of_the_command_line() {
        let page = clap_markdown::help_markdown_command(&Cli::command());
        expect_test::expect_file!["../../../docs/reference/crystal.md"].assert_eq(&page);
    }
}
